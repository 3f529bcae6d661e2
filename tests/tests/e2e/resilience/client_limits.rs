//! Bulkheads and rate limits of the calls that leave a workload.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::wait_for;
use serde_json::Value;

use crate::support::{
    SOON, Test,
    app::{Asked, Say},
    call::{Line, Told},
    farm::{Builder, Farm, Stand, hold, with_and_without},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("bulkheads_limit_requests_to_an_upstream", upstream_requests),
        Test::in_farm("bulkheads_limit_connections_to_an_upstream", upstream_connections),
        Test::in_farm("bulkheads_limit_requests_and_connections_to_an_endpoint", endpoint),
        Test::in_farm("bulkheads_limit_requests_of_a_route", route),
        Test::in_farm("bulkheads_let_requests_wait_in_a_queue", queue),
        Test::in_farm("bulkheads_adapt_to_latency", adaptive),
        Test::in_farm("bulkheads_keep_a_slow_upstream_from_slowing_calls_to_another", isolation).quiet(),
        Test::in_farm("client_rate_limits_refuse_and_say_when_to_come_back", rate_limit),
        Test::in_farm("client_rate_limits_count_by_key", rate_limit_keys),
        Test::in_farm("client_rate_limits_admit_bursts_and_windows", rate_limit_algorithms),
        Test::in_farm("client_rate_limits_refuse_nobody_in_a_dry_run", rate_limit_dry_run),
    ]
}

fn alone<'f>(farm: &'f Farm, hosts: &[usize], lines: &str) -> Builder<'f> {
    let alone = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n";
    farm.stand(hosts).policy(&format!("{alone}{lines}"))
}

/// Long enough for all of a group of calls to be under way at the same time.
const WHILE: Duration = Duration::from_secs(1);

fn slow(_: usize, _: &Asked) -> Say {
    Say::ok("good").after(WHILE)
}

/// How many were answered well, and how many were refused for this reason.
fn outcome(told: &[Told], reason: &str) -> (usize, usize) {
    let good = told.iter().filter(|told| told.status == 200).count();
    let refused = told.iter().filter(|told| told.status == 503 && told.reason() == reason).count();
    (good, refused)
}

fn upstream_requests(farm: &Farm) -> Result<()> {
    with_and_without(
        "  bulkhead: {upstream: {maxRequests: 2}}\n",
        "",
        |lines| alone(farm, &[0, 1], lines).apps(slow),
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 6)?;
            hold!(outcome(&told, "bulkhead-full") == (2, 4), "{told:?}");
            let peaks: Vec<_> = stand.apps.iter().map(crate::support::app::App::peak).collect();
            hold!(peaks.iter().sum::<u64>() <= 2, "{peaks:?} at the same time");
            // The places are free again.
            let told = stand.get("/").at_once(stand.web(), 2)?;
            hold!(outcome(&told, "bulkhead-full") == (2, 0), "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn upstream_connections(farm: &Farm) -> Result<()> {
    with_and_without(
        "  bulkhead: {upstream: {maxConnections: 1}}\n",
        "",
        |lines| alone(farm, &[0, 1], lines).apps(slow),
        |stand| {
            // HTTP/1.1: one request at a time on each connection.
            let told = stand.get("/").at_once(stand.web(), 4)?;
            let peaks: Vec<_> = stand.apps.iter().map(crate::support::app::App::peak).collect();
            hold!(peaks.iter().sum::<u64>() == 1, "{peaks:?} at the same time: {told:?}");
            Ok(Ok(()))
        },
    )
}

fn endpoint(farm: &Farm) -> Result<()> {
    for field in ["maxRequests", "maxConnections"] {
        with_and_without(
            &format!("  bulkhead: {{endpoint: {{{field}: 1}}}}\n"),
            "",
            |lines| alone(farm, &[0, 1], lines).apps(slow),
            |stand| {
                let told = stand.get("/").at_once(stand.web(), 5)?;
                let peaks: Vec<_> = stand.apps.iter().map(crate::support::app::App::peak).collect();
                hold!(peaks == [1, 1], "{field}: {peaks:?} at the same time: {told:?}");
                hold!(field == "maxConnections" || outcome(&told, "bulkhead-full") == (2, 3), "{told:?}");
                Ok(Ok(()))
            },
        )?;
    }
    Ok(())
}

fn route(farm: &Farm) -> Result<()> {
    let routes = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: NAME, namespace: shop}
spec:
  parentRefs: [{kind: Service, group: \"\", name: NAME, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}}]
    backendRefs: [{name: NAME, port: 80}]
  - backendRefs: [{name: NAME, port: 80}]
";
    with_and_without(
        "  bulkhead: {route: {maxRequests: 1}}\n",
        "",
        |lines| alone(farm, &[0], lines).documents(routes).apps(slow),
        |stand| {
            let (a, b) = thread::scope(|scope| {
                let b = scope.spawn(|| stand.get("/b").at_once(stand.web(), 1));
                let a = stand.get("/a").at_once(stand.web(), 3);
                (a, b.join().expect("b"))
            });
            let (a, b) = (a?, b?);
            hold!(outcome(&a, "bulkhead-full") == (1, 2), "{a:?}");
            hold!(outcome(&b, "bulkhead-full") == (1, 0), "the other route: {b:?}");
            Ok(Ok(()))
        },
    )
}

fn queue(farm: &Farm) -> Result<()> {
    let one = "  bulkhead: {upstream: {maxRequests: 1}";
    // Whoever waits gets the place that becomes free.
    with_and_without(
        &format!("{one}, queue: {{size: 2, timeout: 30s}}}}\n"),
        &format!("{one}}}\n"),
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("good").after(WHILE / 2)),
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 5)?;
            hold!(outcome(&told, "bulkhead-full") == (3, 2), "{told:?}");
            hold!(stand.apps[0].peak() == 1, "{} at the same time", stand.apps[0].peak());
            Ok(Ok(()))
        },
    )?;
    // But not for ever.
    with_and_without(
        &format!("{one}, queue: {{size: 1, timeout: 200ms}}}}\n"),
        &format!("{one}}}\n"),
        |lines| alone(farm, &[0], lines).apps(|_, _| Say::ok("good").after(2 * WHILE)),
        |stand| {
            let told = stand.get("/").at_once(stand.web(), 3)?;
            hold!(outcome(&told, "bulkhead-full") == (1, 1), "{told:?}");
            hold!(outcome(&told, "queue-timeout") == (1, 1), "{told:?}");
            Ok(Ok(()))
        },
    )
}

