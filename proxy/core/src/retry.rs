//! What may be tried again, how often, and the budget that keeps retries from becoming the outage.

use std::time::Instant;

use http::Method;

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct Attempts {
    _private: (),
}

/// How an attempt ended before an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of the request can have been acted on: no connection, refused stream, unprocessed by GOAWAY, idle
    /// connection closed before a byte was written.
    Unsent,
    /// Sent, then reset or closed.
    Sent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// At another endpoint, if there is one.
    Again,
    GiveUp(GiveUp),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GiveUp {
    /// The upstream may have acted on it and it is not harmless to repeat.
    NotRepeatable,
    /// No attempts left.
    Exhausted,
    /// The budget is spent.
    Budget,
}

/// Retries of sent requests to one upstream, in one worker.
#[derive(Clone, Debug)]
pub struct Budget {
    _private: (),
}

impl Attempts {
    /// `bodyless`: the request has no body at all.
    pub fn new(_method: &Method, _bodyless: bool) -> Self {
        unimplemented!()
    }
    pub fn on_failure(&mut self, _failure: Failure, _budget: &mut Budget, _now: Instant) -> Next {
        unimplemented!()
    }
    /// Attempts that failed so far.
    pub fn failed(&self) -> u32 {
        unimplemented!()
    }
}

impl Budget {
    pub fn new(_percent: u32, _min_per_second: u32, _now: Instant) -> Self {
        unimplemented!()
    }
    /// Counts a request (its first attempt only).
    pub fn on_request(&mut self, _now: Instant) {
        unimplemented!()
    }
    /// Takes one retry out of the budget, if it is there.
    pub fn withdraw(&mut self, _now: Instant) -> bool {
        unimplemented!()
    }
}
