//! What HTTP/1 parsers let pass and we do not: a guard over the raw bytes, before hyper sees them.
//!
//! hyper 1.12 takes a bare LF for the end of a line, drops Content-Length beside Transfer-Encoding, merges equal
//! Content-Length lines, and cuts a fragment off the target, all before a header map exists; nothing behind it can
//! tell, and a server that reads them otherwise sees other requests than we do. So the guard follows the framing just
//! far enough to find each head: body bytes are skipped by their length, heads cost one search for LF per line.
//!
//! ```text
//!            ┌──────────────── body is over ◀──────────────┐
//!            ▼                                             │
//! Between ─▶ Head ─▶ no body ─▶ Between        Body(n) ────┤
//!            │  └──▶ chunked ─▶ ChunkSize ⇄ ChunkData      │
//!            │                      └─▶ Trailers ──────────┤
//!            └─────▶ (responses) until the end: Raw        │
//! 101, 2xx to CONNECT: Raw                                 │
//! ```
//!
//! It is stricter than it needs to be where both it and hyper look (chunk sizes), and leaves to hyper what hyper
//! refuses on its own: folded lines, illegal names and values, versions, counts. It changes no byte.

use memchr::memchr;

use crate::limits::{MAX_HEADER_BYTES, MAX_URI_BYTES};

/// Longest head, and longest trailers: what hyper is told to refuse, and some.
const MAX_HEAD_BYTES: usize = MAX_HEADER_BYTES + MAX_URI_BYTES + 1024;
/// Longest line of a chunk's size with its extensions; nobody legitimate uses extensions.
const MAX_CHUNK_LINE_BYTES: usize = 256;
/// Empty lines before a request line that are overlooked, as RFC 9112 section 2.2 asks for (one).
const MAX_BLANK_LINES: usize = 2;

/// One direction of one HTTP/1 connection.
#[derive(Debug)]
pub struct Guard {
    side: Side,
    state: State,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Bytes of the current head or trailers so far.
    head_bytes: usize,
    blank_lines: usize,
    head: Head,
    /// The request whose answer comes next.
    asked: Option<Asked>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Bytes from a client.
    Requests,
    /// Bytes from a server; each answer is announced by [`Guard::on_request`].
    Responses,
}

/// What an answer belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// HEAD: an answer without a body, whatever its fields say.
    Head,
    /// CONNECT: raw bytes follow a 2xx.
    Connect,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    #[error("a line ends in a bare LF")]
    BareLf,
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
    #[error("the request target has a fragment")]
    Fragment,
    #[error("the head or the trailers are too large")]
    TooLarge,
    #[error("bytes that nobody asked for")]
    Unasked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the first line of a message.
    Between,
    Head,
    Body(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
    /// Not looked at any more.
    Raw,
}

