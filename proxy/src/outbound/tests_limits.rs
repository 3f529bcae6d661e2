//! Bulkheads, hedges, what is answered in place of a failure, who is chosen, and opaque connections; through two proxies.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use outrigger_proto::spec::{
    Algorithm, Answer, Cache, Cause, Fallback, FallbackOn, FallbackTo, HashOn, HedgeDelay, Hedging, Limits,
    Protocol, Queue, RateAlgorithm, RateLimit, Route, Scope, Subset, Table, WeightedBackend,
};
use tokio::{
    io::{AsyncReadExt, DuplexStream},
    task,
    time::{Instant, timeout},
};

use super::tests::{SHORT, ask, begin, ejection, get, hang, no_retries, one, reason, status, until};
use crate::rig::{PATIENCE, Reply, Rig, endpoint, read_head, read_rest, read_until, run, write};

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
        let queue = Queue { size: NonZeroU32::MIN, timeout: SHORT };
        rig.set_traffic(|traffic| {
            traffic.bulkhead.endpoint.requests = one();
            traffic.bulkhead.queue = Some(queue);
        });
        let counts: Vec<_> = rig.servers.iter().map(|server| server.serve(|_, _| hang())).collect();
        let (_first, _second) = (begin(&rig), begin(&rig));
        until("one each", || counts.iter().all(|count| count.get() == 1)).await;
        assert_eq!(reason(&get(&rig).await), "queue-timeout");
        rig.set_traffic(|traffic| traffic.bulkhead.queue = None);
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

#[test]
fn calls_that_leave_have_a_rate() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        let count = rig.servers[0].serve(|_, _| status(200, ""));
        rig.set_traffic(|traffic| {
            traffic.rate_limits.push(RateLimit {
                name: "TrafficPolicy/shop/orders/0".into(),
                algorithm: RateAlgorithm::TokenBucket,
                requests: NonZeroU64::MIN,
                per: Duration::from_secs(1000),
                burst: NonZeroU64::MIN,
                key: Vec::new(),
                scope: Scope::Local,
                dry_run: false,
                max_keys: NonZeroU32::MIN,
            });
        });
        assert!(get(&rig).await.starts_with("http/1.1 200"));
        let refused = get(&rig).await;
        assert!(refused.starts_with("http/1.1 429") && refused.contains("retry-after: "), "{refused}");
        assert_eq!((reason(&refused), count.get()), ("rate-limited", 1));
    });
}

#[test]
fn a_connection_that_idles_elsewhere_makes_room() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        rig.set_traffic(|traffic| {
            traffic.load_balancer.algorithm = Algorithm::RoundRobin;
            traffic.bulkhead.upstream.connections = one();
        });
        let counts: Vec<_> = rig.servers.iter().map(|server| server.serve(|_, _| status(200, ""))).collect();
        for _ in 0..6 {
            assert!(get(&rig).await.starts_with("http/1.1 200"));
            let states = rig.client.clusters.states();
            assert!(states.iter().map(|state| state.connections.open).sum::<usize>() <= 1);
        }
        assert!(counts.iter().all(|count| count.get() == 3), "{counts:?}");
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

#[test]
fn the_only_endpoint_is_not_asked_twice() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_traffic(|traffic| {
            let delay = HedgeDelay::After(Duration::from_millis(10));
            traffic.hedging = Some(Hedging { delay, budget_percent: 100 });
        });
        let asking = begin(&rig);
        let mut app = rig.app().await;
        read_head(&mut app).await;
        let second = timeout(Duration::from_millis(300), rig.servers[0].app.accept()).await;
        assert!(second.is_err(), "it was asked again");
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        assert!(asking.await.unwrap().starts_with("http/1.1 200"));
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
