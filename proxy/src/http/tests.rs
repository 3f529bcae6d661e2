//! HTTP through two proxies, seen from scripted ends.

use std::time::Duration;

use outrigger_proto::spec::{Action, AuthorizationPolicy, AuthorizationRule, Protocol, Timeouts};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task,
    time::timeout,
};

use crate::rig::{PATIENCE, Reply, Rig, endpoint, identity, read_head, read_rest, read_until, run, write};

const GET: &str = "GET /a HTTP/1.1\r\nHost: orders.shop\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn reason(head: &str) -> &str {
    let at = head.find("outrigger-reason: ").unwrap_or_else(|| panic!("no reason in {head}"));
    head[at + 18..].lines().next().unwrap()
}

#[test]
fn a_request_passes_and_the_caller_is_named() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(
            &mut program,
            "GET /a HTTP/1.1\r\nHost: orders.shop\r\nX-Forwarded-Client-Cert: By=me\r\nConnection: x-drop\r\n\
             X-Drop: 1\r\nKeep-Alive: 5\r\nX-Keep: 1\r\n\r\n",
        )
        .await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.starts_with("get /a http/1.1\r\n"), "{head}");
        assert!(head.contains("uri=spiffe://mesh.local/ns/shop/sa/web"), "{head}");
        assert!(head.contains("by=spiffe://mesh.local/ns/shop/sa/orders;hash="), "{head}");
        assert!(
            !head.contains("by=me") && !head.contains("x-drop") && !head.contains("keep-alive"),
            "{head}"
        );
        assert!(head.contains("x-keep: 1"), "{head}");
        write(&mut app, OK).await;
        let answer = read_head(&mut program).await;
        assert!(answer.starts_with("http/1.1 200 ok"), "{answer}");
        assert_eq!(read_until(&mut program, "ok").await, "ok");
        // The same connections, all the way.
        write(&mut program, GET).await;
        read_head(&mut app).await;
        write(&mut app, OK).await;
        read_until(&mut program, "ok").await;
    });
}

#[test]
fn upstream_connections_survive_the_callers_close() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(!head.contains("connection:"), "{head}");
        write(&mut app, OK).await;
        let (answer, clean) = read_rest(&mut program).await;
        assert!(answer.ends_with("ok") && clean, "{answer}");
        let mut again = rig.dial();
        write(&mut again, GET).await;
        read_head(&mut app).await;
        write(&mut app, OK).await;
        read_until(&mut again, "ok").await;
    });
}

#[test]
fn chunks_and_trailers_pass_both_ways() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(
            &mut program,
            "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nX-Sum: 1\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n",
        )
        .await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.contains("transfer-encoding: chunked") && head.contains("te: trailers"), "{head}");
        let body = read_until(&mut app, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(body.contains("abc") && body.contains("x-sum: 1") && !body.contains("by=me"), "{body}");
        write(
            &mut app,
            "HTTP/1.1 200 OK\r\nTrailer: x-end\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nx-end: 7\r\n\r\n",
        )
        .await;
        read_head(&mut program).await;
        let body = read_until(&mut program, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(body.contains("hi") && body.contains("x-end: 7"), "{body}");
    });
}

#[test]
fn head_has_a_length_and_no_body() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(&mut program, "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut app = rig.app().await;
        read_head(&mut app).await;
        write(&mut app, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n").await;
        let head = read_head(&mut program).await;
        assert!(head.contains("content-length: 1000"), "{head}");
        write(&mut program, GET).await;
        read_head(&mut app).await;
        write(&mut app, OK).await;
        assert!(read_until(&mut program, "ok").await.starts_with("HTTP/1.1 200"));
    });
}

#[test]
fn a_body_waits_for_the_applications_word() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(
            &mut program,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        write(&mut app, "HTTP/1.1 100 Continue\r\n\r\n").await;
        assert!(read_head(&mut program).await.starts_with("http/1.1 100"));
        write(&mut program, "abc").await;
        read_until(&mut app, "abc").await;
        write(&mut app, OK).await;
        read_until(&mut program, "ok").await;
    });
}

#[test]
fn a_refused_body_is_never_asked_for() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(
            &mut program,
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
        )
        .await;
        let mut app = rig.app().await;
        read_head(&mut app).await;
        write(&mut app, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n").await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 401"), "{head}");
    });
}

