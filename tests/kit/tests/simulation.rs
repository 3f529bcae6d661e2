//! What the machines promise together, over many seeds, and what they are worth beside simpler ones.

use std::time::Duration;

use outrigger_proto::spec::{
    Algorithm, Ejection, HedgeDelay, Hedging, LoadBalancer, OutlierEjection, Retries, RetryBudget, Timeouts,
    Traffic,
};
use outrigger_testkit::sim::{Behaviour, Report, Scenario, Script, run};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
/// Same for every policy that is compared.
const SEEDS: std::ops::Range<u64> = 0..10;

fn fleet(endpoints: Vec<Script>) -> Scenario {
    Scenario {
        callers: 5,
        rate: 100.0,
        duration: 30 * SECOND,
        endpoints,
        network: MS / 4,
        traffic: Traffic::default(),
        idempotent: 1.0,
    }
}

fn good(count: usize) -> Vec<Script> {
    vec![Script::always(Behaviour::good(5 * MS)); count]
}

fn all(scenario: &Scenario) -> Vec<Report> {
    SEEDS
        .map(|seed| {
            let report = run(scenario, seed);
            assert!(report.broken.is_empty(), "seed {seed}: {:?}", report.broken);
            report
        })
        .collect()
}

fn without_ejection(algorithm: Algorithm) -> Traffic {
    Traffic {
        load_balancer: LoadBalancer { algorithm, ..LoadBalancer::default() },
        outlier_ejection: Ejection(None),
        ..Traffic::default()
    }
}

#[test]
fn peak_ewma_turns_away_from_a_slow_endpoint() {
    let mut endpoints = good(10);
    endpoints[0] = Script::always(Behaviour::good(50 * MS));
    let p99 = |algorithm: Algorithm| {
        let scenario = Scenario { traffic: without_ejection(algorithm), ..fleet(endpoints.clone()) };
        all(&scenario).iter().map(|report| report.quantile(0.99)).collect::<Vec<_>>()
    };
    let (ewma, round_robin) = (p99(Algorithm::PeakEwma), p99(Algorithm::RoundRobin));
    for (seed, (ewma, round_robin)) in ewma.iter().zip(&round_robin).enumerate() {
        assert!(*ewma * 3 <= *round_robin, "seed {seed}: {ewma:?} against {round_robin:?}");
    }
}

/// Of ten endpoints one answers everything at once, and badly.
fn one_fails(failure: u16, traffic: Traffic) -> Scenario {
    let mut endpoints = good(10);
    endpoints[0] = Script::always(Behaviour::good(5 * MS).failing(1.0, failure));
    Scenario { traffic, ..fleet(endpoints) }
}

/// 500 is not retried, and answered fast: nothing but ejection helps.
#[test]
fn an_endpoint_that_fails_everything_is_found_out_within_ten_requests() {
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin] {
        let load_balancer = LoadBalancer { algorithm, ..LoadBalancer::default() };
        let scenario = one_fails(500, Traffic { load_balancer, ..Traffic::default() });
        for (seed, report) in all(&scenario).iter().enumerate() {
            for (caller, pairs) in report.pairs.iter().enumerate() {
                let sent = pairs[0].sent_until_ejected;
                assert!(sent.is_some_and(|sent| sent <= 10), "seed {seed}, caller {caller}: {sent:?}");
            }
            let failed = report.failed(2 * SECOND, 30 * SECOND);
            assert!(failed < 0.001, "seed {seed}: {failed} after everybody has ejected it");
        }
    }
}

#[test]
fn without_ejection_a_tenth_of_the_calls_fails() {
    for (seed, report) in all(&one_fails(500, without_ejection(Algorithm::RoundRobin))).iter().enumerate() {
        let failed = report.failed(2 * SECOND, 30 * SECOND);
        assert!(failed > 0.09, "seed {seed}: the check above could not fail: {failed}");
    }
}

/// 503 is avoided after the first, and retried where that is harmless.
#[test]
fn an_endpoint_that_refuses_everything_is_hardly_noticed() {
    let scenario = one_fails(503, without_ejection(Algorithm::RoundRobin));
    for (seed, report) in all(&scenario).iter().enumerate() {
        let failed = report.failed(Duration::ZERO, 30 * SECOND);
        assert!(failed < 0.001, "seed {seed}: {failed}");
    }
}

/// Everything is away for 20 s, and what there is can hardly do more than it is asked for.
fn outage(traffic: Traffic) -> Scenario {
    let busy = Behaviour::good(20 * MS).slots(4);
    let script = Script::always(busy.clone())
        .then(10 * SECOND, busy.clone().failing(1.0, 503))
        .then(30 * SECOND, busy);
    Scenario { traffic, duration: 60 * SECOND, ..fleet(vec![script; 5]) }
}

#[test]
fn a_full_outage_is_not_amplified_and_ends_when_it_ends() {
    for (seed, report) in all(&outage(Traffic::default())).iter().enumerate() {
        let amplified = report.amplification(10 * SECOND, 30 * SECOND);
        assert!(amplified <= 1.2, "seed {seed}: {amplified} attempts per call");
        let goodput = report.goodput(SECOND);
        let late = &goodput[40..];
        assert!(late.iter().all(|share| *share > 0.95), "seed {seed}: {late:?}");
    }
}

#[test]
fn without_a_budget_an_outage_is_amplified() {
    let budget = RetryBudget { percent: 1_000, min_per_second: 1_000 };
    let retries = Retries { budget, ..Retries::default() };
    let traffic = Traffic { retries, outlier_ejection: Ejection(None), ..Traffic::default() };
    for (seed, report) in all(&outage(traffic)).iter().enumerate() {
        let amplified = report.amplification(10 * SECOND, 30 * SECOND);
        assert!(amplified > 2.0, "seed {seed}: the check above could not fail: {amplified}");
    }
}

