//! The time of the history: milliseconds that only grow, at the pace of real ones.
//!
//! The machine's clock may be set, and then a second would be missing or come twice. So the history goes by the
//! monotonic clock, continued over a restart from what the last record says of both, and the machine's clock is asked
//! only for how long we were away, and to show times to people.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

pub(super) struct Clock {
    start: Instant,
    /// The history's time then.
    at: u64,
}

impl Clock {
    /// `last`: the times of the last record, the history's and the machine's.
    pub(super) fn new(last: Option<(u64, u64)>, wall: u64) -> Self {
        let at = match last {
            Some((at, then)) => at + wall.saturating_sub(then),
            None => wall,
        };
        Self { start: Instant::now(), at }
    }

    pub(super) fn now(&self) -> u64 {
        self.at + u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A time of the machine's clock, as it goes now, in the history's.
    pub(super) fn of_wall(&self, wall: u64) -> u64 {
        wall.saturating_add_signed(self.ahead())
    }

    /// A time of the history on the machine's clock as it goes now.
    pub(super) fn to_wall(&self, at: u64) -> u64 {
        at.saturating_add_signed(-self.ahead())
    }

    fn ahead(&self) -> i64 {
        i64::try_from(i128::from(self.now()) - i128::from(wall())).unwrap_or(0)
    }
}

/// Milliseconds since 1970.
pub fn wall() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_where_the_last_record_ended() {
        let now = wall();
        for (last, at) in [
            // Away for ten seconds; the machine's clock had been set by an hour before that.
            (Some((now - 3_600_000, now - 10_000)), now - 3_590_000),
            // Set back while we were away: no time has passed then, as far as we know.
            (Some((now, now + 5_000)), now),
            (None, now),
        ] {
            let clock = Clock::new(last, now);
            let passed = clock.now() - at;
            assert!(passed < 5_000, "{last:?}: {passed}");
            let shown = clock.to_wall(at);
            assert!(shown.abs_diff(now) < 5_000, "what is now is shown as now");
            assert!(clock.of_wall(shown).abs_diff(at) < 50);
        }
    }
}
