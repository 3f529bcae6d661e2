//! Upstreams that misbehave at each stage: the right reason for the caller, the endpoint's failure, never the proxy's.

use std::{num::NonZeroU32, rc::Rc, time::Duration};

use http::{Request, Response};
use outrigger_certs::alpn;
use outrigger_proto::spec::{Ejection, OutlierEjection, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task,
    time::timeout,
};

use crate::rig::{PATIENCE, Rig, Rogue, read_rest, run, write};

const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx";

/// What a rogue does when it has read the request.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    Reset,
    Stay,
}

fn reset(rogue: Rogue) {
    let (stream, _) = rogue.into_inner();
    let socket = socket2::SockRef::from(&stream);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

async fn play(mut rogue: Rogue, text: Rc<str>, repeat: usize, then: Then) {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nx") {
        let Ok(byte) = rogue.read_u8().await else { return };
        seen.push(byte);
    }
    for _ in 0..repeat {
        if rogue.write_all(text.as_bytes()).await.is_err() {
            return;
        }
    }
    let _ = rogue.flush().await;
    match then {
        Then::Close => drop(rogue.shutdown().await),
        Then::Reset => reset(rogue),
        Then::Stay => drop(rogue.read_u8().await),
    }
}

#[test]
fn whatever_an_endpoint_does_it_is_the_endpoints_failure() {
    run(|| async {
        let endless = "X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
        let head = "HTTP/1.1 200 OK\r\n";
        for (text, repeat, then, status, reason, what) in [
            // Instead of an answer.
            ("", 1, Then::Close, 502, "upstream-reset", "reset"),
            ("", 1, Then::Reset, 502, "upstream-reset", "reset"),
            ("", 1, Then::Stay, 504, "request-timeout", "timeout"),
            // In its head.
            ("HTTP/1.1 20", 1, Then::Close, 502, "upstream-reset", "reset"),
            ("HTTP/1.1 20", 1, Then::Reset, 502, "upstream-reset", "reset"),
            ("HTTP/1.1 20", 1, Then::Stay, 504, "request-timeout", "timeout"),
            ("\u{1}\u{2}\u{3} nonsense\r\n\r\n", 1, Then::Close, 502, "upstream-protocol", "invalid"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
                1,
                Then::Close,
                502,
                "upstream-protocol",
                "invalid",
            ),
            (head, 1, Then::Stay, 504, "request-timeout", "timeout"),
            (endless, 4096, Then::Stay, 502, "upstream-protocol", "invalid"),
            // In its body.
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 1, Then::Close, 200, "", "reset"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 1, Then::Reset, 200, "", "reset"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", 1, Then::Stay, 200, "", "timeout"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
                1,
                Then::Close,
                200,
                "",
                "reset",
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
                1,
                Then::Stay,
                502,
                "upstream-protocol",
                "invalid",
            ),
        ] {
            let case = format!("{text:?} {repeat} {status}");
            let mut rig = Rig::new(Protocol::Http, 0).await;
            rig.set_traffic(|traffic| {
                traffic.retries.attempts = 0;
                traffic.timeouts.request = Some(Duration::from_millis(200));
                traffic.timeouts.stream_idle = Some(Duration::from_millis(250));
                traffic.outlier_ejection = Ejection(Some(OutlierEjection {
                    consecutive_failures: NonZeroU32::new(1),
                    min_ready: 0,
                    max_ejected_percent: 100,
                    ..OutlierEjection::default()
                }));
            });
            let said: Rc<str> = if text == endless { format!("{head}{endless}").into() } else { text.into() };
            let rogue = rig
                .add_rogue(alpn::H1, move |stream| {
                    task::spawn_local(play(stream, Rc::clone(&said), repeat, then));
                })
                .await;
            let mut program = rig.dial();
            write(&mut program, POST).await;
            let (answer, _) = read_rest(&mut program).await;
            let answer = answer.to_ascii_lowercase();
            assert!(answer.starts_with(&format!("http/1.1 {status} ")), "{case}: {answer}");
            if status == 200 {
                let whole = answer.ends_with("0\r\n\r\n") || answer.ends_with("abc1234567");
                assert!(!whole, "{case}: {answer}");
            } else {
                assert!(answer.contains(&format!("outrigger-reason: {reason}\r\n")), "{case}: {answer}");
            }
            let told = rig.transitions();
            assert_eq!(told.len(), 1, "{case}: {told:?}");
            assert_eq!((told[0].endpoint, &*told[0].evidence[0].what), (rogue, what), "{case}");
        }
    });
}

