//! A choice among members that lie together: everybody, those of a zone, of a subset.

use std::{cmp::Ordering, collections::BinaryHeap, num::NonZeroU32, time::Instant};

use outrigger_proto::spec::Table as Kind;
use rand_core::Rng;

use super::{
    Loads,
    ewma::{AVOIDED, Load},
    fleet::Fleet,
    table::Table,
    weights::{Weights, below, unit},
};

/// Draws before the members are tried in order. Of members of which half is admitted, 1 in 256 choices comes to that.
const DRAWS: usize = 8;
/// The same while some are in slow start, who are drawn like the others but rarely taken.
const SLOW_DRAWS: usize = 64;
/// Turns of members that are not admitted, refused lately or are in slow start, before one is taken out of turn.
const TURNS: usize = 256;
/// Places of a table before the members are tried in order.
const STEPS: usize = 4096;

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

/// Members at `start..end` of the fleet.
#[derive(Debug)]
pub(super) struct Scope {
    start: u32,
    end: u32,
    pub(super) admitted: u32,
    /// The sum of its weights.
    pub(super) capacity: u64,
    /// When its oldest member became ready, see [`super::fleet::Ramp::oldest`].
    oldest: u32,
    /// `None`: all weights are equal.
    weights: Option<Weights>,
    turns: Turns,
    /// Made when it is needed.
    table: Option<Box<Table>>,
}

#[derive(Debug)]
enum Turns {
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
}

impl Scope {
    pub(super) fn new(method: Method, fleet: &Fleet, (start, end): (u32, u32), rng: &mut impl Rng) -> Self {
        let range = start as usize..end as usize;
        let weights = fleet.weights().map(|weights| &weights[range.clone()]);
        let uneven = weights.filter(|weights| weights.windows(2).any(|pair| pair[0] != pair[1]));
        let turns = match (method, uneven) {
            (Method::RoundRobin, Some(weights)) => {
                let turn = |(position, weight): (u32, &NonZeroU32)| Turn {
                    at: unit(rng) / f64::from(weight.get()),
                    position,
                };
                Turns::ByTime((start..end).zip(weights).map(turn).collect())
            }
            _ => Turns::Next(start + below(range.len().max(1), rng) as u32),
        };
        let by_draw = uneven.filter(|_| !matches!(turns, Turns::ByTime(_)));
        Self {
            start,
            end,
            admitted: end - start,
            capacity: match weights {
                Some(weights) => weights.iter().map(|weight| u64::from(weight.get())).sum(),
                None => u64::from(end - start),
            },
            oldest: fleet.ramp.as_ref().map_or(0, |ramp| ramp.oldest(range.start, range.end)),
            weights: by_draw.and_then(Weights::new),
            turns,
            table: None,
        }
    }

    pub(super) fn start(&self) -> u32 {
        self.start
    }

    pub(super) fn len(&self) -> u32 {
        self.end - self.start
    }

