//! Rules on header fields, on [`HeaderMap`] and nothing else.
//!
//! One pass over the fields as they were received ([`inspect_request`], [`inspect_response`]) counts and measures them,
//! checks what frames the message, and remembers in [`Seen`] which fields need further work, so that the usual request
//! pays for one pass and removes nothing by guesswork.
//!
//! # What hyper 1.12 and h2 0.4 already do
//!
//! - hyper, requests: the last transfer coding must be `chunked`, none in HTTP/1.0; differing Content-Length lines are
//!   refused, equal ones merged; Content-Length beside Transfer-Encoding is *dropped* and the connection closed
//!   afterwards. The merged and the dropped never reach a header map: [`crate::framing`] refuses them before.
//! - hyper, responses: passes both kinds on as they came, so this file refuses them.
//! - h2: refuses connection-specific fields, `te` other than `trailers`, a Content-Length that disagrees with the data.
//! - neither: the number of fields in HTTP/2, what `Connection` may name, `Transfer-Encoding: gzip, chunked`, Upgrade
//!   with a body, forbidden trailers.
//!
//! It does not look at the request target (`authority`, `path_normal`) and forwards nothing.

use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header, request, response};
use outrigger_certs::SpiffeId;
use smallvec::SmallVec;

use crate::{
    deadline,
    limits::{Room, Sender},
    retry::field,
};

/// Who the caller is, proven to the proxy that sets it. Any incoming one is removed.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// The [`crate::verdict::Reason`] of an answer that a proxy made itself.
pub const REASON: HeaderName = HeaderName::from_static("outrigger-reason");
/// The id of such an answer, to be found again in the access log.
pub const ID: HeaderName = HeaderName::from_static("outrigger-id");
/// What a policy's fallback gave in place of a failure, and which: `answer;cause=all-ejected`.
pub const FALLBACK: HeaderName = HeaderName::from_static("outrigger-fallback");

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP2_SETTINGS: HeaderName = HeaderName::from_static("http2-settings");

/// Which fields of a message need work. Made by the inspection, taken by the removals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen(u16);

/// What the removed hop-by-hop fields said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The peer wants this connection closed after this message.
    pub close: bool,
    /// The protocol that a legal `Connection: upgrade` asks for, or that a 101 has switched to.
    pub upgrade: Option<HeaderValue>,
    /// `TE: trailers`. Put it back when forwarding a request: gRPC servers insist on it, and hyper sends trailers to
    /// HTTP/1 callers only if they asked so.
    pub te_trailers: bool,
    /// `Transfer-Encoding: chunked`. Put it back when forwarding a request over HTTP/1: without it hyper's client takes
    /// a GET, HEAD or CONNECT of unknown length for one without a body.
    pub chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("more than {0} header fields")]
    TooMany(usize),
    #[error("more than {0} bytes of header fields")]
    TooLarge(usize),
    #[error("Connection names a field that is not hop-by-hop")]
    Nominated,
    #[error("Connection is not a list of field names")]
    Connection,
    #[error("Transfer-Encoding is not exactly one `chunked`")]
    TransferEncoding,
    #[error("Content-Length beside Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Content-Length is not one plain decimal number")]
    ContentLength,
    #[error("Upgrade of a request with a body")]
    UpgradeWithBody,
    #[error("Upgrade is not one protocol")]
    Upgrade,
    #[error("a field of HTTP/1 connections in HTTP/2")]
    ForbiddenInHttp2,
}

impl Seen {
    const CONNECTION: u16 = 1;
    const KEEP_ALIVE: u16 = 1 << 1;
    const PROXY_CONNECTION: u16 = 1 << 2;
    const TE: u16 = 1 << 3;
    const TRANSFER_ENCODING: u16 = 1 << 4;
    const UPGRADE: u16 = 1 << 5;
    const CONTENT_LENGTH: u16 = 1 << 6;
    const SPOOFED: u16 = 1 << 7;
    const HTTP2_SETTINGS: u16 = 1 << 8;
    const BODY: u16 = 1 << 9;

    fn has(self, field: u16) -> bool {
        self.0 & field != 0
    }

    /// The message says that it has a body (a length above 0, or chunks). HTTP/2 bodies need not say so.
    pub fn declares_body(self) -> bool {
        self.has(Self::BODY)
    }
}

/// Checks a request as it was received, before anything is removed. That HTTP/1 has less room is [`crate::framing`]'s to
/// enforce: its fields have been read by then.
pub fn inspect_request(request: &request::Parts, from: Sender) -> Result<Seen, HeaderError> {
    inspect(&request.headers, request.version, from.http2())
}

/// Checks a response as it was received; an error is the upstream's.
pub fn inspect_response(response: &response::Parts, from: Sender) -> Result<Seen, HeaderError> {
    let seen = inspect(&response.headers, response.version, from.http2())?;
    // 1xx and 204 have no body, so fields that frame one are a server's confusion that a next hop may act on.
    let bodyless = response.status.is_informational() || response.status == StatusCode::NO_CONTENT;
    if bodyless && seen.has(Seen::TRANSFER_ENCODING) {
        return Err(HeaderError::TransferEncoding);
    }
    Ok(seen)
}

