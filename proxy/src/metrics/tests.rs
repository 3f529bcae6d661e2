use outrigger_certs::SpiffeId;

use super::*;
use crate::telemetry::Handled;

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

/// The value of a line; panics with the page if it is not there.
fn value(page: &str, line: &str) -> String {
    let found = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("{line} is not in\n{page}")).to_owned()
}

#[test]
fn shards_are_added_up() {
    let registry = Registry::new(100);
    let (mut one, mut two) = (registry.shard(), registry.shard());
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
    let registry = Registry::new(100);
    let mut shard = registry.shard();
    for micros in [1, 500, 501, 10_000_000, 10_000_001] {
        shard.request(&RequestRecord { duration: Duration::from_micros(micros), ..record("s", "") });
    }
    let page = registry.render(&Observed::default());
    let of = |le: &str| {
        let name = "outrigger_request_duration_seconds_bucket";
        value(&page, &format!("{name}{{direction=\"outbound\",service=\"s\",le=\"{le}\"}}"))
    };
    for (le, count) in [("0.0005", "2"), ("0.001", "3"), ("5", "3"), ("10", "4"), ("+Inf", "5")] {
        assert_eq!(of(le), count, "{le}");
    }
    let labels = "{direction=\"outbound\",service=\"s\"}";
    assert_eq!(value(&page, &format!("outrigger_request_duration_seconds_count{labels}")), "5");
    assert_eq!(value(&page, &format!("outrigger_request_duration_seconds_sum{labels}")), "20.001003");
}

#[test]
fn label_sets_beyond_the_budget_are_folded_and_counted() {
    const BUDGET: usize = 50;
    let registry = Registry::new(BUDGET);
    let mut shard = registry.shard();
    let services: Vec<String> = (0..1000).map(|n| format!("s{n}")).collect();
    for _ in 0..2 {
        for service in &services {
            shard.request(&record(service, ""));
        }
    }
    let page = registry.render(&Observed::default());
    let counted: u64 = page
        .lines()
        .filter(|line| line.starts_with("outrigger_requests_total{"))
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 2000, "nothing is lost");
    let other = "direction=\"outbound\",protocol=\"http2\",service=\"other\",route=\"other\",status=\"2xx\"";
    assert_eq!(
        value(&page, &format!("outrigger_requests_total{{{other}}}")),
        (2 * (1000 - BUDGET / 2)).to_string()
    );
    let series: usize = value(&page, "outrigger_metrics_series").parse().unwrap();
    assert_eq!(series, BUDGET + 2, "the folded sets come on top");
    assert!(value(&page, "outrigger_metrics_folded_total").parse::<u64>().unwrap() > 1000);
    assert!(shard.requests.len() <= 100, "the way to the cells is bounded too: {}", shard.requests.len());
}

#[test]
fn strangers_choose_no_labels() {
    let peer = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap();
    let (denied, refused) = (Some(Reason::Denied), Some(Reason::MtlsRequired));
    for (direction, name, known, reason, label) in [
        (Direction::Outbound, "shop/orders:80", false, None, "shop/orders:80"),
        (Direction::Outbound, "address/203.0.113.7:443", false, None, EXTERNAL),
        (Direction::Outbound, "authority/orders.shop:80", false, refused, "authority/orders.shop:80"),
        (Direction::Inbound, ":8080", true, denied, ":8080"),
        (Direction::Inbound, ":8080", false, None, ":8080"),
        (Direction::Inbound, ":8080", false, refused, ""),
    ] {
        let record = ConnectionRecord { direction, reason, peer: known.then_some(&peer), ..connection(name) };
        assert_eq!(
            service(record.direction, record.service, record.peer.is_some(), record.reason),
            label,
            "{name}"
        );
    }
}

#[test]
fn labels_cannot_break_out() {
    let registry = Registry::new(10);
    registry.shard().request(&record("a\"} 1\nforged{x=\"\\", ""));
    let page = registry.render(&Observed::default());
    assert!(page.contains(r#"service="a\"} 1\nforged{x=\"\\""#), "{page}");
    assert!(!page.lines().any(|line| line.starts_with("forged")), "{page}");
}

#[test]
fn handshakes_connections_and_control() {
    let registry = Registry::new(10);
    let (mut one, mut two) = (registry.shard(), registry.shard());
    one.handshake_failed(Direction::Inbound, "expired");
    two.handshake_failed(Direction::Inbound, "expired");
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
        draining: false,
        certificate_ends: Some(UNIX_EPOCH + Duration::from_secs(2000)),
        access_log_dropped: 7,
        transitions_dropped: 8,
        ejected: vec![("shop/orders:80".to_owned(), 1)],
        halls: vec![Hall { name: "port/8080".to_owned(), in_flight: 3, limit: Some(4), queued: 5 }],
    };
    let page = registry.render(&observed);
    for (line, expected) in [
        ("outrigger_circuit_events_dropped_total", "8"),
        ("outrigger_endpoints_ejected{service=\"shop/orders:80\"}", "1"),
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
        ("outrigger_metrics_series", "1"),
    ] {
        assert_eq!(value(&page, line), expected, "{line}");
    }
    assert!(value(&page, "process_resident_memory_bytes").parse::<u64>().unwrap() > 100_000);
    assert!(value(&page, "process_open_fds").parse::<u64>().unwrap() > 2);
}

/// Every family has one head before its lines, and every line is a name, labels and a number.
#[test]
fn the_page_keeps_the_format() {
    let registry = Registry::new(10);
    let mut shard = registry.shard();
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
    let registry = Registry::new(100);
    let mut shard = registry.shard();
    let handled = Handled {
        gave_up: Some("budget"),
        hedged: Some("won"),
        fallback: Some("stale"),
        cache: Some("miss"),
        ..Handled::default()
    };
    shard.request(&RequestRecord { handled, attempts: 3, status: 503, ..record("shop/orders:80", "") });
    shard.event(Event::RateLimited, "TrafficPolicy/shop/orders/per-user", ["false", ""], 2);
    let page = registry.render(&Observed::default());
    let of = "service=\"shop/orders:80\"";
    for (line, expected) in [
        // One of the three attempts was the hedge.
        (format!("outrigger_retries_total{{{of},outcome=\"failed\"}}"), "1"),
        (format!("outrigger_retry_budget_exhausted_total{{{of}}}"), "1"),
        (format!("outrigger_hedges_total{{{of},outcome=\"won\"}}"), "1"),
        (format!("outrigger_fallbacks_total{{{of},to=\"stale\"}}"), "1"),
        (format!("outrigger_cache_total{{{of},result=\"miss\"}}"), "1"),
        (
            "outrigger_rate_limited_total{limit=\"TrafficPolicy/shop/orders/per-user\",dry_run=\"false\"}"
                .to_owned(),
            "2",
        ),
    ] {
        assert_eq!(value(&page, &line), expected, "{line}");
    }
}
