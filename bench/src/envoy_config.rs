//! Envoy's side of the comparison: the configuration of a sidecar pair that does the same work as ours.
//!
//! Redirected connections, original destination, mutual TLS 1.3 with both identities checked, the application's
//! protocol kept end to end, one JSON access log line per request and the statistics that are on by default. Circuit
//! breakers are raised, because the defaults (1,024 requests) would shed the very load that is to be measured. The
//! hop's key exchange is set to ours, and resumption is off as with us, so that handshakes are the same work.
//!
//! One more port has Envoy's counterparts of every policy of resilience that we have on there: limits, a retry budget,
//! outlier detection with all detectors, active checks, slow start, retries with a time per try, local rate limits on both
//! sides. It has none for bulkheads by caller, limits by key without descriptors of its own, and hedging by percentile.
//!
//! What it tells of its work can be left out ([`Watch::Off`]: no access log, no statistics), or one request in a hundred
//! traced as well, its spans sent by OTLP over HTTP as ours are.
//!
//! Nothing else here tunes Envoy down: what is not named is Envoy's default.

use std::{net::Ipv4Addr, path::Path};

use serde_json::{Value, json};

use crate::{origin, pki, subject::Watch};

/// Where a pair's packets are redirected to; the same ports as ours.
pub(crate) const OUTBOUND_PORT: u16 = 15001;
pub(crate) const INBOUND_PORT: u16 = 15006;

/// The mark that exempts Envoy's own connections from the redirect.
pub(crate) const MARK: u32 = 0x6f72;

const HTTP: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TCP_PROXY: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ORIGINAL_DST: &str =
    "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst";
const FILE_LOG: &str = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog";
const RATE_LIMIT: &str =
    "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit";
const UPSTREAM_TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
const DOWNSTREAM_TLS: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";
const TRACER: &str = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig";
const HTTP_OPTIONS: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// SOL_SOCKET and SO_MARK, which Envoy takes as numbers.
const SOL_SOCKET: u32 = 1;
const SO_MARK: u32 = 36;

/// The name of what belongs to [`origin::POLICIES_PORT`].
const POLICIES: &str = "policies";

#[derive(Clone, Copy)]
enum Side {
    Client,
    Server,
}

/// The caller's sidecar: plain in, mutual TLS out.
pub(crate) fn client(server: Ipv4Addr, certs: &Path, log: &Path, watch: Watch) -> Value {
    watched(Side::Client, server, certs, log, watch)
}

/// The callee's sidecar: mutual TLS in, plain to the program beside it.
pub(crate) fn server(server: Ipv4Addr, certs: &Path, log: &Path, watch: Watch) -> Value {
    watched(Side::Server, server, certs, log, watch)
}

fn watched(side: Side, application: Ipv4Addr, certs: &Path, log: &Path, watch: Watch) -> Value {
    let mut bootstrap = bootstrap(side, application, certs, log);
    let resources = &mut bootstrap["static_resources"];
    if let Watch::On { backend } = watch {
        let mut cluster = base_cluster(Side::Server, OTLP, backend, origin::OTLP_PORT, certs);
        cluster["connect_timeout"] = json!("1s");
        if let Some(clusters) = resources["clusters"].as_array_mut() {
            clusters.push(cluster);
        }
    }
    let chains = resources["listeners"][0]["filter_chains"].as_array_mut();
    for chain in chains.into_iter().flatten() {
        let filter = &mut chain["filters"][0]["typed_config"];
        match watch {
            Watch::Off => filter["access_log"] = json!([]),
            Watch::On { backend } if filter["@type"] == HTTP => filter["tracing"] = tracing(backend),
            // What is no HTTP has no tracing.
            Watch::Usual | Watch::On { .. } => {}
        }
    }
    if watch == Watch::Off {
        bootstrap["stats_config"] = json!({ "stats_matcher": { "reject_all": true } });
    }
    bootstrap
}

const OTLP: &str = "otlp";

/// One request in a hundred, as a tracer decides that is asked first; the callee's sidecar follows.
fn tracing(backend: Ipv4Addr) -> Value {
    let port = origin::OTLP_PORT;
    json!({
        "random_sampling": { "value": 1.0 },
        "provider": {
            "name": "envoy.tracers.opentelemetry",
            "typed_config": {
                "@type": TRACER,
                "service_name": "bench",
                "http_service": { "http_uri": {
                    "uri": format!("http://{backend}:{port}/v1/traces"), "cluster": OTLP, "timeout": "1s",
                } },
            },
        },
    })
}

