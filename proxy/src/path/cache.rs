//! Outbound step: an answer from memory, and taking down what may be one later. Decided in `core::cache`.
//!
//! The cache of a backend is shared by all workers behind a short lock, under which no body is touched.

use std::{
    mem,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use outrigger_core::cache::{self, Hit, Lookup, Now, Pending, Recorder, RequestView, Stale};
use outrigger_proto::spec::{self, BackendKey};

use super::coalesce::Leader;
use crate::{
    http::{
        body::ResponseBody,
        exchange::{Exchange, Hold},
    },
    worker,
};

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// The caches of all backends that have one, for all workers.
#[derive(Default)]
pub struct Caches(Mutex<HashMap<BackendKey, Shared>>);

/// The cache of one backend.
pub type Shared = Arc<Mutex<cache::Cache>>;

/// What a request is to caches, kept beside it on its way.
pub struct View {
    method: Method,
    pub authority: Box<str>,
    pub path: Box<str>,
    has_body: bool,
}

/// What is to be done with the answer.
#[derive(Debug)]
pub enum Memory {
    /// Nothing, but if it changed something, what is remembered of it goes.
    Bypass,
    Pending(Pending),
    /// `conditional`: the request asks whether this one still holds.
    Stale {
        stale: Stale,
        conditional: bool,
    },
}

/// How an answer comes to be from memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Hit,
    Stale,
    Revalidated,
    Coalesced,
}

/// What the cache says of a request.
pub enum Found {
    Answer(Hit),
    /// The caller wants nothing but an answer from memory.
    Nothing,
    Ask(Memory),
}

/// Listens to an answer's body on behalf of those who may get it later.
#[derive(Default)]
pub struct Tap {
    pub recorder: Option<(Recorder, Shared)>,
    pub leader: Option<Leader>,
}

// === impl Caches ===

impl Caches {
    /// The cache of a backend, made or changed to this policy.
    pub fn of(&self, key: &BackendKey, policy: &spec::Cache) -> Shared {
        let mut caches = lock(&self.0);
        let made = || Arc::new(Mutex::new(cache::Cache::new(policy)));
        let cache = Arc::clone(caches.entry_ref(key).or_insert_with(made));
        drop(caches);
        lock(&cache).set_policy(policy);
        cache
    }

    /// Forgets those that no worker has any more.
    pub fn prune(&self) {
        lock(&self.0).retain(|_, cache| Arc::strong_count(cache) > 1);
    }

    /// Sorted by backend.
    pub fn usage(&self) -> Vec<(BackendKey, cache::Usage)> {
        let caches = lock(&self.0);
        let mut usage: Vec<_> =
            caches.iter().map(|(key, cache)| (key.clone(), lock(cache).usage())).collect();
        usage.sort_by(|(one, _), (other, _)| one.cmp(other));
        usage
    }
}

// === impl View ===

impl View {
    pub fn of<B>(request: &Request<B>, has_body: bool) -> Self {
        let host = || request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("");
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        Self {
            method: request.method().clone(),
            authority: request.uri().authority().map_or_else(host, |authority| authority.as_str()).into(),
            path: target.into(),
            has_body,
        }
    }

    /// Whether an answer of this status means that something is not what it was.
    pub fn changes(&self, status: StatusCode) -> bool {
        !self.method.is_safe() && (status.is_success() || status.is_redirection())
    }

    pub fn with<'a>(&'a self, headers: &'a HeaderMap) -> RequestView<'a> {
        let Self { method, authority, path, has_body } = self;
        RequestView { method, authority, path, headers, has_body: *has_body }
    }
}

/// Looks for an answer in memory.
pub fn look(cache: &Shared, request: &RequestView<'_>) -> Found {
    match lock(cache).lookup(request, now()) {
        Lookup::Fresh(hit) => Found::Answer(hit),
        Lookup::Unsatisfiable => Found::Nothing,
        Lookup::Bypass => Found::Ask(Memory::Bypass),
        Lookup::Miss(pending) => Found::Ask(Memory::Pending(pending)),
        Lookup::Stale(stale) => Found::Ask(Memory::Stale { stale, conditional: false }),
    }
}

