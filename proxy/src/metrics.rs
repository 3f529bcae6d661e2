//! Counters in per-worker shards, merged when they are scraped, in Prometheus' text format.
//!
//! A worker owns its cells and is the only one to write them, so a count is a plain load and store. It resolves a set
//! of labels once and finds the cells by hash from then on. A scrape adds up the cells of all workers.
//!
//! **Budget.** Label sets are limited in number ([`Registry::new`]). Beyond the limit, services and routes are folded
//! into `other`, and `outrigger_metrics_folded_total` says how often a new set met the limit: the memory of the proxy
//! and of whoever scrapes it cannot be grown from outside.
//!
//! It keeps no history: rates and percentiles are the business of the reader.

use std::{
    collections::BTreeMap,
    hash::BuildHasher,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hashbrown::HashTable;
use outrigger_core::verdict::Reason;

use crate::telemetry::{ConnectionRecord, Direction, Protocol, RequestRecord};

mod process;
mod resilience;
mod text;

#[cfg(test)]
mod tests;

pub use resilience::{Event, Hall};
pub use text::CONTENT_TYPE;

/// Label sets over all families, unless told otherwise.
pub const SERIES_BUDGET: usize = 2_000;

/// Upper bounds of the latency buckets in microseconds; the last bucket has none.
const BOUNDS_US: [u64; 14] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// Destinations that are no service of the mesh, or not known to be one.
const EXTERNAL: &str = "external";
/// What services and routes beyond the budget are called.
const OTHER: &str = "other";

/// All counts of the process.
pub struct Registry {
    budget: usize,
    shards: AtomicUsize,
    families: Mutex<Families>,
    folded: AtomicU64,
    panics: AtomicU64,
    traffic: [Traffic; 2],
    control: Control,
}

/// One worker's cells and its way to find them.
pub struct Shard {
    worker: usize,
    registry: Arc<Registry>,
    hasher: foldhash::fast::RandomState,
    requests: HashTable<RequestEntry>,
    connections: HashTable<ConnectionEntry>,
    handshakes: HashTable<HandshakeEntry>,
    events: HashTable<resilience::EventEntry>,
}

/// What only the scraper knows.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    pub ready: bool,
    pub draining: bool,
    pub certificate_ends: Option<SystemTime>,
    pub access_log_dropped: u64,
    /// What workers could not tell the control runtime.
    pub transitions_dropped: u64,
    /// Endpoints that are ejected, by service.
    pub ejected: Vec<(String, u64)>,
    pub halls: Vec<Hall>,
}

/// A family maps rendered labels to the cells of each worker. Sorted, so that scrapes can be compared.
type Family<C> = BTreeMap<Arc<str>, Vec<(usize, Arc<C>)>>;

#[derive(Default)]
struct Families {
    requests: Family<Count>,
    routes: Family<RouteCells>,
    connections: Family<ConnectionCells>,
    handshakes: Family<Count>,
    events: resilience::EventFamilies,
}

#[derive(Default)]
struct Count(AtomicU64);

#[derive(Default)]
struct RouteCells {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

#[derive(Default)]
struct ConnectionCells {
    total: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
}

/// Written at accept and close by any worker.
#[derive(Default)]
struct Traffic {
    opened: AtomicU64,
    open: AtomicI64,
}

/// Written by the control runtime.
#[derive(Default)]
struct Control {
    connected: AtomicU64,
    applied: AtomicU64,
    refused: AtomicU64,
    last_applied: AtomicU64,
    issued: AtomicU64,
    not_issued: AtomicU64,
}

/// Labels of a request as the record has them, comparable with an entry's without an allocation.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct RequestKey<'a> {
    direction: Direction,
    protocol: Protocol,
    class: &'static str,
    grpc_status: Option<u16>,
    reason: &'static str,
    service: &'a str,
    route: &'a str,
}

struct RequestEntry {
    key: RequestKey<'static>,
    service: Box<str>,
    route: Box<str>,
    count: Arc<Count>,
    on_route: Arc<RouteCells>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct ConnectionKey<'a> {
    direction: Direction,
    protocol: Protocol,
    mutual: bool,
    reason: &'static str,
    service: &'a str,
}

struct ConnectionEntry {
    key: ConnectionKey<'static>,
    service: Box<str>,
    cells: Arc<ConnectionCells>,
}

struct HandshakeEntry {
    direction: Direction,
    cause: &'static str,
    count: Arc<Count>,
}

// === impl Registry ===

