//! Rules on header fields, on `http::HeaderMap` and nothing else.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, request, response};
use outrigger_certs::SpiffeId;

pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
pub const REASON: HeaderName = HeaderName::from_static("outrigger-reason");
pub const ID: HeaderName = HeaderName::from_static("outrigger-id");

/// What the removed hop-by-hop fields said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// The peer wants this connection closed after this message.
    pub close: bool,
    /// The protocol that a legal `Connection: upgrade` asks for (or, in a 101, switched to).
    pub upgrade: Option<HeaderValue>,
    /// `TE: trailers`: put back by the caller of this function when forwarding (hyper and gRPC want it).
    pub te_trailers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("too many header fields")]
    TooMany,
    #[error("header fields are too large")]
    TooLarge,
    #[error("Connection names a field that is not hop-by-hop")]
    Nominated,
    #[error("Connection is malformed")]
    Connection,
    #[error("Transfer-Encoding is not exactly one `chunked`")]
    TransferEncoding,
    #[error("Content-Length beside Transfer-Encoding")]
    LengthAndEncoding,
    #[error("Content-Length is not one plain decimal number")]
    ContentLength,
    #[error("Upgrade with a body")]
    UpgradeWithBody,
    #[error("several protocols or an illegal one in Upgrade")]
    Upgrade,
    #[error("a field that HTTP/2 forbids")]
    ForbiddenInHttp2,
}

/// Checks count, size and framing fields of a request as it was received. Call before anything is removed.
pub fn check_request(_request: &request::Parts) -> Result<(), HeaderError> {
    unimplemented!()
}
/// The same for a response (its violations are the upstream's fault).
pub fn check_response(_response: &response::Parts) -> Result<(), HeaderError> {
    unimplemented!()
}
/// Count and size alone, as for trailers.
pub fn check_size(_headers: &HeaderMap) -> Result<(), HeaderError> {
    unimplemented!()
}
/// Removes what concerns this connection only (hop-by-hop fields and those that Connection names), and says what it said.
pub fn remove_hop_by_hop(_headers: &mut HeaderMap) -> Result<Hop, HeaderError> {
    unimplemented!()
}
/// Removes what only proxies may say: forged identity and our own answer headers.
pub fn remove_spoofed(_headers: &mut HeaderMap) {
    unimplemented!()
}
/// Removes from trailers what may not stand there; `true` if there was something.
pub fn remove_forbidden_trailers(_trailers: &mut HeaderMap) -> bool {
    unimplemented!()
}
/// `By=<server>;Hash=<sha256 of the peer's leaf>;URI=<peer>`. Made once per connection, cloned per request (cheap).
pub fn forwarded_client_cert(_server: &SpiffeId, _leaf_sha256: &[u8; 32], _peer: &SpiffeId) -> HeaderValue {
    unimplemented!()
}
pub fn is_grpc(_headers: &HeaderMap) -> bool {
    unimplemented!()
}
/// `grpc-timeout`; an illegal value counts as none.
pub fn grpc_timeout(_headers: &HeaderMap) -> Option<Duration> {
    unimplemented!()
}
