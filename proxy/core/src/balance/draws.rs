//! Choosing by drawing: at random by weight, or the better of two.

use rand_core::Rng;

use super::{
    Loads,
    ewma::AVOIDED,
    fleet::Fleet,
    question::{Measure, Question},
    weights::{Weights, below},
};

/// Draws before the members are tried in order. Of members of which half is admitted, 1 in 256 choices comes to that.
const DRAWS: usize = 8;
/// The same while some are in slow start, who are drawn like the others but rarely taken.
const SLOW_DRAWS: usize = 64;

/// The members at `start..end`.
#[derive(Debug)]
pub(super) struct Draws {
    start: u32,
    end: u32,
    /// See [`super::fleet::Ramp::oldest`].
    oldest: u32,
    /// `None`: all weights are equal.
    weights: Option<Weights>,
}

impl Draws {
    pub(super) fn new(fleet: &Fleet, start: u32, end: u32) -> Self {
        let weights = fleet.uneven(start, end).map(Weights::new);
        Self { start, end, oldest: fleet.oldest(start, end), weights }
    }

    /// The better of two.
    pub(super) fn two_choices<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &self,
        measure: Measure,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let first = self.draw(question, rng)?;
        let second = if self.weights.is_none() && question.fleet.ramp.is_none() {
            // Another one.
            let (start, len) = (self.start as usize, self.len());
            let mut second = first + 1 + below(len - 1, rng);
            second -= if second >= start + len { len } else { 0 };
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

    pub(super) fn at_random<L: Loads + ?Sized, U: Fn(usize) -> bool>(
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

    /// By weight, as far as that finds anybody.
    fn draw<L: ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let draws = if question.fleet.ramp.is_some() { SLOW_DRAWS } else { DRAWS };
        let drawn = (0..draws).find_map(|_| self.draw_once(question, rng));
        drawn.or_else(|| {
            let from = self.start + below(self.len(), rng) as u32;
            question.first_of(self.start, from, self.end)
        })
    }

    /// One that has not refused lately, as far as drawing finds one.
    fn spare<L: Loads + ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let mut drawn = (0..DRAWS).filter_map(|_| self.draw_once(question, rng));
        drawn.find(|position| !question.avoids(*position))
    }

    fn draw_once<L: ?Sized, U: Fn(usize) -> bool>(
        &self,
        question: &Question<'_, L, U>,
        rng: &mut impl Rng,
    ) -> Option<usize> {
        let drawn = match &self.weights {
            Some(weights) => weights.draw(rng),
            None => below(self.len(), rng),
        };
        let position = self.start as usize + drawn;
        (question.takes(position) && question.accepts(position, self.oldest, rng)).then_some(position)
    }

    fn len(&self) -> usize {
        (self.end - self.start) as usize
    }
}
