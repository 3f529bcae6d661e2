//! Spans and metrics on their way to backends of all kinds: what arrives, what is dropped and counted, and that requests
//! never notice.

use std::{cell::RefCell, io::Read as _, net::SocketAddr, rc::Rc, sync::Mutex};

use flate2::read::GzDecoder;
use opentelemetry_proto::tonic::{
    collector::{
        metrics::v1::ExportMetricsServiceRequest,
        trace::v1::{
            ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
            trace_service_server::{TraceService, TraceServiceServer},
        },
    },
    trace::v1::Span,
};
use outrigger_proto::spec;
use prost::Message as _;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::{
    rig::{PATIENCE, Reply, Rig, identity, read_rest, run, write},
    trace::Numbers,
};

const GET: &str = "GET /a HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n";
const TAKEN: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";

// === backends ===

/// A call as it came: head in lower case, body.
type Call = (String, Vec<u8>);

/// What a backend does with a call.
enum Say {
    Bytes(Vec<u8>),
    /// Not a word, and the connection stays open.
    Nothing,
    /// Words without an end.
    Endless,
}

fn say(text: &str) -> Say {
    Say::Bytes(text.as_bytes().to_vec())
}

/// A backend that speaks HTTP/1, or whatever its script says.
async fn backend(script: impl Fn(usize) -> Say + 'static) -> (SocketAddr, Rc<RefCell<Vec<Call>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (calls, script) = (Rc::<RefCell<Vec<Call>>>::default(), Rc::new(script));
    let seen = Rc::clone(&calls);
    task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, script) = (Rc::clone(&seen), Rc::clone(&script));
            task::spawn_local(async move { drop(converse(stream, &seen, &*script).await) });
        }
    });
    (address, calls)
}

async fn converse(
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    seen: &RefCell<Vec<Call>>,
    script: &impl Fn(usize) -> Say,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        io.read_exact(&mut body).await?;
        let number = seen.borrow().len();
        seen.borrow_mut().push((head, body));
        match script(number) {
            Say::Bytes(bytes) => io.write_all(&bytes).await?,
            Say::Nothing => _ = io.read_u8().await?,
            Say::Endless => {
                io.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                loop {
                    io.write_all(b"5\r\nwords\r\n").await?;
                }
            }
        }
    }
}

/// What a gRPC backend says to each call.
type Answer = fn() -> Result<ExportTraceServiceResponse, Status>;

struct Grpc {
    answer: Answer,
    calls: Arc<Mutex<Vec<Request<ExportTraceServiceRequest>>>>,
}

#[tonic::async_trait]
impl TraceService for Grpc {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.calls.lock().unwrap().push(request);
        (self.answer)().map(Response::new)
    }
}

async fn grpc(answer: Answer) -> (SocketAddr, Arc<Mutex<Vec<Request<ExportTraceServiceRequest>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let calls = Arc::default();
    let service = Grpc { answer, calls: Arc::clone(&calls) };
    let service = TraceServiceServer::new(service).accept_compressed(tonic::codec::CompressionEncoding::Gzip);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (address, calls)
}

// === the proxy ===

struct Sending {
    rig: Rig,
    exporters: Option<Exporters>,
}

/// A caller's proxy that records everything and sends it soon.
async fn sending(endpoint: &str, protocol: &str, more: &[(&'static str, &str)]) -> Sending {
    let own = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_METRICS_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_BSP_SCHEDULE_DELAY", "10"),
    ];
    let own = own.into_iter().filter(|(name, _)| more.iter().all(|(other, _)| other != name));
    let variables = own.chain(more.iter().copied()).map(|(name, value)| (name, value.to_owned())).collect();
    let mut rig = Rig::with(spec::Protocol::Http, 1, variables).await;
    rig.configure();
    rig.servers[0].serve(|_, _| Reply::Answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()));
    let exporters = Some(start(&rig.client.ctx, &identity("web"), &[]));
    Sending { rig, exporters }
}

