//! Latencies of the last half minute in buckets that grow with them, for a percentile.
//!
//! Each doubling has eight buckets, so a percentile is at most an eighth too high and never too low. Three slices of ten
//! seconds make the window slide: the oldest is taken out of the sum when a new one begins.

use std::time::{Duration, Instant};

const SLICES: usize = 3;
const SLICE: Duration = Duration::from_secs(10);
/// Doublings, from 64 us to 67 s. What is outside counts as the nearest.
const OCTAVES: usize = 20;
const FIRST_OCTAVE: u32 = 6;
const PER_OCTAVE: usize = 8;
const BUCKETS: usize = OCTAVES * PER_OCTAVE;
/// Answers after which a percentile is looked up anew.
const REFRESH: u32 = 16;

#[derive(Clone, Debug)]
pub(super) struct Latencies {
    slices: [[u32; BUCKETS]; SLICES],
    sum: [u32; BUCKETS],
    answers: u32,
    current: usize,
    /// When the current slice began.
    began: Instant,
    /// The last percentile, and how many answers it has not seen.
    known: Option<Duration>,
    unseen: u32,
}

impl Latencies {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            slices: [[0; BUCKETS]; SLICES],
            sum: [0; BUCKETS],
            answers: 0,
            current: 0,
            began: now,
            known: None,
            unseen: 0,
        }
    }

    pub(super) fn record(&mut self, latency: Duration, now: Instant) {
        self.advance(now);
        let bucket = bucket(latency);
        // Saturates after 4 billion answers in half a minute.
        if self.answers < u32::MAX {
            self.slices[self.current][bucket] += 1;
            self.sum[bucket] += 1;
            self.answers += 1;
            self.unseen += 1;
        }
    }

    /// The upper end of the bucket that the percentile falls in. `None` with less than so many answers.
    pub(super) fn percentile(&mut self, percent: u32, least: u32, now: Instant) -> Option<Duration> {
        self.advance(now);
        if self.answers < least {
            return None;
        }
        if self.known.is_none() || self.unseen >= REFRESH {
            self.known = Some(self.look_up(percent));
            self.unseen = 0;
        }
        self.known
    }

    fn look_up(&self, percent: u32) -> Duration {
        // So many may be slower.
        let mut slower = u64::from(self.answers) * u64::from(100 - percent) / 100;
        for (bucket, count) in self.sum.iter().enumerate().rev() {
            if u64::from(*count) > slower {
                return upper(bucket);
            }
            slower -= u64::from(*count);
        }
        upper(0)
    }

    fn advance(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.began);
        if since < SLICE {
            return;
        }
        let passed = since.as_secs() / SLICE.as_secs();
        for _ in 0..passed.min(SLICES as u64) {
            self.current = (self.current + 1) % SLICES;
            for (sum, old) in self.sum.iter_mut().zip(&mut self.slices[self.current]) {
                *sum -= *old;
                self.answers -= *old;
                *old = 0;
            }
        }
        self.known = None;
        self.began += Duration::from_secs(passed * SLICE.as_secs());
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1 << FIRST_OCTAVE);
    let octave = micros.ilog2();
    let within = (micros >> (octave - 3)) as usize % PER_OCTAVE;
    (((octave - FIRST_OCTAVE) as usize) * PER_OCTAVE + within).min(BUCKETS - 1)
}

/// Above everything in the bucket.
fn upper(bucket: usize) -> Duration {
    let (octave, within) = (bucket / PER_OCTAVE, bucket % PER_OCTAVE);
    Duration::from_micros(((PER_OCTAVE + within + 1) as u64) << (octave + FIRST_OCTAVE as usize - 3))
}
