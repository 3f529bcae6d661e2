//! Compares policies in the same simulated fleets and writes what comes of it to `docs/simulation.md`, with plots.
//!
//! `make simulate` runs it. The figures depend on seeds only, so a second run writes the same bytes.

use std::{fmt::Write as _, fs, path::Path, time::Duration};

use outrigger_proto::spec::{
    Algorithm, Ejection, HedgeDelay, Hedging, LoadBalancer, Retries, RetryBudget, Traffic,
};
use outrigger_testkit::sim::{Behaviour, Report, Scenario, Script, run};

mod plot;

use plot::Line;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const SEEDS: std::ops::Range<u64> = 0..20;

fn main() -> std::io::Result<()> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let images = docs.join("images");
    fs::create_dir_all(&images)?;
    let mut page = String::from(HEAD);
    slow_endpoint(&mut page, &images)?;
    failing_endpoint(&mut page, &images)?;
    outage(&mut page, &images)?;
    tail(&mut page);
    fs::write(docs.join("simulation.md"), page)
}

const HEAD: &str = "# What the policies are worth, simulated

Written by `make simulate`; do not edit. A fleet in virtual time (`tests/kit/src/sim.rs`): the machines of `proxy/core` in 5
callers at 100 calls per second each, 0.25 ms of network each way, 20 seeds; medians over the seeds, the worst seed in
brackets. Absolute figures are of the simulated endpoints; what counts is one row beside another. The same comparisons are
asserted by `tests/kit/tests/simulation.rs`.
";

fn fleet(endpoints: Vec<Script>, traffic: Traffic) -> Scenario {
    Scenario {
        callers: 5,
        rate: 100.0,
        duration: 60 * SECOND,
        endpoints,
        network: MS / 4,
        traffic,
        idempotent: 1.0,
    }
}

fn good() -> Behaviour {
    Behaviour::good(5 * MS)
}

fn one_of_ten(other: Script) -> Vec<Script> {
    let mut endpoints = vec![Script::always(good()); 10];
    endpoints[0] = other;
    endpoints
}

fn reports(scenario: &Scenario) -> Vec<Report> {
    SEEDS.map(|seed| run(scenario, seed)).collect()
}

/// The median over the seeds and the worst one, which is the greatest.
fn figures(reports: &[Report], of: impl Fn(&Report) -> f64) -> (f64, f64) {
    let mut all: Vec<f64> = reports.iter().map(of).collect();
    all.sort_by(f64::total_cmp);
    (all[all.len() / 2], all[all.len() - 1])
}

fn milliseconds(reports: &[Report], share: f64) -> String {
    let (median, worst) = figures(reports, |report| report.quantile(share).as_secs_f64() * 1e3);
    format!("{median:.1} ms ({worst:.1})")
}

fn per_cent(reports: &[Report], from: Duration, until: Duration) -> String {
    let (median, worst) = figures(reports, |report| report.failed(from, until) * 100.0);
    format!("{median:.3} % ({worst:.3})")
}

fn balanced(algorithm: Algorithm, ejection: Ejection) -> Traffic {
    let load_balancer = LoadBalancer { algorithm, ..LoadBalancer::default() };
    Traffic { load_balancer, outlier_ejection: ejection, ..Traffic::default() }
}

const ALGORITHMS: [(&str, Algorithm); 4] = [
    ("peak-EWMA", Algorithm::PeakEwma),
    ("least-request", Algorithm::LeastRequest),
    ("round-robin", Algorithm::RoundRobin),
    ("random", Algorithm::Random),
];

fn slow_endpoint(page: &mut String, images: &Path) -> std::io::Result<()> {
    page.push_str(
        "\n## One of ten endpoints takes ten times as long\n\n5 ms, and 50 ms at one of them. No ejection.\n\n\
         | load balancer | p50 | p90 | p99 | share of the slow one |\n|---|---|---|---|---|\n",
    );
    let mut lines = Vec::new();
    for (name, algorithm) in ALGORITHMS {
        let endpoints = one_of_ten(Script::always(Behaviour::good(50 * MS)));
        let reports = reports(&fleet(endpoints, balanced(algorithm, Ejection(None))));
        let (share, _) = figures(&reports, |report| {
            let sent = |endpoint: usize| report.pairs.iter().map(|pairs| pairs[endpoint].sent).sum::<u64>();
            sent(0) as f64 / (0..10).map(sent).sum::<u64>() as f64 * 100.0
        });
        let quantile = |share| milliseconds(&reports, share);
        let _ = writeln!(
            page,
            "| {name} | {} | {} | {} | {share:.1} % |",
            quantile(0.5),
            quantile(0.9),
            quantile(0.99)
        );
        let shares = (0..=200).map(|step| 0.8 + 0.001 * f64::from(step));
        let curve = shares.map(|share| {
            let took = figures(&reports, |report| report.quantile(share.min(0.9995)).as_secs_f64() * 1e3).0;
            (share * 100.0, took)
        });
        lines.push(Line { name, points: curve.collect() });
    }
    page.push_str("\n![latency by percentile](images/slow-endpoint.svg)\n");
    plot::write(&images.join("slow-endpoint.svg"), "percentile", "ms", &lines)
}

