//! How many requests (or connections) may be under way at once, and who waits for a place.
//!
//! Two limits, both optional: on all together, which may follow latency ([`Gradient`]), and on each key, e.g. the
//! identity of a caller. What they do not admit waits in a queue bounded in size and time, if there is one.
//!
//! # Who is next
//!
//! Each key has a queue of its own, first in, first out. When a place becomes free, the keys that wait *and* are below
//! their own limit take turns, one waiter each: a key with one waiter is served before any other key is served twice, so
//! a caller with a thousand waiters costs another one turn. A key at its own limit is passed over, without losing the
//! place for others. Nobody overtakes the queue: while there is room, nobody waits who could use it.
//!
//! The queue is shared as well: when it is full, a key that has at least two waiters fewer than the one with the most
//! takes the place of that one's newest ([`Event::Shed`]). So a flood from one caller fills the queue only as long as
//! nobody else wants in.
//!
//! # Calling it
//!
//! The shell keeps `Ticket -> oneshot::Sender` and drains [`Bulkhead::poll_event`] after *every* call that takes
//! `&mut self`; while nobody waits there is nothing to drain, and nothing is allocated for a key that is known.
//!
//! ```text
//! acquire ─▶ Admitted ───────────────────────────────▶ release
//!    │ └───▶ Full                                       bulkhead-full
//!    └─────▶ Queued(ticket) ─▶ Event::Granted(ticket) ─▶ release
//!                          ├─▶ Event::Expired(ticket)   queue-timeout
//!                          ├─▶ Event::Shed(ticket)      bulkhead-full
//!                          └─▶ cancel(ticket) == true
//! ```
//!
//! A new configuration applies at once and forgets nothing: a lower limit cuts nobody off, what is under way ends by
//! itself; a higher one admits waiters; a shorter waiting time counts from when they came. Without a queue in the new
//! configuration, whoever waits is shed.
//!
//! It knows nothing of requests, and does not measure latency: the shell says what one took.

use std::{
    collections::{BTreeMap, VecDeque},
    hash::Hash,
    num::NonZeroU32,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use outrigger_proto::spec::{Adaptive, Queue};

mod gradient;

pub use gradient::Gradient;

/// What a bulkhead admits. The default admits everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// All keys together. Ignored where `adaptive` is set.
    pub total: Option<NonZeroU32>,
    pub per_key: Option<NonZeroU32>,
    /// `None`: nobody waits.
    pub queue: Option<Queue>,
    pub adaptive: Option<Adaptive>,
}

/// Somebody who waits. Rises with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Has a place until [`Bulkhead::release`].
    Admitted,
    /// One [`Event`] with this ticket follows, unless it is cancelled before.
    Queued(Ticket),
    /// No place, and none to wait in.
    Full,
}

/// What became of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Has a place until [`Bulkhead::release`].
    Granted(Ticket),
    /// It has waited as long as it may.
    Expired(Ticket),
    /// Its place in the queue went to a key with fewer, or the queue is gone.
    Shed(Ticket),
}

#[derive(Debug)]
pub struct Bulkhead<K> {
    config: Config,
    gradient: Option<Gradient>,
    in_flight: u32,
    /// Keys with something in flight or waiting; `index` finds them in `slots`.
    index: HashMap<K, u32>,
    slots: Vec<Slot<K>>,
    free: Vec<u32>,
    /// By ticket, which is the order of arrival and so of expiry.
    waiters: BTreeMap<Ticket, Waiter>,
    /// Keys that may be served, in the order of their turns.
    turns: BTreeMap<u64, u32>,
    next_ticket: u64,
    next_turn: u64,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Slot<K> {
    /// `None`: free.
    key: Option<K>,
    in_flight: u32,
    waiting: VecDeque<Ticket>,
    /// Its place in `turns`: it waits and is below its own limit.
    turn: Option<u64>,
}

#[derive(Debug)]
struct Waiter {
    since: Instant,
    slot: u32,
}

impl<K: Eq + Hash + Clone> Bulkhead<K> {
    pub fn new(config: Config, now: Instant) -> Self {
        Self {
            config,
            gradient: config.adaptive.map(|adaptive| Gradient::new(adaptive, now)),
            in_flight: 0,
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            waiters: BTreeMap::new(),
            turns: BTreeMap::new(),
            next_ticket: 0,
            next_turn: 0,
            events: VecDeque::new(),
        }
    }

