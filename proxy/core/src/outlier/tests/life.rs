//! The states and what moves a circuit from one to the other.

use super::*;

#[test]
fn half_open_takes_one_request_at_a_time_and_closes_after_three() {
    let mut bench = Bench::new(OutlierEjection::default(), 2);
    bench.eject(0);
    bench.half_open(0);
    for _ in 0..3 {
        assert_eq!(bench.breakers.probe(|_| true), Some(0));
        assert_eq!(bench.breakers.probe(|index| index != 0), None);
        let probe = bench.breakers.on_dispatch(0, bench.now);
        assert!(!bench.breakers.admits(0));
        assert_eq!(bench.breakers.probe(|_| true), None);
        // A picker in panic sends more; they say nothing.
        bench.request(0, BAD);
        assert_eq!(bench.breakers.circuit(0), Circuit::HalfOpen);
        bench.end(probe, OK, SECOND);
    }
    let change = bench.one();
    assert_eq!((change.to, change.cause), (Circuit::Closed, Cause::ProbesSucceeded));
    assert_eq!(&*change.why, "3 probes in a row succeeded (of 3)");
    bench.requests(0, BAD, 4);
    assert_eq!(bench.events(), [], "the counters began at zero");
}

#[test]
fn a_failed_probe_opens_for_longer_and_health_forgives() {
    let mut bench = Bench::new(in_a_row(5), 2);
    bench.eject(0);
    for (times, seconds) in [(2, 60), (3, 90), (4, 120)] {
        bench.half_open(0);
        bench.request(0, OK);
        bench.request(0, BAD);
        let change = bench.one();
        assert_eq!((change.to, change.cause, change.times), (Circuit::Open, Cause::ProbeFailed, times));
        assert_eq!(&*change.why, "the probe ended with 503");
        let (lasts, least) = (change.lasts.unwrap(), Duration::from_secs(seconds));
        assert!((least..=least * 11 / 10).contains(&lasts), "{lasts:?}");
    }
    bench.half_open(0);
    bench.requests(0, OK, 3);
    assert_eq!(bench.changes(), [(0, Circuit::Closed, Cause::ProbesSucceeded)]);
    // n was 4; two periods of health make it 2, the next is the third.
    bench.wait(61 * SECOND);
    bench.requests(0, BAD, 5);
    assert_eq!(bench.one().times, 3);
}

#[test]
fn an_ejection_lasts_at_most_the_maximum_and_a_tenth() {
    let mut bench = Bench::new(in_a_row(5), 2);
    bench.eject(0);
    for _ in 0..30 {
        bench.half_open(0);
        bench.request(0, BAD);
        let lasts = bench.one().lasts.unwrap();
        assert!(lasts <= Duration::from_secs(330), "{lasts:?}");
    }
    let lasts = bench.serve();
    assert!(lasts >= Duration::from_secs(300), "{lasts:?}");
}

#[test]
fn what_says_nothing_frees_the_probe_and_counts_for_nothing() {
    let mut bench = Bench::new(in_a_row(2), 2);
    for ended in [Ended::Cancelled, Ended::Ignored] {
        bench.requests(0, ended, 20);
        bench.request(0, BAD);
        bench.request(0, ended);
        bench.request(0, OK);
    }
    assert_eq!(bench.events(), []);
    bench.requests(0, BAD, 2);
    bench.events();
    bench.half_open(0);
    bench.requests(0, Ended::Cancelled, 5);
    bench.requests(0, Ended::Ignored, 5);
    assert_eq!(bench.breakers.probe(|_| true), Some(0));
    assert_eq!(bench.events(), []);
}

#[test]
fn a_late_answer_of_before_does_not_count() {
    let mut bench = Bench::new(in_a_row(5), 2);
    let late: Vec<_> = (0..10).map(|_| bench.breakers.on_dispatch(0, bench.now)).collect();
    let mut late = late.into_iter();
    bench.eject(0);
    bench.end(late.next().unwrap(), OK, SECOND);
    bench.half_open(0);
    bench.end(late.next().unwrap(), BAD, SECOND);
    bench.requests(0, OK, 3);
    assert_eq!(bench.changes(), [(0, Circuit::Closed, Cause::ProbesSucceeded)]);
    late.for_each(|trial| bench.end(trial, BAD, SECOND));
    assert_eq!(bench.breakers.circuit(0), Circuit::Closed);
}

#[test]
fn a_long_stream_proves_itself_by_lasting() {
    let mut bench = Bench::new(in_a_row(5), 2);
    bench.eject(0);
    bench.half_open(0);
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let stream = bench.breakers.on_dispatch(0, bench.now);
            bench.breakers.on_head(&stream, bench.now);
            bench.breakers.on_head(&stream, bench.now);
            assert_eq!(bench.serve(), STREAM_PROVES);
            stream
        })
        .collect();
    assert_eq!(bench.changes(), [(0, Circuit::Closed, Cause::ProbesSucceeded)]);
    streams.into_iter().for_each(|stream| bench.end(stream, BAD, SECOND));
    assert_eq!(bench.events(), []);
    // One that fails before it has lasted is a failed probe.
    bench.eject(0);
    bench.half_open(0);
    let stream = bench.breakers.on_dispatch(0, bench.now);
    bench.breakers.on_head(&stream, bench.now);
    bench.wait(SECOND);
    bench.end(stream, BAD, SECOND);
    assert_eq!(bench.changes(), [(0, Circuit::Open, Cause::ProbeFailed)]);
}

