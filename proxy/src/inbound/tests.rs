//! What a server's policy does to requests, seen from a caller's and the application's ends.

use std::{cell::Cell, num::NonZeroU32, time::Duration};

use futures_util::{FutureExt as _, future::join_all};
use outrigger_core::bulkhead;
use outrigger_proto::spec::{
    InboundPort, Limits, MtlsMode, PortLimits, Protocol, Queue, RateKey, ServerBulkhead, Timeouts,
};
use tokio::{
    io::{AsyncReadExt as _, DuplexStream, duplex},
    net::TcpStream,
    task,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    context::testing,
    outbound,
    path::rate_limit::testing::limit,
    rig::{PATIENCE, Rig, SERVICE, Server, identity, issue, read_head, read_rest, read_until, run, write},
    shared_limits::Name,
};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const POST: &str = "POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 0\r\n\r\n";

/// One workload whose port has these limits and takes plaintext, too.
async fn limited(protocol: Protocol, limits: PortLimits) -> Rig {
    let mut rig = Rig::new(protocol, 1).await;
    declare(&mut rig, Some(limits));
    rig
}

fn declare(rig: &mut Rig, limits: Option<PortLimits>) {
    let mtls = MtlsMode::Permissive;
    let limits = limits.map(Arc::new);
    rig.servers[0].declare(InboundPort { mtls, limits, ..InboundPort::default() });
}

fn requests(total: u32, per_caller: u32, queue: Option<Duration>) -> PortLimits {
    let limits = |requests| Limits { requests: NonZeroU32::new(requests), connections: None };
    let queue = queue.map(|timeout| Queue { size: NonZeroU32::new(10).unwrap(), timeout });
    let bulkhead =
        ServerBulkhead { total: limits(total), per_caller: limits(per_caller), queue, adaptive: None };
    PortLimits { bulkhead: Some(bulkhead), ..PortLimits::default() }
}

/// A plaintext connection to a proxy's inbound side: what it does is its own, not a caller's proxy's.
fn dial(server: &Server) -> DuplexStream {
    let (caller, proxy) = duplex(64 << 10);
    let target = Target::Serve { application: server.app.local_addr().unwrap() };
    let address = "10.0.0.9:4000".parse().unwrap();
    task::spawn_local(connection(Rc::clone(&server.worker), Stream::Pipe(proxy), address, target, None));
    caller
}

/// Sends a request and lets the application hold it.
async fn hold(rig: &Rig) -> (DuplexStream, TcpStream) {
    let mut caller = dial(&rig.servers[0]);
    write(&mut caller, POST).await;
    let mut app = rig.app().await;
    read_head(&mut app).await;
    (caller, app)
}

async fn passes(rig: &Rig, caller: &mut DuplexStream, app: &mut Option<TcpStream>, request: &str) {
    write(caller, request).await;
    let app = match app {
        Some(app) => app,
        None => app.insert(rig.app().await),
    };
    read_head(app).await;
    write(app, OK).await;
    assert!(read_until(caller, "ok").await.starts_with("HTTP/1.1 200"));
}

async fn refused(caller: &mut DuplexStream, request: &str, status: u16, reason: &str) -> String {
    write(caller, request).await;
    let head = read_head(caller).await;
    assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
    assert!(head.contains(&format!("outrigger-reason: {reason}\r\n")), "{head}");
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    caller.read_exact(&mut body).await.unwrap();
    head
}

#[test]
fn a_full_port_sheds_until_there_is_room() {
    run(|| async {
        let mut rig = limited(Protocol::Http, requests(1, 0, None)).await;
        let (mut first, mut app) = hold(&rig).await;
        let mut second = dial(&rig.servers[0]);
        refused(&mut second, POST, 503, "bulkhead-full").await;
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no").await;
        read_until(&mut first, "o").await;
        refused(&mut second, POST, 503, "bulkhead-full").await;
        // The place is free when the body has ended, not when it has begun.
        write(&mut app, "k").await;
        read_until(&mut first, "k").await;
        passes(&rig, &mut second, &mut Some(app), POST).await;
        // A change of policy applies to the next request of an open connection.
        let (_third, _held) = hold_again(&rig, &mut first).await;
        refused(&mut second, POST, 503, "bulkhead-full").await;
        declare(&mut rig, None);
        passes(&rig, &mut second, &mut None, POST).await;
    });
}

