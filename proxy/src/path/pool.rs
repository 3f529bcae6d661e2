//! The connections to one endpoint, with one protocol: sockets and tasks around the core's pool, which decides.
//!
//! A [`Lease`] is a request's right to one connection: alone on it for HTTP/1, one stream among many for HTTP/2. It ends
//! with the answer's body, and what that says about the connection decides whether it is used again. Connections are made
//! by tasks of their own, so a caller that gives up wastes nothing.

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hashbrown::HashMap;
use outrigger_core::{
    limits,
    pool::{Checkout, Config, ConnId, DialId, Event, Pool, Reuse, Ticket},
};
use rand::Rng as _;
use tokio::{
    sync::oneshot,
    task,
    time::{Instant, timeout},
};

use super::upstream::{self, Remote, Sender};
use crate::{
    error::Error,
    tcp::Io,
    worker::{Worker, now},
};

mod lease;
mod tally;
mod terms;

pub use lease::{Lease, Unanswered};
pub use terms::Terms;

use lease::Waiting;
use tally::{End, Tally};
use terms::Counted;

/// Streams opened on a new HTTP/2 connection before its peer has said how many it takes.
const STREAMS_UNTIL_SETTINGS: u32 = 100;

pub struct Connections {
    remote: Remote,
    http2: bool,
    /// Of the credentials that the connections were made with.
    generation: Cell<u64>,
    retired: Cell<bool>,
    tally: Tally,
    inner: RefCell<Inner>,
}

struct Inner {
    pool: Pool,
    slots: Vec<Option<Slot>>,
    waiting: HashMap<Ticket, oneshot::Sender<Result<ConnId, Error>>>,
    /// Why the last connection could not be made.
    failure: Option<Error>,
}

struct Slot {
    id: ConnId,
    sender: Sender,
    /// How it is secured; `None`: not at all.
    security: Option<Arc<str>>,
    requests: u64,
    made: Instant,
    /// Its part of the greatest age, in per cent: 90 to 110, so that connections made together do not end together.
    lasts: u32,
    /// Why it will end, once that is known.
    end: Option<End>,
    /// Its place among the upstream's connections.
    _counted: Option<Counted>,
}

/// What is open, for `/clusters` and metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct Numbers {
    pub open: usize,
    pub idle: usize,
    pub connecting: usize,
    pub waiting: usize,
}

// === impl Connections ===

impl Connections {
    pub fn new(remote: Remote, http2: bool, idle_timeout: Duration) -> Rc<Self> {
        let pool = Pool::new(Config {
            streams: if http2 { STREAMS_UNTIL_SETTINGS } else { 1 },
            max_connections: limits::MAX_ENDPOINT_CONNECTIONS,
            max_idle: limits::MAX_IDLE_CONNECTIONS,
            max_waiting: limits::MAX_WAITING_REQUESTS,
            idle_timeout,
        });
        let inner = Inner { pool, slots: Vec::new(), waiting: HashMap::new(), failure: None };
        Rc::new(Self {
            remote,
            http2,
            generation: Cell::new(0),
            retired: Cell::new(false),
            tally: Tally::default(),
            inner: RefCell::new(inner),
        })
    }

    /// A connection to send a request on; a new one is made within `within`.
    pub async fn lease(self: &Rc<Self>, worker: &Rc<Worker>, terms: &Terms) -> Result<Lease, Error> {
        self.renew(worker);
        self.tally.serve(worker, terms.service.as_ref());
        let mut waited = false;
        loop {
            let (checkout, backed_up) = {
                let pool = &mut self.inner.borrow_mut().pool;
                if let Some(most) = terms.endpoint {
                    pool.set_max_connections(most.min(limits::MAX_ENDPOINT_CONNECTIONS));
                }
                let checkout = pool.checkout(now());
                (checkout, terms.endpoint.is_some() && pool.is_backed_up())
            };
            let id = match checkout {
                Checkout::Use(id) => id,
                Checkout::Wait(ticket) => {
                    waited = true;
                    let (tell, answer) = oneshot::channel();
                    self.inner.borrow_mut().waiting.insert(ticket, tell);
                    let waiting = Waiting { connections: self, worker, ticket, answer, answered: false };
                    self.settle(worker, terms);
                    if backed_up { self.queue(waiting, terms).await? } else { waiting.get().await? }
                }
                Checkout::Full if self.retired.get() => return Err(self.left()),
                Checkout::Full => return Err(Error::Overloaded("too many requests wait for a connection")),
            };
            self.settle(worker, terms);
            let lease = self.take(worker, id, waited);
            if terms.max_age.is_some_and(|age| self.is_older(id, age)) {
                self.inner.borrow_mut().ends(id, End::Age);
                lease.refused();
                continue;
            }
            if self.is_ready(id).await {
                return Ok(lease);
            }
            let address = self.remote.address();
            if lease.fresh {
                return Err(Error::Connect { address, error: "closed as soon as it was made".into() });
            }
            // Closed while it was idle: nothing was sent, and it is gone from the pool now.
            self.gone(worker, id);
        }
    }