impl Sending {
    /// A request, which goes well whatever the backend does.
    async fn ask(&self) {
        let began = Instant::now();
        let mut program = self.rig.dial();
        write(&mut program, GET).await;
        let (answer, clean) = read_rest(&mut program).await;
        assert!(answer.ends_with("ok") && clean, "{answer}");
        assert!(began.elapsed() < PATIENCE);
    }

    fn numbers(&self) -> Numbers {
        self.rig.client.ctx.tracing.numbers()
    }

    fn dropped(&self, why: Lost) -> u64 {
        self.numbers().dropped[why as usize].1
    }

    async fn until(&self, what: &str, is: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is(self) {
            assert!(Instant::now() < deadline, "never: {what}: {:?}", self.numbers());
            sleep(Duration::from_millis(2)).await;
        }
    }
}

fn spans(request: &ExportTraceServiceRequest) -> Vec<&Span> {
    let scopes = request.resource_spans.iter().flat_map(|one| &one.scope_spans);
    scopes.flat_map(|scope| &scope.spans).collect()
}

fn text(value: &Option<AnyValue>) -> &str {
    match value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

// === what arrives ===

#[test]
fn a_grpc_backend_gets_spans_with_who_sent_them() {
    for compression in ["none", "gzip"] {
        run(move || async move {
            let (address, calls) = grpc(|| Ok(ExportTraceServiceResponse::default())).await;
            let more = [
                ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
                ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20key"),
                ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test"),
            ];
            let sending = sending(&format!("http://{address}"), "grpc", &more).await;
            for _ in 0..3 {
                sending.ask().await;
            }
            sending.until("three arrive", |sending| sending.numbers().exported == 3).await;
            let calls = calls.lock().unwrap();
            let key = calls[0].metadata().get("authorization").unwrap();
            assert_eq!(key, "Bearer key");
            let all: Vec<_> = calls.iter().flat_map(|call| spans(call.get_ref())).collect();
            assert_eq!(all.len(), 3);
            assert!(all.iter().all(|span| span.name == "GET" && span.trace_id.len() == 16 && span.kind == 3));
            let resource = &calls[0].get_ref().resource_spans[0].resource.as_ref().unwrap().attributes;
            let told: Vec<_> = resource.iter().map(|one| (one.key.as_str(), text(&one.value))).collect();
            for expected in [
                ("service.name", "web"),
                ("service.namespace", "shop"),
                ("deployment.environment.name", "test"),
                ("service.instance.id", "10.0.0.5:15020"),
                ("outrigger.identity", "spiffe://mesh.local/ns/shop/sa/web"),
            ] {
                assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
            }
            assert_eq!(sending.numbers().calls[0].1[1], 0);
        });
    }
}

#[test]
fn an_http_backend_gets_them_by_post() {
    for compression in ["none", "gzip"] {
        run(move || async move {
            let (address, calls) = backend(|_| say(TAKEN)).await;
            let more = [
                ("OTEL_EXPORTER_OTLP_COMPRESSION", compression),
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k"),
                ("OTEL_SERVICE_NAME", "shop-web"),
            ];
            let sending = sending(&format!("http://{address}/base"), "http/protobuf", &more).await;
            sending.ask().await;
            sending.until("it arrives", |sending| sending.numbers().exported == 1).await;
            sending.ask().await;
            sending.until("the next arrives", |sending| sending.numbers().exported == 2).await;
            let calls = calls.borrow();
            let (head, body) = &calls[0];
            assert!(head.starts_with("post /base/v1/traces http/1.1\r\n"), "{head}");
            for field in ["content-type: application/x-protobuf", "x-key: k", &format!("host: {address}")] {
                assert!(head.contains(field), "{field}: {head}");
            }
            let mut plain = Vec::new();
            match compression {
                "gzip" => {
                    assert!(head.contains("content-encoding: gzip"), "{head}");
                    GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
                }
                _ => plain.clone_from(body),
            }
            let request = ExportTraceServiceRequest::decode(&plain[..]).unwrap();
            assert_eq!(spans(&request).len(), 1);
            let resource = request.resource_spans[0].resource.as_ref().unwrap();
            let name = resource.attributes.iter().find(|one| one.key == "service.name").unwrap();
            assert_eq!(text(&name.value), "shop-web");
        });
    }
}

#[test]
fn metrics_are_sent_in_the_same_way() {
    run(|| async {
        let (address, calls) = backend(|_| say(TAKEN)).await;
        let more = [
            ("OTEL_TRACES_EXPORTER", "none"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ];
        let sending = sending(&format!("http://{address}"), "http/protobuf", &more).await;
        assert!(sending.rig.client.ctx.tracing.on().is_none());
        sending.until("two calls", |sending| sending.numbers().calls[1].1[0] >= 2).await;
        let (head, body) = calls.borrow()[0].clone();
        assert!(head.starts_with("post /v1/metrics "), "{head}");
        let request = ExportMetricsServiceRequest::decode(&body[..]).unwrap();
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        assert!(metrics.iter().any(|metric| metric.name.starts_with("outrigger_")), "{metrics:?}");
    });
}

#[test]
fn the_last_ones_are_sent_at_the_end() {
    run(|| async {
        let (address, calls) = backend(|_| say(TAKEN)).await;
        let slow = [("OTEL_BSP_SCHEDULE_DELAY", "3600000"), ("OTEL_METRICS_EXPORTER", "otlp")];
        let mut sending = sending(&format!("http://{address}"), "http/protobuf", &slow).await;
        sending.ask().await;
        sending.until("it is queued", |sending| sending.numbers().queued == 1).await;
        sending.exporters.take().unwrap().flush(PATIENCE).await;
        let mut paths: Vec<_> = calls.borrow().iter().map(|(head, _)| head[..17].to_owned()).collect();
        paths.sort();
        assert_eq!(paths, ["post /v1/metrics ", "post /v1/traces h"]);
        assert_eq!(sending.numbers().exported, 1);
    });
}

#[test]
fn the_end_does_not_wait_for_a_backend_that_hangs() {
    run(|| async {
        let (address, calls) = backend(|_| Say::Nothing).await;
        let more = [("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")];
        let mut sending = sending(&format!("http://{address}"), "http/protobuf", &more).await;
        for _ in 0..3 {
            sending.ask().await;
        }
        sending.until("one is being sent", |_| !calls.borrow().is_empty()).await;
        sending.until("two are queued behind it", |sending| sending.numbers().queued == 3).await;
        sending.exporters.take().unwrap().flush(Duration::from_millis(50)).await;
        assert_eq!(sending.dropped(Lost::Shutdown), 3);
    });
}

// === backends that do not take it ===

/// What a call is to be counted as.
enum Counted {
    Taken,
    Lost(Lost),
}

#[test]
fn what_a_backend_does_is_counted_and_traffic_goes_on() {
    use Counted::{Lost as Drops, Taken};
    let answer = |status: &str, more: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{more}\r\n{body}")
    };
    let protobuf = "content-type: application/x-protobuf\r\n";
    let cases: Vec<(String, Counted)> = vec![
        (answer("200 OK", "", ""), Taken),
        (answer("202 Accepted", "content-type: application/json\r\n", "{}"), Taken),
        (answer("200 OK", protobuf, "\u{7f}garbage"), Drops(Lost::Refused)),
        (answer("500 Oops", "", "no"), Drops(Lost::Refused)),
        (answer("404 Not Found", "", ""), Drops(Lost::Refused)),
        (answer("302 Found", "location: http://127.0.0.1:1/\r\n", ""), Drops(Lost::Refused)),
        (answer("503 Busy", "", ""), Drops(Lost::Backend)),
        (answer("429 Slow", "retry-after: 1\r\n", ""), Drops(Lost::Backend)),
        ("garbage\r\n\r\n".to_owned(), Drops(Lost::Backend)),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 70000\r\n\r\n".to_owned() + &"x".repeat(70_000),
            Drops(Lost::Refused),
        ),
    ];
    for (answer, counted) in cases {
        run(move || async move {
            let shown = answer.clone();
            let (address, calls) = backend(move |_| say(&answer)).await;
            let patience = [("OTEL_BSP_EXPORT_TIMEOUT", "100")];
            let sending = sending(&format!("http://{address}"), "http/protobuf", &patience).await;
            sending.ask().await;
            sending
                .until(&format!("{shown:.60} is counted"), |sending| match counted {
                    Taken => sending.numbers().exported == 1,
                    Drops(why) => sending.dropped(why) == 1,
                })
                .await;
            sending.ask().await;
            assert_eq!(
                calls.borrow().len(),
                1,
                "a redirect was followed, or a batch sent twice: {shown:.60}"
            );
        });
    }
}

