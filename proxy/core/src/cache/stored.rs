//! An answer that is kept, and what a caller is given of it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

use super::{
    body::Body,
    conditions,
    directives::Directives,
    freshness::{Freshness, Now},
    request::Asked,
};
use crate::headers;

/// What a header map takes for a field beside its text.
const FIELD_BYTES: u64 = 192;

/// A complete answer. Never changes; a confirmed one is another with the same body.
#[derive(Debug)]
pub struct Stored {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Body,
    pub(super) said: Directives,
    pub(super) freshness: Freshness,
}

/// An answer from memory.
#[derive(Clone, Debug)]
pub struct Hit {
    stored: Arc<Stored>,
    age: Duration,
    is_stale: bool,
    is_head: bool,
    not_modified: bool,
    /// Of the answer that just confirmed it, for this caller alone.
    cookies: Vec<HeaderValue>,
}

/// What a stored answer is worth to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    Fresh,
    /// Beyond its time, and the request takes it all the same.
    StaleButTaken,
    /// Not without the origin's word.
    ToValidate,
}

impl Stored {
    pub(super) fn worth(&self, request: &Directives, now: Now) -> Worth {
        let seconds = |seconds: u32| Duration::from_secs(u64::from(seconds));
        let age = self.freshness.age(now);
        let lifetime = self.freshness.lifetime();
        let too_old = request.max_age.is_some_and(|limit| age > seconds(limit) || limit == 0);
        let too_short =
            request.min_fresh.is_some_and(|wanted| age.saturating_add(seconds(wanted)) > lifetime);
        if request.no_cache || self.said.no_cache || too_old {
            Worth::ToValidate
        } else if age < lifetime {
            if too_short { Worth::ToValidate } else { Worth::Fresh }
        } else {
            let staleness = self.freshness.staleness(now);
            let taken = request.max_stale.is_some_and(|limit| staleness <= seconds(limit));
            let taken = taken && !too_short && self.said.allows_stale();
            if taken { Worth::StaleButTaken } else { Worth::ToValidate }
        }
    }

    /// Whether it may stand in for an answer that did not come (RFC 5861 section 4). The longest of what the
    /// origin, the request and the policy allow counts; a request that insists on the origin (`no-cache`) has
    /// to say itself that it takes this one.
    pub(super) fn serves_for_error(&self, asked: &Asked, now: Now) -> bool {
        let of = |said: &Directives| said.stale_if_error.map(|limit| Duration::from_secs(u64::from(limit)));
        let by_request = of(&asked.said);
        if !self.said.allows_stale_on_error() || (asked.said.no_cache && by_request.is_none()) {
            return false;
        }
        let window = of(&self.said).max(by_request).max(asked.policy.stale_if_error);
        window.is_some_and(|window| self.freshness.staleness(now) <= window)
    }

    /// Head and body in memory.
    pub(super) fn bytes(&self) -> u64 {
        head_bytes(&self.headers) + self.body.len() + 48 * self.body.chunks().len() as u64
    }
}

impl Hit {
    pub(super) fn new(
        stored: &Arc<Stored>,
        is_head: bool,
        request: &HeaderMap,
        is_stale: bool,
        now: Now,
    ) -> Self {
        Self {
            age: stored.freshness.age(now),
            is_stale,
            is_head,
            not_modified: conditions::already_held(request, stored),
            cookies: Vec::new(),
            stored: Arc::clone(stored),
        }
    }

    pub(super) fn with_cookies(mut self, confirmed_by: &HeaderMap) -> Self {
        self.cookies = confirmed_by.get_all(header::SET_COOKIE).iter().cloned().collect();
        self
    }

    /// 304 if that is what the caller holds already.
    pub fn status(&self) -> StatusCode {
        if self.not_modified { StatusCode::NOT_MODIFIED } else { self.stored.status }
    }

    pub fn age(&self) -> Duration {
        self.age
    }

    /// Beyond its time: by the caller's leave, or for want of a better one.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }

    /// The head's fields, with Age.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = if self.not_modified { self.fields_of_304() } else { self.stored.headers.clone() };
        headers.insert(header::AGE, HeaderValue::from(self.age.as_secs()));
        for cookie in &self.cookies {
            headers.append(header::SET_COOKIE, cookie.clone());
        }
        headers
    }

    /// What is sent of it: nothing to HEAD, nor with 304.
    pub fn body(&self) -> &[Bytes] {
        if self.is_head || self.not_modified { &[] } else { self.stored.body.chunks() }
    }

    /// RFC 9110 section 15.4.5.
    fn fields_of_304(&self) -> HeaderMap {
        const KEPT: [HeaderName; 7] = [
            header::CACHE_CONTROL,
            header::CONTENT_LOCATION,
            header::DATE,
            header::ETAG,
            header::EXPIRES,
            header::LAST_MODIFIED,
            header::VARY,
        ];
        let mut headers = HeaderMap::with_capacity(KEPT.len() + 1);
        for name in KEPT {
            for value in self.stored.headers.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        headers
    }
}

pub(super) fn head_bytes(headers: &HeaderMap) -> u64 {
    headers.iter().map(|(name, value)| (name.as_str().len() + value.len()) as u64 + FIELD_BYTES).sum()
}

/// The fields worth keeping (section 3.1). Values are copied: as they are they hold on to the buffer they
/// were read into.
pub(super) fn kept_fields(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::with_capacity(headers.len() + 1);
    for (name, value) in headers {
        if !is_dropped(name)
            && let Ok(copy) = HeaderValue::from_bytes(value.as_bytes())
        {
            kept.append(name.clone(), copy);
        }
    }
    kept
}

/// Of one connection, of one exchange, or counted anew with each answer.
pub(super) fn is_dropped(name: &HeaderName) -> bool {
    const CONNECTION: [&str; 9] = [
        "age",
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    ];
    let name = name.as_str();
    CONNECTION.contains(&name)
        || name == headers::REASON.as_str()
        || name == headers::ID.as_str()
        || name == "trailer"
}
