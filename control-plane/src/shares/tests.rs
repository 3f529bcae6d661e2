use std::num::{NonZeroU32, NonZeroU64};

use outrigger_proto::spec::{RateAlgorithm, RateKey, Scope};
use proptest::prelude::*;

use super::*;

mod simulation;

fn start() -> Instant {
    Instant::now()
}

fn limit(requests: u64) -> RateLimit {
    RateLimit {
        name: "TrafficPolicy/shop/orders/0".into(),
        algorithm: RateAlgorithm::TokenBucket,
        requests: NonZeroU64::new(requests).unwrap(),
        per: Duration::from_secs(1),
        burst: NonZeroU64::new(20).unwrap(),
        key: vec![],
        scope: Scope::Shared,
        dry_run: false,
        max_keys: NonZeroU32::MIN,
    }
}

fn demand(limit: &RateLimit, per_second: u64) -> Demand {
    Demand { limit: limit.name.clone(), thousandths_per_second: per_second * 1000 }
}

/// Shares by holder, in per cent.
fn percents(shares: &[(u32, Share)]) -> Vec<(u32, u32)> {
    shares.iter().map(|(holder, share)| (*holder, share.parts_per_million / 10_000)).collect()
}

#[test]
fn shares_move_to_where_demand_is_and_are_taken_before_they_are_given() {
    let (limit, mut now) = (limit(100), start());
    let mut shares = Shares::new();
    shares.on_join(1, &limit);
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 100)], "alone, with all of it, at once");
    shares.on_join(2, &limit);
    shares.on_demand(&2, &demand(&limit, 300));
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 1), (2, 0)], "what 1 had may still be in force");
    now += SETTLE;
    let given = shares.divide(|_| 0, now);
    assert_eq!(percents(&given), [(1, 1), (2, 99)]);
    assert_eq!((given[0].1.holders, given[0].1.valid_for), (2, VALID_FOR));
    shares.on_demand(&1, &demand(&limit, 20));
    shares.divide(|_| 0, now);
    now += SETTLE;
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 20), (2, 80)]);
}

#[test]
fn what_nobody_asks_for_is_spread() {
    let (limit, now) = (limit(100), start());
    let mut shares = Shares::new();
    for holder in 1..=4 {
        shares.on_join(holder, &limit);
    }
    shares.on_demand(&1, &demand(&limit, 37));
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 52), (2, 16), (3, 16), (4, 16)]);
}

#[test]
fn a_lost_holder_keeps_its_share_until_it_has_run_out_and_one_that_left_does_not() {
    let (limit, now) = (limit(100), start());
    let mut shares = Shares::new();
    for holder in 1..=3 {
        shares.on_join(holder, &limit);
        shares.on_demand(&holder, &demand(&limit, 300));
    }
    shares.divide(|_| 0, now);
    shares.on_lost(&1);
    let just_before = now + VALID_FOR - Duration::from_nanos(1);
    assert_eq!(percents(&shares.divide(|_| 0, just_before)), [(2, 33), (3, 33)]);
    assert_eq!(percents(&shares.divide(|_| 0, now + VALID_FOR)), [(2, 50), (3, 50)]);
    shares.on_left(&2, &limit.name);
    assert_eq!(percents(&shares.divide(|_| 0, now + VALID_FOR)), [(3, 100)]);
    shares.on_left(&3, &limit.name);
    assert!(shares.limits.is_empty());
}

#[test]
fn one_that_comes_back_goes_on_with_what_it_had() {
    let (limit, now) = (limit(100), start());
    let mut shares = Shares::new();
    shares.on_join(1, &limit);
    shares.divide(|_| 0, now);
    shares.on_lost(&1);
    assert_eq!(shares.divide(|_| 0, now), []);
    shares.on_join(1, &limit);
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 100)]);
}

#[test]
fn only_the_fraction_of_those_that_report_here_is_divided() {
    let (limit, now) = (limit(100), start());
    let mut shares = Shares::new();
    shares.on_join(1, &limit);
    shares.on_join(2, &limit);
    let given = shares.divide(|_| 5, now);
    assert_eq!((percents(&given), given[0].1.holders), (vec![(1, 20), (2, 20)], 5));
}

