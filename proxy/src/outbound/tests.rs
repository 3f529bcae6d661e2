//! Resilience on the way out, feature by feature, through two proxies.

use std::{cell::Cell, num::NonZeroU32, rc::Rc, sync::Arc, time::Duration};

use outrigger_proto::spec::{
    Algorithm, Answer, Cache, Cause, Circuit, Ejection, Fallback, FallbackOn, FallbackTo, HashOn, HedgeDelay,
    Hedging, Limits, OutlierEjection, Protocol, Queue, Route, Subset, Table, Traffic, WeightedBackend,
};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    task,
    time::{Instant, timeout},
};

use crate::rig::{PATIENCE, Reply, Rig, endpoint, read_head, read_rest, read_until, run, write};

const GET: &str = "GET /a HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
const SHORT: Duration = Duration::from_millis(100);

fn one() -> Option<NonZeroU32> {
    NonZeroU32::new(1)
}

fn status(status: u16, more: &str) -> Reply {
    Reply::Answer(format!("HTTP/1.1 {status} X\r\nContent-Length: 2\r\n{more}\r\nok"))
}

fn hang() -> Reply {
    Reply::Hang(String::new())
}

fn reason(head: &str) -> &str {
    let at = head.find("outrigger-reason: ").unwrap_or_else(|| panic!("no reason in {head}"));
    head[at + 18..].lines().next().unwrap()
}

/// Sends a request on a connection of its own and gives the whole answer, in lower case.
async fn ask(rig: &Rig, request: &str) -> String {
    let mut program = rig.dial();
    let closing = request.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1);
    write(&mut program, &closing).await;
    read_rest(&mut program).await.0.to_ascii_lowercase()
}

async fn get(rig: &Rig) -> String {
    ask(rig, GET).await
}

fn begin(rig: &Rig) -> task::JoinHandle<String> {
    let mut program = rig.dial();
    task::spawn_local(async move {
        write(&mut program, &GET.replacen("\r\nHost", "\r\nConnection: close\r\nHost", 1)).await;
        read_rest(&mut program).await.0.to_ascii_lowercase()
    })
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn no_retries(traffic: &mut Traffic) {
    traffic.retries.attempts = 0;
}

fn ejection(change: impl FnOnce(&mut OutlierEjection)) -> Ejection {
    let mut policy = OutlierEjection::default();
    change(&mut policy);
    Ejection(Some(policy))
}

// === circuits ===

#[test]
fn who_fails_is_ejected_with_evidence_and_comes_back() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.outlier_ejection = ejection(|policy| policy.base_ejection = Duration::from_millis(300));
        });
        let bad = Rc::new(Cell::new(true));
        let fails = Rc::clone(&bad);
        let failing = rig.servers[0].serve(move |_, _| status(if fails.get() { 500 } else { 200 }, ""));
        rig.servers[1].serve(|_, _| status(200, ""));
        let mut failures = 0;
        while rig.transitions().is_empty() {
            failures += u32::from(get(&rig).await.starts_with("http/1.1 500"));
        }
        assert_eq!(failures, 5, "five in a row");
        let opened = &rig.transitions()[0];
        assert_eq!((opened.to, opened.cause), (Circuit::Open, Cause::ConsecutiveFailures));
        assert_eq!(opened.endpoint, rig.servers[0].mesh);
        assert_eq!(opened.evidence.iter().filter(|outcome| &*outcome.what == "500").count(), 5);
        // Neither a request nor a new configuration brings it back.
        rig.set_traffic(|traffic| traffic.timeouts.stream_idle = None);
        let before = failing.get();
        for _ in 0..10 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
        }
        assert_eq!(failing.get(), before);
        // Its time is served, and single requests show that it is good again.
        bad.set(false);
        let deadline = Instant::now() + PATIENCE;
        while rig.transitions().last().unwrap().to != Circuit::Closed {
            assert!(Instant::now() < deadline, "it never comes back");
            get(&rig).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let told: Vec<_> = rig.transitions().iter().map(|transition| transition.to).collect();
        assert_eq!(told, [Circuit::Open, Circuit::HalfOpen, Circuit::Closed]);
        assert_eq!(failing.get(), before + 3, "three probes");
    });
}

