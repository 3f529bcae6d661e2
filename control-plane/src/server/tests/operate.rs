use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use super::rig::{DEADLINE, Rig, Stream};

#[tokio::test]
async fn a_broken_directory_at_the_start_serves_nothing_new_and_says_so() {
    let broken =
        "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {name: a}\nspec: {ports: []}\n";
    let rig = Rig::start(&[("a.yaml", broken)]).await;
    let (status, body) = rig.get("/readyz").await;
    assert_eq!(status, 503);
    assert!(body.contains("a.yaml:4:15: MeshService default/a: spec.ports: is empty"), "{body}");
    assert_eq!(rig.get("/healthz").await.0, 200);

    // Certificates and streams are served all the same.
    let web = rig.join("web").await;
    let mut stream = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    assert_eq!(stream.take().await.1, ["self", "trust"]);

    rig.write("a.yaml", &broken.replace("[]", "[{port: 80}]"));
    rig.wait_for("readiness", |report| report["ready"] == true).await;
    assert_eq!(rig.get("/readyz").await, (200, "ready\n".to_owned()));
}

#[tokio::test]
async fn the_status_port_only_shows() {
    let rig = Rig::start(&[]).await;
    rig.join("web").await;
    let report = rig.report().await;
    assert_eq!(report["ca"]["trust_domain"], "mesh.local");
    assert_eq!(report["ca"]["roots"].as_array().unwrap().len(), 1);
    assert_eq!(report["ca"]["roots"][0]["sha256"], report["ca"]["root_sha256"]);
    assert_eq!(
        report["ca"]["own_certificate"]["alternative_names"][0],
        "URI:spiffe://mesh.local/ns/outrigger/sa/control-plane"
    );
    assert!(!report.to_string().contains("PRIVATE"));
    let metrics = rig.get("/metrics").await.1;
    assert!(
        metrics.contains("outrigger_control_plane_certificates_signed_total{by=\"token\"} 1\n"),
        "{metrics}"
    );
    assert_eq!(rig.get("/else").await.0, 404);
    let mut socket = TcpStream::connect(rig.status).unwrap();
    socket
        .write_all(b"POST /status HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .unwrap();
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        socket.read_to_string(&mut answer).map(|_| answer)
    });
    assert!(answer.await.unwrap().unwrap().starts_with("HTTP/1.1 405"));
}

#[tokio::test]
async fn health_and_reflection_answer_without_a_certificate() {
    use tonic_health::pb::{
        HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
    };
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let rig = Rig::start(&[]).await;
    let channel = rig.connect_pinned().await.unwrap();
    for service in ["", "outrigger.v1.Mesh", "outrigger.v1.Identity"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("a list of services")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"outrigger.v1.Mesh") && names.contains(&"outrigger.v1.Identity"), "{names:?}");
}

/// Reads until the other side closes.
fn closed_after(mut socket: TcpStream) -> Duration {
    let start = Instant::now();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut sink = [0; 1024];
    loop {
        match socket.read(&mut sink) {
            Ok(0) | Err(_) => return start.elapsed(),
            Ok(_) => {}
        }
    }
}

#[tokio::test]
async fn half_a_handshake_and_garbage_are_shown_out_and_disturb_nobody() {
    let rig = Rig::start(&[]).await;
    let silent = TcpStream::connect(rig.grpc).unwrap();
    let mut garbage = TcpStream::connect(rig.grpc).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let silent = tokio::task::spawn_blocking(move || closed_after(silent));
    let garbage = tokio::task::spawn_blocking(move || closed_after(garbage));
    rig.join("web").await;
    assert!(garbage.await.unwrap() < DEADLINE);
    assert!(silent.await.unwrap() < DEADLINE, "a silent caller is held for ever");
    let metrics = rig.get("/metrics").await.1;
    assert!(metrics.contains("outrigger_control_plane_handshakes_failed_total 2\n"), "{metrics}");
}

#[tokio::test]
async fn a_second_control_plane_on_the_same_port_says_which_flag_to_change() {
    let rig = Rig::start(&[]).await;
    let told = crate::status::listen("listen", rig.grpc).await.unwrap_err().to_string();
    assert_eq!(told, format!("--listen: {} is in use; is another control plane running?", rig.grpc));
}
