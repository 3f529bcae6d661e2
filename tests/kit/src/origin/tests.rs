use std::net::Ipv4Addr;

use hyper::client::conn;

use super::*;

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Asks over HTTP/1.1 or HTTP/2; the answer with its body and trailers.
fn ask(
    origin: &Origin,
    http2: bool,
    path: &str,
    body: &'static str,
) -> (http::response::Parts, Bytes, Option<HeaderMap>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let io = TokioIo::new(TcpStream::connect(origin.address()).await.unwrap());
        let request = http::Request::post(format!("http://orders.shop{path}"))
            .header("te", "trailers")
            .header("x-test", "yes")
            .body(Full::new(Bytes::from_static(body.as_bytes())))
            .unwrap();
        let answer = if http2 {
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        } else {
            let (mut sender, connection) = conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            sender.send_request(request).await.unwrap()
        };
        let (head, body) = answer.into_parts();
        let body = body.collect().await.unwrap();
        let trailers = body.trailers().cloned();
        (head, body.to_bytes(), trailers)
    })
}

#[test]
fn both_versions_are_served_on_one_port_and_told_apart() {
    let origin = Origin::start(ANY).unwrap();
    for (http2, version) in [(false, Version::HTTP_11), (true, Version::HTTP_2)] {
        let (head, body, _) = ask(&origin, http2, "/what?ever", "hello");
        assert_eq!((head.status, head.version), (StatusCode::OK, version));
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["path"], "/what?ever");
        assert_eq!(json["body_bytes"], 5);
        let kept = origin.kept().pop().unwrap();
        assert_eq!((kept.method.as_str(), kept.version, kept.body_bytes), ("POST", version, 5));
        assert_eq!(kept.header("x-test"), Some("yes"));
        assert_eq!(kept.header("x-other"), None);
    }
    assert_eq!((origin.connections(), origin.requests(), origin.body_bytes()), (2, 2, 10));
}

#[test]
fn answers_are_as_asked_for() {
    let origin = Origin::start(ANY).unwrap();
    for http2 in [false, true] {
        assert_eq!(ask(&origin, http2, "/status/418", "").0.status, StatusCode::IM_A_TEAPOT);
        assert_eq!(ask(&origin, http2, "/status/7", "").0.status, StatusCode::BAD_REQUEST);
        assert_eq!(ask(&origin, http2, "/echo", "as it comes").1, "as it comes");
        let (head, body, _) = ask(&origin, http2, "/bytes/100000", "");
        assert_eq!(head.headers[header::CONTENT_LENGTH], "100000");
        assert!(body.len() == 100_000 && (0..).zip(&body).all(|(at, byte)| *byte == body_byte(at)));
        let (_, body, trailers) = ask(&origin, http2, "/trailers", "");
        assert_eq!(
            (&body[..], &trailers.unwrap()["x-end"]),
            (&b"body"[..], &HeaderValue::from_static("yes"))
        );
        let begin = std::time::Instant::now();
        ask(&origin, http2, "/delay/100", "");
        assert!(begin.elapsed() >= Duration::from_millis(100));
    }
    assert_eq!(origin.requests(), 12);
}
