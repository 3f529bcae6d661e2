//! The history against a list of everything that was ever reported, and what it does when there is no room.

mod memory;
mod model;
mod restart;

use std::time::Duration;

use outrigger_proto::spec::{Durations, OutcomeCount, Side};

use super::{
    query::{By, Query, Row, Sum},
    *,
};

/// Some day, and a multiple of ten seconds.
pub(super) const DAY: u64 = 1_767_225_600_000;

pub(super) fn id(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
}

pub(super) fn edge(
    service: &str,
    route: &str,
    peer: Option<&str>,
    micros: &[u64],
    status_class: u8,
) -> EdgeTraffic {
    let mut durations = Durations::new();
    micros.iter().for_each(|micros| durations.record(Duration::from_micros(*micros)));
    let side = if service.starts_with(':') { Side::Inbound } else { Side::Outbound };
    let key = EdgeKey { side, service: service.into(), route: route.into(), peer: peer.map(id) };
    let reason: Arc<str> = if status_class == 5 { "upstream-reset".into() } else { "".into() };
    let count = micros.len() as u64;
    let outcome = OutcomeCount { status_class, grpc_status: None, reason, count };
    let outcomes = (count > 0).then_some(outcome).into_iter().collect();
    EdgeTraffic {
        outcomes,
        durations,
        received: 10 * count,
        sent: 100 * count,
        connections: 1,
        ..EdgeTraffic::new(key)
    }
}

pub(super) fn report(epoch: u64, sequence: u64, ended_ago: u64, edges: Vec<EdgeTraffic>) -> TrafficReport {
    let (length, ended_ago) = (Duration::from_secs(1), Duration::from_millis(ended_ago));
    TrafficReport { epoch, sequence, length, ended_ago, edges, events: Vec::new() }
}

/// Milliseconds, as a question has them.
pub(super) fn ask(history: &History, by: By, side: Side, from: u64, to: u64) -> (Vec<Row>, bool) {
    let window = history.window(from, to);
    let query = Query { by, side, window, namespace: None, service: None };
    let name =
        |id: &SpiffeId, port: &str| format!("{}/{}:{port}", id.namespace(), id.service_account()).into();
    let (groups, _) = query.groups(history.list(side, window), name);
    let mut sum = Sum::default();
    let mut incomplete = history.is_evicted(window);
    let rows = groups.iter().filter_map(|group| {
        group.series().iter().for_each(|listed| history.add_up(listed, window, &mut sum));
        let row = history.row(group, &query, &mut sum)?;
        incomplete |= group.is_incomplete();
        Some(row)
    });
    let rows = rows.collect();
    (rows, incomplete)
}

fn one(history: &History, from: u64, to: u64) -> Row {
    let (mut rows, _) = ask(history, By::Service, Side::Outbound, from, to);
    assert_eq!(rows.len(), 1, "{rows:#?}");
    rows.remove(0)
}

#[test]
fn a_report_is_told_as_it_was() {
    let mut history = History::new(1 << 30, false, DAY);
    let mut told = edge("shop/orders:80", "r", Some("orders"), &[1_000, 2_000, 3_000, 100_000], 2);
    told.security = Some("TLSv1_3 X Y".into());
    let failed = edge("shop/orders:80", "r", None, &[50_000], 5);
    assert_eq!(history.take(&id("web"), &report(7, 1, 0, vec![told, failed]), DAY), Taken::New);

    let row = one(&history, DAY - 10_000, DAY);
    assert_eq!((row.requests, row.failures, row.connections), (5, 1, 2));
    assert_eq!((row.received, row.sent), (50, 500));
    assert_eq!((row.rate, row.success), (0.5, Some(0.8)));
    assert_eq!(row.security.as_deref(), Some("TLSv1_3 X Y"));
    assert!(!row.meshed, "one of the two had no identity");
    assert_eq!((row.p50_us, row.max_us), (Some(3_007), Some(100_351)));
    let outcomes: Vec<_> =
        row.outcomes.iter().map(|it| (&*it.status, it.reason.as_deref(), it.count)).collect();
    assert_eq!(outcomes, [("2xx", None, 4), ("5xx", Some("upstream-reset"), 1)]);

    let (edges, incomplete) = ask(&history, By::Edge, Side::Outbound, DAY - 10_000, DAY);
    let ends: Vec<_> =
        edges.iter().map(|row| (row.source.as_deref(), row.target.as_deref(), row.meshed)).collect();
    let (web, orders) = (id("web"), id("orders"));
    assert_eq!(ends, [(Some(web.as_str()), None, false), (Some(web.as_str()), Some(orders.as_str()), true)]);
    assert!(!incomplete);
    assert_eq!(ask(&history, By::Service, Side::Inbound, DAY - 10_000, DAY).0, []);
    assert_eq!(ask(&history, By::Service, Side::Outbound, DAY, DAY + 10_000).0, [], "it was before");
}

#[test]
fn an_answer_that_was_cut_short_is_a_failure() {
    let mut history = History::new(1 << 30, false, DAY);
    let mut told = edge("shop/orders:80", "r", None, &[1_000, 2_000, 3_000], 2);
    let cut = OutcomeCount { reason: "upstream-reset".into(), count: 1, ..told.outcomes[0].clone() };
    told.outcomes[0].count = 2;
    told.outcomes.push(cut);
    history.take(&id("web"), &report(7, 1, 0, vec![told]), DAY);
    let row = one(&history, DAY - 10_000, DAY);
    assert_eq!((row.requests, row.failures), (3, 1));
    let failed: Vec<_> = row.outcomes.iter().map(|it| (it.reason.as_deref(), it.failed)).collect();
    assert_eq!(failed, [(None, false), (Some("upstream-reset"), true)]);
}