#[test]
fn a_backend_that_hangs_or_never_ends_is_left() {
    run(|| async {
        for endless in [false, true] {
            let say = move |_| if endless { Say::Endless } else { Say::Nothing };
            let (address, _) = backend(say).await;
            let within = if endless { "20000" } else { "50" };
            let more = [("OTEL_EXPORTER_OTLP_TIMEOUT", within), ("OTEL_BSP_EXPORT_TIMEOUT", "100")];
            let sending = sending(&format!("http://{address}"), "http/protobuf", &more).await;
            sending.ask().await;
            let why = if endless { Lost::Refused } else { Lost::Backend };
            sending.until("it is given up", |sending| sending.dropped(why) == 1).await;
            sending.ask().await;
        }
    });
}

#[test]
fn a_backend_that_is_not_there_is_tried_again() {
    run(|| async {
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = nobody.local_addr().unwrap();
        drop(nobody);
        for protocol in ["grpc", "http/protobuf"] {
            let more = [("OTEL_BSP_EXPORT_TIMEOUT", "100"), ("OTEL_BSP_MAX_QUEUE_SIZE", "3")];
            let more = [&more[..], &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "3")]].concat();
            let sending = sending(&format!("http://{address}"), protocol, &more).await;
            sending.ask().await;
            sending.until("the first batch is dropped", |sending| sending.dropped(Lost::Backend) > 0).await;
            // Meanwhile the queue has what it has room for, and no more.
            for _ in 0..6 {
                sending.ask().await;
            }
            sending.until("the queue is full", |sending| sending.dropped(Lost::Queue) > 0).await;
            assert!(sending.numbers().queued <= 3);
            assert!(sending.numbers().calls[0].1[1] >= 1);
        }
    });
}

