//! One pass over everything that is counted or observed, in the order of the page.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    Event, Families, Observed, Registry, Timed,
    families::{Kind, Series, Unit, Value},
    governor,
    kinds::OTHER,
    process, unix_seconds,
};
use crate::telemetry::Direction;

impl Registry {
    /// All numbers of this moment. Workers that have something new to count wait for it, for a fraction of a millisecond.
    pub fn families(&self, observed: &Observed) -> Families {
        let mut families = Families(Vec::with_capacity(64));
        let lines = self.add_traffic(&mut families);
        self.add_connections(&mut families);
        let gauges = governor::gauges(self.governor.budget(), lines);
        add_gauges(&mut families, observed, gauges);
        self.add_control(&mut families, observed);
        self.add_own(&mut families, observed);
        process::add(&mut families);
        let here = "outrigger_metrics_series";
        // With its own line.
        let lines = families.lines() as u64 + 1;
        families.gauge(here, Unit::None, "Lines of this answer that are values.", lines);
        families
    }

    /// What workers count. Says how many lines that is.
    fn add_traffic(&self, families: &mut Families) -> usize {
        let table = self.governor.table();
        families.add(
            "outrigger_requests",
            Kind::Counter,
            Unit::None,
            "Requests that have ended.",
            table.requests.values().map(|entry| entry.sum(|count| count)).collect(),
        );
        let routes = || table.routes.values();
        families.add(
            "outrigger_request_duration_seconds",
            Kind::Histogram,
            Unit::Seconds,
            "From a request's head to the end of its answer.",
            routes().map(|entry| entry.timing(|cells| &cells.durations)).collect(),
        );
        families.add(
            "outrigger_request_body_bytes",
            Kind::Counter,
            Unit::Bytes,
            "Body bytes received from callers.",
            routes().map(|entry| entry.sum(|cells| &cells.received)).collect(),
        );
        families.add(
            "outrigger_response_body_bytes",
            Kind::Counter,
            Unit::Bytes,
            "Body bytes sent to callers.",
            routes().map(|entry| entry.sum(|cells| &cells.sent)).collect(),
        );
        for timed in Timed::ALL {
            let about = timed.about();
            let series = table.timings[timed as usize].values().map(|entry| entry.timing(|timing| timing));
            families.add(about.name, Kind::Histogram, about.unit, about.help, series.collect());
        }
        for event in Event::ALL {
            let about = event.about();
            let series = table.events[event as usize].values().map(|entry| entry.sum(|count| count));
            families.add(about.name, Kind::Counter, about.unit, about.help, series.collect());
        }
        let connections = || table.connections.values();
        families.add(
            "outrigger_connections",
            Kind::Counter,
            Unit::None,
            "Opaque or failed connections that have ended.",
            connections().map(|entry| entry.sum(|cells| &cells.total)).collect(),
        );
        families.add(
            "outrigger_connection_received_bytes",
            Kind::Counter,
            Unit::Bytes,
            "Opaque bytes from callers.",
            connections().map(|entry| entry.sum(|cells| &cells.received)).collect(),
        );
        families.add(
            "outrigger_connection_sent_bytes",
            Kind::Counter,
            Unit::Bytes,
            "Opaque bytes to callers.",
            connections().map(|entry| entry.sum(|cells| &cells.sent)).collect(),
        );
        table.lines()
    }

    fn add_connections(&self, families: &mut Families) {
        let both = |value: &dyn Fn(Direction) -> u64| {
            let each = [Direction::Inbound, Direction::Outbound].into_iter();
            each.map(|direction| {
                Series::of(&[("direction", direction.name())], Value::Whole(value(direction)))
            })
            .collect()
        };
        families.add(
            "outrigger_connections_opened",
            Kind::Counter,
            Unit::None,
            "Connections accepted.",
            both(&|direction| self.traffic[direction as usize].opened.load(Relaxed)),
        );
        families.add(
            "outrigger_connections_open",
            Kind::Gauge,
            Unit::None,
            "Connections open now.",
            both(&|direction| self.connections_open(direction).max(0).unsigned_abs()),
        );
    }

