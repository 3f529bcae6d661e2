//! When each endpoint of an upstream is checked, and what the results say.
//!
//! ```text
//!               unhealthy_after bad checks in a row
//!   ┌─────────┐ ───────────────────────────────────▶ ┌───────────┐
//!   │ healthy │                                      │ unhealthy │
//!   └─────────┘ ◀─────────────────────────────────── └───────────┘
//!    (at first)      healthy_after good ones in a row
//! ```
//!
//! - The first check of an endpoint comes at random within one interval, so that neither all endpoints nor all callers
//!   begin at the same moment. Each further one comes an interval after the one before was *sent*, give or take a tenth.
//! - An endpoint gets at most `fleet_per_second` checks from all its callers together: with n callers the wait between
//!   two checks is never below n / `fleet_per_second` seconds ([`Checker::set_callers`]). A thousand callers at 10 per
//!   second check every 100 to 122 s each, and together as often as one caller alone would at most.
//! - A result counts only if no later check of the endpoint has been sent. A check without a result holds nothing up.
//!
//! It sends no checks and judges no answers: the shell does ([`Check::timeout`] is for it), and hands in good or bad. What
//! an unhealthy endpoint means for its circuit is [`crate::outlier`]'s.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use outrigger_proto::spec::HealthCheck;
use rand_core::Rng;

/// The checks of one upstream's endpoints.
#[derive(Debug)]
pub struct Checker {
    policy: HealthCheck,
    callers: u32,
    origin: Instant,
    /// The slot of each endpoint.
    order: Vec<u32>,
    slots: Vec<Endpoint>,
    free: Vec<u32>,
    /// In nanoseconds since the origin.
    timers: BTreeSet<(u64, u32)>,
    due: VecDeque<u32>,
}

/// A check to make now.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "its result goes to `on_result`"]
pub struct Check {
    /// Of the endpoint, as long as nothing was relinked.
    pub index: usize,
    /// Without an answer after so long it is bad.
    pub timeout: Duration,
    slot: u32,
    round: u32,
}

/// What a result was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Of the endpoint now.
    pub index: usize,
    pub good: bool,
    /// The endpoint's health, if this has changed it.
    pub healthy: Option<bool>,
}

#[derive(Debug)]
struct Endpoint {
    index: u32,
    /// Goes up with each check and each owner of the slot.
    round: u32,
    unhealthy: bool,
    /// Results in a row that speak against `unhealthy` as it is.
    against: u32,
    due: u64,
}

const GONE: u32 = u32::MAX;

impl Checker {
    pub fn new(policy: &HealthCheck, endpoints: usize, now: Instant, rng: &mut impl Rng) -> Self {
        let mut checker = Self {
            policy: policy.clone(),
            callers: 1,
            origin: now,
            order: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            timers: BTreeSet::new(),
            due: VecDeque::new(),
        };
        checker.relink(&vec![None; endpoints], now, rng);
        checker
    }

    /// Checks that are due are dropped with an endpoint that goes; of those that stay everything stays.
    pub fn relink(&mut self, before: &[Option<usize>], now: Instant, rng: &mut impl Rng) {
        let mut old: Vec<Option<u32>> = std::mem::take(&mut self.order).into_iter().map(Some).collect();
        let stays: Vec<Option<u32>> =
            before.iter().map(|from| from.and_then(|from| old.get_mut(from)?.take())).collect();
        for slot in old.into_iter().flatten() {
            let endpoint = &mut self.slots[slot as usize];
            self.timers.remove(&(endpoint.due, slot));
            endpoint.index = GONE;
            endpoint.round = endpoint.round.wrapping_add(1);
            self.free.push(slot);
        }
        self.due.retain(|slot| self.slots[*slot as usize].index != GONE);
        let (at, interval) = (self.at(now), self.interval());
        for (index, stays) in stays.into_iter().enumerate() {
            let slot = stays.unwrap_or_else(|| {
                let due = at.saturating_add(share(interval, rng));
                self.make(due)
            });
            self.slots[slot as usize].index = index as u32;
            self.order.push(slot);
        }
    }

    /// Results so far stay; checks that are waited for move with the interval.
    pub fn set_policy(&mut self, policy: &HealthCheck, now: Instant) {
        let old = self.interval();
        self.policy = policy.clone();
        self.reschedule(old, now);
    }

