use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::telemetry::{Handled, Protocol};

fn identity(name: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
}

fn request<'a>(service: &'a str, peer: Option<&'a SpiffeId>) -> RequestRecord<'a> {
    RequestRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Http1,
        method: "GET",
        authority: "",
        path: "/",
        status: 200,
        grpc_status: None,
        reason: None,
        detail: "",
        peer,
        caller: ([127, 0, 0, 1], 1).into(),
        service,
        route: "",
        endpoint: None,
        received: 0,
        sent: 0,
        first_byte: Duration::ZERO,
        duration: Duration::from_millis(1),
        attempts: 1,
        tries: &[],
        security: "",
        trace: None,
        handled: Handled::default(),
        id: 1,
    }
}

fn connection<'a>(service: &'a str, peer: Option<&'a SpiffeId>) -> ConnectionRecord<'a> {
    ConnectionRecord {
        direction: Direction::Outbound,
        protocol: Protocol::Tcp,
        reason: None,
        detail: "",
        peer,
        caller: ([127, 0, 0, 1], 1).into(),
        service,
        authority: "",
        endpoint: None,
        received: 0,
        sent: 0,
        connected: Duration::ZERO,
        duration: Duration::from_secs(1),
        attempts: 1,
        security: "",
        trace: None,
        id: 1,
    }
}

fn table() -> Table {
    Table::new(&Reports::new())
}

fn requests(edges: &[EdgeTraffic]) -> u64 {
    edges.iter().map(EdgeTraffic::requests).sum()
}

#[derive(Clone, Debug)]
struct Seen {
    direction: Direction,
    service: &'static str,
    route: &'static str,
    peer: Option<&'static str>,
    status: u16,
    grpc: Option<u16>,
    reason: Option<Reason>,
    micros: u64,
    bytes: (u64, u64),
    opaque: bool,
    /// The workers' answers are taken after it.
    take: bool,
}

fn seen() -> impl Strategy<Value = Seen> {
    let what = (
        select(vec![Direction::Inbound, Direction::Outbound]),
        select(vec!["shop/orders:80", "shop/users:80", ":8080"]),
        select(vec!["", "shop/r/0"]),
        option::of(select(vec!["web", "batch"])),
    );
    let how = (
        select(vec![0u16, 200, 204, 404, 503, 999]),
        option::of(select(vec![0u16, 14, 16, 17, 999])),
        option::of(select(vec![Reason::Denied, Reason::UpstreamReset])),
    );
    (what, how, 10..5_000_000u64, (0..1_000u64, 0..1_000u64), any::<bool>(), any::<bool>()).prop_map(
        |((direction, service, route, peer), (status, grpc, reason), micros, bytes, opaque, take)| Seen {
            direction,
            service,
            route,
            peer,
            status,
            grpc,
            reason,
            micros,
            bytes,
            opaque,
            take,
        },
    )
}

proptest! {
    /// Against the simplest way to add up.
    #[test]
    fn it_adds_up_what_it_was_told(all in vec(seen(), 0..120)) {
        let mut table = table();
        let mut model = BTreeMap::<EdgeKey, EdgeTraffic>::new();
        let mut sums = BTreeMap::<EdgeKey, EdgeTraffic>::new();
        let mut add = |taken: Vec<EdgeTraffic>| {
            for edge in taken {
                let empty = EdgeTraffic::new(edge.key.clone());
                sums.entry(edge.key.clone()).or_insert(empty).add(&edge);
            }
        };
        for seen in &all {
            let peer = seen.peer.map(identity);
            let side = if seen.direction == Direction::Inbound { Side::Inbound } else { Side::Outbound };
            // An inbound caller without an identity that was refused names no service.
            let named = side == Side::Outbound || peer.is_some() || seen.reason.is_none();
            let key = EdgeKey {
                side,
                service: if named { seen.service.into() } else { "".into() },
                route: if seen.opaque { "".into() } else { seen.route.into() },
                peer: peer.clone(),
            };
            let edge = model.entry(key.clone()).or_insert_with(|| EdgeTraffic::new(key));
            edge.received += seen.bytes.0;
            edge.sent += seen.bytes.1;
            if seen.opaque {
                edge.connections += 1;
                edge.connections_failed += u64::from(seen.reason.is_some());
                table.connection(&ConnectionRecord {
                    direction: seen.direction,
                    reason: seen.reason,
                    received: seen.bytes.0,
                    sent: seen.bytes.1,
                    ..connection(seen.service, peer.as_ref())
                });
            } else {
                let duration = Duration::from_micros(seen.micros);
                edge.durations.record(duration);
                let outcome = OutcomeCount {
                    status_class: match seen.status { 200 | 204 => 2, 404 => 4, 503 => 5, _ => 0 },
                    grpc_status: seen.grpc.map(|status| if status > 16 { 2 } else { status as u8 }),
                    reason: seen.reason.map_or("", Reason::as_str).into(),
                    count: 1,
                };
                match edge.outcomes.iter_mut().find(|known| known.is_like(&outcome)) {
                    Some(known) => known.count += 1,
                    None => edge.outcomes.push(outcome),
                }
                table.request(&RequestRecord {
                    direction: seen.direction,
                    status: seen.status,
                    grpc_status: seen.grpc,
                    reason: seen.reason,
                    route: seen.route,
                    received: seen.bytes.0,
                    sent: seen.bytes.1,
                    duration,
                    ..request(seen.service, peer.as_ref())
                });
            }
            if seen.take {
                add(table.take());
            }
        }
        add(table.take());
        prop_assert!(table.take().is_empty(), "everything is told once");
        let sorted = |edges: BTreeMap<EdgeKey, EdgeTraffic>| -> Vec<_> {
            edges.into_values().map(|mut edge| {
                edge.outcomes.sort_by_key(|one| (one.status_class, one.grpc_status, one.reason.clone()));
                edge
            }).collect()
        };
        prop_assert_eq!(sorted(sums), sorted(model));
    }
}

