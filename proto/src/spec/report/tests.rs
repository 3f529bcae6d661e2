//! What a histogram of durations promises, and what adding up edges does.

use proptest::{collection::vec, prelude::*};

use super::*;

fn micros() -> impl Strategy<Value = u64> {
    // All powers of ten alike.
    (0u32..10, 1..1_000u64).prop_map(|(power, digits)| digits * 10u64.pow(power) / 100)
}

fn recorded(all: &[u64]) -> Durations {
    let mut durations = Durations::new();
    all.iter().for_each(|micros| durations.record(Duration::from_micros(*micros)));
    durations
}

/// Within 1 %.
fn is_near(told: Duration, exact: u64) -> bool {
    let exact = exact.clamp(Durations::LEAST_US, Durations::MOST_US) as f64;
    let told = told.as_micros() as f64;
    (told - exact).abs() < (exact / 100.0).max(1.0)
}

proptest! {
    #[test]
    fn quantiles_and_the_longest_are_near_the_exact_ones(mut all in vec(micros(), 1..200), quantile in 0.0..=1.0f64) {
        let durations = recorded(&all);
        all.sort_unstable();
        let rank = ((quantile * all.len() as f64).ceil() as usize).clamp(1, all.len());
        prop_assert!(is_near(durations.quantile(quantile).unwrap(), all[rank - 1]));
        prop_assert!(is_near(durations.max().unwrap(), all[all.len() - 1]));
        prop_assert_eq!(durations.count(), all.len() as u64);
    }

    /// However they are grouped, and whichever of the two has the longer ones.
    #[test]
    fn adding_up_is_recording_all_in_one(one in vec(micros(), 0..50), other in vec(micros(), 0..50)) {
        let mut sum = recorded(&one);
        sum.add(&recorded(&other));
        let mut by_bucket = recorded(&other);
        recorded(&one).buckets().for_each(|(micros, count)| by_bucket.add_bucket(micros, count));
        let all = recorded(&[one, other].concat());
        prop_assert_eq!(&sum, &all);
        prop_assert_eq!(&by_bucket, &all);
        prop_assert_eq!((sum.count(), sum.max()), (all.count(), all.max()));
    }
}

#[test]
fn an_empty_one_is_nothing() {
    let empty = Durations::new();
    assert_eq!((empty.count(), empty.max(), empty.quantile(0.5)), (0, None, None));
    assert_eq!(empty.buckets().count(), 0);
    let mut reset = recorded(&[5, 1_000_000]);
    reset.reset();
    assert_eq!((reset.count(), reset.max(), reset.quantile(1.0)), (0, None, None));
    assert_eq!(reset, empty);
    reset.add_bucket(50, 0);
    assert_eq!(reset.max(), None);
    // What it had before does not come back.
    reset.add(&recorded(&[100]));
    assert_eq!(reset, recorded(&[100]));
}

#[test]
fn what_is_outside_counts_at_the_ends() {
    let durations = recorded(&[0, 1, u64::MAX]);
    assert_eq!(durations.count(), 3);
    assert!(is_near(durations.quantile(0.5).unwrap(), Durations::LEAST_US));
    assert!(is_near(durations.max().unwrap(), Durations::MOST_US));
}

#[test]
fn room_grows_with_the_longest() {
    let room = |all: &[u64]| recorded(all).0.unwrap().distinct_values() * 8;
    assert_eq!(room(&[255]), 2 << 10);
    assert_eq!(room(&[4_000]), 6 << 10);
    assert_eq!(room(&[600_000_000]), 24 << 10);
}

fn count(status_class: u8, grpc_status: Option<u8>, count: u64) -> OutcomeCount {
    OutcomeCount { status_class, grpc_status, reason: Arc::default(), count }
}

#[test]
fn what_counts_as_a_failure() {
    let failed = |class, grpc| count(class, grpc, 1).is_failure();
    assert_eq!(
        [0, 1, 2, 3, 4, 5].map(|class| failed(class, None)),
        [false, false, false, false, false, true]
    );
    let codes: Vec<u8> = (0..=16).filter(|code| failed(2, Some(*code))).collect();
    assert_eq!(codes, [2, 4, 13, 14, 15]);
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
