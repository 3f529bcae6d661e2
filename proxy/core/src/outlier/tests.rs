use std::num::NonZeroU32;

use outrigger_proto::spec::{
    Cause, FailurePercentage, Failures, LatencyOutlier, LoneOpinion, OutlierEjection, StatusRange,
    SuccessRate,
};
use rand::{SeedableRng, rngs::SmallRng};

use super::*;

mod changes;
mod life;

const SECOND: Duration = Duration::from_secs(1);
const OK: Ended = Ended::Success(What::Status(200));
const BAD: Ended = Ended::Failure(What::Status(503));

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

/// No detector at all.
fn quiet() -> OutlierEjection {
    OutlierEjection {
        consecutive_failures: None,
        failure_percentage: None,
        success_rate: None,
        consecutive_connect_failures: None,
        latency: None,
        ..OutlierEjection::default()
    }
}

struct Bench {
    breakers: Breakers,
    now: Instant,
    rng: SmallRng,
}

impl Bench {
    fn new(policy: OutlierEjection, endpoints: usize) -> Self {
        let now = crate::testing::start();
        let breakers = Breakers::new(&Ejection(Some(policy)), endpoints, now);
        Self { breakers, now, rng: SmallRng::seed_from_u64(4) }
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.breakers.handle_timeout(self.now, &mut self.rng);
    }

    fn request(&mut self, index: usize, ended: Ended) {
        self.timed(index, ended, Duration::from_millis(1));
    }

    fn timed(&mut self, index: usize, ended: Ended, latency: Duration) {
        let trial = self.breakers.on_dispatch(index, self.now);
        self.end(trial, ended, latency);
    }

    fn end(&mut self, trial: Trial, ended: Ended, latency: Duration) {
        self.breakers.on_outcome(trial, ended, latency, self.now, &mut self.rng);
    }

    fn requests(&mut self, index: usize, ended: Ended, count: usize) {
        (0..count).for_each(|_| self.request(index, ended));
    }

    fn events(&mut self) -> Vec<Change> {
        std::iter::from_fn(|| self.breakers.poll_event()).collect()
    }

    fn changes(&mut self) -> Vec<(usize, Circuit, Cause)> {
        self.events().into_iter().map(|change| (change.index, change.to, change.cause)).collect()
    }

