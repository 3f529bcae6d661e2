//! Which requests an answer is for, beyond its URL: equal credentials, and equal fields that Vary names.
//!
//! Kept as a keyed digest of 128 bits, so that neither tokens nor cookies stay in memory with what they
//! unlocked, and a caller cannot compute one that meets another's. Requests with different Authorization
//! never share an entry, whatever the answer says; RFC 9111 would let them.

use std::hash::{BuildHasher, Hasher, RandomState};

use http::{HeaderMap, HeaderName, HeaderValue, header};
use smallvec::SmallVec;

/// Names in Vary beyond which an answer is not stored.
const MAX_NAMES: usize = 16;

/// Sorted, each name once.
pub(crate) type Vary = SmallVec<[HeaderName; 2]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selection(u64, u64);

/// Random as those of any `HashMap`: they decide nothing that shows.
#[derive(Debug, Default)]
pub(super) struct Keys(RandomState, RandomState);

/// What Vary names; nothing if no other request can ever match (`*`), or if it cannot be read.
pub(crate) fn vary(headers: &HeaderMap) -> Option<Vary> {
    let mut names = Vary::new();
    for line in headers.get_all(header::VARY) {
        for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if !name.is_empty() {
                names.push(HeaderName::from_bytes(name).ok().filter(|name| name != "*")?);
            }
        }
    }
    names.sort_unstable_by(|one, other| one.as_str().cmp(other.as_str()));
    names.dedup();
    (names.len() <= MAX_NAMES).then_some(names)
}

impl Keys {
    /// Of the request's own fields.
    pub(super) fn select(&self, vary: &Vary, request: &HeaderMap) -> Selection {
        if vary.is_empty() && !request.contains_key(header::AUTHORIZATION) {
            return Selection(0, 0);
        }
        Selection(digest(&self.0, vary, request), digest(&self.1, vary, request))
    }
}

fn digest(key: &RandomState, vary: &Vary, request: &HeaderMap) -> u64 {
    let mut hasher = key.build_hasher();
    field(&mut hasher, request, &header::AUTHORIZATION);
    for name in vary {
        field(&mut hasher, request, name);
    }
    hasher.finish()
}

/// Section 4.1: lines of one field may be joined, and space around them does not matter; an absent field
/// equals an absent one only.
fn field(hasher: &mut impl Hasher, request: &HeaderMap, name: &HeaderName) {
    let mut lines = request.get_all(name).iter().map(HeaderValue::as_bytes).map(<[u8]>::trim_ascii);
    let Some(first) = lines.next() else {
        hasher.write_u8(0);
        return;
    };
    hasher.write_u8(1);
    hasher.write(first);
    for line in lines {
        hasher.write(b",");
        hasher.write(line);
    }
    // No field's value can hold it, so two fields never read as one.
    hasher.write_u8(0);
}