#[test]
fn a_batch_is_sent_again_when_a_backend_comes_back() {
    run(|| async {
        let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
        let (address, calls) = backend(move |number| say(if number == 0 { busy } else { TAKEN })).await;
        let sending = sending(&format!("http://{address}"), "http/protobuf", &[]).await;
        sending.ask().await;
        sending.until("it is taken after all", |sending| sending.numbers().exported == 1).await;
        let calls = calls.borrow();
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].1, calls[1].1, "the same batch");
        assert_eq!(sending.numbers().calls[0].1, [1, 1]);
    });
}

#[test]
fn answers_of_grpc() {
    use Counted::{Lost as Drops, Taken};
    let partial = || {
        let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "odd\nspan".into() };
        Ok(ExportTraceServiceResponse { partial_success: Some(partial) })
    };
    let warned = || {
        let partial = ExportTracePartialSuccess { rejected_spans: 0, error_message: "mind".into() };
        Ok(ExportTraceServiceResponse { partial_success: Some(partial) })
    };
    // `google.rpc.Status` with a `RetryInfo` of a minute.
    let in_a_minute = || {
        let url = b"type.googleapis.com/google.rpc.RetryInfo";
        let any = [&[0x0a, url.len() as u8], &url[..], &[0x12, 4, 0x0a, 2, 0x08, 60]].concat();
        let details = [&[0x1a, any.len() as u8], &any[..]].concat();
        Err(Status::with_details(tonic::Code::ResourceExhausted, "wait", details.into()))
    };
    let cases: [(Answer, Counted); 8] = [
        (partial, Drops(Lost::Rejected)),
        (warned, Taken),
        (|| Err(Status::unimplemented("no traces here")), Drops(Lost::Refused)),
        (|| Err(Status::unauthenticated("who?")), Drops(Lost::Refused)),
        (|| Err(Status::unavailable("later")), Drops(Lost::Backend)),
        (|| Err(Status::resource_exhausted("message larger than 4 MiB")), Drops(Lost::Refused)),
        (
            || Err(Status::with_details(tonic::Code::ResourceExhausted, "", "junk".into())),
            Drops(Lost::Refused),
        ),
        (in_a_minute, Drops(Lost::Backend)),
    ];
    for (answer, counted) in cases {
        run(move || async move {
            let (address, calls) = grpc(answer).await;
            let patience = [("OTEL_BSP_EXPORT_TIMEOUT", "100")];
            let sending = sending(&format!("http://{address}"), "grpc", &patience).await;
            sending.ask().await;
            sending
                .until("it is counted", |sending| match counted {
                    Taken => sending.numbers().exported == 1,
                    Drops(why) => sending.dropped(why) == 1,
                })
                .await;
            assert_eq!(calls.lock().unwrap().len(), 1);
        });
    }
}

