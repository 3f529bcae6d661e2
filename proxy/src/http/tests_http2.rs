//! HTTP/2 through two proxies, with h2 itself at both ends.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, client, server};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use outrigger_proto::spec::{Protocol, Timeouts};
use tokio::{net::TcpStream, task, time::timeout};

use crate::{
    drain::Phase,
    rig::{PATIENCE, Rig, endpoint, run},
};

async fn connect(rig: &Rig) -> client::SendRequest<Bytes> {
    let (sender, driver) = client::handshake(rig.dial()).await.unwrap();
    task::spawn_local(async move {
        let _ = driver.await;
    });
    timeout(PATIENCE, sender.ready()).await.unwrap().unwrap()
}

fn get(path: &str) -> Request<()> {
    Request::get(format!("http://orders.shop{path}")).body(()).unwrap()
}

async fn body(mut stream: RecvStream) -> (Vec<u8>, Option<HeaderMap>) {
    let mut all = Vec::new();
    while let Some(chunk) = timeout(PATIENCE, stream.data()).await.expect("no more data") {
        let chunk = chunk.unwrap();
        stream.flow_control().release_capacity(chunk.len()).unwrap();
        all.extend_from_slice(&chunk);
    }
    (all, stream.trailers().await.unwrap())
}

/// An application that echoes bodies and adds a trailer, on every connection of the first server.
fn echo(rig: &Rig) -> Rc<Cell<u32>> {
    let connections = Rc::new(Cell::new(0));
    let counted = Rc::clone(&connections);
    let app = rig.servers[0].listener();
    task::spawn_local(async move {
        while let Ok((stream, _)) = app.accept().await {
            counted.set(counted.get() + 1);
            task::spawn_local(serve(stream));
        }
    });
    connections
}

async fn serve(stream: TcpStream) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        task::spawn_local(async move {
            let named = request.headers().contains_key("x-forwarded-client-cert");
            let response = Response::builder().header("named", named.to_string()).body(()).unwrap();
            let mut incoming = request.into_body();
            let mut answer = respond.send_response(response, false).unwrap();
            while let Some(Ok(chunk)) = incoming.data().await {
                incoming.flow_control().release_capacity(chunk.len()).unwrap();
                answer.send_data(chunk, false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let _ = answer.send_trailers(trailers);
        });
    }
}

#[test]
fn streams_both_ways_with_trailers() {
    run(|| async {
        let rig = Rig::new(Protocol::Grpc, 1).await;
        let connections = echo(&rig);
        let mut client = connect(&rig).await;
        let mut answers = Vec::new();
        for n in 0..20_u8 {
            let request = Request::post("http://orders.shop/Echo").header("te", "trailers").body(()).unwrap();
            let (answer, mut upload) = client.send_request(request, false).unwrap();
            upload.send_data(Bytes::from(vec![n; 100]), false).unwrap();
            answers.push((n, answer, upload));
            client = client.ready().await.unwrap();
        }
        for (n, answer, mut upload) in answers {
            // The head comes while the request is still open, as streaming calls need it.
            let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(answer.headers()["named"], "true");
            upload.send_data(Bytes::from(vec![n; 50]), true).unwrap();
            let (echoed, trailers) = body(answer.into_body()).await;
            assert_eq!(echoed, vec![n; 150]);
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
        assert_eq!(connections.get(), 1, "streams share a connection");
    });
}

#[test]
fn a_grpc_caller_is_refused_in_its_own_words() {
    run(|| async {
        let rig = Rig::new(Protocol::Grpc, 0).await;
        let mut client = connect(&rig).await;
        let request = Request::post("http://orders.shop/Echo")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (answer, _) = client.send_request(request, true).unwrap();
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["grpc-status"], "14");
        assert_eq!(answer.headers()["outrigger-reason"], "no-endpoints");
        assert!(answer.body().is_end_stream(), "trailers only");
    });
}

