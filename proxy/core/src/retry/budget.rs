//! How many requests may be sent a second time: a share of the last ten seconds' requests, or so many in each second,
//! whichever is more.
//!
//! The share keeps a failing upstream from getting much more than its usual load; the minimum lets a quiet one have
//! retries at all. Counts are kept in ten slots of a second each, so what is spent is forgotten after nine to ten
//! seconds, together with the requests that paid for it.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use outrigger_proto::spec::RetryBudget;

const WINDOW: usize = 10;

/// Of one upstream, in one worker. Also the budget of hedges, with a minimum of 0.
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

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    requests: u32,
    retries: u32,
}

impl Budget {
    /// `workers`: of this proxy; each has an equal part of the minimum, rounded up.
    pub fn new(policy: &RetryBudget, workers: NonZeroUsize, now: Instant) -> Self {
        let mut budget = Self::share(policy.percent, now);
        budget.set_policy(policy, workers);
        budget
    }

    /// A share alone.
    pub(crate) fn share(percent: u32, now: Instant) -> Self {
        Self { percent, min_per_second: 0, seconds: [Second::default(); WINDOW], current: 0, began: now }
    }

    /// What was counted stays counted.
    pub fn set_policy(&mut self, policy: &RetryBudget, workers: NonZeroUsize) {
        self.percent = policy.percent;
        self.min_per_second =
            policy.min_per_second.div_ceil(u32::try_from(workers.get()).unwrap_or(u32::MAX));
    }

    pub(crate) fn set_share(&mut self, percent: u32) {
        self.percent = percent;
    }

    /// Counts a request, by its first attempt.
    pub fn on_request(&mut self, now: Instant) {
        self.advance(now);
        let second = &mut self.seconds[self.current];
        second.requests = second.requests.saturating_add(1);
    }

    /// Retries that could be taken out of it now.
    pub fn left(&mut self, now: Instant) -> u32 {
        self.advance(now);
        let (requests, retries) = self.sums();
        let in_share = (requests * u64::from(self.percent) / 100).saturating_sub(retries);
        let at_least = self.min_per_second.saturating_sub(self.seconds[self.current].retries);
        u32::try_from(in_share).unwrap_or(u32::MAX).max(at_least)
    }

