//! What is counted in: cells that one worker writes and the scraper reads.
//!
//! A worker is the only writer of its cells, so a count is a plain load and store; nothing is locked and nothing is
//! waited for. An exemplar is five words that belong together: a turn beside them tells a reader that it came in the
//! middle of a change.

use std::{
    num::{NonZeroU64, NonZeroU128},
    ops::Deref,
    sync::{
        OnceLock,
        atomic::{
            AtomicBool, AtomicU32, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
            fence,
        },
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrigger_core::trace::{SpanId, TraceId};

use super::families::{Distribution, Exemplar};
use crate::telemetry::Traced;

/// Upper bounds of the buckets of durations in microseconds; the last bucket has none.
pub const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];
pub(super) const BUCKETS: usize = BOUNDS_US.len() + 1;
/// Lines of one histogram in a scrape: its buckets, sum and count.
pub(super) const HISTOGRAM_LINES: usize = BUCKETS + 2;

pub(super) trait Cells: Default {
    /// Lines that one set of labels has in a scrape.
    const LINES: usize;

    /// Changes with everything that is counted.
    fn activity(&self) -> u64;
}

/// Cells of one worker under one set of labels.
#[derive(Default)]
pub(super) struct Owned<C> {
    /// The series has been idle for too long: the worker is to forget its way here.
    pub(super) leaving: AtomicBool,
    cells: C,
}

#[derive(Default)]
pub(super) struct Count(AtomicU64);

#[derive(Default)]
pub(super) struct Timing {
    buckets: [AtomicU64; BUCKETS],
    sum_us: AtomicU64,
    /// Made when the first sampled request comes.
    exemplars: OnceLock<Box<[Slot; BUCKETS]>>,
}

#[derive(Default)]
pub(super) struct RouteCells {
    pub(super) durations: Timing,
    pub(super) received: Count,
    pub(super) sent: Count,
}

#[derive(Default)]
pub(super) struct ConnectionCells {
    pub(super) total: Count,
    pub(super) received: Count,
    pub(super) sent: Count,
}

/// The latest exemplar of a bucket.
#[derive(Default)]
struct Slot {
    /// 0: empty; odd: being written.
    turn: AtomicU32,
    words: [AtomicU64; 5],
}

// === impl Owned ===

impl<C> Deref for Owned<C> {
    type Target = C;

    fn deref(&self) -> &C {
        &self.cells
    }
}

// === impl Count ===

impl Count {
    /// The only writer is this thread, so nothing can come between load and store.
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

impl Cells for Count {
    const LINES: usize = 1;

    fn activity(&self) -> u64 {
        self.get()
    }
}

// === impl Timing ===

impl Timing {
    pub(super) fn record(&self, duration: Duration, trace: Option<&Traced>) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < micros);
        // As for a count: this thread is the only writer.
        let add = |cell: &AtomicU64, amount: u64| {
            cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
        };
        add(&self.buckets[bucket], 1);
        add(&self.sum_us, micros);
        if let Some(Traced { trace, span, sampled: true }) = trace {
            let exemplar = Exemplar { trace: *trace, span: *span, micros, at: SystemTime::now() };
            self.exemplars.get_or_init(Box::default)[bucket].put(&exemplar);
        }
    }

    pub(super) fn add_to(&self, sum: &mut Distribution) {
        for (index, bucket) in self.buckets.iter().enumerate() {
            sum.buckets[index] = sum.buckets[index].wrapping_add(bucket.load(Relaxed));
        }
        sum.sum_us = sum.sum_us.wrapping_add(self.sum_us.load(Relaxed));
        let slots = self.exemplars.get().into_iter().flat_map(|slots| slots.iter().enumerate());
        for (bucket, exemplar) in slots.filter_map(|(bucket, slot)| Some((bucket, slot.read()?))) {
            sum.exemplify(bucket, exemplar);
        }
    }
}