/// What a rogue does that speaks HTTP/2.
#[derive(Clone, Copy, Debug)]
enum Http2 {
    Garbage,
    Close,
    NoSettings,
    Reset,
    GoAway,
    Stay,
    BreakOff,
}

async fn play_http2(mut rogue: Rogue, does: Http2) {
    match does {
        Http2::Garbage => {
            let _ = rogue.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = rogue.flush().await;
        }
        Http2::Close => return,
        Http2::NoSettings => {}
        Http2::Reset | Http2::GoAway | Http2::Stay | Http2::BreakOff => {
            let Ok(mut connection) = h2::server::handshake(rogue).await else { return };
            while let Some(Ok((_request, mut respond))) = connection.accept().await {
                match does {
                    Http2::Reset => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    Http2::GoAway => connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM),
                    Http2::BreakOff => {
                        let mut body = respond.send_response(Response::new(()), false).unwrap();
                        body.send_data("abc".into(), false).unwrap();
                        task::spawn_local(async move {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            body.send_reset(h2::Reason::INTERNAL_ERROR);
                        });
                    }
                    Http2::Stay | Http2::Garbage | Http2::Close | Http2::NoSettings => {
                        task::spawn_local(async move {
                            let _kept = respond;
                            std::future::pending::<()>().await;
                        });
                    }
                }
            }
            return;
        }
    }
    let mut sink = [0; 1024];
    while rogue.read(&mut sink).await.is_ok_and(|n| n > 0) {}
}

#[test]
fn the_same_over_http2() {
    run(|| async {
        for (does, status, reasons, what) in [
            (Http2::Garbage, 502, &["upstream-reset", "upstream-protocol"][..], &["reset", "invalid"][..]),
            (Http2::Close, 503, &["connect-failed", "upstream-reset"], &["connect-failed", "reset"]),
            (Http2::NoSettings, 504, &["request-timeout"], &["timeout"]),
            (Http2::Reset, 502, &["upstream-reset"], &["reset"]),
            (Http2::GoAway, 502, &["upstream-reset"], &["reset"]),
            (Http2::Stay, 504, &["request-timeout"], &["timeout"]),
            (Http2::BreakOff, 200, &[], &["reset"]),
        ] {
            let mut rig = Rig::new(Protocol::Http2, 0).await;
            rig.set_traffic(|traffic| {
                traffic.retries.attempts = 0;
                traffic.timeouts.request = Some(Duration::from_millis(300));
                traffic.outlier_ejection = Ejection(Some(OutlierEjection {
                    consecutive_failures: NonZeroU32::new(1),
                    consecutive_connect_failures: NonZeroU32::new(1),
                    min_ready: 0,
                    max_ejected_percent: 100,
                    ..OutlierEjection::default()
                }));
            });
            rig.add_rogue(alpn::H2, move |stream| drop(task::spawn_local(play_http2(stream, does)))).await;
            let (sender, driver) = h2::client::handshake(rig.dial()).await.unwrap();
            task::spawn_local(async move { drop(driver.await) });
            let mut sender = sender.ready().await.unwrap();
            let request = Request::post("http://orders.shop/").body(()).unwrap();
            let (answer, mut upload) = sender.send_request(request, false).unwrap();
            let _ = upload.send_data("x".into(), true);
            let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
            let reason = answer.headers().get("outrigger-reason").map(|reason| reason.to_str().unwrap());
            assert_eq!(answer.status().is_success(), status == 200, "{does:?}: {answer:?}");
            match reason {
                Some(reason) => assert!(reasons.contains(&reason), "{does:?}: {reason}"),
                None => {
                    let mut body = answer.into_body();
                    assert_eq!(body.data().await.unwrap().unwrap(), "abc");
                    let end = timeout(PATIENCE, body.data()).await.unwrap();
                    assert!(matches!(end, Some(Err(_))), "{does:?}: the cut is hidden");
                }
            }
            let told = rig.transitions();
            assert_eq!(told.len(), 1, "{does:?}: {told:?}");
            assert!(what.contains(&&*told[0].evidence[0].what), "{does:?}: {told:?}");
        }
    });
}
