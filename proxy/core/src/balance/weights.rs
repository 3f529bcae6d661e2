//! Random numbers, and a draw by weight.

use std::num::NonZeroU32;

use rand_core::Rng;

/// An alias table (Vose): one of a range by weight from one random number, however many there are.
#[derive(Debug)]
pub(super) struct Weights {
    /// Of each: up to which 32-bit number its column is itself, and who it is beyond.
    pub(super) columns: Box<[(u32, u32)]>,
}

impl Weights {
    pub(super) fn new(weights: &[NonZeroU32]) -> Self {
        let total: u64 = weights.iter().map(|weight| u64::from(weight.get())).sum();
        let per_mean = weights.len() as f64 / total as f64;
        let mut left: Vec<f64> = weights.iter().map(|weight| f64::from(weight.get()) * per_mean).collect();
        let mut columns: Box<[(u32, u32)]> =
            (0..weights.len() as u32).map(|index| (u32::MAX, index)).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..left.len() as u32).partition(|index| left[*index as usize] < 1.0);
        while let (Some(poor), Some(&rich)) = (small.pop(), large.last()) {
            let needs = left[poor as usize];
            columns[poor as usize] = ((needs * f64::from(u32::MAX)) as u32, rich);
            let rest = &mut left[rich as usize];
            *rest -= 1.0 - needs;
            if *rest < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Self { columns }
    }

    pub(super) fn draw(&self, rng: &mut impl Rng) -> usize {
        let random = rng.next_u64();
        let column = scale(random as u32, self.columns.len());
        let (own, alias) = self.columns[column];
        if (random >> 32) as u32 <= own { column } else { alias as usize }
    }
}

/// Uniform below `bound` but for 2^-32 (`bound` is a number of endpoints).
pub(super) fn below(bound: usize, rng: &mut impl Rng) -> usize {
    scale(rng.next_u32(), bound)
}

fn scale(random: u32, bound: usize) -> usize {
    ((u64::from(random) * bound as u64) >> 32) as usize
}

/// Uniform below 1.
pub(super) fn unit(rng: &mut impl Rng) -> f64 {
    f64::from(rng.next_u32()) / (f64::from(u32::MAX) + 1.0)
}