fn bootstrap(side: Side, application: Ipv4Addr, certs: &Path, log: &Path) -> Value {
    let (name, port) = match side {
        Side::Client => ("outbound", OUTBOUND_PORT),
        Side::Server => ("inbound", INBOUND_PORT),
    };
    let http_ports = [("h1", origin::H1_PORT), ("h2", origin::H2_PORT), (POLICIES, origin::POLICIES_PORT)];
    let mut chains: Vec<Value> =
        http_ports.iter().map(|(cluster, port)| http_chain(side, cluster, *port, certs, log)).collect();
    chains.push(tcp_chain(side, certs, log));
    let mut clusters: Vec<Value> = http_ports
        .iter()
        .map(|(cluster, port)| http_cluster(side, cluster, application, *port, certs))
        .collect();
    clusters.push(base_cluster(side, "tcp", application, origin::TCP_PORT, certs));
    json!({
        "node": { "id": name, "cluster": "bench" },
        "admin": { "address": socket(Ipv4Addr::LOCALHOST, 15000) },
        "static_resources": {
            "listeners": [{
                "name": name,
                "address": socket(Ipv4Addr::UNSPECIFIED, port),
                "listener_filters": [{
                    "name": "envoy.filters.listener.original_dst",
                    "typed_config": { "@type": ORIGINAL_DST },
                }],
                "filter_chains": chains,
            }],
            "clusters": clusters,
        },
    })
}

fn http_chain(side: Side, cluster: &str, port: u16, certs: &Path, log: &Path) -> Value {
    let mut manager = json!({
        "@type": HTTP,
        "stat_prefix": cluster,
        "codec_type": "AUTO",
        "access_log": [access_log(log)],
        "route_config": { "virtual_hosts": [{
            "name": "all",
            "domains": ["*"],
            "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": cluster, "timeout": "30s" } }],
        }] },
        "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": { "@type": ROUTER } }],
    });
    if cluster == POLICIES {
        all_policies(side, &mut manager);
    }
    if let Side::Server = side {
        // The application learns its caller, as with us.
        manager["forward_client_cert_details"] = json!("SANITIZE_SET");
        manager["set_current_client_cert_details"] = json!({ "uri": true });
    }
    let filter = json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager });
    chain(side, port, filter, certs)
}

fn tcp_chain(side: Side, certs: &Path, log: &Path) -> Value {
    let filter = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": { "@type": TCP_PROXY, "stat_prefix": "tcp", "cluster": "tcp", "access_log": [access_log(log)] },
    });
    chain(side, origin::TCP_PORT, filter, certs)
}

fn chain(side: Side, port: u16, filter: Value, certs: &Path) -> Value {
    let mut chain = json!({ "filter_chain_match": { "destination_port": port }, "filters": [filter] });
    if let Side::Server = side {
        chain["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": DOWNSTREAM_TLS,
                "require_client_certificate": true,
                "disable_stateless_session_resumption": true,
                "common_tls_context": tls(certs, "server", pki::CLIENT_ID, &["h2", "http/1.1"]),
            },
        });
    }
    chain
}

fn all_policies(side: Side, manager: &mut Value) {
    manager["http_filters"] = json!([
        {
            "name": "envoy.filters.http.local_ratelimit",
            "typed_config": {
                "@type": RATE_LIMIT,
                "stat_prefix": "all",
                "token_bucket": { "max_tokens": 1_000_000, "tokens_per_fill": 1_000_000, "fill_interval": "1s" },
                "filter_enabled": { "default_value": { "numerator": 100 } },
                "filter_enforced": { "default_value": { "numerator": 100 } },
            },
        },
        { "name": "envoy.filters.http.router", "typed_config": { "@type": ROUTER } },
    ]);
    manager["stream_idle_timeout"] = json!("60s");
    if let Side::Client = side {
        let route = &mut manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"];
        route["retry_policy"] = json!({
            "retry_on": "gateway-error,reset,connect-failure,refused-stream,retriable-status-codes",
            "num_retries": 3,
            "per_try_timeout": "10s",
            "retry_back_off": { "base_interval": "0.025s", "max_interval": "0.25s" },
        });
    }
}

