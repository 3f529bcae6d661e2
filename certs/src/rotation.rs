//! When to ask for a new certificate: the renewal schedule as a sans-IO machine.
//!
//! ```text
//!                  new                                             on_trust_changed: ask_at = soon
//!                   │ ask_at = now                                        ┌───────┐
//!                   ▼                                                     │       │
//!             ┌──────────┐   handle_timeout at ask_at: Action::Ask   ┌────▼────┐  │
//!             │ Waiting  ├──────────────────────────────────────────▶│ Asking  ├──┘ (asks again after the answer)
//!             │ {ask_at} │◀──────────────────────────────────────────┤         │
//!             └──────────┘   on_issued: ask_at = begin + 50 % of life└─────────┘
//!                            on_failed: ask_at = now + back-off
//!
//!   beside it, once per certificate: handle_timeout at not_after: Action::Expired
//! ```
//!
//! Call contract: the driver sleeps until [`Rotation::poll_timeout`], calls [`Rotation::handle_timeout`] until it returns
//! `None`, and answers every [`Action::Ask`] with exactly one of [`Rotation::on_issued`] and [`Rotation::on_failed`].
//!
//! Two clocks come in as one [`Now`]. Back-off is counted on the monotonic clock, which nobody can set. Renewal happens
//! at whichever clock says so first: a suspended machine wakes to a stopped monotonic clock, a corrected wall clock may
//! have been set back by a year. The old certificate is kept until it ends; this machine never takes it away.
//!
//! It holds no key and no certificate, sends nothing, reads no clock and draws no randomness of its own.

use std::time::{Duration, Instant, SystemTime};

use rand_core::Rng;

/// How far back the authority dates a certificate, for callers whose clocks are behind. Not part of a life.
pub const BACKDATED: Duration = Duration::from_secs(60);
/// The part of a life after which a renewal is asked for, in percent, and how far jitter moves that in either direction.
pub const RENEW_AT_PERCENT: u32 = 50;
pub const RENEW_JITTER_PERCENT: u32 = 10;
/// Back-off after a failure: doubles from the first to the last; jitter takes up to a quarter off.
pub const FIRST_BACKOFF: Duration = Duration::from_secs(1);
pub const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// The last back-off of who holds nothing that counts: it serves nobody until the authority is back.
pub const LAST_BACKOFF_EMPTY_HANDED: Duration = Duration::from_secs(8);
/// A changed trust bundle is followed by a renewal within this time, spread so that a mesh does not ask as one.
pub const TRUST_SPREAD: Duration = Duration::from_secs(5);
/// How long a jump of the wall clock may stay unnoticed.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The same moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub mono: Instant,
    pub wall: SystemTime,
}

/// When a certificate counts, by the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// What the driver is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Ask the authority, then call `on_issued` or `on_failed`.
    Ask,
    /// The certificate held has ended: from here on this workload has none. Asking goes on.
    Expired,
}

/// What is held, as of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Nothing,
    NotYet { from: SystemTime },
    Valid { until: SystemTime },
    Expired { since: SystemTime },
}

/// The renewal machine of one identity. See the module for the diagram and the call contract.
#[derive(Clone, Debug)]
pub struct Rotation {
    state: State,
    held: Option<Validity>,
    /// `Action::Expired` was returned for the certificate held.
    told_expired: bool,
    /// Failures since the last certificate.
    failures: u32,
    /// The roots changed while an answer was on its way: that answer may come from the old authority.
    trust_changed_meanwhile: bool,
    /// The latest moment this machine was told, which relates the two clocks.
    seen: Now,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `wall`: ask earlier if the wall clock gets there first.
    Waiting {
        ask_at: Instant,
        wall: Option<SystemTime>,
        backing_off: bool,
    },
    Asking,
}

// === impl Validity ===

impl Validity {
    pub fn at(&self, wall: SystemTime) -> Held {
        if wall < self.not_before {
            Held::NotYet { from: self.not_before }
        } else if wall <= self.not_after {
            Held::Valid { until: self.not_after }
        } else {
            Held::Expired { since: self.not_after }
        }
    }

    /// When this certificate was made, as well as it can be known: the authority backdates, and its clock may be ahead.
    fn begin(&self, now: SystemTime) -> SystemTime {
        self.not_before.checked_add(BACKDATED).map_or(now, |made| made.min(now))
    }
}

// === impl Rotation ===

impl Rotation {
    /// Nothing is held yet: asks at once. A certificate found on disk is announced with [`Rotation::on_issued`].
    pub fn new(now: Now) -> Self {
        Self {
            state: State::Waiting { ask_at: now.mono, wall: None, backing_off: false },
            held: None,
            told_expired: false,
            failures: 0,
            trust_changed_meanwhile: false,
            seen: now,
        }
    }

