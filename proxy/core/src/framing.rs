//! What HTTP/1 parsers let pass and we do not: a guard over the raw bytes, before hyper sees them.
//!
//! hyper 1.12 takes a bare LF for the end of a line, drops Content-Length beside Transfer-Encoding, merges equal
//! Content-Length lines, and cuts a fragment off the target, all before a header map exists; nothing behind it can
//! tell, and a server that reads them otherwise sees other requests than we do. So the guard follows the framing just
//! far enough to find each head: body bytes are skipped by their length, a line of a head is looked at once for its LF,
//! once for its name and once for control characters, most of it many bytes at a time.
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
//! Where both it and hyper look (first lines, names, sizes, counts, chunks) the guard is the stricter one, so that the
//! refusal is one of ours with its reason. It changes no byte.

use memchr::memchr;

use crate::limits::{MAX_URI_BYTES, Room};

/// Longest first line: the longest target, a method and a version.
const MAX_FIRST_LINE_BYTES: usize = MAX_URI_BYTES + 64;
/// Longest line of a chunk's size with its extensions; nobody legitimate uses extensions.
const MAX_CHUNK_LINE_BYTES: usize = 256;
/// Empty lines before a request line that are overlooked, as RFC 9112 section 2.2 asks for (one).
const MAX_BLANK_LINES: usize = 2;

/// One direction of one HTTP/1 connection.
#[derive(Debug)]
pub struct Guard {
    side: Side,
    room: Room,
    state: State,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
    /// Bytes and number of the current head's (or trailers') fields so far.
    field_bytes: usize,
    fields: usize,
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
    #[error("the first line is not METHOD TARGET HTTP/1.x, or HTTP/1.x STATUS")]
    BadFirstLine,
    #[error("a header line is folded")]
    Folded,
    #[error("a header line is not NAME: VALUE, or has an illegal character")]
    BadField,
    #[error("more than {} header fields, or more than {} bytes of them", .0.fields, .0.bytes)]
    TooLarge(Room),
    #[error("the request target is longer than {MAX_URI_BYTES} bytes")]
    TargetTooLong,
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
    http10: bool,
    status: u16,
    length: Option<u64>,
    chunked: bool,
}

impl Guard {
    pub fn new(side: Side, room: Room) -> Self {
        Self {
            side,
            room,
            state: State::Between,
            line: Vec::new(),
            field_bytes: 0,
            fields: 0,
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
        let (limit, too_large) = match (self.state, self.side) {
            (State::ChunkSize | State::ChunkEnd, _) => (MAX_CHUNK_LINE_BYTES, FramingError::BadChunk),
            (State::Between, Side::Requests) => (MAX_FIRST_LINE_BYTES, FramingError::TargetTooLong),
            (State::Between, Side::Responses) => (MAX_FIRST_LINE_BYTES, FramingError::TooLarge(self.room)),
            (State::Head | State::Trailers | State::Body(_) | State::ChunkData(_) | State::Raw, _) => {
                (self.room.bytes - self.field_bytes, FramingError::TooLarge(self.room))
            }
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
                self.begin_fields();
                match self.side {
                    Side::Requests => self.head.on_request_line(line)?,
                    Side::Responses => self.head.on_status_line(line)?,
                }
                self.state = State::Head;
            }
            State::Head if line.is_empty() => self.end_head()?,
            State::Head => {
                self.check_field(line)?;
                self.head.on_field(line)?;
            }
            State::ChunkSize => {
                self.state = match chunk_size(line)? {
                    0 => {
                        self.begin_fields();
                        State::Trailers
                    }
                    size => State::ChunkData(size),
                };
            }
            State::ChunkEnd if line.is_empty() => self.state = State::ChunkSize,
            State::ChunkEnd => return Err(FramingError::BadChunk),
            State::Trailers if line.is_empty() => self.end_message(),
            State::Trailers => self.check_field(line)?,
            State::Body(_) | State::ChunkData(_) | State::Raw => {}
        }
        Ok(())
    }

    fn begin_fields(&mut self) {
        self.field_bytes = 0;
        self.fields = 0;
    }

