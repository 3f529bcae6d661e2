//! What a caller gets when the upstream has nothing good to say, and what is answered from memory.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::{Serialize, Serializer};

use super::super::{BackendKey, StatusRange};

/// Tried in this order: a stale answer (`Cache::stale_if_error`), the backup, the static answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fallback {
    pub on: FallbackOn,
    pub to: FallbackTo,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FallbackOn {
    /// Every endpoint is ejected, or a bulkhead sheds.
    pub breaker: bool,
    pub no_endpoints: bool,
    /// Connect, per-try or request timeout.
    pub timeout: bool,
    /// No connection, or one that broke before an answer.
    pub failure: bool,
    /// The upstream's own answers. Empty by default.
    pub statuses: Vec<StatusRange>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FallbackTo {
    Backend(BackendKey),
    Answer(Answer),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answer {
    #[serde(serialize_with = "status_as_number")]
    pub status: StatusCode,
    #[serde(serialize_with = "fields_as_text")]
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// At most 64 KiB.
    #[serde(serialize_with = "body_as_text")]
    pub body: Bytes,
}

/// Response cache of one backend, per proxy (RFC 9111, a private cache of this workload).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// All answers together, with their heads. 16 MiB.
    pub max_bytes: u64,
    /// One answer. 1 MiB.
    pub max_object_bytes: u64,
    /// A stale answer serves for so long where a fresh one fails (RFC 5861), also unasked by its origin.
    pub stale_if_error: Option<Duration>,
}

impl Answer {
    /// Whether a policy may set the field: what frames an answer, or belongs to one connection, is for the proxy to say.
    pub fn may_have(name: &HeaderName) -> bool {
        const FRAMING: [&str; 9] = [
            "connection",
            "content-length",
            "keep-alive",
            "proxy-connection",
            "te",
            "trailer",
            "trailers",
            "transfer-encoding",
            "upgrade",
        ];
        !FRAMING.contains(&name.as_str())
    }

    /// 204 and 304 never have a body (RFC 9110, 15.3.5 and 15.4.5), nor has 205.
    pub fn may_have_body(status: StatusCode) -> bool {
        !status.is_informational()
            && !matches!(
                status,
                StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
            )
    }
}

impl Default for FallbackOn {
    fn default() -> Self {
        Self { breaker: true, no_endpoints: true, timeout: true, failure: true, statuses: Vec::new() }
    }
}

impl Default for Cache {
    fn default() -> Self {
        Self { max_bytes: 16 << 20, max_object_bytes: 1 << 20, stale_if_error: None }
    }
}

fn status_as_number<S: Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

fn fields_as_text<S: Serializer>(
    fields: &[(HeaderName, HeaderValue)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    serializer.collect_seq(fields.iter().map(|(name, value)| (name.as_str(), text(value))))
}

fn body_as_text<S: Serializer>(body: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&String::from_utf8_lossy(body))
}
