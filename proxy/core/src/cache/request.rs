//! What a cache has to know of a request, and what it remembers of one whose answer it may store.

use http::{HeaderMap, Method, header};
use outrigger_proto::spec;

use super::{directives::Directives, freshness::Now, store::EntryId};

/// A request as it is sent to the backend, after all rewriting.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    /// Host, and port unless 80.
    pub authority: &'a str,
    /// With the query.
    pub path: &'a str,
    pub headers: &'a HeaderMap,
    /// It has one, or may have one.
    pub has_body: bool,
}

/// A request on its way upstream whose answer may be stored.
#[derive(Debug)]
pub struct Pending(pub(super) Box<Asked>);

#[derive(Debug)]
pub(super) struct Asked {
    pub(super) url: Box<str>,
    pub(super) is_head: bool,
    /// The caller's, before conditions were added.
    pub(super) headers: HeaderMap,
    pub(super) said: Directives,
    pub(super) requested: Now,
    /// Invalidations before it.
    pub(super) invalidations: u64,
    /// The stored answer that this request is to confirm or to replace.
    pub(super) replaces: Option<EntryId>,
    pub(super) policy: spec::Cache,
}

impl RequestView<'_> {
    /// What it wants of a cache; nothing if this one is to keep out of it.
    pub(super) fn wishes(&self) -> Option<Directives> {
        // Parts (section 3.3 is optional), and conditions that only the origin can judge.
        const BYPASSING: [http::HeaderName; 5] =
            [header::RANGE, header::IF_RANGE, header::IF_MATCH, header::IF_UNMODIFIED_SINCE, header::UPGRADE];
        let is_read = matches!(*self.method, Method::GET | Method::HEAD);
        if !is_read || self.has_body || !self.path.starts_with('/') {
            return None;
        }
        if BYPASSING.iter().any(|name| self.headers.contains_key(name)) {
            return None;
        }
        let said = Directives::of_request(self.headers);
        (!said.no_store).then_some(said)
    }

    pub(super) fn is_head(&self) -> bool {
        self.method == Method::HEAD
    }
}

/// What entries are found by: host without the default port, and target; the scheme of the mesh is always
/// http.
pub(super) fn write_url(url: &mut String, authority: &str, path: &str) {
    url.clear();
    url.push_str(authority.strip_suffix(":80").unwrap_or(authority));
    url.make_ascii_lowercase();
    url.push_str(path);
}