    /// Waits for a connection that somebody else has now.
    async fn queue(&self, waiting: Waiting<'_>, terms: &Terms) -> Result<ConnId, Error> {
        let name = || format!("endpoint/{}/connections", self.remote.address()).into();
        match terms.queue {
            Some(queue) if self.numbers().waiting <= queue.size.get() as usize => {
                let waited = queue.timeout;
                match timeout(waited, waiting.get()).await {
                    Ok(answer) => answer,
                    Err(_) => Err(Error::QueueTimeout { name: name(), waited }),
                }
            }
            Some(_) | None => Err(Error::BulkheadFull { name: name() }),
        }
    }

    fn is_older(&self, id: ConnId, age: Duration) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.slot(id).is_some_and(|slot| slot.made.elapsed() >= age / 100 * slot.lasts)
    }

    /// Closes a connection that nobody uses. `false`: there is none.
    pub fn close_idle(self: &Rc<Self>, worker: &Rc<Worker>) -> bool {
        let closed = self.inner.borrow_mut().pool.close_idle();
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
        closed
    }

    /// Connections of an older certificate or trust bundle get no new requests: a connection must not outlive for long
    /// what made it legal, and a withdrawn root must not live on in a pool.
    fn renew(self: &Rc<Self>, worker: &Rc<Worker>) {
        let generation = worker.ctx.credentials.generation();
        if self.generation.replace(generation) == generation || !self.remote.is_mesh() {
            return;
        }
        let mut inner = self.inner.borrow_mut();
        let old: Vec<ConnId> = inner.slots.iter().flatten().map(|slot| slot.id).collect();
        for id in old {
            inner.ends(id, End::Renewed);
            inner.pool.on_goaway(id, now());
        }
        drop(inner);
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    fn take(self: &Rc<Self>, worker: &Rc<Worker>, id: ConnId, waited: bool) -> Lease {
        let mut inner = self.inner.borrow_mut();
        let fresh = match inner.slot(id) {
            Some(slot) => {
                slot.requests += 1;
                slot.requests == 1
            }
            None => false,
        };
        if !fresh {
            self.tally.reused();
        }
        Lease {
            connections: Rc::clone(self),
            worker: Rc::clone(worker),
            id,
            fresh,
            waited,
            over: Cell::new(false),
        }
    }

    /// Whether the connection takes a request; it may need a moment after the answer before.
    async fn is_ready(&self, id: ConnId) -> bool {
        poll_fn(|cx| {
            let mut inner = self.inner.borrow_mut();
            match inner.slot(id).map(|slot| &mut slot.sender) {
                Some(Sender::Http1 { sender, .. }) => sender.poll_ready(cx).map(|ready| ready.is_ok()),
                Some(Sender::Http2(sender)) => sender.poll_ready(cx).map(|ready| ready.is_ok()),
                None => Poll::Ready(false),
            }
        })
        .await
    }

    /// Does what the pool wants done.
    fn settle(self: &Rc<Self>, worker: &Rc<Worker>, terms: &Terms) {
        loop {
            let mut inner = self.inner.borrow_mut();
            let Some(event) = inner.pool.poll_event() else { return };
            match event {
                Event::Dial(dial) => {
                    let (this, worker, terms) = (Rc::clone(self), Rc::clone(worker), terms.clone());
                    task::spawn_local(async move { this.dial(&worker, dial, &terms).await });
                }
                Event::Ready { ticket, id } => {
                    // A waiter that is gone has taken its ticket out, or finds the answer when it goes.
                    if let Some(tell) = inner.waiting.remove(&ticket) {
                        let _ = tell.send(Ok(id));
                    }
                }
                Event::Failed(ticket) => {
                    let error = inner.failure.clone().unwrap_or_else(|| self.left());
                    if let Some(tell) = inner.waiting.remove(&ticket) {
                        let _ = tell.send(Err(error));
                    }
                }
                Event::Close(id) => {
                    let slot = inner.remove(id);
                    drop(inner);
                    if let Some(slot) = &slot {
                        let end = if self.retired.get() { End::Left } else { End::Idle };
                        self.tally.ended(worker, slot.end.unwrap_or(end));
                    }
                    // hyper ends a connection whose sender is gone.
                    drop(slot);
                }
            }
        }
    }

    async fn dial(self: Rc<Self>, worker: &Rc<Worker>, dial: DialId, terms: &Terms) {
        let counted = match terms.count(worker) {
            Ok(counted) => counted,
            Err(error) => {
                self.tally.failed(worker, error.reason());
                self.failed(dial, error);
                return self.settle(worker, terms);
            }
        };
        let began = now();
        let io = upstream::connect(worker, &self.remote, terms.connect).await;
        let security = io.as_ref().ok().and_then(Io::security);
        let made = match io {
            Ok(io) if self.http2 => match upstream::http2(io, &self.remote, STREAMS_UNTIL_SETTINGS).await {
                Ok((sender, driver)) => Ok((sender, Driver::Http2(Box::new(driver)))),
                Err(error) => Err(error),
            },
            Ok(io) => match upstream::http1(io, &self.remote).await {
                Ok((sender, driver)) => Ok((sender, Driver::Http1(Box::new(driver)))),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        match made {
            Err(error) => {
                self.tally.failed(worker, error.reason());
                self.failed(dial, error);
                self.settle(worker, terms);
            }
            Ok((sender, driver)) => {
                self.tally.made(worker, now().saturating_duration_since(began));
                let lasts = 90 + worker.rng().next_u32() % 21;
                let id = self.connected(dial, sender, security, lasts, counted);
                self.settle(worker, terms);
                // Retired meanwhile: nobody wants the connection any more.
                let Some(id) = id else { return };
                self.drive(worker, id, driver).await;
                self.gone(worker, id);
            }
        }
    }

    fn failed(&self, dial: DialId, error: Error) {
        let mut inner = self.inner.borrow_mut();
        inner.failure = Some(error);
        inner.pool.on_connect_failed(dial, now());
    }

    fn connected(
        &self,
        dial: DialId,
        sender: Sender,
        security: Option<Arc<str>>,
        lasts: u32,
        counted: Option<Counted>,
    ) -> Option<ConnId> {
        let mut inner = self.inner.borrow_mut();
        let streams = if self.http2 { STREAMS_UNTIL_SETTINGS } else { 1 };
        let id = inner.pool.on_connected(dial, streams, now())?;
        let made = Instant::now();
        inner.put(Slot { id, sender, security, requests: 0, made, lasts, end: None, _counted: counted });
        Some(id)
    }

    async fn drive(self: &Rc<Self>, worker: &Rc<Worker>, id: ConnId, driver: Driver) {
        match driver {
            Driver::Http1(driver) => {
                let _ = driver.with_upgrades().await;
            }
            Driver::Http2(driver) => {
                let mut driver = pin!(driver);
                let mut streams = STREAMS_UNTIL_SETTINGS as usize;
                poll_fn(|cx| {
                    let ended = driver.as_mut().poll(cx).map(drop);
                    let allowed = driver.current_max_send_streams().min(limits::MAX_MESH_STREAMS as usize);
                    if allowed != streams && ended.is_pending() {
                        streams = allowed;
                        self.inner.borrow_mut().pool.on_streams(id, allowed as u32, now());
                        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
                    }
                    ended
                })
                .await;
            }
        }
    }

    /// The transport is gone.
    fn gone(self: &Rc<Self>, worker: &Rc<Worker>, id: ConnId) {
        let mut inner = self.inner.borrow_mut();
        inner.pool.on_closed(id, now());
        let slot = inner.remove(id);
        drop(inner);
        if let Some(slot) = &slot {
            self.tally.ended(worker, slot.end.unwrap_or(End::Peer));
        }
        drop(slot);
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    fn release(self: &Rc<Self>, worker: &Rc<Worker>, id: ConnId, reuse: Reuse) {
        self.inner.borrow_mut().pool.release(id, reuse, now());
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    /// The endpoint leaves: what is idle closes now, the rest when it has answered.
    pub fn retire(self: &Rc<Self>, worker: &Rc<Worker>) {
        let mut inner = self.inner.borrow_mut();
        // What whoever waits is told: it goes elsewhere.
        let error = "the endpoint has left the configuration".into();
        inner.failure = Some(Error::Connect { address: self.remote.address(), error });
        inner.pool.retire(now());
        drop(inner);
        self.retired.set(true);
        self.tally.tell(worker);
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    /// Closes what has been idle for too long.
    pub fn sweep(self: &Rc<Self>, worker: &Rc<Worker>) {
        self.renew(worker);
        self.tally.tell(worker);
        let mut inner = self.inner.borrow_mut();
        let now = now();
        if inner.pool.poll_timeout().is_some_and(|due| due <= now) {
            inner.pool.handle_timeout(now);
        }
        drop(inner);
        self.settle(worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    fn left(&self) -> Error {
        Error::Connect { address: self.remote.address(), error: "the endpoint left the configuration".into() }
    }

    pub fn is_unused(&self) -> bool {
        self.inner.borrow().pool.is_unused()
    }

    pub fn numbers(&self) -> Numbers {
        let pool = &self.inner.borrow().pool;
        Numbers {
            open: pool.open(),
            idle: pool.idle(),
            connecting: pool.connecting(),
            waiting: pool.waiting(),
        }
    }
}

enum Driver {
    Http1(Box<upstream::Http1Driver>),
    Http2(Box<upstream::Http2Driver>),
}

impl Inner {
    fn slot(&mut self, id: ConnId) -> Option<&mut Slot> {
        self.slots.get_mut(id.index())?.as_mut().filter(|slot| slot.id == id)
    }

    /// The first cause stands.
    fn ends(&mut self, id: ConnId, end: End) {
        if let Some(slot) = self.slot(id) {
            slot.end.get_or_insert(end);
        }
    }

    fn put(&mut self, slot: Slot) {
        let index = slot.id.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
        }
        self.slots[index] = Some(slot);
    }

    fn remove(&mut self, id: ConnId) -> Option<Slot> {
        let slot = self.slots.get_mut(id.index())?;
        slot.take_if(|slot| slot.id == id)
    }
}
