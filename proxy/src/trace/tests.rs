//! Spans of requests through two proxies: whose child each is, what it says, and what becomes of hostile fields.

use std::{cell::RefCell, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use opentelemetry::trace::{SpanId as Id, SpanKind, Status};
use outrigger_core::limits;
use outrigger_proto::spec::{HedgeDelay, Hedging, InboundPort, MtlsMode, Protocol};
use tokio::{
    io::duplex,
    task,
    time::{Instant, sleep, timeout},
};

use super::*;
use crate::{
    inbound,
    path::accept::Target,
    rig::{PATIENCE, Reply, Rig, Server, read_rest, run, write},
    tcp::Stream,
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

type Variables = Vec<(&'static str, String)>;

/// Nothing is sent in these tests: spans are taken from the queue.
fn on(more: &[(&'static str, &str)]) -> Variables {
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    let always = ("OTEL_TRACES_SAMPLER", "parentbased_always_on");
    let own = [endpoint, always].into_iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    own.chain(more.iter().copied()).map(|(name, value)| (name, value.to_owned())).collect()
}

/// The next spans of a proxy; they come after the answer.
async fn spans(worker: &Worker, count: usize) -> Vec<SpanData> {
    let queue = &worker.ctx.tracing.on().unwrap().spans;
    let deadline = Instant::now() + PATIENCE;
    while queue.waiting() < count {
        assert!(Instant::now() < deadline, "{} spans of {count}", queue.waiting());
        sleep(Duration::from_millis(2)).await;
    }
    queue.batch(Duration::ZERO).await
}

/// One span of each side.
async fn both(rig: &Rig) -> (SpanData, SpanData) {
    let client = spans(&rig.client, 1).await;
    let server = spans(&rig.servers[0].worker, 1).await;
    assert_eq!((client.len(), server.len()), (1, 1), "{client:?} {server:?}");
    (client[0].clone(), server[0].clone())
}

fn attribute(span: &SpanData, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| attribute.value.to_string()).unwrap_or_default()
}

/// Of the event with this name, if there is one.
fn of_event(span: &SpanData, event: &str, name: &str) -> Option<String> {
    let event = span.events.iter().find(|one| one.name == event)?;
    event.attributes.iter().find(|one| one.key.as_str() == name).map(|one| one.value.to_string())
}

fn events(span: &SpanData) -> Vec<&str> {
    span.events.iter().map(|event| &*event.name).collect()
}

fn outcomes(span: &SpanData) -> Vec<String> {
    let tries = span.events.iter().flat_map(|event| &event.attributes);
    tries.filter(|one| one.key.as_str() == "outrigger.outcome").map(|one| one.value.to_string()).collect()
}

fn assert_all(span: &SpanData, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(attribute(span, name), *value, "{name} of {span:#?}");
    }
}

/// A request in a trace.
fn request(line: &str, more: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: orders.shop:80\r\nConnection: close\r\n{more}\r\n")
}

fn sampled() -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n")
}

async fn ask(rig: &Rig, request: &str) -> String {
    let mut program = rig.dial();
    write(&mut program, request).await;
    read_rest(&mut program).await.0
}

/// An application that keeps the heads it was sent.
fn listening(server: &Server, answer: impl Fn(u32) -> Reply + 'static) -> Rc<RefCell<Vec<String>>> {
    let heads: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = Rc::clone(&heads);
    server.serve(move |number, head| {
        seen.borrow_mut().push(head.to_owned());
        answer(number)
    });
    heads
}

fn ok(_: u32) -> Reply {
    Reply::Answer(OK.into())
}

fn status(code: u16) -> Reply {
    Reply::Answer(format!("HTTP/1.1 {code} X\r\nContent-Length: 2\r\n\r\nno"))
}

/// The other flag says that the id is random.
fn is_unsampled(traceparent: &str) -> bool {
    traceparent.ends_with("-00") || traceparent.ends_with("-02")
}

fn field(head: &str, name: &str) -> Option<String> {
    let prefix = format!("{name}: ");
    head.lines().find_map(|line| line.strip_prefix(&prefix)).map(str::to_owned)
}

#[test]
fn a_request_has_a_span_on_each_side() {
    run(|| async {
        let mut rig = Rig::with(Protocol::Http, 1, on(&[])).await;
        rig.configure();
        let heads = listening(&rig.servers[0], ok);
        let baggage = "tracestate: a=1,b=2\r\nbaggage: user=7\r\n";
        let answer = ask(&rig, &request("GET /things/7?key=s3cret", &(sampled() + baggage))).await;
        assert!(answer.ends_with("ok"), "{answer}");
        let (client, server) = both(&rig).await;
        assert_eq!((&*client.name, &*server.name), ("GET", "GET"));
        assert_eq!((&client.span_kind, &server.span_kind), (&SpanKind::Client, &SpanKind::Server));
        assert_eq!((&client.status, &server.status), (&Status::Unset, &Status::Unset));
        for span in [&client, &server] {
            assert_eq!(span.span_context.trace_id().to_string(), TRACE);
            assert!(span.span_context.is_sampled() && span.links.is_empty() && span.parent_span_is_remote);
            assert!(span.start_time <= span.end_time);
            assert!(!format!("{span:?}").contains("s3cret"));
            assert_all(
                span,
                &[
                    ("http.request.method", "GET"),
                    ("url.path", "/things/7"),
                    ("url.scheme", "http"),
                    ("server.address", "orders.shop"),
                    ("server.port", "80"),
                    ("network.protocol.version", "1.1"),
                    ("http.response.status_code", "200"),
                    ("http.request.resend_count", ""),
                    ("error.type", ""),
                    ("outrigger.source", "spiffe://mesh.local/ns/shop/sa/web"),
                    ("outrigger.destination", "spiffe://mesh.local/ns/shop/sa/orders"),
                    ("outrigger.attempts", "1"),
                ],
            );
        }
        assert_eq!(client.parent_span_id.to_string(), PARENT);
        assert_eq!(server.parent_span_id, client.span_context.span_id());
        assert_eq!(attribute(&client, "outrigger.service"), "shop/orders:80");
        assert_eq!(attribute(&client, "network.peer.port"), rig.servers[0].mesh.port().to_string());
        assert_eq!(attribute(&client, "outrigger.id"), client.span_context.span_id().to_string());
        assert_eq!(attribute(&server, "client.address"), "127.0.0.1");
        assert_eq!(attribute(&server, "outrigger.policy"), "default");
        assert_eq!((events(&client), events(&server)), (vec!["attempt"], vec!["policy", "attempt"]));
        assert_eq!((outcomes(&client), outcomes(&server)), (vec!["200".into()], vec!["200".into()]));
        // What the application passes on makes what it calls a child of the server's span.
        let heads = heads.borrow();
        let id = server.span_context.span_id();
        assert_eq!(field(&heads[0], "traceparent").unwrap(), format!("00-{TRACE}-{id}-01"));
        assert_eq!(field(&heads[0], "tracestate").as_deref(), Some("a=1,b=2"));
        assert_eq!(field(&heads[0], "baggage").as_deref(), Some("user=7"));
    });
}

#[test]
fn what_is_not_sampled_is_told_so_and_has_no_span() {
    run(|| async {
        let rig =
            Rig::with(Protocol::Http, 1, on(&[("OTEL_TRACES_SAMPLER", "parentbased_always_off")])).await;
        let heads = listening(&rig.servers[0], ok);
        ask(&rig, &request("GET /", "")).await;
        let told = field(&heads.borrow()[0], "traceparent").unwrap();
        assert!(is_unsampled(&told), "{told}");
        ask(&rig, &request("GET /", &format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n"))).await;
        let told = field(&heads.borrow()[1], "traceparent").unwrap();
        assert!(told.starts_with(&format!("00-{TRACE}-")) && is_unsampled(&told), "{told}");
        // The sampler keeps to what was decided before.
        ask(&rig, &request("GET /", &sampled())).await;
        both(&rig).await;
    });
}

#[test]
fn without_a_backend_fields_pass_as_they_are() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let heads = listening(&rig.servers[0], ok);
        ask(&rig, &request("GET /", "traceparent: nonsense\r\nb3: 0\r\n")).await;
        assert_eq!(field(&heads.borrow()[0], "traceparent").as_deref(), Some("nonsense"));
        assert_eq!(field(&heads.borrow()[0], "b3").as_deref(), Some("0"));
        ask(&rig, &request("GET /", &sampled())).await;
        assert_eq!(field(&heads.borrow()[1], "traceparent"), Some(format!("00-{TRACE}-{PARENT}-01")));
        ask(&rig, &request("GET /", "")).await;
        assert_eq!(field(&heads.borrow()[2], "traceparent"), None);
    });
}

#[test]
fn b3_comes_and_goes() {
    run(|| async {
        let rig = Rig::with(Protocol::Http, 1, on(&[("OTEL_PROPAGATORS", "b3,b3multi")])).await;
        let heads = listening(&rig.servers[0], ok);
        ask(&rig, &request("GET /", &format!("b3: {TRACE}-{PARENT}-1\r\n"))).await;
        let (client, server) = both(&rig).await;
        assert_eq!(client.parent_span_id.to_string(), PARENT);
        assert_eq!(server.parent_span_id, client.span_context.span_id());
        assert!(field(&heads.borrow()[0], "b3").unwrap().starts_with(TRACE));
        let multi = format!("x-b3-traceid: {TRACE}\r\nx-b3-spanid: {PARENT}\r\nx-b3-sampled: 1\r\n");
        ask(&rig, &request("GET /", &multi)).await;
        let (client, server) = both(&rig).await;
        assert_eq!(client.parent_span_id.to_string(), PARENT);
        assert_eq!(server.span_context.trace_id().to_string(), TRACE);
        let id = server.span_context.span_id().to_string();
        assert_eq!(field(&heads.borrow()[1], "x-b3-spanid"), Some(id));
    });
}

#[test]
fn hostile_fields_break_nothing() {
    run(|| async {
        let rig = Rig::with(Protocol::Http, 1, on(&[("OTEL_PROPAGATORS", "tracecontext,b3,b3multi")])).await;
        let heads = listening(&rig.servers[0], ok);
        let many: String = (0..40).map(|n| format!("k{n}=v,")).collect();
        let hostile = [
            "traceparent: \r\n".to_owned(),
            "traceparent: 00-00000000000000000000000000000000-0000000000000000-01\r\n".to_owned(),
            format!("traceparent: ff-{TRACE}-{PARENT}-01\r\n"),
            format!("traceparent: 00-{}-{PARENT}-01\r\n", TRACE.to_uppercase()),
            format!("{0}{0}", sampled()),
            format!("traceparent: {}\r\n", "0".repeat(10_000)),
            "b3: 1-2-3-4-5\r\n".to_owned(),
            "b3: \u{7f}\r\n".replace('\u{7f}', "x"),
            format!("x-b3-traceid: {TRACE}\r\n"),
            "x-b3-sampled: perhaps\r\nx-b3-flags: 9\r\n".to_owned(),
            format!("{}tracestate: {many}\r\n", sampled()),
            format!("{}tracestate: a=1\r\ntracestate: {}\r\n", sampled(), "x".repeat(9_000)),
            format!("baggage: {}\r\n", "y".repeat(20_000)),
            "tracestate: orphan=1\r\n".to_owned(),
        ];
        for fields in &hostile {
            let answer = ask(&rig, &request("GET /", fields)).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{fields}: {answer}");
            let (client, server) = both(&rig).await;
            assert_eq!(server.parent_span_id, client.span_context.span_id(), "{fields}");
            let heads = heads.borrow();
            let told =
                field(heads.last().unwrap(), "traceparent").or_else(|| field(heads.last().unwrap(), "b3"));
            let told = told.or_else(|| field(heads.last().unwrap(), "x-b3-spanid")).unwrap();
            assert!(told.contains(&server.span_context.span_id().to_string()), "{fields}: {told}");
        }
    });
}

#[test]
fn a_retry_is_an_event_of_the_one_span() {
    run(|| async {
        let rig = Rig::with(Protocol::Http, 2, on(&[])).await;
        listening(&rig.servers[0], |_| status(503));
        listening(&rig.servers[1], ok);
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "the bad one is never asked first");
            assert!(ask(&rig, &request("GET /a", &sampled())).await.ends_with("ok"));
            let client = spans(&rig.client, 1).await.remove(0);
            if client.events.len() < 2 {
                continue;
            }
            assert_eq!(events(&client), ["attempt", "retry"]);
            assert_eq!(outcomes(&client), ["503", "200"]);
            assert_eq!(
                of_event(&client, "attempt", "outrigger.endpoint"),
                Some(rig.servers[0].mesh.to_string())
            );
            assert_all(&client, &[("http.request.resend_count", "1"), ("outrigger.attempts", "2")]);
            assert!(client.events[0].timestamp <= client.events[1].timestamp);
            assert_eq!(client.status, Status::Unset);
            // The same span is the parent of what both servers have made.
            let bad = spans(&rig.servers[0].worker, 1).await;
            let bad = bad.last().unwrap();
            let good = spans(&rig.servers[1].worker, 1).await;
            let good = good.last().unwrap();
            let id = client.span_context.span_id();
            assert_eq!((bad.parent_span_id, good.parent_span_id), (id, id));
            assert_ne!(bad.span_context.span_id(), good.span_context.span_id());
            assert!(matches!(bad.status, Status::Error { .. }), "{bad:?}");
            assert_eq!(attribute(bad, "error.type"), "503");
            return;
        }
    });
}

