//! The traffic of one series in one second, or in ten, as few bytes.
//!
//! ```text
//!   received sent connections failed   outcomes: how many, then (kind - kind before, count)…   buckets until the end
//!   one bucket: 4·(bucket - bucket before) + n, where n = 1 to 3 is the count and 0 means that the count follows
//! ```
//!
//! All numbers are LEB128. Most durations of a second fall into buckets near each other and each occurs once or twice, so
//! a bucket is one byte, where HdrHistogram's array of all buckets would have 8 for each of a thousand.

use super::outcomes::OutcomeId;

/// Buckets of HdrHistogram with two digits from 1 µs to 10 min: those of every coarser unit fall into them one to one.
pub(super) const BUCKETS: usize = 2_960;
const MOST_US: u64 = 600_000_000;

/// What a slot holds, taken apart. Both lists are sorted and name each kind once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parts {
    /// received, sent, connections, connections failed
    pub(super) numbers: [u64; 4],
    pub(super) outcomes: Vec<(OutcomeId, u64)>,
    pub(super) buckets: Vec<(u16, u64)>,
}

/// The bucket of a duration in microseconds.
pub(super) fn bucket_of(micros: u64) -> u16 {
    let micros = micros.clamp(1, MOST_US);
    // Up to 255 each has its own; then 128 for each power of two.
    let power = 56 - (micros | 255).leading_zeros();
    u16::try_from((u64::from(power) << 7) + (micros >> power)).unwrap_or(u16::MAX)
}

/// The longest duration of a bucket.
pub(super) fn micros_of(bucket: u16) -> u64 {
    let bucket = u64::from(bucket);
    if bucket < 256 {
        return bucket;
    }
    let power = (bucket >> 7) - 1;
    ((bucket - (power << 7) + 1) << power) - 1
}

// === impl Parts ===

impl Parts {
    pub(super) fn clear(&mut self) {
        self.numbers = [0; 4];
        self.outcomes.clear();
        self.buckets.clear();
    }

    /// Adds what a slot holds. What is no slot adds what can be read of it: ours always can.
    pub(super) fn add(&mut self, slot: &[u8]) {
        let mut sum = Sums { parts: self, outcomes: Vec::new(), buckets: Vec::new() };
        read(slot, &mut sum);
        let Sums { outcomes, buckets, .. } = sum;
        merge(&mut self.outcomes, outcomes);
        merge(&mut self.buckets, buckets);
    }

    pub(super) fn write(&self) -> Box<[u8]> {
        let mut bytes = Vec::with_capacity(16 + 2 * self.buckets.len());
        for number in self.numbers {
            write_number(&mut bytes, number);
        }
        write_number(&mut bytes, self.outcomes.len() as u64);
        let mut before = 0;
        for (outcome, count) in &self.outcomes {
            write_number(&mut bytes, u64::from(outcome.0 - before));
            write_number(&mut bytes, *count);
            before = outcome.0;
        }
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            let step = u64::from(bucket - before) << 2;
            if (1..4).contains(count) {
                write_number(&mut bytes, step | count);
            } else {
                write_number(&mut bytes, step);
                write_number(&mut bytes, *count);
            }
            before = *bucket;
        }
        bytes.into_boxed_slice()
    }
}

/// Who is told what a slot holds.
pub(super) trait Visit {
    fn numbers(&mut self, numbers: [u64; 4]);
    fn outcome(&mut self, outcome: OutcomeId, count: u64);
    fn bucket(&mut self, bucket: u16, count: u64);
}

struct Sums<'a> {
    parts: &'a mut Parts,
    outcomes: Vec<(OutcomeId, u64)>,
    buckets: Vec<(u16, u64)>,
}

impl Visit for Sums<'_> {
    fn numbers(&mut self, numbers: [u64; 4]) {
        for (sum, number) in self.parts.numbers.iter_mut().zip(numbers) {
            *sum = sum.saturating_add(number);
        }
    }

    fn outcome(&mut self, outcome: OutcomeId, count: u64) {
        self.outcomes.push((outcome, count));
    }

    fn bucket(&mut self, bucket: u16, count: u64) {
        self.buckets.push((bucket, count));
    }
}

