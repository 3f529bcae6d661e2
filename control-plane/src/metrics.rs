//! What is counted, and how Prometheus reads it. A fixed set of series: nothing here grows with the mesh.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::hub::report::Totals;

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub struct Metrics {
    pub connections: Counter,
    pub handshakes_failed: Counter,
    pub connections_shed: Counter,
    pub accept_errors: Counter,
    pub signed_by_token: Counter,
    pub signed_by_certificate: Counter,
    pub signing_refused: Counter,
    pub streams_opened: Counter,
    pub streams_refused: Counter,
    pub updates_sent: Counter,
    pub updates_acked: Counter,
    pub updates_nacked: Counter,
    pub resources_sent: Counter,
    pub configurations_taken: Counter,
    pub configurations_refused: Counter,
}

impl Metrics {
    /// The text exposition format.
    /// `observed`: observation streams, and circuits that are not closed.
    pub fn render(&self, totals: Totals, observed: (usize, usize), ready: bool) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, series: &[(&str, u64)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP outrigger_control_plane_{name} {help}");
            let _ = writeln!(text, "# TYPE outrigger_control_plane_{name} {kind}");
            for (labels, value) in series {
                let _ = writeln!(text, "outrigger_control_plane_{name}{labels} {value}");
            }
        };
        let of = |counter: &Counter| [("", counter.value())];
        family("connections_total", "counter", "TLS connections accepted.", &of(&self.connections));
        let help = "Connections that ended before or in the handshake.";
        family("handshakes_failed_total", "counter", help, &of(&self.handshakes_failed));
        let help = "Connections closed at once because there were too many.";
        family("connections_shed_total", "counter", help, &of(&self.connections_shed));
        let help = "Failures to accept, e.g. at the limit of open files.";
        family("accept_errors_total", "counter", help, &of(&self.accept_errors));
        let signed = [
            ("{by=\"token\"}", self.signed_by_token.value()),
            ("{by=\"certificate\"}", self.signed_by_certificate.value()),
        ];
        family(
            "certificates_signed_total",
            "counter",
            "Certificates issued, by what attested the caller.",
            &signed,
        );
        let help = "Certificate requests refused.";
        family("signing_refused_total", "counter", help, &of(&self.signing_refused));
        family("streams_opened_total", "counter", "Configuration streams opened.", &of(&self.streams_opened));
        let help = "Configuration streams refused or ended for misuse.";
        family("streams_refused_total", "counter", help, &of(&self.streams_refused));
        family("updates_sent_total", "counter", "Updates sent to proxies.", &of(&self.updates_sent));
        let answers = [
            ("{answer=\"ack\"}", self.updates_acked.value()),
            ("{answer=\"nack\"}", self.updates_nacked.value()),
        ];
        family("updates_answered_total", "counter", "Updates answered by proxies.", &answers);
        family("resources_sent_total", "counter", "Resources in those updates.", &of(&self.resources_sent));
        let readings = [
            ("{result=\"taken\"}", self.configurations_taken.value()),
            ("{result=\"refused\"}", self.configurations_refused.value()),
        ];
        family("configurations_total", "counter", "Changes of the configuration directory.", &readings);

        let gauge = |value: usize| [("", value as u64)];
        let streams = [
            ("{role=\"active\"}", (totals.streams - totals.presence_only) as u64),
            ("{role=\"presence\"}", totals.presence_only as u64),
        ];
        family("streams", "gauge", "Configuration streams open.", &streams);
        let help = "Streams whose proxy does not have the newest of everything.";
        family("streams_out_of_sync", "gauge", help, &gauge(totals.out_of_sync));
        let help = "Resources that a proxy refused in their present form.";
        family("resources_refused", "gauge", help, &gauge(totals.refused));
        family("workloads", "gauge", "Workloads known.", &gauge(totals.workloads));
        let help = "Workloads that are ready and not draining.";
        family("workloads_serving", "gauge", help, &gauge(totals.serving));
        family("services", "gauge", "Services configured.", &gauge(totals.services));
        let help = "Configurations taken since the start.";
        family("configuration_generation", "gauge", help, &[("", totals.generation)]);
        let help = "Errors in the configuration directory as it is now; 0: it is in force.";
        family("configuration_errors", "gauge", help, &gauge(totals.configuration_errors));
        family("observation_streams", "gauge", "Observation streams open.", &gauge(observed.0));
        let help = "Circuits that some caller does not have closed, counted by caller and endpoint.";
        family("circuits_open", "gauge", help, &gauge(observed.1));
        family("ready", "gauge", "1 when ready.", &gauge(usize::from(ready)));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_help_type_and_value() {
        let metrics = Metrics::default();
        metrics.signed_by_token.add_one();
        let text = metrics.render(Totals { streams: 3, presence_only: 1, ..Totals::default() }, (2, 5), true);
        assert!(text.contains("outrigger_control_plane_certificates_signed_total{by=\"token\"} 1\n"));
        assert!(text.contains("outrigger_control_plane_circuits_open 5\n"));
        assert!(text.contains("outrigger_control_plane_streams{role=\"active\"} 2\n"));
        let mut known = "";
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                known = help.split(' ').next().unwrap();
            } else if !line.starts_with('#') {
                assert!(line.starts_with(known), "{line} without help");
                assert!(line.rsplit(' ').next().unwrap().parse::<u64>().is_ok(), "{line}");
            }
        }
    }
}
