//! What HTTP/1 parsers let pass and we do not: a guard over the raw bytes, before hyper sees them.
//!
//! hyper 1.12 takes a bare LF for the end of a line, drops Content-Length beside Transfer-Encoding, and merges equal
//! Content-Length lines, all before a header map exists; nothing behind it can tell. The guard follows heads, bodies and
//! chunks just far enough to find the next head.

/// One direction of one HTTP/1 connection.
#[derive(Debug)]
pub struct Guard {
    _private: (),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Bytes from a client: requests.
    Requests,
    /// Bytes from a server: responses, each announced by [`Guard::on_request`].
    Responses,
}

/// What a response belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// HEAD: headers only.
    Head,
    /// CONNECT: raw bytes follow a 2xx.
    Connect,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("a line ends in a bare LF")]
    BareLf,
    #[error("a header line is folded or has a space before its colon")]
    Folded,
    #[error("Content-Length beside Transfer-Encoding")]
    LengthAndEncoding,
    #[error("more than one Content-Length")]
    SeveralLengths,
    #[error("Content-Length is not a plain decimal number")]
    BadLength,
    #[error("Transfer-Encoding is not exactly one `chunked`")]
    BadEncoding,
    #[error("chunk framing is broken")]
    BadChunk,
    #[error("the head or the trailers are too large")]
    TooLarge,
    #[error("bytes that nobody asked for")]
    Unasked,
}

impl Guard {
    pub fn new(_side: Side) -> Self {
        unimplemented!()
    }
    /// A request was sent whose answer comes next ([`Side::Responses`] only).
    pub fn on_request(&mut self, _asked: Asked) {
        unimplemented!()
    }
    /// Checks the bytes just read. After an error the connection is to be closed (400 for requests, 502 for responses).
    pub fn on_bytes(&mut self, _bytes: &[u8]) -> Result<(), FramingError> {
        unimplemented!()
    }
    /// The connection has become something else (101, or 2xx to CONNECT): everything passes from now on.
    pub fn on_upgraded(&mut self) {
        unimplemented!()
    }
}
