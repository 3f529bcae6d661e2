//! Which endpoint gets the next request.
//!
//! All policies respect weights, and all take the same three things from outside: the [`Load`]s, what is usable (not
//! tried already, not ejected), and a generator.
//!
//! - **peak-EWMA** (default): two endpoints are drawn, the one with the lower [`Load::cost`] is taken. Drawing follows
//!   the weights, and the cost counts requests in flight per weight, so equal endpoints share by weight when idle and
//!   when full. Choosing among 1,000 costs as much as among 2.
//! - **least-request**: the same, comparing requests in flight alone.
//! - **round-robin**: each in turn; with unequal weights by the time of its next turn, as often as its weight says.
//!   It begins at a random place, so that many callers do not begin at the same one.
//! - **random**: by weight.
//!
//! When the draw finds nothing usable, the endpoints are tried in order from a random place, so the last usable one
//! is always found.
//!
//! It keeps no loads (they outlive a change of endpoints) and ejects nobody.

use std::{cmp::Ordering, collections::BinaryHeap, num::NonZeroU32, time::Instant};

use outrigger_proto::spec::Algorithm;
use rand_core::Rng;

pub mod ewma;

pub use ewma::Load;

/// Draws before the endpoints are tried in order.
const DRAWS: usize = 8;

/// The choice among the endpoints of one backend, in one worker. Made anew when the endpoints or the policy change.
#[derive(Debug)]
pub struct Picker {
    endpoints: usize,
    method: Method,
    /// `None`: all weights are equal.
    weights: Option<Weights>,
}

/// The loads of the endpoints, by the index that [`Picker::pick`] returns.
pub trait Loads {
    /// Calls with the load of an endpoint.
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R;
}

impl Loads for [Load] {
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R {
        read(&self[index])
    }
}

#[derive(Debug)]
enum Method {
    TwoChoices(Measure),
    Random,
    RoundRobin { next: usize },
    WeightedRoundRobin { turns: BinaryHeap<Turn> },
}

#[derive(Clone, Copy, Debug)]
enum Measure {
    Ewma,
    InFlight,
}

/// An alias table (Vose): an endpoint by weight from one random number, however many there are.
#[derive(Debug)]
struct Weights {
    /// Of each endpoint: up to which 32-bit number its column is itself, and who it is beyond.
    columns: Box<[(u32, u32)]>,
    /// Weight over mean weight.
    shares: Box<[f64]>,
}

/// When an endpoint's next turn comes, on a clock that a turn of weight 1 advances by 1.
#[derive(Clone, Copy, Debug)]
struct Turn {
    at: f64,
    index: u32,
}

impl Picker {
    pub fn new(policy: &Algorithm, weights: &[NonZeroU32], rng: &mut impl Rng) -> Self {
        let uneven = weights.windows(2).any(|pair| pair[0] != pair[1]);
        let method = match policy {
            Algorithm::PeakEwma => Method::TwoChoices(Measure::Ewma),
            Algorithm::LeastRequest => Method::TwoChoices(Measure::InFlight),
            Algorithm::Random | Algorithm::Consistent(..) => Method::Random,
            Algorithm::RoundRobin if uneven => {
                let turns = weights.iter().enumerate().map(|(index, weight)| Turn {
                    at: unit(rng) / f64::from(weight.get()),
                    index: index as u32,
                });
                Method::WeightedRoundRobin { turns: turns.collect() }
            }
            Algorithm::RoundRobin => Method::RoundRobin { next: below(weights.len().max(1), rng) },
        };
        let weights_table = uneven.then(|| Weights::new(weights));
        Self { endpoints: weights.len(), method, weights: weights_table }
    }