#[test]
fn a_hedge_is_an_event_too() {
    run(|| async {
        let mut rig = Rig::with(Protocol::Http, 2, on(&[])).await;
        rig.set_traffic(|traffic| {
            let delay = HedgeDelay::After(Duration::from_millis(20));
            traffic.hedging = Some(Hedging { delay, budget_percent: 100 });
        });
        listening(&rig.servers[0], |_| Reply::Hang(String::new()));
        listening(&rig.servers[1], ok);
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "no hedge wins");
            assert!(ask(&rig, &request("GET /a", "")).await.ends_with("ok"));
            let client = spans(&rig.client, 1).await.remove(0);
            // The other one may have been asked first, and have been slow.
            if outcomes(&client) == ["cancelled", "200"] {
                assert_eq!(events(&client), ["attempt", "hedge"]);
                return;
            }
        }
    });
}

#[test]
fn an_answer_that_the_proxy_made_says_why() {
    run(|| async {
        let mut rig = Rig::with(Protocol::Http, 0, on(&[])).await;
        rig.configure();
        let answer = ask(&rig, &request("GET /a", &sampled())).await.to_ascii_lowercase();
        assert_eq!(field(&answer, "outrigger-reason").as_deref(), Some("no-endpoints"));
        let client = spans(&rig.client, 1).await.remove(0);
        assert_eq!(events(&client), ["verdict"]);
        let id = field(&answer, "outrigger-id").unwrap();
        assert_eq!(of_event(&client, "verdict", "outrigger.id").as_deref(), Some(&*id));
        assert_all(
            &client,
            &[
                ("outrigger.reason", "no-endpoints"),
                ("outrigger.id", &id),
                ("error.type", "no-endpoints"),
                ("http.response.status_code", "503"),
                ("outrigger.attempts", "0"),
            ],
        );
        assert!(
            matches!(&client.status, Status::Error { description } if description.starts_with("no-endpoints"))
        );
    });
}

