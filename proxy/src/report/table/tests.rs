use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::telemetry::{Handled, Keys, Protocol};

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

fn worker() -> Worker {
    Worker::new(&Reports::new())
}

/// One worker's.
struct Worker {
    keys: Keys,
    table: Table,
}

impl Worker {
    fn new(reports: &Arc<Reports>) -> Self {
        Self { keys: Keys::default(), table: Table::new(reports) }
    }

    fn request(&mut self, record: &RequestRecord<'_>) {
        self.table.request(&self.keys.of_request(record), Outcome::of(record), record);
    }

    fn connection(&mut self, record: &ConnectionRecord<'_>) {
        self.table.connection(&self.keys.of_connection(record), record);
    }

    fn take(&mut self) -> Vec<EdgeTraffic> {
        self.table.take()
    }
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
        let mut worker = worker();
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
                worker.connection(&ConnectionRecord {
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
                worker.request(&RequestRecord {
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
                add(worker.take());
            }
        }
        add(worker.take());
        prop_assert!(worker.take().is_empty(), "everything is told once");
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
    let mut worker = worker();
    let peer = identity("orders");
    for (security, told) in [("", None), ("TLSv1_3 A B", Some("TLSv1_3 A B")), ("", Some("TLSv1_3 A B"))] {
        worker.request(&RequestRecord { security, ..request("shop/orders:80", Some(&peer)) });
        assert_eq!(worker.take()[0].security.as_deref(), told);
    }
    worker.connection(&ConnectionRecord {
        security: "TLSv1_3 C D",
        ..connection("shop/orders:80", Some(&peer))
    });
    assert_eq!(worker.take()[0].security.as_deref(), Some("TLSv1_3 C D"));
}

#[test]
fn destinations_outside_are_one() {
    let mut worker = worker();
    worker.connection(&connection("address/203.0.113.7:443", None));
    worker.connection(&connection("address/203.0.113.8:443", None));
    let taken = worker.take();
    assert_eq!((taken.len(), &*taken[0].key.service, taken[0].connections), (1, "external", 2));
}

#[test]
fn edges_beyond_the_limit_are_one_until_there_is_room() {
    let mut worker = worker();
    let names: Vec<_> = (0..MAX_EDGES + 100).map(|number| format!("shop/s{number}:80")).collect();
    let peer = identity("orders");
    for _ in 0..2 {
        names.iter().for_each(|name| worker.request(&request(name, Some(&peer))));
    }
    let taken = worker.take();
    assert_eq!((taken.len(), requests(&taken)), (MAX_EDGES + 1, 2 * names.len() as u64));
    let other = taken.iter().find(|edge| &*edge.key.service == OTHER).unwrap();
    assert_eq!((other.requests(), &*other.key.route, &other.key.peer), (200, OTHER, &None));
    // In the next second others may be busy.
    names.iter().rev().for_each(|name| worker.request(&request(name, Some(&peer))));
    let taken = worker.take();
    assert_eq!((requests(&taken), taken.iter().filter(|edge| &*edge.key.service == OTHER).count()), (600, 1));
    let last = format!("shop/s{}:80", MAX_EDGES + 99);
    assert!(taken.iter().any(|edge| *edge.key.service == last));
    assert!(worker.table.edges.len() <= MAX_EDGES + 2);
}

#[test]
fn what_is_not_used_is_given_back() {
    let reports = Reports::new();
    let mut worker = Worker::new(&reports);
    assert!(!reports.has_tables());
    for service in ["a", "b"] {
        worker.request(&RequestRecord { duration: Duration::from_secs(60), ..request(service, None) });
    }
    assert!(reports.has_tables());
    for _ in 0..LINGER {
        worker.take();
        worker.request(&request("a", None));
    }
    assert_eq!(worker.table.edges.len(), 2);
    worker.take();
    assert_eq!(worker.table.edges.len(), 1, "the other one was used all the time");
    (0..LINGER).for_each(|_| _ = worker.take());
    assert_eq!((worker.table.edges.len(), worker.table.edges.capacity()), (0, 0));
    assert!(!reports.has_tables(), "nobody asks it any more");
    // And again, also by one that ends.
    worker.request(&request("a", None));
    assert!(reports.has_tables());
    drop(worker);
    assert!(!reports.has_tables());
}

#[test]
fn nothing_is_lost_by_an_answer_that_nobody_takes() {
    let reports = Reports::new();
    let mut worker = Worker::new(&reports);
    let (give, mut given) = mpsc::channel(1);
    worker.request(&request("a", None));
    worker.table.give(0, &give);
    worker.request(&request("a", None));
    worker.table.give(0, &give);
    let (of, taken) = given.try_recv().unwrap();
    assert_eq!((of, requests(&taken)), (0, 1));
    drop(given);
    worker.request(&request("a", None));
    worker.table.give(0, &give);
    worker.request(&request("a", None));
    drop(worker);
    assert_eq!(requests(&reports.state().left), 3);
}

#[test]
fn a_name_that_is_too_long_is_cut_and_still_found() {
    let mut worker = worker();
    let name = "ü".repeat(1_000);
    for _ in 0..3 {
        worker.request(&RequestRecord { route: &name, ..request("a", None) });
    }
    let taken = worker.take();
    assert_eq!((taken.len(), taken[0].key.route.len()), (1, 1_024));
}
