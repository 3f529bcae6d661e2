//! What may be tried again, how often, and the budget that keeps retries from becoming the outage.
//!
//! - A request of which nothing was sent goes to another endpoint, whatever its method: nobody can have acted on it.
//!   Up to [`MAX_ATTEMPTS`] in all, and outside the budget, because it costs the upstream nothing.
//! - A request that was sent goes again only if it has no body and its method is idempotent (RFC 9110 section 9.2.2:
//!   GET, HEAD, OPTIONS, TRACE, PUT, DELETE), at most [`MAX_RESENDS`] times, and within the budget: of each second
//!   [`crate::limits::RETRY_BUDGET_MIN_PER_SECOND`], or of the last ten seconds' requests
//!   [`crate::limits::RETRY_BUDGET_PERCENT`] per cent, whichever is more.
//!
//! It does not choose the endpoint (the caller leaves out those tried already) nor wait ([`crate::backoff`]).

use std::time::{Duration, Instant};

use http::Method;

use crate::limits::{MAX_ATTEMPTS, MAX_RESENDS};

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct Attempts {
    repeatable: bool,
    failed: u32,
    resends: u32,
}

/// How an attempt ended before an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of the request can have been acted on: no connection, a refused stream, one beyond a GOAWAY, a kept
    /// connection that turned out to be closed before a byte was written.
    Unsent,
    /// Sent, then reset or closed.
    Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Elsewhere, if there is somewhere else.
    Again,
    GiveUp(GiveUp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// The upstream may have acted on it, and twice is not as good as once.
    NotRepeatable,
    /// No attempts are left.
    Exhausted,
    /// The budget is spent.
    Budget,
}

/// Retries of sent requests to one upstream, in one worker.
#[derive(Clone, Debug)]
pub struct Budget {
    percent: u32,
    min_per_second: u32,
    /// One for each of the last ten seconds, as a ring.
    seconds: [Second; WINDOW],
    current: usize,
    /// When the current second began.
    began: Instant,
}

const WINDOW: usize = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u32,
    retries: u32,
}

impl Attempts {
    /// `bodyless`: the request has no body at all.
    pub fn new(method: &Method, bodyless: bool) -> Self {
        Self { repeatable: bodyless && method.is_idempotent(), failed: 0, resends: 0 }
    }

    /// What comes after a failed attempt. A retry of a sent request is taken out of the budget here.
    pub fn on_failure(&mut self, failure: Failure, budget: &mut Budget, now: Instant) -> Next {
        self.failed += 1;
        let exhausted = self.failed >= MAX_ATTEMPTS;
        match failure {
            Failure::Unsent if exhausted => Next::GiveUp(GiveUp::Exhausted),
            Failure::Unsent => Next::Again,
            Failure::Sent if !self.repeatable => Next::GiveUp(GiveUp::NotRepeatable),
            Failure::Sent if exhausted || self.resends >= MAX_RESENDS => Next::GiveUp(GiveUp::Exhausted),
            Failure::Sent if !budget.withdraw(now) => Next::GiveUp(GiveUp::Budget),
            Failure::Sent => {
                self.resends += 1;
                Next::Again
            }
        }
    }

    /// Attempts that failed so far.
    pub fn failed(&self) -> u32 {
        self.failed
    }
}

impl Budget {
    pub fn new(percent: u32, min_per_second: u32, now: Instant) -> Self {
        Self { percent, min_per_second, seconds: [Second::default(); WINDOW], current: 0, began: now }
    }

    /// Counts a request, by its first attempt.
    pub fn on_request(&mut self, now: Instant) {
        self.advance(now);
        let second = &mut self.seconds[self.current];
        second.requests = second.requests.saturating_add(1);
    }

    /// Takes a retry out of the budget; `false`: there is none.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        self.advance(now);
        let sum =
            |of: fn(&Second) -> u32| self.seconds.iter().map(|second| u64::from(of(second))).sum::<u64>();
        let (requests, retries) = (sum(|second| second.requests), sum(|second| second.retries));
        let in_share = (retries + 1) * 100 <= requests * u64::from(self.percent);
        let second = &mut self.seconds[self.current];
        if !in_share && second.retries >= self.min_per_second {
            return false;
        }
        second.retries += 1;
        true
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_secs();
        if passed == 0 {
            return;
        }
        for _ in 0..passed.min(WINDOW as u64) {
            self.current = (self.current + 1) % WINDOW;
            self.seconds[self.current] = Second::default();
        }
        self.began += Duration::from_secs(passed);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rich(now: Instant) -> Budget {
        Budget::new(100, 1000, now)
    }