async fn hold_again<'a>(rig: &Rig, caller: &'a mut DuplexStream) -> (&'a mut DuplexStream, ()) {
    write(caller, POST).await;
    // The application's connection from before is used.
    let hall = rig.servers[0].worker.ctx.limits.hall(
        Name::Port(rig.servers[0].app.local_addr().unwrap().port()),
        bulkhead::Config { total: NonZeroU32::new(1), ..bulkhead::Config::default() },
    );
    let full = async {
        while hall.try_admit(&None).is_some() {
            task::yield_now().await;
        }
    };
    timeout(PATIENCE, full).await.expect("the request is not counted");
    (caller, ())
}

#[test]
fn who_waits_gets_the_next_place_or_is_told_that_it_took_too_long() {
    run(|| async {
        let rig = limited(Protocol::Http, requests(1, 0, Some(Duration::from_secs(60)))).await;
        let (mut first, mut app) = hold(&rig).await;
        let mut second = dial(&rig.servers[0]);
        write(&mut second, POST).await;
        assert!(timeout(Duration::from_millis(50), second.read_u8()).await.is_err(), "it waits");
        write(&mut app, OK).await;
        read_until(&mut first, "ok").await;
        read_head(&mut app).await;
        write(&mut app, OK).await;
        assert!(read_until(&mut second, "ok").await.starts_with("HTTP/1.1 200"));
        drop((first, second));

        let rig = limited(Protocol::Http, requests(1, 0, Some(Duration::from_millis(50)))).await;
        let (_first, _app) = hold(&rig).await;
        refused(&mut dial(&rig.servers[0]), POST, 503, "queue-timeout").await;
    });
}

#[test]
fn a_caller_at_its_limit_leaves_room_for_another() {
    run(|| async {
        let rig = limited(Protocol::Http, requests(2, 1, None)).await;
        let (_plain, _app) = hold(&rig).await;
        refused(&mut dial(&rig.servers[0]), POST, 503, "bulkhead-full").await;
        let mut mesh = rig.dial();
        passes(&rig, &mut mesh, &mut None, POST).await;
        // Another identity again; the first has nothing under way.
        rig.servers[0].publish();
        issue(&rig.authority, &rig.client.ctx, &identity("billing"));
        passes(&rig, &mut rig.dial(), &mut None, POST).await;
    });
}