/// At the head of an answer that goes to the caller: takes it down if it may be stored.
pub fn record(cache: &Shared, memory: Memory, status: StatusCode, headers: &HeaderMap) -> Option<Recorder> {
    let pending = match memory {
        Memory::Bypass => return None,
        Memory::Pending(pending) => pending,
        Memory::Stale { stale, .. } => stale.into_pending(),
    };
    lock(cache).begin_store(pending, status, headers, now())
}

/// The origin says that what is remembered still holds. An error: it said so of another one, and has to be asked anew.
pub fn confirm(cache: &Shared, stale: Stale, headers: &HeaderMap) -> Result<Hit, Pending> {
    lock(cache).freshen(stale, headers, now())
}

/// A request has changed something.
pub fn invalidate(cache: &Shared, view: &View, status: StatusCode, headers: &HeaderMap) {
    if view.changes(status) {
        lock(cache).invalidate(&view.with(&HeaderMap::new()), status, headers);
    }
}

/// The answer from memory.
pub fn answer(exchange: &Rc<Exchange>, served: Served, hit: &Hit) -> Response<ResponseBody> {
    recall(exchange, served, hit.status(), hit.headers(), hit.body().to_vec())
}

/// An answer that somebody else got, which says so (RFC 9211) after what caches further up say of themselves.
pub fn recall(
    exchange: &Rc<Exchange>,
    served: Served,
    status: StatusCode,
    mut headers: HeaderMap,
    body: Vec<Bytes>,
) -> Response<ResponseBody> {
    exchange.notes.cache.set(Some(served.label()));
    headers.append(CACHE_STATUS, HeaderValue::from_static(served.cache_status()));
    respond(exchange, status, headers, body)
}

/// An answer that is all here.
pub fn respond(
    exchange: &Rc<Exchange>,
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<Bytes>,
) -> Response<ResponseBody> {
    exchange.answer_begins(status.as_u16(), Hold::default(), worker::now());
    let mut response = Response::new(ResponseBody::stored(body, Rc::clone(exchange)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    *response.version_mut() = exchange.version();
    response
}

pub fn now() -> Now {
    Now { instant: worker::now(), wall: SystemTime::now() }
}

// === impl Served ===

impl Served {
    pub fn of(hit: &Hit) -> Self {
        if hit.is_stale() { Self::Stale } else { Self::Hit }
    }

    /// In the access log and metrics.
    const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Stale => "stale",
            Self::Revalidated => "revalidated",
            Self::Coalesced => "coalesced",
        }
    }

    const fn cache_status(self) -> &'static str {
        match self {
            Self::Hit => "outrigger;hit",
            Self::Stale => "outrigger;hit;detail=stale",
            Self::Revalidated => "outrigger;fwd=stale;fwd-status=304",
            Self::Coalesced => "outrigger;fwd=miss;collapsed",
        }
    }
}

// === impl Tap ===

impl Tap {
    pub fn is_needed(&self) -> bool {
        self.recorder.is_some() || self.leader.is_some()
    }

    pub fn push(&mut self, data: &Bytes) {
        if let Some((recorder, _)) = &mut self.recorder
            && !recorder.push(data)
        {
            self.recorder = None;
        }
        if let Some(leader) = &mut self.leader {
            leader.push(data);
        }
    }

    /// It is not to be kept: it has trailers, or broke off.
    pub fn spoil(&mut self) {
        self.recorder = None;
        if let Some(leader) = self.leader.take() {
            leader.failed();
        }
    }

    /// All of it has gone by.
    pub fn finish(&mut self) {
        if let Some((recorder, cache)) = self.recorder.take()
            && let Some(complete) = recorder.finish()
        {
            lock(&cache).store(complete);
        }
        if let Some(leader) = self.leader.take() {
            leader.finish();
        }
    }
}

impl Memory {
    /// Takes the stale answer out, for want of a better one.
    pub fn for_error(&self) -> Option<Hit> {
        match self {
            Self::Stale { stale, .. } => stale.for_error(now()),
            Self::Bypass | Self::Pending(_) => None,
        }
    }

    /// The stale answer that the request asked about.
    pub fn take_asked(&mut self) -> Option<Stale> {
        match mem::replace(self, Self::Bypass) {
            Self::Stale { stale, conditional: true } => Some(stale),
            other @ (Self::Bypass | Self::Pending(_) | Self::Stale { .. }) => {
                *self = other;
                None
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