#[test]
fn a_limit_by_key_is_divided_in_proportion() {
    let limit = RateLimit { key: vec![RateKey::CallerIdentity], ..limit(100) };
    let now = start();
    let mut shares = Shares::new();
    for (holder, asked) in [(1, 9000), (2, 1000)] {
        shares.on_join(holder, &limit);
        shares.on_demand(&holder, &demand(&limit, asked));
    }
    assert_eq!(percents(&shares.divide(|_| 0, now)), [(1, 89), (2, 10)]);
}

#[test]
fn a_thousand_holders_reserve_no_more_than_a_tenth() {
    let (limit, mut now) = (limit(1000), start());
    let mut shares = Shares::new();
    for holder in 0..1000 {
        shares.on_join(holder, &limit);
    }
    shares.on_demand(&7, &demand(&limit, 5000));
    for _ in 0..2 {
        shares.divide(|_| 0, now);
        now += SETTLE;
    }
    assert_eq!(shares.holders(&limit.name).find(|(id, ..)| **id == 7).unwrap().2, 900_100);
}

// === any sequence of events ===

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Lost(u8),
    Demand(u8, u64),
    Divide,
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (0..6_u8).prop_map(Step::Join),
        1 => (0..6_u8).prop_map(Step::Lost),
        4 => (0..6_u8, 0..400_u64).prop_map(|(holder, asked)| Step::Demand(holder, asked)),
        6 => Just(Step::Divide),
        6 => (0..700_u64).prop_map(Step::Pass),
    ]
}

/// A share on its way to a proxy or there, and until when it counts there if nothing newer arrives.
#[derive(Clone, Copy)]
struct Sent {
    arrives: Instant,
    runs_out: Instant,
    parts: u32,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn shares_in_force_never_sum_up_to_more_than_the_limit(
        keyed in any::<bool>(),
        steps in prop::collection::vec((step(), 0..250_u64), 1..150),
    ) {
        let limit = RateLimit { key: if keyed { vec![RateKey::Path] } else { vec![] }, ..limit(100) };
        let mut now = start();
        let mut shares = Shares::new();
        let mut sent: BTreeMap<u8, Vec<Sent>> = BTreeMap::new();
        for (step, delay) in steps {
            match step {
                Step::Join(holder) => shares.on_join(holder, &limit),
                Step::Lost(holder) => shares.on_lost(&holder),
                Step::Demand(holder, asked) => shares.on_demand(&holder, &demand(&limit, asked)),
                Step::Divide => {
                    for (holder, share) in shares.divide(|_| 0, now) {
                        let arrives = now + Duration::from_millis(delay);
                        let before = sent.entry(holder).or_default();
                        // A stream keeps the order.
                        let arrives = before.last().map_or(arrives, |last: &Sent| last.arrives.max(arrives));
                        before.push(Sent { arrives, runs_out: now + VALID_FOR, parts: share.parts_per_million });
                    }
                }
                Step::Pass(milliseconds) => {
                    // Every millisecond would do; the moments of arrival are the ones at which something changes.
                    let end = now + Duration::from_millis(milliseconds);
                    let arrivals = sent.values().flatten().map(|sent| sent.arrives);
                    let moments: Vec<_> = arrivals.filter(|at| (now..end).contains(at)).chain([now, end]).collect();
                    for at in moments {
                        let in_force = |sent: &Vec<Sent>| {
                            let newest = sent.iter().rev().find(|sent| sent.arrives <= at);
                            newest.filter(|sent| sent.runs_out > at).map_or(0, |sent| sent.parts)
                        };
                        let sum: u32 = sent.values().map(in_force).sum();
                        prop_assert!(sum <= 1_000_000, "{sum}");
                    }
                    now = end;
                }
            }
        }
        // When nothing changes any more, everything is given.
        let mut given = vec![];
        for _ in 0..9 {
            now += INTERVAL;
            given = shares.divide(|_| 0, now);
        }
        let sum: u32 = given.iter().map(|(_, share)| share.parts_per_million).sum();
        prop_assert!(given.is_empty() || (999_900..=1_000_000).contains(&sum), "{sum}");
    }
}