#[test]
fn a_backend_of_grpc_that_speaks_something_else() {
    run(|| async {
        let (address, _) = backend(|_| say("HTTP/1.1 400 Bad\r\ncontent-length: 0\r\n\r\n")).await;
        let patience = [("OTEL_BSP_EXPORT_TIMEOUT", "100"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "500")];
        let sending = sending(&format!("http://{address}"), "grpc", &patience).await;
        sending.ask().await;
        sending.until("it is given up", |sending| sending.dropped(Lost::Backend) == 1).await;
    });
}

// === TLS ===

#[test]
fn tls_with_roots_and_names_that_are_checked() {
    run(|| async {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let key = || KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params.clone(), key()).unwrap();
        let other = CertifiedIssuer::self_signed(params, key()).unwrap();
        let own_key = key();
        let own =
            CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&own_key, &ca).unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::aws_lc_rs::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(own_key.serialize_der()).unwrap(),
        )
        .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        task::spawn_local(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = acceptor.accept(stream).await {
                    task::spawn_local(async move {
                        let calls = RefCell::default();
                        let _ = converse(stream, &calls, &|_| say(TAKEN)).await;
                    });
                }
            }
        });
        let good = file("ca.pem", &ca.as_ref().pem());
        let wrong = file("other.pem", &other.as_ref().pem());
        for (roots, name, taken) in
            [(&good, "127.0.0.1", true), (&wrong, "127.0.0.1", false), (&good, "localhost", false)]
        {
            let more = [("OTEL_EXPORTER_OTLP_CERTIFICATE", &**roots), ("OTEL_BSP_EXPORT_TIMEOUT", "100")];
            let endpoint = format!("https://{name}:{}", address.port());
            let sending = sending(&endpoint, "http/protobuf", &more).await;
            assert_eq!(check(&sending.rig.client.ctx.config), Vec::<String>::new());
            sending.ask().await;
            let counted = |sending: &Sending| match taken {
                true => sending.numbers().exported == 1,
                false => sending.dropped(Lost::Backend) == 1,
            };
            sending.until(&format!("{name} by {roots}"), counted).await;
        }
        let empty = file("empty.pem", "");
        for (variable, path, problem) in [
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", &*empty, "want at least one certificate"),
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                "/nowhere.pem",
                "OTEL_EXPORTER_OTLP_CERTIFICATE /nowhere.pem: No such",
            ),
        ] {
            let sending = sending("https://127.0.0.1:1", "grpc", &[(variable, path)]).await;
            let problems = check(&sending.rig.client.ctx.config);
            assert!(problems.len() == 1 && problems[0].contains(problem), "{problems:?}");
        }
    });
}
