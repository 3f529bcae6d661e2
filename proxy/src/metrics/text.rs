//! The two text formats that Prometheus reads: its own (0.0.4) and OpenMetrics (1.0.0, 0.0.1).
//!
//! Both have the same lines for the same numbers, also the same `le`, so it does not matter to whoever looks at a series
//! which one was negotiated. What differs is said in [`Format`]. `_created` lines are left out: Prometheus would store
//! each as one more series, and nobody needs them to see a counter begin anew.

use std::{
    fmt,
    fmt::Write as _,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    BOUNDS_US,
    families::{Distribution, Exemplar, Families, Family, Kind, Labels, Unit, Value},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Counters are named with `_total` everywhere; no units, exemplars, or end.
    Text,
    /// Families of counters are named without `_total`; units, exemplars, and `# EOF` at the end.
    OpenMetrics(Version),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V0_0_1,
    V1_0_0,
}

/// The last line of OpenMetrics.
pub const END: &str = "# EOF\n";

// === impl Format ===

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics(Version::V0_0_1) => {
                "application/openmetrics-text; version=0.0.1; charset=utf-8"
            }
            Self::OpenMetrics(Version::V1_0_0) => {
                "application/openmetrics-text; version=1.0.0; charset=utf-8"
            }
        }
    }

    pub fn is_open_metrics(self) -> bool {
        matches!(self, Self::OpenMetrics(_))
    }
}

/// All families, without [`END`]: more may follow.
pub fn encode(families: &Families, format: Format) -> String {
    let mut page = Page { text: String::with_capacity(4096 + families.lines() * 160), format };
    for family in &families.0 {
        page.family(family);
    }
    page.text
}

struct Page {
    text: String,
    format: Format,
}

impl Page {
    fn family(&mut self, family: &Family) {
        let Family { name, kind, unit, help, series } = family;
        let (on_family, on_lines, kind_name) = match (kind, self.format.is_open_metrics()) {
            (Kind::Counter, true) => ("", "_total", "counter"),
            (Kind::Counter, false) => ("_total", "_total", "counter"),
            (Kind::Info, true) => ("", "_info", "info"),
            (Kind::Info, false) => ("_info", "_info", "gauge"),
            (Kind::Gauge, _) => ("", "", "gauge"),
            (Kind::Histogram, _) => ("", "", "histogram"),
        };
        let (of_family, of_line) = (concat(name, on_family), concat(name, on_lines));
        // Writing to a String cannot fail; so for every `write!` below.
        let _ = writeln!(self.text, "# HELP {of_family} {help}\n# TYPE {of_family} {kind_name}");
        if self.format.is_open_metrics() && *unit != Unit::None {
            let _ = writeln!(self.text, "# UNIT {of_family} {}", unit.name());
        }
        for series in series {
            match &series.value {
                Value::Whole(value) => self.line(&of_line, &series.labels, |text| whole(text, *value)),
                Value::Micros(micros) => self.line(&of_line, &series.labels, |text| seconds(text, *micros)),
                Value::Distribution(durations) => self.histogram(&of_line, &series.labels, durations),
            }
        }
    }

    fn line(&mut self, name: &str, labels: &Labels, value: impl FnOnce(&mut String)) {
        self.text.push_str(name);
        if !labels.text.is_empty() {
            self.text.push('{');
            self.text.push_str(&labels.text);
            self.text.push('}');
        }
        self.text.push(' ');
        value(&mut self.text);
        self.text.push('\n');
    }

    fn histogram(&mut self, name: &str, labels: &Labels, durations: &Distribution) {
        let mut count: u64 = 0;
        let mut exemplars = durations.exemplars.iter().peekable();
        for (index, bucket) in durations.buckets.iter().enumerate() {
            count = count.wrapping_add(*bucket);
            self.text.push_str(name);
            self.text.push_str("_bucket{");
            self.text.push_str(&labels.text);
            self.text.push_str(if labels.text.is_empty() { "le=\"" } else { ",le=\"" });
            match BOUNDS_US.get(index) {
                Some(bound) => _ = write!(self.text, "{}", Decimal(*bound)),
                None => self.text.push_str("+Inf"),
            }
            self.text.push_str("\"} ");
            whole(&mut self.text, count);
            if let Some((_, exemplar)) = exemplars.next_if(|(of, _)| *of == index)
                && self.format.is_open_metrics()
            {
                self.exemplar(exemplar);
            }
            self.text.push('\n');
        }
        self.line(&concat(name, "_sum"), labels, |text| seconds(text, durations.sum_us));
        self.line(&concat(name, "_count"), labels, |text| whole(text, count));
    }

    fn exemplar(&mut self, exemplar: &Exemplar) {
        let Exemplar { trace, span, micros, at } = exemplar;
        let _ = write!(self.text, " # {{trace_id=\"{trace}\",span_id=\"{span}\"}} ");
        seconds(&mut self.text, *micros);
        self.text.push(' ');
        let _ = write!(self.text, "{}", Timestamp(*at));
    }
}

fn concat(name: &str, suffix: &str) -> String {
    let mut text = String::with_capacity(name.len() + suffix.len());
    text.push_str(name);
    text.push_str(suffix);
    text
}

fn whole(text: &mut String, value: u64) {
    text.push_str(itoa::Buffer::new().format(value));
}

/// Microseconds as seconds, to the microsecond: `20.001003`.
fn seconds(text: &mut String, micros: u64) {
    whole(text, micros / 1_000_000);
    let rest = micros % 1_000_000;
    let _ = write!(text, ".{rest:06}");
}

/// Microseconds as seconds in the shortest way that OpenMetrics takes for canonical: `0.0005`, `10.0`.
struct Decimal(u64);

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, mut rest, mut digits) = (self.0 / 1_000_000, self.0 % 1_000_000, 6);
        while digits > 1 && rest % 10 == 0 {
            (rest, digits) = (rest / 10, digits - 1);
        }
        write!(f, "{whole}.{rest:0digits$}")
    }
}

/// Seconds since the epoch, to the millisecond.
struct Timestamp(SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        write!(f, "{}.{:03}", since.as_secs(), since.subsec_millis())
    }
}
