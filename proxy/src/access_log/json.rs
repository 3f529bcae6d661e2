//! The lines themselves: JSON by hand, because a line is written for every request.
//!
//! Fields without a value are left out. Times are microseconds. The list of fields is in `docs/proxy.md`.

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrigger_core::verdict::Reason;

use crate::telemetry::{ConnectionRecord, RequestRecord};

/// Longest text of a field, in bytes; the rest is cut off and the cut marked.
const MAX_FIELD_BYTES: usize = 1024;

/// A field's name with all that surrounds it: one copy of a known length.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}
/// Remembers the text of the current second.
#[derive(Default)]
pub(super) struct Clock {
    second: u64,
    text: Vec<u8>,
}

pub(super) fn request(line: &mut Vec<u8>, clock: &mut Clock, now: SystemTime, record: &RequestRecord<'_>) {
    let mut line = Line::begin(line, clock, now);
    line.key(concat!(key!("kind"), "\"request\""));
    line.plain(key!("direction"), record.direction.name());
    line.plain(key!("protocol"), record.protocol.name());
    line.text(key!("method"), record.method);
    line.text(key!("authority"), record.authority);
    line.text(key!("path"), record.path.split('?').next().unwrap_or_default());
    line.number(key!("status"), record.status.into());
    if let Some(status) = record.grpc_status {
        line.number(key!("grpc_status"), status.into());
    }
    line.why(record.reason, record.detail);
    line.text(key!("peer"), record.peer.map_or("", |peer| peer.as_str()));
    line.address(key!("caller"), record.caller);
    line.text(key!("service"), record.service);
    line.text(key!("route"), record.route);
    if let Some(endpoint) = record.endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    line.number(key!("received"), record.received);
    line.number(key!("sent"), record.sent);
    line.micros(key!("first_byte_us"), record.first_byte);
    line.micros(key!("duration_us"), record.duration);
    line.number(key!("attempts"), record.attempts.into());
    let handled = &record.handled;
    if !handled.queued.is_zero() {
        line.micros(key!("queued_us"), handled.queued);
    }
    let words = [
        (key!("gave_up"), handled.gave_up),
        (key!("hedged"), handled.hedged),
        (key!("fallback"), handled.fallback),
        (key!("cache"), handled.cache),
    ];
    for (key, word) in words {
        if let Some(word) = word {
            line.plain(key, word);
        }
    }
    line.text(key!("limit"), handled.limit);
    line.end(record.id);
}

pub(super) fn connection(
    line: &mut Vec<u8>,
    clock: &mut Clock,
    now: SystemTime,
    record: &ConnectionRecord<'_>,
) {
    let mut line = Line::begin(line, clock, now);
    line.key(concat!(key!("kind"), "\"connection\""));
    line.plain(key!("direction"), record.direction.name());
    line.plain(key!("protocol"), record.protocol.name());
    line.text(key!("authority"), record.authority);
    line.why(record.reason, record.detail);
    line.text(key!("peer"), record.peer.map_or("", |peer| peer.as_str()));
    line.address(key!("caller"), record.caller);
    line.text(key!("service"), record.service);
    if let Some(endpoint) = record.endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    line.number(key!("received"), record.received);
    line.number(key!("sent"), record.sent);
    line.micros(key!("connected_us"), record.connected);
    line.micros(key!("duration_us"), record.duration);
    line.number(key!("attempts"), record.attempts.into());
    line.end(record.id);
}

struct Line<'a>(&'a mut Vec<u8>);

impl<'a> Line<'a> {
    fn begin(line: &'a mut Vec<u8>, clock: &mut Clock, now: SystemTime) -> Self {
        line.clear();
        line.extend_from_slice(b"{\"time\":\"");
        clock.write(line, now);
        line.push(b'"');
        Self(line)
    }

    // What is inlined is the copy of a key, whose length the compiler then knows.