#[test]
fn an_upgrade_carries_bytes_only_after_it_is_granted() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        let ask = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        write(&mut program, ask).await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
        write(&mut program, "early\n").await;
        let early = timeout(Duration::from_millis(100), app.read_u8()).await;
        assert!(early.is_err(), "bytes reached the application before it agreed");
        write(
            &mut app,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhi",
        )
        .await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: websocket"), "{head}");
        assert_eq!(read_until(&mut app, "early\n").await, "early\n");
        assert_eq!(read_until(&mut program, "hi").await, "hi");
        // Half-close passes, and the other direction goes on.
        program.shutdown().await.unwrap();
        assert_eq!(read_rest(&mut app).await, (String::new(), true));
        write(&mut app, "bye").await;
        drop(app);
        assert_eq!(read_rest(&mut program).await, ("bye".to_owned(), true));
    });
}

#[test]
fn what_follows_a_declined_upgrade_is_a_request() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        let ask = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
        write(&mut program, ask).await;
        let mut app = rig.app().await;
        read_head(&mut app).await;
        write(&mut program, "GET /b HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n").await;
        write(&mut app, OK).await;
        read_until(&mut program, "ok").await;
        let head = read_head(&mut app).await;
        assert!(head.starts_with("get /b ") && !head.contains("by=me"), "{head}");
    });
}

#[test]
fn what_hyper_adds_makes_no_legal_answer_illegal() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        // An answer that ends with its connection is sent on in chunks, and on a connection that is closed, too.
        rig.servers[0].serve(|number, _| {
            let fields = 98 + number as usize;
            Reply::Last(format!("HTTP/1.1 200 OK\r\n{}\r\nok", "x-a: b\r\n".repeat(fields)))
        });
        for status in ["200", "502"] {
            let mut program = rig.dial();
            write(
                &mut program,
                "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
            )
            .await;
            let head = read_head(&mut program).await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{head}");
        }
    });
}

#[test]
fn the_callers_mistakes_have_their_own_answers() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(200));
        let large = format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(40 << 10));
        let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "y".repeat(20 << 10));
        for (request, status, code) in [
            ("GET / HTTP/1.1\nHost: a\n\n", 400, "bad-request"),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                400,
                "bad-request",
            ),
            (
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
                400,
                "bad-request",
            ),
            ("GET / HTTP/1.1\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "bad-request"),
            ("GET /%2fadmin HTTP/1.1\r\nHost: a\r\n\r\n", 400, "bad-request"),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x-forwarded-client-cert\r\n\r\n", 400, "bad-request"),
            ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 501, "unsupported"),
            (&many, 431, "headers-too-large"),
            (&large, 431, "headers-too-large"),
            (&long, 414, "uri-too-long"),
        ] {
            let mut program = rig.dial();
            write(&mut program, request).await;
            let shown = &request[..request.len().min(80)];
            let head = read_head(&mut program).await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{shown:?}: {head}");
            assert_eq!(reason(&head), code, "{shown:?}");
            assert!(head.contains("outrigger-id: "), "{head}");
        }
        let untouched = timeout(Duration::from_millis(50), rig.servers[0].app.accept()).await;
        assert!(untouched.is_err(), "a refused request reached the application");
    });
}

#[test]
fn illegal_characters_are_refused() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        for request in [
            "GET / HTTP/1.1\r\nHost: a\r\n folded: 1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx : 1\r\n\r\n",
            "G(T / HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.9\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nx: a\0b\r\n\r\n",
        ] {
            let mut program = rig.dial();
            write(&mut program, request).await;
            let (answer, _) = read_rest(&mut program).await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        }
    });
}

#[test]
fn an_answer_that_is_cut_short_looks_cut_short() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        for answer in [
            "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        ] {
            let mut program = rig.dial();
            write(&mut program, GET).await;
            let mut app = rig.app().await;
            read_head(&mut app).await;
            write(&mut app, answer).await;
            let head = read_head(&mut program).await;
            drop(app);
            let (body, _) = read_rest(&mut program).await;
            let whole = if head.contains("chunked") { body.ends_with("0\r\n\r\n") } else { body.len() == 10 };
            assert!(!whole && body.contains("abc"), "{body}");
        }
    });
}

