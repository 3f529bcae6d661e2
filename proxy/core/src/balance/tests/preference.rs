//! Zones, subsets, panic, slow start, refusals: how much goes where.

use outrigger_proto::spec::{HashOn, Subset, Table, ZonePreference};

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const PICKS: u32 = 20_000;

/// What part of many picks went to each. Keys are all different.
fn shares(picker: &mut Picker, loads: &[Load], subset: Option<&str>, now: Instant) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(5);
    let mut counts = vec![0; loads.len()];
    for n in 0..PICKS {
        let wanted = Wanted { hash: Some(hash::xxh64(&n.to_le_bytes(), 0)), subset };
        counts[picker.pick(loads, &wanted, |_| true, &mut rng, now).unwrap()] += 1;
    }
    counts.into_iter().map(|count| f64::from(count) / f64::from(PICKS)).collect()
}

fn about(share: f64, want: f64, what: &dyn std::fmt::Debug) {
    assert!((share - want).abs() < 0.015, "{what:?}: {share} instead of {want}");
}

fn all_and_hashes() -> impl Iterator<Item = Algorithm> {
    let hashed = [Table::Maglev, Table::Ring].map(|table| Algorithm::Consistent(table, vec![HashOn::Path]));
    ALL.into_iter().chain(hashed)
}

#[test]
fn the_own_zone_keeps_what_its_healthy_can_carry() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for algorithm in all_and_hashes() {
        let zone = Some(ZonePreference { min_healthy_percent: 70 });
        let policy = LoadBalancer { zone, ..policy(&algorithm) };
        // Four at home; elsewhere one of weight 3 and three of weight 1.
        let mut all = members(&[1, 1, 1, 1, 3, 1, 1, 1]);
        for (index, member) in all.iter_mut().enumerate() {
            member.zone = if index < 4 { "a" } else { "b" }.into();
        }
        let loads = warm(8, now);
        let mut picker = Picker::new(&policy, &all, "a", &mut rng, now);
        for (ejected, want) in [(0, 1.0), (1, 1.0), (2, 50.0 / 70.0), (3, 25.0 / 70.0), (4, 0.0)] {
            (0..ejected).for_each(|index| picker.set_admitted(index, false));
            let shares = shares(&mut picker, &loads, None, now);
            about(shares[..4].iter().sum(), want, &(&algorithm, ejected));
            if !matches!(algorithm, Algorithm::Consistent(Table::Ring, _)) {
                about(shares[4], (1.0 - want) / 2.0, &(&algorithm, ejected, "by capacity"));
            }
        }
        for zone in ["", "c"] {
            let mut picker = Picker::new(&policy, &all, zone, &mut rng, now);
            let shares = shares(&mut picker, &loads, None, now);
            assert!(
                shares[..4].iter().sum::<f64>() < 0.6,
                "{algorithm:?} {zone}: zones do not count: {shares:?}"
            );
        }
    }
}

#[test]
fn less_than_the_panic_threshold_means_everybody() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for algorithm in ALL {
        let policy = LoadBalancer { panic_percent: 50, ..policy(&algorithm) };
        let loads = warm(4, now);
        let mut picker = Picker::new(&policy, &members(&[1; 4]), "", &mut rng, now);
        picker.set_admitted(0, false);
        picker.set_admitted(1, false);
        about(shares(&mut picker, &loads, None, now)[..2].iter().sum(), 0.0, &"half is not less than half");
        picker.set_admitted(2, false);
        for share in shares(&mut picker, &loads, None, now) {
            about(share, 0.25, &(&algorithm, "panic"));
        }
        picker.set_admitted(2, true);
        about(shares(&mut picker, &loads, None, now)[..2].iter().sum(), 0.0, &"over");
    }
}

#[test]
fn a_last_endpoint_is_never_refused() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for algorithm in all_and_hashes() {
        let mut picker = Picker::new(&policy(&algorithm), &members(&[1]), "", &mut rng, now);
        picker.set_admitted(0, false);
        let mut loads = warm(1, now);
        loads[0].on_refusal(Some(SECOND), now);
        assert_eq!(picker.pick(&loads[..], &ANY, |_| true, &mut rng, now), Some(0), "{algorithm:?}");
        assert_eq!(picker.admitted(), 0, "which the shell can know");
    }
}