    /// How many proxies check these endpoints, this one included.
    pub fn set_callers(&mut self, callers: u32, now: Instant) {
        let old = self.interval();
        self.callers = callers.max(1);
        self.reschedule(old, now);
    }

    pub fn is_healthy(&self, index: usize) -> bool {
        self.order.get(index).is_none_or(|slot| !self.slots[*slot as usize].unhealthy)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let (first, _) = self.timers.first()?;
        self.origin.checked_add(Duration::from_nanos(*first))
    }

    /// Makes due what is due: see [`Self::poll_check`].
    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) {
        let (at, interval) = (self.at(now), self.interval());
        while let Some(&(due, slot)) = self.timers.first()
            && due <= at
        {
            self.timers.pop_first();
            // Between nine and eleven tenths, but never below what the fleet may do.
            let wait = (interval / 10 * 9).saturating_add(share(interval / 5, rng)).max(1);
            self.slots[slot as usize].due = at.saturating_add(wait);
            self.timers.insert((at.saturating_add(wait), slot));
            if !self.due.contains(&slot) {
                self.due.push_back(slot);
            }
        }
    }

    pub fn poll_check(&mut self) -> Option<Check> {
        let slot = self.due.pop_front()?;
        let endpoint = &mut self.slots[slot as usize];
        endpoint.round = endpoint.round.wrapping_add(1);
        let (index, round) = (endpoint.index as usize, endpoint.round);
        Some(Check { index, timeout: self.policy.timeout, slot, round })
    }

    /// `None`: the endpoint is gone, or it has been checked again since.
    pub fn on_result(&mut self, check: &Check, good: bool, _now: Instant) -> Option<Checked> {
        let endpoint = self.slots.get_mut(check.slot as usize).filter(|one| one.round == check.round)?;
        // A result is taken once.
        endpoint.round = endpoint.round.wrapping_add(1);
        let index = endpoint.index as usize;
        if good != endpoint.unhealthy {
            endpoint.against = 0;
            return Some(Checked { index, good, healthy: None });
        }
        endpoint.against = endpoint.against.saturating_add(1);
        let enough = if good { self.policy.healthy_after } else { self.policy.unhealthy_after };
        let changed = endpoint.against >= enough.get();
        if changed {
            endpoint.unhealthy = !good;
            endpoint.against = 0;
        }
        Some(Checked { index, good, healthy: changed.then_some(good) })
    }

    /// The middle of the wait between two checks, in nanoseconds.
    fn interval(&self) -> u64 {
        let own = nanoseconds(self.policy.interval);
        let fleet = u64::from(self.callers) * 1_000_000_000 / u64::from(self.policy.fleet_per_second.get());
        // Nine tenths of it is the shortest wait.
        own.max((fleet / 9).saturating_add(1).saturating_mul(10))
    }

    /// What is left of each wait becomes as much longer or shorter as the interval: they stay spread.
    fn reschedule(&mut self, old: u64, now: Instant) {
        let (at, new) = (self.at(now), self.interval());
        if old == new {
            return;
        }
        self.timers.clear();
        for slot in &self.order {
            let endpoint = &mut self.slots[*slot as usize];
            let left = u128::from(endpoint.due.saturating_sub(at)) * u128::from(new) / u128::from(old.max(1));
            endpoint.due = at.saturating_add(u64::try_from(left).unwrap_or(u64::MAX));
            self.timers.insert((endpoint.due, *slot));
        }
    }

    fn make(&mut self, due: u64) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Endpoint { index: GONE, round: 0, unhealthy: false, against: 0, due });
            self.slots.len() as u32 - 1
        });
        let endpoint = &mut self.slots[slot as usize];
        (endpoint.unhealthy, endpoint.against, endpoint.due) = (false, 0, due);
        self.timers.insert((due, slot));
        slot
    }

    fn at(&self, now: Instant) -> u64 {
        nanoseconds(now.saturating_duration_since(self.origin))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Something from nothing to all of it.
fn share(of: u64, rng: &mut impl Rng) -> u64 {
    (u128::from(of) * u128::from(rng.next_u32()) / u128::from(u32::MAX)) as u64
}

#[cfg(test)]
mod tests;
