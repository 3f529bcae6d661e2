//! How much is asked for lately: the larger of the mean over the last half second and over the last one and a half. It
//! follows a jump up at once and lets go slowly, so that a pause between two waves gives nothing away.

use std::time::Instant;

const STEP_NANOSECONDS: u64 = 125_000_000;
/// Steps of the long span, and the one under way.
const STEPS: usize = 13;
/// Whole steps of the short span.
const SHORT: usize = 4;
const STEPS_PER_SECOND: u64 = 8;

#[derive(Debug)]
pub(super) struct Meter {
    origin: Instant,
    /// Steps since `origin`; never falls.
    at: u64,
    /// Of step `n`, at `n % STEPS`.
    counts: [u32; STEPS],
}

impl Meter {
    pub(super) fn new(now: Instant) -> Self {
        Self { origin: now, at: 0, counts: [0; STEPS] }
    }

    pub(super) fn on_request(&mut self, now: Instant) {
        self.advance(now);
        let count = &mut self.counts[(self.at % STEPS as u64) as usize];
        *count = count.saturating_add(1);
    }

    /// Of the whole steps alone: one that has just begun says nothing yet.
    pub(super) fn thousandths_per_second(&mut self, now: Instant) -> u64 {
        self.advance(now);
        let mean = |steps: usize| {
            let before = |step: u64| self.at.checked_sub(step).map(|at| (at % STEPS as u64) as usize);
            let counted = (1..=steps as u64).filter_map(before);
            let sum: u64 = counted.map(|index| u64::from(self.counts[index])).sum();
            sum * STEPS_PER_SECOND * 1000 / steps as u64
        };
        mean(SHORT).max(mean(STEPS - 1))
    }

    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.origin).as_nanos();
        let to = u64::try_from(elapsed / u128::from(STEP_NANOSECONDS)).unwrap_or(u64::MAX);
        let passed = to.saturating_sub(self.at).min(STEPS as u64);
        for step in 1..=passed {
            self.counts[((self.at + step) % STEPS as u64) as usize] = 0;
        }
        self.at = self.at.max(to);
    }
}
