//! How long to wait before the next try: `min(base * 2^n + rand(0, 0.3 * base), max)`.

use std::time::Duration;

use rand_core::Rng;

#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    tries: u32,
}

impl Backoff {
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, tries: 0 }
    }
    /// The wait after one more failure.
    pub fn on_failure(&mut self, _rng: &mut impl Rng) -> Duration {
        let _ = (self.base, self.max);
        unimplemented!()
    }
    pub fn on_success(&mut self) {
        self.tries = 0;
    }
    pub fn tries(&self) -> u32 {
        self.tries
    }
}
