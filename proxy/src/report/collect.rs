//! Once a second: what the workers have counted becomes a report.
//!
//! A worker that is busy is not waited for. What it gives later is in a later report, and what it counts until then stays
//! in its table, so nothing is lost by being late.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_proto::spec::{EdgeTraffic, ProxyEventKind};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, timeout_at},
};
use tracing::warn;

use super::near_end::NearEnd;
use crate::{
    context::Ctx,
    worker::{Ask, now},
};

/// As often as `outrigger top` shows something new.
const EVERY: Duration = Duration::from_secs(1);
/// A worker that is not asked to wait answers within its longest turn.
const PATIENCE: Duration = Duration::from_millis(200);

/// A worker's answer.
pub type Given = (usize, Vec<EdgeTraffic>);

/// Runs for as long as the process lives. `workers`: one for each, in the order of their numbers.
pub async fn run(ctx: Arc<Ctx>, workers: Vec<mpsc::Sender<Ask>>) {
    let reports = &ctx.telemetry.reports;
    // A worker is asked again when it has answered, so there is room for all.
    let (give, mut given) = mpsc::channel::<Given>(workers.len().max(1));
    let mut asked = vec![false; workers.len()];
    let mut near_end = NearEnd::default();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Some(message) = near_end.look(&ctx.credentials, SystemTime::now()) {
            warn!("{message}");
            reports.event(ProxyEventKind::CertificateNearEnd, message);
        }
        if reports.has_tables() {
            for (worker, asked) in workers.iter().zip(&mut asked) {
                // One that has too much to answer, or has ended, is asked the next time.
                *asked = *asked || worker.try_send(Ask::Report(give.clone())).is_ok();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        let mut edges = Vec::new();
        while asked.contains(&true)
            && let Ok(Some((worker, more))) = timeout_at(deadline, given.recv()).await
        {
            asked[worker] = false;
            edges.extend(more);
        }
        reports.close(edges, now());
    }
}