#[test]
fn who_calls_in_plaintext_is_linked_to_unless_it_is_trusted() {
    for (trusted, more) in [(false, vec![]), (true, vec![("OUTRIGGER_TRACE_TRUST_OUTSIDE", "true")])] {
        run(move || async move {
            let mut rig = Rig::with(Protocol::Http, 1, on(&more)).await;
            rig.servers[0].declare(InboundPort { mtls: MtlsMode::Permissive, ..InboundPort::default() });
            listening(&rig.servers[0], ok);
            let server = &rig.servers[0];
            let (mut caller, proxy) = duplex(64 << 10);
            let target = Target::Serve { application: server.app.local_addr().unwrap() };
            let address = "10.0.0.9:4000".parse().unwrap();
            let stream = Stream::Pipe(proxy);
            task::spawn_local(inbound::connection(Rc::clone(&server.worker), stream, address, target, None));
            write(&mut caller, &request("GET /", &sampled())).await;
            assert!(read_rest(&mut caller).await.0.ends_with("ok"));
            let span = spans(&server.worker, 1).await.remove(0);
            assert_eq!(span.span_context.trace_id().to_string() == TRACE, trusted);
            assert_eq!(span.parent_span_id != Id::INVALID, trusted);
            let links: Vec<_> =
                span.links.iter().map(|link| link.span_context.span_id().to_string()).collect();
            assert_eq!(links, if trusted { vec![] } else { vec![PARENT.to_owned()] });
            assert_all(&span, &[("outrigger.source", ""), ("client.address", "10.0.0.9")]);
        });
    }
}

