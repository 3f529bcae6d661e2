//! Upstreams that misbehave at each stage: the right reason for the caller, the endpoint's failure, never the proxy's.

use std::{num::NonZeroU32, rc::Rc, time::Duration};

use outrigger_certs::alpn;
use outrigger_proto::spec::{Ejection, OutlierEjection, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task,
};

use crate::rig::{Rig, Rogue, read_rest, run, write};

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
                traffic.timeouts.request = Some(Duration::from_millis(300));
                traffic.timeouts.stream_idle = Some(Duration::from_millis(100));
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
