//! Where keys live, and what makes them move.

use outrigger_proto::spec::{HashOn, Table};

use super::*;

const TABLES: [Table; 2] = [Table::Maglev, Table::Ring];

/// The [`Member::key`] of where each of many keys goes; `out` are not admitted.
fn homes(table: Table, all: &[Member], out: &[usize], keys: u32) -> Vec<u64> {
    let (now, mut rng) = (crate::testing::start(), StdRng::seed_from_u64(7));
    let policy = policy(&Algorithm::Consistent(table, vec![HashOn::Path]));
    let mut picker = Picker::new(&policy, all, "", &mut rng, now);
    out.iter().for_each(|index| picker.set_admitted(*index, false));
    let loads = warm(all.len(), now);
    let mut home = |key: u32| {
        let wanted = Wanted { hash: Some(hash::xxh64(&key.to_le_bytes(), 0)), subset: None };
        all[picker.pick(&loads[..], &wanted, |_| true, &mut rng, now).unwrap()].key
    };
    (0..keys).map(&mut home).collect()
}

#[test]
fn keys_spread_by_weight() {
    for (table, tolerance) in [(Table::Maglev, 0.07), (Table::Ring, 0.35)] {
        for weights in [vec![1; 10], vec![1, 2, 3, 4, 10], (20..50).collect()] {
            let all = members(&weights);
            let homes = homes(table, &all, &[], 100_000);
            let total: u32 = weights.iter().sum();
            for member in &all {
                let want = 100_000.0 * f64::from(member.weight.get()) / f64::from(total);
                let count = homes.iter().filter(|home| **home == member.key).count() as f64;
                let noise = 4.0 * want.sqrt();
                assert!(
                    (count - want).abs() < tolerance * want + noise,
                    "{table:?}: {count} instead of {want}"
                );
            }
        }
    }
}

#[test]
fn a_fleet_of_any_size_has_its_tables() {
    for table in TABLES {
        for count in [1, 2, 1024, 1025, 5000] {
            let all = members(&vec![1; count]);
            let reached: std::collections::HashSet<_> =
                homes(table, &all, &[], 100_000).into_iter().collect();
            assert!(reached.len() * 100 > count * 99, "{table:?}: {} of {count}", reached.len());
        }
        // Weights that are far apart neither take forever nor much memory.
        let mut weights = vec![1; 3000];
        weights[7] = u32::MAX;
        let all = members(&weights);
        let homes = homes(table, &all, &[], 1000);
        assert!(homes.iter().filter(|home| **home == all[7].key).count() > 400, "{table:?}");
    }
}

/// What all proxies of all versions have to agree on.
#[test]
fn assignments_are_written_in_stone() {
    let all: Vec<_> = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "[fd00::4]:8080"]
        .iter()
        .map(|address| Member {
            key: hash::endpoint(address.parse().unwrap(), "spiffe://mesh.local/ns/shop/sa/orders"),
            ..members(&[1])[0].clone()
        })
        .collect();
    let places = |table| -> String {
        let place = |home| all.iter().position(|member| member.key == home).unwrap().to_string();
        homes(table, &all, &[], 32).into_iter().map(place).collect()
    };
    assert_eq!(
        (places(Table::Ring), places(Table::Maglev)),
        ("32232201331113320130012201111033".into(), "33132211031002303132011201201023".into())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn removing_one_endpoint_moves_its_keys_and_few_others(
        weights in prop::collection::vec(64..128_u32, 2..60),
        gone: prop::sample::Index,
    ) {
        let all = members(&weights);
        let mut fewer = all.clone();
        let gone = fewer.remove(gone.index(all.len())).key;
        for (table, allowed) in [(Table::Ring, 0.0), (Table::Maglev, 0.04)] {
            let (before, after) = (homes(table, &all, &[], 5000), homes(table, &fewer, &[], 5000));
            let moved = before.iter().zip(&after).filter(|(before, after)| **before != gone && before != after);
            let moved = moved.count();
            prop_assert!(moved as f64 <= allowed * 5000.0, "{:?}: {} of 5,000", table, moved);
        }
    }

    #[test]
    fn not_being_admitted_moves_its_keys_and_no_others(
        weights in prop::collection::vec(1..1000_u32, 3..60),
        out in prop::collection::vec(any::<prop::sample::Index>(), 1..3),
    ) {
        let all = members(&weights);
        let out: Vec<_> = out.iter().map(|index| index.index(all.len())).collect();
        for table in TABLES {
            let (before, after) = (homes(table, &all, &[], 2000), homes(table, &all, &out, 2000));
            for (before, after) in before.iter().zip(&after) {
                let is_out = |home: &u64| out.iter().any(|index| all[*index].key == *home);
                prop_assert!(!is_out(after));
                prop_assert!(before == after || is_out(before), "{table:?}");
            }
        }
    }

    #[test]
    fn the_order_of_the_endpoints_does_not_matter(
        all in prop::collection::vec(1..50_u32, 2..40).prop_map(|weights| members(&weights)),
        seed: u64,
    ) {
        use rand::seq::SliceRandom;
        let mut shuffled = all.clone();
        shuffled.shuffle(&mut StdRng::seed_from_u64(seed));
        for table in TABLES {
            prop_assert_eq!(homes(table, &all, &[], 500), homes(table, &shuffled, &[], 500));
        }
    }
}
