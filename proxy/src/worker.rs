//! A worker: one thread, one single-threaded runtime, and everything that its connections share without locks.
//!
//! Whatever hangs off a [`Worker`] is `Rc`/`RefCell`/`Cell` and never crosses a thread; a `RefCell` is never held over an
//! await. What workers share among each other is in [`Ctx`] and changes rarely.

use std::{
    cell::{RefCell, RefMut},
    rc::Rc,
    sync::Arc,
};

use outrigger_core::Snapshot;
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
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
}
