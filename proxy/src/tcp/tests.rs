//! Opaque bytes: the copy by itself, and through two proxies.

use std::{cell::Cell, time::Duration};

use outrigger_proto::spec::{
    Action, AuthorizationPolicy, AuthorizationRule, Destination, EgressPolicy, InboundPort, MtlsMode,
    Protocol, Timeouts,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex},
    task,
    time::{Instant, timeout},
};

use super::{Counts, CutShort, copy};
use crate::{
    path::accept::Target,
    rig::{PATIENCE, Rig, identity, read_head, read_rest, read_until, run, write},
};

#[test]
fn both_directions_end_by_themselves() {
    run(|| async {
        let (mut program, mut near) = duplex(64);
        let (mut far, mut app) = duplex(64);
        let copying = task::spawn_local(async move {
            let counts = Counts::default();
            copy(&mut near, &mut far, &counts, None).await.unwrap();
            (counts.forth.get(), counts.back.get())
        });
        write(&mut program, "hello").await;
        program.shutdown().await.unwrap();
        assert_eq!(read_rest(&mut app).await, ("hello".to_owned(), true));
        // More than fits into the pipes: what is not taken waits.
        let answer = "x".repeat(1000);
        let (sent, received) = tokio::join!(
            async {
                app.write_all(answer.as_bytes()).await.unwrap();
                app.shutdown().await.unwrap();
            },
            read_rest(&mut program)
        );
        let () = sent;
        assert_eq!(received, (answer, true));
        assert_eq!(copying.await.unwrap(), (5, 1000));
    });
}

#[test]
fn the_last_words_of_a_peer_that_takes_nothing_more_arrive() {
    run(|| async {
        let (mut program, mut near) = duplex(64);
        let (mut far, mut app) = duplex(64);
        let copying =
            task::spawn_local(async move { copy(&mut near, &mut far, &Counts::default(), None).await });
        write(&mut app, "sorry").await;
        drop(app);
        write(&mut program, "more").await;
        assert_eq!(read_until(&mut program, "sorry").await, "sorry");
        assert!(matches!(copying.await.unwrap(), Err(CutShort::Second(_)) | Ok(())));
    });
}

#[test]
fn an_idle_copy_ends_and_a_busy_one_does_not() {
    run(|| async {
        tokio::time::pause();
        let (mut program, mut near) = duplex(64);
        let (mut far, mut app) = duplex(64);
        let idle = Duration::from_secs(6);
        let began = Instant::now();
        let copying =
            task::spawn_local(async move { copy(&mut near, &mut far, &Counts::default(), Some(idle)).await });
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(5)).await;
            program.write_all(b"x").await.unwrap();
            app.read_u8().await.unwrap();
        }
        assert!(matches!(copying.await.unwrap(), Err(CutShort::Idle(_))));
        assert_eq!(began.elapsed().as_secs(), 15 + 6);
    });
}

#[test]
fn bytes_pass_with_half_close_in_both_directions() {
    run(|| async {
        let rig = Rig::new(Protocol::Tcp, 1).await;
        let mut program = rig.dial();
        write(&mut program, "ping\n").await;
        let mut app = rig.app().await;
        read_until(&mut app, "ping\n").await;
        program.shutdown().await.unwrap();
        assert_eq!(read_rest(&mut app).await, (String::new(), true));
        write(&mut app, "pong").await;
        app.shutdown().await.unwrap();
        assert_eq!(read_rest(&mut program).await, ("pong".to_owned(), true));
    });
}

#[test]
fn a_server_that_speaks_first_is_heard_undeclared() {
    run(|| async {
        let rig = Rig::new(Protocol::Detect, 1).await;
        for _ in 0..2 {
            let began = Instant::now();
            let mut program = rig.dial();
            let mut app = rig.app().await;
            write(&mut app, "220 hello\r\n").await;
            read_until(&mut program, "220 hello\r\n").await;
            // Not the detection timeout, which is seconds.
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            write(&mut program, "QUIT\r\n").await;
            read_until(&mut app, "QUIT\r\n").await;
        }
    });
}

#[test]
fn an_undeclared_port_is_http_when_the_program_speaks_it() {
    run(|| async {
        let rig = Rig::new(Protocol::Detect, 1).await;
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.contains("x-forwarded-client-cert"), "{head}");
    });
}

#[test]
fn the_applications_own_tls_passes_unread() {
    run(|| async {
        let rig = Rig::new(Protocol::Tls, 1).await;
        let mut program = rig.dial();
        let hello = b"\x16\x03\x01\x00\x04junk";
        program.write_all(hello).await.unwrap();
        let mut app = rig.app().await;
        let mut seen = [0; 9];
        timeout(PATIENCE, app.read_exact(&mut seen)).await.unwrap().unwrap();
        assert_eq!(&seen, hello);
    });
}

#[test]
fn a_reset_is_passed_on_as_a_cut() {
    run(|| async {
        let rig = Rig::new(Protocol::Tcp, 1).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut program = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, peer) = listener.accept().await.unwrap();
        let target = Target::Original(crate::rig::SERVICE.parse().unwrap());
        let stream = crate::tcp::Stream::Tcp(accepted);
        let worker = std::rc::Rc::clone(&rig.client);
        task::spawn_local(crate::outbound::connection(worker, stream, peer, target, None));
        write(&mut program, "ping\n").await;
        let mut app = rig.app().await;
        read_until(&mut app, "ping\n").await;
        write(&mut app, "half").await;
        read_until(&mut program, "half").await;
        app.set_zero_linger().unwrap();
        drop(app);
        assert!(!read_rest(&mut program).await.1, "a cut looks like an end");
    });
}

