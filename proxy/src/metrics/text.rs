//! The Prometheus text exposition format (version 0.0.4): rendering of labels, families and the whole answer.

use std::{
    fmt::Write as _,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use super::{
    BOUNDS_US, ConnectionCells, Count, Family, Observed, Registry, RouteCells, process, unix_seconds,
};
use crate::telemetry::Direction;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `a="x",b="y"`; labels without a value are left out, which is the same to Prometheus.
pub(super) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(128);
    for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(name);
        text.push_str("=\"");
        for character in value.chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                other => text.push(other),
            }
        }
        text.push('"');
    }
    text
}

impl Registry {
    /// The whole answer to a scrape. Families are copied under the lock and rendered outside it.
    pub fn render(&self, observed: &Observed) -> String {
        let (requests, routes, connections, handshakes, sets) = {
            let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
            let sets = families.sets();
            (
                copy(&families.requests),
                copy(&families.routes),
                copy(&families.connections),
                copy(&families.handshakes),
                sets,
            )
        };
        let mut page = Page(String::with_capacity(4096 + sets * 256));

        page.head("outrigger_requests_total", "counter", "Requests that have ended.");
        page.counts("outrigger_requests_total", &requests);
        page.durations(&routes);
        page.head("outrigger_request_body_bytes_total", "counter", "Body bytes received from callers.");
        page.sums("outrigger_request_body_bytes_total", &routes, |cells| &cells.received);
        page.head("outrigger_response_body_bytes_total", "counter", "Body bytes sent to callers.");
        page.sums("outrigger_response_body_bytes_total", &routes, |cells| &cells.sent);
        self.render_resilience(&mut page, observed);

        page.head("outrigger_connections_total", "counter", "Opaque or failed connections that have ended.");
        page.sums("outrigger_connections_total", &connections, |cells: &ConnectionCells| &cells.total);
        page.head("outrigger_connection_received_bytes_total", "counter", "Opaque bytes from callers.");
        page.sums("outrigger_connection_received_bytes_total", &connections, |cells| &cells.received);
        page.head("outrigger_connection_sent_bytes_total", "counter", "Opaque bytes to callers.");
        page.sums("outrigger_connection_sent_bytes_total", &connections, |cells| &cells.sent);
        page.head(
            "outrigger_handshake_failures_total",
            "counter",
            "TLS handshakes of the mesh that failed, by cause.",
        );
        page.counts("outrigger_handshake_failures_total", &handshakes);

        page.head("outrigger_connections_opened_total", "counter", "Connections accepted.");
        page.directions("outrigger_connections_opened_total", |d| {
            self.traffic[d as usize].opened.load(Relaxed)
        });
        page.head("outrigger_connections_open", "gauge", "Connections open now.");
        page.directions("outrigger_connections_open", |d| self.connections_open(d).max(0).unsigned_abs());

        self.render_control(&mut page, observed);
        page.gauge("outrigger_metrics_series", "Label sets in use.", sets as u64);
        page.counter(
            "outrigger_metrics_folded_total",
            "New label sets folded into `other`.",
            self.folded.load(Relaxed),
        );
        page.counter(
            "outrigger_access_log_dropped_total",
            "Access log lines dropped.",
            observed.access_log_dropped,
        );
        page.counter(
            "outrigger_circuit_events_dropped_total",
            "Transitions of circuits that the control runtime was not told of.",
            observed.transitions_dropped,
        );
        page.counter(
            "outrigger_panics_total",
            "Faults in the proxy that ended one task.",
            self.panics.load(Relaxed),
        );
        process::render(&mut page);
        page.0
    }