#[test]
fn one_connection_too_many_is_refused_until_another_goes() {
    run(|| async {
        let connections = Limits { connections: NonZeroU32::new(1), requests: None };
        let bulkhead = ServerBulkhead { total: connections, ..ServerBulkhead::default() };
        let limits = PortLimits { bulkhead: Some(bulkhead), ..PortLimits::default() };
        let rig = limited(Protocol::Http, limits).await;
        let (mut first, mut app) = (dial(&rig.servers[0]), None);
        passes(&rig, &mut first, &mut app, POST).await;
        let mut second = dial(&rig.servers[0]);
        let head = refused(&mut second, POST, 503, "bulkhead-full").await;
        assert!(head.contains("connection: close"), "{head}");
        assert!(read_rest(&mut second).await.1);
        passes(&rig, &mut first, &mut app, POST).await;
        drop(first);
        let third = async {
            loop {
                let mut third = dial(&rig.servers[0]);
                write(&mut third, POST).await;
                if let Some(app) = &mut app
                    && read_or_refused(app, &mut third).await
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, third).await.expect("its place is not given back");
    });
}

/// Whether a request has reached the application, and was not refused.
async fn read_or_refused(app: &mut TcpStream, caller: &mut DuplexStream) -> bool {
    tokio::select! {
        _ = read_head(app) => true,
        head = read_head(caller) => {
            assert!(head.starts_with("http/1.1 503"), "{head}");
            false
        }
    }
}

#[test]
fn too_many_requests_are_told_when_to_come_back() {
    run(|| async {
        let per_user =
            limit("ServerPolicy/shop/orders/u", 1, vec![RateKey::Header("x-user".parse().unwrap())]);
        let limits = PortLimits { rate_limits: vec![per_user], ..PortLimits::default() };
        let rig = limited(Protocol::Http, limits).await;
        let (mut caller, mut app) = (dial(&rig.servers[0]), None);
        let of = |user: &str, more: &str| {
            format!("POST / HTTP/1.1\r\nHost: a\r\nX-User: {user}\r\nContent-Length: 0\r\n{more}\r\n")
        };
        passes(&rig, &mut caller, &mut app, &of("a", "")).await;
        let head = refused(&mut caller, &of("a", ""), 429, "rate-limited").await;
        assert!(head.contains("ratelimit-policy: \"serverpolicy/shop/orders/u\";q=1;w=1000\r\n"), "{head}");
        assert!(head.contains("ratelimit: \"serverpolicy/shop/orders/u\";r=0;t="), "{head}");
        let wait = head.split("retry-after: ").nth(1).unwrap().lines().next().unwrap();
        assert!((900..=1000).contains(&wait.parse::<u32>().unwrap()), "{wait}");
        passes(&rig, &mut caller, &mut app, &of("b", "")).await;
        // gRPC callers are told in their own words.
        write(&mut caller, &of("a", "Content-Type: application/grpc\r\n")).await;
        let head = read_head(&mut caller).await;
        assert!(head.starts_with("http/1.1 200 ") && head.contains("grpc-status: 8\r\n"), "{head}");
        assert!(head.contains("grpc-retry-pushback-ms: ") && head.contains("retry-after: "), "{head}");
    });
}

#[test]
fn expired_work_never_reaches_the_application() {
    run(|| async {
        let rig = limited(Protocol::Http, requests(1, 0, Some(Duration::from_secs(60)))).await;
        let with =
            |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n{fields}\r\n\r\n");
        let mut late = dial(&rig.servers[0]);
        for fields in ["X-Outrigger-Deadline: 0", "Grpc-Timeout: 0S", "Grpc-Timeout: 999u"] {
            refused(&mut late, &with(fields), 504, "deadline-exceeded").await;
        }
        assert!(
            rig.servers[0].app.accept().now_or_never().is_none(),
            "the application has seen a connection"
        );
        // It expires while it waits for a place.
        let (mut first, mut app) = hold(&rig).await;
        refused(&mut late, &with("X-Outrigger-Deadline: 100"), 504, "deadline-exceeded").await;
        write(&mut app, OK).await;
        read_until(&mut first, "ok").await;
        assert!(
            timeout(Duration::from_millis(100), app.read_u8()).await.is_err(),
            "it is gone from the queue"
        );
        passes(&rig, &mut first, &mut Some(app), POST).await;
    });
}

#[test]
fn what_is_left_of_the_time_is_passed_on_and_ends_the_wait() {
    run(|| async {
        let rig = limited(Protocol::Http, PortLimits::default()).await;
        let mut caller = dial(&rig.servers[0]);
        write(
            &mut caller,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nX-Outrigger-Deadline: 300\r\nGrpc-Timeout: 10S\r\n\r\n",
        )
        .await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        let left = |name: &str| head.split(name).nth(1).unwrap().lines().next().unwrap().to_owned();
        assert!((1..=300).contains(&left("x-outrigger-deadline: ").parse::<u32>().unwrap()), "{head}");
        let call = left("grpc-timeout: ");
        let (amount, unit) = call.split_at(call.len() - 1);
        assert!(unit == "u" && (9_000_000..10_000_000).contains(&amount.parse::<u32>().unwrap()), "{call}");
        // It never answers.
        let answer = read_head(&mut caller).await;
        assert!(answer.starts_with("http/1.1 504 ") && answer.contains("deadline-exceeded"), "{answer}");
        let (rest, _) = read_rest(&mut app).await;
        assert_eq!(rest, "", "and its connection is closed");
    });
}

/// The application reads a request on a connection that it kept, and closes it instead of answering.
#[test]
fn what_a_kept_connection_swallowed_is_sent_again_unless_the_callers_proxy_does_that() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
    const ATTEMPT: &str = "GET / HTTP/1.1\r\nHost: orders.shop\r\nX-Outrigger-Attempt: 1\r\n\r\n";
    run(|| async {
        let rig = limited(Protocol::Http, PortLimits::default()).await;
        let mut caller = dial(&rig.servers[0]);
        let mut app = None;
        passes(&rig, &mut caller, &mut app, GET).await;
        write(&mut caller, GET).await;
        let mut swallowing = app.take().unwrap();
        read_head(&mut swallowing).await;
        drop(swallowing);
        let mut again = rig.app().await;
        read_head(&mut again).await;
        write(&mut again, OK).await;
        assert!(read_until(&mut caller, "ok").await.starts_with("HTTP/1.1 200"));
        write(&mut caller, ATTEMPT).await;
        read_head(&mut again).await;
        drop(again);
        let head = read_head(&mut caller).await;
        assert!(head.starts_with("http/1.1 502 ") && head.contains("upstream-reset"), "{head}");
    });
}

