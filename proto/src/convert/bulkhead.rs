//! How much at a time, on both sides.

use std::num::NonZeroU32;

use super::{
    fields::{Fields, milliseconds},
    rate_limit,
};
use crate::{
    limits::{MAX_PERCENT, MAX_QUEUE},
    pb,
    spec::{Adaptive, Bulkhead, Limits, PortLimits, Queue, ServerBulkhead},
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::Bulkhead) -> Bulkhead {
    Bulkhead {
        upstream: from.upstream.map(limits).unwrap_or_default(),
        endpoint: from.endpoint.map(limits).unwrap_or_default(),
        route_requests: NonZeroU32::new(from.route_requests),
        queue: from.queue.and_then(|from| fields.at("queue", |fields| queue(fields, from))),
        adaptive: from.adaptive.and_then(|from| fields.at("adaptive", |fields| adaptive(fields, from))),
    }
}

pub(super) fn port_limits(fields: &mut Fields, from: pb::PortLimits) -> PortLimits {
    let bulkhead = from.bulkhead.map(|from| {
        fields.at("bulkhead", |fields| ServerBulkhead {
            total: from.total.map(limits).unwrap_or_default(),
            per_caller: from.per_caller.map(limits).unwrap_or_default(),
            queue: from.queue.and_then(|from| fields.at("queue", |fields| queue(fields, from))),
            adaptive: from.adaptive.and_then(|from| fields.at("adaptive", |fields| adaptive(fields, from))),
        })
    });
    PortLimits { bulkhead, rate_limits: rate_limit::list(fields, from.rate_limits) }
}

fn limits(from: pb::Limits) -> Limits {
    Limits { connections: NonZeroU32::new(from.connections), requests: NonZeroU32::new(from.requests) }
}

fn queue(fields: &mut Fields, from: pb::Queue) -> Option<Queue> {
    let size = fields.at("size", |fields| NonZeroU32::new(fields.within(from.size, 1..=MAX_QUEUE)));
    let timeout = fields.at("timeout_ms", |fields| fields.time(from.timeout_ms));
    Some(Queue { size: size?, timeout: timeout? })
}

fn adaptive(fields: &mut Fields, from: pb::Adaptive) -> Option<Adaptive> {
    let min = fields.at("min", |fields| fields.number(from.min));
    let max = fields.at("max", |fields| fields.number(from.max));
    if from.max > 0 && from.min > from.max {
        fields.refuse_at("min", format!("{} is above max, {}", from.min, from.max));
    }
    let tolerance_percent =
        fields.at("tolerance_percent", |fields| fields.within(from.tolerance_percent, 100..=MAX_PERCENT));
    Some(Adaptive { min: min?, max: max?, tolerance_percent })
}

// === to the wire ===

pub(super) fn to_pb(from: &Bulkhead) -> pb::Bulkhead {
    pb::Bulkhead {
        upstream: Some(limits_to_pb(from.upstream)),
        endpoint: Some(limits_to_pb(from.endpoint)),
        route_requests: or_zero(from.route_requests),
        queue: from.queue.map(queue_to_pb),
        adaptive: from.adaptive.map(adaptive_to_pb),
    }
}

pub(super) fn port_limits_to_pb(from: &PortLimits) -> pb::PortLimits {
    let bulkhead = from.bulkhead.map(|from| pb::ServerBulkhead {
        total: Some(limits_to_pb(from.total)),
        per_caller: Some(limits_to_pb(from.per_caller)),
        queue: from.queue.map(queue_to_pb),
        adaptive: from.adaptive.map(adaptive_to_pb),
    });
    pb::PortLimits { bulkhead, rate_limits: from.rate_limits.iter().map(rate_limit::to_pb).collect() }
}

fn limits_to_pb(from: Limits) -> pb::Limits {
    pb::Limits { connections: or_zero(from.connections), requests: or_zero(from.requests) }
}

fn queue_to_pb(from: Queue) -> pb::Queue {
    pb::Queue { size: from.size.get(), timeout_ms: milliseconds(Some(from.timeout)) }
}

fn adaptive_to_pb(from: Adaptive) -> pb::Adaptive {
    pb::Adaptive { min: from.min.get(), max: from.max.get(), tolerance_percent: from.tolerance_percent }
}

pub(super) fn or_zero(number: Option<NonZeroU32>) -> u32 {
    number.map_or(0, NonZeroU32::get)
}