/// What the caller's cluster has with every policy on.
fn all_cluster_policies(cluster: &mut Value) {
    let limit = 1_000;
    cluster["lb_policy"] = json!("LEAST_REQUEST");
    cluster["least_request_lb_config"] = json!({ "slow_start_config": { "slow_start_window": "30s" } });
    cluster["common_lb_config"] = json!({ "healthy_panic_threshold": { "value": 20 } });
    cluster["circuit_breakers"] = json!({
        "thresholds": [{
            "max_connections": limit, "max_pending_requests": limit, "max_requests": limit,
            "retry_budget": { "budget_percent": { "value": 20 }, "min_retry_concurrency": 10 },
        }],
        "per_host_thresholds": [{ "max_connections": limit }],
    });
    cluster["outlier_detection"] = json!({
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "enforcing_failure_percentage": 100,
        "failure_percentage_request_volume": 10,
        "split_external_local_origin_errors": true,
        "max_ejection_percent": 50,
    });
    cluster["health_checks"] = json!([{
        "timeout": "1s", "interval": "1s", "unhealthy_threshold": 3, "healthy_threshold": 2,
        "http_health_check": { "path": "/1k" },
    }]);
}

fn http_cluster(side: Side, name: &str, application: Ipv4Addr, port: u16, certs: &Path) -> Value {
    let mut cluster = base_cluster(side, name, application, port, certs);
    if let (POLICIES, Side::Client) = (name, side) {
        all_cluster_policies(&mut cluster);
    }
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": HTTP_OPTIONS,
            "use_downstream_protocol_config": { "http_protocol_options": {}, "http2_protocol_options": {} },
        },
    });
    cluster
}

fn base_cluster(side: Side, name: &str, application: Ipv4Addr, port: u16, certs: &Path) -> Value {
    let limit = 1_000_000;
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(application, port) } }] }],
        },
        "circuit_breakers": { "thresholds": [{
            "max_connections": limit, "max_pending_requests": limit, "max_requests": limit, "max_retries": limit,
        }] },
        "upstream_bind_config": { "socket_options": [{
            "level": SOL_SOCKET, "name": SO_MARK, "int_value": MARK, "state": "STATE_PREBIND",
        }] },
    });
    if let Side::Client = side {
        cluster["transport_socket"] = json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": UPSTREAM_TLS,
                "max_session_keys": 0,
                "common_tls_context": tls(certs, "client", pki::SERVER_ID, &[]),
            },
        });
    }
    cluster
}

/// Certificate, trust and the one identity accepted. An empty `alpn` leaves the offer to the connection pool, which
/// names the protocol it is about to speak.
fn tls(certs: &Path, own: &str, peer: &str, alpn: &[&str]) -> Value {
    let file = |name: String| json!({ "filename": certs.join(name) });
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519MLKEM768", "X25519"],
        },
        "alpn_protocols": alpn,
        "tls_certificates": [{ "certificate_chain": file(format!("{own}.pem")), "private_key": file(format!("{own}.key")) }],
        "validation_context": {
            "trusted_ca": file("ca.pem".into()),
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": peer } }],
        },
    })
}

/// The fields of our own access log, under their names in Envoy.
fn access_log(path: &Path) -> Value {
    json!({
        "name": "envoy.access_loggers.file",
        "typed_config": { "@type": FILE_LOG, "path": path, "log_format": { "json_format": {
            "time": "%START_TIME%",
            "protocol": "%PROTOCOL%",
            "method": "%REQ(:METHOD)%",
            "authority": "%REQ(:AUTHORITY)%",
            "path": "%REQ(:PATH)%",
            "status": "%RESPONSE_CODE%",
            "flags": "%RESPONSE_FLAGS%",
            "bytes_in": "%BYTES_RECEIVED%",
            "bytes_out": "%BYTES_SENT%",
            "duration_ms": "%DURATION%",
            "remote": "%DOWNSTREAM_REMOTE_ADDRESS%",
            "upstream": "%UPSTREAM_HOST%",
            "peer": "%DOWNSTREAM_PEER_URI_SAN%",
        } } },
    })
}

fn socket(address: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": address, "port_value": port } })
}
