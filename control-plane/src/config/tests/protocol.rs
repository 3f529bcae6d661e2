//! What only requests have, said of ports that carry none.

use super::*;

/// All of it opaque.
const LEDGER: &str = r"apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: ledger, namespace: shop}
spec: {ports: [{name: a, port: 1, appProtocol: tcp}, {name: b, port: 2, appProtocol: tls}], selector: {app: ledger}}
";

fn policy(kind: &str, spec: &str) -> String {
    document("outrigger.dev/v1alpha1", kind, "p", spec)
}

fn route(name: &str, parent: &str, backend: &str) -> String {
    let spec =
        format!("{{parentRefs: [{{kind: Service, name: {parent}}}], rules: [{{backendRefs: [{backend}]}}]}}");
    document("gateway.networking.k8s.io/v1", "HTTPRoute", name, &spec)
}

#[test]
fn what_a_traffic_policy_says_of_requests_is_refused_where_there_are_none() {
    let limit = "name: a, requests: 1";
    let keyed = |key: &str| format!("rateLimit: [{{{limit}, key: [{{caller: identity}}, {key}]}}]");
    let hashed =
        |on: &str| format!("loadBalancer: {{algorithm: maglev, hashOn: [{{source: address}}, {on}]}}");
    for (section, field) in [
        ("loadBalancer: {subset: ¦{label: v, header: x-v}}", "loadBalancer.subset"),
        (&hashed("{header: ¦x-user}"), "loadBalancer.hashOn[1].header"),
        (&hashed("{cookie: ¦{name: sid}}"), "loadBalancer.hashOn[1].cookie"),
        (&hashed("{path: ¦{}}"), "loadBalancer.hashOn[1].path"),
        (&hashed("{query: ¦q}"), "loadBalancer.hashOn[1].query"),
        ("timeouts: {request: ¦1s}", "timeouts.request"),
        ("timeouts: {request: ¦0s}", "timeouts.request"),
        ("timeouts: {perTry: ¦1s}", "timeouts.perTry"),
        ("timeouts: {responseHeader: ¦1s}", "timeouts.responseHeader"),
        ("timeouts: {streamIdle: ¦1s}", "timeouts.streamIdle"),
        ("timeouts: {maxConnectionAge: ¦1h}", "timeouts.maxConnectionAge"),
        ("bulkhead: {upstream: {maxConnections: 1, maxRequests: ¦1}}", "bulkhead.upstream.maxRequests"),
        ("bulkhead: {endpoint: {maxRequests: ¦1}}", "bulkhead.endpoint.maxRequests"),
        ("bulkhead: {route: ¦{maxRequests: 1}}", "bulkhead.route"),
        ("bulkhead: {adaptive: ¦{minRequests: 1, maxRequests: 2}}", "bulkhead.adaptive"),
        ("outlierEjection: {failures: ¦{statuses: ['500-599']}}", "outlierEjection.failures"),
        ("retries: ¦{attempts: 0}", "retries"),
        ("hedging: ¦{}", "hedging"),
        ("fallback: ¦{answer: {status: 200}}", "fallback"),
        ("cache: ¦{}", "cache"),
        ("coalesce: ¦true", "coalesce"),
        (&keyed("{header: ¦x-user}"), "rateLimit[0].key[1].header"),
        (&keyed("{path: ¦{}}"), "rateLimit[0].key[1].path"),
    ] {
        for (target, because) in [
            ("database, port: 3306", "port 3306 of MeshService shop/database carries no HTTP"),
            ("ledger", "no port of MeshService shop/ledger carries HTTP"),
        ] {
            let spec = format!("{{targetRef: {{kind: Service, name: {target}}}, {section}}}");
            let (text, place) = unmark(&policy("TrafficPolicy", &spec));
            let last = field.rsplit('.').next().unwrap();
            assert_eq!(
                errors(&[("b.yaml", DATABASE), ("l.yaml", LEDGER), ("p.yaml", &text)]),
                [format!(
                    "p.yaml:{place}: TrafficPolicy shop/p: spec.{field}: {because} (see its appProtocol): \
                     {last} would never apply"
                )]
            );
        }
        // Where some port may carry requests it stays.
        for target in ["database", "database, port: 80"] {
            let spec =
                format!("{{targetRef: {{kind: Service, name: {target}}}, {section}}}").replace('¦', "");
            read_all(&[("b.yaml", DATABASE), ("p.yaml", &policy("TrafficPolicy", &spec))]).unwrap();
        }
    }
}

#[test]
fn what_a_traffic_policy_says_of_connections_is_taken_everywhere() {
    for section in [
        "loadBalancer: {algorithm: maglev, hashOn: [{source: identity}, {source: address}]}",
        "loadBalancer: {zone: {}, slowStart: 5s, panicPercent: 20}",
        "timeouts: {connect: 1s, idle: 5m}",
        "bulkhead: {upstream: {maxConnections: 2}, endpoint: {maxConnections: 1}, queue: {size: 1, timeout: 1s}}",
        "outlierEjection: {consecutiveFailures: 3, latency: {percent: 300}}",
        "healthCheck: {tcp: {}}",
        "healthCheck: {http: {path: /healthz}}",
        "rateLimit: [{name: a, requests: 1, key: [{caller: identity}, {client: address}], maxKeys: 5}]",
    ] {
        let spec = format!("{{targetRef: {{kind: Service, name: ledger}}, {section}}}");
        read_all(&[("l.yaml", LEDGER), ("p.yaml", &policy("TrafficPolicy", &spec))]).unwrap();
    }
}

