//! A worker: one thread, one single-threaded runtime, and everything that its connections share without locks.
//!
//! Whatever hangs off a [`Worker`] is `Rc`/`RefCell`/`Cell` and never crosses a thread; a `RefCell` is never held over an
//! await. What workers share among each other is in [`Ctx`] and changes rarely.

use std::{
    cell::{RefCell, RefMut},
    io,
    net::TcpListener as StdTcpListener,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use outrigger_core::snapshot::Snapshot;
use rand::{Rng as _, SeedableRng, rngs::SmallRng};
use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions},
    sync::{mpsc, oneshot},
    task,
};

use crate::{
    cluster::Clusters,
    context::Ctx,
    drain::{self, Phase},
    health, metrics,
    observe::bulletin,
    path::accept::{self, Duty},
    report,
    shared::{Held, Reader},
    telemetry,
    trace::Tracer,
};

pub struct Worker {
    pub ctx: Arc<Ctx>,
    /// From 0; for names and logs only.
    pub id: usize,
    pub telemetry: telemetry::Shard,
    pub tracer: Tracer,
    /// Tells connections when to go.
    pub drain: drain::Local,
    /// Upstreams and the connections to them.
    pub clusters: Clusters,
    snapshot: RefCell<Reader<Snapshot>>,
    rng: RefCell<SmallRng>,
}

/// What the control runtime asks a worker.
pub enum Ask {
    /// For `/clusters`.
    Clusters(oneshot::Sender<serde_json::Value>),
    /// What there was since the last report.
    Report(mpsc::Sender<report::Given>),
    /// What is called, for metrics.
    Upstreams(oneshot::Sender<Vec<metrics::Upstream>>),
    /// Series have been idle: the worker is to forget them.
    LetGo,
}

/// The monotonic time, as the core wants it: from tokio's clock, so that tests can pause it.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// The life of a worker's thread: listens, and ends when the drain is over. `listening` is told when it accepts.
pub fn run(
    ctx: Arc<Ctx>,
    id: usize,
    listeners: Vec<(StdTcpListener, Duty)>,
    mut asks: mpsc::Receiver<Ask>,
    listening: oneshot::Sender<()>,
) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let worker = Worker::new(ctx, id);
        for (listener, duty) in listeners {
            let listener = TcpListener::from_std(listener)?;
            task::spawn_local(accept::run(Rc::clone(&worker), listener, duty));
        }
        task::spawn_local(bulletin::follow(Rc::clone(&worker)));
        if id == 0 {
            task::spawn_local(health::run(Rc::clone(&worker)));
        }
        // Whoever waits for it may be gone: then the process is ending already.
        let _ = listening.send(());
        let local = worker.drain.clone();
        let drain = worker.ctx.drain.clone();
        let following = drain.clone();
        task::spawn_local(async move { local.follow(&following).await });
        let over = drain.reached(Phase::Over);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                Some(ask) = asks.recv() => worker.answer(ask),
            }
        }
        // Leaving drops the runtime, which cuts what is still open.
    })
}

impl Worker {
    /// Called on the worker's own thread.
    pub fn new(ctx: Arc<Ctx>, id: usize) -> Rc<Self> {
        Rc::new(Self {
            id,
            telemetry: ctx.telemetry.shard(),
            tracer: Tracer::new(&ctx.tracing, now()),
            drain: drain::Local::new(),
            clusters: Clusters::new(&ctx.credentials, ctx.config.workers),
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

    fn answer(&self, ask: Ask) {
        match ask {
            // Who asked may have given up.
            Ask::Clusters(answer) => _ = answer.send(crate::admin::dump::endpoints(self)),
            Ask::Report(answer) => self.telemetry.report(self.id, &answer),
            Ask::Upstreams(answer) => _ = answer.send(self.clusters.upstreams()),
            Ask::LetGo => self.telemetry.let_go(),
        }
    }
}