#[test]
fn how_a_connection_is_secured_is_remembered() {
    let mut table = table();
    let peer = identity("orders");
    for (security, told) in [("", None), ("TLSv1_3 A B", Some("TLSv1_3 A B")), ("", Some("TLSv1_3 A B"))] {
        table.request(&RequestRecord { security, ..request("shop/orders:80", Some(&peer)) });
        assert_eq!(table.take()[0].security.as_deref(), told);
    }
    table.connection(&ConnectionRecord {
        security: "TLSv1_3 C D",
        ..connection("shop/orders:80", Some(&peer))
    });
    assert_eq!(table.take()[0].security.as_deref(), Some("TLSv1_3 C D"));
}

#[test]
fn destinations_outside_are_one() {
    let mut table = table();
    table.connection(&connection("address/203.0.113.7:443", None));
    table.connection(&connection("address/203.0.113.8:443", None));
    let taken = table.take();
    assert_eq!((taken.len(), &*taken[0].key.service, taken[0].connections), (1, "external", 2));
}

#[test]
fn edges_beyond_the_limit_are_one_until_there_is_room() {
    let mut table = table();
    let names: Vec<_> = (0..MAX_EDGES + 100).map(|number| format!("shop/s{number}:80")).collect();
    let peer = identity("orders");
    for _ in 0..2 {
        names.iter().for_each(|name| table.request(&request(name, Some(&peer))));
    }
    let taken = table.take();
    assert_eq!((taken.len(), requests(&taken)), (MAX_EDGES + 1, 2 * names.len() as u64));
    let other = taken.iter().find(|edge| &*edge.key.service == OTHER).unwrap();
    assert_eq!((other.requests(), &*other.key.route, &other.key.peer), (200, OTHER, &None));
    // In the next second others may be busy.
    names.iter().rev().for_each(|name| table.request(&request(name, Some(&peer))));
    let taken = table.take();
    assert_eq!((requests(&taken), taken.iter().filter(|edge| &*edge.key.service == OTHER).count()), (600, 1));
    let last = format!("shop/s{}:80", MAX_EDGES + 99);
    assert!(taken.iter().any(|edge| *edge.key.service == last));
    assert!(table.edges.len() <= MAX_EDGES + 2);
}

#[test]
fn ways_to_end_are_limited() {
    let mut table = table();
    for status in [200, 500] {
        for code in 0..=16 {
            for reason in Reason::ALL {
                let (grpc_status, reason) = (Some(code), Some(reason));
                table.request(&RequestRecord { status, grpc_status, reason, ..request("s", None) });
            }
        }
    }
    let taken = table.take().remove(0);
    assert!(taken.outcomes.len() <= MAX_REPORT_OUTCOMES, "{}", taken.outcomes.len());
    assert_eq!(taken.requests(), 2 * 17 * Reason::ALL.len() as u64);
    let rest = |class| {
        taken.outcomes.iter().find(|one| &*one.reason == OTHER && one.status_class == class).unwrap().count
    };
    assert!(rest(2) > 0 && rest(5) > 0);
}

#[test]
fn what_is_not_used_is_given_back() {
    let reports = Reports::new();
    let mut table = Table::new(&reports);
    assert!(!reports.has_tables());
    for service in ["a", "b"] {
        table.request(&RequestRecord { duration: Duration::from_secs(60), ..request(service, None) });
    }
    assert!(reports.has_tables());
    for _ in 0..LINGER {
        table.take();
        table.request(&request("a", None));
    }
    assert_eq!(table.edges.len(), 2);
    table.take();
    assert_eq!(table.edges.len(), 1, "the other one was used all the time");
    (0..LINGER).for_each(|_| _ = table.take());
    assert_eq!((table.edges.len(), table.edges.capacity()), (0, 0));
    assert!(!reports.has_tables(), "nobody asks it any more");
    // And again, also by one that ends.
    table.request(&request("a", None));
    assert!(reports.has_tables());
    drop(table);
    assert!(!reports.has_tables());
}

#[test]
fn nothing_is_lost_by_an_answer_that_nobody_takes() {
    let reports = Reports::new();
    let mut table = Table::new(&reports);
    let (give, mut given) = mpsc::channel(1);
    table.request(&request("a", None));
    table.give(0, &give);
    table.request(&request("a", None));
    table.give(0, &give);
    let (worker, taken) = given.try_recv().unwrap();
    assert_eq!((worker, requests(&taken)), (0, 1));
    drop(given);
    table.request(&request("a", None));
    table.give(0, &give);
    table.request(&request("a", None));
    drop(table);
    assert_eq!(requests(&reports.state().left), 3);
}

#[test]
fn a_name_that_is_too_long_is_cut_and_still_found() {
    let mut table = table();
    let name = "ü".repeat(1_000);
    for _ in 0..3 {
        table.request(&RequestRecord { route: &name, ..request("a", None) });
    }
    let taken = table.take();
    assert_eq!((taken.len(), taken[0].key.route.len()), (1, 1_024));
}