    #[test]
    fn what_was_never_sent_goes_elsewhere_whatever_it_is() {
        let now = crate::testing::start();
        let mut empty = Budget::new(0, 0, now);
        let mut attempts = Attempts::new(&Method::POST, false);
        for _ in 1..MAX_ATTEMPTS {
            assert_eq!(attempts.on_failure(Failure::Unsent, &mut empty, now), Next::Again);
        }
        assert_eq!(attempts.on_failure(Failure::Unsent, &mut empty, now), Next::GiveUp(GiveUp::Exhausted));
        assert_eq!(attempts.failed(), MAX_ATTEMPTS);
    }

    #[test]
    fn what_was_sent_goes_again_only_when_harmless() {
        let now = crate::testing::start();
        for (method, bodyless, again) in [
            (Method::GET, true, true),
            (Method::HEAD, true, true),
            (Method::OPTIONS, true, true),
            (Method::TRACE, true, true),
            (Method::PUT, true, true),
            (Method::DELETE, true, true),
            (Method::PUT, false, false),
            (Method::GET, false, false),
            (Method::POST, true, false),
            (Method::PATCH, true, false),
            (Method::CONNECT, true, false),
            (Method::from_bytes(b"get").unwrap(), true, false),
        ] {
            let next = Attempts::new(&method, bodyless).on_failure(Failure::Sent, &mut rich(now), now);
            let want = if again { Next::Again } else { Next::GiveUp(GiveUp::NotRepeatable) };
            assert_eq!(next, want, "{method} bodyless: {bodyless}");
        }
    }

    #[test]
    fn resends_are_few_and_count_as_attempts() {
        let now = crate::testing::start();
        let mut budget = rich(now);
        let mut attempts = Attempts::new(&Method::GET, true);
        for _ in 0..MAX_RESENDS {
            assert_eq!(attempts.on_failure(Failure::Sent, &mut budget, now), Next::Again);
        }
        assert_eq!(attempts.on_failure(Failure::Sent, &mut budget, now), Next::GiveUp(GiveUp::Exhausted));
        let mut attempts = Attempts::new(&Method::GET, true);
        for _ in 0..MAX_ATTEMPTS - 1 {
            attempts.on_failure(Failure::Unsent, &mut budget, now);
        }
        assert_eq!(attempts.on_failure(Failure::Sent, &mut budget, now), Next::GiveUp(GiveUp::Exhausted));
        let mut attempts = Attempts::new(&Method::GET, true);
        let spent = attempts.on_failure(Failure::Sent, &mut Budget::new(20, 0, now), now);
        assert_eq!(spent, Next::GiveUp(GiveUp::Budget));
    }

    #[test]
    fn a_quiet_upstream_has_its_minimum_each_second() {
        let start = crate::testing::start();
        let mut budget = Budget::new(20, 10, start);
        for second in 0..30 {
            let now = start + second * SECOND;
            assert_eq!((0..50).filter(|_| budget.withdraw(now)).count(), 10, "second {second}");
        }
    }

    #[test]
    fn a_busy_upstream_has_its_share_and_an_old_rush_is_forgotten() {
        let start = crate::testing::start();
        let mut budget = Budget::new(20, 10, start);
        (0..1000).for_each(|_| budget.on_request(start));
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count(), 200);
        assert_eq!((0..100).filter(|_| budget.withdraw(start + SECOND)).count(), 10, "the share is spent");
        let later = start + 20 * SECOND;
        assert_eq!((0..100).filter(|_| budget.withdraw(later)).count(), 10);
    }

    proptest! {
        #[test]
        fn never_more_than_the_share_or_the_minimum(
            steps in prop::collection::vec((0..1500_u64, 0..40_usize, 0..40_usize), 1..60),
        ) {
            let start = crate::testing::start();
            let mut budget = Budget::new(20, 10, start);
            let (mut now, mut requests, mut retries) = (start, Vec::new(), Vec::new());
            for (wait, asked, retried) in steps {
                now += Duration::from_millis(wait);
                for _ in 0..asked {
                    budget.on_request(now);
                    requests.push(now);
                }
                for _ in 0..retried {
                    if budget.withdraw(now) {
                        retries.push(now);
                        // The machine's seconds begin at `start`, so it may remember up to ten whole ones.
                        let count = |list: &[Instant]| list.iter().filter(|at| **at + 10 * SECOND > now).count();
                        let share = requests.iter().filter(|at| **at + 11 * SECOND > now).count() / 5;
                        prop_assert!(count(&retries) <= share + 11 * 10, "{} retries", count(&retries));
                    }
                }
            }
        }
    }
}
