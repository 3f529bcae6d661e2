//! An application that does what a test tells it, request by request, and remembers what it was asked.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on one port. A request with a gRPC content type is answered as gRPC.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use outrigger_lab::Pod;

use super::{bind_again, server::Server};

/// A request as it reached the application.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// From 0.
    pub(crate) number: u64,
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) at: Instant,
}

/// What the application does with a request.
#[derive(Clone, Debug)]
pub(crate) struct Say {
    status: u16,
    grpc: u8,
    fields: Vec<(String, String)>,
    body: Bytes,
    wait: Duration,
    /// Between the halves of the body.
    stall: Duration,
    reset: bool,
}

/// Ends when dropped, and resets its connections then, as a killed program would.
pub(crate) struct App {
    log: Arc<Log>,
    _server: Server,
}

#[derive(Default)]
struct Log {
    asked: Mutex<Vec<Asked>>,
    running: AtomicU64,
    peak: AtomicU64,
    cancelled: AtomicU64,
}

type Handler = Arc<dyn Fn(&Asked) -> Say + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Longer than any caller waits.
const FOREVER: Duration = Duration::from_secs(600);

impl Say {
    pub(crate) fn ok(body: impl Into<Bytes>) -> Self {
        let [wait, stall] = [Duration::ZERO; 2];
        Self { status: 200, grpc: 0, fields: Vec::new(), body: body.into(), wait, stall, reset: false }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// For a gRPC caller: this code and no message.
    pub(crate) fn grpc(code: u8) -> Self {
        Self { grpc: code, ..Self::ok("") }
    }

    /// Never answers.
    pub(crate) fn nothing() -> Self {
        Self::ok("").after(FOREVER)
    }

    /// Breaks the connection (of HTTP/2: the stream) instead of an answer.
    pub(crate) fn reset() -> Self {
        Self { reset: true, ..Self::ok("") }
    }

    pub(crate) fn field(mut self, name: &str, value: impl ToString) -> Self {
        self.fields.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn field_unless(self, not: bool, name: &str, value: impl ToString) -> Self {
        if not { self } else { self.field(name, value) }
    }

    pub(crate) fn after(self, wait: Duration) -> Self {
        Self { wait, ..self }
    }

    pub(crate) fn stalling(self, stall: Duration) -> Self {
        Self { stall, ..self }
    }
}

impl App {
    /// On every IPv4 address of the pod. `handler` runs on a thread of the pod that may block.
    pub(crate) fn start(
        pod: &Pod,
        port: u16,
        handler: impl Fn(&Asked) -> Say + Send + Sync + 'static,
    ) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = bind_again(|| Ok(pod.enter(|| std::net::TcpListener::bind(address))??))?;
        let log = Arc::new(Log::default());
        let (handler, shared): (Handler, _) = (Arc::new(handler), Arc::clone(&log));
        let server = Server::start(pod, listener, false, move || {
            let (handler, shared) = (Arc::clone(&handler), Arc::clone(&shared));
            service_fn(move |request| answer(request, Arc::clone(&handler), Arc::clone(&shared)))
        })?;
        Ok(Self { log, _server: server })
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.log.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests came so far.
    pub(crate) fn count(&self) -> u64 {
        self.log.asked.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Requests that were under way at the same time, at most.
    pub(crate) fn peak(&self) -> u64 {
        self.log.peak.load(Ordering::SeqCst)
    }

    pub(crate) fn running(&self) -> u64 {
        self.log.running.load(Ordering::SeqCst)
    }

    /// Requests that were given up by who sent them, before their answer.
    pub(crate) fn cancelled(&self) -> u64 {
        self.log.cancelled.load(Ordering::SeqCst)
    }
}

/// Counts a request as running until its answer is on its way, or nobody waits for it any more.
struct Running<'a> {
    log: &'a Log,
    answered: bool,
}

impl<'a> Running<'a> {
    fn new(log: &'a Log) -> Self {
        let now = log.running.fetch_add(1, Ordering::SeqCst) + 1;
        log.peak.fetch_max(now, Ordering::SeqCst);
        Self { log, answered: false }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.log.running.fetch_sub(1, Ordering::SeqCst);
        if !self.answered {
            self.log.cancelled.fetch_add(1, Ordering::SeqCst);
        }
    }
}

async fn answer(request: Request<Incoming>, handler: Handler, log: Arc<Log>) -> Result<Response<Body>> {
    let mut running = Running::new(&log);
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let asked = {
        let mut all = log.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = Asked {
            number: all.len() as u64,
            method: head.method.to_string(),
            path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            headers: head.headers,
            body,
            at: Instant::now(),
        };
        all.push(asked.clone());
        asked
    };
    let kind = asked.headers.get("content-type").map(|kind| kind.as_bytes().to_vec()).unwrap_or_default();
    let say = tokio::task::spawn_blocking(move || handler(&asked)).await?;
    tokio::time::sleep(say.wait).await;
    running.answered = true;
    if say.reset {
        anyhow::bail!("told to");
    }
    let is_grpc = kind.starts_with(b"application/grpc");
    let mut response = Response::new(body_of(&say, is_grpc));
    *response.status_mut() = StatusCode::from_u16(say.status).context("status")?;
    let fields = response.headers_mut();
    if is_grpc {
        fields.insert("content-type", HeaderValue::from_static("application/grpc"));
        if say.grpc != 0 {
            fields.insert("grpc-status", u16::from(say.grpc).into());
        }
    } else if say.stall.is_zero() && say.status != 204 && say.status != 304 {
        fields.insert("content-length", say.body.len().into());
    }
    for (name, value) in &say.fields {
        fields.append(HeaderName::from_bytes(name.as_bytes())?, HeaderValue::from_str(value)?);
    }
    Ok(response)
}

fn body_of(say: &Say, is_grpc: bool) -> Body {
    let stall = say.stall;
    let mut frames = Vec::new();
    if is_grpc {
        // A failure is in the head alone, as gRPC servers have it ("Trailers-Only").
        if say.grpc == 0 {
            let mut message = BytesMut::with_capacity(say.body.len() + 5);
            message.put_u8(0);
            message.put_u32(u32::try_from(say.body.len()).unwrap_or(0));
            message.put(&say.body[..]);
            frames.push(Frame::data(message.freeze()));
            let good = (HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"));
            frames.push(Frame::trailers(HeaderMap::from_iter([good])));
        }
    } else if !say.body.is_empty() {
        let half = if stall.is_zero() { say.body.len() } else { say.body.len() / 2 };
        let halves = [say.body.slice(..half), say.body.slice(half..)];
        frames.extend(halves.into_iter().filter(|half| !half.is_empty()).map(Frame::data));
    }
    let frames = futures_util::stream::unfold(frames.into_iter().enumerate(), move |mut frames| async move {
        let (number, frame) = frames.next()?;
        if number > 0 {
            tokio::time::sleep(stall).await;
        }
        Some((Ok(frame), frames))
    });
    StreamBody::new(frames).boxed_unsync()
}
