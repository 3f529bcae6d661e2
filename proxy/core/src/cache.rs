//! Answers of one backend kept in memory, by RFC 9111, for every worker of a proxy.
//!
//! The proxy stands beside one workload, but several users' requests pass through it, so this is a *shared*
//! cache in the RFC's sense: `private` is not stored, answers to authorized requests only where the origin
//! allows it in words, and never across different credentials. GET is stored, GET and HEAD are answered.
//! There are no heuristics: what does not say how long it is fresh is asked for each time, with its
//! validators.
//!
//! ```text
//! lookup ─▶ Fresh(hit) ──────────────────────────────────────────────────▶ the answer
//!    ├────▶ Unsatisfiable ───────────────────────────────────────────────▶ 504 (only-if-cached)
//!    ├────▶ Bypass ─▶ send, pass on ─▶ invalidate(request, answer's head)
//!    ├────▶ Miss(pending) ─▶ send ─────────────────────┐
//!    └────▶ Stale(stale) ─▶ set_conditions, send       │
//!                │ 304, conditions set ─▶ freshen ─▶ Ok(hit) ──────────────▶ the answer
//!                │                            └─▶ Err(pending): send again without conditions
//!                │ failed ─▶ for_error(now) ─▶ Some(hit) ─────────────────▶ the answer
//!                └ other answer ─▶ into_pending        ▼
//!                            begin_store(pending, head) ─▶ Recorder: push…, finish ─▶ Complete ─▶ store
//! ```
//!
//! The shell keeps it behind a `Mutex` and holds that for `lookup`, `begin_store`, `store`, `freshen` and
//! `invalidate` only: none of them touches a body. It sends nothing, reads no clock, and knows no fallback
//! ([`crate::fallback`]).

mod body;
mod conditions;
mod directives;
mod freshness;
mod record;
mod request;
mod select;
mod store;
mod stored;

use std::{collections::VecDeque, sync::Arc};

use http::{HeaderMap, StatusCode, Uri, header};
use outrigger_proto::spec;

pub use body::Body;
pub use freshness::Now;
pub use record::{Complete, Recorder};
pub use request::{Pending, RequestView};
pub use store::MAX_VARIANTS;
pub use stored::{Hit, Stored};

pub(crate) use body::Gatherer;
pub(crate) use directives::Directives;
pub(crate) use record::{content_length, is_understood, may_be_shared};
pub(crate) use select::vary;

use freshness::Freshness;
use request::{Asked, write_url};
use store::{EntryId, Store};
use stored::Worth;

/// Invalidations that are remembered, so that an answer which set out before one is not stored after it. An
/// answer that more than so many have overtaken is not stored.
const REMEMBERED_INVALIDATIONS: usize = 1024;

#[derive(Debug)]
pub struct Cache {
    policy: spec::Cache,
    store: Store,
    /// Hashes of URLs, the newest last.
    invalidated: VecDeque<u64>,
    /// All there were.
    invalidations: u64,
    evicted: u64,
    /// For building URLs without an allocation.
    url: String,
}

#[derive(Debug)]
pub enum Lookup {
    Fresh(Hit),
    /// Ask the origin whether it still holds.
    Stale(Stale),
    Miss(Pending),
    /// The caller wants an answer from memory or none: 504.
    Unsatisfiable,
    /// Nothing for a cache: pass it on.
    Bypass,
}

/// An answer that needs its origin's word, and the request that asks for it.
#[derive(Debug)]
pub struct Stale {
    asked: Box<Asked>,
    id: EntryId,
    stored: Arc<Stored>,
}

/// For metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub entries: usize,
    pub bytes: u64,
    /// Since the beginning, for want of room.
    pub evicted: u64,
}

impl Stale {
    /// Makes the request conditional. False: the answer has no validator, the request stays as it is, and a
    /// 304 is the caller's own, not to be given to [`Cache::freshen`].
    #[must_use]
    pub fn set_conditions(&self, request: &mut HeaderMap) -> bool {
        conditions::set(request, &self.stored)
    }

    /// The stale answer where a fresh one failed, if it may be used (RFC 5861).
    pub fn for_error(&self, now: Now) -> Option<Hit> {
        self.stored
            .serves_for_error(&self.asked, now)
            .then(|| Hit::new(&self.stored, self.asked.is_head, &self.asked.headers, true, now))
    }

    /// When an answer came that is no confirmation.
    pub fn into_pending(self) -> Pending {
        Pending(self.asked)
    }
}

impl Cache {
    pub fn new(policy: &spec::Cache) -> Self {
        Self {
            policy: *policy,
            store: Store::default(),
            invalidated: VecDeque::new(),
            invalidations: 0,
            evicted: 0,
            url: String::new(),
        }
    }

    /// Keeps what fits.
    pub fn set_policy(&mut self, policy: &spec::Cache) {
        self.policy = *policy;
        self.evicted += self.store.shrink_to(policy.max_bytes);
    }