    fn add_control(&self, families: &mut Families, observed: &Observed) {
        let control = &self.control;
        let mut version = vec![("version", env!("CARGO_PKG_VERSION"))];
        version.extend(option_env!("OUTRIGGER_COMMIT").map(|commit| ("commit", commit)));
        families.add(
            "outrigger_build",
            Kind::Info,
            Unit::None,
            "Always 1; the labels say what runs.",
            vec![Series::of(&version, Value::Whole(1))],
        );
        families.gauge("outrigger_ready", Unit::None, "1 when ready.", observed.ready.into());
        families.gauge(
            "outrigger_draining",
            Unit::None,
            "1 from the signal to the exit.",
            observed.draining.into(),
        );
        families.gauge(
            "outrigger_control_plane_connected",
            Unit::None,
            "1 while the stream to the active control plane is open.",
            control.connected.load(Relaxed),
        );
        families.counters(
            "outrigger_config_updates",
            "Configuration updates taken or refused.",
            "result",
            &[("applied", control.applied.load(Relaxed)), ("refused", control.refused.load(Relaxed))],
        );
        families.gauge(
            "outrigger_config_generation",
            Unit::None,
            "Configurations that were in force since the start.",
            observed.config_generation,
        );
        families.gauge(
            "outrigger_config_last_applied_timestamp_seconds",
            Unit::Seconds,
            "When the last update was taken; 0 if none.",
            control.last_applied.load(Relaxed),
        );
        families.counters(
            "outrigger_certificate_requests",
            "Requests for a certificate.",
            "result",
            &[("issued", control.issued.load(Relaxed)), ("failed", control.not_issued.load(Relaxed))],
        );
        families.gauge(
            "outrigger_certificate_not_before_timestamp_seconds",
            Unit::Seconds,
            "When the current certificate began; 0 without one.",
            observed.certificate_begins.map_or(0, unix_seconds),
        );
        families.gauge(
            "outrigger_certificate_not_after_timestamp_seconds",
            Unit::Seconds,
            "When the current certificate ends; 0 without one.",
            observed.certificate_ends.map_or(0, unix_seconds),
        );
    }

    /// What this proxy does with what it says about itself.
    fn add_own(&self, families: &mut Families, observed: &Observed) {
        families.counter(
            "outrigger_metrics_folded",
            "Label sets that a worker met and that were folded into `other`.",
            self.governor.folded(),
        );
        families.counter(
            "outrigger_metrics_evicted",
            "Label sets that left because nothing was counted in them.",
            self.governor.evicted(),
        );
        families.counter(
            "outrigger_access_log_dropped",
            "Access log lines dropped.",
            observed.access_log_dropped,
        );
        families.counter(
            "outrigger_access_log_filtered",
            "Access log lines that the filters left out.",
            observed.access_log_filtered,
        );
        families.counter(
            "outrigger_circuit_events_dropped",
            "Transitions of circuits that the control runtime was not told of.",
            observed.transitions_dropped,
        );
        families.counter("outrigger_spans_exported", "Spans that the backend took.", observed.spans.exported);
        families.counters("outrigger_spans_dropped", "Spans dropped.", "cause", &observed.spans.dropped);
        families.gauge(
            "outrigger_spans_queued",
            Unit::None,
            "Spans that wait to be sent, or are being sent.",
            observed.spans.queued,
        );
        let discarded = observed.spans.discarded.iter().map(|(field, cause, count)| {
            Series::of(&[("field", field), ("cause", cause)], Value::Whole(*count))
        });
        families.add(
            "outrigger_trace_fields_discarded",
            Kind::Counter,
            Unit::None,
            "Fields about a trace that came and were replaced or left out.",
            discarded.collect(),
        );
        let calls = observed.spans.calls.iter().flat_map(|(signal, calls)| {
            let results = ["succeeded", "failed"].into_iter().zip(calls);
            results.map(|(result, count)| {
                Series::of(&[("signal", signal), ("result", result)], Value::Whole(*count))
            })
        });
        families.add(
            "outrigger_otlp_exports",
            Kind::Counter,
            Unit::None,
            "Calls of the telemetry backend.",
            calls.collect(),
        );
        let reports = &observed.reports;
        families.counters(
            "outrigger_reports",
            "Reports of traffic to control planes, by what became of them.",
            "result",
            &[
                ("acknowledged", reports.acknowledged),
                ("merged", reports.merged),
                ("dropped", reports.dropped),
                ("refused", reports.refused),
            ],
        );
        families.gauge(
            "outrigger_reports_waiting",
            Unit::None,
            "Reports that not every connected control plane has acknowledged.",
            reports.waiting,
        );
        families.counter("outrigger_events_dropped", "Events that were not told.", reports.events_dropped);
        // Without a proof there is nothing to say; see `capture_check`.
        if let Some(holds) = observed.capture_holds {
            families.gauge(
                "outrigger_capture_ok",
                Unit::None,
                "Whether the redirect rules still bring outgoing connections here.",
                holds.into(),
            );
        }
        families.counter(
            "outrigger_panics",
            "Faults in the proxy that ended one task.",
            self.panics.load(Relaxed),
        );
        let merges = observed.merges.iter();
        let up = merges
            .clone()
            .map(|merge| Series::of(&[("source", &merge.source)], Value::Whole(merge.why.is_none().into())));
        families.add(
            "outrigger_merge_up",
            Kind::Gauge,
            Unit::None,
            "1 if the application's own metrics could be had last time.",
            up.collect(),
        );
        let dropped = merges.flat_map(|merge| {
            merge.dropped.iter().map(|(cause, count)| {
                Series::of(&[("source", &merge.source), ("cause", cause)], Value::Whole(*count))
            })
        });
        families.add(
            "outrigger_merge_dropped",
            Kind::Counter,
            Unit::None,
            "Lines of the application's own metrics left out.",
            dropped.collect(),
        );
    }
}

