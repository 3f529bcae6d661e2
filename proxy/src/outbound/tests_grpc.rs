//! Resilience on the way out for gRPC, whose outcome stands in trailers.

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use h2::{client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use outrigger_proto::spec::{Ejection, OutlierEjection, Protocol};
use tokio::{net::TcpStream, task, time::timeout};

use crate::rig::{PATIENCE, Rig, Server, run};

/// Answers every call with this status: in trailers behind a message, or trailers only.
fn serve(app: &Server, status: &'static str, trailers_only: bool) -> Rc<Cell<u32>> {
    let count: Rc<Cell<u32>> = Rc::default();
    let (counting, listener) = (Rc::clone(&count), app.listener());
    task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            task::spawn_local(answer(stream, Rc::clone(&counting), status, trailers_only));
        }
    });
    count
}

async fn answer(stream: TcpStream, count: Rc<Cell<u32>>, status: &'static str, trailers_only: bool) {
    let Ok(mut connection) = server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let count = Rc::clone(&count);
        task::spawn_local(async move {
            let mut body = request.into_body();
            let mut message = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                body.flow_control().release_capacity(chunk.len()).unwrap();
                message.extend_from_slice(&chunk);
            }
            count.set(count.get() + 1);
            let response = Response::builder().header("content-type", "application/grpc");
            if trailers_only {
                let response = response.header("grpc-status", status).body(()).unwrap();
                respond.send_response(response, true).unwrap();
                return;
            }
            let mut answer = respond.send_response(response.body(()).unwrap(), false).unwrap();
            answer.send_data(message.into(), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(status));
            let _ = answer.send_trailers(trailers);
        });
    }
}

/// The message that comes back, and the call's status.
async fn call(rig: &Rig, timeout_field: Option<&str>) -> (Vec<u8>, String) {
    let (sender, driver) = client::handshake(rig.dial()).await.unwrap();
    task::spawn_local(async move { drop(driver.await) });
    let mut sender = timeout(PATIENCE, sender.ready()).await.unwrap().unwrap();
    let mut request = Request::post("http://orders.shop/Echo").header("content-type", "application/grpc");
    if let Some(field) = timeout_field {
        request = request.header("grpc-timeout", field);
    }
    let (answer, mut upload) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    // Refused before it is sent, maybe.
    let _ = upload.send_data(Bytes::from_static(b"message"), true);
    let answer = timeout(PATIENCE, answer).await.unwrap().unwrap();
    let status = answer.headers().get("grpc-status").cloned();
    let mut body = answer.into_body();
    let mut message = Vec::new();
    while let Some(chunk) = timeout(PATIENCE, body.data()).await.unwrap() {
        message.extend_from_slice(&chunk.unwrap());
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    let status = status.or_else(|| trailers.get("grpc-status").cloned()).unwrap();
    (message, status.to_str().unwrap().to_owned())
}

fn touchy() -> Ejection {
    Ejection(Some(OutlierEjection {
        consecutive_failures: std::num::NonZeroU32::new(1),
        min_ready: 0,
        max_ejected_percent: 100,
        ..OutlierEjection::default()
    }))
}

#[test]
fn a_call_is_judged_by_its_trailers() {
    run(|| async {
        for (status, judged) in [("14", true), ("5", false), ("0", false)] {
            let mut rig = Rig::new(Protocol::Grpc, 1).await;
            rig.set_traffic(|traffic| traffic.outlier_ejection = touchy());
            serve(&rig.servers[0], status, false);
            assert_eq!(call(&rig, None).await, (b"message".to_vec(), status.to_owned()));
            tokio::time::sleep(Duration::from_millis(20)).await;
            let told = rig.transitions();
            assert_eq!(told.len(), usize::from(judged), "{status}: {told:?}");
            if judged {
                assert_eq!(&*told[0].evidence[0].what, "grpc 14");
            }
        }
    });
}

#[test]
fn a_call_goes_elsewhere_with_its_message_where_policy_says_so() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Grpc, 2).await;
        rig.set_traffic(|traffic| traffic.retries.unsafe_methods = true);
        let bad = serve(&rig.servers[0], "14", true);
        serve(&rig.servers[1], "0", false);
        while bad.get() == 0 {
            assert_eq!(call(&rig, None).await, (b"message".to_vec(), "0".to_owned()));
        }
        rig.set_traffic(|traffic| traffic.retries.unsafe_methods = false);
        rig.backend.endpoints.retain(|endpoint| endpoint.address == rig.servers[0].mesh);
        rig.configure();
        let before = bad.get();
        assert_eq!(call(&rig, None).await.1, "14");
        assert_eq!(bad.get(), before + 1);
    });
}

#[test]
fn a_call_whose_time_is_over_is_refused_at_once() {
    run(|| async {
        let rig = Rig::new(Protocol::Grpc, 1).await;
        let count = serve(&rig.servers[0], "0", false);
        assert_eq!(call(&rig, Some("100n")).await.1, "4");
        assert_eq!(count.get(), 0, "expired work reached the application");
        assert_eq!(call(&rig, Some("10S")).await.1, "0");
    });
}
