//! Peak-EWMA load of one endpoint, as one worker sees it.

use std::time::{Duration, Instant};

/// Latency seen, and requests in flight.
#[derive(Clone, Debug)]
pub struct Load {
    in_flight: u32,
}

impl Load {
    pub fn new(_now: Instant) -> Self {
        unimplemented!()
    }
    pub fn on_dispatch(&mut self, _now: Instant) {
        unimplemented!()
    }
    /// The answer's head came, `latency` after the dispatch. The request stays in flight until [`Self::on_end`].
    pub fn on_response(&mut self, _latency: Duration, _now: Instant) {
        unimplemented!()
    }
    /// It failed before an answer's head (connect failure, reset, timeout). Also until [`Self::on_end`].
    pub fn on_failure(&mut self, _latency: Duration, _now: Instant) {
        unimplemented!()
    }
    /// The caller went away `elapsed` after the dispatch, before an answer's head. Also until [`Self::on_end`].
    pub fn on_cancel(&mut self, _elapsed: Duration, _now: Instant) {
        unimplemented!()
    }
    /// Exactly once per dispatch, at the very end (body complete, failed, dropped).
    pub fn on_end(&mut self, _now: Instant) {
        unimplemented!()
    }
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }
    /// The decayed estimate; `None` before the first answer.
    pub fn latency(&self, _now: Instant) -> Option<Duration> {
        unimplemented!()
    }
    /// What a request there would cost now, in nanoseconds times requests. `share`: weight over mean weight.
    pub fn cost(&self, _share: f64, _now: Instant) -> f64 {
        unimplemented!()
    }
}