/// Adds one sorted list to another.
fn merge<K: Ord + Copy>(into: &mut Vec<(K, u64)>, other: Vec<(K, u64)>) {
    if into.is_empty() {
        *into = other;
        return;
    }
    if other.is_empty() {
        return;
    }
    let mut merged = Vec::with_capacity(into.len() + other.len());
    let (mut left, mut right) = (into.iter().copied().peekable(), other.into_iter().peekable());
    loop {
        let next = match (left.peek(), right.peek()) {
            (Some(a), Some(b)) if a.0 == b.0 => {
                let sum = (a.0, a.1.saturating_add(b.1));
                left.next();
                right.next();
                Some(sum)
            }
            (Some(a), Some(b)) if a.0 < b.0 => left.next(),
            (_, Some(_)) => right.next(),
            (_, None) => left.next(),
        };
        match next {
            Some(next) => merged.push(next),
            None => break,
        }
    }
    *into = merged;
}

/// Reads a slot. `false`: it ends in the middle, or names a bucket that there is not.
pub(super) fn read(slot: &[u8], visit: &mut impl Visit) -> bool {
    let mut rest = slot;
    read_all(&mut rest, visit).is_some()
}

fn read_all(rest: &mut &[u8], visit: &mut impl Visit) -> Option<()> {
    let mut numbers = [0; 4];
    for number in &mut numbers {
        *number = read_number(rest)?;
    }
    visit.numbers(numbers);
    let mut outcome = 0u16;
    for _ in 0..read_number(rest)? {
        outcome = outcome.checked_add(u16::try_from(read_number(rest)?).ok()?)?;
        visit.outcome(OutcomeId(outcome), read_number(rest)?);
    }
    let mut bucket = 0u16;
    while !rest.is_empty() {
        let step = read_number(rest)?;
        bucket = bucket.checked_add(u16::try_from(step >> 2).ok()?)?;
        if usize::from(bucket) >= BUCKETS {
            return None;
        }
        let count = match step & 3 {
            0 => read_number(rest)?,
            few => few,
        };
        visit.bucket(bucket, count);
    }
    Some(())
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(rest: &mut &[u8]) -> Option<u64> {
    let (first, after) = rest.split_first()?;
    // Nearly all are one byte.
    if *first < 0x80 {
        *rest = after;
        return Some(u64::from(*first));
    }
    let mut number = 0;
    for (index, byte) in rest.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if *byte < 0x80 {
            *rest = &rest[index + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use outrigger_proto::spec::Durations;
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    #[test]
    fn buckets_are_those_of_the_histogram() {
        for micros in (10..5_000).chain((1..1_000).map(|n| n * 600_001)).chain([u64::MAX]) {
            let mut durations = Durations::new();
            durations.add_bucket(micros, 1);
            let told = durations.buckets().next().unwrap().0;
            let mut again = Durations::new();
            again.add_bucket(micros_of(bucket_of(told)), 1);
            assert_eq!(durations, again, "{micros}");
            assert!(usize::from(bucket_of(micros)) < BUCKETS);
        }
        for bucket in 1..BUCKETS as u16 {
            assert_eq!(bucket_of(micros_of(bucket).min(MOST_US)), bucket);
        }
        assert_eq!(usize::from(bucket_of(u64::MAX)), BUCKETS - 1);
    }

    fn parts() -> impl Strategy<Value = Parts> {
        let count = prop_oneof![1..5u64, 1..1u64 << 53];
        let outcomes = btree_map(any::<u16>().prop_map(OutcomeId), count.clone(), 0..5);
        let buckets = btree_map(0..BUCKETS as u16, count, 0..100);
        ([0..1u64 << 53, 0..9, 0..9, 0..9], outcomes, buckets).prop_map(|(numbers, outcomes, buckets)| {
            Parts {
                numbers,
                outcomes: outcomes.into_iter().collect(),
                buckets: buckets.into_iter().collect(),
            }
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in parts()) {
            let mut read = Parts::default();
            read.add(&parts.write());
            prop_assert_eq!(read, parts);
        }

        #[test]
        fn adding_adds_every_number(one in parts(), other in parts()) {
            let mut sum = one.clone();
            sum.add(&other.write());
            let mut other_way = other.clone();
            other_way.add(&one.write());
            prop_assert_eq!(&sum, &other_way);
            let total = |parts: &Parts| parts.buckets.iter().map(|(_, count)| count).sum::<u64>();
            prop_assert_eq!(total(&sum), total(&one) + total(&other));
            prop_assert!(sum.buckets.is_sorted_by(|a, b| a.0 < b.0));
        }

        #[test]
        fn garbage_is_no_slot_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            Parts::default().add(&bytes);
        }
    }
}
