//! The connections of one worker to one endpoint with one protocol: ids only, no sockets.
//!
//! One machine serves both kinds: a connection carries one request at a time (HTTP/1, opaque) or many (HTTP/2).
//! Callers that find none wait in order. A dial belongs to nobody: it is a task of its own, so a caller that goes away
//! takes no connection with it, and whoever waits longest gets what comes first, a new connection or a released one.
//!
//! The shell keeps `ConnId::index() -> SendRequest` and `Ticket -> oneshot::Sender`. After *every* call that takes
//! `&mut self` it drains [`Pool::poll_event`]; in the steady state there is nothing, and nothing is allocated.
//!
//! ```text
//! checkout ─▶ Use(id) ──────────────────────────────────▶ release(id)
//!     │ └───▶ Full
//!     └─────▶ Wait(ticket) ─▶ Event::Ready { ticket, id } ─▶ release(id)
//!                         ├─▶ Event::Failed(ticket)           never sent: try elsewhere
//!                         └─▶ cancel(ticket) == true
//!
//! Event::Dial(dial) ─▶ on_connected(dial) | on_connect_failed(dial)    one of them, also for a timeout
//!
//! connection:  on_connected ─▶ idle ⇄ leased ─▶ closing ─▶ closed
//!                               │        (release Close, on_goaway, retire)
//!                               └─ idle timeout, more than max_idle: Event::Close
//! ```
//!
//! It chooses no endpoint (that is [`crate::balance`]), measures no latency, and knows nothing of deadlines: whoever
//! waits too long cancels.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

mod links;

use links::{List, NONE, Place, Slot};

/// A connection. The id of a closed one never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

/// A caller that waits. Rises with time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A connection in the making.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests that a connection carries at once: 1 for HTTP/1 and opaque bytes. For HTTP/2 the guess by which dials
    /// are counted until [`Pool::on_connected`] says the truth.
    pub streams: u32,
    /// Open, closing and in the making together.
    pub max_connections: usize,
    pub max_idle: usize,
    pub max_waiting: usize,
    pub idle_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkout {
    /// A lease on this connection.
    Use(ConnId),
    /// [`Event::Ready`] or [`Event::Failed`] follows, unless it is cancelled before.
    Wait(Ticket),
    /// Too many wait already, or the pool is retired.
    Full,
}

/// What the shell has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Dial(DialId),
    /// The ticket has a lease on this connection.
    Ready {
        ticket: Ticket,
        id: ConnId,
    },
    /// There will be no connection for it.
    Failed(Ticket),
    /// Close it; nothing is leased there.
    Close(ConnId),
}

/// Whether a connection is fit for another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Keep,
    Close,
}

#[derive(Debug)]
pub struct Pool {
    config: Config,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Nothing leased; oldest at the head, used from the tail so that the surplus can age.
    idle: List,
    /// Leased, with room for more; used from the head so that load gathers on few connections.
    spare: List,
    /// Open and not closing.
    accepting: usize,
    leased: usize,
    dials: Vec<DialId>,
    waiting: VecDeque<Waiter>,
    /// Entries of `waiting` that were not cancelled.
    waiting_live: usize,
    next_ticket: u64,
    next_dial: u64,
    retired: bool,
    events: VecDeque<Event>,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    live: bool,
}

