//! The families as OTLP: what the exporter sends in place of, or besides, being scraped.
//!
//! Sums and histograms are cumulative, with the bounds that a scrape has. A series starts when the process did, or when it
//! came (back) into being; so a series that had left is seen to begin anew. Where the clock was set back since, that is left
//! open: backends refuse what starts after it ends.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    metrics::v1::{
        self as wire, AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, exemplar, metric, number_data_point,
    },
    resource::v1::Resource,
};

use super::{
    BOUNDS_US, Observed, Registry,
    families::{Distribution, Exemplar, Families, Family, Kind, Labels, Series, Value},
};

/// All numbers of now. `resource`: who sends them.
pub fn request(registry: &Registry, observed: &Observed, resource: Resource) -> ExportMetricsServiceRequest {
    encode(&registry.families(observed), registry.started(), SystemTime::now(), resource)
}

/// `started`: when the process was.
pub fn encode(
    families: &Families,
    started: SystemTime,
    now: SystemTime,
    resource: Resource,
) -> ExportMetricsServiceRequest {
    let moment = Moment { started: nanos(started), now: nanos(now) };
    let metrics = families.0.iter().filter(|family| !family.series.is_empty());
    let scope = InstrumentationScope {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_metrics = ScopeMetrics {
        scope: Some(scope),
        metrics: metrics.map(|family| moment.metric(family)).collect(),
        schema_url: String::new(),
    };
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics {
            resource: Some(resource),
            scope_metrics: vec![scope_metrics],
            schema_url: String::new(),
        }],
    }
}

struct Moment {
    started: u64,
    now: u64,
}

impl Moment {
    fn metric(&self, family: &Family) -> Metric {
        let cumulative = AggregationTemporality::Cumulative.into();
        let numbers = || family.series.iter().map(|series| self.number(series)).collect();
        let data = match family.kind {
            Kind::Counter => metric::Data::Sum(Sum {
                data_points: numbers(),
                aggregation_temporality: cumulative,
                is_monotonic: true,
            }),
            Kind::Gauge | Kind::Info => metric::Data::Gauge(Gauge { data_points: numbers() }),
            Kind::Histogram => metric::Data::Histogram(Histogram {
                data_points: family.series.iter().filter_map(|series| self.histogram(series)).collect(),
                aggregation_temporality: cumulative,
            }),
        };
        let suffix = if family.kind == Kind::Info { "_info" } else { "" };
        Metric {
            name: format!("{}{suffix}", family.name),
            description: family.help.to_owned(),
            unit: family.unit.ucum().to_owned(),
            metadata: Vec::new(),
            data: Some(data),
        }
    }

    fn start_of(&self, series: &Series) -> u64 {
        Some(series.created.map_or(self.started, nanos)).filter(|start| *start <= self.now).unwrap_or(0)
    }

    fn number(&self, series: &Series) -> NumberDataPoint {
        let value = match &series.value {
            Value::Whole(value) => number_data_point::Value::AsInt(i64::try_from(*value).unwrap_or(i64::MAX)),
            Value::Micros(micros) => number_data_point::Value::AsDouble(seconds(*micros)),
            Value::Distribution(durations) => number_data_point::Value::AsInt(durations.count() as i64),
        };
        NumberDataPoint {
            attributes: attributes(&series.labels),
            start_time_unix_nano: self.start_of(series),
            time_unix_nano: self.now,
            value: Some(value),
            ..NumberDataPoint::default()
        }
    }

    /// `None`: it is none.
    fn histogram(&self, series: &Series) -> Option<HistogramDataPoint> {
        let durations: &Distribution = match &series.value {
            Value::Distribution(durations) => durations,
            Value::Whole(_) | Value::Micros(_) => return None,
        };
        Some(HistogramDataPoint {
            attributes: attributes(&series.labels),
            start_time_unix_nano: self.start_of(series),
            time_unix_nano: self.now,
            count: durations.count(),
            sum: Some(seconds(durations.sum_us)),
            bucket_counts: durations.buckets.to_vec(),
            explicit_bounds: BOUNDS_US.map(seconds).to_vec(),
            exemplars: durations.exemplars.iter().map(|(_, one)| exemplar(one)).collect(),
            ..HistogramDataPoint::default()
        })
    }
}

fn exemplar(one: &Exemplar) -> wire::Exemplar {
    wire::Exemplar {
        time_unix_nano: nanos(one.at),
        span_id: one.span.to_bytes().to_vec(),
        trace_id: one.trace.to_bytes().to_vec(),
        value: Some(exemplar::Value::AsDouble(seconds(one.micros))),
        ..wire::Exemplar::default()
    }
}

fn attributes(labels: &Labels) -> Vec<KeyValue> {
    let text = |value: &str| AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    let pairs = labels.pairs.iter();
    pairs
        .map(|(name, value)| KeyValue {
            key: (*name).to_owned(),
            value: Some(text(value)),
            ..KeyValue::default()
        })
        .collect()
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn nanos(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
