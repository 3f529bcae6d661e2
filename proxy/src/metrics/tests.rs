use std::{
    num::{NonZeroU64, NonZeroU128},
    time::UNIX_EPOCH,
};

use outrigger_certs::SpiffeId;
use outrigger_core::{
    trace::{SpanId, TraceId},
    verdict::Reason,
};

use super::{families::Labels, *};
use crate::{
    access_log::AccessLog,
    telemetry::{ConnectionRecord, Handled, Protocol, RequestRecord, Shard, Telemetry, Traced},
};

mod budget;
mod formats;

fn record<'a>(service: &'a str, route: &'a str) -> RequestRecord<'a> {
    RequestRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Http2,
        method: "GET",
        authority: "",
        path: "/",
        status: 200,
        grpc_status: None,
        reason: None,
        detail: "",
        peer: None,
        caller: "10.0.0.1:1".parse().unwrap(),
        service,
        route,
        endpoint: None,
        received: 10,
        sent: 20,
        first_byte: Duration::ZERO,
        duration: Duration::from_millis(3),
        attempts: 1,
        tries: &[],
        security: "",
        trace: None,
        handled: Handled::default(),
        id: 0,
    }
}

fn connection(service: &str) -> ConnectionRecord<'_> {
    ConnectionRecord {
        direction: Direction::Inbound,
        protocol: Protocol::Tcp,
        reason: None,
        detail: "",
        peer: None,
        caller: "10.0.0.1:1".parse().unwrap(),
        service,
        authority: "",
        endpoint: None,
        received: 5,
        sent: 6,
        connected: Duration::ZERO,
        duration: Duration::ZERO,
        attempts: 1,
        security: "",
        trace: None,
        id: 0,
    }
}

/// What a worker counts with.
fn shard(registry: &Arc<Registry>) -> Shard {
    Telemetry::with(Arc::clone(registry), AccessLog::off()).shard()
}

/// The value of a line; panics with the page if it is not there.
fn value(page: &str, line: &str) -> String {
    let found = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{line} is not in\n{page}")).to_owned()
}

#[test]
fn shards_are_added_up() {
    let registry = Registry::new(SERIES_BUDGET);
    let (one, two) = (shard(&registry), shard(&registry));
    for _ in 0..3 {
        one.request(&record("shop/orders:80", "shop/r/0"));
    }
    two.request(&RequestRecord { attempts: 3, ..record("shop/orders:80", "shop/r/0") });
    two.request(&RequestRecord {
        status: 503,
        reason: Some(Reason::NoEndpoints),
        ..record("shop/orders:80", "")
    });
    one.connection(&connection(":5432"));
    two.connection(&connection(":5432"));
    let page = registry.render(&Observed::default());
    let labels = "direction=\"outbound\",protocol=\"http2\",service=\"shop/orders:80\"";
    assert_eq!(
        value(&page, &format!("outrigger_requests_total{{{labels},route=\"shop/r/0\",status=\"2xx\"}}")),
        "4"
    );
    assert_eq!(
        value(&page, &format!("outrigger_requests_total{{{labels},status=\"5xx\",reason=\"no-endpoints\"}}")),
        "1"
    );
    let route = "direction=\"outbound\",service=\"shop/orders:80\",route=\"shop/r/0\"";
    assert_eq!(value(&page, &format!("outrigger_request_body_bytes_total{{{route}}}")), "40");
    assert_eq!(value(&page, &format!("outrigger_response_body_bytes_total{{{route}}}")), "80");
    let retries = "outrigger_retries_total{service=\"shop/orders:80\",outcome=\"succeeded\"}";
    assert_eq!(value(&page, retries), "2");
    let tcp = "direction=\"inbound\",protocol=\"tcp\",security=\"none\",service=\":5432\"";
    assert_eq!(value(&page, &format!("outrigger_connections_total{{{tcp}}}")), "2");
    assert_eq!(value(&page, &format!("outrigger_connection_sent_bytes_total{{{tcp}}}")), "12");
}

