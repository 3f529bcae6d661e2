//! What is counted, and how Prometheus reads it. A fixed set of series, but for one per certificate of the authority and
//! one per kind of event: nothing here grows with the mesh.

pub mod page;

use std::sync::atomic::{AtomicU64, Ordering};

use self::page::Page;
use crate::{
    ca::CertificateTimes,
    events::Kind,
    hub::report::{OLD_AFTER, Totals},
    recorder::{HistoryReport, RecorderCounts},
};

/// A number that only grows.
#[derive(Default)]
pub struct Counter(AtomicU64);

/// A number of things that are there now.
#[derive(Default)]
pub struct Gauge(AtomicU64);

impl Counter {
    pub fn add_one(&self) {
        self.add(1);
    }

    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Gauge {
    pub fn come(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn go(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    pub report_streams: Gauge,
    pub reports_refused: Counter,
}

/// What is known elsewhere, at the moment of a scrape.
pub struct Observed<'a> {
    pub totals: Totals,
    /// Observation streams, and circuits that are not closed.
    pub observation_streams: usize,
    pub circuits_open: usize,
    pub ready: bool,
    pub history: HistoryReport,
    pub recorder: &'a RecorderCounts,
    pub events: Vec<(Kind, u64)>,
    pub certificates: Vec<CertificateTimes>,
}

impl Metrics {
    pub fn render(&self, observed: &Observed<'_>, page: &mut Page) {
        self.connections(page);
        self.configuration(&observed.totals, page);
        self.mesh(observed, page);
        self.history(observed, page);
        for (kind, count) in &observed.events {
            let labels = [("kind", kind.name())];
            page.counter(
                "events_total",
                "Events, also those that were told as a sum.",
                &labels,
                *count as f64,
            );
        }
        for certificate in &observed.certificates {
            let labels = [("certificate", certificate.role), ("sha256", &certificate.sha256[..16])];
            let (from, to) = (certificate.not_before as f64, certificate.not_after as f64);
            page.gauge("certificate_not_after_timestamp_seconds", "When a certificate ends.", &labels, to);
            let help = "When a certificate began, to tell how much of its life is left.";
            page.gauge("certificate_not_before_timestamp_seconds", help, &labels, from);
        }
        let labels = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauge("build_info", "Always 1; which build runs.", &labels, 1.0);
        page.gauge("ready", "1 when ready.", &[], u8::from(observed.ready).into());
    }

    fn connections(&self, page: &mut Page) {
        let mut counter = |name, help, labels: &[_], counter: &Counter| {
            page.counter(name, help, labels, counter.value() as f64);
        };
        counter("connections_total", "TLS connections accepted.", &[], &self.connections);
        let help = "Connections that ended before or in the handshake.";
        counter("handshakes_failed_total", help, &[], &self.handshakes_failed);
        let help = "Connections closed at once because there were too many.";
        counter("connections_shed_total", help, &[], &self.connections_shed);
        let help = "Failures to accept, e.g. at the limit of open files.";
        counter("accept_errors_total", help, &[], &self.accept_errors);
        let help = "Certificates issued, by what attested the caller.";
        counter("certificates_signed_total", help, &[("by", "token")], &self.signed_by_token);
        counter("certificates_signed_total", help, &[("by", "certificate")], &self.signed_by_certificate);
        counter("signing_refused_total", "Certificate requests refused.", &[], &self.signing_refused);
        counter("streams_opened_total", "Configuration streams opened.", &[], &self.streams_opened);
        let help = "Streams of proxies refused or ended for misuse.";
        counter("streams_refused_total", help, &[], &self.streams_refused);
        counter("updates_sent_total", "Updates sent to proxies.", &[], &self.updates_sent);
        let help = "Updates answered by proxies.";
        counter("updates_answered_total", help, &[("answer", "ack")], &self.updates_acked);
        counter("updates_answered_total", help, &[("answer", "nack")], &self.updates_nacked);
        counter("resources_sent_total", "Resources in those updates.", &[], &self.resources_sent);
        let help = "Changes of the configuration directory.";
        counter("configurations_total", help, &[("result", "taken")], &self.configurations_taken);
        counter("configurations_total", help, &[("result", "refused")], &self.configurations_refused);
    }

    fn configuration(&self, totals: &Totals, page: &mut Page) {
        let mut gauge = |name, help, labels: &[_], value: usize| page.gauge(name, help, labels, value as f64);
        let help = "Configuration streams open.";
        gauge("streams", help, &[("role", "active")], totals.streams - totals.presence_only);
        gauge("streams", help, &[("role", "presence")], totals.presence_only);
        let help = "Streams whose proxy does not have the newest of everything.";
        gauge("streams_out_of_sync", help, &[], totals.out_of_sync);
        let help = "Proxies: with a stream, or remembered until their lease ends.";
        gauge("proxies", help, &[("state", "connected")], totals.connected);
        gauge("proxies", help, &[("state", "away")], totals.away);
        let help = format!(
            "Proxies that have not acknowledged the configuration in force {} s after it was taken.",
            OLD_AFTER.as_secs()
        );
        gauge("proxies_on_old_generation", &help, &[], totals.on_old_generation);
        let help = "Resources that a proxy refused in their present form.";
        gauge("resources_refused", help, &[], totals.refused);
        gauge("workloads", "Workloads known.", &[], totals.workloads);
        gauge("workloads_serving", "Workloads that are ready and not draining.", &[], totals.serving);
        gauge("services", "Services configured.", &[], totals.services);
        page.gauge(
            "configuration_generation",
            "Configurations taken since the start.",
            &[],
            totals.generation as f64,
        );
        let help = "Errors in the configuration directory as it is now; 0: it is in force.";
        page.gauge("configuration_errors", help, &[], totals.configuration_errors as f64);
    }

    fn mesh(&self, observed: &Observed<'_>, page: &mut Page) {
        let streams = observed.observation_streams as f64;
        page.gauge("observation_streams", "Observation streams open.", &[], streams);
        let help = "Circuits that some caller does not have closed, counted by caller and endpoint.";
        page.gauge("circuits_open", help, &[], observed.circuits_open as f64);
        page.gauge("report_streams", "Report streams open.", &[], self.report_streams.value() as f64);
        let (counts, help) = (observed.history.counts, "Reports of traffic that came from proxies.");
        let results = [
            ("taken", counts.reports),
            ("duplicate", counts.duplicates),
            ("refused", self.reports_refused.value()),
        ];
        for (result, value) in results {
            page.counter("reports_total", help, &[("result", result)], value as f64);
        }
        page.counter("report_edges_total", "Edges in the reports taken.", &[], counts.edges as f64);
        let help = "Edges of a time that is not kept any more.";
        page.counter("report_edges_late_total", help, &[], counts.late as f64);
    }

    fn history(&self, observed: &Observed<'_>, page: &mut Page) {
        let HistoryReport { size, counts, disk, .. } = &observed.history;
        let recorder = observed.recorder;
        let help = "Memory that the history of traffic takes, about.";
        page.gauge("history_bytes", help, &[], size.bytes as f64);
        let help = "Memory that the history may take: --history-memory.";
        page.gauge("history_limit_bytes", help, &[], size.cap_bytes as f64);
        page.gauge("history_series", "Series in the history.", &[], size.series as f64);
        let help = "Series that count as `other`, because there is no room for them.";
        page.gauge("history_series_folded", help, &[], size.folded as f64);
        let help = "How far back the history goes, by its grain.";
        page.gauge("history_length_seconds", help, &[("grain", "1s")], size.fine_seconds as f64);
        page.gauge("history_length_seconds", help, &[("grain", "10s")], size.kept_seconds as f64);
        let help = "Slots of the history that went for memory's sake.";
        page.counter("history_evicted_total", help, &[], counts.evicted as f64);
        let help = "Lives of proxies whose reports are told apart.";
        page.gauge("history_epochs", help, &[], size.epochs as f64);
        page.gauge("history_disk_bytes", "The history on disk.", &[], disk.bytes as f64);
        let help = "The history may be so large on disk: --history-disk.";
        page.gauge("history_disk_limit_bytes", help, &[], disk.cap_bytes as f64);
        let help = "1 when the latest is not on disk, so that a restart loses it.";
        page.gauge("history_disk_failing", help, &[], u8::from(disk.error.is_some()).into());
        let help = "Records of a second that were written.";
        page.counter("history_saved_total", help, &[], recorder.saved.value() as f64);
        let help = "Records that could not be written, or read back.";
        page.counter("history_save_errors_total", help, &[], recorder.save_errors.value() as f64);
        let help = "Edges that could not wait for the disk any longer.";
        page.counter("history_unsaved_total", help, &[], counts.unsaved as f64);
        let help = "Questions answered on /stat.";
        page.counter("stat_queries_total", help, &[], recorder.questions.value() as f64);
        let help = "Time that they took, together.";
        page.counter("stat_query_seconds_total", help, &[], recorder.question_micros.value() as f64 / 1e6);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{page::Format, *};

    fn observed(recorder: &RecorderCounts) -> Observed<'_> {
        Observed {
            totals: Totals { streams: 3, presence_only: 1, ..Totals::default() },
            observation_streams: 2,
            circuits_open: 5,
            ready: true,
            history: HistoryReport {
                loaded: true,
                size: Default::default(),
                counts: Default::default(),
                disk: Default::default(),
            },
            recorder,
            events: Kind::ALL.map(|kind| (kind, 2)).into(),
            certificates: vec![CertificateTimes {
                role: "root",
                subject: "x".into(),
                sha256: "0123456789abcdef0123".into(),
                not_before: 1,
                not_after: 1_767_225_600,
            }],
        }
    }

    /// Every family is in one piece, with help and type before its series, and every value is a number.
    pub(crate) fn check(text: &str, format: Format) {
        let (mut family, mut seen) = (String::new(), std::collections::HashSet::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                family = help.split(' ').next().unwrap().to_owned();
                assert!(seen.insert(family.clone()), "{family} twice");
                assert!(help.len() > family.len() + 2, "{family} without help");
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').unwrap();
                assert_eq!(name, family);
                assert!(["counter", "gauge"].contains(&kind));
                assert_eq!(kind == "counter" && format == Format::Text, name.ends_with("_total"), "{name}");
            } else if !line.starts_with('#') {
                let name = line.split(['{', ' ']).next().unwrap();
                assert_eq!(
                    name.strip_suffix("_total").unwrap_or(name),
                    family.strip_suffix("_total").unwrap_or(&family)
                );
                assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
            }
        }
        assert_eq!(text.ends_with("# EOF\n"), format == Format::OpenMetrics);
    }

    #[test]
    fn every_series_has_help_type_and_value_in_both_formats() {
        let (metrics, recorder) = (Metrics::default(), RecorderCounts::default());
        metrics.signed_by_token.add_one();
        recorder.question_micros.add(1_500_000);
        let render = |format| {
            let mut page = Page::new(format);
            metrics.render(&observed(&recorder), &mut page);
            page.finish()
        };
        let text = render(Format::Text);
        for line in [
            "outrigger_control_plane_certificates_signed_total{by=\"token\"} 1",
            "outrigger_control_plane_circuits_open 5",
            "outrigger_control_plane_streams{role=\"active\"} 2",
            "outrigger_control_plane_stat_query_seconds_total 1.5",
            "outrigger_control_plane_certificate_not_after_timestamp_seconds{certificate=\"root\",sha256=\"0123456789abcdef\"} 1767225600",
            "outrigger_control_plane_events_total{kind=\"circuit-opened\"} 2",
            "# TYPE outrigger_control_plane_connections_total counter",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} is not in\n{text}");
        }
        check(&text, Format::Text);
        let open = render(Format::OpenMetrics);
        assert!(open.contains("# TYPE outrigger_control_plane_connections counter\n"));
        assert!(open.contains("outrigger_control_plane_connections_total 0\n"));
        check(&open, Format::OpenMetrics);
    }
}