    fn one(&mut self) -> Change {
        let mut events = self.events();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    fn eject(&mut self, index: usize) {
        self.requests(index, BAD, 5);
        let change = self.one();
        assert_eq!(
            (change.index, change.to, change.cause),
            (index, Circuit::Open, Cause::ConsecutiveFailures)
        );
    }

    /// Waits until the only running ejection has ended.
    fn serve(&mut self) -> Duration {
        let due = self.breakers.poll_timeout().unwrap();
        let waited = due - self.now;
        self.wait(waited);
        waited
    }

    fn half_open(&mut self, index: usize) {
        while self.breakers.circuit(index) == Circuit::Open {
            self.serve();
        }
        assert_eq!(self.changes(), [(index, Circuit::HalfOpen, Cause::TimeServed)]);
    }
}

fn in_a_row(limit: u32) -> OutlierEjection {
    OutlierEjection { consecutive_failures: NonZeroU32::new(limit), ..quiet() }
}

#[test]
fn failures_in_a_row_open_with_evidence() {
    let mut bench = Bench::new(OutlierEjection::default(), 2);
    bench.requests(1, BAD, 4);
    bench.request(1, OK);
    bench.requests(1, BAD, 3);
    bench.wait(SECOND);
    bench.request(1, Ended::Failure(What::Grpc(14)));
    assert_eq!(bench.events(), []);
    bench.wait(SECOND);
    bench.timed(1, Ended::Failure(What::Reset), Duration::from_millis(7));
    let change = bench.one();
    assert_eq!((change.index, change.to), (1, Circuit::Open));
    assert_eq!(change.cause, Cause::ConsecutiveFailures);
    assert_eq!(&*change.why, "5 failures in a row (limit 5)");
    assert_eq!((change.times, change.at), (1, bench.now));
    let lasts = change.lasts.unwrap();
    assert!((30 * SECOND..=33 * SECOND).contains(&lasts), "{lasts:?}");
    let told: Vec<_> = change.evidence.iter().map(|it| (&*it.what, it.failed, it.ago)).collect();
    let old = Duration::from_secs(2);
    assert_eq!(told.len(), 10, "the first of ten is still kept");
    assert_eq!(told[0], ("503", true, old));
    assert_eq!(told[4], ("200", false, old));
    assert_eq!(told[8], ("grpc 14", true, SECOND));
    assert_eq!(told[9], ("reset", true, Duration::ZERO));
    assert_eq!(change.evidence[9].latency, Duration::from_millis(7));
    assert!(!bench.breakers.admits(1) && bench.breakers.admits(0));
}

#[test]
fn the_evidence_is_the_last_ten() {
    let mut bench = Bench::new(in_a_row(3), 2);
    for status in 200..237 {
        bench.request(0, Ended::Success(What::Status(status)));
    }
    bench.requests(0, BAD, 3);
    let told: Vec<_> = bench.one().evidence.iter().map(|it| it.what.to_string()).collect();
    assert_eq!(told, ["230", "231", "232", "233", "234", "235", "236", "503", "503", "503"]);
}

#[test]
fn a_share_of_failures_opens() {
    let policy = OutlierEjection { failure_percentage: Some(FailurePercentage::default()), ..quiet() };
    let mut bench = Bench::new(policy, 2);
    for _ in 0..4 {
        bench.request(0, BAD);
        bench.request(0, OK);
    }
    bench.request(0, BAD);
    assert_eq!(bench.events(), [], "nine requests are too few");
    bench.request(0, BAD);
    let change = bench.one();
    assert_eq!(change.cause, Cause::FailurePercentage);
    assert_eq!(&*change.why, "6 of 10 requests in 10s failed: 60 % (limit 50 %)");
    // The window rolls: what is older does not count.
    bench.requests(1, BAD, 5);
    bench.wait(11 * SECOND);
    bench.requests(1, OK, 4);
    bench.requests(1, BAD, 3);
    assert_eq!(bench.events(), []);
}

#[test]
fn connections_that_fail_together_count_once() {
    let policy = OutlierEjection { consecutive_connect_failures: NonZeroU32::new(3), ..quiet() };
    let mut bench = Bench::new(policy, 2);
    for _ in 0..2 {
        bench.requests(0, Ended::ConnectFailed, 50);
        bench.wait(Duration::from_millis(2));
    }
    bench.request(0, BAD);
    assert_eq!(bench.events(), []);
    bench.request(0, Ended::ConnectFailed);
    let change = bench.one();
    assert_eq!(change.cause, Cause::ConsecutiveConnectFailures);
    assert_eq!(&*change.why, "3 connections in a row could not be made (limit 3)");
    assert_eq!(change.evidence.len(), 4);
}

#[test]
fn the_success_rate_is_compared() {
    let policy = OutlierEjection { success_rate: Some(SuccessRate::default()), ..quiet() };
    let mut bench = Bench::new(policy, 10);
    for index in 0..10 {
        bench.requests(index, OK, 97);
        bench.requests(index, BAD, 3);
    }
    bench.wait(SECOND);
    assert_eq!(bench.events(), [], "all alike");
    bench.requests(3, BAD, 20);
    bench.wait(SECOND);
    let change = bench.one();
    assert_eq!((change.index, change.cause), (3, Cause::SuccessRate));
    let why = "80.8 % of its requests succeed (limit 86.2 %: mean 95.4 % - 1.9 x 4.9 % of 10 endpoints)";
    assert_eq!(&*change.why, why);
}

#[test]
fn one_failure_among_the_flawless_is_no_outlier() {
    let policy = OutlierEjection { success_rate: Some(SuccessRate::default()), ..quiet() };
    let mut bench = Bench::new(policy.clone(), 100);
    (0..100).for_each(|index| bench.requests(index, OK, 1000));
    bench.requests(7, BAD, 20);
    bench.wait(SECOND);
    assert_eq!(bench.events(), [], "20 of 1,020 is no five per cent");
    let mut bench = Bench::new(policy, 4);
    (0..4).for_each(|index| bench.requests(index, OK, 100));
    bench.requests(0, BAD, 900);
    bench.wait(SECOND);
    assert_eq!(bench.events(), [], "four endpoints are no pool");
    assert!(bench.breakers.poll_timeout().is_some());
    bench.wait(20 * SECOND);
    assert_eq!(bench.breakers.poll_timeout(), None, "nothing to compare any more");
}

#[test]
fn latency_is_compared_with_the_median_of_the_others() {
    let detector = LatencyOutlier { percent: 300, min_requests: number(20), window: 10 * SECOND };
    let mut bench = Bench::new(OutlierEjection { latency: Some(detector), ..quiet() }, 5);
    let take = |bench: &mut Bench, index, milliseconds, count| {
        (0..count).for_each(|_| bench.timed(index, OK, Duration::from_millis(milliseconds)));
    };
    (0..4).for_each(|index| take(&mut bench, index, 10 + index as u64, 20));
    take(&mut bench, 4, 100, 19);
    bench.wait(SECOND);
    assert_eq!(bench.events(), [], "nineteen are too few");
    bench.requests(4, Ended::Failure(What::Timeout), 5);
    bench.wait(SECOND);
    assert_eq!(bench.events(), [], "failures have no latency");
    take(&mut bench, 4, 100, 1);
    bench.wait(SECOND);
    let change = bench.one();
    assert_eq!((change.index, change.cause), (4, Cause::Latency));
    let why = &*change.why;
    assert!(
        why.starts_with("latency 100ms is 870 % of 11.5ms, the median of the 4 others (limit 300 %)"),
        "{why}"
    );
}

#[test]
fn classes() {
    use Ended::{Failure, Ignored, Success};
    let standard = Failures::default();
    let own = Failures { statuses: vec![StatusRange::new(429, 429)], grpc: vec![8] };
    for (failures, status, grpc, by_proxy, want) in [
        (&standard, 200, None, false, Success(What::Status(200))),
        (&standard, 499, None, false, Success(What::Status(499))),
        (&standard, 500, None, false, Failure(What::Status(500))),
        (&standard, 599, None, false, Failure(What::Status(599))),
        (&standard, 503, None, true, Ignored),
        (&standard, 200, Some(14), true, Ignored),
        (&standard, 200, Some(14), false, Failure(What::Grpc(14))),
        (&standard, 200, Some(8), false, Success(What::Grpc(8))),
        (&standard, 503, Some(0), false, Success(What::Grpc(0))),
        (&standard, 200, Some(77), false, Failure(What::Grpc(77))),
        (&own, 500, None, false, Success(What::Status(500))),
        (&own, 429, None, false, Failure(What::Status(429))),
        (&own, 200, Some(8), false, Failure(What::Grpc(8))),
        (&own, 200, Some(77), false, Success(What::Grpc(77))),
    ] {
        assert_eq!(classify(failures, status, grpc, by_proxy), want, "{status} {grpc:?} {by_proxy}");
    }
}
