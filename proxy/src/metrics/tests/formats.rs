//! The same numbers in every format, and no value that breaks out of one.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::{KeyValue, any_value},
    metrics::v1::{AggregationTemporality, metric::Data, number_data_point},
    resource::v1::Resource,
};
use prost::Message as _;

use super::*;
use crate::metrics::{
    families::{Kind, Series, Unit, Value},
    text::{Format, Version, encode},
};

const OPEN_METRICS: Format = Format::OpenMetrics(Version::V1_0_0);

/// A registry that has seen something of everything.
pub(super) fn busy() -> (Arc<Registry>, Observed) {
    let registry = Registry::new(SERIES_BUDGET);
    let (one, two) = (shard(&registry), shard(&registry));
    for n in 1..=200_u64 {
        let shard = if n % 2 == 0 { &one } else { &two };
        shard.request(&RequestRecord {
            status: [200, 404, 503][n as usize % 3],
            grpc_status: (n % 5 == 0).then_some(14),
            reason: (n % 7 == 0).then_some(Reason::NoEndpoints),
            duration: Duration::from_micros(n * n * 317),
            received: n,
            sent: 3 * n,
            trace: traced(n, n % 4 == 0),
            handled: Handled { queued: Duration::from_micros(n), ..Handled::default() },
            attempts: 1 + (n % 3) as u32,
            ..record(["shop/orders:80", "shop/c\"a\\r\nt:80"][n as usize % 2], "shop/r/0")
        });
        shard.connection(&connection(":5432"));
        shard.timed(Timed::Connect, "shop/orders:80", Duration::from_micros(n));
    }
    registry.connection_opened(Direction::Inbound);
    let observed = Observed {
        ready: true,
        halls: vec![Hall { name: "port/1".to_owned(), in_flight: 3, limit: None, queued: 5 }],
        ..Observed::default()
    };
    (registry, observed)
}

/// Every value of a text page by its name and labels.
fn of_text(page: &str) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let line = line.split(" # ").next().unwrap();
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(values.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{series} twice");
    }
    values
}

fn named(name: &str, attributes: &[KeyValue], le: Option<&str>) -> String {
    let mut labels = String::new();
    for attribute in attributes {
        let Some(any_value::Value::StringValue(value)) = &attribute.value.as_ref().unwrap().value else {
            panic!("{attribute:?}")
        };
        labels += &format!("{}=\"", attribute.key);
        families::escape(value, &mut labels);
        labels += "\",";
    }
    labels += &le.map(|le| format!("le=\"{le}\"")).unwrap_or_default();
    match labels.trim_end_matches(',') {
        "" => name.to_owned(),
        labels => format!("{name}{{{labels}}}"),
    }
}

/// The same of a request to an OTLP backend, in Prometheus' terms.
fn of_otlp(bytes: &[u8]) -> BTreeMap<String, f64> {
    let request = ExportMetricsServiceRequest::decode(bytes).unwrap();
    let [of_resource] = &*request.resource_metrics else { panic!("one resource") };
    let [of_scope] = &*of_resource.scope_metrics else { panic!("one scope") };
    let number = |value: Option<number_data_point::Value>| match value.unwrap() {
        number_data_point::Value::AsDouble(value) => value,
        number_data_point::Value::AsInt(value) => value as f64,
    };
    let cumulative = i32::from(AggregationTemporality::Cumulative);
    let mut values = BTreeMap::new();
    for metric in &of_scope.metrics {
        let name = &metric.name;
        match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == cumulative);
                for point in &sum.data_points {
                    assert!(
                        point.start_time_unix_nano > 0 && point.start_time_unix_nano <= point.time_unix_nano
                    );
                    values.insert(
                        named(&format!("{name}_total"), &point.attributes, None),
                        number(point.value),
                    );
                }
            }
            Data::Gauge(gauge) => {
                for point in &gauge.data_points {
                    values.insert(named(name, &point.attributes, None), number(point.value));
                }
            }
            Data::Histogram(histogram) => {
                assert_eq!(histogram.aggregation_temporality, cumulative);
                for point in &histogram.data_points {
                    let bounds = point.explicit_bounds.iter().map(|bound| format!("{bound:?}"));
                    let mut sum = 0;
                    for (le, count) in bounds.chain(["+Inf".to_owned()]).zip(&point.bucket_counts) {
                        sum += count;
                        let name = format!("{name}_bucket");
                        values.insert(named(&name, &point.attributes, Some(&le)), sum as f64);
                    }
                    let (sum_name, count_name) = (format!("{name}_sum"), format!("{name}_count"));
                    values.insert(named(&sum_name, &point.attributes, None), point.sum.unwrap());
                    values.insert(named(&count_name, &point.attributes, None), point.count as f64);
                }
            }
            Data::ExponentialHistogram(_) | Data::Summary(_) => panic!("{metric:?}"),
        }
    }
    values
}

#[test]
fn all_formats_have_the_same_numbers() {
    let (registry, observed) = busy();
    let families = registry.families(&observed);
    let text = of_text(&encode(&families, Format::Text));
    let open_metrics = of_text(&encode(&families, OPEN_METRICS));
    let request =
        otlp::encode(&families, registry.started(), SystemTime::now(), Resource::default()).encode_to_vec();
    assert!(text.len() > 150, "{}", text.len());
    assert_eq!(text, open_metrics);
    assert_eq!(text, of_otlp(&request));
    assert_eq!(text.len(), families.lines());
    assert_eq!(text["outrigger_metrics_series"], text.len() as f64);
}

