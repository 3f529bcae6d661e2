//! How values become the bytes of a line. One discipline for both formats: whatever a text holds, what is written of it
//! has no line break, no control character and no mark that turns the direction of writing around.

use std::{
    io::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::telemetry::{Ended, Try};

/// Longest text of a field, in bytes; the rest is cut off and the cut marked.
pub(super) const MAX_FIELD_BYTES: usize = 1024;
/// What marks the cut.
pub(super) const CUT: &str = "…";

/// Remembers the text of the current second.
#[derive(Default)]
pub(super) struct Clock {
    second: u64,
    text: Vec<u8>,
}

pub(super) fn number(line: &mut Vec<u8>, value: u64) {
    line.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn micros(value: Duration) -> u64 {
    value.as_secs().saturating_mul(1_000_000).saturating_add(value.subsec_micros().into())
}

/// Eight hexadecimal digits at a time: the digits of a number lie in the bytes of a word.
pub(super) fn hex(value: u32) -> [u8; 8] {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let mut nibbles = u64::from(value);
    nibbles = ((nibbles << 16) | nibbles) & 0x0000_ffff_0000_ffff;
    nibbles = ((nibbles << 8) | nibbles) & 0x00ff_00ff_00ff_00ff;
    nibbles = ((nibbles << 4) | nibbles) & 0x0f0f_0f0f_0f0f_0f0f;
    // 1 in the bytes of a to f, whose letters come 39 later than digits would.
    let letters = ((nibbles + ONES * 6) >> 4) & ONES;
    (nibbles + ONES * u64::from(b'0') + letters * 39).to_be_bytes()
}

pub(super) fn hex_u64(line: &mut Vec<u8>, value: u64) {
    let mut digits = [0; 16];
    digits[..8].copy_from_slice(&hex((value >> 32) as u32));
    digits[8..].copy_from_slice(&hex(value as u32));
    line.extend_from_slice(&digits);
}

pub(super) fn hex_u128(line: &mut Vec<u8>, value: u128) {
    hex_u64(line, (value >> 64) as u64);
    hex_u64(line, value as u64);
}

/// An address between double quotes, in one copy.
pub(super) fn quoted_address(line: &mut Vec<u8>, address: SocketAddr) {
    let SocketAddr::V4(v4) = address else {
        // Writing to a Vec cannot fail.
        return drop(write!(line, "\"{address}\""));
    };
    // The longest is 255.255.255.255:65535 with its quotes.
    let mut text = [b'"'; 24];
    let mut length = 1;
    for (at, octet) in v4.ip().octets().into_iter().enumerate() {
        // Its digits and what follows them as one word, which leading zeros are shifted out of.
        let octet = u32::from(octet);
        let digits = (octet / 100) | ((octet / 10 % 10) << 8) | ((octet % 10) << 16);
        let then = u32::from(if at == 3 { b':' } else { b'.' });
        let zeros = 2 - usize::from(octet >= 10) - usize::from(octet >= 100);
        let word = (digits | 0x0030_3030 | (then << 24)) >> (8 * zeros);
        text[length..length + 4].copy_from_slice(&word.to_le_bytes());
        length += 4 - zeros;
    }
    let mut port = itoa::Buffer::new();
    let port = port.format(v4.port()).as_bytes();
    let end = length + port.len();
    text[length..end].copy_from_slice(port);
    text[end] = b'"';
    line.extend_from_slice(&text[..=end]);
}

/// `200`, `grpc-14`, a reason, or `cancelled`.
pub(super) fn ended(line: &mut Vec<u8>, ended: Ended) {
    match ended {
        Ended::Cancelled => line.extend_from_slice(b"cancelled"),
        Ended::Status(status) => number(line, status.into()),
        Ended::Grpc(status) => {
            line.extend_from_slice(b"grpc-");
            number(line, status.into());
        }
        Ended::Failed(reason) => line.extend_from_slice(reason.as_str().as_bytes()),
    }
}

/// `ENDPOINT/ENDED/BEGAN_US/CONNECT_US/LASTED_US`, and `/hedge` behind it; tries are separated by commas.
pub(super) fn tries(line: &mut Vec<u8>, tries: &[Try]) {
    for (index, one) in tries.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        // Writing to a Vec cannot fail.
        drop(write!(line, "{}/", one.endpoint));
        ended(line, one.ended);
        for time in [one.began, one.connect, one.lasted] {
            line.push(b'/');
            number(line, micros(time));
        }
        if one.hedge {
            line.extend_from_slice(b"/hedge");
        }
    }
}

/// The part of a text that is logged, and whether that is not all of it.
pub(super) fn cut(text: &str) -> (&str, bool) {
    if text.len() <= MAX_FIELD_BYTES {
        (text, false)
    } else {
        (&text[..text.floor_char_boundary(MAX_FIELD_BYTES)], true)
    }
}

/// Whether a text can stand between quotes as it is; `false` may be too strict. Eight bytes at a time.
pub(super) fn is_plain(text: &[u8]) -> bool {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    let is = |word: u64, byte: u8| {
        let zero_where_equal = word ^ (ONES * u64::from(byte));
        zero_where_equal.wrapping_sub(ONES) & !zero_where_equal
    };
    let special = |bytes: [u8; 8]| {
        let word = u64::from_ne_bytes(bytes);
        let control = word.wrapping_sub(ONES * 0x20) & !word;
        word | control | is(word, b'"') | is(word, b'\\') | is(word, 0x7f)
    };
    // The last eight may have been seen already, which costs less than a copy of the few that have not.
    let Some(last) = text.last_chunk() else {
        return text.iter().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\'));
    };
    let found = text.as_chunks().0.iter().fold(special(*last), |found, word| found | special(*word));
    found & TOPS == 0
}

/// Whether a reader, a terminal or a tool could take the character for something else than a part of the text. Also what
/// JSON would allow as it is: DEL, C1, separators of lines and paragraphs, marks of direction.
pub(super) fn is_treacherous(character: char) -> bool {
    matches!(character,
        '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The inside of a JSON string. `also` is escaped too.
pub(super) fn escape(line: &mut Vec<u8>, text: &str, also: Option<char>) {
    let mut copied = 0;
    for (at, character) in text.char_indices() {
        let short = match character {
            '"' => "\\\"",
            '\\' => "\\\\",
            '\n' => "\\n",
            '\r' => "\\r",
            '\t' => "\\t",
            other if is_treacherous(other) || also == Some(other) => "",
            _ => continue,
        };
        line.extend_from_slice(&text.as_bytes()[copied..at]);
        copied = at + character.len_utf8();
        match short {
            "" => unicode(line, character),
            short => line.extend_from_slice(short.as_bytes()),
        }
    }
    line.extend_from_slice(&text.as_bytes()[copied..]);
}

/// `\u2028`; two of them for what is beyond the first 65,536 characters.
pub(super) fn unicode(line: &mut Vec<u8>, character: char) {
    for unit in character.encode_utf16(&mut [0; 2]) {
        // Writing to a Vec cannot fail.
        drop(write!(line, "\\u{unit:04x}"));
    }
}

// === impl Clock ===

impl Clock {
    /// RFC 3339 in UTC with milliseconds.
    pub(super) fn write(&mut self, line: &mut Vec<u8>, now: SystemTime) {
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn digits_are_those_of_the_standard_library(value in any::<u128>()) {
            let mut line = Vec::new();
            hex_u128(&mut line, value);
            prop_assert_eq!(String::from_utf8(line).unwrap(), format!("{value:032x}"));
        }
    }

    #[test]
    fn addresses_are_those_of_the_standard_library() {
        for octet in 0..=u8::MAX {
            for (octets, port) in
                [([octet, 1, 22, 255], 1), ([9, octet, 0, octet], 65535), ([0, 0, 0, octet], 80)]
            {
                let address = SocketAddr::from((octets, port));
                let mut line = Vec::new();
                quoted_address(&mut line, address);
                assert_eq!(String::from_utf8(line).unwrap(), format!("\"{address}\""));
            }
        }
    }

    #[test]
    fn each_digit() {
        assert_eq!((&hex(0x0123_4567), &hex(0x89ab_cdef)), (b"01234567", b"89abcdef"));
    }
}
