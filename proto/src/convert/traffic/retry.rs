//! Once more, or beside.

use std::time::Duration;

use super::super::{
    fields::{Fields, milliseconds},
    status,
};
use crate::{
    limits::{MAX_ATTEMPTS, MAX_BUFFER_BYTES, MAX_RETRIES_PER_SECOND},
    pb,
    spec::{Backoff, HedgeDelay, Hedging, Retries, RetryBudget, RetryOn},
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::Retries) -> Retries {
    let attempts = fields.at("attempts", |fields| fields.within(from.attempts, 0..=MAX_ATTEMPTS));
    let on = from.on.map(|from| {
        fields.at("on", |fields| RetryOn {
            statuses: status::ranges(fields, "statuses", from.statuses),
            grpc: status::codes(fields, "grpc", from.grpc),
            reset: from.reset,
            timeout: from.timeout,
        })
    });
    let backoff = from.backoff.map(|from| fields.at("backoff", |fields| backoff(fields, from)));
    let buffer_bytes =
        fields.at("buffer_bytes", |fields| fields.within(from.buffer_bytes, 0..=MAX_BUFFER_BYTES));
    let max_retry_after = fields.at("max_retry_after_ms", |fields| fields.timeout(from.max_retry_after_ms));
    let budget = from.budget.map(|from| {
        fields.at("budget", |fields| RetryBudget {
            percent: fields.at("percent", |fields| fields.within(from.percent, 0..=100)),
            min_per_second: fields.at("min_per_second", |fields| {
                fields.within(from.min_per_second, 0..=MAX_RETRIES_PER_SECOND)
            }),
        })
    });
    Retries {
        attempts,
        on: on.unwrap_or_default(),
        unsafe_methods: from.unsafe_methods,
        backoff: backoff.unwrap_or_default(),
        buffer_bytes,
        max_retry_after: max_retry_after.unwrap_or_default(),
        budget: budget.unwrap_or_default(),
    }
}

fn backoff(fields: &mut Fields, from: pb::Backoff) -> Backoff {
    if from.base_ms > from.max_ms {
        fields.refuse_at("base_ms", "is above max_ms");
    }
    let mut time = |name, time| fields.at(name, |fields| fields.time(time)).unwrap_or(Duration::ZERO);
    Backoff { base: time("base_ms", from.base_ms), max: time("max_ms", from.max_ms) }
}

pub(super) fn hedging_from_pb(fields: &mut Fields, from: &pb::Hedging) -> Option<Hedging> {
    use pb::hedging::Delay;

    let delay = match from.delay {
        Some(Delay::AfterMs(time)) => {
            fields.at("after_ms", |fields| fields.time(time)).map(HedgeDelay::After)
        }
        Some(Delay::P95(pb::Nothing {})) => Some(HedgeDelay::P95),
        None => {
            fields.refuse_at("delay", "is missing, or unknown to this build");
            None
        }
    };
    let budget_percent = fields.at("budget_percent", |fields| fields.within(from.budget_percent, 1..=100));
    Some(Hedging { delay: delay?, budget_percent })
}

// === to the wire ===

pub(super) fn to_pb(from: &Retries) -> pb::Retries {
    pb::Retries {
        attempts: from.attempts,
        on: Some(pb::RetryOn {
            statuses: status::ranges_to_pb(&from.on.statuses),
            grpc: status::codes_to_pb(&from.on.grpc),
            reset: from.on.reset,
            timeout: from.on.timeout,
        }),
        unsafe_methods: from.unsafe_methods,
        backoff: Some(pb::Backoff {
            base_ms: milliseconds(Some(from.backoff.base)),
            max_ms: milliseconds(Some(from.backoff.max)),
        }),
        buffer_bytes: from.buffer_bytes,
        max_retry_after_ms: milliseconds(Some(from.max_retry_after)),
        budget: Some(pb::RetryBudget {
            percent: from.budget.percent,
            min_per_second: from.budget.min_per_second,
        }),
    }
}

pub(super) fn hedging_to_pb(from: Hedging) -> pb::Hedging {
    use pb::hedging::Delay;

    let delay = match from.delay {
        HedgeDelay::After(time) => Delay::AfterMs(milliseconds(Some(time))),
        HedgeDelay::P95 => Delay::P95(pb::Nothing {}),
    };
    pb::Hedging { delay: Some(delay), budget_percent: from.budget_percent }
}