    /// Applies to whoever is in flight or waits, too. What an adaptive limit has learned stays.
    pub fn set_config(&mut self, config: Config, now: Instant) {
        match (&mut self.gradient, config.adaptive) {
            (Some(gradient), Some(adaptive)) => gradient.set_config(adaptive),
            (gradient, adaptive) => *gradient = adaptive.map(|adaptive| Gradient::new(adaptive, now)),
        }
        self.config = config;
        if config.queue.is_none() {
            while let Some((&ticket, _)) = self.waiters.first_key_value() {
                self.end_wait(ticket);
                self.events.push_back(Event::Shed(ticket));
            }
        }
        for slot in 0..self.slots.len() as u32 {
            self.settle_turn(slot);
        }
        self.handle_timeout(now);
    }

    // === callers ===

    #[inline]
    pub fn acquire(&mut self, key: &K, now: Instant) -> Admission {
        let slot = self.index.get(key).copied();
        let has_room = slot.is_none_or(|slot| self.key_has_room(slot));
        if has_room && self.has_room() {
            let slot = slot.unwrap_or_else(|| self.open_slot(key));
            self.enter(slot);
            return Admission::Admitted;
        }
        self.wait(key, slot, now)
    }

    /// One of the key's places is free again. With the latency of what had it, if it says something about how loaded
    /// the other side is: a failure that took no time does not.
    #[inline]
    pub fn release(&mut self, key: &K, latency: Option<Duration>, now: Instant) {
        let Some(&slot) = self.index.get(key) else { return };
        let held = &mut self.slots[slot as usize];
        if held.in_flight == 0 {
            return;
        }
        // Learned before it is counted out: the limit grows only if it is used.
        if let (Some(gradient), Some(latency)) = (&mut self.gradient, latency) {
            gradient.on_latency(latency, self.in_flight, now);
        }
        held.in_flight -= 1;
        self.in_flight -= 1;
        if !self.waiters.is_empty() {
            self.settle_turn(slot);
            self.grant();
        }
        self.close_if_unused(slot);
    }

    /// The latency of something that stays in flight, e.g. an answer whose head has come and whose body has not.
    pub fn on_latency(&mut self, latency: Duration, now: Instant) {
        if let Some(gradient) = &mut self.gradient {
            gradient.on_latency(latency, self.in_flight, now);
            self.grant();
        }
    }

    /// The waiter went away. `false`: it had its answer already; if that was [`Event::Granted`], release its place.
    pub fn cancel(&mut self, ticket: Ticket, _now: Instant) -> bool {
        self.end_wait(ticket)
    }

    // === time and effects ===

