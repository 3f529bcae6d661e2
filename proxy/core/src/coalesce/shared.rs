//! An answer that several callers get.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};

use super::key::is_ignored;
use crate::cache::{self, Body, Directives, Gatherer};

/// A whole answer. The leader gets it from upstream as it comes, the followers get this.
#[derive(Debug)]
pub struct SharedAnswer {
    pub status: StatusCode,
    /// Without hop-by-hop fields, as far as those of the answer were.
    pub headers: HeaderMap,
    pub body: Body,
}

/// Takes the leader's answer down while it passes by. Dropped, there is nothing to share.
#[derive(Debug)]
pub struct Recording {
    status: StatusCode,
    headers: HeaderMap,
    body: Gatherer,
}

impl Recording {
    /// Nothing if the answer is not for all: for one caller (`private`, Set-Cookie), not to be used again
    /// (`no-store`, `no-cache`), in part, in error, without an end, larger than `max_bytes`, or dependent on
    /// a field that is not compared.
    pub fn begin(status: StatusCode, headers: &HeaderMap, max_bytes: u64) -> Option<Self> {
        let said = Directives::of(headers);
        // `public` does not help a cookie here: it was made for one of several that asked at once.
        let for_all = cache::may_be_shared(headers, &said)
            && !headers.contains_key(header::SET_COOKIE)
            && !said.no_store
            && !said.no_cache
            && cache::is_understood(status)
            && cache::vary(headers).is_some_and(|vary| !vary.iter().any(is_ignored))
            && !is_endless(headers);
        if !for_all {
            return None;
        }
        let body = Gatherer::new(cache::content_length(headers), max_bytes)?;
        Some(Self { status, headers: headers.clone(), body })
    }

    /// A piece of the body. False: it is too large, or longer than promised.
    #[must_use]
    pub fn push(&mut self, data: &Bytes) -> bool {
        self.body.push(data)
    }

    /// At the clean end of the body, without trailers. Nothing if it is shorter than promised.
    pub fn finish(self) -> Option<Arc<SharedAnswer>> {
        let Self { status, headers, body } = self;
        Some(Arc::new(SharedAnswer { status, headers, body: body.finish()? }))
    }
}

/// Streams of events, of pictures, of calls.
fn is_endless(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).map(|kind| kind.as_bytes().to_ascii_lowercase());
    let kind = kind.unwrap_or_default();
    [&b"text/event-stream"[..], b"multipart/x-mixed-replace", b"application/grpc", b"application/x-ndjson"]
        .iter()
        .any(|endless| kind.starts_with(endless))
}