    /// A certificate has arrived and is in use.
    pub fn on_issued(&mut self, validity: Validity, now: Now, rng: &mut impl Rng) {
        self.seen = now;
        self.held = Some(validity);
        self.told_expired = false;
        self.failures = 0;
        if std::mem::take(&mut self.trust_changed_meanwhile) {
            self.state = State::Waiting { ask_at: now.mono + self.soon(rng), wall: None, backing_off: false };
            return;
        }
        let begin = validity.begin(now.wall);
        let life = since(validity.not_after, begin);
        let low = life * (RENEW_AT_PERCENT * (100 - RENEW_JITTER_PERCENT)) / 10_000;
        let high = life * (RENEW_AT_PERCENT * (100 + RENEW_JITTER_PERCENT)) / 10_000;
        let age = since(now.wall, begin);
        // An already old or ended certificate is replaced now, but an authority that hands out nothing else (its clock
        // is off, or lives are absurdly short) is not asked in a tight loop.
        let wait = between(low, high, rng).saturating_sub(age).max(FIRST_BACKOFF);
        self.state =
            State::Waiting { ask_at: now.mono + wait, wall: now.wall.checked_add(wait), backing_off: false };
    }

    /// The authority refused or could not be reached. What is held stays.
    pub fn on_failed(&mut self, now: Now, rng: &mut impl Rng) {
        self.seen = now;
        self.failures = self.failures.saturating_add(1);
        self.trust_changed_meanwhile = false; // the next answer is asked for under the new roots anyway
        let doubled = FIRST_BACKOFF * (1 << (self.failures - 1).min(6));
        let left = self.held.map_or(Duration::ZERO, |held| since(held.not_after, now.wall));
        let last = match left {
            Duration::ZERO => LAST_BACKOFF_EMPTY_HANDED,
            // Several more tries before the end, however long the authority has been away.
            left => LAST_BACKOFF.min((left / 4).max(FIRST_BACKOFF)),
        };
        let delay = doubled.min(last);
        let delay = between(delay * 3 / 4, delay, rng);
        self.state = State::Waiting { ask_at: now.mono + delay, wall: None, backing_off: true };
    }

    /// The set of trusted roots changed: the certificate held may hang from a root that is about to go.
    pub fn on_trust_changed(&mut self, now: Now, rng: &mut impl Rng) {
        self.seen = now;
        let soon = now.mono + self.soon(rng);
        match &mut self.state {
            State::Waiting { ask_at, backing_off: false, .. } => *ask_at = (*ask_at).min(soon),
            State::Waiting { .. } => {} // asks at the end of the back-off, and not before
            State::Asking => self.trust_changed_meanwhile = true,
        }
    }

    /// Returns one thing to do at most; to be called until it returns `None`.
    pub fn handle_timeout(&mut self, now: Now) -> Option<Action> {
        self.seen = now;
        if !self.told_expired && matches!(self.held(now.wall), Held::Expired { .. }) {
            self.told_expired = true;
            return Some(Action::Expired);
        }
        if let State::Waiting { ask_at, wall, .. } = self.state
            && (now.mono >= ask_at || wall.is_some_and(|wall| now.wall >= wall))
        {
            self.state = State::Asking;
            return Some(Action::Ask);
        }
        None
    }

    /// When to call [`Rotation::handle_timeout`] next. Never further away than [`LOOK_EVERY`].
    pub fn poll_timeout(&self) -> Instant {
        let mut next = self.seen.mono + LOOK_EVERY;
        let mut by_wall = |wall: SystemTime| next = next.min(self.seen.mono + since(wall, self.seen.wall));
        if let Some(held) = self.held
            && !self.told_expired
        {
            by_wall(held.not_after + Duration::from_millis(1)); // `not_after` itself still counts
        }
        match self.state {
            State::Waiting { ask_at, wall, .. } => {
                if let Some(wall) = wall {
                    by_wall(wall);
                }
                next.min(ask_at)
            }
            State::Asking => next,
        }
    }

    pub fn held(&self, wall: SystemTime) -> Held {
        self.held.map_or(Held::Nothing, |held| held.at(wall))
    }

    /// Failures since the last certificate: what a status page shows.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    fn soon(&self, rng: &mut impl Rng) -> Duration {
        let left = self.held.map_or(Duration::ZERO, |held| since(held.not_after, self.seen.wall));
        between(Duration::ZERO, TRUST_SPREAD.min(left / 4), rng)
    }
}

/// `later - earlier`, zero if they are the other way round.
fn since(later: SystemTime, earlier: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

fn between(low: Duration, high: Duration, rng: &mut impl Rng) -> Duration {
    let unit = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
    low + high.saturating_sub(low).mul_f64(unit)
}

#[cfg(test)]
mod tests;
