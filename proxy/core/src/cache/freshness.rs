//! How old an answer is and how old it may become (RFC 9111 section 4.2).
//!
//! No heuristics: an answer that does not say how long it is fresh is stale at once.

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, header};

use super::directives::Directives;

/// One moment on both clocks. Dates are about the wall's; waiting is measured on the one that cannot be set.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub instant: Instant,
    pub wall: SystemTime,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Freshness {
    received: Now,
    /// `corrected_initial_age`.
    initial_age: Duration,
    lifetime: Duration,
}

impl Now {
    /// The larger of the two clocks' differences: a machine that slept stops one of them, somebody who sets
    /// the time moves the other, and an answer held for too old is only asked for again.
    fn since(self, earlier: Self) -> Duration {
        let wall = self.wall.duration_since(earlier.wall).unwrap_or_default();
        self.instant.saturating_duration_since(earlier.instant).max(wall)
    }
}

impl Freshness {
    /// Of an answer with these fields, received with these: the same, unless it was confirmed by another.
    pub(super) fn new(
        headers: &HeaderMap,
        came_with: &HeaderMap,
        said: &Directives,
        requested: Now,
        received: Now,
    ) -> Self {
        let date = date(headers, &header::DATE).unwrap_or(received.wall);
        let apparent_age = received.wall.duration_since(date).unwrap_or_default();
        let corrected_age = age_value(came_with).saturating_add(received.since(requested));
        Self {
            received,
            initial_age: apparent_age.max(corrected_age),
            lifetime: lifetime(headers, said, date).unwrap_or_default(),
        }
    }

    /// `current_age`.
    pub(super) fn age(&self, now: Now) -> Duration {
        self.initial_age.saturating_add(now.since(self.received))
    }

    pub(super) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// How long past its time it is.
    pub(super) fn staleness(&self, now: Now) -> Duration {
        self.age(now).saturating_sub(self.lifetime)
    }
}

/// Whether the answer says itself how long it is fresh.
pub(super) fn is_explicit(headers: &HeaderMap, said: &Directives) -> bool {
    said.s_maxage.is_some() || said.max_age.is_some() || headers.contains_key(header::EXPIRES)
}

fn lifetime(headers: &HeaderMap, said: &Directives, date: SystemTime) -> Option<Duration> {
    if let Some(seconds) = said.s_maxage.or(said.max_age) {
        return Some(Duration::from_secs(u64::from(seconds)));
    }
    // Unreadable, as the usual `0`, is in the past (section 5.3).
    self::date(headers, &header::EXPIRES)?.duration_since(date).ok()
}

/// A date that is there once and readable.
pub(super) fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut lines = headers.get_all(name).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    httpdate::parse_http_date(line.to_str().ok()?).ok()
}

/// Section 5.1: the first member of a list counts, what is no number does not.
fn age_value(headers: &HeaderMap) -> Duration {
    let text = headers.get(header::AGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let first = text.split(',').next().unwrap_or_default().trim();
    if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
        return Duration::ZERO;
    }
    Duration::from_secs(first.parse::<u64>().unwrap_or(u64::MAX).min(1 << 31))
}