#[test]
fn buckets_are_cumulative_and_their_bounds_inclusive() {
    let registry = Registry::new(SERIES_BUDGET);
    let shard = shard(&registry);
    for micros in [1, 500, 501, 10_000_000, 10_000_001] {
        shard.request(&RequestRecord { duration: Duration::from_micros(micros), ..record("s", "") });
    }
    let page = registry.render(&Observed::default());
    let of = |le: &str| {
        let name = "outrigger_request_duration_seconds_bucket";
        value(&page, &format!("{name}{{direction=\"outbound\",service=\"s\",le=\"{le}\"}}"))
    };
    for (le, count) in [("0.0005", "2"), ("0.001", "3"), ("5.0", "3"), ("10.0", "4"), ("+Inf", "5")] {
        assert_eq!(of(le), count, "{le}");
    }
    let labels = "{direction=\"outbound\",service=\"s\"}";
    assert_eq!(value(&page, &format!("outrigger_request_duration_seconds_count{labels}")), "5");
    assert_eq!(value(&page, &format!("outrigger_request_duration_seconds_sum{labels}")), "20.001003");
}

#[test]
fn a_peer_invents_no_grpc_status() {
    let registry = Registry::new(SERIES_BUDGET);
    let shard = shard(&registry);
    for status in (0..=u16::MAX).step_by(7) {
        shard.request(&RequestRecord { grpc_status: Some(status), ..record("s", "") });
    }
    let page = registry.render(&Observed::default());
    let statuses = page.lines().filter(|line| line.starts_with("outrigger_requests_total{"));
    assert_eq!(statuses.count(), 4, "0, 7, 14 and other: {page}");
    assert!(page.contains("grpc_status=\"other\""), "{page}");
}

#[test]
fn handshakes_connections_and_control() {
    let registry = Registry::new(SERIES_BUDGET);
    let (one, two) = (shard(&registry), shard(&registry));
    for shard in [&one, &two] {
        shard.handshake_failed(Direction::Inbound, "expired");
    }
    registry.connection_opened(Direction::Inbound);
    registry.connection_opened(Direction::Inbound);
    registry.connection_closed(Direction::Inbound);
    registry.config_applied(UNIX_EPOCH + Duration::from_secs(1000));
    registry.config_refused();
    registry.certificate_issued();
    registry.control_plane(true);
    registry.panicked();
    let observed = Observed {
        ready: true,
        certificate_begins: Some(UNIX_EPOCH + Duration::from_secs(1500)),
        certificate_ends: Some(UNIX_EPOCH + Duration::from_secs(2000)),
        config_generation: 9,
        access_log_dropped: 7,
        transitions_dropped: 8,
        ejected: vec![("shop/orders:80".to_owned(), 1)],
        circuits: vec![("shop/orders:80".to_owned(), "half-open", 1)],
        halls: vec![Hall { name: "port/8080".to_owned(), in_flight: 3, limit: Some(4), queued: 5 }],
        upstreams: vec![Upstream {
            service: "shop/orders:80".to_owned(),
            open: 5,
            idle: 2,
            retries_left: 11,
        }],
        reports: Reports { merged: 6, ..Reports::default() },
        ..Observed::default()
    };
    let page = registry.render(&observed);
    for (line, expected) in [
        ("outrigger_circuit_events_dropped_total", "8"),
        ("outrigger_endpoints_ejected{service=\"shop/orders:80\"}", "1"),
        ("outrigger_circuits{service=\"shop/orders:80\",state=\"half-open\"}", "1"),
        ("outrigger_upstream_connections{service=\"shop/orders:80\",state=\"in-use\"}", "3"),
        ("outrigger_upstream_connections{service=\"shop/orders:80\",state=\"idle\"}", "2"),
        ("outrigger_retry_budget_left{service=\"shop/orders:80\"}", "11"),
        ("outrigger_reports_total{result=\"merged\"}", "6"),
        ("outrigger_config_generation", "9"),
        ("outrigger_certificate_not_before_timestamp_seconds", "1500"),
        ("outrigger_bulkhead_in_flight{name=\"port/8080\"}", "3"),
        ("outrigger_bulkhead_limit{name=\"port/8080\"}", "4"),
        ("outrigger_bulkhead_queued{name=\"port/8080\"}", "5"),
        ("outrigger_handshake_failures_total{direction=\"inbound\",cause=\"expired\"}", "2"),
        ("outrigger_connections_opened_total{direction=\"inbound\"}", "2"),
        ("outrigger_connections_open{direction=\"inbound\"}", "1"),
        ("outrigger_connections_open{direction=\"outbound\"}", "0"),
        ("outrigger_config_updates_total{result=\"applied\"}", "1"),
        ("outrigger_config_updates_total{result=\"refused\"}", "1"),
        ("outrigger_config_last_applied_timestamp_seconds", "1000"),
        ("outrigger_certificate_not_after_timestamp_seconds", "2000"),
        ("outrigger_certificate_requests_total{result=\"issued\"}", "1"),
        ("outrigger_control_plane_connected", "1"),
        ("outrigger_access_log_dropped_total", "7"),
        ("outrigger_ready", "1"),
        ("outrigger_panics_total", "1"),
        (
            "outrigger_metrics_series",
            &*(page.lines().filter(|line| !line.starts_with('#')).count().to_string()),
        ),
    ] {
        assert_eq!(value(&page, line), expected, "{line}");
    }
    assert!(value(&page, "process_resident_memory_bytes").parse::<u64>().unwrap() > 100_000);
    assert!(value(&page, "process_open_fds").parse::<u64>().unwrap() > 2);
}

