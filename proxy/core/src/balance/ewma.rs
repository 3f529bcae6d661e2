//! Peak-EWMA load of one endpoint, as one worker sees it.
//!
//! The estimate jumps up to a latency above it at once and comes down slowly (it halves in seven seconds), so one slow
//! answer turns traffic away before many wait. Times the requests in flight it says what the next one would wait for.
//! Without answers the estimate decays as if instant ones came, so a slow endpoint is tried again by and by.
//!
//! - An endpoint without any answer yet costs nothing while idle, and [`UNMEASURED`] per request once one is under way:
//!   a new one gets a single probe instead of a flood.
//! - A failure counts as a latency of at least [`FAILURE`], so that failing fast attracts nobody.
//! - A refusal (429, 503, RESOURCE_EXHAUSTED) counts as a failure, and the endpoint is avoided for as long as it asks for
//!   in Retry-After, at most [`MAX_AVOIDED`]: every other one is cheaper, by every measure.
//! - A caller that gives up tells a lower bound: it can raise the estimate, never lower it.
//!
//! It ejects nobody, and never forgets a request in flight: [`Load::on_end`] must follow every dispatch once.

use std::time::{Duration, Instant};

/// Time in which the weight of what was seen falls to 1/e. Linkerd and Finagle: 10 s.
pub const DECAY: Duration = Duration::from_secs(10);
/// Latency assumed of an endpoint that has not answered yet but is busy. Linkerd: 30 ms.
pub const UNMEASURED: Duration = Duration::from_millis(30);
/// Least latency that a failure counts as. Linkerd's penalty for a 429: 5 s.
pub const FAILURE: Duration = Duration::from_secs(5);
/// For how long an endpoint that refuses is avoided when it does not say.
pub const REFUSED: Duration = Duration::from_secs(1);
/// For how long at most one is avoided that does say. Linkerd: 300 s.
pub const MAX_AVOIDED: Duration = Duration::from_secs(300);
/// What avoidance adds to each measure: more than requests in flight times their latency come to in practice, and so little
/// that they still make a difference.
pub(super) const AVOIDED: f64 = 1e15;

/// Latency seen, and requests in flight.
#[derive(Clone, Debug)]
pub struct Load {
    /// In nanoseconds as of `updated`; negative: nothing seen yet.
    estimate: f64,
    updated: Instant,
    in_flight: u32,
    /// For how long after `updated` others are preferred, in microseconds: an `Instant` would make a load half as large
    /// again.
    avoided: u32,
}

impl Load {
    pub fn new(now: Instant) -> Self {
        Self { estimate: -1.0, updated: now, in_flight: 0, avoided: 0 }
    }

    pub fn on_dispatch(&mut self, _now: Instant) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// The answer's head came, `latency` after the dispatch. The request stays in flight until [`Self::on_end`].
    pub fn on_response(&mut self, latency: Duration, now: Instant) {
        let seen = nanos(latency);
        let weight = self.weight(now);
        self.estimate = if self.estimate < 0.0 || seen > self.estimate * weight {
            seen
        } else {
            self.estimate * weight + seen * (1.0 - weight)
        };
        self.avoided = self.avoided.saturating_sub(micros(now.saturating_duration_since(self.updated)));
        self.updated = self.updated.max(now);
    }

    /// It failed before an answer's head: connect failure, reset, timeout.
    pub fn on_failure(&mut self, latency: Duration, now: Instant) {
        self.on_response(latency.max(FAILURE), now);
    }

    /// Its answer was a refusal: it has too much to do. After or instead of [`Self::on_response`].
    pub fn on_refusal(&mut self, retry_after: Option<Duration>, now: Instant) {
        self.on_failure(Duration::ZERO, now);
        self.avoided = self.avoided.max(micros(retry_after.unwrap_or(REFUSED).min(MAX_AVOIDED)));
    }

    /// The caller gave up `elapsed` after the dispatch, before an answer's head.
    pub fn on_cancel(&mut self, elapsed: Duration, now: Instant) {
        if self.estimate >= 0.0 && nanos(elapsed) > self.estimate * self.weight(now) {
            self.on_response(elapsed, now);
        }
    }

    /// Exactly once per dispatch, at the very end: body complete, failed, or dropped.
    pub fn on_end(&mut self, _now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether others are to be preferred because it refused.
    pub fn is_avoided(&self, now: Instant) -> bool {
        self.avoided > 0 && now < self.updated + Duration::from_micros(self.avoided.into())
    }

    /// The estimate as it has decayed; `None` before the first answer.
    pub fn latency(&self, now: Instant) -> Option<Duration> {
        (self.estimate >= 0.0).then(|| Duration::from_nanos((self.estimate * self.weight(now)) as u64))
    }

    /// What one more request would cost, in nanoseconds of waiting. `share`: weight over mean weight; an endpoint of
    /// twice the weight bears twice the requests at the same cost.
    pub fn cost(&self, share: f64, now: Instant) -> f64 {
        let queue = f64::from(self.in_flight) / share;
        let cost = if self.estimate >= 0.0 {
            self.estimate * self.weight(now) * (queue + 1.0)
        } else if self.in_flight == 0 {
            0.0
        } else {
            nanos(UNMEASURED) * (queue + 1.0)
        };
        cost + self.avoidance(now)
    }

    /// Requests in flight per share.
    pub fn busy(&self, share: f64, now: Instant) -> f64 {
        f64::from(self.in_flight) / share + self.avoidance(now)
    }

    fn avoidance(&self, now: Instant) -> f64 {
        if self.is_avoided(now) { AVOIDED } else { 0.0 }
    }

    /// What is left of the estimate's weight by now, between 0 and 1.
    fn weight(&self, now: Instant) -> f64 {
        let elapsed = nanos(now.saturating_duration_since(self.updated));
        libm::exp(-elapsed / (DECAY.as_nanos() as f64))
    }
}

/// Rounded up, so that many short times do not add up to none.
fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos().div_ceil(1000)).unwrap_or(u32::MAX)
}

