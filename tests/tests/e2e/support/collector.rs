//! An OTLP receiver that a test controls: it keeps what it is sent, or answers as badly as the test says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::{
    collector::{metrics::v1::ExportMetricsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{AnyValue, KeyValue, any_value},
    metrics::v1::{Metric, metric, number_data_point},
};
use outrigger_lab::Pod;
use prost::Message;

use super::app::{App, Asked, Say};

/// Both protocols on one port: HTTP by its paths, gRPC by its services.
pub(crate) struct Collector {
    app: App,
    mood: Arc<AtomicU8>,
}

/// How requests are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Mood {
    Good,
    /// 503, or UNAVAILABLE.
    Errors,
    /// To itself.
    Redirects,
    /// What no OTLP backend says.
    Garbage,
    /// Never.
    Silence,
}

const MOODS: [Mood; 5] = [Mood::Good, Mood::Errors, Mood::Redirects, Mood::Garbage, Mood::Silence];

/// Labels by name.
pub(crate) type Labels = BTreeMap<String, String>;

impl Collector {
    pub(crate) fn start(pod: &Pod, port: u16, mood: Mood) -> Result<Self> {
        let mood = Arc::new(AtomicU8::new(mood as u8));
        let shared = Arc::clone(&mood);
        let app = App::start(pod, port, move |asked| {
            answer(MOODS[usize::from(shared.load(Ordering::SeqCst))], asked)
        })?;
        Ok(Self { app, mood })
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    pub(crate) fn requests(&self) -> u64 {
        self.app.count()
    }

    /// Spans received so far.
    pub(crate) fn spans(&self) -> Result<usize> {
        let mut spans = 0;
        for asked in self.app.asked().iter().filter(|asked| asked.path.contains("race")) {
            let request = ExportTraceServiceRequest::decode(payload(asked)?)?;
            let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
            spans += scopes.map(|scope| scope.spans.len()).sum::<usize>();
        }
        Ok(spans)
    }

    /// The newest value of each counter of this name, by its labels, for each resource; names as in Prometheus.
    pub(crate) fn counters(&self, resource_key: &str, name: &str) -> Result<BTreeMap<(String, Labels), u64>> {
        let mut newest = BTreeMap::new();
        for asked in self.app.asked().iter().filter(|asked| asked.path.contains("etrics")) {
            let request = ExportMetricsServiceRequest::decode(payload(asked)?)?;
            for resource in request.resource_metrics {
                let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
                let whose = labels(&attributes).remove(resource_key).unwrap_or_default();
                let metrics = resource.scope_metrics.iter().flat_map(|scope| &scope.metrics);
                for metric in metrics.filter(|metric| is_called(metric, name)) {
                    for (labels, value) in points(metric) {
                        newest.insert((whose.clone(), labels), value);
                    }
                }
            }
        }
        Ok(newest)
    }
}

fn answer(mood: Mood, asked: &Asked) -> Say {
    let grpc = asked
        .headers
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    match mood {
        Mood::Good => Say::ok("").field_unless(grpc, "content-type", "application/x-protobuf"),
        Mood::Errors if grpc => Say::grpc(14),
        Mood::Errors => Say::status(503),
        Mood::Redirects => Say::status(307).field("location", &asked.path),
        Mood::Garbage => {
            Say::ok(vec![0xff; 3000]).field_unless(grpc, "content-type", "application/x-protobuf")
        }
        Mood::Silence => Say::nothing(),
    }
}

/// The protobuf message of a request: of gRPC without its prefix.
fn payload(asked: &Asked) -> Result<&[u8]> {
    if asked.path.starts_with("/v1/") {
        return Ok(&asked.body);
    }
    asked.body.get(5..).with_context(|| format!("{} bytes are no gRPC message", asked.body.len()))
}

/// Whether it is what Prometheus would call `name`.
fn is_called(metric: &Metric, name: &str) -> bool {
    let plain = metric.name.replace('.', "_");
    let bare = name.strip_suffix("_total").unwrap_or(name);
    plain == name || plain == bare
}

fn points(metric: &Metric) -> Vec<(Labels, u64)> {
    let Some(metric::Data::Sum(sum)) = &metric.data else { return Vec::new() };
    let of = |point: &opentelemetry_proto::tonic::metrics::v1::NumberDataPoint| {
        let value = match point.value {
            Some(number_data_point::Value::AsInt(value)) => u64::try_from(value).unwrap_or(0),
            Some(number_data_point::Value::AsDouble(value)) => value as u64,
            None => 0,
        };
        (labels(&point.attributes), value)
    };
    sum.data_points.iter().map(of).collect()
}

fn labels(attributes: &[KeyValue]) -> Labels {
    let text = |value: &Option<AnyValue>| match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        Some(any_value::Value::BoolValue(yes)) => yes.to_string(),
        Some(_) | None => String::new(),
    };
    attributes.iter().map(|pair| (pair.key.clone(), text(&pair.value))).collect()
}
