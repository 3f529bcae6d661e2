//! One worker's way to its cells: labels are resolved once and found by hash from then on.
//!
//! ```text
//!   Key ─ hash ─▶ Route ─▶ durations, bytes
//!                   └ few, by how it ended ─▶ Way ─▶ count
//! ```
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
use crate::telemetry::{ConnectionRecord, Direction, Key, MOST_GRPC, Outcome, Protocol, RequestRecord};

/// One worker's cells and its way to find them.
pub(crate) struct Shard {
    worker: usize,
    registry: Arc<Registry>,
    /// The generation up to which everything was let go of.
    generation: u64,
    acknowledged: Arc<AtomicU64>,
    hasher: foldhash::fast::RandomState,
    routes: HashTable<Route>,
    connections: HashTable<Connections>,
    events: HashTable<NamedEntry<Event, Count>>,
    timings: HashTable<NamedEntry<Timed, Timing>>,
}

struct Route {
    hash: u64,
    direction: Direction,
    service: Box<str>,
    name: Box<str>,
    cells: Found<RouteCells>,
    /// Few: a look at each is faster than another hash.
    ways: Vec<Way>,
}

/// Requests of one route that ended alike.
struct Way {
    protocol: Protocol,
    outcome: Outcome,
    count: Found<Count>,
}

