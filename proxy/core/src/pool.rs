//! The connections of one worker to one endpoint with one protocol: ids only, no sockets.
//!
//! The shell keeps `ConnId::index() -> SendRequest`, `Ticket -> oneshot::Sender<Result<ConnId, …>>`. After *every* call
//! except the getters it drains [`Pool::poll_event`].
//!
//! ```text
//! checkout ─▶ Use(id) ──────────────────────────────▶ release(id)
//!     └────▶ Wait(ticket) ─▶ Event::Ready{ticket, id} ─▶ release(id)
//!                         └▶ Event::Failed(ticket)       (an attempt that was never sent)
//! Event::Dial(dial) ─▶ on_connected(dial, …) | on_connect_failed(dial)   exactly one, also after a timeout
//! Event::Close(id)  ─▶ drop the connection
//! ```

use std::time::{Duration, Instant};

/// A connection. Never used again for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId {
    index: u32,
    generation: u32,
}

/// A caller that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A connection being made, by a task of its own: no caller's cancellation ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DialId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Requests that a connection carries at once until it says otherwise: 1 for HTTP/1 and opaque bytes.
    pub streams: u32,
    pub max_connections: usize,
    pub max_idle: usize,
    pub max_waiting: usize,
    pub idle_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checkout {
    /// A lease on this connection.
    Use(ConnId),
    /// An [`Event::Ready`] or [`Event::Failed`] follows, unless it is cancelled before.
    Wait(Ticket),
    /// Too many wait already.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Dial(DialId),
    /// The ticket has a lease on this connection.
    Ready { ticket: Ticket, id: ConnId },
    /// The connection it waited for could not be made.
    Failed(Ticket),
    /// Close it; nothing is leased there.
    Close(ConnId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Keep,
    /// Not fit for another request.
    Close,
}

#[derive(Debug)]
pub struct Pool {
    _private: (),
}

impl ConnId {
    /// Dense: smaller than the largest number of connections there ever were at once.
    pub fn index(self) -> usize {
        self.index as usize
    }
    pub fn generation(self) -> u32 {
        self.generation
    }
}

impl Pool {
    pub fn new(_config: Config) -> Self {
        unimplemented!()
    }
    pub fn checkout(&mut self, _now: Instant) -> Checkout {
        unimplemented!()
    }
    /// The waiting caller went away. `false`: it had been answered already, so its lease (if it was `Ready`) is to be
    /// released.
    pub fn cancel(&mut self, _ticket: Ticket) -> bool {
        unimplemented!()
    }
    /// The id of the new connection; waiting tickets are made `Ready` on it.
    pub fn on_connected(&mut self, _dial: DialId, _streams: u32, _now: Instant) -> ConnId {
        unimplemented!()
    }
    pub fn on_connect_failed(&mut self, _dial: DialId, _now: Instant) {
        unimplemented!()
    }
    /// Ends a lease. On a connection that is closed already it does nothing.
    pub fn release(&mut self, _id: ConnId, _reuse: Reuse, _now: Instant) {
        unimplemented!()
    }
    /// The peer changed how many streams it takes (SETTINGS).
    pub fn on_streams(&mut self, _id: ConnId, _streams: u32, _now: Instant) {
        unimplemented!()
    }
    /// The peer takes no new requests there; closed when the last lease ends.
    pub fn on_goaway(&mut self, _id: ConnId, _now: Instant) {
        unimplemented!()
    }
    /// The transport is gone. No [`Event::Close`] follows; leases may still be released, which does nothing.
    pub fn on_closed(&mut self, _id: ConnId, _now: Instant) {
        unimplemented!()
    }
    /// The endpoint is leaving the configuration: idle connections close now, others after their last lease; nothing is
    /// dialled any more and checkout says `Full`.
    pub fn retire(&mut self, _now: Instant) {
        unimplemented!()
    }
    pub fn handle_timeout(&mut self, _now: Instant) {
        unimplemented!()
    }
    pub fn poll_timeout(&self) -> Option<Instant> {
        unimplemented!()
    }
    pub fn poll_event(&mut self) -> Option<Event> {
        unimplemented!()
    }
    pub fn open(&self) -> usize {
        unimplemented!()
    }
    pub fn idle(&self) -> usize {
        unimplemented!()
    }
    pub fn leases(&self) -> usize {
        unimplemented!()
    }
    pub fn connecting(&self) -> usize {
        unimplemented!()
    }
    pub fn waiting(&self) -> usize {
        unimplemented!()
    }
    /// Nothing open, connecting or waiting: may be dropped.
    pub fn is_unused(&self) -> bool {
        unimplemented!()
    }
}
