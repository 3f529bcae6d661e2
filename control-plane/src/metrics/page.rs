//! A page of metrics, in Prometheus' text format or in OpenMetrics, which differ in the names of counters and at the end.

use std::fmt::Write as _;

const PREFIX: &str = "outrigger_control_plane_";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    OpenMetrics,
}

/// Families in their order. Series of one family are added one after the other.
pub struct Page {
    format: Format,
    families: Vec<Family>,
}

struct Family {
    name: &'static str,
    kind: &'static str,
    help: String,
    lines: String,
}

impl Format {
    /// What a scraper wants most, of what there is: its Accept header.
    pub fn wanted(accept: &str) -> Self {
        let (mut open, mut text) = (0.0f32, 0.0f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let quality =
                parts.find_map(|part| part.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse().ok());
            let quality = quality.filter(|quality| (0.0..=1.0).contains(quality)).unwrap_or(0.0);
            match media.to_ascii_lowercase().as_str() {
                "application/openmetrics-text" => open = open.max(quality),
                "text/plain" | "text/*" | "*/*" => text = text.max(quality),
                _ => {}
            }
        }
        if open > 0.0 && open >= text { Self::OpenMetrics } else { Self::Text }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Page {
    pub fn new(format: Format) -> Self {
        Self { format, families: Vec::new() }
    }

    /// `name` ends in `_total`.
    pub fn counter(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add("counter", name, help, labels, value);
    }

    pub fn gauge(&mut self, name: &'static str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add("gauge", name, help, labels, value);
    }

    fn add(
        &mut self,
        kind: &'static str,
        name: &'static str,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        let family = match self.families.iter().position(|family| family.name == name) {
            Some(index) => &mut self.families[index],
            None => {
                self.families.push(Family { name, kind, help: help.to_owned(), lines: String::new() });
                let last = self.families.len() - 1;
                &mut self.families[last]
            }
        };
        // Writing to a string cannot fail.
        let lines = &mut family.lines;
        let _ = write!(lines, "{PREFIX}{name}");
        for (index, (label, value)) in labels.iter().enumerate() {
            lines.push(if index == 0 { '{' } else { ',' });
            let _ = write!(lines, "{label}=\"{}\"", escaped(value));
        }
        if !labels.is_empty() {
            lines.push('}');
        }
        let _ = writeln!(lines, " {value}");
    }

    pub fn finish(self) -> String {
        let mut page = String::new();
        for Family { name, kind, help, lines } in self.families {
            let name = match self.format {
                Format::Text => name,
                Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
            };
            let _ = write!(page, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} {kind}\n{lines}");
        }
        if self.format == Format::OpenMetrics {
            page.push_str("# EOF\n");
        }
        page
    }
}

/// As both formats want the value of a label.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_what_the_scraper_prefers() {
        for (accept, expected) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            ("application/openmetrics-text", Format::OpenMetrics),
            ("application/openmetrics-text;q=0", Format::Text),
            (
                "application/openmetrics-text; version=1.0.0; q=0.6, text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                Format::OpenMetrics,
            ),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.5", Format::Text),
            ("application/openmetrics-text;q=nonsense, text/html", Format::Text),
        ] {
            assert_eq!(Format::wanted(accept), expected, "{accept}");
        }
    }

    #[test]
    fn labels_are_escaped_and_families_kept_together() {
        let mut page = Page::new(Format::Text);
        page.gauge("a", "Of a.", &[("x", "1\n2\"\\")], 1.0);
        page.gauge("b", "Of b.", &[], 0.5);
        page.gauge("a", "Of a.", &[("x", "2"), ("y", "z")], 3.0);
        let expected = "# HELP outrigger_control_plane_a Of a.\n# TYPE outrigger_control_plane_a gauge\n\
            outrigger_control_plane_a{x=\"1\\n2\\\"\\\\\"} 1\noutrigger_control_plane_a{x=\"2\",y=\"z\"} 3\n\
            # HELP outrigger_control_plane_b Of b.\n# TYPE outrigger_control_plane_b gauge\noutrigger_control_plane_b 0.5\n";
        assert_eq!(page.finish(), expected);
    }
}