#[test]
fn goaway_in_the_middle_of_work_loses_nothing() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        // An application that sends GOAWAY after every tenth request.
        let app = rig.servers[0].listener();
        task::spawn_local(async move {
            while let Ok((stream, _)) = app.accept().await {
                task::spawn_local(async move {
                    let mut connection = server::handshake(stream).await.unwrap();
                    let mut served = 0;
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(Response::new(()), true).unwrap();
                        served += 1;
                        if served == 10 {
                            connection.graceful_shutdown();
                        }
                    }
                });
            }
        });
        let client = connect(&rig).await;
        let failed = Rc::new(Cell::new(0));
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let (mut client, failed) = (client.clone(), Rc::clone(&failed));
            tasks.push(task::spawn_local(async move {
                for _ in 0..50 {
                    client = client.ready().await.unwrap();
                    let (answer, _) = client.send_request(get("/"), true).unwrap();
                    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
                    if answer.status() != 200 {
                        println!("{answer:?}");
                        failed.set(failed.get() + 1);
                    }
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(failed.get(), 0);
    });
}

#[test]
fn a_cancelled_stream_is_cancelled_at_the_application_and_hurts_nobody() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let mut client = connect(&rig).await;
        let (first, _) = client.send_request(get("/slow"), true).unwrap();
        let mut app = server::handshake(rig.app().await).await.unwrap();
        let (_, mut slow) = timeout(PATIENCE, app.accept()).await.unwrap().unwrap().unwrap();
        let accepting = task::spawn_local(async move {
            let (_, mut respond) = app.accept().await.unwrap().unwrap();
            respond.send_response(Response::new(()), true).unwrap();
            let _ = app.accept().await;
        });
        drop(first);
        let reason = timeout(PATIENCE, std::future::poll_fn(|cx| slow.poll_reset(cx))).await;
        assert_eq!(reason.expect("the application is not told").unwrap(), Reason::CANCEL);
        let (second, _) = client.send_request(get("/fast"), true).unwrap();
        assert_eq!(timeout(PATIENCE, second).await.unwrap().unwrap().status(), 200);
        accepting.abort();
    });
}

#[test]
fn a_reset_in_the_middle_of_an_answer_is_passed_on() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let mut client = connect(&rig).await;
        let (answer, _) = client.send_request(get("/"), true).unwrap();
        let app = rig.app().await;
        task::spawn_local(async move {
            let mut app = server::handshake(app).await.unwrap();
            let (_, mut respond) = app.accept().await.unwrap().unwrap();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"half"), false).unwrap();
            task::spawn_local(async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.send_reset(Reason::INTERNAL_ERROR);
            });
            let _ = app.accept().await;
        });
        let mut stream = timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
        let mut cut = None;
        while let Some(chunk) = timeout(PATIENCE, stream.data()).await.unwrap() {
            if let Err(error) = chunk {
                cut = error.reason();
                break;
            }
        }
        assert_eq!(cut, Some(Reason::INTERNAL_ERROR));
    });
}

#[test]
fn a_drain_finishes_what_is_in_flight() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let local = rig.client.drain.clone();
        let drain = rig.client.ctx.drain.clone();
        let following = drain.clone();
        task::spawn_local(async move { local.follow(&following).await });
        let (sender, driver) = client::handshake::<_>(rig.dial()).await.unwrap();
        let driver = task::spawn_local(driver);
        let mut client = sender.ready().await.unwrap();
        let (answer, _) = client.send_request(get("/"), true).unwrap();
        let mut app = server::handshake(rig.app().await).await.unwrap();
        let (_, mut respond) = timeout(PATIENCE, app.accept()).await.unwrap().unwrap().unwrap();
        task::spawn_local(async move { while app.accept().await.is_some() {} });
        drain.advance(Phase::Outbound);
        tokio::time::sleep(Duration::from_millis(50)).await;
        respond.send_response(Response::new(()), true).unwrap();
        assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
        drop(client);
        // And then the connection ends in good order.
        timeout(PATIENCE, driver).await.expect("the connection stays").unwrap().unwrap();
    });
}

#[test]
fn requests_not_yet_sent_go_elsewhere() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http2, 1).await;
        let connections = echo(&rig);
        for port in 1..4 {
            rig.backend.endpoints.push(endpoint(format!("127.0.0.1:{port}").parse().unwrap(), "orders"));
        }
        rig.set_timeouts(Timeouts::default());
        let mut client = connect(&rig).await;
        for _ in 0..20 {
            client = client.ready().await.unwrap();
            let request =
                Request::builder().method(Method::POST).uri("http://orders.shop/").body(()).unwrap();
            let (answer, mut upload) = client.send_request(request, false).unwrap();
            upload.send_data(Bytes::from_static(b"x"), true).unwrap();
            let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
            assert_eq!(answer.status(), 200, "{answer:?}");
            assert_eq!(body(answer.into_body()).await.0, b"x");
        }
        assert_eq!(connections.get(), 1);
    });
}