impl Registry {
    pub fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            budget,
            shards: AtomicUsize::new(0),
            families: Mutex::default(),
            folded: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            traffic: Default::default(),
            control: Control::default(),
        })
    }

    pub fn shard(self: &Arc<Self>) -> Shard {
        Shard {
            worker: self.shards.fetch_add(1, Relaxed),
            registry: Arc::clone(self),
            hasher: foldhash::fast::RandomState::default(),
            requests: HashTable::new(),
            connections: HashTable::new(),
            handshakes: HashTable::new(),
            events: HashTable::new(),
        }
    }

    pub fn connection_opened(&self, direction: Direction) {
        let traffic = &self.traffic[direction as usize];
        traffic.opened.fetch_add(1, Relaxed);
        traffic.open.fetch_add(1, Relaxed);
    }

    pub fn connection_closed(&self, direction: Direction) {
        self.traffic[direction as usize].open.fetch_sub(1, Relaxed);
    }

    pub fn connections_open(&self, direction: Direction) -> i64 {
        self.traffic[direction as usize].open.load(Relaxed)
    }

    /// A task has panicked, which ended its connection and no other.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// The stream to the active control plane is there or lost.
    pub fn control_plane(&self, connected: bool) {
        self.control.connected.store(connected.into(), Relaxed);
    }

    /// An update was taken (and acknowledged).
    pub fn config_applied(&self, now: SystemTime) {
        self.control.applied.fetch_add(1, Relaxed);
        self.control.last_applied.store(unix_seconds(now), Relaxed);
    }

    /// An update was refused with a NACK.
    pub fn config_refused(&self) {
        self.control.refused.fetch_add(1, Relaxed);
    }

    pub fn certificate_issued(&self) {
        self.control.issued.fetch_add(1, Relaxed);
    }

    pub fn certificate_not_issued(&self) {
        self.control.not_issued.fetch_add(1, Relaxed);
    }

    /// Cells of a label set, or of its folded form when the set is new and the budget is spent.
    fn cells<C: Default>(
        &self,
        worker: usize,
        family: impl Fn(&mut Families) -> &mut Family<C>,
        labels: &str,
        folded: impl FnOnce() -> String,
    ) -> Arc<C> {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let full = families.sets() >= self.budget;
        let family = family(&mut families);
        if full && !family.contains_key(labels) {
            self.folded.fetch_add(1, Relaxed);
            return of_worker(family, &folded(), worker);
        }
        of_worker(family, labels, worker)
    }
}

fn of_worker<C: Default>(family: &mut Family<C>, labels: &str, worker: usize) -> Arc<C> {
    if !family.contains_key(labels) {
        family.insert(labels.into(), Vec::new());
    }
    // Present: inserted above if it was not.
    let Some(shards) = family.get_mut(labels) else { return Arc::default() };
    if let Some((_, cells)) = shards.iter().find(|(of, _)| *of == worker) {
        return Arc::clone(cells);
    }
    let cells = Arc::<C>::default();
    shards.push((worker, Arc::clone(&cells)));
    cells
}

impl Families {
    fn sets(&self) -> usize {
        let events: usize = self.events.iter().map(BTreeMap::len).sum();
        self.requests.len() + self.routes.len() + self.connections.len() + self.handshakes.len() + events
    }
}

// === impl Shard ===