/// What the proxy says of this service's bulkheads.
fn bulkheads(stand: &Stand<'_>) -> Result<Vec<Value>> {
    let answer = stand.farm.web.admin("/limits")?;
    let all: Value = serde_json::from_str(&answer.body).with_context(|| answer.body.clone())?;
    let all = all["bulkheads"].as_array().context("bulkheads")?;
    Ok(all.iter().filter(|one| one.to_string().contains(&stand.name)).cloned().collect())
}

fn adaptive(farm: &Farm) -> Result<()> {
    // An upstream that does one thing at a time: the more are under way, the longer each takes.
    let door = Arc::new(Mutex::new(()));
    let busy = move |_: usize, _: &Asked| {
        let _one_at_a_time = door.lock().unwrap_or_else(PoisonError::into_inner);
        thread::sleep(Duration::from_millis(4));
        Say::ok("good")
    };
    with_and_without(
        "  bulkhead: {adaptive: {minRequests: 2, maxRequests: 200}}\n",
        "",
        |lines| alone(farm, &[0], lines).apps(busy.clone()),
        |stand| {
            let stop = AtomicBool::new(false);
            let shed = AtomicU64::new(0);
            let call = stand.get("/");
            let caller = || -> Result<()> {
                let mut line = Line::open(stand.web(), stand.target)?;
                while !stop.load(Ordering::Relaxed) {
                    if line.send(&call)?.reason() == "bulkhead-full" {
                        shed.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(Duration::from_millis(20));
                    }
                }
                Ok(())
            };
            let moved = thread::scope(|scope| {
                // One alone shows how quick it can be; then many come. The limit begins at 20 and comes down.
                scope.spawn(caller);
                let learned = wait_for(SOON, "a hundred answers", || stand.total() > 100);
                for _ in 0..40 {
                    scope.spawn(caller);
                }
                let mut limits = Vec::new();
                let limit = |bulkhead: &Value| bulkhead["limit"].as_u64();
                let moved = wait_for(Duration::from_secs(10), "a lower limit", || {
                    limits = bulkheads(stand).unwrap_or_default();
                    limits.iter().filter_map(limit).any(|limit| limit < 15)
                });
                stop.store(true, Ordering::Relaxed);
                learned.and(moved).map_err(|error| format!("{error}: {limits:?}"))
            });
            hold!(moved.is_ok(), "{moved:?}");
            hold!(shed.into_inner() > 0, "nothing was shed");
            Ok(Ok(()))
        },
    )
}

/// A program with so many threads that calls two upstreams, as most programs do: while all threads wait for one of them,
/// nobody is there to call the other.
const THREADS: usize = 8;
const PACE: Duration = Duration::from_millis(5);

