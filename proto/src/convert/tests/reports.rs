//! Reports of traffic: any legal one survives, and each broken field gives its own error.

use std::{collections::HashSet, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::strategies::{identity, text};
use crate::{
    convert::{report, report_to_pb},
    limits::{MAX_REPORT_COUNT, MAX_REPORT_LENGTH},
    pb,
    spec::*,
};

fn outcome() -> impl Strategy<Value = (OutcomeCount, u64)> {
    let count = prop_oneof![1..1_000u64, Just(MAX_REPORT_COUNT)];
    let what = (0..=5u8, option::of(any::<u8>()), prop_oneof![Just("".into()), text()]);
    (what, count, 10..600_000_000u64).prop_map(|((status_class, grpc_status, reason), count, micros)| {
        (OutcomeCount { status_class, grpc_status, reason, count }, micros)
    })
}

fn edge() -> impl Strategy<Value = EdgeTraffic> {
    let key = (select(vec![Side::Outbound, Side::Inbound]), text(), text(), option::of(identity()))
        .prop_map(|(side, service, route, peer)| EdgeKey { side, service, route, peer });
    let bytes = || 0..=MAX_REPORT_COUNT;
    let connections = bytes().prop_flat_map(|all| (Just(all), 0..=all));
    (key, option::of(text()), vec(outcome(), 0..5), bytes(), bytes(), connections).prop_map(
        |(key, security, outcomes, received, sent, (connections, connections_failed))| {
            let mut durations = Durations::new();
            outcomes.iter().for_each(|(outcome, micros)| {
                durations.add_bucket(Durations::bucket_of(*micros), outcome.count);
            });
            let outcomes = outcomes.into_iter().map(|(outcome, _)| outcome).collect();
            EdgeTraffic {
                security,
                outcomes,
                durations,
                received,
                sent,
                connections,
                connections_failed,
                ..EdgeTraffic::new(key)
            }
        },
    )
}

pub(super) fn report_strategy() -> impl Strategy<Value = TrafficReport> {
    use ProxyEventKind::*;
    let ago = || (0..1_000_000_000u64).prop_map(Duration::from_millis);
    let kind = select(vec![CertificateNearEnd, CaptureBroken, CaptureRestored, Draining]);
    let event = (ago(), kind, text()).prop_map(|(ago, kind, message)| ProxyEvent { ago, kind, message });
    let length = (1..=MAX_REPORT_LENGTH.as_millis() as u64).prop_map(Duration::from_millis);
    (1..u64::MAX, 1..u64::MAX, length, ago(), vec(edge(), 0..5), vec(event, 0..3)).prop_map(
        |(epoch, sequence, length, ended_ago, mut edges, events)| {
            let mut seen = HashSet::new();
            edges.retain(|edge| seen.insert(edge.key.clone()));
            TrafficReport { epoch, sequence, length, ended_ago, edges, events }
        },
    )
}

fn good() -> pb::TrafficReport {
    let mut durations = Durations::new();
    durations.record(Duration::from_millis(3));
    durations.record(Duration::from_micros(40));
    let key = EdgeKey {
        side: Side::Outbound,
        service: "shop/orders:80".into(),
        route: "shop/orders/0".into(),
        peer: Some("spiffe://mesh.local/ns/shop/sa/orders".parse().unwrap()),
    };
    let outcome =
        |status_class| OutcomeCount { status_class, grpc_status: None, reason: "".into(), count: 1 };
    report_to_pb(&TrafficReport {
        epoch: 7,
        sequence: 1,
        length: Duration::from_secs(1),
        ended_ago: Duration::ZERO,
        edges: vec![EdgeTraffic {
            security: Some("TLSv1_3 TLS13_AES_256_GCM_SHA384 X25519MLKEM768".into()),
            outcomes: vec![outcome(2), outcome(5)],
            durations,
            connections: 1,
            ..EdgeTraffic::new(key)
        }],
        events: vec![ProxyEvent {
            ago: Duration::ZERO,
            kind: ProxyEventKind::Draining,
            message: "it ends".into(),
        }],
    })
}

#[test]
fn every_broken_report_gives_its_own_error() {
    report(good()).unwrap();
    let check = |field: &str, reason: &str, break_it: fn(&mut pb::TrafficReport)| {
        let mut from = good();
        break_it(&mut from);
        let errors = report(from).expect_err(field).0;
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    };
    check("epoch", "is 0", |it| it.epoch = 0);
    check("sequence", "is 0", |it| it.sequence = 0);
    check("length_ms", "0 is not within", |it| it.length_ms = 0);
    check("length_ms", "600001 is not within", |it| it.length_ms = 600_001);
    check("ended_ago_ms", "longer", |it| it.ended_ago_ms = u64::MAX);
    check("edges", "at most 1000", |it| it.edges = vec![Default::default(); 1_001]);
    check("edges[1]", "twice", |it| it.edges.push(it.edges[0].clone()));
    check("edges[0].side", "missing", |it| it.edges[0].side = 0);
    check("edges[0].side", "unknown", |it| it.edges[0].side = 3);
    check("edges[0].service", "1025 bytes", |it| it.edges[0].service = "x".repeat(1_025));
    check("edges[0].service", "control", |it| it.edges[0].service = "a\u{1b}[2J".into());
    check("edges[0].route", "1025 bytes", |it| it.edges[0].route = "x".repeat(1_025));
    check("edges[0].route", "control", |it| it.edges[0].route = "a\nb".into());
    check("edges[0].peer", "spiffe://", |it| it.edges[0].peer = "orders".into());
    check("edges[0].security", "129 bytes", |it| it.edges[0].security = "x".repeat(129));
    check("edges[0].security", "control", |it| it.edges[0].security = "\t".into());
    check("edges[0].outcomes", "at most 128", |it| it.edges[0].outcomes = vec![Default::default(); 129]);
    check("edges[0].outcomes[1].status_class", "6 is not", |it| it.edges[0].outcomes[1].status_class = 6);
    check("edges[0].outcomes[0].grpc_status", "257 is not", |it| {
        it.edges[0].outcomes[0].grpc_status = 257;
    });
    check("edges[0].outcomes[0].reason", "65 bytes", |it| {
        it.edges[0].outcomes[0].reason = "x".repeat(65);
    });
    check("edges[0].outcomes[0].reason", "control", |it| it.edges[0].outcomes[0].reason = "\0".into());
    check("edges[0].outcomes[0].count", "0 is not within", |it| it.edges[0].outcomes[0].count = 0);
    check("edges[0].outcomes[0].count", "is not within", |it| {
        it.edges[0].outcomes[0].count = MAX_REPORT_COUNT + 1;
    });
    check("edges[0].received", "is not within", |it| it.edges[0].received = u64::MAX);
    check("edges[0].sent", "is not within", |it| it.edges[0].sent = u64::MAX);
    check("edges[0].connections", "is not within", |it| it.edges[0].connections = u64::MAX);
    check("edges[0].connections_failed", "more than all 1", |it| it.edges[0].connections_failed = 2);
    check("edges[0].durations", "there were 3 requests", |it| it.edges[0].outcomes[0].count = 2);
    check("edges[0].durations", "has 0, and there were 2", |it| it.edges[0].durations.clear());
    check("events", "at most 64", |it| it.events = vec![Default::default(); 65]);
    check("events[0].ago_ms", "longer", |it| it.events[0].ago_ms = u64::MAX);
    check("events[0].kind", "missing", |it| it.events[0].kind = 0);
    check("events[0].kind", "unknown", |it| it.events[0].kind = 5);
    check("events[0].message", "1025 bytes", |it| it.events[0].message = "x".repeat(1_025));
    check("events[0].message", "control", |it| it.events[0].message = "\r".into());
}

#[test]
fn histograms_that_are_none_of_ours_are_refused() {
    let check = |reason: &str, break_it: fn(&mut Vec<u8>)| {
        let mut from = good();
        break_it(&mut from.edges[0].durations);
        let errors = report(from).expect_err(reason).0;
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, "edges[0].durations"), "{errors:?}");
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    };
    check("it has 39 bytes", |it| it.truncate(39));
    check("cookie", |it| it[3] ^= 1);
    // As much as it says it has would be allocated.
    check("in place of", |it| it[4..8].fill(0xff));
    check("in place of", |it| it.push(0));
    check("features", |it| it[11] = 1);
    check("other bounds: 1 to 4095 with 3 digits", |it| it[15] = 3);
    check("other bounds: 9 to 4095 with 2 digits", |it| it[23] = 9);
    check("other bounds: 1 to 18446744073709551615", |it| it[24..32].fill(0xff));
    check("other bounds: 1 to 1 ", |it| it[24..32].copy_from_slice(&1u64.to_be_bytes()));
    check("features", |it| it[32] ^= 1);
    let replaced = |it: &mut Vec<u8>, counts: &[u8]| {
        it[4..8].copy_from_slice(&(counts.len() as u32).to_be_bytes());
        it.truncate(40);
        it.extend(counts);
    };
    let refused = |counts: &[u8]| {
        let mut from = good();
        replaced(&mut from.edges[0].durations, counts);
        report(from).unwrap_err().to_string()
    };
    // Two below 1 µs, two of 9 µs.
    assert!(refused(&[4]).contains("outside of its bounds"));
    assert!(refused(&[17, 4]).contains("outside of its bounds"));
    // More buckets than can be counted.
    assert!(refused(&[0xff; 9]).contains("has 0, and there were 2 requests"));
    assert!(refused(&[[0xff; 9].as_slice(), &[0xff; 9], &[4]].concat()).contains("outside of its bounds"));
    // A number that is cut off.
    assert!(refused(&[0x80]).contains("is no histogram"));
    let mut from = good();
    let durations = &mut from.edges[0].durations;
    durations[24..32].copy_from_slice(&((1u64 << 30) - 1).to_be_bytes());
    // The last of 24 * 128 buckets holds durations of almost 18 min: after 3,071 empty ones, two.
    replaced(durations, &[0xfd, 0x2f, 4]);
    assert!(report(from).unwrap_err().to_string().contains("outside of its bounds"));
}

