//! The status port: `/healthz`, `/readyz`, `/metrics`, `/status`, `/stat` and `/events` over plain HTTP/1.1. It shows
//! and changes nothing.
//!
//! `/status` is what `outrigger status` prints; its shape is documented in docs/control-plane.md. It names
//! services, endpoints and identities, so the port is for operators: bind it to an address that only they
//! reach.

mod events;
mod parameters;
mod stat;

use std::{
    convert::Infallible,
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_proto::spec::BackendKey;
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};

use crate::{
    ca::{Ca, CaReport},
    events::EventsReport,
    hub::{
        Hub,
        report::{ConfigurationReport, ProxyReport, ServiceReport},
    },
    metrics::{
        Metrics, Observed,
        page::{Format, Page},
    },
    observatory::{CircuitReport, Observatory, Opinion, ShareReport},
    recorder::{HistoryReport, Recorder},
};

const MAX_CONNECTIONS: usize = 64;
/// Of those, such as wait for events.
pub const MAX_WAITING: usize = 32;
const HEAD: Duration = Duration::from_secs(10);
/// A scraper keeps its connection; one that is forgotten does not stay for ever.
const LIFE: Duration = Duration::from_secs(300);

pub struct Shared {
    pub ca: Arc<Ca>,
    pub hub: Arc<Hub>,
    pub observatory: Arc<Observatory>,
    pub recorder: Arc<Recorder>,
    pub metrics: Arc<Metrics>,
    /// Places of those who wait for events.
    pub waiting: Semaphore,
    /// Whether proxies can connect.
    pub serving: watch::Receiver<bool>,
    pub started: Instant,
}

/// The answer of `/status`.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    /// Why not, if not.
    reasons: Vec<String>,
    ca: CaReport,
    configuration: ConfigurationReport,
    proxies: Vec<ProxyReport>,
    services: Vec<ServiceReport>,
    /// Circuits that are not closed, by service port.
    circuits: Vec<Circuits>,
    /// The latest transitions of circuits, the newest first.
    transitions: Vec<Opinion>,
    shared_limits: Vec<ShareReport>,
    history: HistoryReport,
    reports: ReportsReport,
    events: EventsReport,
}

#[derive(Serialize)]
struct ReportsReport {
    streams: u64,
    refused: u64,
}

#[derive(Serialize)]
struct Circuits {
    /// `NAMESPACE/NAME:PORT`.
    service: BackendKey,
    circuits: Vec<CircuitReport>,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The permit first: above the limit, callers wait in the listen queue.
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let shared = shared.clone();
                tokio::spawn(async move {
                    let _ = timeout(LIFE, connection(socket, &shared)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the status port cannot accept connections");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(socket: TcpStream, shared: &Shared) {
    let answer =
        |request: Request<Incoming>| async move { Ok::<_, Infallible>(answer(&request, shared).await) };
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(64)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(socket), service_fn(answer))
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "status connection ended");
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(request: &Request<Incoming>, shared: &Shared) -> Answer {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "this port only shows\n".to_owned());
    }
    let query = request.uri().query().unwrap_or_default();
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match shared.not_ready() {
            reasons if reasons.is_empty() => text(StatusCode::OK, "ready\n".to_owned()),
            reasons => text(StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
        },
        "/metrics" => {
            let accept = request.headers().get_all(header::ACCEPT).iter();
            let accept: Vec<_> = accept.filter_map(|value| value.to_str().ok()).collect();
            shared.metrics(Format::wanted(&accept.join(",")))
        }
        "/status" => match serde_json::to_string_pretty(&shared.report(shared.not_ready())) {
            Ok(json) => with_type(StatusCode::OK, "application/json", json + "\n"),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/stat" => stat::answer(query, shared).await,
        "/events" => events::answer(query, shared).await,
        _ => text(
            StatusCode::NOT_FOUND,
            "here are /healthz /readyz /metrics /status /stat /events\n".to_owned(),
        ),
    }
}

impl Shared {
    /// Why no proxy should be sent here. Errors beside a good configuration are none: that one is in force.
    fn not_ready(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if !*self.serving.borrow() {
            reasons.push("not serving: starting or stopping".to_owned());
        }
        let configuration = self.hub.configuration();
        if configuration.generation == 0 {
            reasons.push("no configuration yet: the directory has never been without errors".to_owned());
            reasons.extend(configuration.errors.iter().map(ToString::to_string));
        }
        if let Err(error) = self.ca.credentials().usable() {
            reasons.push(format!("our own certificate is not usable: {error}"));
        }
        reasons
    }

    fn metrics(&self, format: Format) -> Answer {
        let (observation_streams, circuits_open) = self.observatory.totals();
        let observed = Observed {
            totals: self.hub.totals(Instant::now()),
            observation_streams,
            circuits_open,
            ready: self.not_ready().is_empty(),
            history: self.recorder.report(),
            recorder: &self.recorder.counts,
            events: self.hub.events().counts(),
            certificates: self.ca.certificates(),
        };
        let mut page = Page::new(format);
        self.metrics.render(&observed, &mut page);
        with_type(StatusCode::OK, format.content_type(), page.finish())
    }

    fn report(&self, reasons: Vec<String>) -> Report {
        let services = self.hub.services();
        let keys = services.iter().flat_map(|service| {
            let key =
                |port| BackendKey { namespace: service.namespace.clone(), name: service.name.clone(), port };
            service.ports.iter().map(move |port| key(port.port))
        });
        let circuits =
            keys.map(|service| Circuits { circuits: self.observatory.circuits(&service), service });
        Report {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs(),
            ready: reasons.is_empty(),
            reasons,
            ca: self.ca.report(),
            configuration: self.hub.configuration(),
            proxies: self.hub.proxies(Instant::now()),
            circuits: circuits.filter(|port| !port.circuits.is_empty()).collect(),
            transitions: self.observatory.history(),
            shared_limits: self.observatory.shares(),
            history: self.recorder.report(),
            reports: ReportsReport {
                streams: self.metrics.report_streams.value(),
                refused: self.metrics.reports_refused.value(),
            },
            events: self.hub.events().report(),
            services,
        }
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(mut json) => {
            json.push(b'\n');
            with_type(StatusCode::OK, "application/json", json)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, text: String) -> Answer {
    with_type(status, "text/plain; charset=utf-8", text)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// Binds a listener, naming the flag when that fails. `[::]` means every address, also where there is no
/// IPv6.
pub async fn listen(flag: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != ErrorKind::AddrInUse => {
            // What IPv4 says is as telling as what IPv6 said.
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.map_err(|error| {
        if error.kind() == ErrorKind::AddrInUse {
            return anyhow::anyhow!("--{flag}: {address} is in use; is another control plane running?");
        }
        anyhow::anyhow!("--{flag}: cannot listen on {address}: {error}")
    })
}
