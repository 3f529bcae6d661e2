use std::{num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::TokioIo;
use outrigger_proto::spec::{CheckKind, HealthCheck, InboundPort, PortLimits, StatusRange, Traffic};
use tokio::{io::AsyncWriteExt as _, net::TcpListener, task, time::timeout};

use super::*;
use crate::{
    http::Tasks,
    rig::{PATIENCE, Rig, read_head, run},
};

fn probe(rig: &Rig, kind: CheckKind) -> Probe {
    Probe { worker: Rc::clone(&rig.client), kind, http2: false, host: "orders.shop".to_owned() }
}

fn http(expected: Vec<StatusRange>) -> CheckKind {
    CheckKind::Http { path: "/healthz".into(), expected }
}

/// An application that answers every request with this.
fn application(listener: TcpListener, answer: &'static str) {
    task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            task::spawn_local(async move {
                let head = read_head(&mut stream).await;
                assert!(head.starts_with("get /healthz http/1.1\r\n"), "{head}");
                assert!(head.contains("user-agent: outrigger-health-check/"), "{head}");
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
        }
    });
}

#[test]
fn a_status_is_judged_by_what_is_expected() {
    run(|| async {
        for (answer, expected, good) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", vec![], true),
            ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", vec![], false),
            ("HTTP/1.1 418 Tea\r\ncontent-length: 0\r\n\r\n", vec![StatusRange::new(400, 420)], true),
            ("garbage\r\n\r\n", vec![], false),
        ] {
            let rig = Rig::new(Protocol::Http, 1).await;
            application(rig.servers[0].listener(), answer);
            let endpoint = rig.backend.endpoints[0].clone();
            let result = probe(&rig, http(expected)).run(&endpoint, PATIENCE).await;
            assert_eq!(result == Result::Good, good, "{answer}: {result:?}");
            assert!(!matches!(result, Result::Nothing(_)));
        }
    });
}

#[test]
fn no_answer_in_time_is_a_bad_one() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        let endpoint = rig.backend.endpoints[0].clone();
        let result = probe(&rig, http(vec![])).run(&endpoint, Duration::from_millis(200)).await;
        assert_eq!(result, Result::Bad("no answer in 200ms".to_owned()));
    });
}

#[test]
fn a_tcp_check_reaches_through_to_the_application() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Tcp, 1).await;
        let endpoint = rig.backend.endpoints[0].clone();
        let check = async |rig: &Rig| probe(rig, CheckKind::Tcp).run(&endpoint, Duration::from_secs(1)).await;
        let listener = rig.servers[0].listener();
        let holding = task::spawn_local(async move {
            let accepted = listener.accept().await;
            std::future::pending::<()>().await;
            drop(accepted);
        });
        assert_eq!(check(&rig).await, Result::Good);
        holding.abort();
        assert!(holding.await.is_err());
        // Its proxy still accepts, its application does not.
        rig.servers[0].app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let result = check(&rig).await;
        assert!(matches!(result, Result::Bad(_)), "{result:?}");
    });
}

#[test]
fn all_workers_hear_of_what_the_checks_find() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        application(rig.servers[0].listener(), "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
        let policy = HealthCheck {
            kind: http(vec![]),
            interval: Duration::from_millis(20),
            timeout: Duration::from_millis(20).max(PATIENCE),
            unhealthy_after: NonZeroU32::new(2).unwrap(),
            fleet_per_second: NonZeroU32::new(1000).unwrap(),
            ..HealthCheck::default()
        };
        rig.backend.traffic = Arc::new(Traffic { health_check: Some(policy), ..Traffic::default() });
        rig.configure();
        let bulletin = &rig.client.ctx.bulletin;
        let mut heard = bulletin.listen();
        task::spawn_local(super::run(Rc::clone(&rig.client)));
        task::yield_now().await;
        let key: BackendKey = "shop/orders:80".parse().unwrap();
        bulletin.set_calling(0, vec![key.clone()]);
        let endpoint = rig.backend.endpoints[0].address;
        for healthy in [true, false, false] {
            let Heard::Checked(checked) = timeout(PATIENCE, heard.recv()).await.unwrap().unwrap() else {
                panic!("nobody else tells anything")
            };
            assert_eq!(checked, Checked { backend: key.clone(), endpoint, good: false, healthy });
        }
        assert_eq!(bulletin.unhealthy(&key), [endpoint]);
        // Without a policy nobody would ever say that it is well again.
        rig.backend.traffic = Arc::default();
        rig.configure();
        let let_go = async {
            loop {
                if let Ok(Heard::Checked(checked)) = heard.recv().await
                    && checked.healthy
                {
                    return;
                }
            }
        };
        timeout(PATIENCE, let_go).await.expect("it stays unhealthy for ever");
        let bulletin = &rig.client.ctx.bulletin;
        assert!(bulletin.unhealthy(&key).is_empty());
        // And it is checked no more.
        while timeout(Duration::from_millis(500), heard.recv()).await.is_ok() {}
    });
}

#[test]
fn what_the_policy_of_the_other_side_refuses_is_no_result() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        let limits = PortLimits {
            rate_limits: vec![crate::path::rate_limit::testing::limit("S/shop/orders/none", 1, vec![])],
            ..PortLimits::default()
        };
        rig.servers[0].declare(InboundPort { limits: Some(Arc::new(limits)), ..InboundPort::default() });
        application(rig.servers[0].listener(), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        let endpoint = rig.backend.endpoints[0].clone();
        assert_eq!(probe(&rig, http(vec![])).run(&endpoint, PATIENCE).await, Result::Good);
        let result = probe(&rig, http(vec![])).run(&endpoint, PATIENCE).await;
        assert!(matches!(result, Result::Nothing(_)), "{result:?}");
    });
}

/// Speaks `grpc.health.v1` with this serving status.
fn grpc_application(listener: TcpListener, status: u8) {
    task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = service_fn(move |request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                let asked = request.into_body().collect().await?.to_bytes();
                assert_eq!(&asked[..], b"\0\0\0\0\x08\x0a\x06orders");
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
                let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, status]);
                let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
                Ok::<_, hyper::Error>(
                    Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                )
            });
            task::spawn_local(http2::Builder::new(Tasks).serve_connection(TokioIo::new(stream), answer));
        }
    });
}

#[test]
fn a_grpc_server_says_itself_how_it_is() {
    run(|| async {
        for (status, good) in [(1, true), (2, false)] {
            let rig = Rig::new(Protocol::Grpc, 1).await;
            grpc_application(rig.servers[0].listener(), status);
            let endpoint = rig.backend.endpoints[0].clone();
            let kind = CheckKind::Grpc { service: "orders".into() };
            let result = probe(&rig, kind).run(&endpoint, PATIENCE).await;
            let expected = if good { Result::Good } else { Result::Bad("serving status 2".to_owned()) };
            assert_eq!(result, expected);
        }
    });
}
