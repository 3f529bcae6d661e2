//! Bulkheads and rate limits that all workers of the proxy share: a limit must hold for the proxy, not for each thread.
//!
//! A [`Hall`] is one bulkhead of the core behind a short lock of its own, with the waiters' tasks around it. Whoever needs
//! it finds it once by its [`Name`] and keeps it for as long as the policy is the same; the registry is not on the path of
//! a request. A hall outlives policies: a changed number applies to it and forgets nothing.
//!
//! ```text
//! admit ─▶ Admitted ───────────────▶ Permit ── drop ─▶ release
//!    │ └─▶ Full ─▶ Error
//!    └───▶ Queued ─▶ wait ─┬─ told ─▶ Permit, or Error
//!                          └─ dropped ─▶ cancelled, or its place released
//! ```
//!
//! Who is next is decided in `core::bulkhead`, what is too often in `core::rate_limit` (`limiter`).

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use outrigger_certs::SpiffeId;
use outrigger_core::{
    bulkhead::{Admission, Bulkhead, Config, Event, Ticket},
    snapshot::Snapshot,
};
use outrigger_proto::spec::BackendKey;
use tokio::{sync::oneshot, time::sleep_until};

use crate::{error::Error, metrics, telemetry::Shard, worker::now};

pub mod configured;
mod limiter;

pub use limiter::{Limiter, Rule, Rules};

/// What a bulkhead protects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Name {
    /// Requests to the application behind this port.
    Port(u16),
    /// Connections of callers to it.
    PortConnections(u16),
    /// Requests to a backend.
    Upstream(BackendKey),
    /// Connections to a backend.
    UpstreamConnections(BackendKey),
    /// Requests to all endpoints of a backend together, where each has a limit and there is a queue for them.
    Endpoints(BackendKey),
    /// Requests of a route, by its name.
    Route(Arc<str>),
}

/// Whose share of a bulkhead something takes. On the client side, and for callers without an identity, `None`.
pub type Who = Option<SpiffeId>;

#[derive(Default)]
pub struct SharedLimits {
    halls: Mutex<HashMap<Name, Arc<Hall>>>,
    places: Mutex<HashMap<(BackendKey, SocketAddr), Arc<Places>>>,
    limiters: Mutex<HashMap<Arc<str>, Arc<Limiter>>>,
}

/// One bulkhead.
pub struct Hall {
    name: Name,
    label: Arc<str>,
    /// The state has an adaptive limit: latencies are worth a lock.
    adaptive: AtomicBool,
    state: Mutex<State>,
}

struct State {
    config: Config,
    bulkhead: Bulkhead<Who>,
    waiting: HashMap<Ticket, oneshot::Sender<Told>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Granted,
    Expired,
    Shed,
}

/// A place in a hall, given back when it is dropped.
pub struct Permit {
    hall: Arc<Hall>,
    who: Who,
    admitted: Instant,
    /// Spent waiting for it.
    pub queued: Duration,
    answered: bool,
}

/// A place in the queue, given up when it is dropped.
struct Waiting<'a> {
    hall: &'a Arc<Hall>,
    who: &'a Who,
    ticket: Ticket,
    answer: oneshot::Receiver<Told>,
    told: bool,
}

/// What is under way at one endpoint from all workers. Nobody waits here: a full endpoint is passed over.
#[derive(Default)]
pub struct Places {
    requests: AtomicU32,
    connections: AtomicU32,
}

/// Which of an endpoint's [`Places`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Request,
    Connection,
}

/// One of an endpoint's places, given back when it is dropped.
pub struct Place {
    places: Arc<Places>,
    kind: Kind,
}

// === impl SharedLimits ===

impl SharedLimits {
    /// The hall of this name, made or changed to this configuration. For when a policy is new, not for each request.
    pub fn hall(&self, name: Name, config: Config) -> Arc<Hall> {
        let mut halls = lock(&self.halls);
        let hall = halls.entry(name).or_insert_with_key(|name| Arc::new(Hall::new(name.clone(), config)));
        let hall = Arc::clone(hall);
        drop(halls);
        hall.set_config(config);
        hall
    }

    /// The places of an endpoint, which all workers share.
    pub fn places(&self, backend: &BackendKey, endpoint: SocketAddr) -> Arc<Places> {
        Arc::clone(lock(&self.places).entry((backend.clone(), endpoint)).or_default())
    }

