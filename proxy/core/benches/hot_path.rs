//! What one request costs in core, decision by decision: `cargo bench -p outrigger-core`.
//!
//! Each line is the best of several rounds, in nanoseconds per call, because noise only ever adds. For numbers that a
//! machine's load cannot move, count instructions: `valgrind --tool=callgrind BINARY ROW` runs the one row whose name
//! contains ROW, once round. Nothing here asserts a time; under `cargo test` each row is called once, to see that it runs.

use std::{
    hint::black_box,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::{Duration, Instant},
};

use http::{Request, header};
use outrigger_certs::{SpiffeId, TrustDomain};
use outrigger_core::{
    authority,
    authorize::Policies,
    balance::{Load, Member, Picker, Wanted, hash},
    detect::detect,
    framing::{Guard, Side},
    headers,
    identity::Peer,
    limits::Sender,
    outlier::{Breakers, Ended, What},
    path_normal::normalise,
    pool::{Checkout, Config, Event, Pool, Reuse},
    route::{CompiledRoute, RequestView, find},
};
use outrigger_proto::spec::{
    Action, Algorithm, AuthorizationPolicy, AuthorizationRule, Ejection, HashOn, LatencyOutlier,
    LoadBalancer, MtlsMode, OutlierEjection, PathMatch, Route, RouteMatch, Subset, Table, WeightedBackend,
    ZonePreference,
};
use rand::{SeedableRng, rngs::SmallRng};

#[path = "hot_path/again.rs"]
mod again;
#[path = "hot_path/limits.rs"]
mod limits;
#[path = "hot_path/memory.rs"]
mod memory;
#[path = "hot_path/trace.rs"]
mod trace;

const ROUNDS: u32 = 7;
const CALLS: u32 = 200_000;

#[derive(Clone)]
struct Bench {
    only: Option<String>,
    rounds: u32,
    calls: u32,
}

impl Bench {
    fn row(&self, name: &str, mut call: impl FnMut()) {
        if self.only.as_deref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        let best = (0..self.rounds).map(|_| round(self.calls, &mut call)).min().unwrap_or_default();
        println!("{name:<44} {:>8.1} ns", best.as_secs_f64() * 1e9 / f64::from(self.calls));
    }
}

impl Bench {
    /// What each of 100,000 endpoints takes of `make`'s result, in bytes of resident memory.
    fn memory<T>(&self, name: &str, mut make: impl FnMut() -> T) {
        if self.only.as_deref().is_some_and(|only| !name.contains(only)) {
            return;
        }
        // Many of them, so that what was only needed to make one counts little.
        let before = resident();
        let kept: Vec<T> = (0..if self.calls == 1 { 1 } else { 8 }).map(|_| make()).collect();
        let bytes = resident().saturating_sub(before) as f64 / kept.len() as f64 / 100_000.0;
        println!("{name:<44} {bytes:>8.1} bytes each");
    }
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|pages| pages.split(' ').nth(1)?.parse().ok()).unwrap_or(0) * 4096
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is the one place that measures")]
fn clock() -> Instant {
    Instant::now()
}

fn round(calls: u32, call: &mut impl FnMut()) -> Duration {
    let start = clock();
    for _ in 0..calls {
        call();
    }
    clock().saturating_duration_since(start)
}

fn main() {
    // `cargo bench` passes `--bench`, `cargo test` does not; anything else names a row.
    let measured = std::env::args().any(|argument| argument == "--bench");
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let (rounds, calls) = match (measured, &only) {
        (true, None) => (ROUNDS, CALLS),
        (_, Some(_)) => (1, CALLS),
        (false, None) => (1, 1),
    };
    let bench = Bench { only, rounds, calls };
    let now = clock();
    messages(&bench);
    policy(&bench);
    balancing(&bench, now);
    connections(&bench, now);
    limits::rows(&bench, now);
    again::rows(&bench, &request(), now);
    memory::rows(&bench, &request(), now);
    trace::rows(&bench, &request(), now);
    circuits(&bench, now);
}

const HEAD: &[u8] = b"GET /api/v1/orders/17?limit=10 HTTP/1.1\r\nHost: orders.shop\r\nUser-Agent: curl/8.5.0\r\n\
    Accept: application/json\r\nAccept-Encoding: gzip, br\r\nConnection: keep-alive\r\n\
    Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nContent-Type: application/json\r\n\r\n";

