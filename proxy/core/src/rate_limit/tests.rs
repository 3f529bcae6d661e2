use std::num::{NonZeroU32, NonZeroU64};

use outrigger_proto::spec::RateKey;
use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(algorithm: RateAlgorithm, requests: u64, per: Duration, burst: u64) -> RateLimit {
    RateLimit {
        name: "TrafficPolicy/shop/orders/0".into(),
        algorithm,
        requests: NonZeroU64::new(requests).unwrap(),
        per,
        burst: NonZeroU64::new(burst).unwrap(),
        key: vec![RateKey::ClientAddress],
        scope: Scope::Local,
        dry_run: false,
        max_keys: NonZeroU32::new(100).unwrap(),
    }
}

fn bucket(requests: u64, burst: u64) -> RateLimit {
    policy(RateAlgorithm::TokenBucket, requests, SECOND, burst)
}

fn window(requests: u64) -> RateLimit {
    policy(RateAlgorithm::SlidingWindow, requests, SECOND, 1)
}

fn shared(policy: RateLimit) -> RateLimit {
    RateLimit { scope: Scope::Shared, ..policy }
}

fn limiter(policy: &RateLimit, now: Instant) -> RateLimiter {
    RateLimiter::new(policy, RandomState::new(), now)
}

/// How many of `times` are admitted at one moment.
fn admitted(limiter: &mut RateLimiter, key: Key, times: usize, now: Instant) -> usize {
    (0..times).filter(|_| limiter.check(key, now).admitted).count()
}

const ONE: Key = Key(1);
const OTHER: Key = Key(2);

#[test]
fn a_bucket_admits_its_burst_and_then_its_rate() {
    let now = crate::testing::start();
    let mut limiter = limiter(&bucket(10, 5), now);
    let first = limiter.check(ONE, now);
    let tenth = SECOND / 10;
    let expected = Verdict { admitted: true, limit: 10, remaining: 4, reset: tenth, retry_after: None };
    assert_eq!(first, expected);
    assert_eq!(admitted(&mut limiter, ONE, 100, now), 4);
    let refused = limiter.check(ONE, now + tenth / 4);
    let retry_after = Some(tenth * 3 / 4);
    let expected =
        Verdict { admitted: false, limit: 10, remaining: 0, reset: tenth * 5 - tenth / 4, retry_after };
    assert_eq!(refused, expected);
    assert_eq!(admitted(&mut limiter, ONE, 9, now + tenth), 1);
    assert_eq!(admitted(&mut limiter, ONE, 9, now + SECOND * 60), 5, "never more than the burst");
    assert_eq!(admitted(&mut limiter, OTHER, 9, now), 5, "each key has a bucket of its own");
}

#[test]
fn a_window_admits_its_limit_in_any_span_of_its_length() {
    let now = crate::testing::start();
    let mut limiter = limiter(&window(10), now);
    let late = now + SECOND * 9 / 10;
    assert_eq!(admitted(&mut limiter, ONE, 100, late), 10);
    assert_eq!(admitted(&mut limiter, ONE, 100, late + SECOND), 0, "two counters would let 9 more pass here");
    let refused = limiter.check(ONE, late + SECOND / 2);
    let frees = late + SECOND + refused.retry_after.unwrap();
    assert_eq!(admitted(&mut limiter, ONE, 1, frees - Duration::from_millis(1)), 0);
    assert_eq!(admitted(&mut limiter, ONE, 100, frees), 10);
    assert!(frees <= late + SECOND * 17 / 16, "a place returns at most a sixteenth late");
}

#[test]
fn whoever_comes_back_when_told_is_admitted() {
    for policy in [bucket(7, 3), window(7), policy(RateAlgorithm::TokenBucket, 1, SECOND * 3600, 1)] {
        let mut now = crate::testing::start();
        let mut limiter = limiter(&shared(policy), now);
        for parts in [1_000_000, 333_333, 10_000] {
            limiter.set_share(parts, 3, SECOND * 1_000_000_000, now);
            for _ in 0..50 {
                if let Some(retry_after) = limiter.check(ONE, now).retry_after {
                    now += retry_after;
                    assert!(limiter.check(ONE, now).admitted, "{parts} {retry_after:?}");
                }
            }
        }
    }
}

#[test]
fn what_did_not_happen_is_given_back() {
    let now = crate::testing::start();
    for policy in [bucket(10, 5), window(5)] {
        let mut limiter = limiter(&policy, now);
        assert_eq!(admitted(&mut limiter, ONE, 9, now), 5);
        limiter.undo(ONE, now);
        limiter.undo(OTHER, now);
        assert_eq!(admitted(&mut limiter, ONE, 9, now), 1);
    }
}