#[test]
fn a_flood_of_resets_ends_at_the_first_proxy() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let _connections = echo(&rig);
        let (sender, driver) = client::handshake::<_>(rig.dial()).await.unwrap();
        let driver = task::spawn_local(driver);
        let mut client = sender;
        for _ in 0..2000 {
            let Ok(ready) = client.ready().await else { break };
            client = ready;
            let Ok((answer, _)) = client.send_request(get("/"), false) else { break };
            task::yield_now().await;
            drop(answer);
        }
        let ended = timeout(PATIENCE, driver).await;
        assert!(ended.is_ok(), "the abusive connection lives on");
        // Others are served.
        let mut other = connect(&rig).await;
        let (answer, _) = other.send_request(get("/"), true).unwrap();
        assert_eq!(timeout(PATIENCE, answer).await.unwrap().unwrap().status(), 200);
    });
}

#[test]
fn large_answers_wait_for_a_slow_reader() {
    run(|| async {
        const SIZE: usize = 4 << 20;
        let rig = Rig::new(Protocol::Http2, 1).await;
        let sent = Rc::new(Cell::new(0_usize));
        let mut client = connect(&rig).await;
        let (answer, _) = client.send_request(get("/"), true).unwrap();
        let app = rig.app().await;
        let counted = Rc::clone(&sent);
        task::spawn_local(async move {
            let mut app = server::handshake(app).await.unwrap();
            let (_, mut respond) = app.accept().await.unwrap().unwrap();
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            task::spawn_local(async move {
                let mut left = SIZE;
                while left > 0 {
                    stream.reserve_capacity(left.min(16 << 10));
                    let Some(Ok(n)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else {
                        return;
                    };
                    let n = n.min(left);
                    stream.send_data(Bytes::from(vec![7; n]), left == n).unwrap();
                    left -= n;
                    counted.set(counted.get() + n);
                }
            });
            let _ = app.accept().await;
        });
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(sent.get() < 1 << 20, "{} bytes are buffered for a caller that reads none", sent.get());
        assert_eq!(body(answer.into_body()).await.0.len(), SIZE);
    });
}

#[test]
fn a_websocket_over_http2_passes() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let mut client = connect(&rig).await;
        // Settings have come with the first answer at the latest; the application answers the second stream.
        let app = rig.servers[0].listener();
        task::spawn_local(async move {
            let (stream, _) = app.accept().await.unwrap();
            let mut app = server::Builder::new().enable_connect_protocol().handshake(stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = app.accept().await {
                let websocket = request.extensions().get::<h2::ext::Protocol>().is_some();
                task::spawn_local(async move {
                    let mut stream = respond.send_response(Response::new(()), !websocket).unwrap();
                    let mut incoming = request.into_body();
                    while let Some(Ok(chunk)) = incoming.data().await {
                        incoming.flow_control().release_capacity(chunk.len()).unwrap();
                        stream.send_data(chunk, false).unwrap();
                    }
                    if websocket {
                        stream.send_data(Bytes::new(), true).unwrap();
                    }
                });
            }
        });
        let (warm, _) = client.send_request(get("/"), true).unwrap();
        assert_eq!(timeout(PATIENCE, warm).await.unwrap().unwrap().status(), 200);
        assert!(client.is_extended_connect_protocol_enabled());
        let mut ask =
            Request::builder().method(Method::CONNECT).uri("http://orders.shop/ws").body(()).unwrap();
        ask.extensions_mut().insert(h2::ext::Protocol::from_static("websocket"));
        let (answer, mut upload) = client.send_request(ask, false).unwrap();
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200, "{answer:?}");
        upload.send_data(Bytes::from_static(b"frame"), false).unwrap();
        let mut incoming = answer.into_body();
        let echoed = timeout(PATIENCE, incoming.data()).await.unwrap().unwrap().unwrap();
        assert_eq!(&echoed[..], b"frame");
        upload.send_data(Bytes::new(), true).unwrap();
        assert_eq!(body(incoming).await.0, b"");
    });
}

#[test]
fn a_plain_connect_is_refused() {
    run(|| async {
        let rig = Rig::new(Protocol::Http2, 1).await;
        let mut client = connect(&rig).await;
        let ask = Request::builder().method(Method::CONNECT).uri("db.shop:5432").body(()).unwrap();
        let (answer, _) = client.send_request(ask, false).unwrap();
        let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 501);
        assert_eq!(answer.headers()["outrigger-reason"], "unsupported");
    });
}