#[test]
fn a_withdrawn_right_ends_a_live_connection() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        let mut program = rig.dial();
        write(&mut program, "ping\n").await;
        let mut app = rig.app().await;
        read_until(&mut app, "ping\n").await;
        rig.servers[0].inbound.authorization.push(AuthorizationPolicy {
            name: "shop/nobody".into(),
            action: Action::Deny,
            rules: vec![AuthorizationRule {
                identities: vec![identity("web")],
                ..AuthorizationRule::default()
            }],
        });
        rig.servers[0].publish();
        assert!(!read_rest(&mut app).await.1, "the application sees a cut");
        read_rest(&mut program).await;
        // And new ones do not get in.
        let mut program = rig.dial();
        write(&mut program, "ping\n").await;
        read_rest(&mut program).await;
        let dialled = timeout(Duration::from_millis(50), rig.servers[0].app.accept()).await;
        assert!(dialled.is_err(), "a denied caller reached the application");
    });
}

#[test]
fn plaintext_is_refused_where_mtls_is_strict() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut caller = tokio::net::TcpStream::connect(rig.servers[0].mesh).await.unwrap();
        write(&mut caller, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = read_head(&mut caller).await;
        assert!(
            head.starts_with("http/1.1 403") && head.contains("outrigger-reason: mtls-required"),
            "{head}"
        );
        let mut caller = tokio::net::TcpStream::connect(rig.servers[0].mesh).await.unwrap();
        write(&mut caller, "garbage\n").await;
        assert_eq!(read_rest(&mut caller).await.0, "");
        let dialled = timeout(Duration::from_millis(50), rig.servers[0].app.accept()).await;
        assert!(dialled.is_err(), "plaintext reached the application");
    });
}

#[test]
fn plaintext_passes_where_it_is_permitted_without_an_identity() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        let declared = InboundPort { protocol: Protocol::Detect, mtls: MtlsMode::Permissive, limits: None };
        rig.servers[0].declare(declared);
        let mut caller = tokio::net::TcpStream::connect(rig.servers[0].mesh).await.unwrap();
        write(&mut caller, "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: By=me\r\n\r\n").await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(!head.contains("x-forwarded-client-cert"), "{head}");
        // The mesh still comes with its identity.
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut app = rig.app().await;
        let head = read_head(&mut app).await;
        assert!(head.contains("uri=spiffe://mesh.local/ns/shop/sa/web"), "{head}");
    });
}

#[test]
fn the_proxy_itself_is_no_destination() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let mut program = rig.dial_to(Target::Itself("10.0.0.5:15001".parse().unwrap()));
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 508") && head.contains("outrigger-reason: loop"), "{head}");
    });
}

#[test]
fn opaque_connections_find_an_endpoint_that_is_there() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        rig.backend.endpoints.push(crate::rig::endpoint("127.0.0.1:1".parse().unwrap(), "orders"));
        rig.set_timeouts(Timeouts::default());
        let count = Cell::new(0);
        for _ in 0..8 {
            let mut program = rig.dial();
            write(&mut program, "ping\n").await;
            let mut app = rig.app().await;
            read_until(&mut app, "ping\n").await;
            count.set(count.get() + 1);
        }
        assert_eq!(count.get(), 8);
    });
}

#[test]
fn outside_the_mesh_bytes_pass_as_they_are() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        let outside = rig.servers[0].app.local_addr().unwrap();
        rig.add_destination(outside, Destination::External);
        let mut program = rig.dial_to(Target::Original(outside));
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let head = read_head(&mut rig.app().await).await;
        assert_eq!(head, "get / http/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        rig.set_egress(EgressPolicy::RegisteredOnly);
        let mut program = rig.dial_to(Target::Original(outside));
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = read_head(&mut program).await;
        assert!(
            head.starts_with("http/1.1 403") && head.contains("outrigger-reason: egress-denied"),
            "{head}"
        );
    });
}

#[test]
fn a_destination_that_nobody_can_explain_is_not_dialled() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        rig.set_egress(EgressPolicy::Allow);
        let somewhere = rig.servers[0].app.local_addr().unwrap();
        let mut program = rig.dial_to(Target::Original(somewhere));
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = read_head(&mut program).await;
        assert!(head.starts_with("http/1.1 503") && head.contains("outrigger-reason: unresolved"), "{head}");
        let dialled = timeout(Duration::from_millis(50), rig.servers[0].app.accept()).await;
        assert!(dialled.is_err(), "dialled without knowing what it is");
        // What is known to be outside still is, with nobody to ask.
        rig.add_destination(somewhere, Destination::External);
        let mut program = rig.dial_to(Target::Original(somewhere));
        write(&mut program, "ping\n").await;
        read_until(&mut rig.app().await, "ping\n").await;
    });
}

#[test]
fn a_workload_may_call_itself() {
    run(|| async {
        let app = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let flags =
            format!("--no-capture --address 127.0.0.1 --serve 127.0.0.1:7443={}", app.local_addr().unwrap());
        let made = crate::context::testing::context(&flags);
        crate::rig::issue(&made.authority, &made.ctx, &identity("orders"));
        let mut rig = Rig::new(Protocol::Http, 0).await;
        rig.client = crate::worker::Worker::new(made.ctx, 0);
        rig.backend.endpoints.push(crate::rig::endpoint("127.0.0.1:7443".parse().unwrap(), "orders"));
        rig.configure();
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let (mut app, _) = timeout(PATIENCE, app.accept()).await.unwrap().unwrap();
        let head = read_head(&mut app).await;
        assert!(head.contains("uri=spiffe://mesh.local/ns/shop/sa/orders"), "{head}");
    });
}
