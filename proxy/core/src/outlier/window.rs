//! A rolling window of ten buckets. A sum covers the last nine to ten tenths of it: a bucket falls out whole.
//!
//! It knows neither its own width nor the time: both come in, so that a hundred thousand windows need not keep them.

use std::ops::AddAssign;

pub(super) const BUCKETS: u64 = 10;

/// Nanoseconds since the breakers were made.
pub(super) type At = u64;

#[derive(Clone, Debug)]
pub(super) struct Window<T> {
    buckets: [T; BUCKETS as usize],
    current: usize,
    /// When the current bucket began.
    began: At,
}

/// Requests that ended, and those that failed among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) failed: u32,
}

/// Latencies of successes, as the sum of their binary logarithms in microseconds: the mean of those is the geometric
/// mean, which one answer of thirty seconds does not move as it moves the arithmetic one.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Latencies {
    pub(super) total: u32,
    pub(super) log2: f64,
}

impl<T: Copy + Default + AddAssign> Window<T> {
    pub(super) fn new(at: At) -> Self {
        Self { buckets: [T::default(); BUCKETS as usize], current: 0, began: at }
    }

    /// The bucket of now, `width` being that of one bucket.
    pub(super) fn now(&mut self, at: At, width: u64) -> &mut T {
        self.advance(at, width);
        &mut self.buckets[self.current]
    }

    pub(super) fn sum(&mut self, at: At, width: u64) -> T {
        self.advance(at, width);
        self.total(BUCKETS as usize)
    }

    /// The same with buckets of another width: what is younger than the new window counts as of now.
    pub(super) fn rewidth(mut self, from: u64, to: u64, at: At) -> Self {
        if from == to {
            return self;
        }
        self.advance(at, from);
        let young = to.saturating_mul(BUCKETS).div_ceil(from.max(1)).clamp(1, BUCKETS) as usize;
        let mut new = Self::new(at);
        new.buckets[0] = self.total(young);
        new
    }

    /// The sum of the youngest buckets.
    fn total(&self, young: usize) -> T {
        let mut sum = T::default();
        for age in 0..young {
            sum += self.buckets[(self.current + self.buckets.len() - age) % self.buckets.len()];
        }
        sum
    }

    fn advance(&mut self, at: At, width: u64) {
        let passed = at.saturating_sub(self.began);
        if passed < width {
            return;
        }
        let steps = passed / width.max(1);
        for _ in 0..steps.min(BUCKETS) {
            self.current = (self.current + 1) % self.buckets.len();
            self.buckets[self.current] = T::default();
        }
        self.began += steps.saturating_mul(width);
    }
}

// === impl Counts ===

impl Counts {
    pub(super) fn record(&mut self, failed: bool) {
        self.total = self.total.saturating_add(1);
        self.failed = self.failed.saturating_add(u32::from(failed));
    }

    /// 0 to 100. 0 of nothing.
    pub(super) fn failed_percent(self) -> f64 {
        f64::from(self.failed) * 100.0 / f64::from(self.total.max(1))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

// === impl Latencies ===

impl Latencies {
    pub(super) fn record(&mut self, microseconds: u32) {
        self.total = self.total.saturating_add(1);
        self.log2 += libm::log2(f64::from(microseconds.max(1)));
    }

    /// In microseconds.
    pub(super) fn mean(self) -> f64 {
        libm::exp2(self.log2 / f64::from(self.total.max(1)))
    }
}

impl AddAssign for Latencies {
    fn add_assign(&mut self, other: Self) {
        self.total = self.total.saturating_add(other.total);
        self.log2 += other.log2;
    }
}
