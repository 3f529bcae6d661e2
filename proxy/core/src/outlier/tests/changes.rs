//! The floor, and policies and endpoints that change.

use super::*;

#[test]
fn the_floor_in_hosts() {
    for (endpoints, percent, min_ready, most) in [
        (1, 50, 1, 0),
        (1, 50, 0, 1),
        (2, 50, 1, 1),
        (2, 10, 1, 1),
        (2, 100, 1, 1),
        (2, 100, 0, 2),
        (2, 0, 0, 0),
        (3, 50, 1, 2),
        (3, 10, 1, 1),
        (10, 50, 1, 5),
        (10, 50, 7, 3),
        (10, 100, 1, 9),
        (10, 10, 20, 0),
        (11, 10, 1, 2),
    ] {
        let policy = OutlierEjection { max_ejected_percent: percent, min_ready, ..in_a_row(5) };
        let mut bench = Bench::new(policy, endpoints);
        (0..endpoints).for_each(|index| bench.requests(index, BAD, 5));
        assert_eq!(bench.events().len(), most, "{endpoints} endpoints, {percent} %, {min_ready} ready");
        assert_eq!((bench.breakers.ejected(), bench.breakers.out()), (most, most));
    }
}

#[test]
fn who_was_held_by_the_floor_goes_at_its_next_failure() {
    let mut bench = Bench::new(in_a_row(5), 2);
    bench.eject(0);
    bench.requests(1, BAD, 7);
    assert_eq!(bench.events(), []);
    bench.half_open(0);
    bench.requests(0, OK, 3);
    bench.events();
    bench.request(1, BAD);
    assert_eq!(&*bench.one().why, "8 failures in a row (limit 5)");
}

#[test]
fn a_policy_changes_and_what_was_learned_stays() {
    let mut bench = Bench::new(OutlierEjection::default(), 4);
    bench.eject(0);
    let due = bench.breakers.timers.clone();
    bench.requests(1, BAD, 2);
    (0..6).for_each(|_| bench.requests(2, OK, 1));
    bench.requests(2, BAD, 4);
    let shorter = FailurePercentage { window: 20 * SECOND, ..FailurePercentage::default() };
    let new = OutlierEjection {
        consecutive_failures: NonZeroU32::new(3),
        failure_percentage: Some(shorter),
        success_rate: None,
        base_ejection: SECOND,
        ..OutlierEjection::default()
    };
    bench.breakers.set_policy(&Ejection(Some(new)), bench.now);
    assert_eq!(bench.events(), []);
    assert_eq!(bench.breakers.timers, due, "it stays open to its end");
    bench.request(1, BAD);
    assert_eq!(&*bench.one().why, "3 failures in a row (limit 3)");
    bench.request(2, OK);
    bench.requests(2, BAD, 2);
    assert_eq!(bench.breakers.circuit(2), Circuit::Closed);
    // Less may be out now: the first to come back anyway comes back at once.
    let less = OutlierEjection { max_ejected_percent: 10, ..OutlierEjection::default() };
    bench.breakers.set_policy(&Ejection(Some(less)), bench.now);
    let change = bench.one();
    assert_eq!((change.index, change.to, change.cause), (1, Circuit::Closed, Cause::Policy));
    assert_eq!(&*change.why, "of 4 endpoints at most 1 may be ejected");
    bench.breakers.set_policy(&Ejection(None), bench.now);
    let change = bench.one();
    assert_eq!((change.index, change.to, change.cause), (0, Circuit::Closed, Cause::Policy));
    assert_eq!(&*change.why, "outlier ejection is turned off");
    bench.requests(0, BAD, 50);
    assert_eq!((bench.events(), bench.breakers.poll_timeout()), (vec![], None));
}

#[test]
fn windows_of_another_length_keep_what_they_hold() {
    let of = |seconds| OutlierEjection {
        failure_percentage: Some(FailurePercentage {
            window: seconds * SECOND,
            ..FailurePercentage::default()
        }),
        success_rate: Some(SuccessRate::default()),
        ..quiet()
    };
    for (then, now, opens) in [(10, 60, true), (60, 10, true), (60, 5, true), (10, 10, true)] {
        let mut bench = Bench::new(of(then), 3);
        bench.requests(0, BAD, 9);
        bench.breakers.set_policy(&Ejection(Some(of(now))), bench.now);
        bench.request(0, BAD);
        assert_eq!(bench.events().len(), usize::from(opens), "{then} -> {now}");
    }
    // What is older than the new window does not come along.
    let mut bench = Bench::new(of(60), 3);
    bench.requests(0, BAD, 9);
    bench.wait(30 * SECOND);
    bench.breakers.set_policy(&Ejection(Some(of(10))), bench.now);
    bench.request(0, BAD);
    assert_eq!(bench.events(), []);
}

#[test]
fn endpoints_come_and_go_and_those_that_stay_are_known() {
    let mut bench = Bench::new(in_a_row(5), 4);
    bench.eject(0);
    bench.requests(1, BAD, 4);
    let under_way = bench.breakers.on_dispatch(1, bench.now);
    let gone = bench.breakers.on_dispatch(2, bench.now);
    bench.breakers.relink(&[None, Some(1), None, Some(0), Some(1), Some(99)], bench.now);
    assert_eq!(bench.breakers.circuit(3), Circuit::Open);
    assert!(!bench.breakers.admits(3) && bench.breakers.admits(0));
    bench.end(gone, BAD, SECOND);
    assert_eq!(bench.events(), []);
    bench.end(under_way, BAD, SECOND);
    assert_eq!(bench.changes(), [(1, Circuit::Open, Cause::ConsecutiveFailures)]);
    // Two endpoints, both out: one has to come back, and it is the one that would come first.
    bench.breakers.relink(&[Some(1), Some(3)], bench.now);
    let changes = bench.changes();
    assert!(matches!(changes[..], [(_, Circuit::Closed, Cause::Policy)]), "{changes:?}");
    bench.breakers.relink(&[], bench.now);
    assert_eq!((bench.breakers.ejected(), bench.breakers.out()), (0, 0));
    assert_eq!(bench.breakers.poll_timeout(), None);
}

#[test]
fn events_of_endpoints_that_went_are_dropped_and_the_others_are_renumbered() {
    let mut bench = Bench::new(in_a_row(1), 4);
    bench.request(1, BAD);
    bench.request(3, BAD);
    bench.breakers.relink(&[Some(3), Some(0), Some(2)], bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::Open, Cause::ConsecutiveFailures)]);
}

#[test]
fn an_endpoint_without_an_outcome_is_small() {
    let per_endpoint = size_of::<Endpoint>() + size_of::<u32>() + size_of::<bool>();
    assert!(per_endpoint < 70, "{per_endpoint}");
    let learned = size_of::<evidence::Learned>();
    assert!(learned <= 320, "{learned}");
}
