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
    line.plain(key!("kind"), "request");
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
    line.end(record.id);
}

pub(super) fn connection(
    line: &mut Vec<u8>,
    clock: &mut Clock,
    now: SystemTime,
    record: &ConnectionRecord<'_>,
) {
    let mut line = Line::begin(line, clock, now);
    line.plain(key!("kind"), "connection");
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

    #[inline]
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(key.as_bytes());
    }

    /// A text that is one of ours and needs no escape.
    fn plain(&mut self, key: &'static str, value: &'static str) {
        self.key(key);
        self.quoted(value);
    }

    /// A text from outside.
    fn text(&mut self, key: &'static str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.key(key);
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

    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        number(self.0, value);
    }

    fn micros(&mut self, key: &'static str, value: Duration) {
        self.number(key, u64::try_from(value.as_micros()).unwrap_or(u64::MAX));
    }

    fn why(&mut self, reason: Option<Reason>, detail: &str) {
        if let Some(reason) = reason {
            self.plain(key!("reason"), reason.as_str());
        }
        self.text(key!("detail"), detail);
    }

    fn address(&mut self, key: &'static str, address: SocketAddr) {
        self.key(key);
        self.0.push(b'"');
        match address {
            SocketAddr::V4(v4) => {
                let [a, b, c, d] = v4.ip().octets();
                for (number_of, then) in [(a, b'.'), (b, b'.'), (c, b'.'), (d, b':')] {
                    number(self.0, number_of.into());
                    self.0.push(then);
                }
                number(self.0, v4.port().into());
            }
            // Writing to a Vec cannot fail.
            SocketAddr::V6(v6) => drop(write!(self.0, "{v6}")),
        }
        self.0.push(b'"');
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

/// Whether a text can stand in a line as it is. In blocks without a way out, which the compiler makes vectors of.
fn is_plain(text: &[u8]) -> bool {
    let special = |byte: u8| !matches!(byte, b' '..=b'~') | (byte == b'"') | (byte == b'\\');
    text.chunks(32).all(|block| !block.iter().fold(false, |any, byte| any | special(*byte)))
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