impl Cells for Timing {
    const LINES: usize = HISTOGRAM_LINES;

    fn activity(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Relaxed)).fold(0, u64::wrapping_add)
    }
}

impl Cells for RouteCells {
    const LINES: usize = HISTOGRAM_LINES + 2;

    fn activity(&self) -> u64 {
        self.durations.activity()
    }
}

impl Cells for ConnectionCells {
    const LINES: usize = 3;

    fn activity(&self) -> u64 {
        self.total.get()
    }
}

// === impl Slot ===

impl Slot {
    fn put(&self, exemplar: &Exemplar) {
        let trace = exemplar.trace.0.get();
        let at = exemplar.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        let words = [
            (trace >> 64) as u64,
            trace as u64,
            exemplar.span.0.get(),
            exemplar.micros,
            u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
        ];
        let turn = self.turn.load(Relaxed);
        self.turn.store(turn.wrapping_add(1), Relaxed);
        // Whoever sees one of the new words sees the odd turn too.
        fence(Release);
        for (cell, word) in self.words.iter().zip(words) {
            cell.store(word, Relaxed);
        }
        self.turn.store(turn.wrapping_add(2), Release);
    }

    /// `None`: there is none, or it is being written; then the next scrape has it.
    fn read(&self) -> Option<Exemplar> {
        let turn = self.turn.load(Acquire);
        let [high, low, span, micros, at] = [0, 1, 2, 3, 4].map(|word: usize| self.words[word].load(Relaxed));
        fence(Acquire);
        if turn % 2 == 1 || self.turn.load(Relaxed) != turn {
            return None;
        }
        Some(Exemplar {
            trace: TraceId(NonZeroU128::new(u128::from(high) << 64 | u128::from(low))?),
            span: SpanId(NonZeroU64::new(span)?),
            micros,
            at: UNIX_EPOCH.checked_add(Duration::from_micros(at))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    fn traced(n: u64) -> Traced {
        let n = n + 1;
        Traced {
            trace: TraceId(NonZeroU128::new(u128::from(n) << 64 | u128::from(n)).unwrap()),
            span: SpanId(NonZeroU64::new(n).unwrap()),
            sampled: true,
        }
    }

    #[test]
    fn a_reader_never_sees_half_an_exemplar() {
        let timing = Arc::new(Timing::default());
        let writer = Arc::clone(&timing);
        let writing = thread::spawn(move || {
            for n in 0..200_000 {
                writer.record(Duration::from_micros(1 + n % 400), Some(&traced(n % 400)));
            }
        });
        let mut seen = 0;
        while !writing.is_finished() || seen == 0 {
            let mut sum = Distribution::default();
            timing.add_to(&mut sum);
            for (_, exemplar) in sum.exemplars {
                seen += 1;
                let n = exemplar.span.0.get();
                assert_eq!(exemplar.trace.0.get(), u128::from(n) << 64 | u128::from(n));
                assert_eq!(exemplar.micros, n);
            }
        }
        writing.join().unwrap();
    }

    #[test]
    fn only_sampled_requests_are_examples() {
        let timing = Timing::default();
        timing.record(Duration::from_millis(3), None);
        timing.record(Duration::from_millis(3), Some(&Traced { sampled: false, ..traced(1) }));
        let mut sum = Distribution::default();
        timing.add_to(&mut sum);
        assert!(sum.exemplars.is_empty());
        timing.record(Duration::from_millis(3), Some(&traced(2)));
        timing.record(Duration::from_millis(4), Some(&traced(3)));
        let mut sum = Distribution::default();
        timing.add_to(&mut sum);
        let [(bucket, exemplar)] = &*sum.exemplars else { panic!("{:?}", sum.exemplars) };
        assert_eq!(
            (*bucket, exemplar.span.0.get(), exemplar.micros),
            (3, 4, 4_000),
            "the latest of its bucket"
        );
    }
}