    fn check_field(&mut self, line: &[u8]) -> Result<(), FramingError> {
        self.field_bytes += line.len();
        self.fields += 1;
        if self.field_bytes > self.room.bytes || self.fields > self.room.fields {
            return Err(FramingError::TooLarge(self.room));
        }
        if matches!(line.first(), Some(b' ' | b'\t')) {
            return Err(FramingError::Folded);
        }
        let name = token(line);
        if name == 0 || line.get(name) != Some(&b':') || has_controls(&line[name..]) {
            return Err(FramingError::BadField);
        }
        Ok(())
    }

    fn end_head(&mut self) -> Result<(), FramingError> {
        let head = self.head;
        if head.chunked && head.length.is_some() {
            return Err(FramingError::LengthAndEncoding);
        }
        if head.chunked && head.http10 {
            return Err(FramingError::BadEncoding);
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
    fn on_request_line(&mut self, line: &[u8]) -> Result<(), FramingError> {
        let method = token(line);
        let [b' ', rest @ ..] = &line[method..] else { return Err(FramingError::BadFirstLine) };
        let end = rest.iter().position(|byte| *byte <= b' ' || matches!(byte, b'#' | 0x7f));
        let (target, rest) = rest.split_at(end.ok_or(FramingError::BadFirstLine)?);
        match rest {
            [b' ', version @ ..] if method > 0 && !target.is_empty() => self.on_version(version),
            [b'#', ..] => Err(FramingError::Fragment),
            _ => Err(FramingError::BadFirstLine),
        }
    }

    fn on_status_line(&mut self, line: &[u8]) -> Result<(), FramingError> {
        let (version, rest) = line.split_at_checked(8).ok_or(FramingError::BadFirstLine)?;
        self.on_version(version)?;
        self.status = match rest {
            [b' ', a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', reason @ ..]
                if matches!(reason.first(), None | Some(b' ')) && !has_controls(reason) =>
            {
                [a, b, c].into_iter().fold(0, |status, digit| status * 10 + u16::from(digit - b'0'))
            }
            _ => return Err(FramingError::BadFirstLine),
        };
        Ok(())
    }

    fn on_version(&mut self, version: &[u8]) -> Result<(), FramingError> {
        self.http10 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            _ => return Err(FramingError::BadFirstLine),
        };
        Ok(())
    }

    fn on_field(&mut self, line: &[u8]) -> Result<(), FramingError> {
        if !matches!(line.first(), Some(b'c' | b'C' | b't' | b'T')) {
            return Ok(());
        }
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

/// The value of this line if it is of that field.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if line.get(name.len()) != Some(&b':') || !line[..name.len()].eq_ignore_ascii_case(name) {
        return None;
    }
    Some(line[name.len() + 1..].trim_ascii())
}

/// Length of the token that the text begins with (RFC 9110 section 5.6.2: what methods and field names are made of).
fn token(text: &[u8]) -> usize {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            table[byte] = (byte as u8).is_ascii_alphanumeric()
                || matches!(
                    byte as u8,
                    b'!' | b'#'
                        | b'$'
                        | b'%'
                        | b'&'
                        | b'\''
                        | b'*'
                        | b'+'
                        | b'-'
                        | b'.'
                        | b'^'
                        | b'_'
                        | b'`'
                        | b'|'
                        | b'~'
                );
            byte += 1;
        }
        table
    };
    text.iter().position(|byte| !TOKEN[usize::from(*byte)]).unwrap_or(text.len())
}

/// Control characters other than a tab. Eight bytes at a time: heads are short, and this is most of their bytes.
fn has_controls(text: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGHS: u64 = 0x8080_8080_8080_8080;
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    // Some byte is below a space, or zero once 0x7f is taken out: exact in whether, not in which (Hacker's Delight 6-1).
    let is_suspect = |eight: &[u8; 8]| {
        let word = u64::from_le_bytes(*eight);
        let low = word.wrapping_sub(ONES * 0x20) & !word & HIGHS;
        let delete = (word ^ (ONES * 0x7f)).wrapping_sub(ONES) & !(word ^ (ONES * 0x7f)) & HIGHS;
        (low | delete) != 0 && eight.iter().any(is_control)
    };
    match text.last_chunk() {
        // The last eight bytes may be looked at twice, which costs less than seven single ones.
        Some(last) => text.as_chunks().0.iter().any(is_suspect) || is_suspect(last),
        None => text.iter().any(is_control),
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
