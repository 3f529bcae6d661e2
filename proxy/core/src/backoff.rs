//! How long to wait before the next try: `min(base * 2^n + rand(0, 0.3 * base), max)`.
//!
//! The random part spreads callers that failed together; it is a share of the base, not of the whole, so a wait never
//! shrinks from one failure to the next by more than that. It keeps no time and starts nothing.

use std::time::Duration;

use rand_core::Rng;

#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// The wait after one more failure.
    pub fn on_failure(&mut self, rng: &mut impl Rng) -> Duration {
        let wait = wait(self.base, self.max, self.failures, rng);
        self.failures = self.failures.saturating_add(1);
        wait
    }

    pub fn on_success(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// The wait before a try that `n` waits came before.
pub fn wait(base: Duration, max: Duration, n: u32, rng: &mut impl Rng) -> Duration {
    let doubled = base.saturating_mul(1_u32.checked_shl(n).unwrap_or(u32::MAX));
    // In integers: a base of centuries must not panic, and a random number of 32 bits needs no more.
    let jitter = base.saturating_mul(3) / 10;
    let jitter = jitter.as_nanos().saturating_mul(u128::from(rng.next_u32())) >> 32;
    let jitter = Duration::from_nanos(u64::try_from(jitter).unwrap_or(u64::MAX));
    doubled.saturating_add(jitter).min(max)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(10);

    #[test]
    fn doubles_with_jitter_up_to_the_maximum_and_begins_again() {
        let mut rng = StdRng::seed_from_u64(5);
        for _ in 0..100 {
            let mut backoff = Backoff::new(BASE, MAX);
            for n in 0..7 {
                let wait = backoff.on_failure(&mut rng);
                let exact = BASE * 2_u32.pow(n);
                assert!((exact..=exact + BASE.mul_f64(0.3)).contains(&wait), "{n}: {wait:?}");
            }
            (0..100).for_each(|_| assert_eq!(backoff.on_failure(&mut rng), MAX));
            assert_eq!(backoff.failures(), 107);
            backoff.on_success();
            assert!(backoff.on_failure(&mut rng) < 2 * BASE);
        }
    }

    #[test]
    fn waits_differ() {
        let mut rng = StdRng::seed_from_u64(5);
        let waits: std::collections::HashSet<_> =
            (0..100).map(|_| Backoff::new(BASE, MAX).on_failure(&mut rng)).collect();
        assert!(waits.len() > 90);
    }
}
