//! Lines in the user's own form: `%{time} %{method} %{path} %{status} %{duration_us}us %{reason|-}`.
//!
//! ```text
//! format  = *( text / "%%" / field )
//! field   = "%{" name [ "|" default ] "}"
//! ```
//!
//! Read once, at the start. The rules make that one record is one line and that a reader gets every value back, whatever
//! a peer sent:
//!
//! - A field that is not between quotes ends where the next character of the format comes. A value that holds this
//!   character, a space, a quote or something treacherous, or that looks like the default, is written as a JSON string.
//! - Between quotes (`"%{method} %{path}"`), what would end the field or the quotes is written as an escape of JSON.
//! - What would make that ambiguous is an error: fields without anything between them, a default that holds the
//!   character after it, quotes that are not closed.

use std::{fmt, sync::Arc, time::SystemTime};

use super::{
    encode::{self, CUT, Clock},
    field::{self, Field, Value},
};
use crate::telemetry::{ConnectionRecord, RequestRecord};

/// Longer ones are a mistake.
const MAX_FORMAT_BYTES: usize = 4096;
/// What stands for a missing value outside of quotes, unless told otherwise: a column that is not there would move the
/// others.
const NOTHING: &str = "-";

/// A format string that was read.
#[derive(Clone)]
pub struct Format {
    source: Arc<str>,
    pieces: Arc<[Piece]>,
}

enum Piece {
    Text(String),
    Field(Slot),
}

/// Where a field stands.
struct Slot {
    field: &'static Field,
    /// What is written without a value.
    default: String,
    /// Between quotes.
    quoted: bool,
    /// What comes behind it; `None`: a quote, or the end of the line.
    then: Option<char>,
}

/// What has to outlive a value while it is written.
#[derive(Default)]
pub(super) struct Scratch {
    value: Vec<u8>,
}

// === impl Format ===

impl Format {
    /// `Err`: what is wrong, for the user.
    pub fn parse(source: &str) -> Result<Self, String> {
        if source.len() > MAX_FORMAT_BYTES {
            return Err(format!("it is longer than {MAX_FORMAT_BYTES} bytes"));
        }
        let mut pieces: Vec<Piece> = Vec::new();
        let mut between_quotes = false;
        let mut rest = source;
        let mut quote = 0;
        while let Some(first) = rest.chars().next() {
            let at = source.len() - rest.len();
            let wrong = |what: String| format!("character {}: {what}", place(source, at));
            if let Some(behind) = rest.strip_prefix("%{") {
                let Some((inside, behind)) = behind.split_once('}') else {
                    return Err(wrong(format!("{rest:?}: want a }} behind the name of the field")));
                };
                if let Some(Piece::Field(before)) = pieces.last() {
                    let before = before.field.name;
                    return Err(wrong(format!(
                        "%{{{inside}}} follows %{{{before}}} directly: want something between them, \
                         so that readers can tell them apart"
                    )));
                }
                pieces.push(Piece::Field(Slot::parse(inside, between_quotes, behind).map_err(wrong)?));
                rest = behind;
                continue;
            }
            match first {
                '%' if !rest.starts_with("%%") => {
                    return Err(wrong(format!("{rest:?}: want %{{FIELD}}, or %% for a percent sign")));
                }
                '\\' => {
                    return Err(wrong(
                        "a \\ is not possible: readers would take it for an escape".to_owned(),
                    ));
                }
                other if other != '\t' && encode::is_treacherous(other) => {
                    return Err(wrong(format!(
                        "{other:?} is not possible: a record is one line of visible text"
                    )));
                }
                '"' => {
                    between_quotes = !between_quotes;
                    quote = at;
                }
                _ => {}
            }
            match pieces.last_mut() {
                Some(Piece::Text(text)) => text.push(first),
                _ => pieces.push(Piece::Text(first.to_string())),
            }
            rest = &rest[if first == '%' { 2 } else { first.len_utf8() }..];
        }
        if between_quotes {
            return Err(format!("character {}: a quote is opened and never closed", place(source, quote)));
        }
        if !pieces.iter().any(|piece| matches!(piece, Piece::Field(_))) {
            return Err("it names no field: want json, or text with fields such as %{path}".to_owned());
        }
        Ok(Self { source: source.into(), pieces: pieces.into() })
    }

    pub(super) fn request(
        &self,
        line: &mut Vec<u8>,
        scratch: &mut Scratch,
        clock: &mut Clock,
        now: SystemTime,
        record: &RequestRecord<'_>,
    ) {
        self.write(line, |slot, line| slot.write(line, scratch, clock, now, (slot.field.request)(record)));
    }

