//! What a telemetry backend has answered, as far as anybody needs to know.
//!
//! Nothing of it is believed but numbers: its words are cut, and at most 64 KiB are read of whatever it sends. A redirect
//! is not followed (a backend that has moved is a matter of configuration, and keys are in the request).

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
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
        let after = retry_delay(fields);
        return Err(match code {
            // CANCELLED, DEADLINE_EXCEEDED, ABORTED, OUT_OF_RANGE, UNAVAILABLE, DATA_LOSS
            1 | 4 | 10 | 11 | 14 | 15 => Failure::Later { why, after },
            // RESOURCE_EXHAUSTED: of somebody who has not said when, it is a message that will always be too large.
            8 if after.is_some() => Failure::Later { why, after },
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

/// What gRPC has in place of `Retry-After`: `google.rpc.RetryInfo` among the details of the status.
fn retry_delay(fields: &HeaderMap) -> Option<Duration> {
    const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
    // Padding is there or not, as the sender likes.
    let text = fields.get("grpc-status-details-bin")?.to_str().ok()?.trim_end_matches('=');
    let status = Rich::decode(&*STANDARD_NO_PAD.decode(text).ok()?).ok()?;
    let info = status.details.into_iter().find(|detail| detail.type_url == RETRY_INFO)?;
    let delay = RetryInfo::decode(&*info.value).ok()?.delay.unwrap_or_default();
    let delay = Duration::new(delay.seconds.try_into().ok()?, delay.nanos.try_into().ok()?);
    Some(delay.min(LONGEST_PAUSE))
}

/// `google.rpc.Status`, as far as it matters.
#[derive(prost::Message)]
struct Rich {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

#[derive(prost::Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    delay: Option<Span>,
}

#[derive(prost::Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// Of a stranger, for the log.
fn text(words: &str) -> String {
    words[..words.floor_char_boundary(LONGEST_TEXT)].to_owned()
}