#[test]
fn the_last_one_is_never_refused_unless_policy_says_so() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(no_retries);
        rig.servers[0].serve(|_, _| status(500, ""));
        for _ in 0..20 {
            assert!(get(&rig).await.starts_with("http/1.1 500"));
        }
        assert!(rig.transitions().is_empty());
        rig.set_traffic(|traffic| {
            traffic.outlier_ejection = ejection(|policy| {
                policy.min_ready = 0;
                policy.max_ejected_percent = 100;
            });
        });
        while rig.transitions().is_empty() {
            get(&rig).await;
        }
        let refused = get(&rig).await;
        assert!(refused.starts_with("http/1.1 503"), "{refused}");
        assert_eq!(reason(&refused), "all-ejected");
        assert!(refused.contains("retry-after: "), "{refused}");
    });
}

#[test]
fn an_answer_that_breaks_off_is_a_failure_and_a_callers_leave_is_none() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.outlier_ejection = ejection(|policy| policy.consecutive_failures = one());
        });
        let half = || Reply::Last("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf".into());
        rig.servers[0].serve(move |_, _| half());
        rig.servers[1].serve(|_, _| hang());
        // The caller leaves: nobody's fault.
        for _ in 0..10 {
            let mut program = rig.dial();
            write(&mut program, GET).await;
            let _ = timeout(Duration::from_millis(20), program.read_u8()).await;
            if rig.transitions().iter().any(|transition| transition.endpoint == rig.servers[0].mesh) {
                break;
            }
        }
        until("the half answer is judged", || !rig.transitions().is_empty()).await;
        let told = rig.transitions();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!((told[0].endpoint, &*told[0].evidence[0].what), (rig.servers[0].mesh, "reset"));
    });
}

#[test]
fn who_refuses_for_load_is_passed_over() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(no_retries);
        let busy = rig.servers[0].serve(|_, _| status(429, "Retry-After: 60\r\n"));
        rig.servers[1].serve(|_, _| status(200, ""));
        for _ in 0..40 {
            get(&rig).await;
        }
        assert!((1..=2).contains(&busy.get()), "{}", busy.get());
    });
}

// === retries ===

#[test]
fn a_bad_answer_is_asked_for_elsewhere() {
    run(|| async {
        let post = "PUT /a HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
        for request in [GET, post] {
            let rig = Rig::new(Protocol::Http, 2).await;
            let heads: Rc<std::cell::RefCell<Vec<String>>> = Rc::default();
            for (server, code) in rig.servers.iter().zip([503, 200]) {
                let seen = Rc::clone(&heads);
                server.serve(move |_, head| {
                    seen.borrow_mut().push(head.to_owned());
                    status(code, "")
                });
            }
            let deadline = Instant::now() + PATIENCE;
            loop {
                assert!(Instant::now() < deadline, "the bad one is never asked first");
                heads.borrow_mut().clear();
                assert!(ask(&rig, request).await.starts_with("http/1.1 200"), "{request}");
                let heads = heads.borrow();
                if let [first, second] = &heads[..] {
                    assert!(first.contains("x-outrigger-attempt: 1"), "{first}");
                    assert!(second.contains("x-outrigger-attempt: 2"), "{second}");
                    assert_eq!(second.ends_with("body"), request == post, "{second}");
                    break;
                }
            }
        }
    });
}

#[test]
fn what_must_not_be_repeated_is_not() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 2).await;
        let counts: Vec<_> = rig.servers.iter().map(|server| server.serve(|_, _| status(503, ""))).collect();
        let count = || counts.iter().map(|count| count.get()).sum::<u32>();
        let large =
            format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 70000\r\n\r\n{}", "x".repeat(70_000));
        for (request, expected) in [
            (GET, 3),
            ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", 1),
            ("POST / HTTP/1.1\r\nHost: a\r\nIdempotency-Key: \"1\"\r\nContent-Length: 1\r\n\r\nx", 3),
            // A layer before this one retries.
            ("GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Attempt: 2\r\n\r\n", 1),
            (&large, 1),
        ] {
            let before = count();
            let answer = ask(&rig, request).await;
            assert!(answer.starts_with("http/1.1 503"), "{answer}");
            assert_eq!(count() - before, expected, "{}", &request[..request.len().min(80)]);
        }
    });
}

#[test]
fn an_attempt_that_takes_too_long_is_made_elsewhere() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| traffic.timeouts.per_try = Some(SHORT));
        let hanging = rig.servers[0].serve(|_, _| hang());
        rig.servers[1].serve(|_, _| status(200, ""));
        while hanging.get() == 0 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
        }
        rig.backend.endpoints.retain(|endpoint| endpoint.address == rig.servers[0].mesh);
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.timeouts.per_try = None;
            traffic.timeouts.response_header = Some(SHORT);
        });
        let answer = get(&rig).await;
        assert!(answer.starts_with("http/1.1 504"), "{answer}");
        assert_eq!(reason(&answer), "response-timeout");
    });
}