fn nanos(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answered(latency: Duration, now: Instant) -> Load {
        let mut load = Load::new(now);
        load.on_response(latency, now);
        load
    }

    #[test]
    fn peaks_count_at_once_and_fade_slowly() {
        let start = crate::testing::start();
        let mut load = answered(MS, start);
        load.on_response(100 * MS, start);
        assert_eq!(load.latency(start), Some(100 * MS));
        load.on_response(MS, start);
        assert_eq!(load.latency(start), Some(100 * MS), "no time has passed, so nothing has faded");
        load.on_response(MS, start + DECAY);
        let faded = load.latency(start + DECAY).unwrap();
        assert!(faded > 37 * MS && faded < 38 * MS, "{faded:?}");
        let idle = load.latency(start + 10 * DECAY).unwrap();
        assert!(idle < MS, "{idle:?}");
    }

    #[test]
    fn cost_grows_with_what_is_in_flight_and_shrinks_with_weight() {
        let now = crate::testing::start();
        let mut load = answered(MS, now);
        let idle = load.cost(1.0, now);
        load.on_dispatch(now);
        load.on_dispatch(now);
        assert_eq!(load.cost(1.0, now), 3.0 * idle);
        assert_eq!(load.cost(2.0, now), 2.0 * idle);
        load.on_end(now);
        load.on_end(now);
        load.on_end(now);
        assert_eq!((load.in_flight(), load.cost(1.0, now)), (0, idle));
    }

    #[test]
    fn a_new_endpoint_is_probed_once() {
        let now = crate::testing::start();
        let mut load = Load::new(now);
        assert_eq!((load.cost(1.0, now), load.latency(now)), (0.0, None));
        load.on_dispatch(now);
        assert_eq!(load.cost(1.0, now), 2.0 * nanos(UNMEASURED));
        load.on_response(MS, now);
        assert_eq!(load.cost(1.0, now), 2.0 * nanos(MS));
    }

    #[test]
    fn failing_fast_is_expensive_and_giving_up_never_cheapens() {
        let now = crate::testing::start();
        let mut load = answered(MS, now);
        load.on_failure(Duration::ZERO, now);
        assert_eq!(load.latency(now), Some(FAILURE));
        let mut load = answered(10 * MS, now);
        load.on_cancel(MS, now);
        assert_eq!(load.latency(now), Some(10 * MS));
        load.on_cancel(50 * MS, now);
        assert_eq!(load.latency(now), Some(50 * MS));
        let mut fresh = Load::new(now);
        fresh.on_cancel(50 * MS, now);
        assert_eq!(fresh.latency(now), None, "a hasty caller is no measurement");
    }

    #[test]
    fn who_refuses_is_avoided_for_as_long_as_it_asks_within_bounds() {
        let now = crate::testing::start();
        for (asked, lasts) in [
            (None, REFUSED),
            (Some(7 * MS), 7 * MS),
            (Some(DECAY), DECAY),
            (Some(100 * MAX_AVOIDED), MAX_AVOIDED),
        ] {
            let mut load = answered(MS, now);
            load.on_refusal(asked, now);
            assert_eq!(load.latency(now), Some(FAILURE));
            assert!(load.is_avoided(now + lasts - MS) && !load.is_avoided(now + lasts), "{asked:?}");
            assert!(load.busy(1.0, now) >= AVOIDED && load.cost(1.0, now) >= AVOIDED);
            // Answers to what was under way neither shorten it nor draw it out.
            for step in 1..=5 {
                load.on_response(MS, now + lasts / 10 * step);
            }
            assert!(load.is_avoided(now + lasts - MS) && !load.is_avoided(now + lasts), "{asked:?}");
        }
        let mut load = answered(MS, now);
        load.on_refusal(Some(DECAY), now);
        load.on_refusal(None, now);
        assert!(load.is_avoided(now + DECAY - MS), "the longer one counts");
        load.on_refusal(Some(Duration::ZERO), now + DECAY);
        assert!(!load.is_avoided(now + DECAY), "it asks for nothing");
    }

    #[test]
    fn a_load_is_small() {
        assert!(size_of::<Load>() <= 32, "there is one for each endpoint in each worker");
    }

    #[test]
    fn time_that_goes_backwards_changes_nothing() {
        let now = crate::testing::start();
        let mut load = answered(MS, now + DECAY);
        assert_eq!(load.latency(now), Some(MS));
        load.on_response(2 * MS, now);
        assert_eq!(load.latency(now + DECAY), Some(2 * MS));
    }
}
