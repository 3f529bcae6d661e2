//! An application to put behind a proxy: HTTP/1.1 and HTTP/2 with prior knowledge on one port.
//!
//! ```text
//!   /echo        the body as it comes, trailers too        /status/N   an empty answer with that status
//!   /bytes/N     N bytes, see `body_byte`                  /delay/MS   an empty answer after that time
//!   /trailers    "body", then the trailer x-end: yes       any other   what reached it, as JSON (see `Request`)
//! ```
//!
//! Every request is counted, and the last ones are kept for a test to look at.

use std::{
    collections::VecDeque,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;

use crate::server::Server;

/// How many requests are kept.
const KEPT: usize = 1000;
const PIECE: usize = 16 * 1024;

/// Runs until dropped; its connections end with it, as a killed program's would.
pub struct Origin {
    server: Server,
    seen: Arc<Seen>,
}

/// A request as it reached the application. Field names are lower case, values are taken as Latin-1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// With the query, if there was one.
    pub path: String,
    /// Of `:authority` or the absolute form, else empty: `host` is among the headers.
    pub authority: String,
    pub version: Version,
    pub headers: Vec<(String, String)>,
    pub body_bytes: u64,
}

#[derive(Default)]
struct Seen {
    requests: AtomicU64,
    body_bytes: AtomicU64,
    kept: Mutex<VecDeque<Request>>,
}

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

impl Origin {
    pub fn start(address: SocketAddr) -> Result<Self> {
        let seen = Arc::new(Seen::default());
        let shared = Arc::clone(&seen);
        let server = Server::start(address, move |stream, _| serve(stream, Arc::clone(&shared)))?;
        Ok(Self { server, seen })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn connections(&self) -> u64 {
        self.server.accepted()
    }

    /// Heads that came, whatever became of them.
    pub fn requests(&self) -> u64 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    /// Bytes of request bodies that came.
    pub fn body_bytes(&self) -> u64 {
        self.seen.body_bytes.load(Ordering::SeqCst)
    }

    /// The last requests that came whole, oldest first. Those of `/echo` are not among them.
    pub fn kept(&self) -> Vec<Request> {
        self.seen.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

impl Request {
    /// The first field of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn new(head: &http::request::Parts, body_bytes: u64) -> Self {
        let text = |value: &HeaderValue| value.as_bytes().iter().map(|byte| char::from(*byte)).collect();
        Self {
            method: head.method.to_string(),
            path: head.uri.path_and_query().map_or_else(String::new, ToString::to_string),
            authority: head.uri.authority().map_or_else(String::new, ToString::to_string),
            version: head.version,
            headers: head.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
            body_bytes,
        }
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "method": self.method,
            "path": self.path,
            "authority": self.authority,
            "version": format!("{:?}", self.version),
            "headers": self.headers,
            "body_bytes": self.body_bytes,
        })
    }
}

/// The byte at this place of the body of `/bytes/N`: a test can check any part of it.
pub fn body_byte(at: u64) -> u8 {
    (at % 251) as u8 // a prime, so that no piece of a power of two looks like another
}

async fn serve(stream: TcpStream, seen: Arc<Seen>) {
    let mut start = [0; 3];
    let http2 = loop {
        match stream.peek(&mut start).await {
            Ok(3) => break start == *b"PRI",
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::task::yield_now().await,
        }
    };
    let io = TokioIo::new(stream);
    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
    // How a connection ends is the client's doing, and its to notice.
    if http2 {
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(server.serve_connection(io, service).await);
    } else {
        let mut server = hyper::server::conn::http1::Builder::new();
        server.half_close(true).timer(TokioTimer::new());
        drop(server.serve_connection(io, service).await);
    }
}

async fn answer(request: http::Request<Incoming>, seen: Arc<Seen>) -> Result<Answer, Infallible> {
    seen.requests.fetch_add(1, Ordering::SeqCst);
    let (head, mut body) = request.into_parts();
    let path = head.uri.path().to_owned();
    if path == "/echo" {
        let counted = body.map_frame(move |frame| {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            seen.body_bytes.fetch_add(bytes as u64, Ordering::SeqCst);
            frame
        });
        return Ok(Response::new(counted.boxed_unsync()));
    }
    let mut body_bytes = 0;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
        body_bytes += bytes;
        seen.body_bytes.fetch_add(bytes, Ordering::SeqCst);
    }
    let request = Request::new(&head, body_bytes);
    let json = request.json();
    {
        let mut kept = seen.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(request);
    }
    let number = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.parse::<u64>().ok());
    Ok(if let Some(length) = number("/bytes/") {
        Response::new(Pattern { length, at: 0 }.boxed_unsync())
    } else if let Some(code) = number("/status/") {
        let mut answer = text("");
        let code = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
        *answer.status_mut() = code.unwrap_or(StatusCode::BAD_REQUEST);
        answer
    } else if let Some(millis) = number("/delay/") {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        text("")
    } else if path == "/trailers" {
        let trailers = HeaderMap::from_iter([(
            header::HeaderName::from_static("x-end"),
            HeaderValue::from_static("yes"),
        )]);
        let mut answer =
            Response::new(Full::from("body").with_trailers(std::future::ready(Some(Ok(trailers)))));
        answer.headers_mut().insert(header::TRAILER, HeaderValue::from_static("x-end"));
        if head.version == Version::HTTP_11 {
            // A length known in advance would leave no place for trailers.
            answer.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    } else {
        let mut answer = text(json.to_string());
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        answer
    })
}

fn text(text: impl Into<Bytes>) -> Answer {
    Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync())
}

/// A body of [`body_byte`]s that is never in memory as a whole.
struct Pattern {
    length: u64,
    at: u64,
}

impl Body for Pattern {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let end = self.length.min(self.at + PIECE as u64);
        if self.at == end {
            return Poll::Ready(None);
        }
        let piece: Bytes = (self.at..end).map(body_byte).collect();
        self.at = end;
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.at == self.length
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length - self.at)
    }
}

#[cfg(test)]
mod tests;
