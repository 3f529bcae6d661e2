//! How answers look: tables for people, JSON for programs.

use std::{
    fmt,
    io::{ErrorKind, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;
use serde_json::Value;

use crate::figures::{clean, is_hostile};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Table,
    Json,
}

/// A table without frames: a line per row, columns as wide as their content, two spaces between. Nothing is
/// wrapped or cut, so that a line can be copied and searched whatever the terminal's width is.
pub(crate) fn table<const N: usize>(
    header: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Nobody reads what is written any more, as when `head` has seen enough: no error, but the end.
#[derive(Debug)]
pub(crate) struct ReaderGone;

impl fmt::Display for ReaderGone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads any more")
    }
}

impl std::error::Error for ReaderGone {}

/// A line or several, at once.
pub(crate) fn say(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
    write(out, &format!("{text}\n"))
}

pub(crate) fn write(out: &mut dyn Write, text: &str) -> anyhow::Result<()> {
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() == ErrorKind::BrokenPipe {
        true => ReaderGone.into(),
        false => anyhow::Error::from(error).context("cannot write"),
    })
}

/// What programs read, and terminals show: what these would obey and JSON allows is escaped.
pub(crate) fn json(value: &Value) -> String {
    escaped(format!("{value:#}"))
}

/// The same on a line.
pub(crate) fn json_line(value: &Value) -> String {
    escaped(value.to_string())
}

fn escaped(json: String) -> String {
    let hostile = |c: char| is_hostile(c) && c != '\n';
    if !json.contains(hostile) {
        return json;
    }
    // Only strings can hold them, and all are among the first 65,536.
    let escape = |c: char| if hostile(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// All texts and names of it, for tables.
pub(crate) fn clean_all(value: Value) -> Value {
    match value {
        Value::String(text) => clean(&text).into(),
        Value::Array(items) => items.into_iter().map(clean_all).collect(),
        Value::Object(fields) => {
            fields.into_iter().map(|(name, value)| (clean(&name), clean_all(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}

/// A terminal that knows nothing of moving the cursor.
pub(crate) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Whether the control plane is there, told when it changes and only then.
#[derive(Default)]
pub(crate) struct Present {
    away: Option<(i64, String)>,
}

impl Present {
    /// Since when it is away, and why.
    pub(crate) fn away(&self) -> Option<(i64, String)> {
        self.away.clone()
    }

    pub(crate) fn is_gone(&mut self, now_ms: i64, why: String) -> Option<String> {
        let before = self.away.take();
        let told = before.is_none().then(|| format!("control plane away: {why}; trying on"));
        self.away = Some((before.map_or(now_ms, |(since, _)| since), why));
        told
    }

    pub(crate) fn is_back(&mut self, now_ms: i64) -> Option<String> {
        let (since, _) = self.away.take()?;
        let away = Duration::from_millis(u64::try_from(now_ms - since).unwrap_or_default());
        Some(format!("control plane back after {}", roughly(away)))
    }
}

/// `-` for what is empty.
pub(crate) fn or_dash(text: impl Into<String>) -> String {
    let text = text.into();
    if text.is_empty() { "-".to_owned() } else { text }
}

/// Roughly how long, in its largest unit.
pub(crate) fn roughly(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        172_800.. => format!("{} d", seconds / 86_400),
    }
}

/// `in 3 d`, `5 min ago`.
pub(crate) fn relative(unix: i64, now: SystemTime) -> String {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let apart = roughly(Duration::from_secs(now.abs_diff(unix)));
    if unix >= now { format!("in {apart}") } else { format!("{apart} ago") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_columns() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long name".to_owned(), "22".to_owned()]];
        assert_eq!(table(["NAME", "N"], rows), "NAME       N\na          1\nlong name  22");
    }

    #[test]
    fn json_holds_nothing_that_a_terminal_obeys() {
        let value = serde_json::json!({"a\u{9b}": "\u{1b}[2J\u{9b}2J\u{7f}\u{202e}\n\"é日", "list": [1]});
        for text in [json(&value), json_line(&value)] {
            assert!(!text.replace('\n', "").chars().any(is_hostile), "{text}");
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
            assert!(text.contains("é日"), "{text}");
        }
        assert_eq!(
            clean_all(value),
            serde_json::json!({"a\u{fffd}": "\u{fffd}[2J\u{fffd}2J\u{fffd}\u{fffd}\u{fffd}\"é日", "list": [1]})
        );
    }

    #[test]
    fn times_are_told_in_one_unit() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (unix, told) in [
            (1_000_030, "in 30 s"),
            (999_400, "10 min ago"),
            (1_000_000 + 3 * 86_400, "in 3 d"),
            (1_000_000 - 86_400, "24 h ago"),
        ] {
            assert_eq!(relative(unix, now), told);
        }
    }
}