/// Every family has one head before its lines, and every line is a name, labels and a number.
#[test]
fn the_page_keeps_the_format() {
    let registry = Registry::new(SERIES_BUDGET);
    let shard = shard(&registry);
    shard.request(&record("s", "r"));
    shard.connection(&connection("s"));
    let page = registry.render(&Observed::default());
    let mut seen = std::collections::HashSet::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(head) = line.strip_prefix("# TYPE ") {
            family = head.split(' ').next().unwrap().to_owned();
            assert!(seen.insert(family.clone()), "{family} twice");
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            assert!(name.starts_with(&family), "{line} under {family}");
            assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
        }
    }
}

#[test]
fn what_resilience_did_is_counted_by_service() {
    let registry = Registry::new(SERIES_BUDGET);
    let shard = shard(&registry);
    let handled = Handled {
        gave_up: Some("budget"),
        hedged: Some("won"),
        fallback: Some("stale"),
        cache: Some("miss"),
        queued: Duration::from_millis(40),
        ..Handled::default()
    };
    shard.request(&RequestRecord { handled, attempts: 3, status: 503, ..record("shop/orders:80", "") });
    shard.event(Event::RateLimited, "TrafficPolicy/shop/orders/per-user", ["false", ""]);
    let page = registry.render(&Observed::default());
    let of = "service=\"shop/orders:80\"";
    for (line, expected) in [
        // One of the three attempts was the hedge.
        (format!("outrigger_retries_total{{{of},outcome=\"failed\"}}"), "1"),
        (format!("outrigger_retry_budget_exhausted_total{{{of}}}"), "1"),
        (format!("outrigger_hedges_total{{{of},outcome=\"won\"}}"), "1"),
        (format!("outrigger_fallbacks_total{{{of},to=\"stale\"}}"), "1"),
        (format!("outrigger_cache_total{{{of},result=\"miss\"}}"), "1"),
        (format!("outrigger_request_queue_seconds_sum{{{of},direction=\"outbound\"}}"), "0.040000"),
        (format!("outrigger_request_queue_seconds_count{{{of},direction=\"outbound\"}}"), "1"),
        (
            "outrigger_rate_limited_total{limit=\"TrafficPolicy/shop/orders/per-user\",dry_run=\"false\"}"
                .to_owned(),
            "1",
        ),
    ] {
        assert_eq!(value(&page, &line), expected, "{line}");
    }
}

/// A request that the tracing backend has, or not.
fn traced(n: u64, sampled: bool) -> Option<Traced> {
    let trace = TraceId(NonZeroU128::new(u128::from(n) << 64 | 0xabc).unwrap());
    Some(Traced { trace, span: SpanId(NonZeroU64::new(n).unwrap()), sampled })
}