#[test]
fn nothing_starts_after_it_ends() {
    let (registry, observed) = busy();
    let before = registry.started() - Duration::from_secs(3_600);
    let request =
        otlp::encode(&registry.families(&observed), registry.started(), before, Resource::default());
    let mut points = 0;
    for metric in &request.resource_metrics[0].scope_metrics[0].metrics {
        if let Some(Data::Sum(sum)) = &metric.data {
            points += sum.data_points.len();
            assert!(sum.data_points.iter().all(|point| point.start_time_unix_nano == 0), "{metric:?}");
        }
    }
    assert!(points > 20, "{points}");
}

/// What OpenMetrics asks for beyond Prometheus' format.
#[test]
fn open_metrics_keeps_its_rules() {
    let (registry, observed) = busy();
    let page = encode(&registry.families(&observed), OPEN_METRICS);
    let (mut family, mut kind, mut exemplars) = (String::new(), String::new(), 0);
    let mut seen = std::collections::HashSet::new();
    for line in page.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match &*words {
            ["#", "HELP", name, _] => {
                assert!(seen.insert((*name).to_owned()), "{name} twice");
                family = (*name).to_owned();
            }
            ["#", "TYPE", name, of_kind] => {
                assert_eq!(*name, family);
                kind = (*of_kind).to_owned();
            }
            ["#", "UNIT", name, unit] => {
                assert_eq!(*name, family);
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
            }
            _ => {
                let name = line.split(['{', ' ']).next().unwrap();
                let suffix = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} under {family}"));
                let legal: &[&str] = match &*kind {
                    "counter" => &["_total"],
                    "info" => &["_info"],
                    "gauge" => &[""],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    other => panic!("{other}"),
                };
                assert!(legal.contains(&suffix), "{line} of a {kind}");
                if let Some((_, exemplar)) = line.split_once(" # ") {
                    exemplars += 1;
                    assert_eq!(suffix, "_bucket", "{line}");
                    let (labels, rest) = exemplar.split_once("} ").unwrap();
                    assert_eq!(labels.len(), "{trace_id=\"\",span_id=\"\"".len() + 32 + 16, "{line}");
                    assert_eq!(
                        rest.split(' ').filter(|word| word.parse::<f64>().is_ok()).count(),
                        2,
                        "{line}"
                    );
                }
            }
        }
    }
    assert!(exemplars > 5, "{page}");
    assert!(page.ends_with('\n') && !page.contains("\n\n") && !page.contains("_created"));
    let text = encode(&registry.families(&observed), Format::Text);
    assert!(!text.contains("trace_id") && !text.contains("# UNIT") && !text.contains("EOF"));
}

#[test]
fn an_exemplar_is_a_sampled_request_of_its_bucket() {
    let registry = Registry::new(SERIES_BUDGET);
    let (one, two) = (shard(&registry), shard(&registry));
    one.request(&RequestRecord { trace: traced(1, true), ..record("s", "") });
    two.request(&RequestRecord { trace: traced(2, false), ..record("s", "") });
    let families = registry.families(&Observed::default());
    let page = encode(&families, OPEN_METRICS);
    let line = page.lines().find(|line| line.contains("le=\"0.005\"")).unwrap();
    let exemplar =
        " 2 # {trace_id=\"00000000000000010000000000000abc\",span_id=\"0000000000000001\"} 0.003000 ";
    assert!(line.contains(exemplar), "{line}");
    assert_eq!(page.matches("trace_id").count(), 1, "only in its own bucket: {page}");
    let request = otlp::encode(&families, registry.started(), SystemTime::now(), Resource::default());
    let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
    let durations =
        metrics.iter().find(|metric| metric.name == "outrigger_request_duration_seconds").unwrap();
    let Some(Data::Histogram(histogram)) = &durations.data else { panic!("{durations:?}") };
    let [exemplar] = &*histogram.data_points[0].exemplars else { panic!("{histogram:?}") };
    assert_eq!(exemplar.span_id, [0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(exemplar.trace_id.len(), 16);
}

#[test]
fn labels_cannot_break_out() {
    let invalid = String::from_utf8_lossy(b"\xff\xfe").into_owned();
    for (value, text) in [
        ("a\"} 1\nforged{x=\"\\", r#"a="a\"} 1\nforged{x=\"\\""#),
        ("line\nfeed", r#"a="line\nfeed""#),
        ("\\", r#"a="\\""#),
        ("\\n", r#"a="\\n""#),
        ("\"", r#"a="\"""#),
        ("é\u{2028}", "a=\"é\u{2028}\""),
        (&invalid, "a=\"\u{fffd}\u{fffd}\""),
        ("", ""),
    ] {
        assert_eq!(&*Labels::new(&[("a", value), ("b", "")]).text, text, "{value:?}");
        let series = Series::of(&[("a", value)], Value::Whole(1));
        let mut families = Families::default();
        families.add("x", Kind::Counter, Unit::None, "Help.", vec![series]);
        for format in [Format::Text, OPEN_METRICS] {
            let page = encode(&families, format);
            assert_eq!(page.lines().count(), 3, "{page}");
            assert!(page.lines().last().unwrap().ends_with(" 1"), "{page}");
        }
    }
}

#[test]
fn seconds_are_told_to_the_microsecond() {
    let of = |micros| {
        let mut families = Families::default();
        families.add("x", Kind::Gauge, Unit::Seconds, "Help.", vec![Series::of(&[], Value::Micros(micros))]);
        encode(&families, Format::Text).lines().last().unwrap().to_owned()
    };
    for (micros, text) in [
        (0, "x 0.000000"),
        (1, "x 0.000001"),
        (1_500_000, "x 1.500000"),
        (u64::MAX, "x 18446744073709.551615"),
    ] {
        assert_eq!(of(micros), text);
    }
}