fn failing_endpoint(page: &mut String, images: &Path) -> std::io::Result<()> {
    page.push_str(
        "\n## One of ten endpoints answers everything with 500 from the tenth second on\n\nFast, as broken endpoints are, and \
         500 is not retried.\n\n| load balancer | ejection | failed after 10 s | failed after 12 s | its requests until the \
         last caller had ejected it |\n|---|---|---|---|---|\n",
    );
    let mut lines = Vec::new();
    for (name, algorithm) in ALGORITHMS {
        for (on, ejection) in [("on", Ejection::default()), ("off", Ejection(None))] {
            let script = Script::always(good()).then(10 * SECOND, good().failing(1.0, 500));
            let reports = reports(&fleet(one_of_ten(script), balanced(algorithm.clone(), ejection)));
            let most = |report: &Report| {
                report.pairs.iter().map(|pairs| pairs[0].failed_until_ejected.unwrap_or(u64::MAX)).max()
            };
            let most = match figures(&reports, |report| most(report).unwrap_or_default() as f64).1 {
                most if most > 1e9 => "never".to_owned(),
                most => format!("{most:.0} per caller at most"),
            };
            let failed = |from: u32| per_cent(&reports, from * SECOND, 60 * SECOND);
            let _ = writeln!(page, "| {name} | {on} | {} | {} | {most} |", failed(10), failed(12));
            if name == "peak-EWMA" {
                let name = if on == "on" { "ejection on" } else { "ejection off" };
                lines.push(Line { name, points: over_time(&reports, |good| (1.0 - good) * 100.0) });
            }
        }
    }
    page.push_str("\n![failed calls over time, peak-EWMA](images/failing-endpoint.svg)\n");
    plot::write(&images.join("failing-endpoint.svg"), "seconds", "% failed", &lines)
}

fn outage(page: &mut String, images: &Path) -> std::io::Result<()> {
    page.push_str(
        "\n## The whole upstream fails for 20 s\n\n5 endpoints of 4 slots and 20 ms each, asked for half of what they can do; \
         from 10 s to 30 s they answer 503.\n\n| retry budget | ejection | attempts per call during the outage | answered \
         well from 40 s on |\n|---|---|---|---|\n",
    );
    let unlimited = RetryBudget { percent: 1_000, min_per_second: 1_000 };
    let busy = || good_and_busy(20 * MS);
    let script = Script::always(busy()).then(10 * SECOND, busy().failing(1.0, 503)).then(30 * SECOND, busy());
    let mut lines = Vec::new();
    for (budgeted, budget) in [("20 %", RetryBudget::default()), ("none", unlimited)] {
        for (on, ejection) in [("on", Ejection::default()), ("off", Ejection(None))] {
            let retries = Retries { budget, ..Retries::default() };
            let traffic = Traffic { retries, outlier_ejection: ejection, ..Traffic::default() };
            let reports = reports(&fleet(vec![script.clone(); 5], traffic));
            let (sent, most) = figures(&reports, |report| report.amplification(10 * SECOND, 30 * SECOND));
            let good = figures(&reports, |report| report.failed(40 * SECOND, 60 * SECOND));
            let _ = writeln!(
                page,
                "| {budgeted} | {on} | {sent:.2} ({most:.2}) | {:.2} % ({:.2}) |",
                (1.0 - good.0) * 100.0,
                (1.0 - good.1) * 100.0
            );
            if on == "on" {
                let name = if budgeted == "none" { "no budget" } else { "budget 20 %" };
                lines.push(Line { name, points: over_time(&reports, |good| good * 100.0) });
            }
        }
    }
    page.push_str("\n![calls answered well over time](images/outage.svg)\n");
    plot::write(&images.join("outage.svg"), "seconds", "% good", &lines)
}

fn good_and_busy(latency: Duration) -> Behaviour {
    Behaviour::good(latency).slots(4)
}

fn tail(page: &mut String) {
    page.push_str(
        "\n## Two of a hundred answers take ten times as long\n\n| hedging | p50 | p99 | p99.5 | attempts per call |\n\
         |---|---|---|---|---|\n",
    );
    let hedging = |percent| Some(Hedging { delay: HedgeDelay::P95, budget_percent: percent });
    for (name, hedging) in [("off", None), ("p95, 5 %", hedging(5)), ("p95, 20 %", hedging(20))] {
        let traffic = Traffic { hedging, ..Traffic::default() };
        let reports = reports(&fleet(vec![Script::always(good().tail(0.02)); 10], traffic));
        let (sent, most) = figures(&reports, |report| report.amplification(Duration::ZERO, 60 * SECOND));
        let quantile = |share| milliseconds(&reports, share);
        let _ = writeln!(
            page,
            "| {name} | {} | {} | {} | {sent:.3} ({most:.3}) |",
            quantile(0.5),
            quantile(0.99),
            quantile(0.995)
        );
    }
}

/// The median over the seeds of what becomes of each second's share of good calls.
fn over_time(reports: &[Report], of: impl Fn(f64) -> f64) -> Vec<(f64, f64)> {
    let all: Vec<Vec<f64>> = reports.iter().map(|report| report.goodput(SECOND)).collect();
    (0..60)
        .map(|second| {
            let mut values: Vec<f64> =
                all.iter().map(|seconds| of(seconds.get(second).copied().unwrap_or(1.0))).collect();
            values.sort_by(f64::total_cmp);
            (second as f64, values[values.len() / 2])
        })
        .collect()
}