/// What the lines of a head have said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Guard {
    pub fn new(side: Side) -> Self {
        Self {
            side,
            state: State::Between,
            line: Vec::new(),
            head_bytes: 0,
            blank_lines: 0,
            head: Head::default(),
            asked: None,
        }
    }

    /// A request was sent whose answer comes next ([`Side::Responses`] only).
    pub fn on_request(&mut self, asked: Asked) {
        self.asked = Some(asked);
    }

    /// The connection has become something else: everything passes from now on. For requests; the guard of responses
    /// sees it by itself.
    pub fn on_upgraded(&mut self) {
        self.state = State::Raw;
    }

    /// Checks the bytes just read. After an error the connection must end: with 400 for requests (nothing of the
    /// message may be forwarded), as `upstream-protocol` for responses.
    pub fn on_bytes(&mut self, mut bytes: &[u8]) -> Result<(), FramingError> {
        while !bytes.is_empty() {
            match self.state {
                State::Raw => return Ok(()),
                State::Body(left) => {
                    let left = skip(&mut bytes, left);
                    self.state = State::Body(left);
                    if left == 0 {
                        self.end_message();
                    }
                }
                State::ChunkData(left) => {
                    let left = skip(&mut bytes, left);
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                }
                State::Between | State::Head | State::Trailers | State::ChunkSize | State::ChunkEnd => {
                    if self.state == State::Between && self.side == Side::Responses && self.asked.is_none() {
                        return Err(FramingError::Unasked);
                    }
                    bytes = self.take_line(bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Takes bytes up to the end of a line, or all of them if it is not there yet.
    fn take_line<'a>(&mut self, bytes: &'a [u8]) -> Result<&'a [u8], FramingError> {
        let in_chunks = matches!(self.state, State::ChunkSize | State::ChunkEnd);
        let (limit, too_large) = if in_chunks {
            (MAX_CHUNK_LINE_BYTES, FramingError::BadChunk)
        } else {
            (MAX_HEAD_BYTES.saturating_sub(self.head_bytes), FramingError::TooLarge)
        };
        let Some(end) = memchr(b'\n', bytes) else {
            if self.line.len() + bytes.len() > limit {
                return Err(too_large);
            }
            self.line.extend_from_slice(bytes);
            return Ok(&[]);
        };
        let (piece, rest) = (&bytes[..end], &bytes[end + 1..]);
        if self.line.len() + piece.len() > limit {
            return Err(too_large);
        }
        if self.line.is_empty() {
            self.on_line(piece)?;
        } else {
            let mut line = std::mem::take(&mut self.line);
            line.extend_from_slice(piece);
            self.on_line(&line)?;
            // Kept for the next line that is cut, without what it held.
            line.clear();
            self.line = line;
        }
        Ok(rest)
    }

    /// A whole line, without its LF.
    fn on_line(&mut self, line: &[u8]) -> Result<(), FramingError> {
        let line = line.strip_suffix(b"\r").ok_or(FramingError::BareLf)?;
        match self.state {
            State::Between => {
                if line.is_empty() {
                    self.blank_lines += 1;
                    return if self.blank_lines > MAX_BLANK_LINES {
                        Err(FramingError::Unasked)
                    } else {
                        Ok(())
                    };
                }
                self.blank_lines = 0;
                self.head = Head::default();
                self.head_bytes = line.len() + 2;
                match self.side {
                    Side::Requests if memchr(b'#', line).is_some() => return Err(FramingError::Fragment),
                    Side::Requests => {}
                    Side::Responses => self.head.status = status(line),
                }
                self.state = State::Head;
            }
            State::Head if line.is_empty() => self.end_head()?,
            State::Head => {
                self.head_bytes += line.len() + 2;
                self.head.on_field(line)?;
            }
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => {
                        self.head_bytes = 0;
                        State::Trailers
                    }
                    size => State::ChunkData(size),
                };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(FramingError::BadChunk),
            State::Trailers if line.is_empty() => self.end_message(),
            State::Trailers => self.head_bytes += line.len() + 2,
            State::Body(_) | State::ChunkData(_) | State::Raw => {}
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), FramingError> {
        let head = self.head;
        if head.chunked && head.length.is_some() {
            return Err(FramingError::LengthAndEncoding);
        }
        let asked = self.asked;
        self.state = match self.side {
            Side::Responses if head.status == 101 => State::Raw,
            Side::Responses if head.status < 200 => State::Between, // the same request's answer is still to come
            Side::Responses if asked == Some(Asked::Connect) && head.status < 300 => State::Raw,
            Side::Responses if asked == Some(Asked::Head) || matches!(head.status, 204 | 304) => {
                self.end_message();
                return Ok(());
            }
            Side::Requests | Side::Responses if head.chunked => State::ChunkSize,
            Side::Responses if head.length.is_none() => State::Raw,
            Side::Requests | Side::Responses => match head.length {
                None | Some(0) => {
                    self.end_message();
                    return Ok(());
                }
                Some(length) => State::Body(length),
            },
        };
        Ok(())
    }

    fn end_message(&mut self) {
        self.state = State::Between;
        self.asked = None;
    }
}

impl Head {
    fn on_field(&mut self, line: &[u8]) -> Result<(), FramingError> {
        if let Some(value) = field(line, b"content-length") {
            // Above 19 digits a u64 may overflow, and no body is that long.
            if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
                return Err(FramingError::BadLength);
            }
            let length = value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
            if self.length.replace(length).is_some() {
                return Err(FramingError::SeveralLengths);
            }
        } else if let Some(value) = field(line, b"transfer-encoding")
            && (std::mem::replace(&mut self.chunked, true) || !value.eq_ignore_ascii_case(b"chunked"))
        {
            return Err(FramingError::BadEncoding);
        }
        Ok(())
    }
}

/// The value of this line if it is of that field. A space before the colon makes another name, which hyper refuses.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if line.get(name.len()) != Some(&b':') || !line[..name.len()].eq_ignore_ascii_case(name) {
        return None;
    }
    Some(line[name.len() + 1..].trim_ascii())
}

/// The status of `HTTP/1.1 200 …`; 0 if it is none, which hyper refuses.
fn status(line: &[u8]) -> u16 {
    let digits = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    match digits {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0')
        }
        _ => 0,
    }
}

/// One to fifteen hex digits, then nothing or an extension.
fn chunk_size(line: &[u8]) -> Result<u64, FramingError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if !(1..=15).contains(&digits) || !matches!(line.get(digits), None | Some(b';')) {
        return Err(FramingError::BadChunk);
    }
    let digit = |byte: &u8| u64::from(char::from(*byte).to_digit(16).unwrap_or(0));
    Ok(line[..digits].iter().fold(0, |size, byte| size * 16 + digit(byte)))
}

/// Skips up to `left` bytes; how many are left then.
fn skip(bytes: &mut &[u8], left: u64) -> u64 {
    let skipped = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *bytes = &bytes[skipped..];
    left - skipped as u64
}

#[cfg(test)]
mod tests;
