//! Last step, where there is nothing to pass on: the proxy's own answers.
//!
//! Each carries the reason's code, the id under which the access log has the story, and one sentence for people. A gRPC
//! caller gets the same as a trailers-only answer, which is all that its library understands. The outermost proxy's
//! answer passes the inner ones unchanged, so the caller learns the first cause.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};
use outrigger_core::{detect::Detection, headers, limits, rate_limit::fields as rate_limit, verdict::Blame};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::detect;
use crate::{
    error::Error,
    http::{
        body::ResponseBody,
        exchange::{Exchange, Hold},
    },
    tcp::Sniffed,
    worker,
};

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Answers a request with an error.
pub fn refuse(exchange: &Rc<Exchange>, error: &Error) -> Response<ResponseBody> {
    let reason = error.reason();
    // Who sends what is malformed does not get to send more; a deadline or a wish for the cache alone is no such fault.
    // After a refused CONNECT, its caller may already be sending what was meant for the tunnel.
    let close = reason.blame() == Blame::Downstream && reason.http_status().is_client_error()
        || exchange.method == http::Method::CONNECT
        || error.ends_connection();
    exchange.blame(reason, error.to_string());
    if let Some(limit) = error.limit() {
        exchange.notes.limit.replace(Some(Arc::clone(limit)));
    }
    let mut fields = HeaderMap::with_capacity(12);
    fields.insert(headers::REASON, HeaderValue::from_static(reason.as_str()));
    fields.insert(headers::ID, id_value(exchange.id));
    hints(error, exchange.grpc, &mut fields);
    let mut text = Bytes::new();
    let status = if exchange.grpc {
        fields.insert(header::CONTENT_TYPE, GRPC);
        fields.insert("grpc-status", HeaderValue::from_static(reason.grpc_status().as_str()));
        fields.insert("grpc-message", HeaderValue::from_static(reason.explanation()));
        exchange.set_grpc_status(Some(u16::from(reason.grpc_status().code())));
        StatusCode::OK
    } else {
        fields.insert(header::CONTENT_TYPE, TEXT);
        text = Bytes::from_static(reason.explanation().as_bytes());
        if exchange.method == http::Method::HEAD {
            fields.insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
            text = Bytes::new();
        }
        reason.http_status()
    };
    if close && !exchange.caller.http2 {
        fields.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.answer_begins(status.as_u16(), Hold::default(), worker::now());
    let mut response = Response::new(ResponseBody::own(text, Rc::clone(exchange)));
    *response.status_mut() = status;
    *response.version_mut() = if exchange.caller.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    *response.headers_mut() = fields;
    response
}

/// When to ask again, and what a rate limit says about itself. For gRPC, whose answers here are trailers only, the same.
fn hints(error: &Error, grpc: bool, fields: &mut HeaderMap) {
    if let Some(wait) = error.retry_after() {
        fields.insert(header::RETRY_AFTER, rate_limit::retry_after(wait));
        if grpc {
            // What gRPC libraries go by (proposal A6).
            let millis = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
            fields.insert("grpc-retry-pushback-ms", HeaderValue::from(millis));
        }
    }
    if let Error::RateLimited(refusal) = error {
        if let Some(state) = &refusal.state {
            fields.insert(rate_limit::RATE_LIMIT, state.clone());
        }
        if let Some(policy) = &refusal.policy {
            fields.insert(rate_limit::RATE_LIMIT_POLICY, policy.clone());
        }
    }
}

/// The same for a caller whose bytes never became a request: the answer as it goes over the wire.
pub fn refuse_raw(id: u64, error: &Error) -> Bytes {
    let reason = error.reason();
    let text = reason.explanation();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {length}\r\n\
         connection: close\r\noutrigger-reason: {reason}\r\noutrigger-id: {id:016x}\r\n\r\n{text}",
        status = reason.http_status(),
        length = text.len(),
    )
    .into()
}

/// Refuses a connection that is not served at all: in words if it speaks HTTP/1, otherwise by a reset.
pub async fn turn_away(mut io: Sniffed, id: u64, error: &Error) {
    let spoken = match detect::first_bytes(&mut io, limits::DETECT_TIMEOUT).await {
        Ok(Detection::Http1) => {
            io.write_all(&refuse_raw(id, error)).await.is_ok() && io.shutdown().await.is_ok()
        }
        Ok(Detection::Tls | Detection::Http2 | Detection::Opaque | Detection::NeedMore) | Err(_) => false,
    };
    if !spoken {
        io.get_ref().reset_on_drop();
        return;
    }
    // Closing with unread bytes would be a reset, and lose what was said.
    let mut sink = [0_u8; 4096];
    let drained = async {
        let mut left = limits::MAX_DRAIN_BYTES;
        while let Ok(n) = io.read(&mut sink).await
            && n > 0
        {
            left = left.saturating_sub(n as u64);
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(Duration::from_secs(1), drained).await;
}

fn id_value(id: u64) -> HeaderValue {
    let mut text = [0_u8; 16];
    for (n, digit) in text.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(id >> (60 - 4 * n)) as usize & 15];
    }
    HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static("0"))
}