    pub fn lookup(&mut self, request: &RequestView<'_>, now: Now) -> Lookup {
        let Some(said) = request.wishes() else { return Lookup::Bypass };
        write_url(&mut self.url, request.authority, request.path);
        let Some((id, stored)) = self.store.find(&self.url, request.headers) else {
            if said.only_if_cached {
                return Lookup::Unsatisfiable;
            }
            return Lookup::Miss(Pending(self.asked(request, said, None, now)));
        };
        let stored = Arc::clone(stored);
        self.store.touch(id);
        match stored.worth(&said, now) {
            Worth::Fresh => Lookup::Fresh(Hit::new(&stored, request.is_head(), request.headers, false, now)),
            Worth::StaleButTaken => {
                Lookup::Fresh(Hit::new(&stored, request.is_head(), request.headers, true, now))
            }
            Worth::ToValidate if said.only_if_cached => Lookup::Unsatisfiable,
            Worth::ToValidate => {
                Lookup::Stale(Stale { asked: self.asked(request, said, Some(id), now), id, stored })
            }
        }
    }

    /// At the head of an answer from upstream. What is not to be stored has no recorder, and the stored
    /// answer that it says is outdated goes.
    pub fn begin_store(
        &mut self,
        pending: Pending,
        status: StatusCode,
        headers: &HeaderMap,
        now: Now,
    ) -> Option<Recorder> {
        match Recorder::begin(pending.0, status, headers, now) {
            Ok(recorder) => Some(recorder),
            Err(asked) => {
                // HEAD says less than a stored answer to GET is worth.
                if let Some(id) = asked.replaces.filter(|_| !asked.is_head && record::supersedes(status)) {
                    self.store.remove(id);
                }
                None
            }
        }
    }

    /// False: the URL was invalidated while the answer was under way, or it is larger than the whole cache
    /// may be.
    pub fn store(&mut self, complete: Complete) -> bool {
        let Complete { asked, vary, stored } = complete;
        if self.overtaken(&asked) {
            return false;
        }
        self.store.insert(&asked.url, vary, &asked.headers, stored);
        let evicted = self.store.shrink_to(self.policy.max_bytes);
        self.evicted += evicted;
        self.store.find(&asked.url, &asked.headers).is_some()
    }

    /// The origin confirmed the answer with a 304. An error if the 304 is about another one: what was stored
    /// is gone, and the request has to be sent again without conditions.
    pub fn freshen(&mut self, stale: Stale, confirmation: &HeaderMap, now: Now) -> Result<Hit, Pending> {
        let Stale { mut asked, id, stored } = stale;
        if !conditions::confirms(confirmation, &stored) {
            self.store.remove(id);
            asked.replaces = None;
            return Err(Pending(asked));
        }
        let headers = conditions::updated(&stored.headers, confirmation);
        let said = Directives::of(&headers);
        let freshness = Freshness::new(&headers, confirmation, &said, asked.requested, now);
        let fresh =
            Arc::new(Stored { status: stored.status, headers, body: stored.body.clone(), said, freshness });
        let keeps = record::may_be_kept(&asked, &fresh.headers, &said)
            && vary(&fresh.headers) == vary(&stored.headers);
        if keeps {
            self.store.replace(id, Arc::clone(&fresh));
            self.evicted += self.store.shrink_to(self.policy.max_bytes);
        } else {
            self.store.remove(id);
        }
        Ok(Hit::new(&fresh, asked.is_head, &asked.headers, false, now).with_cookies(confirmation))
    }

    /// At the head of an answer to any request: what a change made doubtful goes (section 4.4). Does nothing
    /// for safe methods and for errors.
    pub fn invalidate(&mut self, request: &RequestView<'_>, status: StatusCode, headers: &HeaderMap) {
        if request.method.is_safe() || !(status.is_success() || status.is_redirection()) {
            return;
        }
        self.forget(request.authority, request.path);
        for name in [header::LOCATION, header::CONTENT_LOCATION] {
            let Some(target) = headers.get(name).and_then(|value| Uri::try_from(value.as_bytes()).ok())
            else {
                continue;
            };
            // Another host's entries are none of its business.
            let same_origin = target.authority().is_none_or(|authority| {
                let bare = |text: &str| text.strip_suffix(":80").unwrap_or(text).to_ascii_lowercase();
                target.scheme_str() == Some("http") && bare(authority.as_str()) == bare(request.authority)
            });
            if let Some(path) = target.path_and_query().filter(|_| same_origin) {
                self.forget(request.authority, path.as_str());
            }
        }
    }

    pub fn usage(&self) -> Usage {
        Usage { entries: self.store.len(), bytes: self.store.bytes(), evicted: self.evicted }
    }

    fn asked(
        &self,
        request: &RequestView<'_>,
        said: Directives,
        replaces: Option<EntryId>,
        now: Now,
    ) -> Box<Asked> {
        Box::new(Asked {
            url: self.url.as_str().into(),
            is_head: request.is_head(),
            headers: request.headers.clone(),
            said,
            requested: now,
            invalidations: self.invalidations,
            replaces,
            policy: self.policy,
        })
    }

    fn forget(&mut self, authority: &str, path: &str) {
        write_url(&mut self.url, authority, path);
        self.store.remove_url(&self.url);
        if self.invalidated.len() == REMEMBERED_INVALIDATIONS {
            self.invalidated.pop_front();
        }
        self.invalidated.push_back(self.store.hash(&self.url));
        self.invalidations += 1;
    }

    /// Whether its URL was invalidated after it was asked for, as far as is known.
    fn overtaken(&self, asked: &Asked) -> bool {
        let since = self.invalidations - asked.invalidations;
        if since > self.invalidated.len() as u64 {
            return true;
        }
        let url = self.store.hash(&asked.url);
        self.invalidated.iter().rev().take(since as usize).any(|hash| *hash == url)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod tests;
