//! Once more, or beside.

use outrigger_proto::{
    limits::{MAX_ATTEMPTS, MAX_BUFFER_BYTES, MAX_RETRIES_PER_SECOND},
    spec::{Backoff, HedgeDelay, Hedging, Retries, RetryBudget, RetryOn},
};

use super::super::notes::Notes;
use crate::{kinds, yaml::Path};

pub(super) fn from_kind(path: &Path, written: kinds::Retries, notes: &mut Notes<'_>) -> Retries {
    let default = Retries::default();
    let kinds::Retries { attempts, on, unsafe_methods, backoff, buffer_bytes, max_retry_after, budget } =
        written;
    let max_retry_after = match max_retry_after {
        Some(text) => notes.duration(&path.key("maxRetryAfter"), &text).unwrap_or_default(),
        None => default.max_retry_after,
    };
    Retries {
        attempts: notes.number(&path.key("attempts"), attempts, default.attempts, (0, MAX_ATTEMPTS.into())),
        on: on.map(|on| retry_on(&path.key("on"), on, notes)).unwrap_or_default(),
        unsafe_methods: unsafe_methods.unwrap_or_default(),
        backoff: backoff.map(|it| back_off(&path.key("backoff"), &it, notes)).unwrap_or_default(),
        buffer_bytes: notes.number(
            &path.key("bufferBytes"),
            buffer_bytes,
            default.buffer_bytes,
            (0, MAX_BUFFER_BYTES.into()),
        ),
        max_retry_after,
        budget: budget.map(|it| retry_budget(&path.key("budget"), &it, notes)).unwrap_or_default(),
    }
}

fn retry_on(path: &Path, written: kinds::RetryOn, notes: &mut Notes<'_>) -> RetryOn {
    let default = RetryOn::default();
    let kinds::RetryOn { statuses, grpc, reset, timeout } = written;
    RetryOn {
        statuses: match statuses {
            Some(statuses) => notes.statuses(&path.key("statuses"), statuses),
            None => default.statuses,
        },
        grpc: match grpc {
            Some(grpc) => notes.grpc_codes(&path.key("grpc"), grpc),
            None => default.grpc,
        },
        reset: reset.unwrap_or(default.reset),
        timeout: timeout.unwrap_or(default.timeout),
    }
}

fn back_off(path: &Path, written: &kinds::Backoff, notes: &mut Notes<'_>) -> Backoff {
    let default = Backoff::default();
    let base = notes.time(&path.key("base"), written.base.as_deref(), default.base);
    let max = notes.time(&path.key("max"), written.max.as_deref(), default.max);
    if base > max {
        let field = if written.base.is_some() { "base" } else { "max" };
        let reason = format!("base, {}ms, is above max, {}ms", base.as_millis(), max.as_millis());
        notes.note(&path.key(field), reason);
    }
    Backoff { base, max }
}

fn retry_budget(path: &Path, written: &kinds::RetryBudget, notes: &mut Notes<'_>) -> RetryBudget {
    let default = RetryBudget::default();
    let most = MAX_RETRIES_PER_SECOND.into();
    RetryBudget {
        percent: notes.number(&path.key("percent"), written.percent, default.percent, (0, 100)),
        min_per_second: notes.number(
            &path.key("minPerSecond"),
            written.min_per_second,
            default.min_per_second,
            (0, most),
        ),
    }
}

pub(super) fn hedging(path: &Path, written: &kinds::Hedging, notes: &mut Notes<'_>) -> Hedging {
    let default = Hedging::default();
    let delay = match written.delay.as_deref() {
        None | Some("p95") => HedgeDelay::P95,
        Some(text) => {
            let path = path.key("delay");
            match crate::duration::parse(text) {
                Some(delay) if delay.is_zero() => {
                    notes.note(&path, "cannot be 0s: every request would be sent twice");
                    default.delay
                }
                Some(_) => notes.duration(&path, text).map_or(default.delay, HedgeDelay::After),
                None => {
                    notes.note(&path, format!("{text:?} is neither p95 nor a duration as \"100ms\""));
                    default.delay
                }
            }
        }
    };
    let budget = path.key("budgetPercent");
    let budget_percent = notes.number(&budget, written.budget_percent, default.budget_percent, (1, 100));
    Hedging { delay, budget_percent }
}