    pub(super) fn connection(
        &self,
        line: &mut Vec<u8>,
        scratch: &mut Scratch,
        clock: &mut Clock,
        now: SystemTime,
        record: &ConnectionRecord<'_>,
    ) {
        self.write(line, |slot, line| slot.write(line, scratch, clock, now, (slot.field.connection)(record)));
    }

    fn write(&self, line: &mut Vec<u8>, mut field: impl FnMut(&Slot, &mut Vec<u8>)) {
        for piece in &*self.pieces {
            match piece {
                Piece::Text(text) => line.extend_from_slice(text.as_bytes()),
                Piece::Field(slot) => field(slot, line),
            }
        }
        line.push(b'\n');
    }
}

/// Counted from 1, as editors do.
fn place(source: &str, at: usize) -> usize {
    source[..at].chars().count() + 1
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl fmt::Debug for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Format({:?})", self.source)
    }
}

impl PartialEq for Format {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

// === impl Slot ===

impl Slot {
    /// `inside`: of the braces; `behind`: what follows them in the format.
    fn parse(inside: &str, quoted: bool, behind: &str) -> Result<Self, String> {
        let (name, default) = match inside.split_once('|') {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        let field = field::named(name)?;
        let then = behind.chars().next().filter(|then| *then != '"');
        let default = default.unwrap_or(if quoted { "" } else { NOTHING });
        let taken = |character: char| {
            Some(character) == then
                || matches!(character, '"' | '\\')
                || encode::is_treacherous(character)
                || (!quoted && character.is_whitespace())
        };
        if let Some(character) = default.chars().find(|character| taken(*character)) {
            let then = match (Some(character) == then, quoted) {
                (true, _) => "it ends the field",
                (false, true) => "want visible text without \" and \\",
                (false, false) => "want visible text without spaces, \" and \\",
            };
            return Err(format!("%{{{name}}}: its default {default:?} holds {character:?}: {then}"));
        }
        if default.is_empty() && !quoted && behind.starts_with('"') {
            return Err(format!(
                "%{{{name}}}: its default is empty and a quote follows, which could be that of a value: want another default"
            ));
        }
        Ok(Self { field, default: default.to_owned(), quoted, then })
    }

    fn write(
        &self,
        line: &mut Vec<u8>,
        scratch: &mut Scratch,
        clock: &mut Clock,
        now: SystemTime,
        value: Value<'_>,
    ) {
        let bytes = &mut scratch.value;
        bytes.clear();
        match value {
            Value::Nothing => return line.extend_from_slice(self.default.as_bytes()),
            Value::Text(text) => return self.text(line, text),
            Value::Time => clock.write(bytes, now),
            Value::Number(number) => encode::number(bytes, number),
            Value::Id(id) => encode::hex_u64(bytes, id),
            Value::LongId(id) => encode::hex_u128(bytes, id),
            Value::Tries(tries) => encode::tries(bytes, tries),
            Value::Address(address) => {
                encode::quoted_address(bytes, address);
                bytes.pop();
                bytes.remove(0);
            }
        }
        // All of them are ASCII.
        if let Ok(text) = std::str::from_utf8(bytes) {
            self.text(line, text);
        }
    }

    fn text(&self, line: &mut Vec<u8>, text: &str) {
        let (text, is_cut) = encode::cut(text);
        let is_default = text == self.default && !is_cut;
        let ends_early = self.then.is_some_and(|then| text.contains(then) || (is_cut && CUT.contains(then)));
        if self.quoted {
            if !is_default && !ends_early && encode::is_plain(text.as_bytes()) {
                line.extend_from_slice(text.as_bytes());
            } else {
                self.escape(line, text, is_default);
            }
            return self.mark(line, is_cut);
        }
        if is_default || ends_early || !is_bare(text) {
            line.push(b'"');
            encode::escape(line, text, None);
            if is_cut {
                line.extend_from_slice(CUT.as_bytes());
            }
            line.push(b'"');
        } else {
            line.extend_from_slice(text.as_bytes());
            self.mark(line, is_cut);
        }
    }

    fn escape(&self, line: &mut Vec<u8>, text: &str, is_default: bool) {
        let mut rest = text.chars();
        // One escape tells it from the default.
        if is_default && let Some(first) = rest.next() {
            encode::unicode(line, first);
        }
        encode::escape(line, rest.as_str(), self.then);
    }

    /// Marks a cut, where quotes are around the field or not needed.
    fn mark(&self, line: &mut Vec<u8>, is_cut: bool) {
        if is_cut {
            encode::escape(line, CUT, self.then);
        }
    }
}

/// Whether a text can stand without quotes.
fn is_bare(text: &str) -> bool {
    let is_visible = |byte: u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b'"' | b'\\');
    text.bytes().all(is_visible)
        || !text.chars().any(|character| {
            matches!(character, '"' | '\\') || character.is_whitespace() || encode::is_treacherous(character)
        })
}
