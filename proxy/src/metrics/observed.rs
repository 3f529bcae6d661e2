//! What the registry does not count itself: gauges and the counts of other parts, gathered when somebody wants numbers.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::merge;
use crate::{
    context::Ctx,
    observe::events,
    trace,
    worker::{Ask, now},
};

/// What a worker that is busy gets to answer before it is left out.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often idle series are looked for, at least and at most.
const SWEEPS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// What only whoever asks knows.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub ready: bool,
    pub draining: bool,
    pub certificate_begins: Option<SystemTime>,
    pub certificate_ends: Option<SystemTime>,
    /// Configurations in force so far, the one from disk included.
    pub config_generation: u64,
    pub access_log_dropped: u64,
    /// Lines that the filters of the access log left out.
    pub access_log_filtered: u64,
    /// What workers could not tell the control runtime.
    pub transitions_dropped: u64,
    /// Endpoints that are ejected, by service.
    pub ejected: Vec<(String, u64)>,
    /// Circuits that are not closed, by service and state.
    pub circuits: Vec<(String, &'static str, u64)>,
    pub halls: Vec<Hall>,
    /// Sorted by service.
    pub upstreams: Vec<Upstream>,
    pub spans: trace::Numbers,
    pub reports: Reports,
    /// Whether the redirect rules hold; `None`: that cannot be proved.
    pub capture_holds: Option<bool>,
    pub merges: Vec<merge::Standing>,
}

/// A bulkhead as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hall {
    pub name: String,
    pub in_flight: u64,
    /// `None`: no limit in all.
    pub limit: Option<u64>,
    pub queued: u64,
}

/// A service that is called, as one worker or all of them see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstream {
    pub service: String,
    /// HTTP connections.
    pub open: u64,
    pub idle: u64,
    /// Requests that may be sent again now.
    pub retries_left: u64,
}

/// What became of the reports to control planes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reports {
    pub acknowledged: u64,
    /// Two that were made one because many waited.
    pub merged: u64,
    pub dropped: u64,
    /// By a control plane that did not want them.
    pub refused: u64,
    /// Now.
    pub waiting: u64,
    pub events_dropped: u64,
}

/// Asks everybody who knows; a worker that does not answer is left out.
pub async fn observe(ctx: &Ctx, workers: &[mpsc::Sender<Ask>]) -> Observed {
    let upstreams = upstreams(workers).await;
    let state = ctx.readiness.state();
    let validity = ctx.credentials.current().map(|credential| credential.validity());
    Observed {
        ready: state.ready,
        draining: state.draining,
        certificate_begins: validity.map(|validity| validity.not_before),
        certificate_ends: validity.map(|validity| validity.not_after),
        config_generation: ctx.snapshot.generation(),
        access_log_dropped: ctx.telemetry.access_log_dropped(),
        access_log_filtered: ctx.telemetry.access_log_filtered(),
        transitions_dropped: ctx.events.dropped(),
        ejected: ejected(ctx),
        circuits: circuits(ctx),
        halls: ctx.limits.numbers(),
        upstreams,
        spans: ctx.tracing.numbers(),
        reports: ctx.telemetry.reports.standing(),
        capture_holds: ctx.capture_check.holds(),
        merges: ctx.merges.standing(),
    }
}

/// Lets idle series go, until the process ends. A worker without traffic is asked to let go too.
pub async fn keep(ctx: Arc<Ctx>, workers: Vec<mpsc::Sender<Ask>>) {
    let Some(idle) = ctx.config.metrics_idle else { return };
    let [least, most] = SWEEPS;
    let mut ticks = time::interval((idle / 10).clamp(least, most));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if ctx.telemetry.metrics.sweep(now()) {
            for worker in &workers {
                // One that is too busy to be asked lets go by itself.
                let _ = worker.try_send(Ask::LetGo);
            }
        }
    }
}

/// Of every backend that is called, also where none is ejected: a figure that is 0 can be told from one that is gone.
fn ejected(ctx: &Ctx) -> Vec<(String, u64)> {
    let called = ctx.bulletin.calling().current();
    let mut counts: BTreeMap<_, _> = called.iter().map(|backend| (backend.to_string(), 0)).collect();
    counts.extend(ctx.events.ejected());
    counts.into_iter().collect()
}

fn circuits(ctx: &Ctx) -> Vec<(String, &'static str, u64)> {
    let mut counts = BTreeMap::new();
    for transition in ctx.events.standing() {
        let state = (transition.backend.to_string(), events::circuit(transition.to));
        *counts.entry(state).or_insert(0) += 1;
    }
    counts.into_iter().map(|((service, state), count)| (service, state, count)).collect()
}

async fn upstreams(workers: &[mpsc::Sender<Ask>]) -> Vec<Upstream> {
    let asked: Vec<_> = workers
        .iter()
        .filter_map(|worker| {
            let (tell, answer) = oneshot::channel();
            worker.try_send(Ask::Upstreams(tell)).ok()?;
            Some(answer)
        })
        .collect();
    let deadline = time::Instant::now() + PATIENCE;
    let mut all: BTreeMap<String, Upstream> = BTreeMap::new();
    for answer in asked {
        let Ok(Ok(upstreams)) = time::timeout_at(deadline, answer).await else { continue };
        for one in upstreams {
            let sum = all.entry(one.service).or_default();
            sum.open += one.open;
            sum.idle += one.idle;
            sum.retries_left += one.retries_left;
        }
    }
    all.into_iter().map(|(service, sum)| Upstream { service, ..sum }).collect()
}