/// The 99th percentile of calls to `other`, from when each was due, while so many more calls go to `slow`.
fn p99(other: &Stand<'_>, slow: Option<&Stand<'_>>) -> Result<Duration> {
    const CALLS: usize = 400;
    let (jobs, queue) = mpsc::channel::<(Instant, bool)>();
    let queue = Mutex::new(queue);
    let times = Mutex::new(Vec::new());
    thread::scope(|scope| -> Result<()> {
        let mut workers = Vec::new();
        for _ in 0..THREADS {
            workers.push(scope.spawn(|| -> Result<()> {
                let mut to_other = Line::open(other.web(), other.target)?;
                let mut to_slow = slow.map(|slow| Line::open(slow.web(), slow.target)).transpose()?;
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((due, is_slow)) = next else { return Ok(()) };
                    match (&mut to_slow, slow) {
                        (Some(line), Some(slow)) if is_slow => drop(line.send(&slow.get("/"))?),
                        _ => {
                            let told = to_other.send(&other.get("/"))?;
                            ensure!(told.status == 200, "{told:?}");
                            times.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
                        }
                    }
                }
            }));
        }
        let start = Instant::now();
        for number in 0..CALLS {
            let due = start + PACE * u32::try_from(number)?;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            jobs.send((due, false))?;
            if slow.is_some() && number % 8 == 0 {
                jobs.send((due, true))?;
            }
        }
        drop(jobs);
        workers.into_iter().try_for_each(|worker| worker.join().expect("worker"))
    })?;
    let mut times = times.into_inner().unwrap_or_else(PoisonError::into_inner);
    times.sort();
    times.get(times.len() * 99 / 100).copied().context("no times")
}

fn isolation(farm: &Farm) -> Result<()> {
    // One after the other: they measure.
    let quick = alone(farm, &[0], "").apps(|_, _| Say::ok("good"))?;
    let stand =
        |lines: &str| alone(farm, &[1], lines).apps(|_, _| Say::ok("late").after(Duration::from_millis(500)));
    let limited = stand("  bulkhead: {upstream: {maxRequests: 2}}\n")?;
    let unlimited = stand("")?;
    // In the same run, and again where others disturbed it: the machine is shared.
    let mut seen = Vec::new();
    for _ in 0..5 {
        let before = p99(&quick, None)?;
        let beside = p99(&quick, Some(&limited))?;
        let after = p99(&quick, None)?;
        seen.push((before, beside, after));
        let alone = before.max(after);
        if beside <= alone * 3 / 2 {
            let without = p99(&quick, Some(&unlimited))?;
            ensure!(
                without > alone * 3,
                "the check cannot fail: {without:?} without a bulkhead, alone {alone:?}"
            );
            ensure!(limited.apps[0].peak() == 2, "the slow upstream had {}", limited.apps[0].peak());
            return Ok(());
        }
    }
    anyhow::bail!(
        "p99 of calls to another upstream, before, beside a slow one (limited or not), after: {seen:?}"
    )
}

fn quick<'f>(farm: &'f Farm, lines: &str) -> Result<Stand<'f>> {
    alone(farm, &[0], lines).apps(|_, _| Say::ok("good"))
}