#[test]
fn a_named_subset_gets_it_all() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for (algorithm, fallback_to_any) in all_and_hashes().flat_map(|one| [(one.clone(), true), (one, false)]) {
        let header = http::HeaderName::from_static("x-version");
        let subset = Some(Subset { header, label: "version".into(), fallback_to_any });
        let policy = LoadBalancer { subset, ..policy(&algorithm) };
        let mut all = members(&[1; 4]);
        for (member, subset) in all.iter_mut().zip(["v2", "v1", "v2", ""]) {
            member.subset = subset.into();
        }
        let loads = warm(4, now);
        let mut picker = Picker::new(&policy, &all, "", &mut rng, now);
        let v2 = shares(&mut picker, &loads, Some("v2"), now);
        about(v2[0] + v2[2], 1.0, &algorithm);
        assert_eq!(shares(&mut picker, &loads, Some("v1"), now), [0.0, 1.0, 0.0, 0.0]);
        picker.set_admitted(2, false);
        assert_eq!(shares(&mut picker, &loads, Some("v2"), now), [1.0, 0.0, 0.0, 0.0]);
        picker.set_admitted(2, true);
        for nothing in [None, Some("")] {
            let shares = shares(&mut picker, &loads, nothing, now);
            assert!(shares.iter().all(|share| *share > 0.15), "{algorithm:?} {nothing:?}: {shares:?}");
        }
        let wanted = Wanted { subset: Some("v3"), ..ANY };
        let unknown = picker.pick(&loads[..], &wanted, |_| true, &mut rng, now);
        assert_eq!(unknown.is_some(), fallback_to_any, "{algorithm:?}");
    }
}

#[test]
fn slow_start_grows_from_a_tenth_to_all() {
    let (start, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for algorithm in ALL {
        let policy = LoadBalancer { slow_start: Some(30 * SECOND), ..policy(&algorithm) };
        for weight in [1, 3] {
            let mut all = members(&[weight, 1, 1, 1, 1]);
            all[0].ready_since = Some(start);
            // A clock that is ahead makes nobody newer than new.
            for (ready, age, factor) in [
                (0, 0, 0.1),
                (0, 15, 0.55),
                (0, 29, 0.97),
                (0, 30, 1.0),
                (0, 99, 1.0),
                (9, 0, 0.1),
                (9, 15, 0.55),
            ] {
                all[0].ready_since = Some(start + ready * SECOND);
                let mut picker = Picker::new(&policy, &all, "", &mut rng, start);
                let now = start + age * SECOND;
                let want = f64::from(weight) * factor;
                let share = shares(&mut picker, &warm(5, now), None, now)[0];
                about(share, want / (want + 4.0), &(&algorithm, weight, ready, age));
            }
        }
        let mut all = members(&[1; 5]);
        all.iter_mut().for_each(|member| member.ready_since = Some(start));
        let mut picker = Picker::new(&policy, &all, "", &mut rng, start);
        for share in shares(&mut picker, &warm(5, start), None, start) {
            about(share, 0.2, &(&algorithm, "all new"));
        }
    }
}

#[test]
fn keys_do_not_care_for_slow_start_and_refusals() {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for table in [Table::Maglev, Table::Ring] {
        let steady = policy(&Algorithm::Consistent(table, vec![HashOn::Path]));
        let slow = LoadBalancer { slow_start: Some(30 * SECOND), ..steady.clone() };
        let mut all = members(&[1; 5]);
        let mut loads = warm(5, now);
        let before = shares(&mut Picker::new(&steady, &all, "", &mut rng, now), &loads, None, now);
        all[0].ready_since = Some(now);
        loads[0].on_refusal(Some(30 * SECOND), now);
        assert_eq!(shares(&mut Picker::new(&slow, &all, "", &mut rng, now), &loads, None, now), before);
    }
}

#[test]
fn who_refuses_is_left_alone_for_as_long_as_it_asks() {
    let (start, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    for algorithm in ALL {
        for weight in [1, 4] {
            let mut loads = warm(4, start);
            loads[0].on_refusal(Some(20 * SECOND), start);
            let mut picker = plain(&algorithm, &[weight, 1, 1, 1], &mut rng);
            for age in [0, 19] {
                let share = shares(&mut picker, &loads, None, start + age * SECOND)[0];
                assert!(share < 0.02, "{algorithm:?}: {share} after {age} s");
            }
            if !matches!(algorithm, Algorithm::PeakEwma) {
                let share = shares(&mut picker, &loads, None, start + 20 * SECOND)[0];
                let weight = f64::from(weight);
                about(share, weight / (weight + 3.0), &(&algorithm, "it was asked for no more than that"));
            }
            loads.iter_mut().for_each(|load| load.on_refusal(Some(20 * SECOND), start));
            let shares = shares(&mut picker, &loads, None, start);
            assert!(shares.iter().all(|share| *share > 0.1), "{algorithm:?}: all refuse alike: {shares:?}");
        }
    }
}
