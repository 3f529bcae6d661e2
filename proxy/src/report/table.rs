//! What one worker has counted for the next report: an edge for each side, service, route and peer.
//!
//! Recording finds an edge by a hash of what the record has and adds to it; only the first record of an edge, of a way to
//! end and of a longer duration allocates. An edge that was not used for [`LINGER`] reports is given back with its
//! histogram.
//!
//! Names are those of the metrics. An edge beyond the limit counts as `other`: nothing is lost but who it was.

use std::{
    hash::{BuildHasher as _, Hash},
    sync::{Arc, atomic::Ordering::Relaxed},
};

use foldhash::fast::RandomState;
use hashbrown::{HashTable, hash_table::Entry};
use outrigger_certs::SpiffeId;
use outrigger_core::verdict::Reason;
use outrigger_proto::{
    limits::{MAX_REPORT_OUTCOMES, MAX_REPORT_TEXT_BYTES},
    spec::{Durations, EdgeKey, EdgeTraffic, OutcomeCount, Side},
};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Given, MAX_EDGES, OTHER, Reports};
use crate::{
    metrics,
    telemetry::{ConnectionRecord, Direction, RequestRecord},
};

/// Reports in a row in which an edge has nothing to tell: a minute.
const LINGER: u32 = 60;
/// Ways to end; the rest is told apart by its class only, of which there are six.
const MAX_WAYS: usize = MAX_REPORT_OUTCOMES - 6;
/// UNKNOWN, which is what gRPC says of a status that it does not have.
const GRPC_UNKNOWN: u8 = 2;

pub struct Table {
    reports: Arc<Reports>,
    hasher: RandomState,
    edges: HashTable<Edge>,
    /// Edges that have something to tell.
    active: usize,
    /// It is among those that are asked.
    counted: bool,
}

/// What an edge is found by, as the record has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key<'a> {
    side: Side,
    service: &'a str,
    route: &'a str,
    peer: Option<&'a SpiffeId>,
}

struct Edge {
    side: Side,
    service: Arc<str>,
    route: Arc<str>,
    peer: Option<SpiffeId>,
    security: Option<Arc<str>>,
    ways: Vec<(Way, u64)>,
    durations: Durations,
    received: u64,
    sent: u64,
    connections: u64,
    connections_failed: u64,
    active: bool,
    /// Reports since it had something to tell.
    idle: u32,
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Way {
    class: u8,
    grpc: Option<u8>,
    reason: &'static str,
}

// === impl Table ===

impl Table {
    pub fn new(reports: &Arc<Reports>) -> Self {
        Self {
            reports: Arc::clone(reports),
            hasher: RandomState::default(),
            edges: HashTable::new(),
            active: 0,
            counted: false,
        }
    }

    pub fn request(&mut self, record: &RequestRecord<'_>) {
        let service =
            metrics::service(record.direction, record.service, record.peer.is_some(), record.reason);
        let side = side(record.direction);
        let edge = self.edge(Key { side, service, route: record.route, peer: record.peer });
        edge.ended(Way {
            class: match record.status {
                100..=599 => (record.status / 100) as u8,
                _ => 0,
            },
            grpc: record.grpc_status.map(|status| match status {
                0..=16 => status as u8,
                _ => GRPC_UNKNOWN,
            }),
            reason: record.reason.map_or("", Reason::as_str),
        });
        edge.durations.record(record.duration);
        edge.moved(record.received, record.sent, record.security);
    }

    pub fn connection(&mut self, record: &ConnectionRecord<'_>) {
        let service =
            metrics::service(record.direction, record.service, record.peer.is_some(), record.reason);
        let side = side(record.direction);
        let edge = self.edge(Key { side, service, route: "", peer: record.peer });
        edge.connections += 1;
        edge.connections_failed += u64::from(record.reason.is_some());
        edge.moved(record.received, record.sent, record.security);
    }

    /// Answers the question of [`super::collect`].
    pub fn give(&mut self, worker: usize, answer: &mpsc::Sender<Given>) {
        // There is room for one answer of each worker; whoever asked may be gone.
        if let Err(TrySendError::Full((_, taken)) | TrySendError::Closed((_, taken))) =
            answer.try_send((worker, self.take()))
        {
            self.reports.hand_over(taken);
        }
    }

    /// What there is to tell since the last time, and forgets it.
    fn take(&mut self) -> Vec<EdgeTraffic> {
        let had = self.edges.len();
        let mut taken = Vec::with_capacity(self.active);
        self.edges.retain(|edge| {
            if edge.active {
                taken.push(edge.take());
            } else {
                edge.idle += 1;
            }
            edge.idle < LINGER
        });
        self.active = 0;
        if self.edges.len() < had {
            let Self { edges, hasher, .. } = self;
            edges.shrink_to_fit(|edge| hasher.hash_one(edge.key()));
            if edges.is_empty() {
                self.rests();
            }
        }
        taken
    }

