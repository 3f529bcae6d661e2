//! What one worker has counted for the next report: an edge for each side, service, route and peer.
//!
//! Recording finds an edge by the hash of its key and adds to it; only the first record of an edge, of an outcome, of a
//! longer duration and of another cipher allocates. An edge that was not used for [`LINGER`] reports is given back with its histogram.
//!
//! An edge beyond the limit counts as `other`: nothing is lost but who it was. Outcomes are few by themselves; [`fold`]
//! keeps them within what a report may have.
//!
//! [`fold`]: super::fold

use std::sync::{Arc, atomic::Ordering::Relaxed};

use hashbrown::{HashTable, hash_table::Entry};
use outrigger_certs::SpiffeId;
use outrigger_core::verdict::Reason;
use outrigger_proto::{
    limits::MAX_REPORT_TEXT_BYTES,
    spec::{Durations, EdgeKey, EdgeTraffic, OutcomeCount, Side},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Given, MAX_EDGES, OTHER, Reports};
use crate::telemetry::{ConnectionRecord, Direction, Key, MOST_GRPC, Outcome, RequestRecord};

/// Reports in a row in which an edge has nothing to tell: a minute.
const LINGER: u32 = 60;
/// UNKNOWN, which is what gRPC says of a status that it does not have.
const GRPC_UNKNOWN: u8 = 2;

pub(crate) struct Table {
    reports: Arc<Reports>,
    edges: HashTable<Edge>,
    /// Edges that have something to tell.
    active: usize,
    /// It is among those that are asked.
    counted: bool,
}

struct Edge {
    hash: u64,
    direction: Direction,
    service: Arc<str>,
    route: Arc<str>,
    peer: Option<SpiffeId>,
    security: Option<Arc<str>>,
    /// How requests ended, and how many: few, so a look at each is faster than another hash.
    outcomes: Vec<(Outcome, u64)>,
    durations: Durations,
    received: u64,
    sent: u64,
    connections: u64,
    connections_failed: u64,
    active: bool,
    /// Reports since it had something to tell.
    idle: u32,
}

// === impl Table ===

impl Table {
    pub(crate) fn new(reports: &Arc<Reports>) -> Self {
        Self { reports: Arc::clone(reports), edges: HashTable::new(), active: 0, counted: false }
    }

    pub(crate) fn request(&mut self, key: &Key<'_>, outcome: Outcome, record: &RequestRecord<'_>) {
        let edge = self.edge(key);
        edge.ended(outcome);
        edge.durations.record(record.duration);
        edge.moved(record.received, record.sent, record.security);
    }

    pub(crate) fn connection(&mut self, key: &Key<'_>, record: &ConnectionRecord<'_>) {
        let edge = self.edge(key);
        edge.connections += 1;
        edge.connections_failed += u64::from(record.reason.is_some());
        edge.moved(record.received, record.sent, record.security);
    }

    /// Answers the question of [`super::collect`].
    pub(crate) fn give(&mut self, worker: usize, answer: &mpsc::Sender<Given>) {
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
            self.edges.shrink_to_fit(|edge| edge.hash);
            if self.edges.is_empty() {
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

    fn edge(&mut self, key: &Key<'_>) -> &mut Edge {
        let folded = folded(key.direction);
        let key = if self.edges.len() < MAX_EDGES || self.has_room_for(key) { key } else { &folded };
        let Self { reports, edges, active, counted } = self;
        let edge = match edges.entry(key.edge_hash, |edge| edge.is(key), |edge| edge.hash) {
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
    fn has_room_for(&mut self, key: &Key<'_>) -> bool {
        match self.edges.find(key.edge_hash, |edge| edge.is(key)) {
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

/// Edges that there is no room for. Any hash will do for a key of ours, if it is always the same.
fn folded(direction: Direction) -> Key<'static> {
    Key { direction, service: OTHER, route: OTHER, peer: None, route_hash: 0, edge_hash: direction as u64 }
}

// === impl Edge ===

impl Edge {
    fn new(key: &Key<'_>) -> Self {
        Self {
            hash: key.edge_hash,
            direction: key.direction,
            service: key.service.into(),
            route: key.route.into(),
            peer: key.peer.cloned(),
            security: None,
            outcomes: Vec::new(),
            durations: Durations::new(),
            received: 0,
            sent: 0,
            connections: 0,
            connections_failed: 0,
            active: false,
            idle: 0,
        }
    }

    fn is(&self, key: &Key<'_>) -> bool {
        self.hash == key.edge_hash
            && self.direction == key.direction
            && self.peer.as_ref() == key.peer
            && *self.service == *key.service
            && *self.route == *key.route
    }

    fn ended(&mut self, mut outcome: Outcome) {
        if outcome.grpc > Some(MOST_GRPC) {
            outcome.grpc = Some(GRPC_UNKNOWN);
        }
        match self.outcomes.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, count)) => *count += 1,
            None => self.outcomes.push((outcome, 1)),
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
        let happened = self.outcomes.iter().filter(|(_, count)| *count > 0);
        let traffic = EdgeTraffic {
            key: EdgeKey {
                side: match self.direction {
                    Direction::Outbound => Side::Outbound,
                    Direction::Inbound => Side::Inbound,
                },
                service: told(&self.service),
                route: told(&self.route),
                peer: self.peer.clone(),
            },
            security: self.security.clone(),
            outcomes: happened.map(|(outcome, count)| count_of(*outcome, *count)).collect(),
            durations: self.durations.clone(),
            received: self.received,
            sent: self.sent,
            connections: self.connections,
            connections_failed: self.connections_failed,
        };
        self.outcomes.iter_mut().for_each(|(_, count)| *count = 0);
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

fn count_of(outcome: Outcome, count: u64) -> OutcomeCount {
    let Outcome { class, grpc, reason } = outcome;
    let reason = reason.map_or("", Reason::as_str).into();
    OutcomeCount { status_class: class, grpc_status: grpc, reason, count }
}

#[cfg(test)]
mod tests;
