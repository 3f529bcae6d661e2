//! What a telemetry backend has answered, as far as anybody needs to know.
//!
//! Nothing of it is believed but numbers: its words are cut, and at most 64 KiB are read of whatever it sends. A redirect
//! is not followed (a backend that has moved is a matter of configuration, and keys are in the request).

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use opentelemetry_proto::tonic::collector::{
    metrics::v1::ExportMetricsServiceResponse, trace::v1::ExportTraceServiceResponse,
};
use prost::Message as _;

use super::call::{Failure, Taken};
use crate::{config::otel::Protocol, trace::Signal};

const LONGEST: usize = 64 << 10;
/// Of what it says.
const LONGEST_TEXT: usize = 256;
/// A backend may ask for a pause, but not for ever.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// And whether it was read to its end.
pub(super) async fn read(
    response: Response<Incoming>,
    protocol: Protocol,
    signal: Signal,
) -> (Result<Taken, Failure>, bool) {
    let (head, mut body) = response.into_parts();
    let mut bytes = BytesMut::new();
    let mut trailers = None;
    let mut cut = None;
    while let Some(frame) = body.frame().await {
        match frame.map(hyper::body::Frame::into_data) {
            Ok(Ok(data)) if bytes.len() + data.len() > LONGEST => {
                cut = Some(format!("its answer has more than {LONGEST} bytes"));
                break;
            }
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.into_trailers().ok(),
            Err(error) => {
                cut = Some(format!("its answer broke off: {error}"));
                break;
            }
        }
    }
    let whole = cut.is_none();
    let result = match protocol {
        Protocol::Http => http(head.status, &head.headers, &bytes, signal, cut),
        Protocol::Grpc => grpc(head.status, trailers.as_ref().unwrap_or(&head.headers), &bytes, signal, cut),
    };
    (result, whole)
}

fn http(
    status: StatusCode,
    fields: &HeaderMap,
    body: &[u8],
    signal: Signal,
    cut: Option<String>,
) -> Result<Taken, Failure> {
    if !status.is_success() {
        let why = match fields.get(header::LOCATION) {
            Some(_) if status.is_redirection() => format!("{status}, which is not followed"),
            _ => status.to_string(),
        };
        return Err(match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Failure::Later { why, after: pause(fields) },
            _ => Failure::Never(why),
        });
    }
    if let Some(why) = cut {
        // It was taken, or something else than a backend is there; nobody knows, and twice would be worse.
        return Err(Failure::Never(why));
    }
    let protobuf = fields
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/x-protobuf"));
    if !protobuf {
        // Backends that answer with nothing, or in JSON, have taken it all the same.
        return Ok(Taken::default());
    }
    decode(body, signal)
}

fn grpc(
    status: StatusCode,
    fields: &HeaderMap,
    body: &[u8],
    signal: Signal,
    cut: Option<String>,
) -> Result<Taken, Failure> {
    let code = fields.get("grpc-status").and_then(|code| code.to_str().ok()?.parse::<u16>().ok());
    let Some(code) = code else {
        let why = cut.unwrap_or_else(|| format!("{status} without a gRPC status"));
        return Err(match status {
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Failure::later(why),
            _ => Failure::Never(why),
        });
    };
    if code != 0 {
        let words = fields.get("grpc-message").map(|words| text(&String::from_utf8_lossy(words.as_bytes())));
        let why = format!("gRPC status {code}: {}", words.unwrap_or_default());
        // CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
        return Err(match code {
            1 | 4 | 8 | 10 | 11 | 14 | 15 => Failure::later(why),
            _ => Failure::Never(why),
        });
    }
    let mut message = body;
    let framed = message.len() >= 5 && message.get_u8() == 0 && message.get_u32() as usize == message.len();
    if !framed {
        return Err(Failure::Never("its answer is not a message of gRPC".to_owned()));
    }
    decode(message, signal)
}

fn decode(body: &[u8], signal: Signal) -> Result<Taken, Failure> {
    let taken = match signal {
        Signal::Traces => ExportTraceServiceResponse::decode(body).map(|answer| {
            answer.partial_success.map(|partial| (partial.rejected_spans, partial.error_message))
        }),
        Signal::Metrics => ExportMetricsServiceResponse::decode(body).map(|answer| {
            answer.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))
        }),
    };
    match taken {
        Ok(None) => Ok(Taken::default()),
        Ok(Some((rejected, message))) => {
            Ok(Taken { rejected: u64::try_from(rejected).unwrap_or(0), message: text(&message) })
        }
        Err(error) => Err(Failure::Never(format!("its answer is not OTLP: {error}"))),
    }
}

fn pause(fields: &HeaderMap) -> Option<Duration> {
    let seconds = fields.get(header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// Of a stranger, for the log.
fn text(words: &str) -> String {
    words[..words.floor_char_boundary(LONGEST_TEXT)].to_owned()
}