/// One family of gauges, by what a policy or the configuration names.
struct Gauges<'a> {
    name: &'static str,
    help: &'static str,
    /// Of the name and of the word.
    labels: [&'static str; 2],
    values: Vec<(&'a str, &'static str, u64)>,
}

fn add_gauges(families: &mut Families, observed: &Observed, room: usize) {
    let all = gauges(observed);
    let most = fair(&all.iter().map(|gauges| gauges.values.len()).collect::<Vec<_>>(), room);
    for Gauges { name, help, labels: [of_name, of_word], values } in all {
        let (kept, rest) = values.split_at(values.len().min(most));
        let series = |name: &str, word: &str, value: u64| {
            Series::of(&[(of_name, name), (of_word, word)], Value::Whole(value))
        };
        let mut lines: Vec<_> = kept.iter().map(|(name, word, value)| series(name, word, *value)).collect();
        if !rest.is_empty() {
            lines.push(series(OTHER, "", rest.iter().map(|(_, _, value)| value).sum()));
        }
        families.add(name, Kind::Gauge, Unit::None, help, lines);
    }
}

/// How many lines a family may have so that all together have `room`, and those that need few have them.
fn fair(wanted: &[usize], room: usize) -> usize {
    let total = |most: usize| wanted.iter().map(|n| (*n).min(most + 1)).sum::<usize>();
    let longest = wanted.iter().copied().max().unwrap_or(0);
    if total(longest) <= room {
        return longest;
    }
    // One more line each for what is folded.
    (0..longest).rev().find(|most| total(*most) <= room).unwrap_or(0)
}

fn gauges(observed: &Observed) -> Vec<Gauges<'_>> {
    let halls = || observed.halls.iter();
    let upstreams = || observed.upstreams.iter();
    vec![
        Gauges {
            name: "outrigger_endpoints_ejected",
            help: "Endpoints that at least one worker has ejected.",
            labels: ["service", ""],
            values: observed.ejected.iter().map(|(service, count)| (&**service, "", *count)).collect(),
        },
        Gauges {
            name: "outrigger_circuits",
            help: "Circuits of endpoints that are not closed, by state.",
            labels: ["service", "state"],
            values: observed.circuits.iter().map(|(service, state, n)| (&**service, *state, *n)).collect(),
        },
        Gauges {
            name: "outrigger_bulkhead_in_flight",
            help: "What a bulkhead has admitted and not yet ended.",
            labels: ["name", ""],
            values: halls().map(|hall| (&*hall.name, "", hall.in_flight)).collect(),
        },
        Gauges {
            name: "outrigger_bulkhead_limit",
            help: "What a bulkhead admits at a time, as of now.",
            labels: ["name", ""],
            values: halls().filter_map(|hall| Some((&*hall.name, "", hall.limit?))).collect(),
        },
        Gauges {
            name: "outrigger_bulkhead_queued",
            help: "What waits to be admitted by a bulkhead.",
            labels: ["name", ""],
            values: halls().map(|hall| (&*hall.name, "", hall.queued)).collect(),
        },
        Gauges {
            name: "outrigger_upstream_connections",
            help: "HTTP connections to endpoints, by state.",
            labels: ["service", "state"],
            values: upstreams()
                .flat_map(|one| {
                    [
                        (&*one.service, "in-use", one.open.saturating_sub(one.idle)),
                        (&*one.service, "idle", one.idle),
                    ]
                })
                .collect(),
        },
        Gauges {
            name: "outrigger_retry_budget_left",
            help: "Requests that may be sent again now.",
            labels: ["service", ""],
            values: upstreams().map(|one| (&*one.service, "", one.retries_left)).collect(),
        },
    ]
}
