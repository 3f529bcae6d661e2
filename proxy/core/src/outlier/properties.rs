//! What holds after any sequence of operations, whatever the policy was and became meanwhile.

use std::{collections::HashMap, num::NonZeroU32};

use outrigger_proto::spec::{FailurePercentage, LatencyOutlier, LoneOpinion, OutlierEjection, SuccessRate};
use proptest::prelude::*;

use super::*;

mod world;

use world::World;

#[derive(Clone, Debug)]
enum Op {
    /// So many requests, ended one after the other.
    Requests(usize, Ended, usize, u64),
    /// As a proxy does: a probe if one is wanted, else this endpoint.
    Dispatch(usize),
    Head(usize),
    End(usize, Ended),
    Wait(u64),
    Relink(Vec<Option<usize>>),
    Policy(Option<OutlierEjection>),
    Health(usize, bool),
    Check(usize, bool),
    Fleet(usize, u32, u32),
}

fn ended() -> impl Strategy<Value = Ended> {
    prop_oneof![
        4 => Just(Ended::Success(What::Status(200))),
        4 => Just(Ended::Failure(What::Status(503))),
        2 => Just(Ended::Failure(What::Grpc(14))),
        2 => Just(Ended::ConnectFailed),
        1 => Just(Ended::Cancelled),
        1 => Just(Ended::Ignored),
    ]
}

fn policies() -> impl Strategy<Value = OutlierEjection> {
    let number = |range: std::ops::Range<u32>| range.prop_map(|n| NonZeroU32::new(n).unwrap());
    let window = (1..30_u64).prop_map(Duration::from_secs);
    let percentage = (1..=100_u8, number(1..20), window.clone())
        .prop_map(|(percent, min_requests, window)| FailurePercentage { percent, min_requests, window });
    let rate =
        (number(2..6), number(1..10), window.clone()).prop_map(|(min_endpoints, min_requests, window)| {
            SuccessRate { deviations_thousandths: 900, min_endpoints, min_requests, window }
        });
    let latency = (101..400_u32, number(1..10), window)
        .prop_map(|(percent, min_requests, window)| LatencyOutlier { percent, min_requests, window });
    let detectors = (
        prop::option::of(number(1..8)),
        prop::option::of(percentage),
        prop::option::of(rate),
        prop::option::of(number(1..4)),
        prop::option::of(latency),
    );
    let floor = (0..=100_u8, 0..4_u32, number(1..5));
    let times = (1..40_u64, 1..10_u64, prop::option::of(0..=100_u8));
    (detectors, floor, times).prop_map(|(detectors, floor, (base, times, lone))| OutlierEjection {
        consecutive_failures: detectors.0,
        failure_percentage: detectors.1,
        success_rate: detectors.2,
        consecutive_connect_failures: detectors.3,
        latency: detectors.4,
        base_ejection: Duration::from_secs(base),
        max_ejection: Duration::from_secs(base * times),
        max_ejected_percent: floor.0,
        min_ready: floor.1,
        probes: floor.2,
        lone_opinion: lone
            .map(|percent| LoneOpinion { min_callers: NonZeroU32::MIN, shortened_percent: percent }),
        ..OutlierEjection::default()
    })
}

fn ops() -> impl Strategy<Value = Op> {
    let endpoint = 0..8_usize;
    prop_oneof![
        8 => (endpoint.clone(), ended(), 1..12_usize, 0..50_u64).prop_map(|(i, e, n, l)| Op::Requests(i, e, n, l)),
        4 => endpoint.clone().prop_map(Op::Dispatch),
        1 => endpoint.clone().prop_map(Op::Head),
        4 => (0..20_usize, ended()).prop_map(|(trial, ended)| Op::End(trial, ended)),
        4 => prop_oneof![0..2_000_u64, 2_000..60_000_u64, Just(400_000_u64)].prop_map(Op::Wait),
        1 => prop::collection::vec(prop::option::of(0..8_usize), 0..8).prop_map(Op::Relink),
        1 => prop::option::weighted(0.9, policies()).prop_map(Op::Policy),
        1 => (endpoint.clone(), any::<bool>()).prop_map(|(i, healthy)| Op::Health(i, healthy)),
        1 => (endpoint.clone(), any::<bool>()).prop_map(|(i, good)| Op::Check(i, good)),
        1 => (endpoint, 0..3_u32, 0..3_u32).prop_map(|(i, callers, by)| Op::Fleet(i, callers, by)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens(
        policy in policies(),
        endpoints in 0..8_usize,
        seed: u64,
        ops in prop::collection::vec(ops(), 1..80),
    ) {
        let mut world = World::new(policy, endpoints, seed);
        for op in ops {
            world.run(op);
            world.check();
        }
        // In the end everybody comes back: no state is a trap.
        while !world.trials.is_empty() {
            world.end(0, Ended::Cancelled, Duration::ZERO);
            world.check();
        }
        for index in 0..world.names.len() {
            world.run(Op::Health(index, true));
            world.check();
        }
        for _ in 0..4 {
            world.run(Op::Wait(800_000));
            for index in 0..world.names.len() {
                world.run(Op::Requests(index, Ended::Success(What::Status(200)), 4, 0));
            }
        }
        prop_assert_eq!(world.breakers.out(), 0);
    }

    /// Each trial is counted once, whatever the order in which they end and the endpoints move.
    #[test]
    fn each_trial_counts_once(
        ops in prop::collection::vec(
            prop_oneof![
                4 => (0..6_usize).prop_map(Op::Dispatch),
                4 => (0..30_usize, ended()).prop_map(|(trial, ended)| Op::End(trial, ended)),
                1 => prop::collection::vec(prop::option::of(0..6_usize), 1..6).prop_map(Op::Relink),
            ],
            1..150,
        ),
    ) {
        let never = FailurePercentage { min_requests: NonZeroU32::MAX, ..FailurePercentage::default() };
        let policy = OutlierEjection {
            consecutive_failures: None,
            consecutive_connect_failures: None,
            failure_percentage: Some(never),
            success_rate: None,
            ..OutlierEjection::default()
        };
        let mut world = World::new(policy, 6, 0);
        let mut counted: HashMap<u64, (u32, u32)> = HashMap::new();
        for op in ops {
            world.now += Duration::from_millis(2);
            if let Op::End(trial, ended) = &op
                && let Some((name, ..)) = world.trials.get(*trial)
                && let Some((_, failed)) = ended.told()
            {
                let count = counted.entry(*name).or_default();
                *count = (count.0 + 1, count.1 + u32::from(failed));
            }
            world.run(op);
            world.check();
            for (index, name) in world.names.iter().enumerate() {
                let at = world.breakers.at(world.now);
                let slot = world.breakers.order[index] as usize;
                let learned = world.breakers.slots[slot].learned.as_deref_mut();
                let sum = learned.map(|learned| learned.counts.sum(at, 1_000_000_000)).unwrap_or_default();
                prop_assert_eq!((sum.total, sum.failed), counted.get(name).copied().unwrap_or_default());
            }
        }
    }
}
