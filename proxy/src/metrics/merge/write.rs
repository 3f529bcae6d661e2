//! Writing what applications exposed, in the format that the scraper gets.
//!
//! | from | to | changes |
//! |---|---|---|
//! | text | OpenMetrics | counters lose `_total` in their family's name; one whose lines do not end so, and `untyped`, become `unknown`; times are seconds |
//! | OpenMetrics | text | counters get `_total`; exemplars and units go; `info` and `stateset` become gauges, what text has no name for `untyped`; `_created` lines become gauges of their own; times are milliseconds |
//!
//! Values and labels are the same text as before.

use std::fmt::Write as _;

use super::read::{Family, Kind, Pages, Sample, number};
use crate::metrics::text::Format;

pub(super) fn encode(pages: &Pages<'_>, format: Format) -> String {
    let mut text = String::new();
    for family in pages.families.iter().filter(|family| !family.samples.is_empty()) {
        if format.is_open_metrics() { open_metrics(family, &mut text) } else { plain(family, &mut text) }
    }
    text
}

fn open_metrics(family: &Family<'_>, text: &mut String) {
    let name = family.name;
    let kind = match if family.bare { Kind::Unknown } else { family.kind } {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => "histogram",
        Kind::GaugeHistogram => "gaugehistogram",
        Kind::Summary => "summary",
        Kind::StateSet => "stateset",
        Kind::Info => "info",
        Kind::Unknown => "unknown",
    };
    head(text, name, kind, family.help.map(|help| quoted(help, family.open_metrics)).as_deref());
    if let Some(unit) = family.unit {
        // Writing to a String cannot fail; so for every `write!` below.
        let _ = writeln!(text, "# UNIT {name} {unit}");
    }
    for sample in &family.samples {
        line(text, sample, true);
    }
}

fn plain(family: &Family<'_>, text: &mut String) {
    let (kind, suffix) = match family.kind {
        Kind::Counter if family.bare => ("counter", ""),
        Kind::Counter => ("counter", "_total"),
        Kind::Gauge | Kind::StateSet => ("gauge", ""),
        Kind::Info => ("gauge", "_info"),
        Kind::Histogram => ("histogram", ""),
        Kind::Summary => ("summary", ""),
        Kind::GaugeHistogram | Kind::Unknown => ("untyped", ""),
    };
    let help = family.help.map(|help| unquoted(help, family.open_metrics));
    let created = |sample: &Sample<'_>| sample.name.strip_prefix(family.name) == Some("_created");
    if family.kind == Kind::GaugeHistogram {
        // Three names that belong to no family of this format.
        for suffix in ["_bucket", "_gcount", "_gsum"] {
            let name = format!("{}{suffix}", family.name);
            lines(text, &name, "untyped", help.as_deref(), family, &|sample| sample.name == name);
        }
    } else {
        let name = format!("{}{suffix}", family.name);
        lines(text, &name, kind, help.as_deref(), family, &|sample| !created(sample));
    }
    let name = format!("{}_created", family.name);
    lines(text, &name, "gauge", help.as_deref(), family, &created);
}

/// A head and the lines that belong under it, if there are any.
fn lines(
    text: &mut String,
    name: &str,
    kind: &str,
    help: Option<&str>,
    family: &Family<'_>,
    belongs: &dyn Fn(&Sample<'_>) -> bool,
) {
    let mut samples = family.samples.iter().filter(|sample| belongs(sample)).peekable();
    if samples.peek().is_none() {
        return;
    }
    head(text, name, kind, help);
    samples.for_each(|sample| line(text, sample, false));
}

fn head(text: &mut String, name: &str, kind: &str, help: Option<&str>) {
    if let Some(help) = help {
        let _ = writeln!(text, "# HELP {name} {help}");
    }
    let _ = writeln!(text, "# TYPE {name} {kind}");
}

fn line(text: &mut String, sample: &Sample<'_>, open_metrics: bool) {
    text.push_str(sample.name);
    for (index, (name, value)) in sample.labels.iter().enumerate() {
        let _ = write!(text, "{}{name}=\"{value}\"", if index == 0 { '{' } else { ',' });
    }
    text.push_str(if sample.labels.is_empty() { " " } else { "} " });
    match number(sample.value) {
        Some(value) if value.is_nan() => text.push_str("NaN"),
        Some(value) if value.is_infinite() => text.push_str(if value > 0.0 { "+Inf" } else { "-Inf" }),
        Some(_) | None => text.push_str(sample.value),
    }
    if let Some(at) = sample.at {
        let sign = if at < 0 { "-" } else { "" };
        let (seconds, millis) = (at.unsigned_abs() / 1_000, at.unsigned_abs() % 1_000);
        let _ = match open_metrics {
            true => write!(text, " {sign}{seconds}.{millis:03}"),
            false => write!(text, " {at}"),
        };
    }
    if let Some(exemplar) = sample.exemplar.filter(|_| open_metrics) {
        let _ = write!(text, " # {exemplar}");
    }
    text.push('\n');
}

/// OpenMetrics escapes quotes in a help, text does not.
fn quoted(help: &str, open_metrics: bool) -> String {
    if open_metrics { help.to_owned() } else { help.replace('"', "\\\"") }
}

fn unquoted(help: &str, open_metrics: bool) -> String {
    if open_metrics { help.replace("\\\"", "\"") } else { help.to_owned() }
}