impl ConnId {
    /// Dense: below the largest number of connections that were open at once.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// Tells apart the connections that had the same index.
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl Pool {
    pub fn new(config: Config) -> Self {
        Self {
            config: Config { streams: config.streams.max(1), ..config },
            slots: Vec::new(),
            free: Vec::new(),
            idle: List::default(),
            spare: List::default(),
            accepting: 0,
            leased: 0,
            dials: Vec::new(),
            waiting: VecDeque::new(),
            waiting_live: 0,
            next_ticket: 0,
            next_dial: 0,
            retired: false,
            events: VecDeque::new(),
        }
    }

    /// Applies to the next connection; those that are open stay.
    pub fn set_max_connections(&mut self, max: usize) {
        self.config.max_connections = max;
    }

    // === callers ===

    pub fn checkout(&mut self, now: Instant) -> Checkout {
        if self.spare.head != NONE {
            return Checkout::Use(self.lease(self.spare.head));
        }
        if self.idle.tail != NONE {
            // The newest one: if even that is too old, all are.
            if self.expired(self.idle.tail, now) {
                self.handle_timeout(now);
            } else {
                return Checkout::Use(self.lease(self.idle.tail));
            }
        }
        if self.retired || self.waiting_live >= self.config.max_waiting {
            return Checkout::Full;
        }
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.waiting.push_back(Waiter { ticket, live: true });
        self.waiting_live += 1;
        self.dial_for_waiting();
        Checkout::Wait(ticket)
    }

    /// The waiting caller went away. `false`: it had its answer already; if that was [`Event::Ready`], release the
    /// lease.
    pub fn cancel(&mut self, ticket: Ticket) -> bool {
        let Ok(place) = self.waiting.binary_search_by_key(&ticket, |waiter| waiter.ticket) else {
            return false;
        };
        let waiter = &mut self.waiting[place];
        if !waiter.live {
            return false;
        }
        waiter.live = false;
        self.waiting_live -= 1;
        // Cancelled ones keep their place until they would outweigh the others, so that cancelling stays cheap.
        if self.waiting.len() > 2 * self.waiting_live {
            self.waiting.retain(|waiter| waiter.live);
        }
        true
    }

    /// Ends a lease. Without effect on a connection that is closed.
    pub fn release(&mut self, id: ConnId, reuse: Reuse, now: Instant) {
        let Some(slot) = self.open_slot(id) else { return };
        if slot.leases == 0 {
            return;
        }
        slot.leases -= 1;
        self.leased -= 1;
        if reuse == Reuse::Close {
            self.stop_accepting(id.index);
        }
        self.settle(id.index, now);
    }

    // === connections ===

    /// A dial succeeded; the connection takes `streams` requests at once. `None`: it is not wanted any more, close it.
    pub fn on_connected(&mut self, dial: DialId, streams: u32, now: Instant) -> Option<ConnId> {
        if !self.end_dial(dial) || self.retired {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new(now));
            self.slots.len() as u32 - 1
        });
        self.slots[index as usize].open(streams.max(1));
        self.accepting += 1;
        let id = self.id(index);
        self.settle(index, now);
        Some(id)
    }

    /// A dial failed: as many callers as it would have served are told, longest waiting first; all of them when
    /// nothing is left to wait for.
    pub fn on_connect_failed(&mut self, dial: DialId, _now: Instant) {
        if !self.end_dial(dial) {
            return;
        }
        let hopeless = self.accepting == 0 && self.dials.is_empty();
        let failed = if hopeless { self.waiting_live } else { self.config.streams as usize };
        for _ in 0..failed {
            let Some(ticket) = self.next_waiting() else { break };
            self.events.push_back(Event::Failed(ticket));
        }
    }

    /// The peer changed how many requests it takes at once (SETTINGS). 0 counts as 1: the request waits below.
    pub fn on_streams(&mut self, id: ConnId, streams: u32, now: Instant) {
        let Some(slot) = self.open_slot(id) else { return };
        slot.streams = streams.max(1);
        self.settle(id.index, now);
    }

    /// The peer takes no new requests there; it is closed when the last lease ends.
    pub fn on_goaway(&mut self, id: ConnId, now: Instant) {
        if self.open_slot(id).is_some() {
            self.stop_accepting(id.index);
            self.settle(id.index, now);
        }
    }

    /// The transport is gone. No [`Event::Close`] follows, and releasing its leases does nothing.
    pub fn on_closed(&mut self, id: ConnId, _now: Instant) {
        if self.open_slot(id).is_some() {
            self.free_slot(id.index);
        }
    }

    /// The endpoint leaves the configuration: whoever waits is told to go elsewhere, idle connections close now, leased
    /// ones after their last lease, and nothing is dialled any more.
    pub fn retire(&mut self, now: Instant) {
        self.retired = true;
        while let Some(ticket) = self.next_waiting() {
            self.events.push_back(Event::Failed(ticket));
        }
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].open {
                self.stop_accepting(index);
                self.settle(index, now);
            }
        }
    }

    /// Makes room elsewhere: closes the connection that has been idle longest. `false`: none is.
    pub fn close_idle(&mut self) -> bool {
        let oldest = self.idle.head;
        if oldest != NONE {
            self.close(oldest);
        }
        oldest != NONE
    }

    // === time and effects ===

    pub fn handle_timeout(&mut self, now: Instant) {
        while self.idle.head != NONE && self.expired(self.idle.head, now) {
            self.close(self.idle.head);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let oldest = self.slots.get(self.idle.head as usize)?;
        oldest.idle_since.checked_add(self.config.idle_timeout)
    }

    #[inline]
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    // === getters ===

    /// Connections, closing ones included.
    pub fn open(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn idle(&self) -> usize {
        self.idle.len
    }

    pub fn leases(&self) -> usize {
        self.leased
    }

    pub fn connecting(&self) -> usize {
        self.dials.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting_live
    }

    /// More wait than the connections in the making will serve: the last of them has to wait for somebody's end.
    pub fn is_backed_up(&self) -> bool {
        self.waiting_live > self.dials.len() * self.config.streams as usize
    }

    /// Nothing open, in the making or waiting: may be dropped.
    pub fn is_unused(&self) -> bool {
        self.open() == 0 && self.dials.is_empty() && self.waiting_live == 0
    }

    // === inside ===

    fn id(&self, index: u32) -> ConnId {
        ConnId { index, generation: self.slots[index as usize].generation }
    }

    fn open_slot(&mut self, id: ConnId) -> Option<&mut Slot> {
        self.slots.get_mut(id.index()).filter(|slot| slot.open && slot.generation == id.generation)
    }

    fn expired(&self, index: u32, now: Instant) -> bool {
        now.saturating_duration_since(self.slots[index as usize].idle_since) >= self.config.idle_timeout
    }

    fn lease(&mut self, index: u32) -> ConnId {
        self.slots[index as usize].leases += 1;
        self.leased += 1;
        self.place(index);
        self.id(index)
    }

    /// Puts a connection whose leases or capacity changed to use: for whoever waits, else into its list, else away.
    fn settle(&mut self, index: u32, now: Instant) {
        while self.waiting_live > 0 && self.slots[index as usize].has_room() {
            let Some(ticket) = self.next_waiting() else { break };
            let id = self.lease(index);
            self.events.push_back(Event::Ready { ticket, id });
        }
        let slot = &mut self.slots[index as usize];
        if slot.leases == 0 {
            if !slot.accepting {
                self.close(index);
                return;
            }
            if slot.list != Place::Idle {
                slot.idle_since = now;
            }
        }
        self.place(index);
        if self.idle.len > self.config.max_idle {
            self.close(self.idle.head);
        }
    }

    /// Moves a connection to the list it belongs to. Out before in: a slot has one pair of links.
    fn place(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let (was, is) = (slot.list, slot.belongs());
        if was == is {
            return;
        }
        slot.list = is;
        match was {
            Place::Idle => self.idle.remove(&mut self.slots, index),
            Place::Spare => self.spare.remove(&mut self.slots, index),
            Place::Unlisted => {}
        }
        match is {
            Place::Idle => self.idle.push(&mut self.slots, index),
            Place::Spare => self.spare.push(&mut self.slots, index),
            Place::Unlisted => {}
        }
    }

    fn stop_accepting(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.accepting {
            slot.accepting = false;
            self.accepting -= 1;
            self.place(index);
            self.dial_for_waiting();
        }
    }

    fn close(&mut self, index: u32) {
        self.events.push_back(Event::Close(self.id(index)));
        self.free_slot(index);
    }

    fn free_slot(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        self.leased -= slot.leases as usize;
        slot.leases = 0;
        if slot.accepting {
            slot.accepting = false;
            self.accepting -= 1;
        }
        self.place(index);
        self.slots[index as usize].close();
        self.free.push(index);
        self.dial_for_waiting();
    }

    fn end_dial(&mut self, dial: DialId) -> bool {
        let found = self.dials.iter().position(|running| *running == dial);
        found.map(|place| self.dials.swap_remove(place)).is_some()
    }

    fn next_waiting(&mut self) -> Option<Ticket> {
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.live {
                self.waiting_live -= 1;
                return Some(waiter.ticket);
            }
        }
        None
    }

    /// Dials as long as more wait than the dials under way will serve.
    fn dial_for_waiting(&mut self) {
        while !self.retired
            && self.waiting_live > self.dials.len() * self.config.streams as usize
            && self.open() + self.dials.len() < self.config.max_connections
        {
            let dial = DialId(self.next_dial);
            self.next_dial += 1;
            self.dials.push(dial);
            self.events.push_back(Event::Dial(dial));
        }
    }
}

#[cfg(test)]
mod tests;