// === deadlines ===

#[test]
fn deadlines_shrink_on_the_way_and_end_work() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let heads: Rc<std::cell::RefCell<Vec<String>>> = Rc::default();
        let seen = Rc::clone(&heads);
        let count = rig.servers[0].serve(move |_, head| {
            seen.borrow_mut().push(head.to_owned());
            status(200, "")
        });
        let left = |head: &str| -> u64 {
            head.split("x-outrigger-deadline: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap()
        };
        get(&rig).await;
        assert!((25_000..=30_000).contains(&left(&heads.borrow()[0])), "{heads:?}");
        ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Deadline: 4000\r\n\r\n").await;
        assert!((1_000..4_000).contains(&left(&heads.borrow()[1])), "{heads:?}");
        let late = ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Outrigger-Deadline: 0\r\n\r\n").await;
        assert!(late.starts_with("http/1.1 504"), "{late}");
        assert_eq!(reason(&late), "deadline-exceeded");
        assert_eq!(count.get(), 2, "expired work reached the application");
    });
}

#[test]
fn an_answer_in_which_nothing_moves_is_cut() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| traffic.timeouts.stream_idle = Some(SHORT));
        rig.servers[0].serve(|_, _| Reply::Hang("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc".into()));
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let (answer, _) = read_rest(&mut program).await;
        assert!(answer.ends_with("\r\n\r\nabc"), "{answer}");
    });
}

// === bulkheads ===

#[test]
fn a_full_bulkhead_sheds_and_a_queue_waits() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| traffic.bulkhead.upstream.requests = one());
        let mut app_side = begin(&rig);
        let mut app = rig.app().await;
        read_head(&mut app).await;
        let shed = get(&rig).await;
        assert!(shed.starts_with("http/1.1 503"), "{shed}");
        assert_eq!(reason(&shed), "bulkhead-full");
        let queue = |timeout| Some(Queue { size: NonZeroU32::MIN, timeout });
        rig.set_traffic(|traffic| traffic.bulkhead.queue = queue(SHORT));
        assert_eq!(reason(&get(&rig).await), "queue-timeout");
        rig.set_traffic(|traffic| traffic.bulkhead.queue = queue(PATIENCE));
        let waiting = begin(&rig);
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!((&mut app_side).await.unwrap().starts_with("http/1.1 200"));
        read_head(&mut app).await;
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(waiting.await.unwrap().starts_with("http/1.1 200"));
    });
}

#[test]
fn each_endpoint_and_each_route_has_its_limit() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| traffic.bulkhead.endpoint.requests = one());
        let counts: Vec<_> = rig.servers.iter().map(|server| server.serve(|_, _| hang())).collect();
        let (_first, _second) = (begin(&rig), begin(&rig));
        until("one each", || counts.iter().all(|count| count.get() == 1)).await;
        assert_eq!(reason(&get(&rig).await), "bulkhead-full");
        rig.routes.push(Arc::new(Route {
            name: "shop/orders/0".into(),
            matches: Vec::new(),
            backends: vec![WeightedBackend {
                backend: "shop/orders:80".parse().unwrap(),
                weight: NonZeroU32::MIN,
            }],
            request_timeout: None,
        }));
        rig.set_traffic(|traffic| {
            traffic.bulkhead.endpoint = Limits::default();
            traffic.bulkhead.route_requests = one();
        });
        let _third = begin(&rig);
        until("the third is there", || counts.iter().map(|count| count.get()).sum::<u32>() == 3).await;
        assert_eq!(reason(&get(&rig).await), "bulkhead-full");
    });
}

#[test]
fn connections_are_limited_and_grow_old() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| traffic.bulkhead.endpoint.connections = one());
        let first = begin(&rig);
        let mut app = rig.app().await;
        read_head(&mut app).await;
        assert_eq!(reason(&get(&rig).await), "bulkhead-full");
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert!(first.await.unwrap().starts_with("http/1.1 200"));
        drop(app);
        rig.servers[0].serve(|_, _| status(200, ""));
        rig.set_traffic(|traffic| {
            traffic.bulkhead.endpoint.connections = None;
            traffic.timeouts.max_connection_age = Some(Duration::from_millis(50));
        });
        assert!(get(&rig).await.starts_with("http/1.1 200"));
        let made = rig.servers[0].dials.get();
        tokio::time::sleep(Duration::from_millis(60)).await;
        assert!(get(&rig).await.starts_with("http/1.1 200"));
        assert_eq!(rig.servers[0].dials.get(), made + 1, "an old connection took a new request");
    });
}

