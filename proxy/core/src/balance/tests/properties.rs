//! Whatever happens before: who is picked may be, and somebody is if anybody may.

use outrigger_proto::spec::{HashOn, Subset, Table, ZonePreference};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Admit(usize, bool),
    Dispatch(usize),
    Answer(usize, u64),
    Refuse(usize, Option<u64>),
    End(usize),
    Wait(u64),
    /// Bits of `usable` say who is; a key; a subset.
    Pick {
        usable: u64,
        hash: Option<u64>,
        subset: Option<&'static str>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let index = 0..64_usize;
    let subset = prop::option::of(prop::sample::select(vec!["", "v1", "v2", "v9"]));
    let usable = prop_oneof![Just(u64::MAX), any::<u64>(), (0..64_u32).prop_map(|bit| 1 << bit)];
    prop_oneof![
        3 => (index.clone(), any::<bool>()).prop_map(|(index, value)| Step::Admit(index, value)),
        1 => index.clone().prop_map(Step::Dispatch),
        1 => (index.clone(), 0..5000_u64).prop_map(|(index, ms)| Step::Answer(index, ms)),
        1 => (index.clone(), prop::option::of(0..1000_u64)).prop_map(|(index, s)| Step::Refuse(index, s)),
        1 => index.prop_map(Step::End),
        1 => (0..20_000_u64).prop_map(Step::Wait),
        6 => (usable, prop::option::of(any::<u64>()), subset)
            .prop_map(|(usable, hash, subset)| Step::Pick { usable, hash, subset }),
    ]
}

fn any_policy() -> impl Strategy<Value = LoadBalancer> {
    let hashed = |table| Algorithm::Consistent(table, vec![HashOn::Path]);
    let algorithms = [ALL.to_vec(), vec![hashed(Table::Maglev), hashed(Table::Ring)]].concat();
    let zone = prop::option::of((1..=100_u8).prop_map(|min| ZonePreference { min_healthy_percent: min }));
    let subset = prop::option::of(any::<bool>().prop_map(|fallback_to_any| Subset {
        header: http::HeaderName::from_static("x-version"),
        label: "version".into(),
        fallback_to_any,
    }));
    let slow_start = prop::option::of((1..60_u64).prop_map(Duration::from_secs));
    let panic = prop_oneof![Just(0), 0..=100_u8];
    (prop::sample::select(algorithms), zone, subset, slow_start, panic).prop_map(
        |(algorithm, zone, subset, slow_start, panic_percent)| LoadBalancer {
            algorithm,
            zone,
            slow_start,
            panic_percent,
            subset,
        },
    )
}

fn any_member() -> impl Strategy<Value = (u32, &'static str, &'static str, Option<u64>)> {
    let zone = prop::sample::select(vec!["", "a", "b"]);
    let subset = prop::sample::select(vec!["", "v1", "v2"]);
    (prop_oneof![Just(1), 1..1000_u32], zone, subset, prop::option::of(0..60_000_u64))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn the_admitted_and_usable_are_picked_and_nobody_else(
        seed: u64,
        given in prop::collection::vec(any_member(), 0..40),
        policy in any_policy(),
        own_zone in prop::sample::select(vec!["", "a", "c"]),
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let (mut now, mut rng) = (crate::testing::start() + Duration::from_secs(100), StdRng::seed_from_u64(seed));
        let mut all = members(&given.iter().map(|(weight, ..)| *weight).collect::<Vec<_>>());
        for (member, (_, zone, subset, age)) in all.iter_mut().zip(&given) {
            (member.zone, member.subset) = ((*zone).into(), (*subset).into());
            member.ready_since = age.map(|age| now - Duration::from_millis(age));
        }
        let mut loads: Vec<_> = all.iter().map(|_| Load::new(now)).collect();
        let mut picker = Picker::new(&policy, &all, own_zone, &mut rng, now);
        let mut admitted = vec![true; all.len()];
        for step in steps {
            let in_range = |index: usize| index % all.len().max(1);
            match step {
                _ if all.is_empty() && !matches!(step, Step::Pick { .. }) => {}
                Step::Admit(index, value) => {
                    picker.set_admitted(in_range(index), value);
                    admitted[in_range(index)] = value;
                    prop_assert_eq!(picker.admitted(), admitted.iter().filter(|admitted| **admitted).count());
                }
                Step::Dispatch(index) => loads[in_range(index)].on_dispatch(now),
                Step::Answer(index, ms) => loads[in_range(index)].on_response(Duration::from_millis(ms), now),
                Step::Refuse(index, seconds) => {
                    loads[in_range(index)].on_refusal(seconds.map(Duration::from_secs), now);
                }
                Step::End(index) => loads[in_range(index)].on_end(now),
                Step::Wait(ms) => now += Duration::from_millis(ms),
                Step::Pick { usable, hash, subset } => {
                    let is_usable = |index: usize| usable >> (index % 64) & 1 == 1;
                    let wanted = Wanted { hash, subset };
                    let picked = picker.pick(&loads[..], &wanted, is_usable, &mut rng, now);

                    let named = subset.filter(|named| policy.subset.is_some() && !named.is_empty());
                    let mut group: Vec<_> = (0..all.len())
                        .filter(|index| named.is_none_or(|named| *all[*index].subset == *named))
                        .collect();
                    if group.is_empty() && policy.subset.as_ref().is_some_and(|subset| subset.fallback_to_any) {
                        group = (0..all.len()).collect();
                    }
                    let healthy = group.iter().filter(|index| admitted[**index]).count();
                    let panic = healthy == 0 || healthy * 100 < usize::from(policy.panic_percent) * group.len();
                    let may = |index: &usize| (panic || admitted[*index]) && is_usable(*index);
                    prop_assert_eq!(picked.is_some(), group.iter().any(may), "{:?}", picked);
                    prop_assert!(picked.is_none_or(|index| group.contains(&index) && may(&index)), "{:?}", picked);
                    if let (Algorithm::Consistent(..), Some(_)) = (&policy.algorithm, hash) {
                        let again = picker.pick(&loads[..], &wanted, is_usable, &mut rng, now);
                        prop_assert_eq!(again, picked, "equal keys go to the same endpoint");
                    }
                }
            }
        }
    }
}
