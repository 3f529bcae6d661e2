//! When a request is sent more than once.
//!
//! A request of which nothing was sent goes elsewhere whatever this says; this is about the others.

use std::time::Duration;

use serde::Serialize;

use super::super::StatusRange;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Retries {
    /// Further attempts of a request that was sent. 2; 0: none.
    pub attempts: u32,
    pub on: RetryOn,
    /// Also methods that are not idempotent, without an `Idempotency-Key`.
    pub unsafe_methods: bool,
    pub backoff: Backoff,
    /// Body kept for another attempt; a larger one makes the request unrepeatable. 64 KiB, as Linkerd's.
    pub buffer_bytes: u32,
    /// A `Retry-After` up to this is waited for; beyond, the answer is the caller's. 1 s.
    pub max_retry_after: Duration,
    pub budget: RetryBudget,
}

/// What is worth another attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RetryOn {
    /// 502 to 504.
    pub statuses: Vec<StatusRange>,
    /// UNAVAILABLE 14.
    pub grpc: Vec<u8>,
    /// The connection broke before an answer.
    pub reset: bool,
    /// `per_try` or `response_header` ran out.
    pub timeout: bool,
}

/// `min(base * 2^n + rand(0, 0.3 * base), max)`. 25 ms and 250 ms, as Envoy's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Backoff {
    pub base: Duration,
    pub max: Duration,
}

/// Retries of sent requests to one upstream: this share of the last ten seconds' requests, or so many in each second,
/// whichever is more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RetryBudget {
    /// 20, as Finagle's and Linkerd's.
    pub percent: u32,
    /// 10.
    pub min_per_second: u32,
}

/// A second attempt of an idempotent request beside the first one; the first good answer wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hedging {
    pub delay: HedgeDelay,
    /// Hedges per hundred requests. 5.
    pub budget_percent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HedgeDelay {
    After(Duration),
    /// The upstream's 95th percentile, as this caller has seen it lately; no hedge before 100 answers.
    P95,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 2,
            on: RetryOn::default(),
            unsafe_methods: false,
            backoff: Backoff::default(),
            buffer_bytes: 64 * 1024,
            max_retry_after: Duration::from_secs(1),
            budget: RetryBudget::default(),
        }
    }
}

impl Default for RetryOn {
    fn default() -> Self {
        Self { statuses: vec![StatusRange::new(502, 504)], grpc: vec![14], reset: true, timeout: true }
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self { base: Duration::from_millis(25), max: Duration::from_millis(250) }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

impl Default for Hedging {
    fn default() -> Self {
        Self { delay: HedgeDelay::P95, budget_percent: 5 }
    }
}
