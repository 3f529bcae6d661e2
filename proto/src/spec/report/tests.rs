//! What counts as a failure, and what adding up edges does.

use std::time::Duration;

use super::*;

fn recorded(all: &[u64]) -> Durations {
    let mut durations = Durations::new();
    all.iter().for_each(|micros| durations.record(Duration::from_micros(*micros)));
    durations
}

fn count(status_class: u8, grpc_status: Option<u8>, count: u64) -> OutcomeCount {
    OutcomeCount { status_class, grpc_status, reason: Arc::default(), count }
}

#[test]
fn what_counts_as_a_failure() {
    let of = |class, grpc, reason: &str| {
        OutcomeCount { reason: reason.into(), ..count(class, grpc, 1) }.is_failure()
    };
    let classes = [0, 1, 2, 3, 4, 5];
    assert_eq!(classes.map(|class| of(class, None, "")), [false, false, false, false, false, true]);
    let codes: Vec<u8> = (0..=18).filter(|code| of(2, Some(*code), "")).collect();
    assert_eq!(codes, [2, 4, 12, 13, 14, 15, 17, 18]);
    for reason in CUT_SHORT {
        assert_eq!(
            classes.map(|class| of(class, None, reason)),
            [false, true, true, true, true, true],
            "{reason}"
        );
        assert!(of(2, Some(0), reason), "{reason}: its head said that all is well");
    }
    for (class, grpc, reason, expected) in [
        (4, None, "denied", false),
        (4, None, "rate-limited", false),
        (2, Some(8), "rate-limited", false),
        (2, Some(14), "no-endpoints", true),
        (5, Some(5), "", true),
        // The caller's own fault, in the middle of an answer.
        (2, None, "bad-request", false),
    ] {
        assert_eq!(of(class, grpc, reason), expected, "{class} {grpc:?} {reason}");
    }
}

/// PromQL has to say the rule in its own words.
#[test]
fn alerts_and_dashboards_have_the_same_rule() {
    let codes: Vec<_> = (0..=16).filter(|code| is_grpc_failure(*code)).map(|code| code.to_string()).collect();
    let codes = format!("grpc_status=~\"{}|other\"", codes.join("|"));
    let reasons = format!("status!=\"none\",reason=~\"{}\"", CUT_SHORT.join("|"));
    for (file, text) in [
        ("rules", include_str!("../../../../k8s/alerts/outrigger.rules.yaml")),
        ("mesh", include_str!("../../../../k8s/dashboards/mesh.json")),
        ("service", include_str!("../../../../k8s/dashboards/service.json")),
    ] {
        let text = text.replace("\\\"", "\"");
        let times = |what: &str| text.matches(what).count();
        assert!(times(&codes) > 0, "{file}: {codes}");
        assert_eq!(times(&codes), times(&reasons), "{file}: {reasons}");
        assert_eq!(times("grpc_status=~\"2|"), times(&codes), "{file} has another list");
    }
}

#[test]
fn edges_add_up() {
    let key = EdgeKey { side: Side::Inbound, service: ":80".into(), route: "".into(), peer: None };
    let mut first = EdgeTraffic {
        security: Some("TLSv1_3".into()),
        outcomes: vec![count(2, None, 3), count(5, None, 1)],
        durations: recorded(&[100, 100, 100, 5_000]),
        received: u64::MAX,
        connections: 2,
        connections_failed: 1,
        ..EdgeTraffic::new(key.clone())
    };
    let second = EdgeTraffic {
        outcomes: vec![count(5, None, 2), count(2, Some(0), 1)],
        durations: recorded(&[7_000, 7_000, 10]),
        received: 1,
        sent: 7,
        connections: 1,
        ..EdgeTraffic::new(key)
    };
    first.add(&second);
    assert_eq!(first.outcomes, [count(2, None, 3), count(5, None, 3), count(2, Some(0), 1)]);
    assert_eq!((first.requests(), first.failures(), first.durations.count()), (7, 3, 7));
    assert_eq!((first.received, first.sent), (u64::MAX, 7), "it does not wrap");
    assert_eq!((first.connections, first.connections_failed), (3, 1));
    assert_eq!(first.security.as_deref(), Some("TLSv1_3"), "one that was not secured says nothing of it");
}
