//! The task that sends metrics: the numbers of now, once in an interval. What could not be sent is not sent again, because
//! the next ones, being totals, say more.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};

use super::{Lament, call::Sender};
use crate::{
    context::Ctx,
    metrics,
    trace::Signal,
    worker::{Ask, now},
};

/// Ends after `end`.
pub(super) async fn run(
    ctx: Arc<Ctx>,
    workers: Vec<mpsc::Sender<Ask>>,
    mut sender: Sender,
    every: Duration,
    resource: Resource,
    end: Arc<Notify>,
) {
    let mut lament = Lament::new(Signal::Metrics, &sender.export);
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, when there is nothing to tell.
    ticks.tick().await;
    let mut last = false;
    while !last {
        tokio::select! {
            _ = ticks.tick() => {}
            // What has happened since is told too.
            () = end.notified() => last = true,
        }
        let observed = metrics::observe(&ctx, &workers).await;
        let request = metrics::otlp::request(&ctx.telemetry.metrics, &observed, resource.clone());
        let result = sender.send(&request).await;
        ctx.tracing.counters.called(Signal::Metrics, result.is_ok());
        match result {
            Ok(taken) if taken.rejected > 0 => {
                lament.trouble(&format!("{} data points rejected: {}", taken.rejected, taken.message), now());
            }
            Ok(_) => lament.good(now()),
            Err(failure) => lament.trouble(failure.why(), now()),
        }
    }
}
