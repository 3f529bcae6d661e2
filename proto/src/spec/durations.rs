//! A histogram of durations that can be added up: over instances, workers and time, without a loss.
//!
//! Its buckets are those of HdrHistogram with two significant digits from 1 µs on, which everybody who looks at latencies
//! knows, and on the wire it is theirs too (`convert/durations.rs`): each duration up to 255 µs has a bucket of its own, and
//! each power of two above that has 128. It is written anew here because a control plane takes thousands of them a second
//! and needs to walk what is in them, which the library does at a tenth of the speed.

use std::time::Duration;

/// A histogram of durations from 10 µs to 10 min in microseconds, with an error of less than 1 %. What is outside counts
/// at the end of the range.
///
/// Without a record it takes no room; then it grows with the longest duration: 6 KiB for one of some milliseconds, 1 KiB
/// more for each doubling, 24 KiB for 10 min. One that was made of a list is that list until something is added to it.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    /// By bucket; as many as [`room`] says.
    counts: Vec<u64>,
    /// In place of that: what is counted, by bucket.
    list: Vec<(u16, u64)>,
}

/// Buckets that a power of two has; the first has twice as many.
const HALF: usize = 128;

// === impl Durations ===

impl Durations {
    pub const LEAST_US: u64 = 10;
    pub const MOST_US: u64 = 600_000_000;
    /// Buckets that there are.
    pub const BUCKETS: usize = Self::bucket_of(Self::MOST_US) as usize + 1;

    pub fn new() -> Self {
        Self::default()
    }

    /// The bucket of a duration in microseconds.
    #[inline]
    pub const fn bucket_of(micros: u64) -> u16 {
        let micros = if micros > Self::MOST_US { Self::MOST_US } else { micros };
        let power = 56 - (micros | 255).leading_zeros();
        // At most 22 · 128 + 255.
        ((power as u64 * HALF as u64) + (micros >> power)) as u16
    }

    /// The longest duration of a bucket, in microseconds.
    #[inline]
    pub const fn micros_of(bucket: u16) -> u64 {
        let bucket = bucket as u64;
        let half = HALF as u64;
        if bucket < 2 * half {
            return bucket;
        }
        let power = bucket / half - 1;
        ((bucket - power * half + 1) << power) - 1
    }

    /// Of buckets that rise, each of them one that there is.
    pub(crate) fn of_list(list: Vec<(u16, u64)>) -> Self {
        debug_assert!(list.is_sorted_by(|a, b| a.0 < b.0));
        Self { counts: Vec::new(), list }
    }

    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.add_bucket(Self::bucket_of(micros.max(Self::LEAST_US)), 1);
    }

    /// Exact: both have the same buckets.
    pub fn add(&mut self, other: &Self) {
        self.spread();
        other.list.iter().for_each(|(bucket, count)| self.add_bucket(*bucket, *count));
        if self.counts.len() < other.counts.len() {
            self.grow(other.counts.len());
        }
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum = sum.saturating_add(*count);
        }
    }

    /// Forgets what was recorded, not the room for it.
    pub fn reset(&mut self) {
        self.counts.fill(0);
        self.list.clear();
    }

    pub fn count(&self) -> u64 {
        let counts = self.counts.iter().chain(self.list.iter().map(|(_, count)| count));
        counts.fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// `None`: nothing was recorded. `quantile`: 0 to 1.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let wanted = (quantile * self.count() as f64).ceil().max(1.0) as u64;
        let mut sum = 0u64;
        let found = self.buckets().find(|(_, count)| {
            sum = sum.saturating_add(*count);
            sum >= wanted
        });
        // Of very many, the product may be one more than there are.
        let found = found.or_else(|| self.buckets().next_back());
        found.map(|(bucket, _)| Duration::from_micros(Self::micros_of(bucket)))
    }

    pub fn max(&self) -> Option<Duration> {
        let (bucket, _) = self.buckets().next_back()?;
        Some(Duration::from_micros(Self::micros_of(bucket)))
    }

    /// The buckets that are not empty, the shortest first, and how often each.
    #[inline]
    pub fn buckets(&self) -> impl DoubleEndedIterator<Item = (u16, u64)> {
        let all = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        all.map(|(bucket, count)| (bucket as u16, *count)).chain(self.list.iter().copied())
    }

    /// Adds what [`Self::buckets`] of another one has said. One that there is not counts as the last.
    // Whoever adds many up is in another crate.
    #[inline]
    pub fn add_bucket(&mut self, bucket: u16, count: u64) {
        let bucket = usize::from(bucket).min(Self::BUCKETS - 1);
        if bucket >= self.counts.len() || !self.list.is_empty() {
            if count == 0 {
                return;
            }
            self.spread();
            if bucket >= self.counts.len() {
                self.grow(room(bucket));
            }
        }
        self.counts[bucket] = self.counts[bucket].saturating_add(count);
    }

    /// So that there is no list.
    fn spread(&mut self) {
        let list = std::mem::take(&mut self.list);
        if let Some((longest, _)) = list.last() {
            self.grow(room(usize::from(*longest)).max(self.counts.len()));
        }
        for (bucket, count) in list {
            self.counts[usize::from(bucket)] = count;
        }
    }

    /// So many, without room for more: most never need it.
    #[cold]
    fn grow(&mut self, room: usize) {
        self.counts.reserve_exact(room - self.counts.len());
        self.counts.resize(room, 0);
    }
}

/// How many buckets there have to be for this one: all of its power of two.
fn room(bucket: usize) -> usize {
    (bucket / HALF + 1).max(2) * HALF
}

/// By what was recorded, not by the room for it.
impl PartialEq for Durations {
    fn eq(&self, other: &Self) -> bool {
        self.buckets().eq(other.buckets())
    }
}

#[cfg(test)]
mod tests;