// === hedging ===

#[test]
fn a_slow_request_is_asked_twice_and_the_loser_is_cancelled() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            let delay = HedgeDelay::After(Duration::from_millis(30));
            traffic.hedging = Some(Hedging { delay, budget_percent: 100 });
        });
        rig.servers[1].serve(|_, _| status(200, ""));
        let began = Instant::now();
        loop {
            let asking = begin(&rig);
            if let Ok((mut slow, _)) = timeout(Duration::from_millis(200), rig.servers[0].app.accept())
                .await
                .unwrap_or(Err(std::io::ErrorKind::TimedOut.into()))
            {
                read_head(&mut slow).await;
                assert!(asking.await.unwrap().starts_with("http/1.1 200"));
                // The slow one hears that nobody waits any more.
                assert_eq!(read_rest(&mut slow).await.0, "");
                break;
            }
            assert!(asking.await.unwrap().starts_with("http/1.1 200"));
            assert!(began.elapsed() < PATIENCE, "the slow one is never asked");
        }
    });
}

// === instead of a failure ===

fn fallback(to: FallbackTo, on: FallbackOn) -> Option<Fallback> {
    Some(Fallback { on, to })
}

#[test]
fn a_failure_has_an_answer_ready_or_a_backup() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        let backup = rig.backend.endpoints.remove(1);
        rig.servers[1].serve(|_, _| status(200, "X-From: backup\r\n"));
        let fields = vec![("x-from".parse().unwrap(), "policy".parse().unwrap())];
        let answer = Answer { status: http::StatusCode::OK, headers: fields, body: "[]".into() };
        let on = FallbackOn {
            statuses: vec![outrigger_proto::spec::StatusRange::new(500, 500)],
            ..FallbackOn::default()
        };
        rig.add_backend("shop/backup:80", vec![backup]);
        rig.set_traffic(|traffic| traffic.fallback = fallback(FallbackTo::Answer(answer), on.clone()));
        let bad = rig.servers[0].serve(|_, _| status(500, ""));
        let answer = get(&rig).await;
        assert!(answer.contains("x-from: policy") && answer.ends_with("[]"), "{answer}");
        let to = FallbackTo::Backend("shop/backup:80".parse().unwrap());
        rig.set_traffic(|traffic| traffic.fallback = fallback(to, on));
        assert!(get(&rig).await.contains("x-from: backup"));
        assert_eq!(bad.get(), 2);
        // What somebody may have acted on is not done once more.
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        assert!(ask(&rig, post).await.starts_with("http/1.1 500"));
        // Nobody can have.
        rig.backend.endpoints = vec![endpoint("127.0.0.1:1".parse().unwrap(), "orders")];
        rig.configure();
        assert!(ask(&rig, post).await.contains("x-from: backup"));
    });
}

#[test]
fn answers_are_remembered_confirmed_and_serve_when_stale() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| {
            no_retries(traffic);
            traffic.cache = Some(Cache { stale_if_error: Some(PATIENCE), ..Cache::default() });
        });
        let count = rig.servers[0].serve(|number, head| match number {
            0 => status(200, "Cache-Control: max-age=60\r\n"),
            1 => status(200, "Cache-Control: max-age=0\r\nETag: \"1\"\r\n"),
            2 if head.contains("if-none-match: \"1\"") => {
                Reply::Answer("HTTP/1.1 304 Not Modified\r\nETag: \"1\"\r\n\r\n".into())
            }
            3 => status(500, ""),
            _ => status(404, ""),
        });
        for _ in 0..3 {
            let answer = get(&rig).await;
            assert!(answer.starts_with("http/1.1 200") && answer.ends_with("ok"), "{answer}");
        }
        assert_eq!(count.get(), 1, "asked once");
        let other = "GET /b HTTP/1.1\r\nHost: a\r\n\r\n";
        for expected in 2..=4 {
            let answer = ask(&rig, other).await;
            assert!(answer.starts_with("http/1.1 200") && answer.ends_with("ok"), "{expected}: {answer}");
            assert_eq!(count.get(), expected);
        }
    });
}

#[test]
fn equal_requests_are_sent_once() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| traffic.coalesce = true);
        let asking: Vec<_> = (0..5).map(|_| begin(&rig)).collect();
        let mut app = rig.app().await;
        read_head(&mut app).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        for answer in asking {
            let answer = answer.await.unwrap();
            assert!(answer.starts_with("http/1.1 200") && answer.ends_with("ok"), "{answer}");
        }
        let more = timeout(Duration::from_millis(50), app.read_u8()).await;
        assert!(more.is_err(), "it was asked again");
    });
}