fn request() -> http::request::Parts {
    let text = std::str::from_utf8(HEAD).unwrap_or_default();
    let mut builder = Request::builder().uri("/api/v1/orders/17?limit=10");
    for line in text.lines().skip(1) {
        if let Some((name, value)) = line.split_once(": ") {
            builder = builder.header(name, value);
        }
    }
    builder.body(()).map(|request| request.into_parts().0).unwrap_or_else(|_| Request::new(()).into_parts().0)
}

fn messages(bench: &Bench) {
    bench.row("detect an HTTP/1 request", || {
        black_box(detect(black_box(HEAD)));
    });
    let mut guard = Guard::new(Side::Requests, Sender::Program.http1_request());
    bench.row("guard a head of 7 fields", || {
        let _ = black_box(guard.on_bytes(black_box(HEAD)));
    });
    let mut parts = request();
    bench.row("inspect a head of 7 fields", || {
        let _ = black_box(headers::inspect_request(black_box(&parts), Sender::Program));
    });
    let keep_alive = header::HeaderValue::from_static("keep-alive");
    bench.row("inspect, then remove hop-by-hop fields", || {
        parts.headers.insert(header::CONNECTION, keep_alive.clone());
        if let Ok(seen) = headers::inspect_request(&parts, Sender::Program) {
            let _ = black_box(headers::remove_hop_by_hop(&mut parts.headers, seen));
            headers::remove_spoofed(&mut parts.headers, seen);
        }
    });
    bench.row("settle the host", || {
        let _ = black_box(authority::settle(&mut parts));
    });
    bench.row("normalise a path that is normal", || {
        let _ = black_box(normalise(black_box("/api/v1/orders/17")));
    });
    bench.row("normalise a path that is not", || {
        let _ = black_box(normalise(black_box("/api/./v1//%6frders/17")));
    });
}

fn policy(bench: &Bench) {
    let Ok(domain) = TrustDomain::parse("mesh.local") else { return };
    let id = |n: u32| SpiffeId::new(&domain, "shop", &format!("caller-{n}"));
    let policies: Vec<_> = (0..5_u32)
        .map(|policy| AuthorizationPolicy {
            name: format!("shop/policy-{policy}").into(),
            action: if policy == 0 { Action::Deny } else { Action::Allow },
            rules: vec![AuthorizationRule {
                identities: (policy * 100..policy * 100 + 100).filter_map(|n| id(n).ok()).collect(),
                namespaces: vec![],
                ports: NonZeroU16::new(8080).into_iter().collect(),
            }],
        })
        .collect();
    let policies = Policies::compile(&policies);
    let Ok(caller) = id(450) else { return };
    let caller = Peer::Mutual(caller);
    bench.row("authorize: 5 policies of 100 identities", || {
        black_box(policies.request(black_box(&caller), 8080, MtlsMode::Strict).is_allowed());
    });

    let weights = [90, 10].into_iter().filter_map(NonZeroU32::new);
    let backends: Vec<_> = weights
        .filter_map(|weight| Some(WeightedBackend { backend: "shop/orders:80".parse().ok()?, weight }))
        .collect();
    let routes: Vec<_> = (0..10)
        .filter_map(|n| {
            let path = Some(PathMatch::Prefix(format!("/api/v{}", 10 - n).into()));
            let matches = vec![RouteMatch { path, ..RouteMatch::default() }];
            let name = format!("shop/route/{n}").into();
            let route = Route { name, matches, backends: backends.clone(), request_timeout: None };
            CompiledRoute::compile(&Arc::new(route), "route").ok().map(Arc::new)
        })
        .collect();
    let parts = request();
    let view = RequestView { method: &parts.method, path: parts.uri.path(), headers: &parts.headers };
    let mut random = 0_u64;
    bench.row("route: the last of 10, then a backend", || {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        black_box(find(&routes, black_box(&view)).map(|route| route.choose(random)));
    });
}

