//! A small HTTP application in a pod: HTTP/1.1 and HTTP/2 with prior knowledge on one port, and gRPC echo.
//!
//! ```text
//!   /id         the name it was given            /headers    the request's fields, a line each
//!   /echo       the body as it comes, trailers   /status/N   an empty answer with that status
//!   /slow/MS    the name, after a while          grpc        echoes the stream, then grpc-status 0
//! ```
//!
//! gRPC at [`EMPTY_FRAMES`] gets an empty frame before the trailers.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use outrigger_lab::Pod;

use super::server::Server;

/// Ends when dropped, and resets its connections then, as a killed program would.
pub(crate) struct Origin {
    seen: Arc<Seen>,
    _server: Server,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    requests: AtomicU64,
}

pub(crate) const EMPTY_FRAMES: &str = "/outrigger.test.Echo/EmptyFrames";

type Body = BoxBody<Bytes, hyper::Error>;

impl Origin {
    /// Listens on every address of the pod, IPv6 too where there is one.
    pub(crate) fn start(pod: &Pod, port: u16, name: &str) -> Result<Self> {
        let any = if pod.lab().has_ipv6() {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        Self::start_at(pod, SocketAddr::new(any, port), name)
    }

    pub(crate) fn start_at(pod: &Pod, address: SocketAddr, name: &str) -> Result<Self> {
        let listener = pod.enter(|| std::net::TcpListener::bind(address))?.context("bind the origin")?;
        let seen = Arc::new(Seen::default());
        let (name, counted) = (Arc::<str>::from(name), Arc::clone(&seen));
        let server = Server::start(pod, listener, true, move || {
            counted.connections.fetch_add(1, Ordering::Relaxed);
            let (name, counted) = (Arc::clone(&name), Arc::clone(&counted));
            service_fn(move |request| {
                counted.requests.fetch_add(1, Ordering::Relaxed);
                let name = Arc::clone(&name);
                async move { Ok::<_, Infallible>(answer(request, &name).await) }
            })
        })?;
        Ok(Self { seen, _server: server })
    }

    pub(crate) fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::Relaxed)
    }
}

async fn answer(request: Request<Incoming>, name: &str) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if request
        .headers()
        .get("content-type")
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    {
        let mut response = Response::new(grpc_echo(request.into_body(), name, path == EMPTY_FRAMES));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        return response;
    }
    if path == "/echo" {
        let mut response = Response::new(request.into_body().boxed());
        response.headers_mut().insert("trailer", HeaderValue::from_static("x-checksum"));
        return response;
    }
    if path == "/headers" {
        let lines: String = request
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        return Response::new(full(lines));
    }
    if let Some(status) = path.strip_prefix("/status/").and_then(|status| status.parse().ok()) {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
        return response;
    }
    if let Some(millis) = path.strip_prefix("/slow/").and_then(|millis| millis.parse().ok()) {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
    // A body that is read to its end leaves the connection usable.
    drop(request.into_body().collect().await);
    Response::new(full(name.to_owned()))
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// The caller's messages as they come; trailers with the status, and who answered. `empty`: also an empty frame before
/// the trailers, which is legal and of no use.
fn grpc_echo(body: Incoming, name: &str, empty: bool) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-instance", HeaderValue::from_str(name).unwrap_or(HeaderValue::from_static("?")));
    let last =
        empty.then(|| Frame::data(Bytes::new())).into_iter().chain([Frame::trailers(trailers)]).collect();
    BodyExt::boxed(StreamBody::new(then(body, last)))
}

/// The frames of a body but for empty ones, then the `last` ones.
fn then(
    body: Incoming,
    last: VecDeque<Frame<Bytes>>,
) -> impl futures_util::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + Sync {
    futures_util::stream::unfold((body, last), |(mut body, mut last)| async move {
        loop {
            match body.frame().await {
                // The end of a stream may come as an empty frame.
                Some(Ok(frame)) if frame.data_ref().is_some_and(Bytes::is_empty) => {}
                Some(frame) => return Some((frame, (body, last))),
                None => return last.pop_front().map(|frame| (Ok(frame), (body, last))),
            }
        }
    })
}
