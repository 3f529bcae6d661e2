//! Sliding windows that are never too generous.
//!
//! A window is divided into 16 parts, and the part under way and the 16 before it count whole: together they cover every
//! span of `per` that ends now. So no span of that length ever admits more than the limit. What was admitted returns when
//! its part has left, up to `per / 16` later than an exact log would say: under constant pressure 16/17 of the limit are
//! admitted, 94 %. (The usual two counters with a weight between them admit up to twice the limit in the worst span, when
//! one window's requests came at its end.) It takes 80 bytes per key; an exact log takes 8 for each request.

use std::time::{Duration, Instant};

use outrigger_proto::spec::RateLimit;

use super::{Verdict, WHOLE, counts::Counts};

const PARTS: u32 = 16;
/// Those before, and the one under way.
const COUNTED: usize = PARTS as usize + 1;

#[derive(Debug)]
pub(super) struct Windows {
    /// A whole limit, and ours; at least 1.
    whole: u64,
    limit: u32,
    /// Nanoseconds per part of a window.
    part: u64,
    origin: Instant,
    /// Nanoseconds since `origin`; never falls.
    latest: u64,
    counts: Counts<Window>,
}

#[derive(Debug)]
struct Window {
    /// The part up to which `counts` are.
    at: u64,
    /// Of part `n`, at `n % COUNTED`.
    counts: [u32; COUNTED],
    total: u32,
}

impl Windows {
    pub(super) fn new(policy: &RateLimit, now: Instant) -> Self {
        let whole = policy.requests.get();
        Self {
            whole,
            limit: part_of(whole, WHOLE),
            part: part(policy),
            origin: now,
            latest: 0,
            counts: Counts::new(policy.max_keys.get()),
        }
    }

    /// The share is to be set after it. With other parts, all that counts is taken to have come just now.
    pub(super) fn set_policy(&mut self, policy: &RateLimit, now: Instant) {
        self.whole = policy.requests.get();
        let new = part(policy);
        let time = self.time(now);
        if new != self.part {
            let (old_at, new_at) = (time / self.part, time / new);
            self.counts.for_each(|window| {
                window.advance(old_at);
                let total = window.total;
                *window = Window::new(new_at);
                window.add(total);
            });
            self.part = new;
        }
        self.counts.set_max(policy.max_keys.get());
    }

    pub(super) fn set_share(&mut self, parts: u32) {
        self.limit = part_of(self.whole, parts);
    }

    pub(super) fn keys(&self) -> usize {
        self.counts.len()
    }

    pub(super) fn check(&mut self, key: u64, now: Instant) -> Verdict {
        let time = self.time(now);
        let at = time / self.part;
        let limit = self.limit;
        let window = self.counts.touch(key, || Window::new(at));
        window.advance(at);
        let admitted = window.total < limit;
        if admitted {
            window.add(1);
        }
        let (frees, clears) = (window.frees(limit), window.clears());
        let until = |part: u64| Duration::from_nanos(part.saturating_mul(self.part).saturating_sub(time));
        Verdict {
            admitted,
            limit: 0,
            remaining: u64::from(limit.saturating_sub(window.total)),
            reset: until(clears),
            retry_after: (!admitted).then(|| until(frees)),
        }
    }

    pub(super) fn undo(&mut self, key: u64, now: Instant) {
        let at = self.time(now) / self.part;
        if let Some(window) = self.counts.known(key) {
            window.advance(at);
            window.remove_one();
        }
    }

    fn time(&mut self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.origin).as_nanos();
        self.latest = self.latest.max(u64::try_from(elapsed).unwrap_or(u64::MAX));
        self.latest
    }
}

impl Window {
    fn new(at: u64) -> Self {
        Self { at, counts: [0; COUNTED], total: 0 }
    }

    fn advance(&mut self, to: u64) {
        let passed = to.saturating_sub(self.at).min(COUNTED as u64);
        for step in 1..=passed {
            let left = &mut self.counts[index(self.at + step)];
            self.total -= *left;
            *left = 0;
        }
        self.at = self.at.max(to);
    }

    fn add(&mut self, requests: u32) {
        self.counts[index(self.at)] += requests;
        self.total += requests;
    }

    /// The newest.
    fn remove_one(&mut self) {
        if let Some(part) = self.parts().rev().find(|&part| self.counts[index(part)] > 0) {
            self.counts[index(part)] -= 1;
            self.total -= 1;
        }
    }

    /// The part in whose beginning fewer than `limit` will be left.
    fn frees(&self, limit: u32) -> u64 {
        let mut left = self.total;
        for part in self.parts() {
            left -= self.counts[index(part)];
            if left < limit {
                return part + COUNTED as u64;
            }
        }
        self.at
    }

    /// The part in whose beginning nothing will be left.
    fn clears(&self) -> u64 {
        let newest = self.parts().rev().find(|&part| self.counts[index(part)] > 0);
        newest.map_or(self.at, |part| part + COUNTED as u64)
    }

    /// Those that count, oldest first.
    fn parts(&self) -> impl DoubleEndedIterator<Item = u64> + use<> {
        self.at.saturating_sub(u64::from(PARTS))..=self.at
    }
}

fn index(part: u64) -> usize {
    (part % COUNTED as u64) as usize
}

fn part(policy: &RateLimit) -> u64 {
    u64::try_from(policy.per.as_nanos().div_ceil(u128::from(PARTS))).unwrap_or(u64::MAX).max(1)
}

/// Beyond `u32::MAX` in a window there is no limit worth the name.
fn part_of(whole: u64, parts: u32) -> u32 {
    let limit = u128::from(whole) * u128::from(parts) / u128::from(WHOLE);
    u32::try_from(limit).unwrap_or(u32::MAX).max(1)
}