/// Endpoints of two zones and two versions; `uneven`: of weights from 1 to 7.
fn members(count: u32, uneven: bool) -> Vec<Member> {
    let [zones, versions] = [["a", "b"], ["v1", "v2"]].map(|names| names.map(Arc::<str>::from));
    (0..count)
        .map(|n| Member {
            key: hash::xxh64(&n.to_le_bytes(), 0),
            weight: NonZeroU32::MIN.saturating_add(if uneven { n % 7 } else { 0 }),
            zone: Arc::clone(&zones[(n % 2) as usize]),
            subset: Arc::clone(&versions[(n / 2 % 2) as usize]),
            ready_since: None,
        })
        .collect()
}

fn balancing(bench: &Bench, now: Instant) {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut load = Load::new(now);
    load.on_response(Duration::from_millis(1), now);
    let mut loads = vec![load; 1000];
    let later = now + Duration::from_millis(3);
    let plain = |algorithm| LoadBalancer { algorithm, ..LoadBalancer::default() };
    let hashed = |table| plain(Algorithm::Consistent(table, vec![HashOn::Path]));
    let everything = LoadBalancer {
        zone: Some(ZonePreference { min_healthy_percent: 70 }),
        slow_start: Some(Duration::from_secs(30)),
        panic_percent: 10,
        subset: Some(Subset {
            header: header::HeaderName::from_static("x-version"),
            label: "version".into(),
            fallback_to_any: true,
        }),
        ..LoadBalancer::default()
    };
    for (name, policy, uneven, half) in [
        ("peak-ewma", plain(Algorithm::PeakEwma), false, false),
        ("peak-ewma, weighted", plain(Algorithm::PeakEwma), true, false),
        ("peak-ewma, half of them ejected", plain(Algorithm::PeakEwma), false, true),
        ("peak-ewma, all features on", everything.clone(), true, true),
        ("least-request", plain(Algorithm::LeastRequest), false, false),
        ("round-robin", plain(Algorithm::RoundRobin), false, false),
        ("round-robin, weighted", plain(Algorithm::RoundRobin), true, false),
        ("random", plain(Algorithm::Random), false, false),
        ("maglev", hashed(Table::Maglev), true, true),
        ("ring", hashed(Table::Ring), true, true),
    ] {
        let mut members = members(1000, uneven);
        // Half way through slow start, if it is on: all but one in ten.
        for member in members.iter_mut().skip(100) {
            member.ready_since = later.checked_sub(Duration::from_secs(15));
        }
        let mut picker = Picker::new(&policy, &members, "a", &mut rng, later);
        if half {
            (0..1000).filter(|index| index / 4 % 2 == 0).for_each(|index| picker.set_admitted(index, false));
        }
        let mut key = 0_u64;
        bench.row(&format!("pick of 1,000: {name}"), || {
            key = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let wanted = Wanted { hash: Some(key), subset: Some("v2") };
            black_box(picker.pick(&loads[..], &wanted, |_| true, &mut rng, later));
        });
    }
    let many = Bench { calls: bench.calls.div_ceil(20_000), ..bench.clone() };
    let large = vec![loads[0].clone(); 100_000];
    for (name, policy, uneven) in [
        ("peak-ewma", plain(Algorithm::PeakEwma), false),
        ("peak-ewma, weighted", plain(Algorithm::PeakEwma), true),
        ("round-robin, weighted", plain(Algorithm::RoundRobin), true),
        ("all features on", everything.clone(), true),
        ("maglev, and a pick", hashed(Table::Maglev), true),
        ("ring, and a pick", hashed(Table::Ring), true),
    ] {
        let members = members(100_000, uneven);
        let wanted = Wanted { hash: Some(1), subset: None };
        many.row(&format!("picker of 100,000: {name}"), || {
            let mut picker = Picker::new(&policy, black_box(&members), "a", &mut rng, later);
            black_box(picker.pick(&large[..], &wanted, |_| true, &mut rng, later));
        });
    }
    for (name, policy, uneven) in [
        ("peak-ewma", plain(Algorithm::PeakEwma), false),
        ("peak-ewma, weighted", plain(Algorithm::PeakEwma), true),
        ("round-robin, weighted", plain(Algorithm::RoundRobin), true),
        ("all features on", everything, true),
        ("maglev", hashed(Table::Maglev), true),
        ("ring", hashed(Table::Ring), true),
    ] {
        let members = members(100_000, uneven);
        bench.memory(&format!("memory of 100,000: {name}"), || {
            let mut picker = Picker::new(&policy, &members, "a", &mut rng, later);
            let wanted = Wanted { hash: Some(1), subset: None };
            black_box(picker.pick(&large[..], &wanted, |_| true, &mut rng, later));
            picker
        });
    }
    bench.memory("memory of 100,000: their loads", || large.clone());
    let members = members(1000, true);
    for (name, policy) in [("maglev", hashed(Table::Maglev)), ("ring", hashed(Table::Ring))] {
        let wanted = Wanted { hash: Some(1), subset: None };
        many.row(&format!("picker of 1,000: {name}, and a pick"), || {
            let mut picker = Picker::new(&policy, black_box(&members), "a", &mut rng, later);
            black_box(picker.pick(&loads[..], &wanted, |_| true, &mut rng, later));
        });
    }
    let load = &mut loads[0];
    let mut at = now;
    bench.row("load: dispatch, response, end", || {
        at += Duration::from_micros(100);
        load.on_dispatch(at);
        load.on_response(Duration::from_micros(900), at);
        load.on_end(at);
    });
}