#[test]
fn all_open_says_when_to_come_again() {
    let mut bench = Bench::new(OutlierEjection { max_ejected_percent: 100, min_ready: 0, ..in_a_row(5) }, 2);
    assert_eq!(bench.breakers.all_open(bench.now), None);
    bench.eject(0);
    assert_eq!(bench.breakers.all_open(bench.now), None);
    bench.wait(10 * SECOND);
    bench.eject(1);
    let retry = bench.breakers.all_open(bench.now).unwrap();
    assert!((20 * SECOND..=23 * SECOND).contains(&retry), "{retry:?}");
    bench.half_open(0);
    assert_eq!(bench.breakers.all_open(bench.now), None, "a probe is wanted");
    let probe = bench.breakers.on_dispatch(0, bench.now);
    assert_eq!(bench.breakers.all_open(bench.now), Some(SECOND));
    bench.end(probe, Ended::Cancelled, SECOND);
    assert_eq!(bench.breakers.all_open(bench.now), None);
    assert_eq!(Bench::new(quiet(), 0).breakers.all_open(bench.now), None, "that is no-endpoints");
}

#[test]
fn a_lone_opinion_is_held_for_a_shorter_time() {
    let mut bench = Bench::new(in_a_row(5), 3);
    assert!(!bench.breakers.on_fleet(0, 9, 1, bench.now), "nothing to shorten");
    bench.eject(0);
    assert!(!bench.breakers.on_fleet(0, 4, 1, bench.now), "four callers are too few");
    assert!(!bench.breakers.on_fleet(0, 5, 2, bench.now), "another one sees it, too");
    bench.wait(SECOND);
    assert!(bench.breakers.on_fleet(0, 5, 1, bench.now));
    assert!(!bench.breakers.on_fleet(0, 5, 1, bench.now), "once");
    let left = bench.serve();
    assert!((5 * SECOND..=6 * SECOND).contains(&left), "{left:?}");
    assert_eq!(bench.changes(), [(0, Circuit::HalfOpen, Cause::TimeServed)]);
    let off = OutlierEjection { lone_opinion: None, ..in_a_row(5) };
    bench.breakers.set_policy(&Ejection(Some(off)), bench.now);
    bench.eject(1);
    assert!(!bench.breakers.on_fleet(1, 5, 1, bench.now));
    let lone = LoneOpinion { min_callers: number(1), shortened_percent: 0 };
    let now = OutlierEjection { lone_opinion: Some(lone), ..in_a_row(5) };
    bench.breakers.set_policy(&Ejection(Some(now)), bench.now);
    assert!(bench.breakers.on_fleet(1, 1, 1, bench.now));
    assert_eq!(bench.serve(), Duration::ZERO);
}

#[test]
fn who_is_first_to_notice_is_alone_for_a_moment_only() {
    let mut bench = Bench::new(in_a_row(5), 3);
    bench.eject(0);
    assert!(bench.breakers.on_fleet(0, 5, 1, bench.now));
    bench.wait(SECOND);
    assert!(bench.breakers.on_fleet(0, 5, 2, bench.now), "another one has noticed");
    let left = bench.serve();
    assert!((29 * SECOND..=32 * SECOND).contains(&left), "{left:?}");
}

#[test]
fn active_checks_take_out_and_bring_back_but_never_the_last() {
    let mut bench = Bench::new(in_a_row(5), 2);
    bench.breakers.on_health(0, false, bench.now);
    let change = bench.one();
    assert_eq!((change.to, change.cause, change.lasts), (Circuit::Open, Cause::HealthCheck, None));
    assert_eq!(bench.breakers.poll_timeout(), None, "only checks bring it back");
    bench.requests(1, BAD, 9);
    bench.breakers.on_health(1, false, bench.now);
    assert_eq!(bench.events(), [], "the last stays");
    bench.breakers.on_health(0, true, bench.now);
    let changes = bench.changes();
    let want = [(0, Circuit::Closed, Cause::HealthCheck), (1, Circuit::Open, Cause::HealthCheck)];
    assert_eq!(changes, want, "the healthy one takes over");
    bench.breakers.on_health(1, true, bench.now);
    assert_eq!(bench.changes(), [(1, Circuit::Closed, Cause::HealthCheck)]);
    // The same without any policy of ejection.
    bench.breakers.set_policy(&Ejection(None), bench.now);
    bench.breakers.on_health(0, false, bench.now);
    bench.breakers.on_health(1, false, bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::Open, Cause::HealthCheck)]);
}

#[test]
fn good_checks_are_probes_and_bad_ones_keep_it_out() {
    let mut bench = Bench::new(in_a_row(5), 3);
    bench.eject(0);
    bench.breakers.on_check(0, true, bench.now);
    bench.half_open(0);
    bench.breakers.on_check(0, true, bench.now);
    bench.breakers.on_check(0, false, bench.now);
    bench.request(0, OK);
    let probe = bench.breakers.on_dispatch(0, bench.now);
    bench.breakers.on_check(0, true, bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::Closed, Cause::ProbesSucceeded)]);
    bench.end(probe, BAD, SECOND);
    assert_eq!(bench.events(), []);
    // Ejected, then sick: time alone does not bring it back, and it has to be probed.
    bench.eject(0);
    bench.breakers.on_health(0, false, bench.now);
    bench.wait(200 * SECOND);
    assert_eq!((bench.events(), bench.breakers.circuit(0)), (vec![], Circuit::Open));
    bench.breakers.on_health(0, true, bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::HalfOpen, Cause::HealthCheck)]);
    bench.breakers.on_health(0, false, bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::Open, Cause::HealthCheck)]);
    bench.breakers.on_health(0, true, bench.now);
    assert_eq!(bench.changes(), [(0, Circuit::HalfOpen, Cause::HealthCheck)]);
    bench.requests(0, OK, 3);
    assert_eq!(bench.changes(), [(0, Circuit::Closed, Cause::ProbesSucceeded)]);
}