#[test]
fn connections_queue_for_those_of_the_upstream_alone() {
    let spec = "{targetRef: {kind: Service, name: ledger}, \
                bulkhead: {endpoint: {maxConnections: 1}, queue: ¦{size: 1, timeout: 1s}}}";
    let (text, place) = unmark(&policy("TrafficPolicy", spec));
    assert_eq!(
        errors(&[("l.yaml", LEDGER), ("p.yaml", &text)]),
        [format!(
            "p.yaml:{place}: TrafficPolicy shop/p: spec.bulkhead.queue: no port of MeshService shop/ledger carries HTTP \
             (see its appProtocol): queue would never apply without upstream.maxConnections"
        )]
    );
}

#[test]
fn a_port_that_a_route_sends_requests_to_gets_them() {
    let retries =
        policy("TrafficPolicy", "{targetRef: {kind: Service, name: ledger}, retries: {attempts: 1}}");
    let to = |backend: &str| route("r", "orders", backend);
    let all = |route: &str| {
        read_all(&[("a.yaml", ORDERS), ("l.yaml", LEDGER), ("p.yaml", &retries), ("r.yaml", route)])
    };
    all(&to("{name: ledger, port: 2}")).unwrap();
    assert_eq!(all(&to("{name: orders}")).unwrap_err().len(), 1);
    // What a broken route sends where is not known: its own mistake is told, and nothing else.
    let told = all(&to("{name: ledger, port: 0}")).unwrap_err();
    assert!(told.len() == 1 && told[0].contains("is not a port"), "{told:?}");
}

#[test]
fn what_a_server_policy_says_of_requests_is_refused_where_there_are_none() {
    for (section, field) in [
        ("bulkhead: {total: {maxRequests: ¦1}}", "bulkhead.total.maxRequests"),
        ("bulkhead: {perCaller: {maxConnections: 1, maxRequests: ¦1}}", "bulkhead.perCaller.maxRequests"),
        ("bulkhead: {adaptive: ¦{minRequests: 1, maxRequests: 2}}", "bulkhead.adaptive"),
        ("rateLimit: [{name: a, requests: 1, key: [{header: ¦x-user}]}]", "rateLimit[0].key[0].header"),
        (
            "rateLimit: [{name: a, requests: 1, key: [{caller: identity}, {path: ¦{}}]}]",
            "rateLimit[0].key[1].path",
        ),
    ] {
        let of = |protocol: &str, section: &str| {
            policy("ServerPolicy", &format!("{{ports: [{{port: 8080, protocol: {protocol}, {section}}}]}}"))
        };
        let last = field.rsplit('.').next().unwrap();
        for protocol in ["tcp", "tls"] {
            let (text, place) = unmark(&of(protocol, section));
            let expected = [format!(
                "p.yaml:{place}: ServerPolicy shop/p: spec.ports[0].{field}: port 8080 carries no HTTP (see protocol): \
                 {last} would never apply"
            )];
            assert_eq!(errors(&[("p.yaml", &text)]), expected);
            assert_eq!(errors(&[("b.yaml", DATABASE), ("p.yaml", &text)]), expected);
            // A service sends requests there all the same, or a more specific policy says that there are some.
            read_all(&[("a.yaml", ORDERS), ("p.yaml", &text)]).unwrap();
            let other = "{selector: {app: x}, ports: [{port: 8080, protocol: http}]}";
            let other = document("outrigger.dev/v1alpha1", "ServerPolicy", "other", other);
            read_all(&[("o.yaml", &other), ("p.yaml", &text)]).unwrap();
        }
        read_all(&[("p.yaml", &of("detect", section).replace('¦', ""))]).unwrap();
    }
    let both = "bulkhead: {total: {maxRequests: 1}, queue: {size: 1, timeout: 1s}}";
    let both = policy("ServerPolicy", &format!("{{ports: [{{port: 8080, protocol: tcp, {both}}}]}}"));
    let told = errors(&[("p.yaml", &both)]);
    assert!(told.len() == 2 && told[0].contains(".bulkhead.total.maxRequests: "), "{told:?}");
    assert!(told[1].ends_with("queue would never apply"), "{told:?}");
    let taken = "bulkhead: {total: {maxConnections: 2}, perCaller: {maxConnections: 1}}, \
                 rateLimit: [{name: a, requests: 1, key: [{caller: identity}]}]";
    let spec = format!("{{ports: [{{port: 8080, protocol: tcp, {taken}}}]}}");
    read_all(&[("p.yaml", &policy("ServerPolicy", &spec))]).unwrap();
}