    /// Takes a retry out of the budget; `false`: there is none.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        self.advance(now);
        let (requests, retries) = self.sums();
        let in_share = (retries + 1) * 100 <= requests * u64::from(self.percent);
        let second = &mut self.seconds[self.current];
        if !in_share && second.retries >= self.min_per_second {
            return false;
        }
        second.retries = second.retries.saturating_add(1);
        true
    }

    /// Requests and retries of the last ten seconds.
    fn sums(&self) -> (u64, u64) {
        let sum =
            |of: fn(&Second) -> u32| self.seconds.iter().map(|second| u64::from(of(second))).sum::<u64>();
        (sum(|second| second.requests), sum(|second| second.retries))
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
    const POLICY: RetryBudget = RetryBudget { percent: 20, min_per_second: 10 };

    fn of_one_worker(now: Instant) -> Budget {
        Budget::new(&POLICY, NonZeroUsize::MIN, now)
    }

    #[test]
    fn a_quiet_upstream_has_its_minimum_each_second() {
        for (workers, each) in [(1, 10), (2, 5), (3, 4), (10, 1), (64, 1)] {
            let start = crate::testing::start();
            let mut budget = Budget::new(&POLICY, NonZeroUsize::new(workers).unwrap(), start);
            for second in 0..30 {
                let now = start + second * SECOND;
                assert_eq!(
                    (0..50).filter(|_| budget.withdraw(now)).count(),
                    each,
                    "{workers}, second {second}"
                );
            }
        }
    }

    #[test]
    fn a_busy_upstream_has_its_share_and_an_old_rush_is_forgotten() {
        let start = crate::testing::start();
        let mut budget = of_one_worker(start);
        (0..1000).for_each(|_| budget.on_request(start));
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count(), 200);
        assert_eq!((0..100).filter(|_| budget.withdraw(start + SECOND)).count(), 10, "the share is spent");
        let later = start + 20 * SECOND;
        assert_eq!((0..100).filter(|_| budget.withdraw(later)).count(), 10);
    }

    #[test]
    fn a_new_policy_finds_what_was_counted() {
        let start = crate::testing::start();
        let mut budget = of_one_worker(start);
        (0..1000).for_each(|_| budget.on_request(start));
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count(), 200);
        let half = RetryBudget { percent: 50, min_per_second: 0 };
        budget.set_policy(&half, NonZeroUsize::MIN);
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count(), 300);
        budget.set_policy(&POLICY, NonZeroUsize::MIN);
        assert_eq!((0..1000).filter(|_| budget.withdraw(start)).count(), 0);
    }

    #[test]
    fn nothing_is_nothing() {
        let start = crate::testing::start();
        let none = RetryBudget { percent: 0, min_per_second: 0 };
        let mut budget = Budget::new(&none, NonZeroUsize::MIN, start);
        (0..1000).for_each(|_| budget.on_request(start));
        assert!(!budget.withdraw(start));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Wait(u64),
        Ask(usize),
        Retry(usize),
        Policy(RetryBudget, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..2500_u64).prop_map(Step::Wait),
            (0..200_usize).prop_map(Step::Ask),
            (0..200_usize).prop_map(Step::Retry),
            (0..150_u32, 0..20_u32, 1..8_usize).prop_map(|(percent, min_per_second, workers)| {
                Step::Policy(RetryBudget { percent, min_per_second }, workers)
            }),
        ]
    }

    #[test]
    fn what_is_left_can_be_taken() {
        let start = crate::testing::start();
        let mut budget = of_one_worker(start);
        for (second, requests, retries) in
            [(0, 0, 0), (0, 30, 3), (1, 500, 7), (2, 0, 60), (5, 10, 0), (14, 0, 9)]
        {
            let now = start + second * SECOND;
            (0..requests).for_each(|_| budget.on_request(now));
            for _ in 0..retries {
                budget.withdraw(now);
            }
            let left = budget.left(now);
            let mut spent = budget.clone();
            assert_eq!((0..1000).filter(|_| spent.withdraw(now)).count() as u32, left, "second {second}");
            assert_eq!(spent.left(now), 0);
        }
    }

    proptest! {
        /// Against lists of what happened in the slots that still count: what is granted is within the share, or within
        /// the minimum of its second; what is refused is in neither.
        #[test]
        fn never_more_than_the_share_or_the_minimum_and_never_less(
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let start = crate::testing::start();
            let (mut policy, mut workers) = (POLICY, 1);
            let mut budget = of_one_worker(start);
            let (mut millis, mut requests, mut retries) = (0_u64, Vec::new(), Vec::new());
            for step in steps {
                let now = start + Duration::from_millis(millis);
                let second = millis / 1000;
                match step {
                    Step::Wait(wait) => millis += wait,
                    Step::Ask(asked) => (0..asked).for_each(|_| {
                        budget.on_request(now);
                        requests.push(second);
                    }),
                    Step::Policy(new, by) => {
                        (policy, workers) = (new, by);
                        budget.set_policy(&policy, NonZeroUsize::new(workers).unwrap());
                    }
                    Step::Retry(tries) => for _ in 0..tries {
                        let lately = |list: &[u64]| list.iter().filter(|at| **at + 10 > second).count();
                        let this_second = retries.iter().filter(|at| **at == second).count();
                        let share = (lately(&retries) + 1) * 100 <= lately(&requests) * policy.percent as usize;
                        let minimum = this_second < (policy.min_per_second as usize).div_ceil(workers);
                        prop_assert_eq!(budget.withdraw(now), share || minimum);
                        if share || minimum {
                            retries.push(second);
                        }
                    },
                }
            }
        }
    }
}
