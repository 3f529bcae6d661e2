//! Single calls out of a pod, answered in full.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_lab::Pod;

use super::raw;

/// A call to be made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    target: SocketAddr,
    method: &'static str,
    path: String,
    fields: String,
    body: Vec<u8>,
}

/// What the caller was told.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) status: u16,
    /// Of a gRPC call: from the trailers, or from the head where there are none.
    pub(crate) grpc: Option<u8>,
    /// Names in lower case.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whether the body came to the end that its head promised.
    pub(crate) whole: bool,
    pub(crate) took: Duration,
}

impl Call {
    pub(crate) fn get(target: SocketAddr, path: &str) -> Self {
        Self::new("GET", target, path)
    }

    pub(crate) fn post(target: SocketAddr, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::new("POST", target, path) }
    }

    pub(crate) fn new(method: &'static str, target: SocketAddr, path: &str) -> Self {
        Self { target, method, path: path.to_owned(), fields: String::new(), body: Vec::new() }
    }

    pub(crate) fn field(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.fields.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    pub(crate) fn body(self, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..self }
    }

    fn head(&self, more: &str) -> Vec<u8> {
        let Self { method, path, fields, body, .. } = self;
        let length = if body.is_empty() && *method == "GET" {
            String::new()
        } else {
            format!("content-length: {}\r\n", body.len())
        };
        let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: stand.test\r\n{length}{fields}{more}\r\n")
            .into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    /// On a connection of its own, over HTTP/1.1.
    pub(crate) fn send(&self, from: &Pod) -> Result<Told> {
        let start = Instant::now();
        let mut stream = raw::connect(from, self.target)?;
        // The other side may refuse before it has read all.
        drop(stream.write_all(&self.head("connection: close\r\n")));
        let answer = raw::read_to_end(&mut stream)?;
        let (told, _) = parse(&answer, start).with_context(|| format!("answer {answer:?}"))?;
        Ok(told)
    }

    /// So many at the same time, each on a connection of its own.
    pub(crate) fn at_once(&self, from: &Pod, count: usize) -> Result<Vec<Told>> {
        thread::scope(|scope| {
            let mut calls = Vec::new();
            calls.resize_with(count, || scope.spawn(|| self.send(from)));
            calls.into_iter().map(|call| call.join().map_err(|_| anyhow!("a call panicked"))?).collect()
        })
    }

    /// One after the other, on one connection.
    pub(crate) fn in_turn(&self, from: &Pod, count: usize) -> Result<Vec<Told>> {
        let mut line = Line::open(from, self.target)?;
        (0..count).map(|_| line.send(self)).collect()
    }

    /// As a gRPC call with one message, over HTTP/2. The path names service and method.
    pub(crate) fn grpc(&self, from: &Pod) -> Result<Told> {
        let start = Instant::now();
        let stream = raw::connect(from, self.target)?;
        stream.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::time::timeout(raw::PATIENCE, self.grpc_on(stream, start)).await.context("no answer")?
        })
    }

    async fn grpc_on(&self, stream: TcpStream, start: Instant) -> Result<Told> {
        let io = TokioIo::new(tokio::net::TcpStream::from_std(stream)?);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::post(format!("http://stand.test{}", self.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for line in self.fields.lines() {
            let (name, value) = line.split_once(": ").context("a field")?;
            request = request.header(name, value);
        }
        let mut message = BytesMut::with_capacity(self.body.len() + 5);
        message.put_u8(0);
        message.put_u32(u32::try_from(self.body.len())?);
        message.put(&self.body[..]);
        let answer = sender.send_request(request.body(Full::<Bytes>::new(message.freeze()))?).await?;
        let (head, body) = answer.into_parts();
        let collected = body.collect().await;
        let whole = collected.is_ok();
        let trailers = collected.as_ref().ok().and_then(|body| body.trailers().cloned()).unwrap_or_default();
        let fields: Vec<_> = head
            .headers
            .iter()
            .chain(&trailers)
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        connection.abort();
        let grpc = fields.iter().find(|(name, _)| name == "grpc-status");
        let grpc = grpc.and_then(|(_, value)| value.parse().ok());
        let bytes = collected.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body = String::from_utf8_lossy(bytes.get(5..).unwrap_or_default()).into_owned();
        Ok(Told { status: head.status.as_u16(), grpc, fields, body, whole, took: start.elapsed() })
    }
}

impl Told {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Of an answer that a proxy made.
    pub(crate) fn reason(&self) -> &str {
        self.field("outrigger-reason").unwrap_or_default()
    }
}

/// A connection that is kept for several calls, one after the other.
pub(crate) struct Line {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl Line {
    pub(crate) fn open(from: &Pod, target: SocketAddr) -> Result<Self> {
        Ok(Self { stream: raw::connect(from, target)?, rest: Vec::new() })
    }

    pub(crate) fn send(&mut self, call: &Call) -> Result<Told> {
        let start = Instant::now();
        self.stream.write_all(&call.head(""))?;
        let mut buffer = [0; 16 * 1024];
        loop {
            let so_far = String::from_utf8_lossy(&self.rest).into_owned();
            if let Some((told, used)) = parse(&so_far, start).filter(|(told, _)| told.whole) {
                self.rest.drain(..used);
                return Ok(told);
            }
            let read = self.stream.read(&mut buffer).with_context(|| format!("after {so_far:?}"))?;
            if read == 0 {
                return Err(anyhow!("closed after {so_far:?}"));
            }
            self.rest.extend_from_slice(&buffer[..read]);
        }
    }
}

/// The answer, and how long it was. Bodies are text here.
fn parse(answer: &str, start: Instant) -> Option<(Told, usize)> {
    let (head, rest) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let field = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    let fields: Vec<_> = lines.filter_map(field).collect();
    let of = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let (body, whole, used) = if of("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
        let (body, used) = unchunk(rest);
        (body, used.is_some(), used.unwrap_or(rest.len()))
    } else {
        let length = of("content-length").and_then(|length| length.parse().ok());
        let length = length.unwrap_or(if matches!(status, 204 | 304) { 0 } else { rest.len() });
        let got = rest.get(..length.min(rest.len())).unwrap_or(rest);
        (got.to_owned(), got.len() == length, got.len())
    };
    let used = head.len() + 4 + used;
    Some((Told { status, grpc: None, fields, body, whole, took: start.elapsed() }, used))
}

/// What came of a chunked body, and its length on the wire once it is complete.
fn unchunk(mut rest: &str) -> (String, Option<usize>) {
    let start = rest.len();
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16) else {
            break;
        };
        if size == 0 {
            // Trailers, if any, end with an empty line.
            let end =
                if after.starts_with("\r\n") { Some(2) } else { after.find("\r\n\r\n").map(|at| at + 4) };
            return (body, end.map(|end| start - after.len() + end));
        }
        body.push_str(after.get(..size.min(after.len())).unwrap_or_default());
        let Some(next) = after.get(size + 2..) else { break };
        rest = next;
    }
    (body, None)
}
