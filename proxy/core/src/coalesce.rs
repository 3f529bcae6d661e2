//! Identical GETs under way at the same time become one.
//!
//! The first one leads and is sent; those that come until its answer's head is there follow and wait. They
//! get its answer only if anybody may have it and it came whole and soon; otherwise each goes its own way, as
//! if it had never waited. Two requests are identical if their URL and *all* their fields are equal,
//! credentials and cookies too, except those that only tell requests apart ([`Key`]).
//!
//! ```text
//! join ─▶ Leader ─▶ on_head(shareable) ─▶ on_complete ─────────────▶ followers: Answered
//!   │        │            └ not shareable ─────────────────────────▶ followers: Released
//!   │        ├─ on_failed; body not whole within BODY_WAIT ────────▶ followers: Released
//!   │        └─ on_leader_gone ─▶ the first follower: Promoted, the others wait on
//!   ├────▶ Follower(ticket) ─▶ Answered | Released | Promoted   exactly one of them, unless cancel(ticket)
//!   └────▶ Alone: the flight is full
//! ```
//!
//! Nobody joins a flight whose head has come, nor one that a change of the URL has overtaken (`seal`): its
//! answer may be older than the request. It holds no bodies ([`Recording`] gathers one) and has no timers but
//! one.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use smallvec::SmallVec;

mod key;
mod shared;

pub use key::Key;
pub use shared::{Recording, SharedAnswer};

/// Of one flight; the next ones go alone.
pub const MAX_FOLLOWERS: usize = 1024;
/// From the leader's head to the end of its body. A stream that never ends is not waited for.
pub const BODY_WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlightId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    flight: FlightId,
    number: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Send it, and report what becomes of it.
    Leader(FlightId),
    /// An event follows, unless it is cancelled before.
    Follower(Ticket),
    /// Send it, and report nothing.
    Alone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The flight's answer is this one's too.
    Answered(Ticket),
    /// Leads the flight from here on.
    Promoted(Ticket, FlightId),
    /// Goes its own way.
    Released(Ticket),
}

#[derive(Debug, Default)]
pub struct Coalescer {
    /// Those that can be joined, by URL.
    open: HashMap<Box<str>, SmallVec<[FlightId; 1]>>,
    /// All under way, in the order of their start.
    flights: BTreeMap<FlightId, Flight>,
    /// Ends of waiting for bodies, in order.
    expiries: VecDeque<(Instant, FlightId)>,
    next: u64,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Flight {
    key: Key,
    followers: VecDeque<Ticket>,
    /// Set with the head.
    expires: Option<Instant>,
}

impl Coalescer {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn join(&mut self, key: Key) -> Role {
        let number = self.next;
        self.next += 1;
        let open = self.open.get(key.url()).map(SmallVec::as_slice).unwrap_or_default();
        let same =
            open.iter().copied().find(|id| self.flights.get(id).is_some_and(|flight| flight.key == key));
        match same.and_then(|id| Some((id, self.flights.get_mut(&id)?))) {
            Some((_, flight)) if flight.followers.len() >= MAX_FOLLOWERS => Role::Alone,
            Some((id, flight)) => {
                let ticket = Ticket { flight: id, number };
                flight.followers.push_back(ticket);
                Role::Follower(ticket)
            }
            None => {
                let id = FlightId(number);
                self.open.entry(key.url().into()).or_default().push(id);
                self.flights.insert(id, Flight { key, followers: VecDeque::new(), expires: None });
                Role::Leader(id)
            }
        }
    }

    /// The head of the leader's answer is there, and whether it is for all ([`Recording`] knows). True:
    /// somebody waits for the body, so record it. False: the flight is over, and what is reported of it from
    /// here on goes nowhere.
    #[must_use]
    pub fn on_head(&mut self, id: FlightId, shareable: bool, now: Instant) -> bool {
        self.close(id);
        let waited_for = |flight: &&mut Flight| shareable && !flight.followers.is_empty();
        let Some(flight) = self.flights.get_mut(&id).filter(waited_for) else {
            self.on_failed(id);
            return false;
        };
        let expires = now + BODY_WAIT;
        flight.expires = Some(expires);
        self.expiries.push_back((expires, id));
        true
    }

    /// All of the leader's answer is there.
    pub fn on_complete(&mut self, id: FlightId) {
        self.end(id, Event::Answered);
    }

    /// The leader has no answer to share: none came, or not all of it, or it is too large.
    pub fn on_failed(&mut self, id: FlightId) {
        self.end(id, Event::Released);
    }

    /// The leader's caller went away before its answer was complete. Somebody else sends the request.
    pub fn on_leader_gone(&mut self, id: FlightId) {
        let Some(flight) = self.flights.get_mut(&id) else { return };
        flight.expires = None;
        match flight.followers.pop_front() {
            Some(next) => self.events.push_back(Event::Promoted(next, id)),
            None => self.end(id, Event::Released),
        }
    }

    /// A follower went away. False: its event is under way or done with, and if it was promoted it has to
    /// report that the leader is gone.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Some(flight) = self.flights.get_mut(&ticket.flight) else { return false };
        let Ok(at) = flight.followers.binary_search(&ticket) else { return false };
        flight.followers.remove(at).is_some()
    }

    /// What is at the URL may have changed: who asks from now on gets no answer to an earlier request.
    pub fn seal(&mut self, authority: &str, path: &str) {
        self.open.remove(&*key::url(authority, path));
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.expiries.front().map(|(at, _)| *at)
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((at, id)) = self.expiries.front().copied().filter(|(at, _)| *at <= now) {
            self.expiries.pop_front();
            if self.flights.get(&id).is_some_and(|flight| flight.expires == Some(at)) {
                self.on_failed(id);
            }
        }
    }

    /// Flights under way.
    pub fn len(&self) -> usize {
        self.flights.len()
    }

    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    fn end(&mut self, id: FlightId, event: impl Fn(Ticket) -> Event) {
        self.close(id);
        if let Some(flight) = self.flights.remove(&id) {
            self.events.extend(flight.followers.into_iter().map(event));
        }
        // Those at the front that wait for nothing any more, so that the list is as long as what is under
        // way.
        while self
            .expiries
            .front()
            .is_some_and(|(at, id)| self.flights.get(id).is_none_or(|flight| flight.expires != Some(*at)))
        {
            self.expiries.pop_front();
        }
    }

    /// Nobody joins any more.
    fn close(&mut self, id: FlightId) {
        let Some(flight) = self.flights.get(&id) else { return };
        let Some(open) = self.open.get_mut(flight.key.url()) else { return };
        open.retain(|other| *other != id);
        if open.is_empty() {
            self.open.remove(flight.key.url());
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