/// Connections that are alike.
struct Connections {
    hash: u64,
    direction: Direction,
    protocol: Protocol,
    mutual: bool,
    reason: Option<Reason>,
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
            routes: HashTable::new(),
            connections: HashTable::new(),
            events: HashTable::new(),
            timings: HashTable::new(),
        }
    }

    pub(crate) fn request(&mut self, key: &Key<'_>, outcome: Outcome, record: &RequestRecord<'_>) {
        self.let_go();
        let Self { registry, worker, routes, .. } = self;
        let route = match routes.find_mut(key.route_hash, |route| route.is(key)) {
            Some(route) => route,
            None => {
                make_room(routes, registry.governor.budget());
                let route = Route::new(registry, *worker, key);
                routes.insert_unique(key.route_hash, route, |route| route.hash).into_mut()
            }
        };
        route.count(registry, *worker, record.protocol, outcome).add(1);
        route.cells.cells.durations.record(record.duration, record.trace.as_ref());
        route.cells.cells.received.add(record.received);
        route.cells.cells.sent.add(record.sent);
        self.handled(record, key.service);
    }

    pub(crate) fn connection(&mut self, key: &Key<'_>, record: &ConnectionRecord<'_>) {
        self.let_go();
        let Self { registry, worker, connections, .. } = self;
        let found = connections.find(key.route_hash, |connections| connections.are(key, record));
        let Connections { cells, .. } = match found {
            Some(found) => found,
            None => {
                make_room(connections, registry.governor.budget());
                let new = Connections::new(registry, *worker, key, record);
                connections.insert_unique(key.route_hash, new, |connections| connections.hash).into_mut()
            }
        };
        cells.cells.total.add(1);
        cells.cells.received.add(record.received);
        cells.cells.sent.add(record.sent);
    }

    /// Counts under a name of the configuration's, never of a caller's.
    pub(crate) fn event(&mut self, event: Event, name: &str, words: [&'static str; 2], times: u64) {
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
    pub(crate) fn timed(&mut self, timed: Timed, name: &str, words: [&'static str; 2], took: Duration) {
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
    pub(crate) fn let_go(&mut self) {
        let generation = self.registry.governor.generation();
        if generation == self.generation {
            return;
        }
        self.routes.retain(|route| {
            route.ways.retain(|way| way.count.lasts());
            route.cells.lasts()
        });
        self.connections.retain(|connections| connections.cells.lasts());
        self.events.retain(|entry| entry.cells.lasts());
        self.timings.retain(|entry| entry.cells.lasts());
        self.generation = generation;
        // After all that was counted before.
        self.acknowledged.store(generation, Release);
    }

    /// Ways to cells that are kept.
    #[cfg(test)]
    pub(crate) fn ways(&self) -> usize {
        let of_routes = self.routes.iter().map(|route| route.ways.len()).sum::<usize>();
        of_routes + self.connections.len() + self.events.len() + self.timings.len()
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.acknowledged.store(u64::MAX, Release);
    }
}

/// Forgets the way to the cells (not the cells) when labels that were folded have filled the table.
fn make_room<T>(table: &mut HashTable<T>, budget: usize) {
    if table.len() >= budget.max(64) {
        table.clear();
    }
}

// === impl Route ===

impl Route {
    fn new(registry: &Registry, worker: usize, key: &Key<'_>) -> Self {
        let Key { direction, service, route: name, route_hash: hash, .. } = *key;
        let labels = |tier| {
            let [service, route] = names(tier, service, name);
            Labels::new(&[("direction", direction.name()), ("service", service), ("route", route)])
        };
        let family = "outrigger_request_duration_seconds";
        let cells = registry.governor.find(worker, |table| &mut table.routes, family, labels);
        Self { hash, direction, service: service.into(), name: name.into(), cells, ways: Vec::new() }
    }

    fn is(&self, key: &Key<'_>) -> bool {
        self.hash == key.route_hash
            && self.direction == key.direction
            && *self.service == *key.service
            && *self.name == *key.route
    }

    fn count(&mut self, registry: &Registry, worker: usize, protocol: Protocol, outcome: Outcome) -> &Count {
        let known = self.ways.iter().position(|way| way.protocol == protocol && way.outcome == outcome);
        let at = known.unwrap_or_else(|| {
            let labels = |tier| self.labels(tier, protocol, outcome);
            let family = "outrigger_requests";
            let count = registry.governor.find(worker, |table| &mut table.requests, family, labels);
            self.ways.push(Way { protocol, outcome, count });
            self.ways.len() - 1
        });
        &self.ways[at].count.cells
    }

    fn labels(&self, tier: Tier, protocol: Protocol, outcome: Outcome) -> Labels {
        let Outcome { class, grpc, reason } = outcome;
        let direction = ("direction", self.direction.name());
        let [service, route] = names(tier, &self.service, &self.name);
        let class = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"][usize::from(class)];
        if tier == Tier::Sink {
            return Labels::new(&[direction, ("service", service), ("route", route), ("status", class)]);
        }
        let grpc = match grpc {
            Some(status) if status > MOST_GRPC => OTHER.to_owned(),
            Some(status) => status.to_string(),
            None => String::new(),
        };
        Labels::new(&[
            direction,
            ("protocol", protocol.name()),
            ("service", service),
            ("route", route),
            ("status", class),
            ("grpc_status", &grpc),
            ("reason", word(reason)),
        ])
    }
}

fn names<'a>(tier: Tier, service: &'a str, route: &'a str) -> [&'a str; 2] {
    match tier {
        Tier::Own => [service, route],
        Tier::Other | Tier::Sink => [OTHER, OTHER],
    }
}

fn word(reason: Option<Reason>) -> &'static str {
    reason.map_or("", Reason::as_str)
}

// === impl Connections ===

impl Connections {
    fn new(registry: &Registry, worker: usize, key: &Key<'_>, record: &ConnectionRecord<'_>) -> Self {
        let Key { direction, service, route_hash: hash, .. } = *key;
        let ConnectionRecord { protocol, reason, .. } = *record;
        let mutual = key.peer.is_some();
        let labels = |tier| {
            let direction = ("direction", direction.name());
            let service = ("service", if tier == Tier::Own { service } else { OTHER });
            if tier == Tier::Sink {
                return Labels::new(&[direction, service]);
            }
            Labels::new(&[
                direction,
                ("protocol", protocol.name()),
                ("security", if mutual { "mutual" } else { "none" }),
                service,
                ("reason", word(reason)),
            ])
        };
        let family = "outrigger_connections";
        let cells = registry.governor.find(worker, |table| &mut table.connections, family, labels);
        Self { hash, direction, protocol, mutual, reason, service: service.into(), cells }
    }

    fn are(&self, key: &Key<'_>, record: &ConnectionRecord<'_>) -> bool {
        self.hash == key.route_hash
            && (self.direction, self.protocol) == (key.direction, record.protocol)
            && (self.mutual, self.reason) == (key.peer.is_some(), record.reason)
            && *self.service == *key.service
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
