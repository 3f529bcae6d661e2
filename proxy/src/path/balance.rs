//! Outbound step: which endpoint gets the request, and its share in that endpoint's load.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use outrigger_core::balance::Wanted;
use smallvec::SmallVec;

use crate::{
    cluster::{Cluster, Endpoint},
    error::Error,
    worker::{Worker, now},
};

/// Endpoints that could not take the request, by their index.
#[derive(Default)]
pub struct Tried(SmallVec<[usize; 4]>);

/// A request counted in an endpoint's load until it is dropped.
pub struct InFlight {
    endpoint: Rc<Endpoint>,
    dispatched: Instant,
    told: Cell<bool>,
}

/// An endpoint and its index in the cluster.
pub struct Picked {
    pub endpoint: Rc<Endpoint>,
    pub index: usize,
}

/// One endpoint that was not tried yet. `None`: all were.
pub fn pick(worker: &Worker, cluster: &Cluster, tried: &Tried, now: Instant) -> Option<Picked> {
    let usable = |index: usize| !tried.0.contains(&index);
    let index =
        cluster.picker.borrow_mut().pick(cluster, &Wanted::default(), usable, &mut *worker.rng(), now)?;
    Some(Picked { endpoint: Rc::clone(&cluster.endpoints[index]), index })
}

/// What to say when nothing could be picked: the last failure, or that there is nothing to pick from.
pub fn exhausted(cluster: &Cluster, last: Option<Error>) -> Error {
    last.unwrap_or_else(|| Error::NoEndpoints((&*cluster.label).into()))
}

// === impl Tried ===

impl Tried {
    pub fn add(&mut self, index: usize) {
        self.0.push(index);
    }
}

// === impl InFlight ===

impl InFlight {
    pub fn new(endpoint: &Rc<Endpoint>, now: Instant) -> Self {
        endpoint.load.borrow_mut().on_dispatch(now);
        Self { endpoint: Rc::clone(endpoint), dispatched: now, told: Cell::new(false) }
    }

    /// The answer's head is there.
    pub fn answered(&self, now: Instant) {
        self.told.set(true);
        self.endpoint.load.borrow_mut().on_response(self.since(now), now);
    }

    /// There will be no answer.
    pub fn failed(&self, now: Instant) {
        self.told.set(true);
        self.endpoint.load.borrow_mut().on_failure(self.since(now), now);
    }

    fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.dispatched)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let now = now();
        let mut load = self.endpoint.load.borrow_mut();
        if !self.told.get() {
            // The caller left before there was an answer: no fault of the endpoint's.
            load.on_cancel(self.since(now), now);
        }
        load.on_end(now);
    }
}