    fn render_control(&self, page: &mut Page, observed: &Observed) {
        let control = &self.control;
        let version = env!("CARGO_PKG_VERSION");
        page.head("outrigger_build_info", "gauge", "Always 1; the labels say what runs.");
        page.line("outrigger_build_info", &labels(&[("version", version)]), 1);
        page.gauge("outrigger_ready", "1 when ready.", observed.ready.into());
        page.gauge("outrigger_draining", "1 from the signal to the exit.", observed.draining.into());
        page.gauge(
            "outrigger_control_plane_connected",
            "1 while the stream to the active control plane is open.",
            control.connected.load(Relaxed),
        );
        page.head("outrigger_config_updates_total", "counter", "Configuration updates taken or refused.");
        for (result, count) in [("applied", &control.applied), ("refused", &control.refused)] {
            page.line("outrigger_config_updates_total", &labels(&[("result", result)]), count.load(Relaxed));
        }
        page.gauge(
            "outrigger_config_last_applied_timestamp_seconds",
            "When the last update was taken; 0 if none.",
            control.last_applied.load(Relaxed),
        );
        page.head("outrigger_certificate_requests_total", "counter", "Requests for a certificate.");
        for (result, count) in [("issued", &control.issued), ("failed", &control.not_issued)] {
            page.line(
                "outrigger_certificate_requests_total",
                &labels(&[("result", result)]),
                count.load(Relaxed),
            );
        }
        page.gauge(
            "outrigger_certificate_not_after_timestamp_seconds",
            "When the current certificate ends; 0 without one.",
            observed.certificate_ends.map_or(0, |end: SystemTime| unix_seconds(end)),
        );
    }
}

pub(super) fn copy<C>(family: &Family<C>) -> Vec<(Arc<str>, Vec<Arc<C>>)> {
    let of_all = |shards: &Vec<(usize, Arc<C>)>| shards.iter().map(|(_, cells)| Arc::clone(cells)).collect();
    family.iter().map(|(labels, shards)| (Arc::clone(labels), of_all(shards))).collect()
}

/// An answer being written.
pub(super) struct Page(String);

impl Page {
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail; so for every `write!` below.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        self.line(name, "", value);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        self.line(name, "", value);
    }

    pub(super) fn seconds(&mut self, name: &str, labels: &str, micros: u64) {
        let (whole, rest) = (micros / 1_000_000, micros % 1_000_000);
        let _ = match labels {
            "" => writeln!(self.0, "{name} {whole}.{rest:06}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {whole}.{rest:06}"),
        };
    }

    pub(super) fn counts(&mut self, name: &str, family: &[(Arc<str>, Vec<Arc<Count>>)]) {
        self.sums(name, family, |count| &count.0);
    }

    fn sums<C>(&mut self, name: &str, family: &[(Arc<str>, Vec<Arc<C>>)], cell: impl Fn(&C) -> &AtomicU64) {
        for (labels, shards) in family {
            self.line(name, labels, sum(shards, &cell));
        }
    }

    fn directions(&mut self, name: &str, value: impl Fn(Direction) -> u64) {
        for direction in [Direction::Inbound, Direction::Outbound] {
            self.line(name, &labels(&[("direction", direction.name())]), value(direction));
        }
    }

    fn durations(&mut self, routes: &[(Arc<str>, Vec<Arc<RouteCells>>)]) {
        const NAME: &str = "outrigger_request_duration_seconds";
        self.head(NAME, "histogram", "From a request's head to the end of its answer.");
        for (labels, shards) in routes {
            let mut count = 0;
            for (index, bound) in BOUNDS_US.iter().map(Some).chain([None]).enumerate() {
                count += sum(shards, |cells| &cells.buckets[index]);
                let _ = match bound {
                    Some(us) => writeln!(self.0, "{NAME}_bucket{{{labels},le=\"{}\"}} {count}", Decimal(*us)),
                    None => writeln!(self.0, "{NAME}_bucket{{{labels},le=\"+Inf\"}} {count}"),
                };
            }
            self.seconds(
                "outrigger_request_duration_seconds_sum",
                labels,
                sum(shards, |cells| &cells.sum_us),
            );
            self.line("outrigger_request_duration_seconds_count", labels, count);
        }
    }
}

fn sum<C>(shards: &[Arc<C>], cell: impl Fn(&C) -> &AtomicU64) -> u64 {
    shards.iter().map(|cells| cell(cells).load(Relaxed)).fold(0, u64::wrapping_add)
}

/// Microseconds as seconds without trailing zeros: `0.0005`, `10`.
struct Decimal(u64);

impl std::fmt::Display for Decimal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}