#[test]
fn a_new_policy_keeps_counts() {
    let now = crate::testing::start();
    let mut limiter_ = limiter(&bucket(10, 5), now);
    assert_eq!(admitted(&mut limiter_, ONE, 3, now), 3);
    limiter_.set_policy(&bucket(1000, 50), now);
    assert_eq!(admitted(&mut limiter_, ONE, 99, now), 2, "tokens are tokens");
    assert_eq!(admitted(&mut limiter_, ONE, 99, now + SECOND / 100), 10);
    limiter_.set_policy(&bucket(1000, 1), now + SECOND);
    assert_eq!(admitted(&mut limiter_, ONE, 99, now + SECOND), 1);

    let mut limiter_ = limiter(&window(10), now);
    assert_eq!(admitted(&mut limiter_, ONE, 8, now), 8);
    limiter_.set_policy(&window(9), now);
    assert_eq!(admitted(&mut limiter_, ONE, 99, now), 1);
    limiter_.set_policy(&policy(RateAlgorithm::SlidingWindow, 10, SECOND * 60, 1), now);
    assert_eq!(admitted(&mut limiter_, ONE, 99, now + SECOND * 50), 1, "all is taken to have come just now");
}

#[test]
fn a_share_is_in_force_until_it_runs_out() {
    let now = crate::testing::start();
    let mut shared_limiter = limiter(&shared(bucket(100, 100)), now);
    assert_eq!(shared_limiter.share(now), 1_000_000, "nobody else is known");
    shared_limiter.set_share(250_000, 5, SECOND, now);
    assert_eq!(admitted(&mut shared_limiter, ONE, 1000, now), 25);
    assert_eq!(admitted(&mut shared_limiter, ONE, 1000, now + SECOND / 2), 12);
    assert_eq!(shared_limiter.share(now + SECOND), 200_000, "one part of five");
    assert_eq!(
        admitted(&mut shared_limiter, ONE, 1000, now + SECOND * 3 / 2),
        20,
        "12 or 13, then 10, of 20"
    );

    shared_limiter.set_share(0, 5, SECOND, now + SECOND * 2);
    admitted(&mut shared_limiter, ONE, 1000, now + SECOND * 2);
    let verdict = shared_limiter.check(ONE, now + SECOND * 5 / 2);
    assert_eq!((verdict.admitted, verdict.retry_after), (false, Some(SECOND / 2)));

    let mut local = limiter(&bucket(100, 100), now);
    local.set_share(10_000, 100, SECOND, now);
    assert_eq!(admitted(&mut local, ONE, 1000, now), 100);
}

#[test]
fn a_raised_share_brings_no_tokens_along() {
    let now = crate::testing::start();
    let mut limiter = limiter(&shared(bucket(100, 100)), now);
    limiter.set_share(10_000, 4, SECOND * 60, now);
    assert_eq!(admitted(&mut limiter, ONE, 9, now), 1);
    // Idle with a bucket of one token.
    let later = now + SECOND * 30;
    limiter.set_share(1_000_000, 4, SECOND * 60, later);
    assert_eq!(admitted(&mut limiter, ONE, 1000, later), 1);
    assert_eq!(admitted(&mut limiter, OTHER, 1000, later), 1, "nor to a key that was never seen");
    assert_eq!(admitted(&mut limiter, ONE, 1000, later + SECOND / 2), 50);
}

#[test]
fn demand_follows_a_jump_within_half_a_second_and_lets_go_slowly() {
    let start = crate::testing::start();
    let mut limiter = limiter(&bucket(100, 1), start);
    let mut demands = vec![];
    for millisecond in 0..6000_u64 {
        let now = start + Duration::from_millis(millisecond);
        let rate = if (2000..4000).contains(&millisecond) { 300 } else { 10 };
        if millisecond * rate / 1000 != (millisecond + 1) * rate / 1000 {
            limiter.check(ONE, now);
        }
        demands.push(limiter.demand(now));
    }
    assert!((6_000..14_000).contains(&demands[1900]), "{}", demands[1900]);
    assert!(demands[2260] >= 100_000, "{}", demands[2260]);
    assert!((290_000..=310_000).contains(&demands[2630]), "{}", demands[2630]);
    assert!(demands[4600] > 100_000, "a pause gives nothing away: {}", demands[4600]);
    assert!(demands[5700] < 20_000, "{}", demands[5700]);
}

#[test]
fn keys_are_told_apart_and_depend_on_the_secret() {
    let now = crate::testing::start();
    let (a, b) = (limiter(&bucket(1, 1), now), limiter(&bucket(1, 1), now));
    fn values<'a>(of: &[Option<&'a str>]) -> Vec<Option<&'a [u8]>> {
        of.iter().map(|value| value.map(str::as_bytes)).collect()
    }
    let combinations: [&[Option<&str>]; 6] =
        [&[], &[None], &[Some("")], &[Some("ab"), Some("c")], &[Some("a"), Some("bc")], &[Some("abc"), None]];
    let keys: std::collections::HashSet<_> = combinations.iter().map(|of| a.key(values(of))).collect();
    assert_eq!(keys.len(), combinations.len());
    assert_ne!(a.key(values(&[Some("x")])), b.key(values(&[Some("x")])));
    assert_eq!(a.key(values(&[Some("x")])), a.key(values(&[Some("x")])));
}