    pub fn handle_timeout(&mut self, now: Instant) {
        if let Some(gradient) = &mut self.gradient {
            gradient.handle_timeout(now);
        }
        // A place that is free goes to who has waited, also if its time is up just now.
        self.grant();
        while let Some((&ticket, _)) = self.waiters.first_key_value() {
            if self.first_expiry().is_none_or(|expiry| expiry > now) {
                break;
            }
            self.end_wait(ticket);
            self.events.push_back(Event::Expired(ticket));
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let expiry = self.first_expiry()?;
        let probed = self.gradient.as_ref().and_then(Gradient::poll_timeout);
        Some(probed.map_or(expiry, |probed| probed.min(expiry)))
    }

    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // === getters ===

    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    pub fn in_flight_of(&self, key: &K) -> u32 {
        self.index.get(key).map_or(0, |&slot| self.slots[slot as usize].in_flight)
    }

    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// Keys with something in flight or waiting.
    pub fn keys(&self) -> usize {
        self.index.len()
    }

    /// On all together, as it is now.
    pub fn limit(&self) -> Option<u32> {
        match &self.gradient {
            Some(gradient) => Some(gradient.limit()),
            None => self.config.total.map(NonZeroU32::get),
        }
    }

    /// What the adaptive limit goes by.
    pub fn gradient(&self) -> Option<&Gradient> {
        self.gradient.as_ref()
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    // === inside ===

    fn has_room(&self) -> bool {
        self.limit().is_none_or(|limit| self.in_flight < limit)
    }

    fn key_has_room(&self, slot: u32) -> bool {
        self.config.per_key.is_none_or(|limit| self.slots[slot as usize].in_flight < limit.get())
    }

    fn first_expiry(&self) -> Option<Instant> {
        let (_, waiter) = self.waiters.first_key_value()?;
        waiter.since.checked_add(self.config.queue?.timeout)
    }

    fn enter(&mut self, slot: u32) {
        self.slots[slot as usize].in_flight += 1;
        self.in_flight += 1;
    }

    fn wait(&mut self, key: &K, slot: Option<u32>, now: Instant) -> Admission {
        let Some(queue) = self.config.queue else { return Admission::Full };
        let waiting = slot.map_or(0, |slot| self.slots[slot as usize].waiting.len());
        if self.waiters.len() >= queue.size.get() as usize && !self.make_place(waiting) {
            return Admission::Full;
        }
        // Only now: the waiter that made place may have been the last of its key, and its slot be free again.
        let slot = self.index.get(key).copied().unwrap_or_else(|| self.open_slot(key));
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiters.insert(ticket, Waiter { since: now, slot });
        self.slots[slot as usize].waiting.push_back(ticket);
        self.settle_turn(slot);
        Admission::Queued(ticket)
    }

    /// Sheds the newest waiter of the key that has the most, if that is at least two more than `waiting`.
    fn make_place(&mut self, waiting: usize) -> bool {
        let most = self.slots.iter().map(|slot| slot.waiting.len()).max().unwrap_or_default();
        if most < waiting + 2 {
            return false;
        }
        let newest = self.slots.iter().find(|slot| slot.waiting.len() == most);
        let Some(&ticket) = newest.and_then(|slot| slot.waiting.back()) else { return false };
        self.end_wait(ticket);
        self.events.push_back(Event::Shed(ticket));
        true
    }

    /// Gives free places to those who wait, key by key.
    fn grant(&mut self) {
        while self.has_room() {
            let Some((_, slot)) = self.turns.pop_first() else { break };
            let served = &mut self.slots[slot as usize];
            served.turn = None;
            let Some(ticket) = served.waiting.pop_front() else { continue };
            self.waiters.remove(&ticket);
            self.enter(slot);
            self.settle_turn(slot);
            self.events.push_back(Event::Granted(ticket));
        }
    }

    fn end_wait(&mut self, ticket: Ticket) -> bool {
        let Some(Waiter { slot, .. }) = self.waiters.remove(&ticket) else { return false };
        let waiting = &mut self.slots[slot as usize].waiting;
        if let Ok(place) = waiting.binary_search(&ticket) {
            waiting.remove(place);
        }
        self.settle_turn(slot);
        self.close_if_unused(slot);
        true
    }

    /// A key has a turn as long as it waits and is below its own limit; a new turn is the last.
    fn settle_turn(&mut self, slot: u32) {
        let has_room = self.key_has_room(slot);
        let key = &mut self.slots[slot as usize];
        match (key.turn, has_room && !key.waiting.is_empty()) {
            (None, true) => {
                key.turn = Some(self.next_turn);
                self.turns.insert(self.next_turn, slot);
                self.next_turn += 1;
            }
            (Some(turn), false) => {
                key.turn = None;
                self.turns.remove(&turn);
            }
            (None, false) | (Some(_), true) => {}
        }
    }

    fn open_slot(&mut self, key: &K) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { key: None, in_flight: 0, waiting: VecDeque::new(), turn: None });
            self.slots.len() as u32 - 1
        });
        self.slots[slot as usize].key = Some(key.clone());
        self.index.insert(key.clone(), slot);
        slot
    }

    fn close_if_unused(&mut self, slot: u32) {
        let held = &mut self.slots[slot as usize];
        if held.in_flight > 0 || !held.waiting.is_empty() {
            return;
        }
        if let Some(key) = held.key.take() {
            held.waiting = VecDeque::new();
            self.index.remove(&key);
            self.free.push(slot);
        }
    }
}

#[cfg(test)]
mod tests;
