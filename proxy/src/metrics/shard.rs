//! One worker's way to its cells: labels are resolved once and found by hash from then on.
//!
//! Nothing here is locked in the steady state. The governor is asked for what is new, and a look at its generation with
//! each count says when there is something to let go of.

use std::{
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Release},
    },
    time::Duration,
};

use hashbrown::HashTable;
use outrigger_core::verdict::Reason;

use super::{
    Registry,
    cells::{ConnectionCells, Count, RouteCells, Timing},
    families::Labels,
    governor::{Found, Tier},
    kinds::{Event, OTHER, Timed},
};
use crate::telemetry::{ConnectionRecord, Direction, Protocol, RequestRecord};

/// Destinations that are no service of the mesh, or not known to be one.
const EXTERNAL: &str = "external";
/// The highest code that gRPC has; a peer may send any number.
const MOST_GRPC: u16 = 16;

/// One worker's cells and its way to find them.
pub struct Shard {
    worker: usize,
    registry: Arc<Registry>,
    /// The generation up to which everything was let go of.
    generation: u64,
    acknowledged: Arc<AtomicU64>,
    hasher: foldhash::fast::RandomState,
    requests: HashTable<RequestEntry>,
    connections: HashTable<ConnectionEntry>,
    events: HashTable<NamedEntry<Event, Count>>,
    timings: HashTable<NamedEntry<Timed, Timing>>,
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
    count: Found<Count>,
    on_route: Found<RouteCells>,
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
    cells: Found<ConnectionCells>,
}

struct NamedEntry<K, C> {
    kind: K,
    name: Box<str>,
    words: [&'static str; 2],
    cells: Found<C>,
}

// === impl Shard ===

impl Shard {
    pub(super) fn new(registry: &Arc<Registry>) -> Self {
        let (worker, acknowledged) = registry.governor.enlist();
        Self {
            worker,
            registry: Arc::clone(registry),
            generation: registry.governor.generation(),
            acknowledged,
            hasher: foldhash::fast::RandomState::default(),
            requests: HashTable::new(),
            connections: HashTable::new(),
            events: HashTable::new(),
            timings: HashTable::new(),
        }
    }