#[test]
fn errors_are_kept_although_the_ratio_says_no() {
    run(|| async {
        let never = [("OTEL_TRACES_SAMPLER", "always_off"), ("OUTRIGGER_TRACE_KEEP", "errors")];
        let mut rig = Rig::with(Protocol::Http, 1, on(&never)).await;
        rig.set_traffic(|traffic| traffic.retries.attempts = 0);
        let heads = listening(&rig.servers[0], |number| match number {
            0 => ok(0),
            1 => status(404),
            _ => status(500),
        });
        for _ in 0..3 {
            ask(&rig, &request("GET /", "")).await;
        }
        let (client, server) = both(&rig).await;
        assert_all(&client, &[("http.response.status_code", "500"), ("error.type", "500")]);
        // They find each other, although nobody was told that they are recorded.
        assert_eq!(server.parent_span_id, client.span_context.span_id());
        assert!(heads.borrow().iter().all(|head| is_unsampled(&field(head, "traceparent").unwrap())));
    });
}

#[test]
fn slow_requests_are_kept_too_and_the_cap_holds() {
    run(|| async {
        let keep = [
            ("OTEL_TRACES_SAMPLER", "always_off"),
            ("OUTRIGGER_TRACE_KEEP", "slower=30ms"),
            ("OUTRIGGER_TRACE_MAX_PER_SECOND", "1"),
        ];
        let mut rig = Rig::with(Protocol::Http, 1, on(&keep)).await;
        rig.set_timeouts(outrigger_proto::spec::Timeouts {
            request: Some(Duration::from_millis(60)),
            ..Default::default()
        });
        listening(&rig.servers[0], |_| Reply::Hang(String::new()));
        for _ in 0..3 {
            ask(&rig, &request("GET /", "")).await;
        }
        let numbers = || rig.client.ctx.tracing.numbers();
        let lost = |why: Lost| numbers().dropped.iter().find(|(name, _)| *name == why.name()).unwrap().1;
        let deadline = Instant::now() + PATIENCE;
        while numbers().queued + lost(Lost::Rate) < 3 {
            assert!(Instant::now() < deadline, "{:?}", numbers());
            sleep(Duration::from_millis(2)).await;
        }
        assert!(numbers().queued >= 1 && lost(Lost::Rate) >= 1, "{:?}", numbers());
    });
}