    /// One endpoint for which `usable` holds, or `None` if there is none.
    pub fn pick(
        &mut self,
        loads: &(impl Loads + ?Sized),
        usable: impl Fn(usize) -> bool,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<usize> {
        match self.endpoints {
            0 => return None,
            1 => return usable(0).then_some(0),
            _ => {}
        }
        match &mut self.method {
            Method::TwoChoices(measure) => {
                let measure = *measure;
                self.two_choices(measure, loads, usable, rng, now)
            }
            Method::Random => self.draw_usable(&usable, rng),
            Method::RoundRobin { next } => {
                let order = (0..self.endpoints).map(|step| (*next + step) % self.endpoints);
                let chosen = order.into_iter().find(|index| usable(*index))?;
                *next = (chosen + 1) % self.endpoints;
                Some(chosen)
            }
            Method::WeightedRoundRobin { turns } => {
                let weights = self.weights.as_ref()?;
                // Who is passed over has had its turn, or it would come back all at once.
                for _ in 0..4 * self.endpoints {
                    let mut turn = turns.peek_mut()?;
                    let index = turn.index as usize;
                    turn.at += 1.0 / weights.shares[index];
                    if usable(index) {
                        return Some(index);
                    }
                }
                (0..self.endpoints).find(|index| usable(*index))
            }
        }
    }

    fn two_choices(
        &self,
        measure: Measure,
        loads: &(impl Loads + ?Sized),
        usable: impl Fn(usize) -> bool,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<usize> {
        let first = self.draw_usable(&usable, rng)?;
        let second = match &self.weights {
            // By weight and possibly the same one: so that what is not compared follows the weights exactly.
            Some(weights) => weights.draw(rng),
            // Another one.
            None => (first + 1 + below(self.endpoints - 1, rng)) % self.endpoints,
        };
        let second = if usable(second) { second } else { self.draw_usable(&usable, rng)? };
        if first == second {
            return Some(first);
        }
        let cost = |index| {
            let share = self.weights.as_ref().map_or(1.0, |weights| weights.shares[index]);
            loads.load(index, |load| match measure {
                Measure::Ewma => load.cost(share, now),
                Measure::InFlight => f64::from(load.in_flight()) / share,
            })
        };
        Some(if cost(second) < cost(first) { second } else { first })
    }

    fn draw_usable(&self, usable: impl Fn(usize) -> bool, rng: &mut impl Rng) -> Option<usize> {
        for _ in 0..DRAWS {
            let index = match &self.weights {
                Some(weights) => weights.draw(rng),
                None => below(self.endpoints, rng),
            };
            if usable(index) {
                return Some(index);
            }
        }
        let start = below(self.endpoints, rng);
        (0..self.endpoints).map(|step| (start + step) % self.endpoints).find(|index| usable(*index))
    }
}

// === impl Weights ===

impl Weights {
    fn new(weights: &[NonZeroU32]) -> Self {
        let total: u64 = weights.iter().map(|weight| u64::from(weight.get())).sum();
        let mean = total as f64 / weights.len() as f64;
        let shares: Box<[f64]> = weights.iter().map(|weight| f64::from(weight.get()) / mean).collect();
        let mut columns: Box<[(u32, u32)]> =
            (0..weights.len() as u32).map(|index| (u32::MAX, index)).collect();
        let mut left = shares.to_vec();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..left.len()).partition(|index| left[*index] < 1.0);
        while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
            columns[poor] = ((left[poor] * f64::from(u32::MAX)) as u32, rich as u32);
            left[rich] -= 1.0 - left[poor];
            if left[rich] < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self { columns, shares }
    }

    fn draw(&self, rng: &mut impl Rng) -> usize {
        let random = rng.next_u64();
        let column = scale(random as u32, self.columns.len());
        let (own, alias) = self.columns[column];
        if (random >> 32) as u32 <= own { column } else { alias as usize }
    }
}

// === impl Turn ===

impl Ord for Turn {
    /// The earliest is the greatest, because the heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.total_cmp(&self.at).then(other.index.cmp(&self.index))
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

/// Uniform below `bound` but for 2^-32 (`bound` is a number of endpoints).
fn below(bound: usize, rng: &mut impl Rng) -> usize {
    scale(rng.next_u32(), bound)
}

fn scale(random: u32, bound: usize) -> usize {
    ((u64::from(random) * bound as u64) >> 32) as usize
}

fn unit(rng: &mut impl Rng) -> f64 {
    f64::from(rng.next_u32()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
