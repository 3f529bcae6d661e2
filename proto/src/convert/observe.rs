//! Observations and guidance: `Mesh.Observe`, both ways.
//!
//! Like an update, a message is taken whole or refused whole with every reason. Nothing here is acknowledged: who gets a
//! message that does not hold ends the stream.

use std::{net::SocketAddr, time::Duration};

use super::{
    ConvertError, backend_key, dialled,
    fields::{Fields, milliseconds},
};
use crate::{
    limits::{MAX_ENDPOINTS, MAX_EVIDENCE, MAX_FLEETS, MAX_OBSERVATIONS, MAX_REMARK_BYTES},
    pb,
    spec::{
        BackendKey, Cause, Circuit, Demand, Fleet, Guidance, Key, Observations, Outcome, Share, Transition,
    },
};

// === from the wire ===

pub fn observations(from: pb::Observations) -> Result<Observations, ConvertError> {
    let mut fields = Fields::new();
    let transitions = fields.list("transitions", from.transitions, MAX_OBSERVATIONS, transition);
    let demands = fields.list("demands", from.demands, MAX_OBSERVATIONS, |fields, from| {
        let limit = fields.at("limit", |fields| fields.label(&from.limit));
        Some(Demand { limit, thousandths_per_second: from.thousandths_per_second })
    });
    let calling = fields.list("calling", from.calling, MAX_FLEETS, |fields, key| backend_key(fields, &key));
    fields.finish(Observations { transitions, demands, calling })
}

fn transition(fields: &mut Fields, from: pb::Transition) -> Option<Transition> {
    let backend = fields.at("backend", |fields| backend_key(fields, &from.backend));
    let endpoint = fields.at("endpoint", |fields| dialled(fields, &from.endpoint));
    let to = fields.at("to", |fields| {
        fields.kind(from.to, |kind| match kind {
            pb::Circuit::Unspecified => None,
            pb::Circuit::Closed => Some(Circuit::Closed),
            pb::Circuit::Open => Some(Circuit::Open),
            pb::Circuit::HalfOpen => Some(Circuit::HalfOpen),
        })
    });
    let cause = fields.at("cause", |fields| fields.kind(from.cause, cause));
    let lasts = fields.at("lasts_ms", |fields| fields.timeout(from.lasts_ms));
    let why = fields.at("why", |fields| fields.short_text(&from.why, MAX_REMARK_BYTES));
    let evidence = fields.list("evidence", from.evidence, MAX_EVIDENCE, |fields, from| {
        let mut time = |name, time| fields.at(name, |fields| microseconds(fields, time));
        let (ago, latency) = (time("ago_us", from.ago_us), time("latency_us", from.latency_us));
        let what = fields.at("what", |fields| fields.short_text(&from.what, MAX_REMARK_BYTES));
        Some(Outcome { ago, what, failed: from.failed, latency })
    });
    Some(Transition {
        backend: backend?,
        endpoint: endpoint?,
        to: to?,
        cause: cause?,
        at: from.at_ms,
        lasts,
        times: from.times,
        why,
        evidence,
    })
}

fn cause(kind: pb::Cause) -> Option<Cause> {
    Some(match kind {
        pb::Cause::Unspecified => return None,
        pb::Cause::ConsecutiveFailures => Cause::ConsecutiveFailures,
        pb::Cause::FailurePercentage => Cause::FailurePercentage,
        pb::Cause::SuccessRate => Cause::SuccessRate,
        pb::Cause::ConsecutiveConnectFailures => Cause::ConsecutiveConnectFailures,
        pb::Cause::Latency => Cause::Latency,
        pb::Cause::HealthCheck => Cause::HealthCheck,
        pb::Cause::ProbeFailed => Cause::ProbeFailed,
        pb::Cause::TimeServed => Cause::TimeServed,
        pb::Cause::ProbesSucceeded => Cause::ProbesSucceeded,
        pb::Cause::Policy => Cause::Policy,
    })
}

fn microseconds(fields: &mut Fields, time: u64) -> Duration {
    let _ = fields.timeout(time / 1_000);
    Duration::from_micros(time)
}