#[test]
fn what_the_queue_has_no_room_for_is_counted() {
    run(|| async {
        let small = [("OTEL_BSP_MAX_QUEUE_SIZE", "2"), ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")];
        let rig = Rig::with(Protocol::Http, 1, on(&small)).await;
        listening(&rig.servers[0], ok);
        for _ in 0..5 {
            assert!(ask(&rig, &request("GET /", "")).await.ends_with("ok"));
        }
        let deadline = Instant::now() + PATIENCE;
        let numbers = || rig.client.ctx.tracing.numbers();
        while numbers().dropped[Lost::Queue as usize].1 < 3 {
            assert!(Instant::now() < deadline, "{:?}", numbers());
            sleep(Duration::from_millis(2)).await;
        }
        assert_eq!((numbers().queued, numbers().dropped[Lost::Queue as usize]), (2, ("queue", 3)));
    });
}

#[test]
fn words_of_strangers_are_cut() {
    run(|| async {
        let rig = Rig::with(Protocol::Http, 1, on(&[])).await;
        listening(&rig.servers[0], ok);
        ask(&rig, &request(&format!("BREW /{}", "x".repeat(6_000)), "")).await;
        let (client, _) = both(&rig).await;
        assert_eq!(&*client.name, "HTTP");
        assert_eq!(attribute(&client, "url.path").len(), 1_024);
        assert_all(&client, &[("http.request.method", "_OTHER"), ("http.request.method_original", "BREW")]);
    });
}

/// Answers every call with this status.
fn serve_grpc(app: &Server, code: &'static str) {
    let listener = app.listener();
    task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            task::spawn_local(async move {
                let mut connection = server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let head =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut answer = respond.send_response(head, false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(code));
                    answer.send_trailers(trailers).unwrap();
                }
            });
        }
    });
}

