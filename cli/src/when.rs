//! Times as users say them: RFC 3339, seconds (or milliseconds) since 1970, or how long ago: `-10m`.

use std::time::Duration;

use jiff::{Span, SpanRelativeTo, Timestamp};

/// 5138 in seconds, 1973 in milliseconds: what is above can only be milliseconds.
const MILLIS_FROM: i64 = 100_000_000_000;
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A time, perhaps one that moves along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    At { unix_ms: i64 },
    Ago(Duration),
}

impl When {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        const WANT: &str = "want a time such as 2026-11-21T20:00:00Z, -10m, 1795291200 or now";
        if text == "now" {
            return Ok(Self::Ago(Duration::ZERO));
        }
        if let Ok(number) = text.parse::<i64>() {
            return match number {
                ..0 => Err(format!("{number} has no unit: -{}s?", number.unsigned_abs())),
                0..MILLIS_FROM => Ok(Self::At { unix_ms: number * 1000 }),
                MILLIS_FROM.. => Ok(Self::At { unix_ms: number }),
            };
        }
        if let Some(ago) = text.strip_prefix('-') {
            return duration(ago).map(Self::Ago).map_err(|error| format!("{error} after the `-`"));
        }
        let at: Timestamp = text.parse().map_err(|_| match text.parse::<jiff::civil::DateTime>() {
            Ok(_) => format!("{text} has no zone: {text}Z?"),
            Err(_) => WANT.to_owned(),
        })?;
        Ok(Self::At { unix_ms: at.as_millisecond() })
    }

    pub(crate) fn unix_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::At { unix_ms } => unix_ms,
            Self::Ago(ago) => now_ms.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

/// `30s`, `10m`, `1h30m`, `7d`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let want = || "want a duration such as 30s, 10m or 6h".to_owned();
    let span: Span = text.parse().map_err(|_| want())?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| want())?;
    let duration = Duration::try_from(duration).map_err(|_| want())?;
    if duration > LONGEST { Err("want at most 366d".to_owned()) } else { Ok(duration) }
}

/// A window of figures: they are kept by the second.
pub(crate) fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window.is_zero() || window.subsec_nanos() != 0 {
        return Err("want whole seconds, one or more".to_owned());
    }
    Ok(window)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let now = 1_795_291_265_000;
        for (text, unix_ms) in [
            ("now", now),
            ("-10m", now - 600_000),
            ("-1h30m", now - 5_400_000),
            ("-500ms", now - 500),
            ("1795291200", 1_795_291_200_000),
            ("1795291200123", 1_795_291_200_123),
            ("2026-11-21T20:01:05Z", now),
            ("2026-11-21T21:01:05+01:00", now),
            ("2026-11-21 20:01:05.5Z", now + 500),
        ] {
            assert_eq!(When::parse(text).map(|when| when.unix_ms(now)), Ok(unix_ms), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        for (text, reason) in [
            ("", "want a time such as"),
            ("yesterday", "want a time such as"),
            ("2026-13-01T00:00:00Z", "want a time such as"),
            ("2026-11-21T20:01:05", "has no zone: 2026-11-21T20:01:05Z?"),
            ("-10", "-10 has no unit: -10s?"),
            ("-soon", "want a duration such as 30s, 10m or 6h after the `-`"),
            ("--10m", "want a duration"),
            ("-999d", "want at most 366d"),
            ("99999999999999999999", "want a time such as"),
        ] {
            let told = When::parse(text).unwrap_err();
            assert!(told.contains(reason), "{text:?}: {told}");
        }
    }

    #[test]
    fn windows_are_whole_seconds() {
        for (text, seconds) in [("1s", 1), ("30s", 30), ("10m", 600), ("6h", 21_600), ("2d", 172_800)] {
            assert_eq!(window(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["0s", "500ms", "1500ms", "-30s", "30", "", "a while", "1y"] {
            assert!(window(text).is_err(), "{text}");
        }
    }
}
