//! The traffic of one series in one second, or in ten, as few bytes.
//!
//! ```text
//!   received sent connections failed   outcomes: how many, then (kind - kind before, count)…   buckets until the end
//!   one bucket: 4·(bucket - bucket before) + n, where n = 1 to 3 is the count and 0 means that the count follows
//! ```
//!
//! All numbers are LEB128. Most durations of a second fall into buckets near each other and each occurs once or twice, so
//! a bucket is one byte, where HdrHistogram's array of all buckets would have 8 for each of a thousand.

use std::mem;

use outrigger_proto::spec::Durations;

use super::outcomes::OutcomeId;

/// What a slot holds, taken apart. Both lists are sorted and name each kind once.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// received, sent, connections, connections failed
    pub(super) numbers: [u64; 4],
    pub(super) outcomes: Counted<OutcomeId>,
    pub(super) buckets: Counted<u16>,
    /// Where sums are made: empty in between.
    spare: (Counted<OutcomeId>, Counted<u16>),
}

/// How often each.
type Counted<K> = Vec<(K, u64)>;

// === impl Parts ===

impl Parts {
    pub(super) fn clear(&mut self) {
        self.numbers = [0; 4];
        self.outcomes.clear();
        self.buckets.clear();
    }

    /// Requests and connections.
    pub(super) fn calls(&self) -> u64 {
        self.outcomes.iter().fold(self.numbers[2], |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Adds what a slot holds. What is no slot adds what can be read of it: ours always can.
    pub(super) fn add(&mut self, slot: &[u8]) {
        let Self { numbers, outcomes, buckets, spare } = self;
        let mut sum = Sums {
            numbers,
            outcomes: Merge { known: outcomes, sum: &mut spare.0 },
            buckets: Merge { known: buckets, sum: &mut spare.1 },
        };
        read(slot, &mut sum);
        sum.outcomes.finish();
        sum.buckets.finish();
        mem::swap(outcomes, &mut spare.0);
        mem::swap(buckets, &mut spare.1);
        spare.0.clear();
        spare.1.clear();
    }

    /// Appends the slot.
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        for number in self.numbers {
            write_number(bytes, number);
        }
        write_number(bytes, self.outcomes.len() as u64);
        let mut before = 0;
        for (outcome, count) in &self.outcomes {
            write_number(bytes, u64::from(outcome.0 - before));
            write_number(bytes, *count);
            before = outcome.0;
        }
        let mut before = 0;
        for (bucket, count) in &self.buckets {
            let step = u64::from(bucket - before) << 2;
            if (1..4).contains(count) {
                write_number(bytes, step | count);
            } else {
                write_number(bytes, step);
                write_number(bytes, *count);
            }
            before = *bucket;
        }
    }
}

impl PartialEq for Parts {
    fn eq(&self, other: &Self) -> bool {
        let Self { numbers, outcomes, buckets, spare: _ } = self;
        (numbers, outcomes, buckets) == (&other.numbers, &other.outcomes, &other.buckets)
    }
}

/// Who is told what a slot holds.
pub(super) trait Visit {
    fn numbers(&mut self, numbers: [u64; 4]);
    fn outcome(&mut self, outcome: OutcomeId, count: u64);
    fn bucket(&mut self, bucket: u16, count: u64);
}

struct Sums<'a> {
    numbers: &'a mut [u64; 4],
    outcomes: Merge<'a, OutcomeId>,
    buckets: Merge<'a, u16>,
}

/// Adds one sorted list to another.
struct Merge<'a, K> {
    /// What is left of the other one.
    known: &'a [(K, u64)],
    sum: &'a mut Counted<K>,
}

impl Visit for Sums<'_> {
    fn numbers(&mut self, numbers: [u64; 4]) {
        for (sum, number) in self.numbers.iter_mut().zip(numbers) {
            *sum = sum.saturating_add(number);
        }
    }

    fn outcome(&mut self, outcome: OutcomeId, count: u64) {
        self.outcomes.add(outcome, count);
    }

    fn bucket(&mut self, bucket: u16, count: u64) {
        self.buckets.add(bucket, count);
    }
}

impl<K: Ord + Copy> Merge<'_, K> {
    fn add(&mut self, key: K, count: u64) {
        while let Some((first, rest)) = self.known.split_first()
            && first.0 <= key
        {
            self.known = rest;
            if first.0 == key {
                self.sum.push((key, first.1.saturating_add(count)));
                return;
            }
            self.sum.push(*first);
        }
        self.sum.push((key, count));
    }

    fn finish(&mut self) {
        self.sum.extend_from_slice(self.known);
        self.known = &[];
    }
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
        if usize::from(bucket) >= Durations::BUCKETS {
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
    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn parts() -> impl Strategy<Value = Parts> {
        let count = prop_oneof![1..5u64, 1..1u64 << 53];
        let outcomes = btree_map(any::<u16>().prop_map(OutcomeId), count.clone(), 0..5);
        let buckets = btree_map(0..Durations::BUCKETS as u16, count, 0..100);
        ([0..1u64 << 53, 0..9, 0..9, 0..9], outcomes, buckets).prop_map(|(numbers, outcomes, buckets)| {
            Parts {
                numbers,
                outcomes: outcomes.into_iter().collect(),
                buckets: buckets.into_iter().collect(),
                ..Parts::default()
            }
        })
    }

    fn written(parts: &Parts) -> Vec<u8> {
        let mut bytes = Vec::new();
        parts.write(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(parts in parts()) {
            let mut read = Parts::default();
            read.add(&written(&parts));
            prop_assert_eq!(read, parts);
        }

        #[test]
        fn adding_adds_every_number(one in parts(), other in parts()) {
            let mut sum = one.clone();
            sum.add(&written(&other));
            let mut other_way = other.clone();
            other_way.add(&written(&one));
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
