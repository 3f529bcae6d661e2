//! A circuit that opened, half-opened or closed, as an event with the evidence that its proxy gave.

use outrigger_certs::{SpiffeId, inspect::hex, verify};
use outrigger_proto::spec::{Circuit, Transition};
use serde_json::json;

use super::{Happened, Kind};

/// The detail by which one that is told again is known.
pub(super) const ID: &str = "transition";

/// With what it is known by.
pub(super) fn event(reporter: &SpiffeId, transition: &Transition) -> (String, Happened) {
    let Transition { backend, endpoint, to, cause, at, lasts, times, why, evidence } = transition;
    let (kind, what) = match to {
        Circuit::Open => (Kind::CircuitOpened, "opened"),
        Circuit::HalfOpen => (Kind::CircuitHalfOpen, "half-open"),
        Circuit::Closed => (Kind::CircuitClosed, "closed"),
    };
    let known_by = format!("{reporter} {backend} {endpoint} {what} {at} {times}");
    let id = hex(&verify::fingerprint(known_by.as_bytes())[..8]);
    let evidence: Vec<_> = evidence
        .iter()
        .map(|outcome| {
            json!({
                "ago_ms": millis(outcome.ago),
                "what": &*outcome.what,
                "failed": outcome.failed,
                "latency_us": u64::try_from(outcome.latency.as_micros()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    let message = format!("{what} for {}/{}: {why}", reporter.namespace(), reporter.service_account());
    let happened = Happened::new(kind, format!("{backend} {endpoint}"), message)
        .by(reporter)
        .at(*at)
        .with("service", backend.to_string())
        .with("endpoint", endpoint.to_string())
        .with("cause", json!(cause))
        .with("lasts_ms", lasts.map(millis))
        .with("times", *times)
        .with("why", &**why)
        .with("evidence", evidence)
        .with(ID, id.clone());
    (id, happened)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