    #[inline(always)]
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(key.as_bytes());
    }

    /// A text that is one of ours and needs no escape.
    #[inline(always)]
    fn plain(&mut self, key: &'static str, value: &'static str) {
        self.key(key);
        self.quoted(value);
    }

    /// A text from outside.
    #[inline(always)]
    fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            self.string(value);
        }
    }

    #[inline(always)]
    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        number(self.0, value);
    }

    #[inline(always)]
    fn micros(&mut self, key: &'static str, value: Duration) {
        self.number(
            key,
            value.as_secs().saturating_mul(1_000_000).saturating_add(value.subsec_micros().into()),
        );
    }

    #[inline(always)]
    fn address(&mut self, key: &'static str, address: SocketAddr) {
        self.key(key);
        self.socket(address);
    }

    fn why(&mut self, reason: Option<Reason>, detail: &str) {
        if let Some(reason) = reason {
            self.plain(key!("reason"), reason.as_str());
        }
        self.text(key!("detail"), detail);
    }

    fn string(&mut self, value: &str) {
        if value.len() <= MAX_FIELD_BYTES && is_plain(value.as_bytes()) {
            return self.quoted(value);
        }
        self.0.push(b'"');
        if value.len() <= MAX_FIELD_BYTES {
            escape(self.0, value);
        } else {
            escape(self.0, &value[..value.floor_char_boundary(MAX_FIELD_BYTES)]);
            self.0.extend_from_slice("…".as_bytes());
        }
        self.0.push(b'"');
    }

    fn quoted(&mut self, value: &str) {
        self.0.reserve(value.len() + 2);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    fn socket(&mut self, address: SocketAddr) {
        let SocketAddr::V4(v4) = address else {
            // Writing to a Vec cannot fail.
            return drop(write!(self.0, "\"{address}\""));
        };
        // The longest is 255.255.255.255:65535 with its quotes.
        let mut text = [b'"'; 24];
        let mut length = 1;
        for (octet, then) in v4.ip().octets().into_iter().zip(*b"...:") {
            let digits = [octet / 100, octet / 10 % 10, octet % 10];
            let first = if octet >= 100 { 0 } else { 2 - usize::from(octet >= 10) };
            for digit in &digits[first..] {
                text[length] = b'0' + digit;
                length += 1;
            }
            text[length] = then;
            length += 1;
        }
        let mut port = itoa::Buffer::new();
        let port = port.format(v4.port()).as_bytes();
        text[length..length + port.len()].copy_from_slice(port);
        self.0.extend_from_slice(&text[..length + port.len() + 1]);
    }

    fn end(&mut self, id: u64) {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut digits = [0; 16];
        for (at, digit) in digits.iter_mut().enumerate() {
            *digit = HEX[(id >> ((15 - at) * 4)) as usize & 15];
        }
        self.key(key!("id"));
        self.0.push(b'"');
        self.0.extend_from_slice(&digits);
        self.0.extend_from_slice(b"\"}\n");
    }
}

fn number(line: &mut Vec<u8>, value: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Whether a text can stand in a line as it is; `false` may be too strict. Eight bytes at a time.
fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    let is = |word: u64, byte: u8| {
        let zero_where_equal = word ^ (ONES * u64::from(byte));
        zero_where_equal.wrapping_sub(ONES) & !zero_where_equal
    };
    let special = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        (word | control | is(word, b'"') | is(word, b'\\') | is(word, 0x7f)) & TOPS != 0
    };
    let (words, rest) = text.as_chunks::<8>();
    let mut last = [b' '; 8];
    last[..rest.len()].copy_from_slice(rest);
    !words.iter().any(|word| special(*word)) && !special(last)
}

/// JSON text. Control characters of any kind are written as escapes, also those that JSON would allow as they are
/// (DEL, C1, line and paragraph separators): a log is also read on terminals.
fn escape(line: &mut Vec<u8>, text: &str) {
    let mut copied = 0;
    for (at, character) in text.char_indices() {
        let short = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => "",
            _ => continue,
        };
        line.extend_from_slice(&text.as_bytes()[copied..at]);
        copied = at + character.len_utf8();
        match short {
            "" => drop(write!(line, "\\u{:04x}", u32::from(character))),
            short => line.extend_from_slice(short.as_bytes()),
        }
    }
    line.extend_from_slice(&text.as_bytes()[copied..]);
}

// === impl Clock ===

impl Clock {
    /// RFC 3339 in UTC with milliseconds.
    fn write(&mut self, line: &mut Vec<u8>, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        if self.second != since.as_secs() || self.text.is_empty() {
            self.second = since.as_secs();
            let (year, month, day) = civil(self.second / 86_400);
            let of_day = self.second % 86_400;
            let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
            self.text.clear();
            // Writing to a Vec cannot fail.
            drop(write!(self.text, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}."));
        }
        line.extend_from_slice(&self.text);
        let millis = since.subsec_millis();
        line.extend_from_slice(&[100, 10, 1].map(|unit| b'0' + (millis / unit % 10) as u8));
        line.push(b'Z');
    }
}

/// Year, month and day of a day since 1970-01-01, by Howard Hinnant's algorithm (`civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}