fn connections(bench: &Bench, now: Instant) {
    for (name, streams, leased) in [
        ("pool: checkout and release, HTTP/1", 1, 0),
        ("pool: checkout and release, HTTP/2 under load", 100, 50),
    ] {
        let mut pool = Pool::new(Config {
            streams,
            max_connections: 1024,
            max_idle: 64,
            max_waiting: 1024,
            idle_timeout: Duration::from_secs(60),
        });
        pool.checkout(now);
        while let Some(event) = pool.poll_event() {
            if let Event::Dial(dial) = event {
                pool.on_connected(dial, streams, now);
            } else if let Event::Ready { id, .. } = event {
                pool.release(id, Reuse::Keep, now);
            }
        }
        (0..leased).for_each(|_| {
            black_box(pool.checkout(now));
        });
        bench.row(name, || {
            if let Checkout::Use(id) = black_box(pool.checkout(now)) {
                pool.release(id, Reuse::Keep, now);
            }
            black_box(pool.poll_event());
        });
    }
}

/// Of 100,000 endpoints, asked in an order that no cache foresees, with every detector on.
fn circuits(bench: &Bench, now: Instant) {
    const ENDPOINTS: usize = 100_000;
    let latency =
        LatencyOutlier { percent: 300, min_requests: NonZeroU32::MIN, window: Duration::from_secs(10) };
    // Nobody may go, so that the rows of failures are of circuits that stay closed.
    let default = OutlierEjection { max_ejected_percent: 0, ..OutlierEjection::default() };
    let policy = Ejection(Some(OutlierEjection { latency: Some(latency), ..default.clone() }));
    let default = Ejection(Some(default));
    let mut rng = SmallRng::seed_from_u64(1);
    let mut breakers = Breakers::new(&policy, ENDPOINTS, now);
    let (mut index, mut at) = (0, now);
    bench.row("circuit: admits one of 100,000", || {
        index = (index + 61_813) % ENDPOINTS;
        black_box(breakers.admits(black_box(index)));
    });
    bench.row("circuit: is a probe wanted", || {
        black_box(breakers.probe(|_| true));
    });
    for (name, endpoints) in [("circuit: a result, of 10", 10), ("circuit: a result, of 1,000", 1_000)] {
        for (policy, detectors) in [(&default, ""), (&policy, ", latency detector on")] {
            let mut breakers = Breakers::new(policy, endpoints, now);
            for (kind, failed) in [("", false), (", every second failed", true)] {
                let mut count = 0_usize;
                bench.row(&format!("{name}{detectors}{kind}"), || {
                    count += 1;
                    at += Duration::from_micros(20);
                    let what = if failed && count.is_multiple_of(2) {
                        Ended::Failure(What::Status(503))
                    } else {
                        Ended::Success(What::Status(200))
                    };
                    let trial = breakers.on_dispatch(count * 61 % endpoints, at);
                    breakers.on_outcome(trial, what, Duration::from_micros(900), at, &mut rng);
                });
            }
        }
    }
    let mut links: Vec<_> = (0..ENDPOINTS).map(Some).collect();
    let one = Bench { only: bench.only.clone(), calls: bench.calls.min(20), ..*bench };
    one.row("circuit: one endpoint of 100,000 changes", || {
        links[777] = None;
        breakers.relink(black_box(&links), at);
        black_box(breakers.poll_event());
    });
}
