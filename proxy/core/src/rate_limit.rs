//! How often something may be asked for.
//!
//! One machine per [`RateLimit`]. What it counts by is a [`Key`]: the values that the policy names, hashed with a secret,
//! so that a stranger can neither choose two that collide nor make one cost more memory than another. A value that a
//! request does not have counts as a value of its own: leaving a header out is no way around a limit.
//!
//! | | admitted over any span `t` |
//! |---|---|
//! | token bucket | at most `requests × t / per + burst` |
//! | sliding window | at most `requests` for `t = per`, exactly; in exchange a place returns up to `per / 16` late |
//!
//! # Forgetting
//!
//! At most `max_keys` are remembered; beyond, whoever has not asked for longest is forgotten, and begins anew. A limit by
//! something that callers make up at will (a header) therefore needs enough keys, or another limit beside it.
//!
//! # Shared limits
//!
//! A limit of [`Scope::Shared`] is this proxy's part of it: rate, burst and window are multiplied by the share that the
//! control plane last sent ([`RateLimiter::set_share`]). Before any, and when the last one has run out, the part is one of
//! so many holders as were last known, at first 1. A raised share brings no tokens along, it only fills faster and
//! higher; so shares that sum up to one admit no more than one limit, however they move. That of a window moves whole.
//! [`RateLimiter::demand`] is what the control plane divides by.
//!
//! A new policy keeps what was counted, unless it changes the algorithm. Time that goes backwards stands still.
//!
//! It refuses nobody: the shell acts on the [`Verdict`], or does not (`dry_run`).

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use outrigger_proto::spec::{RateAlgorithm, RateLimit, Scope};

mod bucket;
mod counts;
mod demand;
pub mod fields;
mod window;

use bucket::Buckets;
use demand::Meter;
use window::Windows;

/// All of it.
const WHOLE: u32 = 1_000_000;

/// Who is counted together. Only of use with the limiter that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub admitted: bool,
    /// Requests of the policy, in its time.
    pub limit: u64,
    /// What would be admitted now, after this one.
    pub remaining: u64,
    /// Until all of it is there again if nobody asks.
    pub reset: Duration,
    /// Until the next is admitted; `None`: this one is.
    pub retry_after: Option<Duration>,
}

#[derive(Debug)]
pub struct RateLimiter {
    limit: u64,
    hasher: RandomState,
    method: Method,
    share: Share,
    meter: Meter,
}

#[derive(Debug)]
enum Method {
    Bucket(Buckets),
    Window(Windows),
}

/// In parts per million.
#[derive(Debug)]
struct Share {
    scope: Scope,
    parts: u32,
    /// `None`: not from the control plane, or run out.
    until: Option<Instant>,
    holders: u32,
}

impl RateLimiter {
    /// `hasher` holds the secret.
    pub fn new(policy: &RateLimit, hasher: RandomState, now: Instant) -> Self {
        let share = Share { scope: policy.scope, parts: WHOLE, until: None, holders: 1 };
        Self {
            limit: policy.requests.get(),
            hasher,
            method: Method::new(policy, now),
            share,
            meter: Meter::new(now),
        }
    }

    pub fn set_policy(&mut self, policy: &RateLimit, now: Instant) {
        self.settle_share(now);
        self.limit = policy.requests.get();
        match (&mut self.method, policy.algorithm) {
            (Method::Bucket(buckets), RateAlgorithm::TokenBucket) => buckets.set_policy(policy, now),
            (Method::Window(windows), RateAlgorithm::SlidingWindow) => windows.set_policy(policy, now),
            (method, _) => *method = Method::new(policy, now),
        }
        self.share.scope = policy.scope;
        self.apply_share(now);
    }

    /// What the control plane says about a shared limit; without effect on a local one.
    pub fn set_share(&mut self, parts_per_million: u32, holders: u32, valid_for: Duration, now: Instant) {
        self.settle_share(now);
        self.share.parts = parts_per_million.min(WHOLE);
        self.share.holders = holders.max(1);
        self.share.until = now.checked_add(valid_for);
        self.apply_share(now);
    }

    /// The key of these values, in the order of the policy; `None`: the request does not have it.
    pub fn key<'a>(&self, values: impl IntoIterator<Item = Option<&'a [u8]>>) -> Key {
        let mut hasher = self.hasher.build_hasher();
        for value in values {
            // With its length, so that `a` and `bc` are not `ab` and `c`.
            hasher.write_usize(value.map_or(usize::MAX, <[u8]>::len));
            hasher.write(value.unwrap_or_default());
        }
        Key(hasher.finish())
    }

    /// Asks for one request, and counts it if it is admitted.
    pub fn check(&mut self, key: Key, now: Instant) -> Verdict {
        self.settle_share(now);
        self.meter.on_request(now);
        let mut verdict = match &mut self.method {
            Method::Bucket(buckets) => buckets.check(key.0, now),
            Method::Window(windows) => windows.check(key.0, now),
        };
        verdict.limit = self.limit;
        // With no share at all, it depends on the next one.
        if let (Some(retry_after), Some(until)) = (&mut verdict.retry_after, self.share.until) {
            *retry_after = (*retry_after).min(match self.share.parts {
                0 => until.saturating_duration_since(now),
                _ => Duration::MAX,
            });
        }
        verdict
    }

    /// Takes back one that was admitted just now and did not happen, e.g. because another limit refused it.
    pub fn undo(&mut self, key: Key, now: Instant) {
        match &mut self.method {
            Method::Bucket(buckets) => buckets.undo(key.0, now),
            Method::Window(windows) => windows.undo(key.0, now),
        }
    }

    /// Requests that asked lately, admitted or not, in thousandths per second. Rises within half a second, falls within
    /// one and a half.
    pub fn demand(&mut self, now: Instant) -> u64 {
        self.meter.thousandths_per_second(now)
    }

    /// The part of the limit that is in force, in parts per million.
    pub fn share(&mut self, now: Instant) -> u32 {
        self.settle_share(now);
        self.share.in_force()
    }

    /// Keys that are remembered.
    pub fn keys(&self) -> usize {
        match &self.method {
            Method::Bucket(buckets) => buckets.keys(),
            Method::Window(windows) => windows.keys(),
        }
    }

    // === inside ===

    /// A share that has run out counts up to its end, and no longer.
    fn settle_share(&mut self, now: Instant) {
        if let Some(until) = self.share.until.filter(|until| *until <= now) {
            self.share.until = None;
            self.apply_share(until);
        }
    }

    fn apply_share(&mut self, now: Instant) {
        let parts = self.share.in_force();
        match &mut self.method {
            Method::Bucket(buckets) => buckets.set_share(parts, now),
            Method::Window(windows) => windows.set_share(parts),
        }
    }
}

impl Method {
    fn new(policy: &RateLimit, now: Instant) -> Self {
        match policy.algorithm {
            RateAlgorithm::TokenBucket => Self::Bucket(Buckets::new(policy, now)),
            RateAlgorithm::SlidingWindow => Self::Window(Windows::new(policy, now)),
        }
    }
}

impl Share {
    fn in_force(&self) -> u32 {
        match (self.scope, self.until) {
            (Scope::Local, _) => WHOLE,
            (Scope::Shared, Some(_)) => self.parts,
            (Scope::Shared, None) => WHOLE / self.holders,
        }
    }
}

#[cfg(test)]
mod tests;
