use std::time::Duration;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;

mod consistent;
mod key;
mod preference;
mod properties;

const ANY: Wanted<'static> = Wanted { hash: None, subset: None };
const ALL: [Algorithm; 4] =
    [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];

fn members(weights: &[u32]) -> Vec<Member> {
    let member = |(index, weight): (u64, &u32)| Member {
        key: hash::spread(index + 1),
        weight: NonZeroU32::new(*weight).unwrap(),
        zone: "".into(),
        subset: "".into(),
        ready_since: None,
    };
    (0..).zip(weights).map(member).collect()
}

fn policy(algorithm: &Algorithm) -> LoadBalancer {
    LoadBalancer { algorithm: algorithm.clone(), ..LoadBalancer::default() }
}

/// Without zone, subset or slow start.
fn plain(algorithm: &Algorithm, weights: &[u32], rng: &mut StdRng) -> Picker {
    Picker::new(&policy(algorithm), &members(weights), "", rng, crate::testing::start())
}

/// Endpoints that have all answered in 1 ms.
fn warm(count: usize, now: Instant) -> Vec<Load> {
    let mut load = Load::new(now);
    load.on_response(Duration::from_millis(1), now);
    vec![load; count]
}

/// How many of `picks` went where, if nothing is ever in flight.
fn idle_shares(policy: &Algorithm, given: &[u32], picks: usize) -> Vec<f64> {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    let loads = warm(given.len(), now);
    let mut picker = plain(policy, given, &mut rng);
    let mut counts = vec![0; given.len()];
    for _ in 0..picks {
        counts[picker.pick(&loads[..], &ANY, |_| true, &mut rng, now).unwrap()] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / picks as f64).collect()
}

#[test]
fn equal_endpoints_share_by_weight() {
    for policy in ALL {
        for given in [&[1, 1, 1, 1][..], &[1, 9], &[5, 3, 2], &[1, 1, 98], &[7, 7]] {
            let total: u32 = given.iter().sum();
            for (share, weight) in idle_shares(&policy, given, 40_000).into_iter().zip(given) {
                let want = f64::from(*weight) / f64::from(total);
                assert!((share - want).abs() < 0.01, "{policy:?} {given:?}: {share} instead of {want}");
            }
        }
    }
}

#[test]
fn a_closed_loop_settles_in_proportion_to_the_weights() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for policy in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let mut loads = warm(2, now);
        let mut picker = plain(&policy, &[3, 1], &mut rng);
        for _ in 0..400 {
            let chosen = picker.pick(&loads[..], &ANY, |_| true, &mut rng, now).unwrap();
            loads[chosen].on_dispatch(now);
        }
        let heavy = loads[0].in_flight();
        assert!((290..=310).contains(&heavy), "{policy:?}: {heavy} of 400 instead of 300");
    }
}

#[test]
fn turns_are_exact() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(1));
    let loads = warm(3, now);
    for given in [[1, 1, 1], [1, 2, 3]] {
        let mut picker = plain(&Algorithm::RoundRobin, &given, &mut rng);
        let mut counts = [0; 3];
        for _ in 0..given.iter().sum::<u32>() * 10 {
            counts[picker.pick(&loads[..], &ANY, |_| true, &mut rng, now).unwrap()] += 1;
        }
        for (count, weight) in counts.into_iter().zip(given) {
            assert!((weight * 10 - 1..=weight * 10 + 1).contains(&count), "{given:?}: {counts:?}");
        }
    }
}

#[test]
fn round_robin_does_not_begin_at_the_same_place_everywhere() {
    let now = crate::testing::start();
    let loads = warm(8, now);
    let first = |seed, given: &[u32]| {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut picker = plain(&Algorithm::RoundRobin, given, &mut rng);
        picker.pick(&loads[..], &ANY, |_| true, &mut rng, now).unwrap()
    };
    for given in [[1; 8], [2, 1, 1, 1, 1, 1, 1, 1]] {
        let starts: std::collections::HashSet<_> = (0..64).map(|seed| first(seed, &given)).collect();
        assert!(starts.len() >= 5, "{given:?}: {starts:?}");
    }
}

#[test]
fn the_slow_and_the_busy_get_little_and_the_new_gets_one_probe() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(3));
    let mut loads = warm(10, now);
    loads[0].on_response(Duration::from_millis(50), now);
    let mut picker = plain(&Algorithm::PeakEwma, &[1; 10], &mut rng);
    let mut slow = 0;
    for _ in 0..1000 {
        slow += usize::from(picker.pick(&loads[..], &ANY, |_| true, &mut rng, now) == Some(0));
    }
    assert_eq!(slow, 0, "in each pair the other one is cheaper");
    loads[0] = Load::new(now);
    while picker.pick(&loads[..], &ANY, |_| true, &mut rng, now) != Some(0) {}
    loads[0].on_dispatch(now);
    for _ in 0..1000 {
        assert_ne!(picker.pick(&loads[..], &ANY, |_| true, &mut rng, now), Some(0), "one probe at a time");
    }
}

#[test]
fn nothing_comes_from_nothing() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(3));
    for policy in ALL {
        let mut picker = plain(&policy, &[], &mut rng);
        assert_eq!(picker.pick(&[][..], &ANY, |_| true, &mut rng, now), None);
        let mut picker = plain(&policy, &[4], &mut rng);
        let loads = warm(1, now);
        assert_eq!(picker.pick(&loads[..], &ANY, |_| true, &mut rng, now), Some(0));
        assert_eq!(picker.pick(&loads[..], &ANY, |_| false, &mut rng, now), None);
    }
}

proptest! {
    #[test]
    fn picks_what_is_usable_whenever_there_is_something(
        seed: u64,
        given in prop::collection::vec((1..1000_u32, any::<bool>(), 0..5_u32), 1..40),
        policy in prop::sample::select(ALL.to_vec()),
    ) {
        let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(seed));
        let given_weights: Vec<_> = given.iter().map(|(weight, ..)| *weight).collect();
        let mut loads = warm(given.len(), now);
        for (load, (_, _, busy)) in loads.iter_mut().zip(&given) {
            (0..*busy).for_each(|_| load.on_dispatch(now));
        }
        let mut picker = plain(&policy, &given_weights, &mut rng);
        let any = given.iter().any(|(_, usable, _)| *usable);
        for _ in 0..20 {
            let chosen = picker.pick(&loads[..], &ANY, |index| given[index].1, &mut rng, now);
            prop_assert_eq!(chosen.is_some(), any);
            prop_assert!(chosen.is_none_or(|index| given[index].1));
        }
    }

    #[test]
    fn the_alias_table_gives_everyone_its_share(given in prop::collection::vec(1..1000_u32, 2..20)) {
        let weights: Vec<_> = given.iter().filter_map(|weight| NonZeroU32::new(*weight)).collect();
        let table = weights::Weights::new(&weights);
        let mut shares = vec![0.0; given.len()];
        for (index, (own, alias)) in table.columns.iter().enumerate() {
            let own = f64::from(*own) / f64::from(u32::MAX);
            shares[index] += own;
            shares[*alias as usize] += 1.0 - own;
        }
        let mean = f64::from(given.iter().sum::<u32>()) / given.len() as f64;
        for (share, weight) in shares.iter().zip(&given) {
            prop_assert!((share - f64::from(*weight) / mean).abs() < 1e-6, "{shares:?} for {given:?}");
        }
    }
}
