//! The key of a request for consistent balancing: [`HashOn`] applied to what a request has.
//!
//! It sets no cookie and reads no socket: the shell passes what it has, and adds [`Cookie::set`] to the answer.

use std::{net::IpAddr, time::Duration};

use http::{HeaderMap, HeaderValue, header};
use outrigger_proto::spec::HashOn;
use rand_core::Rng;

use super::hash::{self, xxh64};

/// What is known of a request, or of an opaque connection (without headers, path and query).
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    pub headers: Option<&'a HeaderMap>,
    /// Normalised, without the query.
    pub path: Option<&'a str>,
    pub query: Option<&'a str>,
    /// The caller's SPIFFE ID.
    pub identity: Option<&'a str>,
    pub address: Option<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    Hash(u64),
    /// The request has no such cookie: make one with [`Cookie::new`], and set it in the answer.
    NewCookie {
        name: &'a str,
        ttl: Option<Duration>,
    },
    /// Balanced at random.
    Nothing,
}

/// A cookie that binds its bearer to an endpoint. It tells nothing about which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cookie {
    pub hash: u64,
    /// A value for `set-cookie`.
    pub set: HeaderValue,
}

/// The first of `on` that the request has. A cookie can be made for any HTTP request, so nothing after one counts.
///
/// What is empty is not there. Of a header, all lines count; of a cookie or query parameter, the first. Nothing is decoded.
pub fn key<'a>(on: &'a [HashOn], facts: &Facts<'_>) -> Key<'a> {
    let text = |text: &str| Some(xxh64(text.as_bytes(), 0)).filter(|_| !text.is_empty());
    for on in on {
        let hash = match on {
            HashOn::Header(name) => facts.headers.and_then(|headers| {
                let lines = headers.get_all(name).iter().filter(|line| !line.is_empty());
                lines.fold(None, |hash, line| Some(xxh64(line.as_bytes(), hash.unwrap_or(0))))
            }),
            HashOn::Cookie { name, ttl } => match facts.headers {
                Some(headers) => match cookie(headers, name) {
                    Some(value) => Some(xxh64(value, 0)),
                    None => return Key::NewCookie { name, ttl: *ttl },
                },
                None => None,
            },
            HashOn::SourceIdentity => facts.identity.and_then(text),
            HashOn::SourceAddress => facts.address.map(hash::address),
            HashOn::Path => facts.path.and_then(text),
            HashOn::QueryParameter(name) => facts.query.and_then(|query| {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                pairs.find(|(key, _)| **key == **name).and_then(|(_, value)| text(value))
            }),
        };
        if let Some(hash) = hash {
            return Key::Hash(hash);
        }
    }
    Key::Nothing
}

/// The value of a cookie (RFC 6265, 5.4), unless it is empty.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let pairs =
        headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        (pair[..at].trim_ascii() == name.as_bytes()).then(|| pair[at + 1..].trim_ascii())
    });
    values.next().filter(|value| !value.is_empty())
}

// === impl Cookie ===

impl Cookie {
    /// For all paths, hidden from scripts; as long as `ttl`, or the browser's session. `None`: no cookie can be named so.
    pub fn new(name: &str, ttl: Option<Duration>, rng: &mut impl Rng) -> Option<Self> {
        let value = format!("{:016x}", rng.next_u64());
        let age = ttl.map(|ttl| {
            // A cookie of 0 seconds would be deleted at once.
            let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
            format!("; Max-Age={seconds}")
        });
        let set = format!("{name}={value}; Path=/; HttpOnly{}", age.unwrap_or_default());
        Some(Self { hash: xxh64(value.as_bytes(), 0), set: set.try_into().ok()? })
    }
}
