//! Consistent hashing: where a key lives, and where it goes while its endpoint cannot take it.
//!
//! - **Ring** (Karger): each endpoint has points on a circle, a key belongs to the first point at or after it. Removing an
//!   endpoint moves its keys and no others. With [`POINTS`] points each, loads differ by a tenth.
//! - **Maglev** (Eisenbud et al., NSDI 2016, section 3.4): endpoints take turns filling a table of prime size, each in an
//!   order of its own. Loads differ by a slot; removing an endpoint moves its keys and a few others.
//!
//! Both depend on the endpoints' keys and weights alone, not on their order, so that all proxies agree. An endpoint that is
//! not usable keeps its places: its keys go where the walk from them leads, and come back.
//!
//! Tables are bounded, and made when the first key is looked up:
//!
//! | endpoints | Maglev: slots | ring: points of an endpoint of mean weight |
//! |---|---|---|
//! | up to 1,024 | 65,537 (Google's and Envoy's size) | 128 to 255 |
//! | up to 2,048, 4,096, … | 655,373 | half as many each time, at least 4 |
//! | more than 102,400 | 6,553,621 | |

use std::num::NonZeroU32;

use outrigger_proto::spec::Table as Kind;

use super::hash::spread;

/// Points on the ring of an endpoint whose weight is the mean weight rounded down to a power of two.
const POINTS: u64 = 128;
/// Above this number of endpoints, points are halved.
const FULL_POINTS: usize = 1024;
const MIN_POINTS: u64 = 4;
/// Primes, and up to how many endpoints each serves: at least 64 slots for each, or 6.4 for very many.
const MAGLEV: [(usize, usize); 3] = [(65_537, 1024), (655_373, 102_400), (6_553_621, usize::MAX)];
/// Points in a part of the ring, on average at most twice that.
const POINTS_IN_PART: usize = 4;
/// From one point to the next, before they are spread: SplitMix64's.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const EMPTY: u32 = u32::MAX;

#[derive(Debug)]
pub(super) enum Table {
    Ring {
        /// The upper halves of the points' hashes, in order.
        points: Box<[u32]>,
        /// Whose they are.
        owners: Box<[u32]>,
        /// Of each equal part of the circle: the first point at or after its beginning.
        parts: Box<[u32]>,
    },
    Maglev {
        slots: Box<[u32]>,
    },
}

/// A member of a Maglev table that is being filled.
struct Turn {
    slot: u32,
    skip: u32,
    /// Slots it may take.
    credit: f64,
    share: f64,
    member: u32,
}

impl Table {
    /// Of the members that have these keys; there is at least one. `weights: None`: all are equal.
    pub(super) fn new(kind: Kind, keys: &[u64], weights: Option<&[NonZeroU32]>) -> Self {
        let weight = |member: usize| weights.map_or(1, |weights| u64::from(weights[member].get()));
        let total: u64 = (0..keys.len()).map(weight).sum();
        match kind {
            Kind::Ring => Self::ring(keys, weight, total),
            Kind::Maglev => Self::maglev(keys, weight, total),
        }
    }

    fn ring(keys: &[u64], weight: impl Fn(usize) -> u64, total: u64) -> Self {
        // Nothing here may change with every endpoint that comes or goes, or all keys would move. So the mean weight and the
        // number of endpoints count by their powers of two.
        let base = 1 << (total / keys.len() as u64).max(1).ilog2();
        let halvings = keys.len().div_ceil(FULL_POINTS).next_power_of_two().ilog2();
        let points = (POINTS >> halvings.min(63)).max(MIN_POINTS);
        let ranked = ranked(keys);
        let mut ring = Vec::with_capacity(keys.len() * points as usize);
        for (rank, member) in (0..).zip(&ranked) {
            let key = keys[*member as usize];
            for point in 1..=(points * weight(*member as usize) / base).max(1) {
                let hash = spread(key.wrapping_add(point.wrapping_mul(STEP)));
                ring.push(hash & !u64::from(u32::MAX) | rank);
            }
        }
        ring.sort_unstable();
        let owners = ring.iter().map(|point| ranked[*point as u32 as usize]).collect();
        let points: Box<[u32]> = ring.into_iter().map(|point| (point >> 32) as u32).collect();
        let count = (points.len() / POINTS_IN_PART).next_power_of_two().max(2);
        let mut parts = vec![0; count].into_boxed_slice();
        let mut first = 0;
        for (part, place) in parts.iter_mut().enumerate() {
            while points
                .get(first)
                .is_some_and(|point| (u64::from(*point) * count as u64) >> 32 < part as u64)
            {
                first += 1;
            }
            *place = first as u32;
        }
        Self::Ring { points, owners, parts }
    }

    fn maglev(keys: &[u64], weight: impl Fn(usize) -> u64, total: u64) -> Self {
        let (size, _) = MAGLEV.into_iter().find(|(_, serves)| keys.len() <= *serves).unwrap_or(MAGLEV[2]);
        let per_mean = keys.len() as f64 / total as f64;
        let turn = |member: u32| {
            let key = keys[member as usize];
            Turn {
                slot: (spread(key) % size as u64) as u32,
                skip: (spread(!key) % (size as u64 - 1)) as u32 + 1,
                credit: 0.5,
                share: weight(member as usize) as f64 * per_mean,
                member,
            }
        };
        let mut turns: Vec<_> = ranked(keys).into_iter().map(turn).collect();
        let mut slots = vec![EMPTY; size].into_boxed_slice();
        let mut left = size;
        loop {
            for turn in &mut turns {
                turn.credit += turn.share;
                while turn.credit >= 1.0 {
                    turn.credit -= 1.0;
                    while slots[turn.slot as usize] != EMPTY {
                        turn.slot += turn.skip;
                        turn.slot -= if turn.slot >= size as u32 { size as u32 } else { 0 };
                    }
                    slots[turn.slot as usize] = turn.member;
                    left -= 1;
                    if left == 0 {
                        return Self::Maglev { slots };
                    }
                }
            }
        }
    }

    /// The members in the order in which they take a key, each several times.
    pub(super) fn walk(&self, hash: u64) -> impl Iterator<Item = usize> {
        let (places, start) = match self {
            Self::Ring { points, owners, parts } => {
                let wanted = (hash >> 32) as u32;
                let mut at = parts[((u64::from(wanted) * parts.len() as u64) >> 32) as usize] as usize;
                while points.get(at).is_some_and(|point| *point < wanted) {
                    at += 1;
                }
                (owners, at)
            }
            Self::Maglev { slots } => (slots, (hash % slots.len() as u64) as usize),
        };
        let (before, after) = places.split_at(start);
        after.iter().chain(before).map(|member| *member as usize)
    }
}

/// The members in an order that does not depend on the one in which they are given.
fn ranked(keys: &[u64]) -> Vec<u32> {
    let mut members: Vec<_> = (0..keys.len() as u32).collect();
    members.sort_unstable_by_key(|member| keys[*member as usize]);
    members
}
