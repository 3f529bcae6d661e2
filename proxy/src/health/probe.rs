//! One check of one endpoint.
//!
//! - HTTP: a GET, whose status must be one of those expected.
//! - gRPC: `grpc.health.v1.Health/Check`, which must answer SERVING.
//! - TCP: a connection through to the application that is still there after a moment. The endpoint's proxy accepts before
//!   it has dialled its application, so that it accepts says nothing yet.

use std::{rc::Rc, time::Duration};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use outrigger_certs::{alpn, tls};
use outrigger_core::verdict::{Blame, Reason};
use outrigger_proto::spec::{CheckKind, Endpoint, StatusRange};
use tokio::{
    io::AsyncReadExt as _,
    task,
    time::{sleep, timeout},
};

use crate::{
    http::{Tasks, body::grpc_status, request::told_reason},
    path::upstream::{self, Remote},
    tcp::Io,
    worker::Worker,
};

const USER_AGENT: &str = concat!("outrigger-health-check/", env!("CARGO_PKG_VERSION"));
/// What an answer to a gRPC check may have; the real one has two bytes.
const MAX_ANSWER: usize = 4_096;
/// SERVING in `grpc.health.v1`.
const SERVING: u64 = 1;

pub(super) struct Probe {
    pub(super) worker: Rc<Worker>,
    pub(super) kind: CheckKind,
    pub(super) http2: bool,
    pub(super) host: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Result {
    Good,
    Bad(String),
    /// The endpoint was not asked.
    Nothing(String),
}

impl Probe {
    pub(super) async fn run(self, endpoint: &Endpoint, within: Duration) -> Result {
        match timeout(within, self.attempt(endpoint, within)).await {
            Ok(result) => result.unwrap_or_else(Result::Bad),
            Err(_) => Result::Bad(format!("no answer in {within:?}")),
        }
    }

    async fn attempt(&self, endpoint: &Endpoint, within: Duration) -> std::result::Result<Result, String> {
        match &self.kind {
            CheckKind::Tcp => self.tcp(endpoint, within).await,
            CheckKind::Http { path, expected } => {
                let request = self.request(Method::GET, path, Bytes::new())?;
                let response = self.send(endpoint, self.http2, request, within).await?;
                Ok(judge(&response).unwrap_or_else(|| status(response.status(), expected)))
            }
            CheckKind::Grpc { service } => {
                let mut request =
                    self.request(Method::POST, "/grpc.health.v1.Health/Check", health_request(service))?;
                let fields = request.headers_mut();
                fields.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/grpc"));
                fields.insert(header::TE, header::HeaderValue::from_static("trailers"));
                let response = self.send(endpoint, true, request, within).await?;
                match judge(&response) {
                    Some(result) => Ok(result),
                    None => serving(response).await,
                }
            }
        }
    }

