//! Which answers are stored (RFC 9111 section 3), and taking one down while it passes by.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use super::{
    body::Gatherer,
    conditions,
    directives::Directives,
    freshness::{Freshness, Now, is_explicit},
    request::Asked,
    select::{self, Vary},
    stored::{Stored, head_bytes, kept_fields},
};
use crate::headers;

/// An answer on its way to the caller. Dropped before its end, it was never there.
#[derive(Debug)]
pub struct Recorder {
    asked: Box<Asked>,
    status: StatusCode,
    headers: HeaderMap,
    said: Directives,
    freshness: Freshness,
    vary: Vary,
    body: Gatherer,
}

/// A whole answer, to be handed to [`super::Cache::store`].
#[derive(Debug)]
pub struct Complete {
    pub(super) asked: Box<Asked>,
    pub(super) vary: Vary,
    pub(super) stored: Arc<Stored>,
}

impl Recorder {
    /// Gives the request back if its answer is not to be stored.
    pub(super) fn begin(
        asked: Box<Asked>,
        status: StatusCode,
        headers: &HeaderMap,
        now: Now,
    ) -> Result<Self, Box<Asked>> {
        let said = Directives::of(headers);
        let freshness = Freshness::new(headers, headers, &said, asked.requested, now);
        if !is_storable(&asked, status, headers, &said, &freshness, now) {
            return Err(asked);
        }
        let Some(vary) = select::vary(headers) else { return Err(asked) };
        let kept = kept_fields(headers);
        let left = asked.policy.max_object_bytes.checked_sub(head_bytes(&kept));
        match left.and_then(|left| Gatherer::new(content_length(headers), left)) {
            Some(body) => Ok(Self { asked, status, headers: kept, said, freshness, vary, body }),
            None => Err(asked),
        }
    }

    /// A piece of the body. False: it is over the limit or longer than promised, so drop the recorder.
    #[must_use]
    pub fn push(&mut self, data: &Bytes) -> bool {
        self.body.push(data)
    }

    /// At the clean end of the body, without trailers (those are not stored, and an answer without its
    /// trailers is another one: drop the recorder). Nothing if it is shorter than promised.
    pub fn finish(mut self) -> Option<Complete> {
        let body = self.body.finish()?;
        if self.status != StatusCode::NO_CONTENT {
            self.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        let stored = Stored {
            status: self.status,
            headers: self.headers,
            body,
            said: self.said,
            freshness: self.freshness,
        };
        Some(Complete { asked: self.asked, vary: self.vary, stored: Arc::new(stored) })
    }
}

fn is_storable(
    asked: &Asked,
    status: StatusCode,
    headers: &HeaderMap,
    said: &Directives,
    freshness: &Freshness,
    now: Now,
) -> bool {
    if asked.is_head || !is_understood(status) || !may_be_kept(asked, headers, said) {
        return false;
    }
    if !is_explicit(headers, said) {
        // Nothing said about its life: only what is plain, and what nothing in the request ties to one user.
        let of_one_user = [header::AUTHORIZATION, header::COOKIE];
        let plain =
            status == StatusCode::OK && !of_one_user.iter().any(|name| asked.headers.contains_key(name));
        if !(said.public || said.no_cache || plain) {
            return false;
        }
    }
    // Of use later: still fresh, to be confirmed, or for want of a better one.
    let on_error = said.stale_if_error.is_some() || asked.policy.stale_if_error.is_some();
    freshness.age(now) < freshness.lifetime()
        || conditions::has_validator(headers)
        || (on_error && said.allows_stale_on_error())
}

/// What the origin's words allow for this request.
pub(super) fn may_be_kept(asked: &Asked, headers: &HeaderMap, said: &Directives) -> bool {
    // Section 3.5.
    let allowed = said.public || said.s_maxage.is_some() || said.must_revalidate;
    (allowed || !asked.headers.contains_key(header::AUTHORIZATION)) && may_be_shared(headers, said)
}

/// What no other caller may be given, whatever is asked.
pub(crate) fn may_be_shared(headers: &HeaderMap, said: &Directives) -> bool {
    // Section 5.2.2.3: every status that is stored here is understood.
    let no_store = said.no_store && !said.must_understand;
    !no_store
        && !said.private
        && (said.public || !headers.contains_key(header::SET_COOKIE))
        && !headers.contains_key(header::CONTENT_RANGE)
        && !headers.contains_key(headers::REASON)
}

/// Those that RFC 9110 section 15.1 calls cacheable, without 206: parts are not kept.
pub(crate) fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Whether an answer that is not stored says that the stored one has had its day. Not so: an error of the
/// server, and what is about the moment or the request (section 4.3.3).
pub(super) fn supersedes(status: StatusCode) -> bool {
    !status.is_server_error() && !matches!(status.as_u16(), 206 | 304 | 408 | 412 | 416 | 425 | 429)
}

/// What the head promises; checked to be one plain number when it came in.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