/// Count and size alone, as for trailers; nobody adds to those.
pub fn inspect_trailers(trailers: &HeaderMap) -> Result<(), HeaderError> {
    let room = Sender::Program.http2();
    if trailers.len() > room.fields {
        return Err(HeaderError::TooMany(room.fields));
    }
    let size: usize = trailers.iter().map(|(name, value)| field_size(name, value)).sum();
    if size > room.bytes { Err(HeaderError::TooLarge(room.bytes)) } else { Ok(()) }
}

fn inspect(headers: &HeaderMap, version: Version, room: Room) -> Result<Seen, HeaderError> {
    // Counts each line, so also each cookie crumb of HTTP/2 and what is about to be removed.
    if headers.len() > room.fields {
        return Err(HeaderError::TooMany(room.fields));
    }
    let mut seen = 0;
    let mut size = 0;
    for (name, value) in headers {
        size += field_size(name, value);
        seen |= match *name {
            header::CONTENT_LENGTH => {
                if seen & Seen::CONTENT_LENGTH != 0 {
                    return Err(HeaderError::ContentLength);
                }
                let body = if decimal(value.as_bytes())? > 0 { Seen::BODY } else { 0 };
                Seen::CONTENT_LENGTH | body
            }
            header::TRANSFER_ENCODING => {
                if seen & Seen::TRANSFER_ENCODING != 0 || !value.as_bytes().eq_ignore_ascii_case(b"chunked") {
                    return Err(HeaderError::TransferEncoding);
                }
                Seen::TRANSFER_ENCODING | Seen::BODY
            }
            header::CONNECTION => Seen::CONNECTION,
            header::UPGRADE => Seen::UPGRADE,
            header::TE => {
                if version == Version::HTTP_2 && value != "trailers" {
                    return Err(HeaderError::ForbiddenInHttp2);
                }
                Seen::TE
            }
            _ => special(name.as_str()),
        };
    }
    if size > room.bytes {
        return Err(HeaderError::TooLarge(room.bytes));
    }
    let seen = Seen(seen);
    if seen.has(Seen::TRANSFER_ENCODING) && seen.has(Seen::CONTENT_LENGTH) {
        return Err(HeaderError::LengthAndEncoding);
    }
    let of_connections = Seen::CONNECTION
        | Seen::KEEP_ALIVE
        | Seen::PROXY_CONNECTION
        | Seen::TRANSFER_ENCODING
        | Seen::UPGRADE
        | Seen::HTTP2_SETTINGS;
    if version == Version::HTTP_2 && seen.has(of_connections) {
        return Err(HeaderError::ForbiddenInHttp2);
    }
    Ok(seen)
}

/// The rarer fields that need work, told apart by their length first: most names end here after one comparison.
fn special(name: &str) -> u16 {
    match name.len() {
        10 if name == KEEP_ALIVE.as_str() => Seen::KEEP_ALIVE,
        16 if name == PROXY_CONNECTION.as_str() => Seen::PROXY_CONNECTION,
        14 if name == HTTP2_SETTINGS.as_str() => Seen::HTTP2_SETTINGS,
        _ if is_forged(name) => Seen::SPOOFED,
        _ => 0,
    }
}

/// Names that only a proxy of this mesh may set.
fn is_ours(name: &str) -> bool {
    name == XFCC.as_str() || name.starts_with("outrigger-") || name.starts_with("x-outrigger-")
}

/// What nobody else may say. A deadline or an attempt may come from anybody: an application passes them on from the
/// request that it works on to those that it makes, and who invents one only shortens or weakens its own.
fn is_forged(name: &str) -> bool {
    is_ours(name) && name != deadline::DEADLINE.as_str() && name != field::ATTEMPT.as_str()
}

/// As RFC 9113 section 6.5.2 counts, for both versions: about what a field costs in memory.
fn field_size(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str().len() + value.len() + 32
}