#[test]
fn the_upstreams_faults_have_their_own_answers() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx";
        for (answer, status, code) in [
            ("", 502, "upstream-reset"),
            ("HTTP/1.1 2", 502, "upstream-reset"),
            ("nonsense\r\n\r\n", 502, "upstream-protocol"),
            ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", 502, "upstream-protocol"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                502,
                "upstream-protocol",
            ),
            (
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
                502,
                "upstream-protocol",
            ),
        ] {
            let mut program = rig.dial();
            write(&mut program, post).await;
            let mut app = rig.app().await;
            read_until(&mut app, "\r\n\r\nx").await;
            write(&mut app, answer).await;
            drop(app);
            let head = read_head(&mut program).await;
            assert!(head.starts_with(&format!("http/1.1 {status} ")), "{answer:?}: {head}");
            assert_eq!(reason(&head), code, "{answer:?}");
        }
    });
}

#[test]
fn no_answer_in_time() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.set_timeouts(Timeouts { request: Some(Duration::from_millis(100)), ..Timeouts::default() });
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let mut app = rig.app().await;
        read_head(&mut app).await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 504 "), "{head}");
        assert_eq!(reason(&head), "request-timeout");
        // The application hears that nobody waits any more.
        assert_eq!(read_rest(&mut app).await.0, "");
    });
}

#[test]
fn a_connection_that_closed_while_idle_is_nobodys_problem() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        for _ in 0..5 {
            write(&mut program, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
            let mut app = rig.app().await;
            read_until(&mut app, "\r\n\r\nx").await;
            write(&mut app, OK).await;
            read_until(&mut program, "ok").await;
            drop(app);
            // Until the close has arrived, a request with a body could still be lost.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

#[test]
fn what_cannot_be_sent_goes_elsewhere() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        // Nobody listens there.
        for port in 1..4 {
            rig.backend.endpoints.push(endpoint(format!("127.0.0.1:{port}").parse().unwrap(), "orders"));
        }
        rig.configure();
        let mut program = rig.dial();
        let mut app = None;
        for _ in 0..20 {
            write(&mut program, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
            if app.is_none() {
                app = Some(rig.app().await);
            }
            let app = app.as_mut().unwrap();
            read_until(app, "\r\n\r\nx").await;
            write(app, OK).await;
            let answer = read_until(&mut program, "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
}

#[test]
fn a_small_body_goes_elsewhere_while_an_application_is_down() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 2).await;
        // Its proxy lives, and says that nobody has seen the request.
        rig.servers[0].app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = rig.dial();
        let mut app = None;
        for _ in 0..20 {
            write(&mut program, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx").await;
            if app.is_none() {
                app = Some(rig.servers[1].accept().await);
            }
            let app = app.as_mut().unwrap();
            read_until(app, "\r\n\r\nx").await;
            write(app, OK).await;
            let answer = read_until(&mut program, "ok").await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    });
}

#[test]
fn a_harmless_request_is_repeated_and_a_harmful_one_is_not() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 2).await;
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let (mut first, other) = tokio::select! {
            app = rig.servers[0].accept() => (app, &rig.servers[1]),
            app = rig.servers[1].accept() => (app, &rig.servers[0]),
        };
        read_head(&mut first).await;
        drop(first);
        let mut second = other.accept().await;
        let head = read_head(&mut second).await;
        assert!(head.starts_with("get /a "), "{head}");
        write(&mut second, OK).await;
        read_until(&mut program, "ok").await;
    });
}

#[test]
fn nobody_there() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 0).await;
        let mut program = rig.dial();
        write(&mut program, GET).await;
        assert_eq!(reason(&read_head(&mut program).await), "no-endpoints");
        rig.backend.endpoints.push(endpoint("127.0.0.1:1".parse().unwrap(), "orders"));
        rig.configure();
        write(&mut program, GET).await;
        let head = read_until(&mut program, "port.").await.to_ascii_lowercase();
        assert_eq!(reason(&head), "connect-failed");
    });
}

#[test]
fn another_identity_gets_no_byte() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.backend.endpoints[0].identity = identity("payments");
        rig.configure();
        let mut program = rig.dial();
        write(&mut program, GET).await;
        assert_eq!(reason(&read_head(&mut program).await), "identity-mismatch");
        let dialled = timeout(Duration::from_millis(50), rig.servers[0].app.accept()).await;
        assert!(dialled.is_err(), "the application was dialled");
    });
}

