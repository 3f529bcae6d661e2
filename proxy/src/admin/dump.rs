//! The documents behind the admin pages, as JSON. None of them holds a key, a token or a registration.

use outrigger_certs::inspect;
use serde_json::{Value, json};

use crate::{
    config::{AccessLog, Config, Token},
    context::Ctx,
    metrics::merge,
    worker::Worker,
};

/// Settings, control planes, and the configuration in force.
pub(super) fn config(ctx: &Ctx) -> Value {
    let state = ctx.readiness.state();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "ready": state.ready,
        "draining": state.draining,
        "missing": ctx.readiness.missing(),
        "settings": settings(&ctx.config),
        "control_planes": ctx.discovery.control_planes(),
        "snapshot": *ctx.snapshot.load(),
    })
}

fn settings(config: &Config) -> Value {
    let texts = |items: &[String]| Value::from(items.to_vec());
    let capture = config.capture.map(
        |capture| json!({ "outbound_port": capture.outbound_port, "inbound_port": capture.inbound_port }),
    );
    json!({
        "control_plane": texts(&config.control_planes.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "token": match &config.token {
            Token::Text(_) => json!("given as text"),
            Token::File(path) => json!({ "file": path }),
        },
        "capture": capture,
        "mark": config.mark,
        "admin_port": config.admin_port,
        "status_address": config.status_address,
        "forward": texts(&config.forwards.iter().map(|f| format!("{}={}", f.local, f.destination)).collect::<Vec<_>>()),
        "serve": texts(&config.serves.iter().map(|s| format!("{}={}", s.mesh, s.application)).collect::<Vec<_>>()),
        "address": config.addresses,
        "zone": &*config.zone,
        "state_dir": config.state_dir,
        "identity_dir": config.identity_dir,
        "workers": config.workers,
        "drain_grace_ms": config.drain_grace.as_millis() as u64,
        "access_log": match &config.access_log {
            AccessLog::Off => json!("off"),
            AccessLog::Stdout => json!("stdout"),
            AccessLog::File(path) => json!(path),
        },
        "access_log_format": config.access_log_format.as_ref().map_or_else(|| "json".to_owned(), ToString::to_string),
        "access_log_only": config.access_log_only.to_string(),
        "metrics_series": config.metrics_series,
        "metrics_idle_ms": config.metrics_idle.map(|idle| idle.as_millis() as u64),
        "merge_metrics": texts(&config.merge_metrics.iter().map(merge::Source::name).collect::<Vec<_>>()),
        "otel": config.otel.describe(),
        "log": config.log,
    })
}

/// Own chain, leaf first, and the roots that are trusted.
pub(super) fn certs(ctx: &Ctx) -> Value {
    let credential = ctx.credentials.current();
    let trust = ctx.credentials.trust();
    let summary = |der: &[u8]| match inspect::describe(der) {
        Ok(summary) => json!(summary),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let chain = credential.iter().flat_map(|own| own.chain()).map(|der| summary(der));
    let roots = trust.iter().flat_map(|trust| trust.roots()).map(|der| summary(der));
    json!({
        "identity": credential.as_ref().map(|own| own.identity().as_str()),
        "trust_domain": ctx.credentials.trust_domain().as_str(),
        "chain": chain.collect::<Vec<_>>(),
        "roots": roots.collect::<Vec<_>>(),
    })
}

/// The backends of the snapshot, circuits with their evidence, and what each worker knows about the endpoints it has
/// used.
pub(super) fn clusters(ctx: &Ctx, workers: &[Value]) -> Value {
    let snapshot = ctx.snapshot.load();
    let backends = snapshot.backends().map(|(key, backend)| (key.to_string(), json!(**backend)));
    json!({
        "backends": backends.collect::<serde_json::Map<_, _>>(),
        "circuits": { "not_closed": ctx.events.standing(), "transitions": ctx.events.recent() },
        "workers": workers,
    })
}

/// Bulkheads and rate limits as they stand.
pub(super) fn limits(ctx: &Ctx) -> Value {
    json!({ "bulkheads": ctx.limits.numbers(), "rate_limits": ctx.limits.limiters() })
}

/// Metrics about metrics.
pub(super) fn stats(ctx: &Ctx, scrapes: usize) -> Value {
    json!({
        "series": ctx.telemetry.metrics.standing(),
        "merged": ctx.merges.standing(),
        "scrapes_under_way": scrapes,
    })
}

/// One worker's part of `/clusters`; called on its thread.
pub(crate) fn endpoints(worker: &Worker) -> Value {
    let states = worker.clusters.states();
    let endpoints = states.iter().map(|state| {
        json!({
            "cluster": &*state.cluster,
            "address": state.address,
            "identity": state.identity.as_str(),
            "circuit": state.circuit,
            "admits": state.admits,
            "in_flight": state.in_flight,
            "latency_us": state.latency.map(|latency| latency.as_micros() as u64),
            "connections": {
                "open": state.connections.open,
                "idle": state.connections.idle,
                "connecting": state.connections.connecting,
                "waiting": state.connections.waiting,
            },
        })
    });
    json!({ "worker": worker.id, "endpoints": endpoints.collect::<Vec<_>>() })
}
