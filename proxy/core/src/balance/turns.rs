//! Round-robin: whose turn it is.

use std::{cmp::Ordering, collections::BinaryHeap, num::NonZeroU32};

use rand_core::Rng;

use super::{
    Loads,
    fleet::Fleet,
    question::Question,
    weights::{below, unit},
};

/// Turns of members that are not admitted, refused lately or are in slow start, before one is taken out of turn.
const TURNS: usize = 256;

/// The turns of the members at `start..end`.
#[derive(Debug)]
pub(super) struct Turns {
    start: u32,
    end: u32,
    /// See [`super::fleet::Ramp::oldest`].
    oldest: u32,
    order: Order,
}

#[derive(Debug)]
enum Order {
    /// Whose turn it is, for equal weights.
    Next(u32),
    ByTime(BinaryHeap<Turn>),
}

/// When a member's next turn comes, on a clock that a turn of mean weight advances by 1.
#[derive(Clone, Copy, Debug)]
struct Turn {
    at: f64,
    position: u32,
}

impl Turns {
    pub(super) fn new(fleet: &Fleet, start: u32, end: u32, rng: &mut impl Rng) -> Self {
        let order = match fleet.uneven(start, end) {
            Some(weights) => {
                let turn = |(position, weight): (u32, &NonZeroU32)| Turn {
                    at: unit(rng) / f64::from(weight.get()),
                    position,
                };
                Order::ByTime((start..end).zip(weights).map(turn).collect())
            }
            None => Order::Next(start + below((end - start) as usize, rng) as u32),
        };
        Self { start, end, oldest: fleet.oldest(start, end), order }
    }

    pub(super) fn next<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &mut self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        // Of those that were passed over though they could have been taken, any: it is, if nobody better comes.
        let (mut passed, mut count) = (None, 0);
        let (start, end, oldest) = (self.start, self.end, self.oldest);
        let mut skips = |position: usize, rng: &mut _| {
            let skips = !question.accepts(position, oldest, rng) || question.avoids(position);
            if skips {
                count += 1;
                passed = if below(count, rng) == 0 { Some(position) } else { passed };
            }
            skips
        };
        match &mut self.order {
            Order::Next(next) => {
                for _ in 0..(end - start).min(TURNS as u32) {
                    let chosen = question.first_of(start, *next, end)?;
                    *next = if chosen as u32 + 1 < end { chosen as u32 + 1 } else { start };
                    if !skips(chosen, rng) {
                        return Some(chosen);
                    }
                }
            }
            Order::ByTime(turns) => {
                for _ in 0..TURNS.min(4 * turns.len()) {
                    let mut turn = turns.peek_mut()?;
                    let position = turn.position as usize;
                    // Who is passed over has had its turn, or it would come back all at once.
                    turn.at += 1.0 / question.fleet.weight(position);
                    drop(turn);
                    if question.takes(position) && !skips(position, rng) {
                        return Some(position);
                    }
                }
            }
        }
        passed.or_else(|| {
            let from = start + below((end - start) as usize, rng) as u32;
            question.first_of(start, from, end)
        })
    }
}

// === impl Turn ===

impl Ord for Turn {
    /// The earliest is the greatest, because the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.position.cmp(&self.position))
    }
}

impl PartialOrd for Turn {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Turn {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Turn {}