#[test]
fn connections_without_requests_are_a_row_without_percentiles() {
    let mut history = History::new(1 << 30, false, DAY);
    history.take(&id("web"), &report(7, 1, 0, vec![edge("shop/db:5432", "", None, &[], 2)]), DAY);
    let row = one(&history, DAY - 10_000, DAY);
    assert_eq!((row.requests, row.connections, row.success), (0, 1, None));
    assert_eq!((row.p50_us, row.p999_us, row.max_us), (None, None, None));
}

#[test]
fn ports_are_named_and_questions_narrowed() {
    let mut history = History::new(1 << 30, false, DAY);
    let edges = vec![
        edge("shop/orders:80", "a", None, &[10], 2),
        edge("shop/orders:81", "b", None, &[10], 2),
        edge("bank/orders:80", "", None, &[10], 2),
        edge("external", "", None, &[10], 2),
        edge(":8080", "", Some("x"), &[10], 2),
    ];
    history.take(&id("web"), &report(7, 1, 0, edges), DAY);
    let window = history.window(DAY - 10_000, DAY);
    let ask = |side, namespace: Option<&str>, service: Option<&str>| {
        let (namespace, service) = (namespace.map(Into::into), service.map(Into::into));
        let query = Query { by: By::Service, side, window, namespace, service };
        let name = |_: &SpiffeId, port: &str| format!("shop/named:{port}").into();
        let (groups, all) = query.groups(history.list(side, window), name);
        assert_eq!(groups.len(), all);
        let mut sum = Sum::default();
        let rows = groups.iter().map(|group| {
            group.series().iter().for_each(|listed| history.add_up(listed, window, &mut sum));
            history.row(group, &query, &mut sum).unwrap().service.to_string()
        });
        rows.collect::<Vec<_>>()
    };
    let out = |namespace, service| ask(Side::Outbound, namespace, service);
    assert_eq!(out(None, None), ["bank/orders:80", "external", "shop/orders:80", "shop/orders:81"]);
    assert_eq!(out(Some("shop"), None), ["external", "shop/orders:80", "shop/orders:81"]);
    assert_eq!(out(None, Some("orders")), ["bank/orders:80", "shop/orders:80", "shop/orders:81"]);
    assert_eq!(out(None, Some("orders:80")), ["bank/orders:80", "shop/orders:80"]);
    assert_eq!(out(None, Some("shop/orders")), ["shop/orders:80", "shop/orders:81"]);
    assert_eq!(out(None, Some("shop/orders:80")), ["shop/orders:80"]);
    assert_eq!(out(Some("bank"), Some("orders")), ["bank/orders:80"]);
    assert_eq!(out(None, Some("order")), [""; 0]);
    assert_eq!(ask(Side::Inbound, None, None), ["shop/named:8080"]);
    assert_eq!(ask(Side::Inbound, None, Some("named")), ["shop/named:8080"]);
}

#[test]
fn seconds_become_tens_and_go_after_six_hours() {
    let mut history = History::new(1 << 30, false, DAY);
    for second in 0..20 {
        let edges = vec![edge("shop/orders:80", "", None, &[1_000 + second], 2)];
        history.take(&id("web"), &report(7, second + 1, 0, edges), DAY + 1_000 * second);
    }
    let from = DAY + 4_000;
    let window = history.window(from, from + 5_000);
    assert_eq!((window.from, window.to, window.resolution_ms), (from / 1000, from / 1000 + 5, 1000));
    assert_eq!(one(&history, from, from + 5_000).requests, 5);

    history.advance(DAY + 700_000);
    let window = history.window(from, from + 5_000);
    assert_eq!((window.from, window.to, window.resolution_ms), (DAY / 1000, DAY / 1000 + 10, 10_000));
    // The report that came at the full second is about the one before it.
    assert_eq!(one(&history, from, from + 5_000).requests, 10);
    assert_eq!(one(&history, DAY - 10_000, DAY + 700_000).requests, 20);
    assert_eq!(history.size().fine_seconds, 600);

    history.advance(DAY + (KEPT + 100) * 1000);
    assert_eq!(ask(&history, By::Service, Side::Outbound, 0, DAY * 2).0, []);
    assert_eq!((history.size().series, history.size().bytes), (0, 0), "nothing is left of it");
    assert_eq!(history.size().epochs, 0);
}

#[test]
fn what_is_too_old_is_counted_and_a_clock_that_goes_back_is_not_followed() {
    let mut history = History::new(1 << 30, false, DAY);
    let edges = || vec![edge("shop/orders:80", "", None, &[1_000], 2)];
    history.take(&id("web"), &report(7, 1, (KEPT + 100) * 1000, edges()), DAY);
    assert_eq!(history.counts().late, 1);
    history.take(&id("web"), &report(7, 2, u64::MAX / 2_000, edges()), DAY);
    assert_eq!(history.counts().late, 2);
    history.take(&id("web"), &report(7, 3, 0, edges()), DAY - 5_000_000);
    assert_eq!(one(&history, DAY - 2_000, DAY).requests, 1, "it counts now");
}
