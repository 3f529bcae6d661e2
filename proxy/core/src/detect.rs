//! From the first bytes of a connection to what it speaks.

/// What a connection speaks, as far as its first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detection {
    /// Not decided: give the same prefix again, longer.
    NeedMore,
    /// A TLS handshake record.
    Tls,
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    Opaque,
}

/// Looks at everything received so far (from the first byte on).
pub fn detect(_prefix: &[u8]) -> Detection {
    unimplemented!()
}
