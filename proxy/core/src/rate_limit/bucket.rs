//! Token buckets, one number each.
//!
//! Time runs at the speed of the share: a limiter with half of a limit has a clock of half speed, and all else stays. A
//! bucket is the moment at which it was last empty, had it filled steadily since (`empty`); its content is the time
//! since, at most the size of a bucket. A token costs `interval` of it. So nothing has to be refilled, and neither a new
//! share nor a new size touches any bucket: content above the old size is forgotten by `spilt`, the moment before
//! which no bucket can have been empty, whatever it says itself.

use std::time::{Duration, Instant};

use outrigger_proto::spec::RateLimit;

use super::{Verdict, WHOLE, counts::Counts};

/// Of a nanosecond, so that the interval of a million per second is exact to 1 in 16,000.
const TICKS_PER_NANOSECOND: u64 = 16;
/// Where time begins: buckets may have been empty before. 2^63 more ticks are 18 years.
const BEGIN: u64 = 1 << 62;

#[derive(Debug)]
pub(super) struct Buckets {
    /// Time per token, rounded up.
    interval: u64,
    /// A whole limit's bucket, and ours.
    whole: u64,
    size: u64,
    parts: u32,
    /// The clock said `base` at `since`.
    base: u64,
    since: Instant,
    /// The latest moment seen: time that goes backwards stands still.
    seen: Instant,
    spilt: u64,
    counts: Counts<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    empty: u64,
}

impl Buckets {
    pub(super) fn new(policy: &RateLimit, now: Instant) -> Self {
        let interval = interval(policy);
        let whole = size(policy, interval);
        Self {
            interval,
            whole,
            size: whole,
            parts: WHOLE,
            base: BEGIN,
            since: now,
            seen: now,
            spilt: BEGIN - whole,
            counts: Counts::new(policy.max_keys.get()),
        }
    }

    /// Tokens stay tokens, whatever they cost now.
    pub(super) fn set_policy(&mut self, policy: &RateLimit, now: Instant) {
        let time = self.time(now);
        let (old, new) = (self.interval, interval(policy));
        let spilt = self.spilt.max(time.saturating_sub(self.size));
        let rescale = |empty: u64| {
            let content = u128::from(time.saturating_sub(empty.max(spilt)));
            let content = content * u128::from(new) / u128::from(old);
            time.saturating_sub(u64::try_from(content).unwrap_or(u64::MAX))
        };
        self.counts.for_each(|bucket| bucket.empty = rescale(bucket.empty));
        self.spilt = rescale(spilt);
        self.interval = new;
        self.whole = size(policy, new);
        self.counts.set_max(policy.max_keys.get());
        self.set_share(self.parts, now);
    }

    pub(super) fn set_share(&mut self, parts: u32, now: Instant) {
        self.base = self.time(now);
        self.since = self.seen;
        self.spilt = self.spilt.max(self.base.saturating_sub(self.size));
        self.parts = parts;
        let size = u128::from(self.whole) * u128::from(parts) / u128::from(WHOLE);
        self.size = u64::try_from(size).unwrap_or(u64::MAX).max(self.interval);
    }

    pub(super) fn keys(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn check(&mut self, key: u64, now: Instant) -> Verdict {
        let time = self.time(now);
        let oldest = self.spilt.max(time.saturating_sub(self.size));
        let bucket = self.counts.touch(key, || Bucket { empty: 0 });
        let empty = bucket.empty.max(oldest);
        let content = time.saturating_sub(empty);
        let admitted = content >= self.interval;
        bucket.empty = if admitted { empty + self.interval } else { empty };
        let left = if admitted { content - self.interval } else { content };
        Verdict {
            admitted,
            limit: 0,
            remaining: left / self.interval,
            reset: self.lasts(self.size.saturating_sub(left)),
            retry_after: (!admitted).then(|| self.lasts(self.interval - content)),
        }
    }

    pub(super) fn undo(&mut self, key: u64, _now: Instant) {
        let interval = self.interval;
        if let Some(bucket) = self.counts.known(key) {
            bucket.empty = bucket.empty.saturating_sub(interval);
        }
    }

    fn time(&mut self, now: Instant) -> u64 {
        self.seen = self.seen.max(now);
        let elapsed = ticks(self.seen.saturating_duration_since(self.since));
        let elapsed = match self.parts {
            WHOLE => elapsed,
            parts => (elapsed as f64 * f64::from(parts) / f64::from(WHOLE)) as u64,
        };
        self.base.saturating_add(elapsed)
    }

    /// Of our clock, in everybody's.
    fn lasts(&self, ticks: u64) -> Duration {
        // Rounded up: whoever comes back then is admitted.
        if self.parts == WHOLE {
            return Duration::from_nanos(ticks.div_ceil(TICKS_PER_NANOSECOND));
        }
        let nanoseconds =
            ticks as f64 / TICKS_PER_NANOSECOND as f64 * f64::from(WHOLE) / f64::from(self.parts.max(1));
        Duration::from_nanos(nanoseconds as u64 + 1)
    }
}

fn ticks(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos() * u128::from(TICKS_PER_NANOSECOND)).unwrap_or(u64::MAX)
}

fn interval(policy: &RateLimit) -> u64 {
    ticks(policy.per).div_ceil(policy.requests.get()).clamp(1, BEGIN)
}

fn size(policy: &RateLimit, interval: u64) -> u64 {
    policy.burst.get().saturating_mul(interval).min(BEGIN)
}