#[test]
fn under_constant_pressure_a_window_admits_sixteen_seventeenths() {
    let start = crate::testing::start();
    for requests in [17, 100, 499] {
        let mut limiter = limiter(&window(requests), start);
        let moments = (0..17_000).map(|millisecond| start + Duration::from_millis(millisecond));
        let count: usize = moments.map(|now| admitted(&mut limiter, ONE, 5, now)).sum();
        assert!(count as u64 >= requests * 16, "{count} of {requests} per second");
    }
}

#[test]
fn a_key_beyond_the_last_forgets_the_one_idle_for_longest() {
    let now = crate::testing::start();
    let mut limiter = limiter(&bucket(1, 1), now);
    for key in 0..1000 {
        assert!(limiter.check(Key(key), now).admitted);
    }
    assert_eq!(limiter.keys(), 100);
    assert_eq!(admitted(&mut limiter, Key(999), 1, now), 0);
    assert_eq!(admitted(&mut limiter, Key(0), 1, now), 1);
}

// === any sequence of requests ===

#[derive(Clone, Copy, Debug)]
enum Step {
    Ask { milliseconds: u64, times: u8 },
    Back { milliseconds: u64 },
    Share { parts: u32 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0..400_u64, 1..40_u8).prop_map(|(milliseconds, times)| Step::Ask { milliseconds, times }),
        1 => (0..5000_u64).prop_map(|milliseconds| Step::Back { milliseconds }),
        1 => prop_oneof![Just(0), Just(10_000), 0..=1_000_000_u32].prop_map(|parts| Step::Share { parts }),
    ]
}

/// The moments at which requests were admitted, in milliseconds. Time that goes backwards stands still.
fn run(limiter: &mut RateLimiter, start: Instant, steps: &[Step]) -> Vec<u64> {
    let (mut at, mut latest) = (0, 0);
    let mut moments = vec![];
    for &step in steps {
        let now = start + Duration::from_millis(at);
        match step {
            Step::Ask { milliseconds, times } => {
                at += milliseconds;
                latest = at.max(latest);
                let now = start + Duration::from_millis(at);
                let count = admitted(limiter, ONE, usize::from(times), now);
                moments.extend(std::iter::repeat_n(latest, count));
            }
            Step::Back { milliseconds } => at = at.saturating_sub(milliseconds),
            Step::Share { parts } => limiter.set_share(parts, 4, SECOND * 1000, now),
        }
    }
    moments
}

/// The most that were admitted in any span, beyond what `allowed` says of its length.
fn excess(moments: &[u64], allowed: impl Fn(u64) -> f64) -> f64 {
    let spans = (0..moments.len()).flat_map(|first| (first..moments.len()).map(move |last| (first, last)));
    spans
        .map(|(first, last)| (last - first + 1) as f64 - allowed(moments[last] - moments[first]))
        .fold(f64::MIN, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_bucket_never_admits_more_than_rate_and_burst(
        requests in 1..200_u64,
        burst in 1..50_u64,
        is_shared in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let start = crate::testing::start();
        let policy = if is_shared { shared(bucket(requests, burst)) } else { bucket(requests, burst) };
        let moments = run(&mut limiter(&policy, start), start, &steps);
        let allowed = |span: u64| requests as f64 * span as f64 / 1000.0 + burst as f64;
        prop_assert!(excess(&moments, allowed) < 1e-6);
    }

    #[test]
    fn a_window_never_admits_more_than_its_limit(
        requests in 1..200_u64,
        is_shared in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        let start = crate::testing::start();
        let policy = if is_shared { shared(window(requests)) } else { window(requests) };
        let moments = run(&mut limiter(&policy, start), start, &steps);
        let within = |&first: &u64| moments.iter().filter(|at| (first..first + 1000).contains(*at)).count() as u64;
        prop_assert!(moments.iter().map(within).max().unwrap_or_default() <= requests);
    }

    #[test]
    fn what_is_said_to_remain_does(
        sliding in any::<bool>(),
        requests in 1..100_u64,
        burst in 1..30_u64,
        waits in prop::collection::vec((0..500_u64, 1..50_usize), 1..30),
    ) {
        let mut now = crate::testing::start();
        let policy = if sliding { window(requests) } else { bucket(requests, burst) };
        let mut limiter = limiter(&policy, now);
        for (wait, times) in waits {
            now += Duration::from_millis(wait);
            admitted(&mut limiter, ONE, times, now);
            let verdict = limiter.check(ONE, now);
            prop_assert_eq!(admitted(&mut limiter, ONE, 200, now) as u64, verdict.remaining);
            let all = limiter.check(ONE, now).reset;
            let whole = if sliding { requests } else { burst };
            now += all;
            prop_assert_eq!(admitted(&mut limiter, ONE, 200, now) as u64, whole);
        }
    }
}