#[test]
fn calls_of_grpc_have_its_names() {
    for (code, name, client_fails, server_fails) in
        [("0", "OK", false, false), ("5", "NOT_FOUND", true, false), ("13", "INTERNAL", true, true)]
    {
        run(move || async move {
            let rig = Rig::with(Protocol::Grpc, 1, on(&[])).await;
            serve_grpc(&rig.servers[0], code);
            let (sender, driver) = client::handshake(rig.dial()).await.unwrap();
            task::spawn_local(async move { drop(driver.await) });
            let mut sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
            let call = Request::post("http://orders.shop/shop.v1.Orders/List")
                .header("content-type", "application/grpc")
                .header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
            let (answer, mut upload) = sender.send_request(call.body(()).unwrap(), false).unwrap();
            upload.send_data(Bytes::from_static(b"\0\0\0\0\0"), true).unwrap();
            let mut body = timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
            while let Some(chunk) = body.data().await {
                chunk.unwrap();
            }
            body.trailers().await.unwrap();
            drop(body);
            let (client, server) = both(&rig).await;
            assert_eq!((&*client.name, &*server.name), ("shop.v1.Orders/List", "shop.v1.Orders/List"));
            assert_eq!(client.parent_span_id.to_string(), PARENT);
            assert_eq!(server.parent_span_id, client.span_context.span_id());
            for (span, fails) in [(&client, client_fails), (&server, server_fails)] {
                assert_all(
                    span,
                    &[
                        ("rpc.system", "grpc"),
                        ("rpc.service", "shop.v1.Orders"),
                        ("rpc.method", "List"),
                        ("rpc.grpc.status_code", code),
                        ("rpc.response.status_code", name),
                        ("network.protocol.version", "2"),
                        ("error.type", if fails { name } else { "" }),
                    ],
                );
                assert_eq!(matches!(span.status, Status::Error { .. }), fails, "{code}: {span:?}");
            }
        });
    }
}

#[test]
fn connections_have_spans_when_asked_for() {
    for (wanted, more) in [(false, vec![]), (true, vec![("OUTRIGGER_TRACE_TCP", "true")])] {
        run(move || async move {
            let rig = Rig::with(Protocol::Tcp, 1, on(&more)).await;
            let mut program = rig.dial();
            write(&mut program, "hello").await;
            let mut app = rig.app().await;
            write(&mut app, "bye").await;
            drop(app);
            read_rest(&mut program).await;
            drop(program);
            if !wanted {
                // A connection is counted after it has had its span.
                let counted = |worker: &Worker| {
                    let page = worker.ctx.telemetry.metrics.render(&crate::metrics::Observed::default());
                    page.contains("\noutrigger_connections_total{")
                };
                let deadline = Instant::now() + PATIENCE;
                for worker in [&rig.client, &rig.servers[0].worker] {
                    while !counted(worker) {
                        assert!(Instant::now() < deadline, "a connection never ended");
                        sleep(Duration::from_millis(2)).await;
                    }
                    assert_eq!(worker.ctx.tracing.numbers().queued, 0);
                }
                return;
            }
            let (client, server) = both(&rig).await;
            assert_eq!((&*client.name, &*server.name), ("tcp", "tcp"));
            assert_eq!((&client.span_kind, &server.span_kind), (&SpanKind::Client, &SpanKind::Server));
            assert_all(
                &client,
                &[
                    ("outrigger.service", "shop/orders:80"),
                    ("outrigger.source", "spiffe://mesh.local/ns/shop/sa/web"),
                    ("outrigger.destination", "spiffe://mesh.local/ns/shop/sa/orders"),
                    ("outrigger.sent_bytes", "3"),
                ],
            );
            assert_eq!(events(&client), ["connected"]);
        });
    }
}