pub fn guidance(from: pb::Guidance) -> Result<Guidance, ConvertError> {
    let mut fields = Fields::new();
    let shares = fields.list("shares", from.shares, MAX_OBSERVATIONS, |fields, from| {
        let limit = fields.at("limit", |fields| fields.label(&from.limit));
        let parts_per_million =
            fields.at("parts_per_million", |fields| fields.within(from.parts_per_million, 0..=1_000_000));
        let holders = fields.at("holders", |fields| fields.number(from.holders));
        let valid_for = fields.at("valid_for_ms", |fields| fields.time(from.valid_for_ms));
        Some(Share { limit, parts_per_million, holders: holders?.get(), valid_for: valid_for? })
    });
    let fleets = fields.list("fleets", from.fleets, MAX_FLEETS, |fields, from| {
        let backend = fields.at("backend", |fields| backend_key(fields, &from.backend));
        let ejected = fields.list("ejected", from.ejected, MAX_ENDPOINTS, |fields, from| {
            let endpoint = fields.at("endpoint", |fields| dialled(fields, &from.endpoint));
            let callers = fields.at("callers", |fields| fields.number(from.callers));
            Some((endpoint?, callers?.get()))
        });
        Some(Fleet { backend: backend?, callers: from.callers, ejected })
    });
    fields.finish(Guidance { shares, fleets })
}

// === to the wire ===

pub fn observations_to_pb(from: &Observations) -> pb::Observations {
    let demands = from.demands.iter().map(|demand| pb::Demand {
        limit: demand.limit.to_string(),
        thousandths_per_second: demand.thousandths_per_second,
    });
    pb::Observations {
        transitions: from.transitions.iter().map(transition_to_pb).collect(),
        demands: demands.collect(),
        calling: from.calling.iter().map(key_text).collect(),
    }
}

fn transition_to_pb(from: &Transition) -> pb::Transition {
    let to = match from.to {
        Circuit::Closed => pb::Circuit::Closed,
        Circuit::Open => pb::Circuit::Open,
        Circuit::HalfOpen => pb::Circuit::HalfOpen,
    };
    let evidence = from.evidence.iter().map(|outcome| pb::Outcome {
        ago_us: outcome.ago.as_micros().try_into().unwrap_or(u64::MAX),
        what: outcome.what.to_string(),
        failed: outcome.failed,
        latency_us: outcome.latency.as_micros().try_into().unwrap_or(u64::MAX),
    });
    pb::Transition {
        backend: key_text(&from.backend),
        endpoint: from.endpoint.to_string(),
        to: to.into(),
        cause: cause_to_pb(from.cause).into(),
        at_ms: from.at,
        lasts_ms: milliseconds(from.lasts),
        times: from.times,
        why: from.why.to_string(),
        evidence: evidence.collect(),
    }
}

fn cause_to_pb(from: Cause) -> pb::Cause {
    match from {
        Cause::ConsecutiveFailures => pb::Cause::ConsecutiveFailures,
        Cause::FailurePercentage => pb::Cause::FailurePercentage,
        Cause::SuccessRate => pb::Cause::SuccessRate,
        Cause::ConsecutiveConnectFailures => pb::Cause::ConsecutiveConnectFailures,
        Cause::Latency => pb::Cause::Latency,
        Cause::HealthCheck => pb::Cause::HealthCheck,
        Cause::ProbeFailed => pb::Cause::ProbeFailed,
        Cause::TimeServed => pb::Cause::TimeServed,
        Cause::ProbesSucceeded => pb::Cause::ProbesSucceeded,
        Cause::Policy => pb::Cause::Policy,
    }
}

pub fn guidance_to_pb(from: &Guidance) -> pb::Guidance {
    let shares = from.shares.iter().map(|share| pb::Share {
        limit: share.limit.to_string(),
        parts_per_million: share.parts_per_million,
        holders: share.holders,
        valid_for_ms: milliseconds(Some(share.valid_for)),
    });
    let ejected = |(endpoint, callers): &(SocketAddr, u32)| pb::EjectedBy {
        endpoint: endpoint.to_string(),
        callers: *callers,
    };
    let fleets = from.fleets.iter().map(|fleet| pb::Fleet {
        backend: key_text(&fleet.backend),
        callers: fleet.callers,
        ejected: fleet.ejected.iter().map(ejected).collect(),
    });
    pb::Guidance { shares: shares.collect(), fleets: fleets.collect() }
}

fn key_text(key: &BackendKey) -> String {
    Key::Backend(key.clone()).to_string()
}