/// What arrived can be added to, whatever the longest of it was.
#[test]
fn arrived_durations_grow() {
    let mut arrived = report(good()).unwrap().edges.remove(0).durations;
    arrived.record(Duration::from_secs(500));
    assert_eq!(arrived.count(), 3);
    assert!(arrived.max().unwrap() >= Duration::from_secs(500));
}

/// The wire has the library's encoding: it reads ours, and we read its.
#[test]
fn histograms_are_those_of_the_library() {
    use hdrhistogram::{
        Histogram,
        serialization::{Deserializer, Serializer as _, V2Serializer},
    };
    for all in
        [vec![(40, 1)], vec![(10, 1), (11, 2), (12, 3), (14, 1 << 52)], vec![(300, 7), (600_000_000, 1)]]
    {
        let mut library = Histogram::<u64>::new_with_bounds(1, 2, 2).unwrap();
        library.auto(true);
        let mut durations = Durations::new();
        for (micros, count) in all {
            library.record_n(micros, count).unwrap();
            durations.add_bucket(Durations::bucket_of(micros), count);
        }
        let mut from = good();
        from.edges[0].outcomes.truncate(1);
        from.edges[0].outcomes[0].count = durations.count();
        from.edges[0].durations.clear();
        V2Serializer::new().serialize(&library, &mut from.edges[0].durations).unwrap();
        let read = report(from).unwrap();
        assert_eq!(read.edges[0].durations, durations);
        let ours = report_to_pb(&read).edges.remove(0).durations;
        assert_eq!(Deserializer::new().deserialize::<u64, _>(&mut &ours[..]).unwrap(), library);
    }
}

proptest! {
    #[test]
    fn reports_survive_the_round_trip(original in report_strategy()) {
        let bytes = prost::Message::encode_to_vec(&report_to_pb(&original));
        let arrived = prost::Message::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(report(arrived).unwrap(), original);
    }

    #[test]
    fn no_histogram_panics(at in 0..100usize, with in any::<u8>(), counts in vec(any::<u8>(), 0..40)) {
        let mut from = good();
        let durations = &mut from.edges[0].durations;
        durations.extend(&counts);
        let length = durations.len() as u32 - 40;
        durations[4..8].copy_from_slice(&length.to_be_bytes());
        if let Some(byte) = durations.get_mut(at) {
            *byte = with;
        }
        let _ = report(from);
    }
}