/// Fields that mean nothing, `count` of them.
fn ballast(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|n| (format!("x-ballast-{n}"), "v".to_owned()))
}

#[test]
fn what_proxies_add_makes_no_legal_request_illegal() {
    let all = [("OTEL_PROPAGATORS", "tracecontext,b3,b3multi")];
    run(move || async move {
        let mut rig = Rig::with(Protocol::Http, 1, on(&all)).await;
        rig.set_timeouts(outrigger_proto::spec::Timeouts {
            request: Some(Duration::from_secs(60)),
            ..Default::default()
        });
        let heads = listening(&rig.servers[0], ok);
        // Beside Host and Connection.
        let room = limits::Sender::Program.http1_request();
        let at_the_limit: String =
            ballast(room.fields - 2).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let answer = ask(&rig, &request("GET /", &at_the_limit)).await;
        assert!(answer.ends_with("ok"), "{answer}");
        let arrived = heads.borrow()[0].clone();
        for name in ["traceparent", "b3", "x-b3-traceid", "x-outrigger-deadline", "x-outrigger-attempt"] {
            assert!(field(&arrived, name).is_some(), "{name} in {arrived}");
        }
        let over = request("GET /", &(at_the_limit + "x-one: more\r\n"));
        let answer = ask(&rig, &over).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
        assert_eq!(field(&answer, "outrigger-reason").as_deref(), Some("headers-too-large"), "{answer}");
        assert_eq!(heads.borrow().len(), 1);
    });
}

#[test]
fn in_http2_likewise() {
    run(|| async {
        let rig = Rig::with(Protocol::Http2, 1, on(&[("OTEL_PROPAGATORS", "tracecontext,b3,b3multi")])).await;
        serve_grpc(&rig.servers[0], "0");
        let (sender, driver) = client::handshake(rig.dial()).await.unwrap();
        task::spawn_local(async move { drop(driver.await) });
        let mut sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
        for (fields, status) in [(limits::MAX_HEADER_FIELDS, 200), (limits::MAX_HEADER_FIELDS + 1, 431)] {
            let call = ballast(fields)
                .fold(Request::get("http://orders.shop/"), |call, (name, value)| call.header(name, value));
            let (answer, _) = sender.send_request(call.body(()).unwrap(), true).unwrap();
            let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), status, "{fields} fields: {answer:?}");
        }
    });
}

#[test]
fn what_is_left_out_of_the_fields_is_counted() {
    run(|| async {
        let rig = Rig::with(Protocol::Http, 1, on(&[("OTEL_PROPAGATORS", "tracecontext,b3,b3multi")])).await;
        listening(&rig.servers[0], ok);
        let many = (0..65).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
        let long = "x".repeat(8_193);
        let good = sampled();
        let cases = [
            (format!("{good}{good}"), "traceparent", "repeated"),
            ("traceparent: nonsense\r\n".to_owned(), "traceparent", "malformed"),
            ("b3: 1\r\nb3: 1\r\n".to_owned(), "b3", "repeated"),
            ("b3: 2\r\n".to_owned(), "b3", "malformed"),
            ("x-b3-sampled: maybe\r\n".to_owned(), "x-b3", "malformed"),
            (format!("{good}tracestate: {}\r\n", &long[..513]), "tracestate", "too-long"),
            (format!("{good}tracestate: {}\r\n", "a=b,".repeat(33)), "tracestate", "too-many"),
            ("tracestate: a=b\r\n".to_owned(), "tracestate", "orphaned"),
            (format!("baggage: {long}\r\n"), "baggage", "too-long"),
            (format!("baggage: {many}\r\n"), "baggage", "too-many"),
        ];
        for (lines, _, _) in &cases {
            assert!(ask(&rig, &request("GET /", lines)).await.ends_with("ok"), "{lines}");
        }
        let numbers = rig.client.ctx.tracing.numbers().discarded;
        assert_eq!(numbers.to_vec(), cases.map(|(_, field, cause)| (field, cause, 1)));
        // What goes on is good.
        let next = rig.servers[0].worker.ctx.tracing.numbers().discarded;
        assert!(next.iter().all(|(_, _, count)| *count == 0), "{next:?}");
    });
}
