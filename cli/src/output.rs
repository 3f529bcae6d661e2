//! How answers look: tables for people, JSON for programs.

use std::{
    fmt,
    io::{ErrorKind, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::ValueEnum;

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