    /// The position of one that may be taken, if there is one.
    pub(super) fn pick<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &mut self,
        method: Method,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let candidates = if question.panic { self.len() } else { self.admitted };
        match (candidates, self.len()) {
            (0, _) => return None,
            (_, 1) => return Some(self.start as usize).filter(|position| question.takes(*position)),
            _ => {}
        }
        match (method, question.hash) {
            (Method::TwoChoices(measure), _) => self.two_choices(measure, question, rng),
            (Method::Hash(kind), Some(hash)) => self.by_hash(kind, hash, question),
            (Method::Random | Method::Hash(_), _) => self.at_random(question, rng),
            (Method::RoundRobin, _) => self.in_turn(question, rng),
        }
    }

    fn two_choices<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &self,
        measure: Measure,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let first = self.draw(question, rng)?;
        let second = if self.weights.is_none() && question.fleet.ramp.is_none() {
            // Another one.
            let (start, len) = (self.start as usize, self.len() as usize);
            let second = start + (first - start + 1 + below(len - 1, rng)) % len;
            if question.takes(second) { second } else { self.draw(question, rng)? }
        } else {
            // By weight and possibly the same one: so that what is not compared follows the weights exactly.
            self.draw(question, rng)?
        };
        let (mut best, mut least) = (first, question.cost(measure, first));
        if second != first {
            let cost = question.cost(measure, second);
            if cost < least {
                (best, least) = (second, cost);
            }
        }
        if least < AVOIDED {
            return Some(best);
        }
        self.spare(question, rng).or(Some(best))
    }

    fn at_random<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let drawn = self.draw(question, rng)?;
        if !question.avoids(drawn) {
            return Some(drawn);
        }
        self.spare(question, rng).or(Some(drawn))
    }

    fn in_turn<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &mut self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        // The first one that was passed over though it could have been taken: it is, if nobody better comes.
        let mut passed = None;
        let mut skips = |position: usize, oldest: u32, rng: &mut _| {
            let skips = !question.accepts(position, oldest, rng) || question.avoids(position);
            if skips {
                passed.get_or_insert(position);
            }
            skips
        };
        let (start, end, oldest) = (self.start, self.end, self.oldest);
        match &mut self.turns {
            Turns::Next(next) => {
                let after =
                    |position: usize| if position as u32 + 1 < end { position as u32 + 1 } else { start };
                for _ in 0..(end - start).min(TURNS as u32) {
                    let chosen = question.first_of(start, *next, end)?;
                    *next = after(chosen);
                    if !skips(chosen, oldest, rng) {
                        return Some(chosen);
                    }
                }
            }
            Turns::ByTime(turns) => {
                for _ in 0..TURNS.min(4 * turns.len()) {
                    let mut turn = turns.peek_mut()?;
                    let position = turn.position as usize;
                    // Who is passed over has had its turn, or it would come back all at once.
                    turn.at += 1.0 / question.fleet.weight(position);
                    drop(turn);
                    if question.takes(position) && !skips(position, oldest, rng) {
                        return Some(position);
                    }
                }
            }
        }
        passed.or_else(|| self.any(question, rng))
    }

    fn by_hash<L: ?Sized, U: Fn(usize) -> bool>(
        &mut self,
        kind: Kind,
        hash: u64,
        question: &Question<'_, L, U>,
    ) -> Option<usize> {
        let (start, end) = (self.start, self.end);
        let range = start as usize..end as usize;
        let table = self.table.get_or_insert_with(|| {
            let weights = question.fleet.weights().map(|weights| &weights[range.clone()]);
            Box::new(Table::new(kind, &question.keys[range.clone()], weights))
        });
        let mut walk = table.walk(hash).take(STEPS).map(|member| range.start + member);
        let found = walk.find(|position| question.takes(*position));
        found.or_else(|| {
            let from = start + (hash % u64::from(end - start)) as u32;
            question.first_of(start, from, end)
        })
    }

    fn draw_once<L: ?Sized, U>(&self, question: &Question<'_, L, U>, rng: &mut impl Rng) -> Option<usize>
    where
        U: Fn(usize) -> bool,
    {
        let drawn = match &self.weights {
            Some(weights) => weights.draw(rng),
            None => below(self.len() as usize, rng),
        };
        let position = self.start as usize + drawn;
        (question.takes(position) && question.accepts(position, self.oldest, rng)).then_some(position)
    }

    /// By weight, as far as that finds anybody.
    fn draw<L: ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let draws = if question.fleet.ramp.is_some() { SLOW_DRAWS } else { DRAWS };
        for _ in 0..draws {
            if let Some(position) = self.draw_once(question, rng) {
                return Some(position);
            }
        }
        self.any(question, rng)
    }

    /// One that has not refused lately, as far as drawing finds one.
    fn spare<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let mut draws = (0..DRAWS).filter_map(|_| self.draw_once(question, rng));
        draws.find(|position| !question.avoids(*position))
    }

    fn any<L: ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let from = self.start + below(self.len() as usize, rng) as u32;
        question.first_of(self.start, from, self.end)
    }
}

// === impl Question ===

impl<L: ?Sized, U: Fn(usize) -> bool> Question<'_, L, U> {
    fn takes(&self, position: usize) -> bool {
        (self.panic || self.fleet.admitted.has(position)) && (self.usable)(self.fleet.index(position))
    }

    /// Whether slow start lets it be taken now.
    fn accepts(&self, position: usize, oldest: u32, rng: &mut impl Rng) -> bool {
        match &self.fleet.ramp {
            Some(ramp) => ramp.accepts(position, oldest, unit(rng), self.now),
            None => true,
        }
    }

    /// The first that may be taken of `start..end`, beginning at `from` and going round.
    fn first_of(&self, start: u32, from: u32, end: u32) -> Option<usize> {
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
    fn cost(&self, measure: Measure, position: usize) -> f64 {
        let share = self.fleet.share(position, self.now);
        self.loads.load(self.fleet.index(position), |load| match measure {
            Measure::Ewma => load.cost(share, self.now),
            Measure::InFlight => load.busy(share, self.now),
        })
    }

    fn avoids(&self, position: usize) -> bool {
        self.loads.load(self.fleet.index(position), |load: &Load| load.is_avoided(self.now))
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