fn decimal(text: &[u8]) -> Result<u64, HeaderError> {
    // Above 19 digits a u64 may overflow, and no body is that long.
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return Err(HeaderError::ContentLength);
    }
    Ok(text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// Removes what concerns this connection only, the fields that `Connection` names included, and says what it said.
pub fn remove_hop_by_hop(headers: &mut HeaderMap, seen: Seen) -> Result<Hop, HeaderError> {
    let mut hop = Hop::default();
    let mut upgrade = false;
    if seen.has(Seen::CONNECTION) {
        let mut nominated = false;
        for value in headers.get_all(header::CONNECTION) {
            for token in tokens(value.as_bytes()) {
                match token.len() {
                    5 if token.eq_ignore_ascii_case(b"close") => hop.close = true,
                    7 if token.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
                    10 if token.eq_ignore_ascii_case(b"keep-alive") => {}
                    2 if token.eq_ignore_ascii_case(b"te") => {}
                    _ => nominated = true,
                }
            }
        }
        if nominated {
            remove_nominated(headers)?;
        }
        headers.remove(header::CONNECTION);
    }
    if seen.has(Seen::UPGRADE)
        && let Some(protocol) = headers.remove(header::UPGRADE)
        && upgrade
    {
        if seen.declares_body() {
            return Err(HeaderError::UpgradeWithBody);
        }
        if protocol.is_empty() || protocol.as_bytes().iter().any(|b| matches!(b, b',' | b' ' | b'\t')) {
            return Err(HeaderError::Upgrade);
        }
        // The server would speak HTTP/2 to a client whose requests nobody checks any more.
        if !protocol.as_bytes().eq_ignore_ascii_case(b"h2c") {
            hop.upgrade = Some(protocol);
        }
    }
    if seen.has(Seen::TE) {
        let values = headers.get_all(header::TE);
        hop.te_trailers = values
            .iter()
            .any(|value| tokens(value.as_bytes()).any(|token| token.eq_ignore_ascii_case(b"trailers")));
        headers.remove(header::TE);
    }
    if seen.has(Seen::TRANSFER_ENCODING) {
        hop.chunked = headers.remove(header::TRANSFER_ENCODING).is_some();
    }
    for (field, name) in [
        (Seen::KEEP_ALIVE, KEEP_ALIVE),
        (Seen::PROXY_CONNECTION, PROXY_CONNECTION),
        (Seen::HTTP2_SETTINGS, HTTP2_SETTINGS),
    ] {
        if seen.has(field) {
            headers.remove(name);
        }
    }
    Ok(hop)
}

/// Removes what `Connection` names. Only the sender's hop may end there: end-to-end fields that decide who the caller is,
/// where the message goes or where it ends are refused instead of removed.
fn remove_nominated(headers: &mut HeaderMap) -> Result<(), HeaderError> {
    const KNOWN: [&str; 4] = ["close", "keep-alive", "upgrade", "te"];
    const PROTECTED: [&str; 6] =
        ["host", "authorization", "content-length", "transfer-encoding", "cookie", "set-cookie"];
    let mut named: SmallVec<[HeaderName; 4]> = SmallVec::new();
    for value in headers.get_all(header::CONNECTION) {
        for token in tokens(value.as_bytes()) {
            let name = HeaderName::from_bytes(token).map_err(|_| HeaderError::Connection)?;
            if PROTECTED.contains(&name.as_str()) || is_ours(name.as_str()) {
                return Err(HeaderError::Nominated);
            }
            if !KNOWN.contains(&name.as_str()) {
                named.push(name);
            }
        }
    }
    for name in named {
        headers.remove(name);
    }
    Ok(())
}

/// Members of a comma-separated list; empty ones are skipped, as RFC 9110 section 5.6.1 wants.
fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// Removes what only proxies may say: a forged identity, forged reasons. For requests at both proxies, and for
/// responses of applications.
pub fn remove_spoofed(headers: &mut HeaderMap, seen: Seen) {
    if seen.has(Seen::SPOOFED) {
        remove_where(headers, |name| is_forged(name.as_str()));
    }
}

/// Removes from trailers what RFC 9110 section 6.5.1 forbids there, so that nobody merges it into the head: framing,
/// routing, authentication, conditions, and our own fields. `true`: there was something.
pub fn remove_forbidden_trailers(trailers: &mut HeaderMap) -> bool {
    remove_where(trailers, |name| FORBIDDEN_TRAILERS.contains(name) || is_ours(name.as_str()))
}

fn remove_where(headers: &mut HeaderMap, condemned: impl Fn(&HeaderName) -> bool) -> bool {
    let mut any = false;
    while let Some(name) = headers.keys().find(|name| condemned(name)).cloned() {
        headers.remove(name);
        any = true;
    }
    any
}

static FORBIDDEN_TRAILERS: [HeaderName; 36] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::TE,
    header::TRAILER,
    header::UPGRADE,
    KEEP_ALIVE,
    PROXY_CONNECTION,
    header::HOST,
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::WWW_AUTHENTICATE,
    header::COOKIE,
    header::SET_COOKIE,
    header::CACHE_CONTROL,
    header::EXPECT,
    header::MAX_FORWARDS,
    header::PRAGMA,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::AGE,
    header::EXPIRES,
    header::DATE,
    header::LOCATION,
    header::RETRY_AFTER,
    header::VARY,
    header::WARNING,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::CONTENT_RANGE,
    header::FORWARDED,
];

/// The value of [`XFCC`]: `By=<this workload>;Hash=<sha256 of the caller's leaf>;URI=<the caller>`. Made once per
/// connection; a clone per request shares the bytes.
pub fn forwarded_client_cert(server: &SpiffeId, leaf_sha256: &[u8; 32], caller: &SpiffeId) -> HeaderValue {
    let mut text = format!("By={server};Hash=");
    for byte in leaf_sha256 {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text.push_str(";URI=");
    text.push_str(caller.as_str());
    // Identities are made of letters, digits and `:/.-_`, so the text always is a legal value.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The message is gRPC, so its failures are told in `grpc-status`.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(content_type) = headers.get(header::CONTENT_TYPE) else { return false };
    content_type.as_bytes().split_at_checked(GRPC.len()).is_some_and(|(head, rest)| {
        head.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';'))
    })
}

#[cfg(test)]
mod tests;