impl Shard {
    pub fn request(&mut self, record: &RequestRecord<'_>) {
        let key = RequestKey {
            direction: record.direction,
            protocol: record.protocol,
            class: class(record.status),
            grpc_status: record.grpc_status,
            reason: record.reason.map_or("", Reason::as_str),
            service: service(record.direction, record.service, record.peer.is_some(), record.reason),
            route: record.route,
        };
        let hash = self.hasher.hash_one(key);
        let found = self.requests.find(hash, |entry| entry.key() == key);
        let entry = match found {
            Some(entry) => entry,
            None => {
                make_room(&mut self.requests, self.registry.budget);
                let entry = RequestEntry::new(&self.registry, self.worker, key);
                let hasher = &self.hasher;
                self.requests.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        add(&entry.count.0, 1);
        let cells = &entry.on_route;
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        add(&cells.buckets[BOUNDS_US.partition_point(|bound| *bound < micros)], 1);
        add(&cells.sum_us, micros);
        add(&cells.received, record.received);
        add(&cells.sent, record.sent);
        self.handled(record, key.service);
    }

    pub fn connection(&mut self, record: &ConnectionRecord<'_>) {
        let key = ConnectionKey {
            direction: record.direction,
            protocol: record.protocol,
            mutual: record.peer.is_some(),
            reason: record.reason.map_or("", Reason::as_str),
            service: service(record.direction, record.service, record.peer.is_some(), record.reason),
        };
        let hash = self.hasher.hash_one(key);
        let found = self.connections.find(hash, |entry| entry.key() == key);
        let entry = match found {
            Some(entry) => entry,
            None => {
                make_room(&mut self.connections, self.registry.budget);
                let entry = ConnectionEntry::new(&self.registry, self.worker, key);
                let hasher = &self.hasher;
                self.connections.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        add(&entry.cells.total, 1);
        add(&entry.cells.received, record.received);
        add(&entry.cells.sent, record.sent);
    }

    /// A TLS handshake of the mesh hop failed. `cause` is one of a fixed few, never the peer's words.
    pub fn handshake_failed(&mut self, direction: Direction, cause: &'static str) {
        let hash = self.hasher.hash_one((direction, cause));
        let found = self.handshakes.find(hash, |entry| (entry.direction, entry.cause) == (direction, cause));
        let entry = match found {
            Some(entry) => entry,
            None => {
                let labels = text::labels(&[("direction", direction.name()), ("cause", cause)]);
                let count =
                    self.registry.cells(self.worker, |f| &mut f.handshakes, &labels, || labels.clone());
                let hasher = &self.hasher;
                self.handshakes
                    .insert_unique(hash, HandshakeEntry { direction, cause, count }, |entry| {
                        hasher.hash_one((entry.direction, entry.cause))
                    })
                    .into_mut()
            }
        };
        add(&entry.count.0, 1);
    }
}

/// The service as a label. What strangers choose freely is not one: the address of a destination outside, and the port
/// that a caller without an identity was refused at.
fn service(direction: Direction, service: &str, known_peer: bool, reason: Option<Reason>) -> &str {
    match direction {
        Direction::Outbound if service.starts_with("address/") => EXTERNAL,
        Direction::Inbound if !known_peer && reason.is_some() => "",
        Direction::Outbound | Direction::Inbound => service,
    }
}

/// Forgets the way to the cells (not the cells) when labels that were folded have filled the table.
fn make_room<T>(table: &mut HashTable<T>, budget: usize) {
    if table.len() >= budget.saturating_mul(2).max(64) {
        table.clear();
    }
}

/// The only writer of `cell` is this thread, so nothing can come between load and store.
fn add(cell: &AtomicU64, amount: u64) {
    cell.store(cell.load(Relaxed).wrapping_add(amount), Relaxed);
}

fn class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        500..=599 => "5xx",
        _ => "none",
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

// === impl RequestEntry ===

impl RequestEntry {
    fn new(registry: &Registry, worker: usize, key: RequestKey<'_>) -> Self {
        Self {
            key: RequestKey { service: "", route: "", ..key },
            service: key.service.into(),
            route: key.route.into(),
            count: registry.cells(worker, |f| &mut f.requests, &key.labels(), || key.folded().labels()),
            on_route: registry.cells(
                worker,
                |f| &mut f.routes,
                &key.route_labels(),
                || key.folded().route_labels(),
            ),
        }
    }

    fn key(&self) -> RequestKey<'_> {
        RequestKey { service: &self.service, route: &self.route, ..self.key }
    }
}

impl RequestKey<'_> {
    fn labels(&self) -> String {
        let grpc_status = self.grpc_status.map(|status| status.to_string());
        text::labels(&[
            ("direction", self.direction.name()),
            ("protocol", self.protocol.name()),
            ("service", self.service),
            ("route", self.route),
            ("status", self.class),
            ("grpc_status", grpc_status.as_deref().unwrap_or_default()),
            ("reason", self.reason),
        ])
    }

    fn route_labels(&self) -> String {
        text::labels(&[
            ("direction", self.direction.name()),
            ("service", self.service),
            ("route", self.route),
        ])
    }

    fn folded(&self) -> RequestKey<'static> {
        RequestKey { service: OTHER, route: OTHER, ..*self }
    }
}

// === impl ConnectionEntry ===

impl ConnectionEntry {
    fn new(registry: &Registry, worker: usize, key: ConnectionKey<'_>) -> Self {
        let folded = || ConnectionKey { service: OTHER, ..key }.labels();
        Self {
            key: ConnectionKey { service: "", ..key },
            service: key.service.into(),
            cells: registry.cells(worker, |f| &mut f.connections, &key.labels(), folded),
        }
    }

    fn key(&self) -> ConnectionKey<'_> {
        ConnectionKey { service: &self.service, ..self.key }
    }
}

impl ConnectionKey<'_> {
    fn labels(&self) -> String {
        text::labels(&[
            ("direction", self.direction.name()),
            ("protocol", self.protocol.name()),
            ("security", if self.mutual { "mutual" } else { "none" }),
            ("service", self.service),
            ("reason", self.reason),
        ])
    }
}
