//! Access logs, read back.

use std::time::Duration;

use anyhow::{Context, Result};
use outrigger_lab::Workload;
use serde_json::Value;

/// The lines of a workload's sidecar so far. The last one may be half written.
pub(crate) fn lines(workload: &Workload) -> Result<Vec<Value>> {
    parse(&workload.access_log())
}

fn parse(text: &str) -> Result<Vec<Value>> {
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// Requests of one side.
pub(crate) fn requests<'a>(lines: &'a [Value], direction: &str) -> impl Iterator<Item = &'a Value> {
    lines.iter().filter(move |line| line["kind"] == "request" && line["direction"] == direction)
}

/// The value below which this share of them is, by the nearest rank; they must be sorted.
pub(crate) fn quantile(sorted: &[u64], share: f64) -> u64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
}

/// When a line says it ended: since 1970, to the millisecond.
pub(crate) fn ended(line: &Value) -> Result<Duration> {
    let text = line["time"].as_str().context("time")?;
    let number = |from: usize, to: usize| -> Result<u64> {
        Ok(text.get(from..to).with_context(|| text.to_owned())?.parse()?)
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    // Days since 1970 by Howard Hinnant's `days_from_civil`, the year beginning with March.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let of_era = year % 400;
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = year / 400 * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    let seconds = days * 86_400 + number(11, 13)? * 3600 + number(14, 16)? * 60 + number(17, 19)?;
    Ok(Duration::from_millis(seconds * 1000 + number(20, 23)?))
}
