//! The task that sends spans: batch after batch, each until it is taken or its time is over.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::{
    tonic::{collector::trace::v1::ExportTraceServiceRequest, resource::v1::Resource},
    transform::{
        common::tonic::{Attributes, ResourceAttributesWithSchema},
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::trace::SpanData;
use outrigger_core::backoff::Backoff;
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::time::sleep;

use super::{FIRST_WAIT, LONGEST_WAIT, Lament, call::Failure, call::Sender};
use crate::{
    context::Ctx,
    trace::{Counters, Lost, On, Signal},
    worker::now,
};

struct Exporter<'a> {
    on: &'a On,
    counters: &'a Counters,
    sender: Sender,
    resource: ResourceAttributesWithSchema,
    backoff: Backoff,
    rng: SmallRng,
    lament: Lament,
}

/// Ends when the queue was closed and what was in it is sent.
pub(super) async fn run(ctx: Arc<Ctx>, sender: Sender, resource: Resource) {
    let Some(on) = ctx.tracing.on() else { return };
    let mut exporter = Exporter {
        on,
        counters: &ctx.tracing.counters,
        lament: Lament::new(Signal::Traces, &sender.export),
        sender,
        resource: ResourceAttributesWithSchema {
            attributes: Attributes(resource.attributes),
            schema_url: None,
        },
        backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
        rng: SmallRng::from_rng(&mut rand::rng()),
    };
    loop {
        let batch = on.spans.batch(on.settings.delay).await;
        if !batch.is_empty() {
            exporter.export(batch).await;
        } else if on.spans.is_closed() {
            return;
        }
    }
}

impl Exporter<'_> {
    async fn export(&mut self, batch: Vec<SpanData>) {
        // Whoever ends this before it is over can tell what was lost.
        self.counters.holds(batch.len() as u64);
        let delivered = self.deliver(batch).await;
        self.counters.holds(0);
        if let Err(wait) = delivered {
            self.pause(wait).await;
        }
    }

    /// Sends a batch until it is taken or given up; if that, says how long to leave the backend alone.
    async fn deliver(&mut self, batch: Vec<SpanData>) -> Result<(), Duration> {
        let count = batch.len() as u64;
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let request = ExportTraceServiceRequest { resource_spans };
        let until = now() + self.on.settings.patience;
        loop {
            let result = self.sender.send(&request).await;
            self.counters.called(Signal::Traces, result.is_ok());
            let failure = match result {
                Ok(taken) => {
                    self.backoff.on_success();
                    let rejected = taken.rejected.min(count);
                    self.counters.exported(count - rejected);
                    self.counters.lost(Lost::Rejected, rejected);
                    match rejected {
                        0 => self.lament.good(now()),
                        _ => self.lament.trouble(&format!("{rejected} rejected: {}", taken.message), now()),
                    }
                    return Ok(());
                }
                Err(failure) => failure,
            };
            self.lament.trouble(failure.why(), now());
            let wait = self.backoff.on_failure(&mut self.rng);
            let (again, wait) = match failure {
                Failure::Later { after, .. } => {
                    let wait = wait.max(after.unwrap_or_default());
                    let left = until.saturating_duration_since(now());
                    (wait < left && !self.on.spans.is_closed(), wait)
                }
                Failure::Never(_) => {
                    self.counters.lost(Lost::Refused, count);
                    return Err(wait);
                }
            };
            if !again {
                self.counters.lost(Lost::Backend, count);
                return Err(wait);
            }
            self.pause(wait).await;
        }
    }

    /// Nothing is sent meanwhile, unless this is the end.
    async fn pause(&self, wait: Duration) {
        tokio::select! {
            () = sleep(wait) => {}
            () = self.on.spans.closed() => {}
        }
    }
}
