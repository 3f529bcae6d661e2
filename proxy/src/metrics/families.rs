//! All numbers of one moment as plain data: what Prometheus' text, OpenMetrics and OTLP are made from, so that they agree.
//!
//! Names are those of OpenMetrics: a counter's family is called without `_total`. It knows no format and reads no cell.

use std::{sync::Arc, time::SystemTime};

use outrigger_core::trace::{SpanId, TraceId};

use super::cells::{BUCKETS, HISTOGRAM_LINES};

/// One answer's worth of numbers.
#[derive(Clone, Debug, Default)]
pub struct Families(pub Vec<Family>);

#[derive(Clone, Debug)]
pub struct Family {
    /// Without the suffix that its kind has.
    pub name: &'static str,
    pub kind: Kind,
    pub unit: Unit,
    pub help: &'static str,
    pub series: Vec<Series>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// Always 1; the labels say it all.
    Info,
    Histogram,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    None,
    Seconds,
    Bytes,
}

#[derive(Clone, Debug)]
pub struct Series {
    pub labels: Arc<Labels>,
    /// Since when it counts; `None`: since the process runs.
    pub created: Option<SystemTime>,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Whole(u64),
    /// Seconds, held in microseconds so that no encoding rounds differently.
    Micros(u64),
    Distribution(Box<Distribution>),
}

/// Durations by [`super::BOUNDS_US`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Distribution {
    /// Each by itself, not added up.
    pub buckets: [u64; BUCKETS],
    pub sum_us: u64,
    /// By bucket, in order, at most one each.
    pub exemplars: Vec<(usize, Exemplar)>,
}

/// One request that stands for others of its bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exemplar {
    pub trace: TraceId,
    pub span: SpanId,
    pub micros: u64,
    pub at: SystemTime,
}

/// A set of labels; those without a value are left out, which is the same to Prometheus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    pub pairs: Vec<(&'static str, Box<str>)>,
    /// `a="x",b="y"`, escaped as both text formats have it.
    pub text: Box<str>,
}

// === impl Families ===

impl Families {
    /// Lines that are values in a scrape, which is what Prometheus calls series.
    pub fn lines(&self) -> usize {
        self.0.iter().map(|family| family.series.len() * family.kind.lines()).sum()
    }

    pub(super) fn add(
        &mut self,
        name: &'static str,
        kind: Kind,
        unit: Unit,
        help: &'static str,
        series: Vec<Series>,
    ) {
        self.0.push(Family { name, kind, unit, help, series });
    }

    pub(super) fn gauge(&mut self, name: &'static str, unit: Unit, help: &'static str, value: u64) {
        self.add(name, Kind::Gauge, unit, help, vec![Series::of(&[], Value::Whole(value))]);
    }

    pub(super) fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.add(name, Kind::Counter, Unit::None, help, vec![Series::of(&[], Value::Whole(value))]);
    }

    /// One line for each of a fixed few words.
    pub(super) fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        label: &'static str,
        values: &[(&str, u64)],
    ) {
        let series = values.iter().map(|(word, value)| Series::of(&[(label, word)], Value::Whole(*value)));
        self.add(name, Kind::Counter, Unit::None, help, series.collect());
    }
}

// === impl Kind ===

impl Kind {
    fn lines(self) -> usize {
        match self {
            Self::Counter | Self::Gauge | Self::Info => 1,
            Self::Histogram => HISTOGRAM_LINES,
        }
    }
}

// === impl Unit ===

impl Unit {
    /// As OpenMetrics names it, which is also how names end.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Seconds => "seconds",
            Self::Bytes => "bytes",
        }
    }

    /// As the Unified Code for Units of Measure has it, which is what OTLP wants.
    pub fn ucum(self) -> &'static str {
        match self {
            // Not "1": that makes a ratio of it in some backends.
            Self::None => "",
            Self::Seconds => "s",
            Self::Bytes => "By",
        }
    }
}

// === impl Series ===

impl Series {
    /// One that counts since the process runs.
    pub(super) fn of(labels: &[(&'static str, &str)], value: Value) -> Self {
        Self { labels: Arc::new(Labels::new(labels)), created: None, value }
    }
}

// === impl Distribution ===

impl Distribution {
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, bucket| sum.wrapping_add(*bucket))
    }

    /// The later one stays.
    pub(super) fn exemplify(&mut self, bucket: usize, exemplar: Exemplar) {
        match self.exemplars.binary_search_by_key(&bucket, |(bucket, _)| *bucket) {
            Ok(at) if self.exemplars[at].1.at < exemplar.at => self.exemplars[at].1 = exemplar,
            Ok(_) => {}
            Err(at) => self.exemplars.insert(at, (bucket, exemplar)),
        }
    }
}

// === impl Labels ===

impl Labels {
    pub fn new(pairs: &[(&'static str, &str)]) -> Self {
        let mut text = String::with_capacity(128);
        let pairs = pairs.iter().filter(|(name, value)| !name.is_empty() && !value.is_empty());
        let pairs = pairs.map(|(name, value)| {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            text.push_str("=\"");
            escape(value, &mut text);
            text.push('"');
            (*name, Box::from(*value))
        });
        let pairs = pairs.collect();
        Self { pairs, text: text.into() }
    }
}

/// Backslash, quote and line feed are all that ends a value or a line.
pub(super) fn escape(value: &str, text: &mut String) {
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
}
