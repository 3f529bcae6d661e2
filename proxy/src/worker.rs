//! A worker: one thread, one single-threaded runtime, and everything that its connections share without locks.
//!
//! Whatever hangs off a [`Worker`] is `Rc`/`RefCell`/`Cell` and never crosses a thread; a `RefCell` is never held over an
//! await. What workers share among each other is in [`Ctx`] and changes rarely.

use std::{
    cell::{RefCell, RefMut},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use outrigger_core::snapshot::Snapshot;
use rand::{Rng as _, SeedableRng, rngs::SmallRng};

use crate::{
    cluster::Clusters,
    context::Ctx,
    drain,
    shared::{Held, Reader},
    telemetry,
};

pub struct Worker {
    pub ctx: Arc<Ctx>,
    /// From 0; for names and logs only.
    pub id: usize,
    pub telemetry: telemetry::Shard,
    /// Tells connections when to go.
    pub drain: drain::Local,
    /// Endpoints with their load and connections, and what else the data path keeps.
    pub clusters: Clusters,
    snapshot: RefCell<Reader<Snapshot>>,
    rng: RefCell<SmallRng>,
}

impl Worker {
    /// Called on the worker's own thread.
    pub fn new(ctx: Arc<Ctx>, id: usize) -> Rc<Self> {
        Rc::new(Self {
            id,
            telemetry: ctx.telemetry.shard(),
            drain: drain::Local::new(),
            clusters: Clusters::new(&ctx.credentials),
            snapshot: RefCell::new(ctx.snapshot.reader()),
            rng: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            ctx,
        })
    }

    /// The newest snapshot: once per request or connection, then passed down.
    pub fn snapshot(&self) -> Held<Snapshot> {
        self.snapshot.borrow_mut().current().clone()
    }

    /// Fast, not secret: for picks and jitter.
    pub fn rng(&self) -> RefMut<'_, SmallRng> {
        self.rng.borrow_mut()
    }

    /// Names one request or connection in answers and logs.
    pub fn next_id(&self) -> u64 {
        self.rng().next_u64()
    }
}

/// The time as core's machines want it, and as tests that pause the clock see it. Once per event.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