    pub fn request(&mut self, record: &RequestRecord<'_>) {
        self.let_go();
        let key = RequestKey {
            direction: record.direction,
            protocol: record.protocol,
            class: class(record.status),
            grpc_status: record.grpc_status.map(|status| status.min(MOST_GRPC + 1)),
            reason: record.reason.map_or("", Reason::as_str),
            service: service(record.direction, record.service, record.peer.is_some(), record.reason),
            route: record.route,
        };
        let hash = self.hasher.hash_one(key);
        let found = self.requests.find(hash, |entry| entry.key() == key);
        let entry = match found {
            Some(entry) => entry,
            None => {
                make_room(&mut self.requests, self.registry.governor.budget());
                let entry = RequestEntry::new(&self.registry, self.worker, key);
                let hasher = &self.hasher;
                self.requests.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        entry.count.cells.add(1);
        let cells = &entry.on_route.cells;
        cells.durations.record(record.duration, record.trace.as_ref());
        cells.received.add(record.received);
        cells.sent.add(record.sent);
        self.handled(record, key.service);
    }

    pub fn connection(&mut self, record: &ConnectionRecord<'_>) {
        self.let_go();
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
                make_room(&mut self.connections, self.registry.governor.budget());
                let entry = ConnectionEntry::new(&self.registry, self.worker, key);
                let hasher = &self.hasher;
                self.connections.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        entry.cells.cells.total.add(1);
        entry.cells.cells.received.add(record.received);
        entry.cells.cells.sent.add(record.sent);
    }

    /// Counts under a name of the configuration's, never of a caller's.
    pub fn event(&mut self, event: Event, name: &str, words: [&'static str; 2], times: u64) {
        self.let_go();
        let hash = self.hasher.hash_one((event, name, words));
        let is = |entry: &NamedEntry<_, _>| entry.is(event, name, words);
        let entry = match self.events.find(hash, is) {
            Some(entry) => entry,
            None => {
                make_room(&mut self.events, self.registry.governor.budget());
                let about = event.about();
                let cells = self.registry.governor.find(
                    self.worker,
                    |table| &mut table.events[event as usize],
                    about.name,
                    |tier| about.labels(tier, name, words),
                );
                let entry = NamedEntry { kind: event, name: name.into(), words, cells };
                let hasher = &self.hasher;
                self.events.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        entry.cells.cells.add(times);
    }

    /// The same for how long something took.
    pub fn timed(&mut self, timed: Timed, name: &str, words: [&'static str; 2], took: Duration) {
        self.let_go();
        let hash = self.hasher.hash_one((timed, name, words));
        let is = |entry: &NamedEntry<_, _>| entry.is(timed, name, words);
        let entry = match self.timings.find(hash, is) {
            Some(entry) => entry,
            None => {
                make_room(&mut self.timings, self.registry.governor.budget());
                let about = timed.about();
                let cells = self.registry.governor.find(
                    self.worker,
                    |table| &mut table.timings[timed as usize],
                    about.name,
                    |tier| about.labels(tier, name, words),
                );
                let entry = NamedEntry { kind: timed, name: name.into(), words, cells };
                let hasher = &self.hasher;
                self.timings.insert_unique(hash, entry, |entry| hasher.hash_one(entry.key())).into_mut()
            }
        };
        entry.cells.cells.record(took, None);
    }

    /// What a request that has ended says about waiting, retries, hedges, fallbacks and caches.
    fn handled(&mut self, record: &RequestRecord<'_>, service: &str) {
        let handled = &record.handled;
        if !handled.queued.is_zero() {
            self.timed(Timed::Queue, service, [record.direction.name(), ""], handled.queued);
        }
        let more =
            u64::from(record.attempts.saturating_sub(1)).saturating_sub(handled.hedged.is_some().into());
        if more > 0 {
            let good = record.reason.is_none() && (1..500).contains(&record.status);
            let outcome = if good { "succeeded" } else { "failed" };
            self.event(Event::Retry, service, [outcome, ""], more);
        }
        if handled.gave_up == Some("budget") {
            self.event(Event::RetryBudgetExhausted, service, ["", ""], 1);
        }
        let said = [
            (Event::Hedge, handled.hedged),
            (Event::Fallback, handled.fallback),
            (Event::Cache, handled.cache),
        ];
        for (event, word) in said {
            if let Some(word) = word {
                self.event(event, service, [word, ""], 1);
            }
        }
    }

    /// Forgets its way to what the governor wants back. Done with each count; a worker without any is asked to.
    pub fn let_go(&mut self) {
        let generation = self.registry.governor.generation();
        if generation == self.generation {
            return;
        }
        self.requests.retain(|entry| entry.count.lasts() && entry.on_route.lasts());
        self.connections.retain(|entry| entry.cells.lasts());
        self.events.retain(|entry| entry.cells.lasts());
        self.timings.retain(|entry| entry.cells.lasts());
        self.generation = generation;
        // After all that was counted before.
        self.acknowledged.store(generation, Release);
    }

    /// Ways to cells that are kept.
    #[cfg(test)]
    pub(super) fn entries(&self) -> usize {
        self.requests.len() + self.connections.len() + self.events.len() + self.timings.len()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.acknowledged.store(u64::MAX, Release);
    }
}

/// The service as a label. What strangers choose freely is not one: the address of a destination outside, and the port
/// that a caller without an identity was refused at.
pub(crate) fn service(direction: Direction, service: &str, known_peer: bool, reason: Option<Reason>) -> &str {
    match direction {
        Direction::Outbound if service.starts_with("address/") => EXTERNAL,
        Direction::Inbound if !known_peer && reason.is_some() => "",
        Direction::Outbound | Direction::Inbound => service,
    }
}

/// Forgets the way to the cells (not the cells) when labels that were folded have filled the table.
fn make_room<T>(table: &mut HashTable<T>, budget: usize) {
    if table.len() >= budget.max(64) {
        table.clear();
    }
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

// === impl RequestEntry ===

impl RequestEntry {
    fn new(registry: &Registry, worker: usize, key: RequestKey<'_>) -> Self {
        let governor = &registry.governor;
        let count = |tier| key.labels(tier);
        let on_route = |tier| key.route_labels(tier);
        Self {
            key: RequestKey { service: "", route: "", ..key },
            service: key.service.into(),
            route: key.route.into(),
            count: governor.find(worker, |table| &mut table.requests, "outrigger_requests", count),
            on_route: governor.find(
                worker,
                |table| &mut table.routes,
                "outrigger_request_duration_seconds",
                on_route,
            ),
        }
    }

    fn key(&self) -> RequestKey<'_> {
        RequestKey { service: &self.service, route: &self.route, ..self.key }
    }
}

impl RequestKey<'_> {
    fn labels(&self, tier: Tier) -> Labels {
        let grpc_status = match self.grpc_status {
            Some(status) if status > MOST_GRPC => OTHER.to_owned(),
            Some(status) => status.to_string(),
            None => String::new(),
        };
        let (direction, class) = (self.direction.name(), self.class);
        let [service, route] = self.names(tier);
        if tier == Tier::Sink {
            let labels =
                [("direction", direction), ("service", service), ("route", route), ("status", class)];
            return Labels::new(&labels);
        }
        Labels::new(&[
            ("direction", direction),
            ("protocol", self.protocol.name()),
            ("service", service),
            ("route", route),
            ("status", class),
            ("grpc_status", &grpc_status),
            ("reason", self.reason),
        ])
    }

    fn route_labels(&self, tier: Tier) -> Labels {
        let [service, route] = self.names(tier);
        Labels::new(&[("direction", self.direction.name()), ("service", service), ("route", route)])
    }

    fn names(&self, tier: Tier) -> [&str; 2] {
        match tier {
            Tier::Own => [self.service, self.route],
            Tier::Other | Tier::Sink => [OTHER, OTHER],
        }
    }
}

// === impl ConnectionEntry ===

impl ConnectionEntry {
    fn new(registry: &Registry, worker: usize, key: ConnectionKey<'_>) -> Self {
        let labels = |tier| key.labels(tier);
        Self {
            key: ConnectionKey { service: "", ..key },
            service: key.service.into(),
            cells: registry.governor.find(
                worker,
                |table| &mut table.connections,
                "outrigger_connections",
                labels,
            ),
        }
    }

    fn key(&self) -> ConnectionKey<'_> {
        ConnectionKey { service: &self.service, ..self.key }
    }
}

impl ConnectionKey<'_> {
    fn labels(&self, tier: Tier) -> Labels {
        let direction = ("direction", self.direction.name());
        let service = if tier == Tier::Own { self.service } else { OTHER };
        if tier == Tier::Sink {
            return Labels::new(&[direction, ("service", service)]);
        }
        Labels::new(&[
            direction,
            ("protocol", self.protocol.name()),
            ("security", if self.mutual { "mutual" } else { "none" }),
            ("service", service),
            ("reason", self.reason),
        ])
    }
}

// === impl NamedEntry ===

impl<K: Copy + PartialEq, C> NamedEntry<K, C> {
    fn is(&self, kind: K, name: &str, words: [&'static str; 2]) -> bool {
        self.kind == kind && *self.name == *name && self.words == words
    }

    fn key(&self) -> (K, &str, [&'static str; 2]) {
        (self.kind, &self.name, self.words)
    }
}
