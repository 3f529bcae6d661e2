//! What makes two requests one.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::cache::RequestView;

/// URL and fields of a GET. Hop-by-hop fields are expected to be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    url: Box<str>,
    /// Sorted by name; lines of one name in their order.
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// Fields that tell requests apart for those who watch, and mean nothing to who answers.
const IGNORED: [&str; 17] = [
    "b3",
    "baggage",
    "connection",
    "grpc-timeout",
    "keep-alive",
    "request-id",
    "traceparent",
    "tracestate",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-cloud-trace-context",
    "x-correlation-id",
    "x-request-id",
];

impl Key {
    /// Nothing if the request is not to be joined with others: not a plain GET, for a part, or with
    /// conditions or directives by which the caller wants an answer of its own.
    pub fn of(request: &RequestView<'_>) -> Option<Self> {
        let RequestView { method, authority, path, headers, has_body } = *request;
        let wants_its_own = [
            header::RANGE,
            header::UPGRADE,
            header::IF_MATCH,
            header::IF_UNMODIFIED_SINCE,
            header::CACHE_CONTROL,
            header::PRAGMA,
        ];
        if *method != Method::GET || has_body || wants_its_own.iter().any(|name| headers.contains_key(name)) {
            return None;
        }
        Some(Self { url: url(authority, path), fields: fields(headers) })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

pub(super) fn url(authority: &str, path: &str) -> Box<str> {
    [authority, path].concat().into()
}

pub(super) fn is_ignored(name: &HeaderName) -> bool {
    let name = name.as_str();
    IGNORED.contains(&name) || name.starts_with("x-outrigger-") || name.starts_with("outrigger-")
}

fn fields(headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
    let mut fields: Vec<_> = headers
        .iter()
        .filter(|(name, _)| !is_ignored(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    // Stable, so the lines of one name stay in order.
    fields.sort_by(|(one, _), (other, _)| one.as_str().cmp(other.as_str()));
    fields
}