#[test]
fn hedges_cut_the_tail_within_their_budget() {
    let p99 = |hedging: Option<Hedging>| {
        let endpoints = vec![Script::always(Behaviour::good(5 * MS).tail(0.02)); 10];
        let scenario = Scenario { traffic: Traffic { hedging, ..Traffic::default() }, ..fleet(endpoints) };
        let reports = all(&scenario);
        let p99: Vec<_> = reports.iter().map(|report| report.quantile(0.995)).collect();
        let sent: Vec<_> =
            reports.iter().map(|report| report.amplification(Duration::ZERO, 30 * SECOND)).collect();
        (p99, sent)
    };
    let (plain, _) = p99(None);
    let (hedged, sent) = p99(Some(Hedging { delay: HedgeDelay::P95, budget_percent: 5 }));
    for seed in 0..plain.len() {
        assert!(hedged[seed] * 2 < plain[seed], "seed {seed}: {:?} against {:?}", hedged[seed], plain[seed]);
        assert!(sent[seed] < 1.06, "seed {seed}: {} attempts per call", sent[seed]);
    }
}

/// A scenario nobody has thought of.
fn any(seed: u64) -> Scenario {
    let mut rng = SmallRng::seed_from_u64(seed);
    let behaviour = |rng: &mut SmallRng| match rng.random_range(0..8) {
        0 => Behaviour::down(),
        1 => Behaviour { state: outrigger_testkit::sim::State::Hanging, ..Behaviour::good(MS) },
        2 => Behaviour::good(rng.random_range(1..200) * MS)
            .failing(rng.random(), [500, 503, 429][rng.random_range(0..3)]),
        3 => Behaviour::good(rng.random_range(1..50) * MS).slots(rng.random_range(1..5)),
        _ => Behaviour::good(rng.random_range(1..20) * MS),
    };
    let endpoints = (0..rng.random_range(1..8)).map(|_| {
        let mut script = Script::always(behaviour(&mut rng));
        for phase in 1..rng.random_range(1..4) {
            script = script.then(phase * SECOND / 2, behaviour(&mut rng));
        }
        script
    });
    let endpoints = endpoints.collect();
    let algorithms = [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin, Algorithm::Random];
    let load_balancer = LoadBalancer {
        algorithm: algorithms[rng.random_range(0..4)].clone(),
        panic_percent: [0, 0, 30, 100][rng.random_range(0..4)],
        ..LoadBalancer::default()
    };
    let ejection = OutlierEjection {
        base_ejection: rng.random_range(50..1_000) * MS,
        max_ejection: 2 * SECOND,
        max_ejected_percent: [10, 50, 100][rng.random_range(0..3)],
        min_ready: rng.random_range(0..3),
        ..OutlierEjection::default()
    };
    let traffic = Traffic {
        load_balancer,
        outlier_ejection: Ejection(rng.random_bool(0.9).then_some(ejection)),
        timeouts: Timeouts {
            request: Some(rng.random_range(100..2_000) * MS),
            per_try: rng.random_bool(0.5).then(|| rng.random_range(10..100) * MS),
            ..Timeouts::default()
        },
        retries: Retries { attempts: rng.random_range(0..5), ..Retries::default() },
        hedging: rng
            .random_bool(0.3)
            .then(|| Hedging { delay: HedgeDelay::After(10 * MS), budget_percent: 10 }),
        ..Traffic::default()
    };
    Scenario {
        callers: rng.random_range(1..4),
        rate: 60.0,
        duration: 2 * SECOND,
        endpoints,
        network: MS / 4,
        traffic,
        idempotent: 0.7,
    }
}

/// `OUTRIGGER_SEEDS` says how many.
#[test]
fn promises_hold_in_scenarios_that_nobody_has_thought_of() {
    let seeds =
        std::env::var("OUTRIGGER_SEEDS").map_or(10_000, |text| text.parse().expect("a number of seeds"));
    let mut calls = 0;
    for seed in 0..seeds {
        let scenario = any(seed);
        let report = run(&scenario, seed);
        assert!(report.broken.is_empty(), "seed {seed}: {:?} in {scenario:#?}", report.broken);
        calls += report.calls.len();
        let retries = &scenario.traffic.retries.budget;
        let limit = scenario.traffic.timeouts.request.unwrap_or_default();
        let (mut sent, mut late) = (0_u64, None);
        for call in &report.calls {
            sent += u64::from(call.attempts);
            late = late.or_else(|| (call.took > limit).then_some(call));
        }
        assert!(late.is_none(), "seed {seed}: a call outlived its deadline: {late:?}");
        let hedges = scenario.traffic.hedging.as_ref().map_or(0, |hedging| u64::from(hedging.budget_percent));
        let asked = report.calls.len() as u64;
        // What was never sent is free; it is not free of attempts.
        let down = scenario.endpoints.iter().any(|script| {
            script.phases.iter().any(|(_, behaviour)| behaviour.state == outrigger_testkit::sim::State::Down)
        });
        let seconds = 2 + scenario.traffic.timeouts.request.map_or(0, |limit| limit.as_secs() + 1);
        let budget = asked * u64::from(retries.percent) / 100
            + scenario.callers as u64 * u64::from(retries.min_per_second) * seconds
            + asked * hedges / 100
            + scenario.callers as u64;
        assert!(down || sent <= asked + budget, "seed {seed}: {sent} attempts for {asked} calls");
    }
    assert!(calls as u64 > seeds * 50, "{calls} calls in {seeds} seeds: too few to mean anything");
}
