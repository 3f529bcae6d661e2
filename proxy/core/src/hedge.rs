//! When a second request goes out beside the first one, because the first is slower than nearly all others were.
//!
//! The delay is a policy's, or the 95th percentile of what this upstream's answers took this worker lately. The budget
//! is a share of the requests of the last ten seconds, with no minimum, so that an upstream which is slow as a whole
//! gets its usual load and little more.
//!
//! It does not say which requests may be doubled ([`crate::retry::Attempts::may_hedge`]), sends nothing and cancels
//! nothing.

use std::time::{Duration, Instant};

use outrigger_proto::spec::{HedgeDelay, Hedging};

use crate::retry::Budget;

mod latencies;

use latencies::Latencies;

#[cfg(test)]
mod tests;

/// Answers in the window below which the percentile is not trusted.
const MIN_ANSWERS: u32 = 100;
const PERCENT: u32 = 95;

/// The hedges of one upstream, in one worker.
#[derive(Clone, Debug)]
pub struct Hedger {
    delay: HedgeDelay,
    budget: Budget,
    latencies: Latencies,
}

impl Hedger {
    pub fn new(policy: &Hedging, now: Instant) -> Self {
        Self {
            delay: policy.delay,
            budget: Budget::share(policy.budget_percent, now),
            latencies: Latencies::new(now),
        }
    }

    /// What was counted and measured stays.
    pub fn set_policy(&mut self, policy: &Hedging) {
        self.delay = policy.delay;
        self.budget.set_share(policy.budget_percent);
    }

    /// Counts a request, hedged or not, by its first attempt.
    pub fn on_request(&mut self, now: Instant) {
        self.budget.on_request(now);
    }

    /// How long a request's first attempt took to its answer's head. One that lost against its hedge counts with the time
    /// it had when it was cancelled: without it the slowest were never seen, and the percentile would sink.
    pub fn on_answer(&mut self, latency: Duration, now: Instant) {
        self.latencies.record(latency, now);
    }

    /// When to send the second request, counted from the dispatch of the first. `None`: not at all, too little is known.
    pub fn delay(&mut self, now: Instant) -> Option<Duration> {
        match self.delay {
            HedgeDelay::After(delay) => Some(delay),
            HedgeDelay::P95 => self.latencies.percentile(PERCENT, MIN_ANSWERS, now),
        }
    }

    /// Takes a hedge out of the budget, when it is about to be sent; `false`: there is none.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        self.budget.withdraw(now)
    }
}