    /// Forgets what is neither in use nor configured any more.
    pub fn prune(&self, snapshot: &Snapshot) {
        lock(&self.halls).retain(|name, hall| Arc::strong_count(hall) > 1 || name.is_configured(snapshot));
        lock(&self.places).retain(|_, places| Arc::strong_count(places) > 1);
        self.prune_limiters(snapshot);
    }

    /// Sorted by name.
    pub fn numbers(&self) -> Vec<metrics::Hall> {
        let mut halls: Vec<_> = lock(&self.halls).values().cloned().collect();
        halls.sort_by(|a, b| a.name.cmp(&b.name));
        halls.iter().map(|hall| hall.numbers()).collect()
    }
}

// === impl Name ===

impl Name {
    fn is_configured(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Port(port) | Self::PortConnections(port) => {
                snapshot.inbound().is_some_and(|inbound| inbound.port(*port).limits.is_some())
            }
            Self::Upstream(key) | Self::UpstreamConnections(key) | Self::Endpoints(key) => {
                snapshot.backend(key).is_some()
            }
            // It has learned nothing that a new one would not have.
            Self::Route(_) => false,
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "port/{port}"),
            Self::PortConnections(port) => write!(f, "port/{port}/connections"),
            Self::Upstream(backend) => write!(f, "upstream/{backend}"),
            Self::UpstreamConnections(backend) => write!(f, "upstream/{backend}/connections"),
            Self::Endpoints(backend) => write!(f, "upstream/{backend}/endpoints"),
            Self::Route(route) => write!(f, "route/{route}"),
        }
    }
}

// === impl Hall ===

impl Hall {
    fn new(name: Name, config: Config) -> Self {
        let bulkhead = Bulkhead::new(config, now());
        Self {
            label: name.to_string().into(),
            name,
            adaptive: AtomicBool::new(config.adaptive.is_some()),
            state: Mutex::new(State { config, bulkhead, waiting: HashMap::new() }),
        }
    }

    fn set_config(&self, config: Config) {
        let mut state = lock(&self.state);
        if state.config != config {
            state.config = config;
            state.bulkhead.set_config(config, now());
            state.settle();
            self.adaptive.store(config.adaptive.is_some(), Relaxed);
        }
    }

