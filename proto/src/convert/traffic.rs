//! How callers use a backend.
//!
//! Of every section that is absent the default is meant, so that a contract which grows keeps its meaning. To the wire
//! every section is written out: what a control plane means does not depend on the build of the proxy.

mod balance;
mod fallback;
mod outlier;
mod retry;

use super::{
    bulkhead,
    fields::{Fields, milliseconds},
    rate_limit,
};
use crate::{
    pb,
    spec::{Timeouts, Traffic},
};

pub(super) fn from_pb(fields: &mut Fields, from: pb::Traffic) -> Traffic {
    let load_balancer =
        from.load_balancer.map(|from| fields.at("load_balancer", |fields| balance::from_pb(fields, from)));
    let timeouts = from.timeouts.map(|from| fields.at("timeouts", |fields| timeouts(fields, from)));
    let bulkhead = from.bulkhead.map(|from| fields.at("bulkhead", |fields| bulkhead::from_pb(fields, from)));
    let outlier_ejection = from
        .outlier_ejection
        .map(|from| fields.at("outlier_ejection", |fields| outlier::from_pb(fields, from)));
    let health_check = from
        .health_check
        .and_then(|from| fields.at("health_check", |fields| outlier::check_from_pb(fields, from)));
    let retries = from.retries.map(|from| fields.at("retries", |fields| retry::from_pb(fields, from)));
    let hedging =
        from.hedging.and_then(|from| fields.at("hedging", |fields| retry::hedging_from_pb(fields, &from)));
    let rate_limits = rate_limit::list(fields, from.rate_limits);
    let fallback =
        from.fallback.and_then(|from| fields.at("fallback", |fields| fallback::from_pb(fields, from)));
    let cache = from.cache.map(|from| fields.at("cache", |fields| fallback::cache_from_pb(fields, from)));
    Traffic {
        load_balancer: load_balancer.unwrap_or_default(),
        timeouts: timeouts.unwrap_or_default(),
        bulkhead: bulkhead.unwrap_or_default(),
        outlier_ejection: outlier_ejection.unwrap_or_default(),
        health_check,
        retries: retries.unwrap_or_default(),
        hedging,
        rate_limits,
        fallback,
        cache,
        coalesce: from.coalesce,
    }
}

fn timeouts(fields: &mut Fields, from: pb::Timeouts) -> Timeouts {
    let connect = fields.at("connect_ms", |fields| {
        if from.connect_ms == 0 {
            fields.refuse("is 0: a connection attempt needs an end");
        }
        fields.timeout(from.connect_ms)
    });
    let mut timeout = |name, milliseconds| fields.at(name, |fields| fields.timeout(milliseconds));
    Timeouts {
        connect: connect.unwrap_or_else(|| Timeouts::default().connect),
        request: timeout("request_ms", from.request_ms),
        per_try: timeout("per_try_ms", from.per_try_ms),
        response_header: timeout("response_header_ms", from.response_header_ms),
        stream_idle: timeout("stream_idle_ms", from.stream_idle_ms),
        idle: timeout("idle_ms", from.idle_ms),
        max_connection_age: timeout("max_connection_age_ms", from.max_connection_age_ms),
    }
}

pub(super) fn to_pb(from: &Traffic) -> pb::Traffic {
    pb::Traffic {
        load_balancer: Some(balance::to_pb(&from.load_balancer)),
        timeouts: Some(timeouts_to_pb(&from.timeouts)),
        bulkhead: Some(bulkhead::to_pb(&from.bulkhead)),
        outlier_ejection: Some(outlier::to_pb(&from.outlier_ejection)),
        health_check: from.health_check.as_ref().map(outlier::check_to_pb),
        retries: Some(retry::to_pb(&from.retries)),
        hedging: from.hedging.map(retry::hedging_to_pb),
        rate_limits: from.rate_limits.iter().map(rate_limit::to_pb).collect(),
        fallback: from.fallback.as_ref().map(fallback::to_pb),
        cache: from.cache.map(fallback::cache_to_pb),
        coalesce: from.coalesce,
    }
}

fn timeouts_to_pb(from: &Timeouts) -> pb::Timeouts {
    pb::Timeouts {
        connect_ms: milliseconds(Some(from.connect)),
        request_ms: milliseconds(from.request),
        idle_ms: milliseconds(from.idle),
        per_try_ms: milliseconds(from.per_try),
        response_header_ms: milliseconds(from.response_header),
        stream_idle_ms: milliseconds(from.stream_idle),
        max_connection_age_ms: milliseconds(from.max_connection_age),
    }
}
