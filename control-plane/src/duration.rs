//! Durations as the Gateway API writes them, in files and flags alike.

use std::{str::FromStr as _, time::Duration};

/// The longest unit first, each at most once: `[Nh][Nm][Ns][Nms]`, as in the Gateway API.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    for (unit, millis) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let Some(after) = rest[digits..].strip_prefix(unit) else { continue };
        // `5ms` is not five minutes and an s.
        if digits == 0 || (unit == "m" && after.starts_with('s')) {
            continue;
        }
        total += Duration::from_millis(u64::from_str(&rest[..digits]).ok()?.checked_mul(millis)?);
        rest = after;
    }
    (rest.is_empty() && !text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("5s", 5_000),
            ("300ms", 300),
            ("1h30m", 5_400_000),
            ("0s", 0),
            ("1m1s1ms", 61_001),
            ("2m", 120_000),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "5 s",
            "1s1m",
            "1s1s",
            "1.5s",
            "5S",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