#[test]
fn connections_that_are_carried_as_bytes_are_limited_too() {
    run(|| async {
        let limits = PortLimits { rate_limits: vec![limit("S/a/b/c", 1, vec![])], ..PortLimits::default() };
        let rig = limited(Protocol::Tcp, limits).await;
        let mut first = rig.dial();
        write(&mut first, "hello").await;
        let mut app = rig.app().await;
        read_until(&mut app, "hello").await;
        let mut second = rig.dial();
        write(&mut second, "hello").await;
        assert_eq!(read_rest(&mut second).await.0, "");
        assert!(rig.servers[0].app.accept().now_or_never().is_none(), "the application has seen it");
    });
}

/// Serves for ever: 5 ms for each request, and counts those of the caller with this name.
fn busy_application(server: &Server, loud: &'static str, served: &Rc<Cell<u32>>) {
    let (listener, served) = (server.listener(), Rc::clone(served));
    task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let served = Rc::clone(&served);
            task::spawn_local(async move {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => head.push(byte),
                            Err(_) => return,
                        }
                    }
                    sleep(Duration::from_millis(5)).await;
                    if String::from_utf8_lossy(&head).contains(loud) {
                        served.set(served.get() + 1);
                    }
                    write(&mut stream, OK).await;
                }
            });
        }
    });
}

#[test]
fn a_caller_at_ten_times_its_share_does_not_starve_another() {
    run(|| async {
        let mut limits = requests(2, 0, None);
        if let Some(bulkhead) = &mut limits.bulkhead {
            bulkhead.queue =
                Some(Queue { size: NonZeroU32::new(100).unwrap(), timeout: Duration::from_secs(60) });
        }
        let rig = limited(Protocol::Http, limits).await;
        // The rig's own caller, and another with the same configuration.
        let loud = testing::context("--no-capture --forward 127.0.0.1:1=orders.shop:80").ctx;
        issue(&rig.authority, &loud, &identity("loud"));
        loud.snapshot.publish(rig.client.ctx.snapshot.load());
        let loud = Worker::new(loud, 0);
        let served = Rc::new(Cell::new(0));
        busy_application(&rig.servers[0], "/sa/loud", &served);
        for _ in 0..20 {
            let (mut program, proxy) = duplex(64 << 10);
            let (worker, target) = (Rc::clone(&loud), Target::Original(SERVICE.parse().unwrap()));
            let caller = "10.0.0.9:4000".parse().unwrap();
            task::spawn_local(outbound::connection(worker, Stream::Pipe(proxy), caller, target, None));
            task::spawn_local(async move {
                loop {
                    write(&mut program, POST).await;
                    assert!(read_until(&mut program, "ok").await.starts_with("HTTP/1.1 200"));
                }
            });
        }
        while served.get() < 40 {
            task::yield_now().await;
        }
        let mut quiet = rig.dial();
        let mut overtaken = Vec::new();
        for _ in 0..15 {
            let before = served.get();
            write(&mut quiet, POST).await;
            assert!(read_until(&mut quiet, "ok").await.starts_with("HTTP/1.1 200"));
            overtaken.push(served.get() - before);
        }
        overtaken.sort_unstable();
        // Two are under way, and two more may begin while this one takes its turn. First come, first served, it would
        // wait for all twenty.
        assert!(overtaken[7] <= 8, "{overtaken:?}");
    });
}

#[test]
fn the_callers_proxy_says_whose_time_was_over() {
    const CONNECTIONS: u32 = 8;
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        // Told in whole milliseconds it is less: the server's proxy would be the first.
        rig.set_timeouts(Timeouts { request: Some(Duration::from_micros(500_990)), ..Default::default() });
        let (listener, seen) = (rig.servers[0].listener(), Rc::new(Cell::new(0)));
        task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let seen = Rc::clone(&seen);
                task::spawn_local(async move {
                    read_head(&mut stream).await;
                    seen.set(seen.get() + 1);
                    // All at once, so that each has a connection of its own; nobody after them is answered.
                    while seen.get() < CONNECTIONS {
                        task::yield_now().await;
                    }
                    write(&mut stream, OK).await;
                    read_rest(&mut stream).await;
                });
            }
        });
        let mut programs: Vec<_> = (0..CONNECTIONS).map(|_| rig.dial()).collect();
        for program in &mut programs {
            write(program, POST).await;
        }
        for program in &mut programs {
            assert!(read_until(program, "ok").await.starts_with("HTTP/1.1 200"));
        }
        let late = programs.iter_mut().map(|program| refused(program, POST, 504, "request-timeout"));
        join_all(late).await;
    });
}