    /// Nobody needs to ask it.
    fn rests(&mut self) {
        if std::mem::replace(&mut self.counted, false) {
            self.reports.tables.fetch_sub(1, Relaxed);
        }
    }

    fn edge(&mut self, key: Key<'_>) -> &mut Edge {
        let key = if self.edges.len() < MAX_EDGES || self.has_room_for(key) { key } else { key.folded() };
        let Self { reports, hasher, edges, active, counted } = self;
        let entry =
            edges.entry(hasher.hash_one(key), |edge| edge.key() == key, |edge| hasher.hash_one(edge.key()));
        let edge = match entry {
            Entry::Occupied(found) => found.into_mut(),
            Entry::Vacant(place) => {
                if !std::mem::replace(counted, true) {
                    reports.tables.fetch_add(1, Relaxed);
                }
                place.insert(Edge::new(key)).into_mut()
            }
        };
        if !edge.active {
            edge.active = true;
            edge.idle = 0;
            *active += 1;
        }
        edge
    }

    /// In a table that is full: what is not used now makes room.
    fn has_room_for(&mut self, key: Key<'_>) -> bool {
        let found = self.edges.find(self.hasher.hash_one(key), |edge| edge.key() == key);
        match found {
            Some(edge) if edge.active => true,
            Some(_) => self.active < MAX_EDGES,
            None if self.active < MAX_EDGES => {
                self.edges.retain(|edge| edge.active);
                true
            }
            None => false,
        }
    }
}

impl Drop for Table {
    /// What a worker leaves behind belongs into the last report.
    fn drop(&mut self) {
        let left = self.take();
        if !left.is_empty() {
            self.reports.hand_over(left);
        }
        self.rests();
    }
}

fn side(direction: Direction) -> Side {
    match direction {
        Direction::Outbound => Side::Outbound,
        Direction::Inbound => Side::Inbound,
    }
}

// === impl Key ===

impl Key<'_> {
    fn folded(self) -> Key<'static> {
        Key { side: self.side, service: OTHER, route: OTHER, peer: None }
    }
}

// === impl Edge ===

impl Edge {
    fn new(key: Key<'_>) -> Self {
        Self {
            side: key.side,
            service: key.service.into(),
            route: key.route.into(),
            peer: key.peer.cloned(),
            security: None,
            ways: Vec::new(),
            durations: Durations::new(),
            received: 0,
            sent: 0,
            connections: 0,
            connections_failed: 0,
            active: false,
            idle: 0,
        }
    }

    fn key(&self) -> Key<'_> {
        Key { side: self.side, service: &self.service, route: &self.route, peer: self.peer.as_ref() }
    }

    fn ended(&mut self, way: Way) {
        if let Some((_, count)) = self.ways.iter_mut().find(|(known, _)| *known == way) {
            *count += 1;
        } else if self.ways.len() < MAX_WAYS || way.reason == OTHER {
            self.ways.push((way, 1));
        } else {
            self.ended(Way { grpc: None, reason: OTHER, ..way });
        }
    }

    fn moved(&mut self, received: u64, sent: u64, security: &str) {
        self.received = self.received.saturating_add(received);
        self.sent = self.sent.saturating_add(sent);
        if !security.is_empty() && self.security.as_deref() != Some(security) {
            self.security = Some(security.into());
        }
    }

    /// Keeps the room, for what comes next is alike.
    fn take(&mut self) -> EdgeTraffic {
        let ended = self.ways.iter().filter(|(_, count)| *count > 0);
        let traffic = EdgeTraffic {
            key: EdgeKey {
                side: self.side,
                service: told(&self.service),
                route: told(&self.route),
                peer: self.peer.clone(),
            },
            security: self.security.clone(),
            outcomes: ended.map(|(way, count)| way.outcome(*count)).collect(),
            durations: self.durations.clone(),
            received: self.received,
            sent: self.sent,
            connections: self.connections,
            connections_failed: self.connections_failed,
        };
        self.ways.iter_mut().for_each(|(_, count)| *count = 0);
        self.durations.reset();
        (self.received, self.sent) = (0, 0);
        (self.connections, self.connections_failed) = (0, 0);
        self.active = false;
        traffic
    }
}

/// A name as long as a report takes it. Ours are far shorter.
fn told(name: &Arc<str>) -> Arc<str> {
    if name.len() <= MAX_REPORT_TEXT_BYTES {
        return Arc::clone(name);
    }
    name[..name.floor_char_boundary(MAX_REPORT_TEXT_BYTES)].into()
}

// === impl Way ===

impl Way {
    fn outcome(self, count: u64) -> OutcomeCount {
        OutcomeCount { status_class: self.class, grpc_status: self.grpc, reason: self.reason.into(), count }
    }
}

#[cfg(test)]
mod tests;
