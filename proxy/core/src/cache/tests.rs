//! Tables from RFC 9111, RFC 9110 section 13 and RFC 5861, run against the cache as a whole.

mod bounds;
mod reuse;
mod storing;
mod validation;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use outrigger_proto::spec;

use super::{Cache, Complete, Hit, Lookup, Now, Pending, Recorder, RequestView, Stale};
use crate::testing;

/// The date that the RFCs' examples have, 1994-11-15 08:12:31 GMT.
pub(super) const THEN: &str = "Tue, 15 Nov 1994 08:12:31 GMT";

fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(784_887_151)
}

/// `name: value` lines.
pub(crate) fn fields(text: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').unwrap();
        let name = HeaderName::from_bytes(name.trim().as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value.trim()).unwrap());
    }
    headers
}

/// A cache, an origin that answers as told, and a clock that only the test moves.
pub(super) struct Rig {
    pub(super) cache: Cache,
    start: Now,
    elapsed: Duration,
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::with(&spec::Cache::default())
    }

    pub(super) fn with(policy: &spec::Cache) -> Self {
        let start = Now { instant: testing::start(), wall: then() };
        Self { cache: Cache::new(policy), start, elapsed: Duration::ZERO }
    }

    pub(super) fn now(&self) -> Now {
        Now { instant: self.start.instant + self.elapsed, wall: self.start.wall + self.elapsed }
    }

    pub(super) fn wait(&mut self, seconds: u64) {
        self.elapsed += Duration::from_secs(seconds);
    }

    pub(super) fn ask(&mut self, method: &Method, path: &str, request: &str) -> Lookup {
        let headers = fields(request);
        let request = RequestView { method, authority: "orders", path, headers: &headers, has_body: false };
        let now = self.now();
        self.cache.lookup(&request, now)
    }

    pub(super) fn get(&mut self, path: &str, request: &str) -> Lookup {
        self.ask(&Method::GET, path, request)
    }

    /// The origin's answer. True: it is stored.
    pub(super) fn answer(&mut self, pending: Pending, status: u16, head: &str, body: &[u8]) -> bool {
        let now = self.now();
        let status = StatusCode::from_u16(status).unwrap();
        let Some(mut recorder) = self.cache.begin_store(pending, status, &fields(head), now) else {
            return false;
        };
        if !recorder.push(&Bytes::copy_from_slice(body)) {
            return false;
        }
        recorder.finish().is_some_and(|complete| self.cache.store(complete))
    }

    /// A GET that reaches the origin. True: its answer is stored.
    pub(super) fn fetch(&mut self, path: &str, request: &str, status: u16, head: &str) -> bool {
        let pending = match self.get(path, request) {
            Lookup::Miss(pending) => pending,
            Lookup::Stale(stale) => stale.into_pending(),
            other @ (Lookup::Fresh(_) | Lookup::Unsatisfiable | Lookup::Bypass) => panic!("{other:?}"),
        };
        self.answer(pending, status, head, b"body")
    }

    pub(super) fn change(&mut self, method: &Method, path: &str, status: u16, head: &str) {
        let none = HeaderMap::new();
        let request = RequestView { method, authority: "orders", path, headers: &none, has_body: true };
        self.cache.invalidate(&request, StatusCode::from_u16(status).unwrap(), &fields(head));
    }

    fn hit(&mut self, path: &str, request: &str) -> Hit {
        let Lookup::Fresh(hit) = self.get(path, request) else { panic!("{path} {request}") };
        hit
    }

    fn stale(&mut self, path: &str, request: &str) -> Stale {
        let Lookup::Stale(stale) = self.get(path, request) else { panic!("{path} {request}") };
        stale
    }

    fn pending(&mut self, path: &str, request: &str) -> Pending {
        let Lookup::Miss(pending) = self.get(path, request) else { panic!("{path} {request}") };
        pending
    }
}

/// What a lookup came to, in a word.
fn word(lookup: &Lookup) -> &'static str {
    match lookup {
        Lookup::Fresh(hit) if hit.is_stale() => "old",
        Lookup::Fresh(_) => "fresh",
        Lookup::Stale(_) => "stale",
        Lookup::Miss(_) => "miss",
        Lookup::Unsatisfiable => "504",
        Lookup::Bypass => "bypass",
    }
}

fn text(headers: &HeaderMap, name: &str) -> String {
    let lines: Vec<_> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
    lines.join("|")
}

#[test]
fn it_can_be_shared_by_threads() {
    fn shared<T: Send>() {}
    shared::<Cache>();
    shared::<Lookup>();
    shared::<Recorder>();
    shared::<Complete>();
}
