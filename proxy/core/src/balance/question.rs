//! One choice: what it is among, and who may be taken.

use std::time::Instant;

use outrigger_proto::spec::Table as Kind;
use rand_core::Rng;

use super::{Load, Loads, fleet::Fleet, weights::unit};

#[derive(Clone, Copy, Debug)]
pub(super) enum Method {
    TwoChoices(Measure),
    Random,
    RoundRobin,
    Hash(Kind),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Measure {
    Ewma,
    InFlight,
}

/// What a choice has to know.
pub(super) struct Question<'a, L: ?Sized, U> {
    pub(super) fleet: &'a Fleet,
    pub(super) keys: &'a [u64],
    pub(super) loads: &'a L,
    pub(super) usable: &'a U,
    /// Whether to take members that are not admitted.
    pub(super) panic: bool,
    pub(super) hash: Option<u64>,
    pub(super) now: Instant,
    /// The same for slow start, see [`super::fleet::Ramp::clock`].
    pub(super) clock: f64,
}

// === impl Question ===

impl<L: ?Sized, U: Fn(usize) -> bool> Question<'_, L, U> {
    pub(super) fn takes(&self, position: usize) -> bool {
        (self.panic || self.fleet.admitted.has(position)) && (self.usable)(self.fleet.index(position))
    }

    /// Whether slow start lets it be taken now.
    pub(super) fn accepts(&self, position: usize, oldest: u32, rng: &mut impl Rng) -> bool {
        match &self.fleet.ramp {
            Some(ramp) => ramp.accepts(position, oldest, unit(rng), self.clock),
            None => true,
        }
    }

    /// The first that may be taken of `start..end`, beginning at `from` and going round.
    pub(super) fn first_of(&self, start: u32, from: u32, end: u32) -> Option<usize> {
        let find = |mut at: usize, end: usize| {
            while at < end {
                at = if self.panic { at } else { self.fleet.admitted.next(at, end)? };
                if self.takes(at) {
                    return Some(at);
                }
                at += 1;
            }
            None
        };
        find(from as usize, end as usize).or_else(|| find(start as usize, from as usize))
    }
}

impl<L: Loads + ?Sized, U> Question<'_, L, U> {
    pub(super) fn cost(&self, measure: Measure, position: usize) -> f64 {
        let share = self.fleet.share(position, self.clock);
        self.loads.load(self.fleet.index(position), |load| match measure {
            Measure::Ewma => load.cost(share, self.now),
            Measure::InFlight => load.busy(share, self.now),
        })
    }

    pub(super) fn avoids(&self, position: usize) -> bool {
        self.loads.load(self.fleet.index(position), |load: &Load| load.is_avoided(self.now))
    }
}