fn rate_limit(farm: &Farm) -> Result<()> {
    with_and_without(
        "  rateLimit: [{name: few, requests: 2, per: 1m}]\n",
        "",
        |lines| quick(farm, lines),
        |stand| {
            let told = stand.get("/").in_turn(stand.web(), 3)?;
            hold!(told[0].status == 200 && told[1].status == 200, "{told:?}");
            let last = &told[2];
            hold!(last.status == 429 && last.reason() == "rate-limited", "{last:?}");
            let after = last.field("retry-after").and_then(|after| after.parse::<u64>().ok());
            hold!(after.is_some_and(|after| (1..=60).contains(&after)), "{last:?}");
            let name = format!("\"TrafficPolicy/shop/{}/few\"", stand.name);
            let policy = format!("{name};q=2;w=60");
            hold!(last.field("ratelimit-policy") == Some(&policy), "{last:?}");
            let rest = last.field("ratelimit").unwrap_or_default();
            hold!(rest.starts_with(&format!("{name};r=0;t=")), "{last:?}");
            hold!(stand.total() == 2, "{} reached the application", stand.total());
            Ok(Ok(()))
        },
    )?;
    with_and_without(
        "  rateLimit: [{name: few, requests: 1, per: 1m}]\n",
        "",
        |lines| alone(farm, &[0], lines).protocol("grpc").apps(|_, _| Say::ok("good")),
        |stand| {
            let call = || stand.post("/outrigger.test.Echo/Unary", "x").grpc(stand.web());
            let told = [call()?, call()?];
            let codes = told.each_ref().map(|told| told.grpc);
            hold!(codes == [Some(0), Some(8)], "{told:?}");
            hold!(told[1].reason() == "rate-limited", "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn rate_limit_keys(farm: &Farm) -> Result<()> {
    // Two by two: the second of each pair is refused where they have one count, and only there.
    let cases = [
        ("{header: x-user}", [("/", "a"), ("/", "b"), ("/", "a"), ("/", "b")], [200, 200, 429, 429]),
        ("{path: {}}", [("/a?x", "a"), ("/b", "a"), ("/a?y", "b"), ("/b", "b")], [200, 200, 429, 429]),
        (
            "{header: x-user}, {path: {}}",
            [("/a", "a"), ("/b", "a"), ("/a", "b"), ("/a", "a")],
            [200, 200, 200, 429],
        ),
        // All calls have one caller here.
        ("{caller: identity}", [("/a", "a"), ("/b", "b"), ("/", "c"), ("/", "d")], [200, 429, 429, 429]),
        ("{client: address}", [("/a", "a"), ("/b", "b"), ("/", "c"), ("/", "d")], [200, 429, 429, 429]),
    ];
    for (key, calls, wanted) in cases {
        with_and_without(
            &format!("  rateLimit: [{{name: few, requests: 1, per: 1m, key: [{key}]}}]\n"),
            // Without a key there is one count for all; where that makes no difference, without the limit.
            if wanted[1] == 200 { "  rateLimit: [{name: few, requests: 1, per: 1m}]\n" } else { "" },
            |lines| quick(farm, lines),
            |stand| {
                let send = |(path, user): &(&str, &str)| stand.send(&stand.get(path).field("x-user", user));
                let told = calls.iter().map(send).collect::<Result<Vec<_>>>()?;
                let statuses: Vec<_> = told.iter().map(|told| told.status).collect();
                hold!(statuses == wanted, "{key}: {statuses:?}");
                Ok(Ok(()))
            },
        )?;
    }
    // Counts beyond `maxKeys` are forgotten.
    let keyed = "name: few, requests: 1, per: 1m, key: [{header: x-user}]";
    with_and_without(
        &format!("  rateLimit: [{{{keyed}, maxKeys: 1}}]\n"),
        &format!("  rateLimit: [{{{keyed}}}]\n"),
        |lines| quick(farm, lines),
        |stand| {
            let send = |user| stand.send(&stand.get("/").field("x-user", user));
            let told = ["a", "b", "a"].into_iter().map(send).collect::<Result<Vec<_>>>()?;
            hold!(told.iter().all(|told| told.status == 200), "{told:?}");
            Ok(Ok(()))
        },
    )
}

fn rate_limit_algorithms(farm: &Farm) -> Result<()> {
    // Beyond the rate, at once.
    with_and_without(
        "  rateLimit: [{name: few, requests: 1, per: 1m, burst: 4}]\n",
        "  rateLimit: [{name: few, requests: 1, per: 1m}]\n",
        |lines| quick(farm, lines),
        |stand| {
            let told = stand.get("/").in_turn(stand.web(), 6)?;
            let statuses: Vec<_> = told.iter().map(|told| told.status).collect();
            hold!(statuses == [200, 200, 200, 200, 429, 429], "{statuses:?}");
            Ok(Ok(()))
        },
    )?;
    // A bucket gets its tokens back one by one, a window nothing before it is over.
    with_and_without(
        "  rateLimit: [{name: few, requests: 4, per: 3s, algorithm: sliding-window}]\n",
        "  rateLimit: [{name: few, requests: 4, per: 3s}]\n",
        |lines| quick(farm, lines),
        |stand| {
            let start = Instant::now();
            let told = stand.get("/").in_turn(stand.web(), 5)?;
            let statuses: Vec<_> = told.iter().map(|told| told.status).collect();
            hold!(statuses == [200, 200, 200, 200, 429], "{statuses:?}");
            wait_for(SOON, "the next one", || {
                stand.send(&stand.get("/")).is_ok_and(|told| told.status == 200)
            })?;
            let waited = start.elapsed();
            hold!(waited >= Duration::from_secs(3), "five within {waited:?}");
            Ok(Ok(()))
        },
    )
}

fn rate_limit_dry_run(farm: &Farm) -> Result<()> {
    with_and_without(
        "  rateLimit: [{name: few, requests: 1, per: 1m, dryRun: true}]\n",
        "  rateLimit: [{name: few, requests: 1, per: 1m}]\n",
        |lines| quick(farm, lines),
        |stand| {
            let told = stand.get("/").in_turn(stand.web(), 3)?;
            hold!(told.iter().all(|told| told.status == 200), "{told:?}");
            // It is counted what it would have refused.
            let metrics = stand.farm.web.status("/metrics")?.body;
            let counted = metrics
                .lines()
                .any(|line| line.contains("dry") && line.contains(&stand.name) && line.ends_with(" 2"));
            hold!(
                counted,
                "not counted: {:?}",
                metrics.lines().filter(|l| l.contains("rate")).collect::<Vec<_>>()
            );
            Ok(Ok(()))
        },
    )
}
