//! One call of a telemetry backend, in either protocol: a POST, and what its answer means.

use std::{io::Write as _, num::NonZeroU32, time::Duration};

use bytes::{BufMut as _, Bytes};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderValue, Method, Request, header, uri::PathAndQuery};
use http_body_util::Full;
use prost::Message;
use tokio::time::timeout;

use super::{
    answer,
    connect::{Connection, connect},
};
use crate::{
    config::otel::{Export, Protocol},
    trace::Signal,
};

const PROTOBUF: HeaderValue = HeaderValue::from_static("application/x-protobuf");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("outrigger-proxy/", env!("CARGO_PKG_VERSION")));

/// Sends one signal to one backend.
pub struct Sender {
    pub(super) export: Export,
    pub(super) signal: Signal,
    mark: Option<NonZeroU32>,
    connection: Option<Connection>,
}

/// What was taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Spans or data points that were not.
    pub rejected: u64,
    /// What the backend says about those, or about the others.
    pub message: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may go well later; `after`: the backend says when.
    Later { why: String, after: Option<Duration> },
    /// It will not.
    Never(String),
}

impl Sender {
    pub fn new(export: Export, signal: Signal, mark: Option<NonZeroU32>) -> Self {
        Self { export, signal, mark, connection: None }
    }

    /// Whatever happens, it is over within the configured time.
    pub async fn send(&mut self, message: &impl Message) -> Result<Taken, Failure> {
        let within = self.export.timeout;
        let request = self.request(message);
        // A connection that is still waited for is closed by that.
        let called = timeout(within, self.call(request)).await;
        called.unwrap_or_else(|_| Err(Failure::later(format!("no answer within {within:?}"))))
    }

    async fn call(&mut self, request: Request<Full<Bytes>>) -> Result<Taken, Failure> {
        let Self { export, signal, mark, connection } = self;
        let mut open = match connection.take().filter(Connection::is_open) {
            Some(open) => open,
            None => connect(export, *mark).await.map_err(Failure::later)?,
        };
        let response = open.send(request, export).await.map_err(|error| Failure::later(chain(&error)))?;
        let (result, whole) = answer::read(response, export.protocol, *signal).await;
        // One that was not read to its end is of no more use.
        *connection = whole.then_some(open);
        result
    }

    fn request(&self, message: &impl Message) -> Request<Full<Bytes>> {
        let Export { endpoint, protocol, headers, gzip, .. } = &self.export;
        let mut body = Vec::with_capacity(message.encoded_len() + PREFIX);
        if *protocol == Protocol::Grpc && !gzip {
            prefix(&mut body, false, message.encoded_len());
        }
        // It fails only where there is no room.
        let _ = message.encode(&mut body);
        if *gzip {
            body = compressed(&body, *protocol);
        }
        let path = match (protocol, self.signal) {
            (Protocol::Http, _) => endpoint.path.clone(),
            (Protocol::Grpc, Signal::Traces) => {
                PathAndQuery::from_static("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
            }
            (Protocol::Grpc, Signal::Metrics) => {
                PathAndQuery::from_static("/opentelemetry.proto.collector.metrics.v1.MetricsService/Export")
            }
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = path.into();
        let fields = request.headers_mut();
        fields.insert(header::USER_AGENT, AGENT);
        match protocol {
            Protocol::Http => {
                if let Ok(host) = HeaderValue::try_from(endpoint.at.to_string()) {
                    fields.insert(header::HOST, host);
                }
                fields.insert(header::CONTENT_TYPE, PROTOBUF);
                if *gzip {
                    fields.insert(header::CONTENT_ENCODING, GZIP);
                }
            }
            Protocol::Grpc => {
                fields.insert(header::TE, HeaderValue::from_static("trailers"));
                fields.insert(header::CONTENT_TYPE, GRPC);
                if *gzip {
                    fields.insert("grpc-encoding", GZIP);
                }
            }
        }
        for (name, value) in &headers.0 {
            fields.insert(name, value.clone());
        }
        request
    }
}

/// Before each message of gRPC: whether it is compressed, and its length.
const PREFIX: usize = 5;

fn prefix(body: &mut Vec<u8>, compressed: bool, length: usize) {
    body.put_u8(u8::from(compressed));
    body.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn compressed(plain: &[u8], protocol: Protocol) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 4 + 64), Compression::fast());
    // Writing into memory does not fail.
    let packed = encoder.write_all(plain).and_then(|()| encoder.finish()).unwrap_or_default();
    match protocol {
        Protocol::Http => packed,
        Protocol::Grpc => {
            let mut body = Vec::with_capacity(packed.len() + PREFIX);
            prefix(&mut body, true, packed.len());
            body.extend_from_slice(&packed);
            body
        }
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

// === impl Failure ===

impl Failure {
    pub(super) fn later(why: String) -> Self {
        Self::Later { why, after: None }
    }

    pub fn why(&self) -> &str {
        match self {
            Self::Later { why, .. } | Self::Never(why) => why,
        }
    }
}