    async fn tcp(&self, endpoint: &Endpoint, within: Duration) -> std::result::Result<Result, String> {
        let mut io = self.connect(endpoint, alpn::TCP, within).await?;
        let mut first = [0];
        tokio::select! {
            read = io.read(&mut first) => match read {
                Ok(0) => Err("closed at once".to_owned()),
                Ok(_) => Ok(Result::Good),
                Err(error) => Err(error.to_string()),
            },
            () = sleep(within / 2) => Ok(Result::Good),
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> std::result::Result<Request<Full<Bytes>>, String> {
        // HTTP/1 wants the path alone and a Host, HTTP/2 all of it in the target.
        let is_http2 = self.http2 || method == Method::POST;
        let request = match is_http2 {
            true => Request::builder().uri(format!("http://{}{path}", self.host)),
            false => Request::builder().uri(path).header(header::HOST, &self.host),
        };
        let request = request.method(method).header(header::USER_AGENT, USER_AGENT);
        request.body(Full::new(body)).map_err(|error| error.to_string())
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        http2: bool,
        request: Request<Full<Bytes>>,
        within: Duration,
    ) -> std::result::Result<Response<Incoming>, String> {
        if http2 {
            let io = TokioIo::new(self.connect(endpoint, alpn::H2, within).await?);
            let (mut sender, connection) = http2::Builder::new(Tasks).handshake(io).await.map_err(told)?;
            task::spawn_local(async move { drop(connection.await) });
            sender.send_request(request).await.map_err(told)
        } else {
            let io = TokioIo::new(self.connect(endpoint, alpn::H1, within).await?);
            let (mut sender, connection) = http1::handshake(io).await.map_err(told)?;
            task::spawn_local(async move { drop(connection.await) });
            sender.send_request(request).await.map_err(told)
        }
    }

    async fn connect(
        &self,
        endpoint: &Endpoint,
        alpn: &'static [u8],
        within: Duration,
    ) -> std::result::Result<Io, String> {
        let tls = tls::client_config(&self.worker.ctx.credentials, endpoint.identity.clone(), &[alpn]);
        let remote = Remote::Mesh { endpoint: endpoint.clone(), tls, alpn };
        upstream::connect(&self.worker, &remote, within).await.map_err(|error| error.to_string())
    }
}

fn told(error: hyper::Error) -> String {
    crate::error::told(&error)
}

/// What the endpoint's proxy has answered itself. `None`: it was the application.
fn judge<B>(response: &Response<B>) -> Option<Result> {
    let reason = told_reason(response.headers())?;
    let why = format!("the endpoint's proxy answered {reason}");
    Some(match reason.blame() {
        Blame::Upstream => Result::Bad(why),
        Blame::Proxy if reason != Reason::Overloaded => Result::Bad(why),
        Blame::Proxy | Blame::Policy | Blame::Downstream => Result::Nothing(why),
    })
}

fn status(status: StatusCode, expected: &[StatusRange]) -> Result {
    let good = match expected {
        [] => status.is_success(),
        expected => expected.iter().any(|range| range.contains(status.as_u16())),
    };
    if good { Result::Good } else { Result::Bad(format!("answered {status}")) }
}

/// `HealthCheckRequest { string service = 1; }` as one gRPC message.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        prost::encoding::string::encode(1, &service.to_owned(), &mut message);
    }
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put(message);
    framed.freeze()
}

async fn serving(response: Response<Incoming>) -> std::result::Result<Result, String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| error.to_string())?;
    let status = body.trailers().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
    if status != Some(0) {
        let status = status.map_or_else(|| "no status".to_owned(), |status| format!("grpc-status {status}"));
        return Ok(Result::Bad(format!("answered {} with {status}", head.status)));
    }
    Ok(match health_status(body.to_bytes()) {
        Some(SERVING) => Result::Good,
        Some(other) => Result::Bad(format!("serving status {other}")),
        None => Result::Bad("not a HealthCheckResponse".to_owned()),
    })
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; absent is 0, UNKNOWN.
fn health_status(mut framed: Bytes) -> Option<u64> {
    if framed.remaining() < 5 || framed.get_u8() != 0 {
        return None;
    }
    if framed.get_u32() as usize != framed.remaining() {
        return None;
    }
    let mut status = 0;
    while framed.has_remaining() {
        let (tag, wire) = prost::encoding::decode_key(&mut framed).ok()?;
        let context = prost::encoding::DecodeContext::default();
        match (tag, wire) {
            (1, prost::encoding::WireType::Varint) => {
                status = prost::encoding::decode_varint(&mut framed).ok()?;
            }
            _ => prost::encoding::skip_field(wire, tag, &mut framed, context).ok()?,
        }
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_grpc_health() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        for (message, expected) in [
            (&[0, 0, 0, 0, 2, 8, 1][..], Some(1)),
            (&[0, 0, 0, 0, 2, 8, 2], Some(2)),
            (&[0, 0, 0, 0, 0], Some(0)),
            (&[0, 0, 0, 0, 5, 0x12, 1, b'x', 8, 1], Some(1)),
            (&[0, 0, 0, 0, 3, 8, 1], None),
            (&[1, 0, 0, 0, 2, 8, 1], None),
            (&[0, 0, 0, 0, 1, 8], None),
            (&[], None),
        ] {
            assert_eq!(health_status(Bytes::copy_from_slice(message)), expected, "{message:?}");
        }
    }

    #[test]
    fn statuses() {
        let expected = [StatusRange::new(200, 204), StatusRange::new(418, 418)];
        for (code, good) in [(200, true), (204, true), (205, false), (418, true), (500, false)] {
            let judged = status(StatusCode::from_u16(code).unwrap(), &expected);
            assert_eq!(judged == Result::Good, good, "{code}");
        }
        assert_eq!(status(StatusCode::OK, &[]), Result::Good);
    }

    #[test]
    fn what_a_proxy_refuses_by_policy_says_nothing_about_the_endpoint() {
        for (reason, bad) in
            [("denied", false), ("rate-limited", false), ("connect-failed", true), ("draining", true)]
        {
            let response = Response::builder().header("outrigger-reason", reason).body(()).unwrap();
            assert_eq!(matches!(judge(&response), Some(Result::Bad(_))), bad, "{reason}");
        }
        assert_eq!(judge(&Response::new(())), None);
    }
}