// === choice ===

#[test]
fn a_key_or_a_subset_decides_who_answers() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 3).await;
        for (number, server) in rig.servers.iter().enumerate() {
            server.serve(move |_, _| status(200, &format!("X-From: {number}\r\n")));
        }
        let from = |answer: &str| answer.split("x-from: ").nth(1).unwrap().chars().next().unwrap();
        let on = vec![HashOn::Header("x-user".parse().unwrap())];
        rig.set_traffic(|traffic| traffic.load_balancer.algorithm = Algorithm::Consistent(Table::Maglev, on));
        let mut seen = std::collections::HashSet::new();
        for user in 0..20 {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\n\r\n");
            let first = from(&ask(&rig, &request).await);
            assert_eq!(from(&ask(&rig, &request).await), first);
            seen.insert(first);
        }
        assert_eq!(seen.len(), 3, "everybody has some");
        let on = vec![HashOn::Cookie { name: "sid".into(), ttl: None }];
        rig.set_traffic(|traffic| traffic.load_balancer.algorithm = Algorithm::Consistent(Table::Ring, on));
        let answer = get(&rig).await;
        let cookie = answer.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nCookie: {cookie}\r\n\r\n");
        for _ in 0..5 {
            let again = ask(&rig, &request).await;
            assert!(from(&again) == from(&answer) && !again.contains("set-cookie"), "{again}");
        }
        rig.backend.endpoints[1].subset = "v2".into();
        rig.set_traffic(|traffic| {
            traffic.load_balancer.algorithm = Algorithm::PeakEwma;
            let header = "x-version".parse().unwrap();
            traffic.load_balancer.subset =
                Some(Subset { header, label: "version".into(), fallback_to_any: false });
        });
        for _ in 0..10 {
            let answer = ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Version: v2\r\n\r\n").await;
            assert_eq!(from(&answer), '1');
        }
        let nobody = ask(&rig, "GET / HTTP/1.1\r\nHost: a\r\nX-Version: v3\r\n\r\n").await;
        assert_eq!(reason(&nobody), "no-endpoints");
    });
}

#[test]
fn opaque_connections_eject_who_cannot_be_reached_and_are_limited() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 2).await;
        let gone = endpoint("127.0.0.1:1".parse().unwrap(), "orders");
        rig.backend.endpoints.push(gone.clone());
        rig.set_traffic(|traffic| traffic.load_balancer.algorithm = Algorithm::RoundRobin);
        async fn echo(rig: &Rig) -> Option<DuplexStream> {
            let mut program = rig.dial();
            write(&mut program, "ping\n").await;
            let accepted = async {
                tokio::select! {
                    app = rig.servers[0].accept() => app,
                    app = rig.servers[1].accept() => app,
                }
            };
            let mut app = timeout(Duration::from_millis(500), accepted).await.ok()?;
            read_until(&mut app, "ping\n").await;
            task::spawn_local(async move { drop((app.read_u8().await, app)) });
            Some(program)
        }
        let deadline = Instant::now() + PATIENCE;
        while rig.transitions().is_empty() {
            assert!(Instant::now() < deadline, "it is never ejected");
            echo(&rig).await.expect("goes elsewhere");
        }
        let opened = &rig.transitions()[0];
        assert_eq!((opened.endpoint, opened.cause), (gone.address, Cause::ConsecutiveConnectFailures));
        rig.set_traffic(|traffic| traffic.bulkhead.upstream.connections = one());
        let held = echo(&rig).await;
        assert!(held.is_some());
        let mut refused = rig.dial();
        assert!(timeout(PATIENCE, refused.read_u8()).await.unwrap().is_err(), "one too many");
    });
}

#[test]
fn an_opaque_connection_that_is_reset_without_a_word_is_a_failure() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        rig.set_traffic(|traffic| {
            traffic.outlier_ejection = ejection(|policy| {
                policy.consecutive_failures = one();
                policy.min_ready = 0;
                policy.max_ejected_percent = 100;
            });
        });
        let app = rig.servers[0].listener();
        task::spawn_local(async move {
            while let Ok((stream, _)) = app.accept().await {
                socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        });
        let mut program = rig.dial();
        write(&mut program, "ping\n").await;
        let _ = program.read_u8().await;
        until("it is judged", || !rig.transitions().is_empty()).await;
        assert_eq!(&*rig.transitions()[0].evidence[0].what, "reset");
    });
}
