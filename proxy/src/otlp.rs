//! Spans and metrics to a backend, by OTLP: gRPC or protobuf over HTTP, TLS if it is wanted, one connection per signal.
//!
//! ```text
//!  workers ─▶ queue (bounded) ─▶ spans: batch ──┐
//!                                               ├─▶ Sender: connect, encode, call ─▶ taken │ later │ never
//!  registry ────▶ push: once in an interval ────┘          ▲                                   │
//!                                                          └────── wait, longer each time ─────┘
//! ```
//!
//! All of it runs on the control runtime, and none of it without an endpoint. Nobody waits for it: while a backend is
//! away, slow or wrong, spans gather in the queue and what has no room is dropped and counted.
//!
//! Both protocols are one POST, so both are spoken by the HTTP client that is there already, which gives the same bounds
//! for both: how long a call takes, how much of an answer is read. The SDK's exporters are not used: they read the
//! environment behind our back, and keep to themselves what a backend has refused.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value},
    resource::v1::Resource,
};
use outrigger_certs::SpiffeId;
use tokio::{
    sync::{Notify, mpsc},
    task::{self, JoinHandle},
    time::timeout,
};
use tracing::{info, warn};

use crate::{
    config::{Config, otel::Export},
    context::Ctx,
    trace::{Lost, Signal},
    worker::Ask,
};

mod answer;
mod call;
mod connect;
mod push;
mod spans;
mod tls;

#[cfg(test)]
mod tests;

pub use call::{Failure, Sender};

/// Between calls of a backend that is in trouble, at first and at most.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A backend that stays in trouble is mentioned so often.
const REPEAT: Duration = Duration::from_secs(300);

/// The tasks that send.
pub struct Exporters {
    ctx: Arc<Ctx>,
    spans: Option<JoinHandle<()>>,
    metrics: Option<(JoinHandle<()>, Arc<Notify>)>,
}

/// What is wrong with the files that settings name.
pub fn check(config: &Config) -> Vec<String> {
    let otel = &config.otel;
    let (traces, metrics) = (otel.traces.as_ref(), otel.metrics.as_ref());
    let exports = [traces.map(|traces| &traces.export), metrics.map(|metrics| &metrics.export)];
    let wrong = |export: &Export| if export.endpoint.tls { tls::config(export).err() } else { None };
    let mut problems: Vec<String> = exports.into_iter().flatten().filter_map(wrong).collect();
    problems.dedup();
    problems
}

/// Starts what is configured.
pub fn start(ctx: &Arc<Ctx>, identity: &SpiffeId, workers: &[mpsc::Sender<Ask>]) -> Exporters {
    let otel = &ctx.config.otel;
    let resource = || resource(&ctx.config, identity);
    let metrics = otel.metrics.as_ref().map(|settings| {
        let sender = Sender::new(settings.export.clone(), Signal::Metrics, ctx.config.mark);
        let end = Arc::<Notify>::default();
        let (ctx, every) = (Arc::clone(ctx), settings.every);
        let push = push::run(ctx, workers.to_vec(), sender, every, resource(), Arc::clone(&end));
        (task::spawn_local(push), end)
    });
    let spans = ctx.tracing.on().map(|on| {
        let sender = Sender::new(on.settings.export.clone(), Signal::Traces, ctx.config.mark);
        task::spawn_local(spans::run(Arc::clone(ctx), sender, resource()))
    });
    Exporters { ctx: Arc::clone(ctx), spans, metrics }
}

impl Exporters {
    /// Sends what there is; gives up after `within`.
    pub async fn flush(self, within: Duration) {
        let Self { ctx, spans, metrics } = self;
        if let Some(on) = ctx.tracing.on() {
            on.spans.close();
        }
        let (mut pushing, end) = metrics.unzip();
        if let Some(end) = end {
            end.notify_one();
        }
        let mut sending = spans;
        let both = async {
            for task in [&mut sending, &mut pushing].into_iter().flatten() {
                // One that has failed has nothing more to send.
                let _ = task.await;
            }
        };
        if timeout(within, both).await.is_ok() {
            return;
        }
        for task in [&sending, &pushing].into_iter().flatten() {
            task.abort();
        }
        // A batch that is being sent may arrive yet, but nobody will hear of it.
        let left = ctx.tracing.numbers().queued;
        ctx.tracing.counters.lost(Lost::Shutdown, left);
        if left > 0 {
            warn!(spans = left, "the telemetry backend did not take the last spans in time");
        }
    }
}

/// Who sends: what is configured, and where that says nothing, who this proxy is. Of two proxies on one machine the
/// instances differ, as they do for a scraper.
pub fn resource(config: &Config, identity: &SpiffeId) -> Resource {
    let port = config.status_address.port();
    let instance = config.addresses.first().map(|ip| SocketAddr::new(*ip, port).to_string());
    let own = [
        ("service.name", Some(identity.service_account().to_owned())),
        ("service.namespace", Some(identity.namespace().to_owned())),
        ("service.instance.id", instance),
        ("outrigger.identity", Some(identity.to_string())),
        ("telemetry.sdk.name", Some("outrigger".to_owned())),
        ("telemetry.sdk.language", Some("rust".to_owned())),
        ("telemetry.sdk.version", Some(env!("CARGO_PKG_VERSION").to_owned())),
    ];
    let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    let mut all: BTreeMap<String, String> = own.collect();
    all.extend(config.otel.resource.clone());
    let attribute = |(key, value)| KeyValue {
        key,
        value: Some(AnyValue { value: Some(any_value::Value::StringValue(value)) }),
        ..KeyValue::default()
    };
    Resource { attributes: all.into_iter().map(attribute).collect(), ..Resource::default() }
}

/// Says what is wrong with a backend, and when it is not any more: once, and then now and again.
struct Lament {
    signal: Signal,
    endpoint: String,
    since: Option<Instant>,
    said: Option<Instant>,
}

impl Lament {
    fn new(signal: Signal, export: &Export) -> Self {
        Self { signal, endpoint: export.endpoint.to_string(), since: None, said: None }
    }

    fn trouble(&mut self, why: &str, now: Instant) {
        self.since.get_or_insert(now);
        if self.said.is_none_or(|said| now.saturating_duration_since(said) >= REPEAT) {
            self.said = Some(now);
            let (signal, endpoint) = (self.signal.name(), &self.endpoint);
            warn!(
                signal,
                endpoint,
                "the telemetry backend does not take what is sent: {}",
                why.escape_debug()
            );
        }
    }

    fn good(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.said = None;
            let (signal, endpoint) = (self.signal.name(), &self.endpoint);
            let after = now.saturating_duration_since(since);
            info!(signal, endpoint, ?after, "the telemetry backend takes what is sent again");
        }
    }
}