#[test]
fn a_half_closed_caller_gets_its_answer() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(&mut program, GET).await;
        program.shutdown().await.unwrap();
        let mut app = rig.app().await;
        read_head(&mut app).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        write(&mut app, OK).await;
        let (answer, clean) = read_rest(&mut program).await;
        assert!(answer.ends_with("ok") && clean, "{answer}");
    });
}

#[test]
fn large_bodies_pass_both_ways() {
    run(|| async {
        const SIZE: usize = 8 << 20;
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        let serving = task::spawn_local(async move {
            let mut app = rig.app().await;
            read_head(&mut app).await;
            let mut body = vec![0; SIZE];
            app.read_exact(&mut body).await.unwrap();
            write(&mut app, &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n")).await;
            app.write_all(&body).await.unwrap();
            (rig, app)
        });
        write(&mut program, &format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n")).await;
        let body: Vec<u8> = (0..SIZE).map(|n| (n % 251) as u8).collect();
        program.write_all(&body).await.unwrap();
        read_head(&mut program).await;
        let mut back = vec![0; SIZE];
        timeout(PATIENCE, program.read_exact(&mut back)).await.unwrap().unwrap();
        assert!(back == body);
        serving.await.unwrap();
    });
}

#[test]
fn a_push_moves_requests_and_cuts_none() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let mut old = rig.app().await;
        read_head(&mut old).await;
        rig.add_server("orders").await;
        rig.backend.endpoints.remove(0);
        rig.configure();
        // The next request goes to the new endpoint, while the first is still being answered by the old one.
        let mut other = rig.dial();
        write(&mut other, GET).await;
        let mut new = rig.servers[1].accept().await;
        read_head(&mut new).await;
        write(&mut new, OK).await;
        read_until(&mut other, "ok").await;
        write(&mut old, OK).await;
        read_until(&mut program, "ok").await;
        // Then the old endpoint's connection goes.
        write(&mut program, GET).await;
        read_head(&mut new).await;
    });
}

#[test]
fn a_denied_request_is_told_so_and_an_allowed_one_passes_again() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.servers[0].inbound.authorization.push(AuthorizationPolicy {
            name: "shop/no-web".into(),
            action: Action::Deny,
            rules: vec![AuthorizationRule {
                identities: vec![identity("web")],
                ..AuthorizationRule::default()
            }],
        });
        rig.servers[0].publish();
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let head = read_until(&mut program, "account.").await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 403"), "{head}");
        assert_eq!(reason(&head), "denied");
        rig.servers[0].inbound.authorization.clear();
        rig.servers[0].publish();
        write(&mut program, GET).await;
        let mut app = rig.app().await;
        read_head(&mut app).await;
        write(&mut app, OK).await;
        read_until(&mut program, "ok").await;
    });
}

#[test]
fn futures_of_requests_stay_small() {
    fn size<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    let (inbound, outbound) = (size(crate::inbound::handle), size(crate::outbound::handle));
    assert!(inbound <= 2600 && outbound <= 4040, "inbound {inbound}, outbound {outbound} bytes");
}

#[test]
fn an_old_caller_gets_what_it_understands() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.starts_with("get / http/1.1"), "{head}");
        write(&mut app, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n").await;
        let (answer, clean) = read_rest(&mut program).await;
        assert!(answer.ends_with("\r\n\r\nhi") && clean, "{answer}");
    });
}

#[test]
fn a_head_must_be_complete_in_time_and_an_idle_connection_need_not() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 0).await;
        let mut idle = rig.dial();
        // Answered at once, and then silent.
        write(&mut idle, GET).await;
        read_until(&mut idle, "`outrigger status`.").await;
        let mut slow = rig.dial();
        write(&mut slow, "GET / HTTP/1.1\r\nHo").await;
        task::yield_now().await;
        tokio::time::pause();
        let head = read_head(&mut slow).await;
        tokio::time::resume();
        assert!(head.starts_with("http/1.1 408"), "{head}");
        assert_eq!(reason(&head), "caller-timeout");
        write(&mut idle, GET).await;
        read_until(&mut idle, "`outrigger status`.").await;
    });
}

#[test]
fn a_connection_closed_as_soon_as_it_is_made_is_a_failed_one() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let app = rig.servers[0].listener();
        task::spawn_local(async move { while app.accept().await.is_ok() {} });
        let mut program = rig.dial();
        write(&mut program, GET).await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 50"), "{head}");
        assert!(["connect-failed", "upstream-reset"].contains(&reason(&head)), "{head}");
    });
}