    /// Limits nothing any more.
    fn lift(&self) {
        let queue = lock(&self.state).config.queue;
        self.set_config(Config { queue, ..Config::default() });
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// As metrics, logs and answers name it.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// A place now, or nothing.
    pub fn try_admit(self: &Arc<Self>, who: &Who) -> Option<Permit> {
        let now = now();
        let mut state = lock(&self.state);
        match state.bulkhead.acquire(who, now) {
            Admission::Admitted => {}
            Admission::Full => {
                // Nobody may have waited here, but a place in the queue may have gone to somebody else.
                state.settle();
                return None;
            }
            Admission::Queued(ticket) => {
                state.bulkhead.cancel(ticket, now);
                state.settle();
                return None;
            }
        }
        drop(state);
        Some(self.permit(who, now, Duration::ZERO))
    }

    /// A place, after waiting for one if the queue has room. Dropped, it waits no longer and takes no place.
    pub async fn admit(self: &Arc<Self>, who: &Who, telemetry: &Shard) -> Result<Permit, Error> {
        let came = now();
        let waiting = {
            let mut state = lock(&self.state);
            let admission = state.bulkhead.acquire(who, came);
            state.settle();
            match admission {
                Admission::Admitted => None,
                Admission::Full => return Err(self.refused(Told::Shed, came, telemetry)),
                Admission::Queued(ticket) => {
                    let (tell, answer) = oneshot::channel();
                    state.waiting.insert(ticket, tell);
                    let expiry = state.config.queue.map_or(came, |queue| came + queue.timeout);
                    drop(state);
                    Some((Waiting { hall: self, who, ticket, answer, told: false }, expiry))
                }
            }
        };
        match waiting {
            None => Ok(self.permit(who, came, Duration::ZERO)),
            Some((waiting, expiry)) => match waiting.wait(expiry).await {
                Told::Granted => {
                    let now = now();
                    Ok(self.permit(who, now, now.saturating_duration_since(came)))
                }
                told @ (Told::Expired | Told::Shed) => Err(self.refused(told, came, telemetry)),
            },
        }
    }

    fn permit(self: &Arc<Self>, who: &Who, admitted: Instant, queued: Duration) -> Permit {
        Permit { hall: Arc::clone(self), who: who.clone(), admitted, queued, answered: false }
    }

    fn refused(&self, told: Told, came: Instant, telemetry: &Shard) -> Error {
        let name = Arc::clone(&self.label);
        let error = match told {
            Told::Granted | Told::Shed => Error::BulkheadFull { name },
            Told::Expired => Error::QueueTimeout { name, waited: now().saturating_duration_since(came) },
        };
        telemetry.event(metrics::Event::Shed, &self.label, [error.reason().as_str(), ""]);
        error
    }

    /// For callers that ask without waiting and refuse by themselves.
    pub fn full(&self, telemetry: &Shard) -> Error {
        self.refused(Told::Shed, now(), telemetry)
    }

    fn numbers(&self) -> metrics::Hall {
        let state = lock(&self.state);
        metrics::Hall {
            name: self.label.to_string(),
            in_flight: state.bulkhead.in_flight().into(),
            limit: state.bulkhead.limit().map(u64::from),
            queued: state.bulkhead.waiting() as u64,
        }
    }
}

impl State {
    /// Tells waiters what became of them. To be called after everything that may decide about one.
    fn settle(&mut self) {
        while let Some(event) = self.bulkhead.poll_event() {
            let (ticket, told) = match event {
                Event::Granted(ticket) => (ticket, Told::Granted),
                Event::Expired(ticket) => (ticket, Told::Expired),
                Event::Shed(ticket) => (ticket, Told::Shed),
            };
            if let Some(tell) = self.waiting.remove(&ticket) {
                // Whoever waits takes its sender out under this lock before it goes.
                let _ = tell.send(told);
            }
        }
    }
}

// === impl Waiting ===

impl Waiting<'_> {
    async fn wait(mut self, expiry: Instant) -> Told {
        // Time has come, but nothing has come of it: not again at once.
        let mut earliest = now();
        let mut due = expiry;
        loop {
            let adaptive = self.hall.adaptive.load(Relaxed);
            let probed = if adaptive { lock(&self.hall.state).bulkhead.poll_timeout() } else { None };
            let at = probed.map_or(due, |probed| probed.min(due)).max(earliest);
            tokio::select! {
                biased;
                told = &mut self.answer => {
                    self.told = true;
                    return told.unwrap_or(Told::Shed);
                }
                () = sleep_until(at.into()) => {
                    let mut state = lock(&self.hall.state);
                    state.bulkhead.handle_timeout(now());
                    state.settle();
                    earliest = now() + Duration::from_millis(1);
                    // Still waiting then: the queue's time has become longer.
                    due = state.bulkhead.poll_timeout().unwrap_or(expiry);
                }
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.told {
            return;
        }
        let mut state = lock(&self.hall.state);
        let now = now();
        match state.waiting.remove(&self.ticket) {
            Some(_) => drop(state.bulkhead.cancel(self.ticket, now)),
            None if self.answer.try_recv() == Ok(Told::Granted) => {
                state.bulkhead.release(self.who, None, now);
            }
            None => {}
        }
        state.settle();
    }
}

// === impl Permit ===

impl Permit {
    /// The answer's head is there: what an adaptive limit learns from.
    pub fn answered(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.answered, true) && self.hall.adaptive.load(Relaxed) {
            let mut state = lock(&self.hall.state);
            state.bulkhead.on_latency(now.saturating_duration_since(self.admitted), now);
            state.settle();
        }
    }

    pub fn hall(&self) -> &Arc<Hall> {
        &self.hall
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = lock(&self.hall.state);
        state.bulkhead.release(&self.who, None, now());
        state.settle();
    }
}

// === impl Places ===

impl Places {
    /// How many are taken.
    pub fn taken(&self, kind: Kind) -> u32 {
        self.counter(kind).load(Relaxed)
    }

    /// Takes a place if fewer than `most` are taken; `None`: there is no limit.
    pub fn enter(self: &Arc<Self>, kind: Kind, most: Option<u32>) -> Option<Place> {
        let most = most.unwrap_or(u32::MAX);
        let enter = |taken: u32| (taken < most).then_some(taken + 1);
        self.counter(kind).fetch_update(Relaxed, Relaxed, enter).ok()?;
        Some(Place { places: Arc::clone(self), kind })
    }

    fn counter(&self, kind: Kind) -> &AtomicU32 {
        match kind {
            Kind::Request => &self.requests,
            Kind::Connection => &self.connections,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.counter(self.kind).fetch_sub(1, Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
