//! What traffic there was, told about once a second to every control plane that this proxy has a stream to.
//!
//! ```text
//!  worker: record ─▶ Table ──┐ once a second                        ┌─▶ stream ─▶ control plane
//!  worker: record ─▶ Table ──┼──────────────▶ collect ─▶ Ring ──────┤
//!                  events ───┘                            ▲  ▲      └─▶ stream ─▶ control plane
//!                                                         └──┴──── acknowledgements
//! ```
//!
//! - [`table`]: what one worker has counted since it was last asked.
//! - [`collect`]: asks the workers, adds up, and looks at the certificate ([`near_end`]).
//! - [`ring`]: the reports that somebody may still need; who has what.
//! - [`stream`]: to each control plane, with a cursor of its own.
//!
//! Numbers are exact and arrive once, however often a stream breaks. They are lost where they have to be: when a process
//! is killed (what it had not sent: about a second), and when nobody takes them for so long that the ring is full, which
//! is counted. Nothing here is on a request's way but its table.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use outrigger_proto::{
    limits::MAX_REPORT_EVENTS,
    pb,
    spec::{EdgeTraffic, ProxyEvent, ProxyEventKind},
};
use tokio::sync::watch;

use crate::{metrics, worker::now};

pub mod collect;
mod fold;
mod near_end;
mod ring;
pub mod stream;
mod table;

pub use collect::Given;
pub(crate) use table::Table;

use ring::{Counts, Ring};

/// What services and routes are called that there are too many of.
const OTHER: &str = "other";
/// Edges that a proxy tells of in a second, and that a worker counts. A pod that talks to more peers in one second is a
/// gateway, and who looks at that wants its services, not its callers.
const MAX_EDGES: usize = 500;

/// The reports of this process, and what is about to become one.
pub struct Reports {
    state: Mutex<State>,
    /// Tables with something in them: without any nobody is asked.
    tables: AtomicUsize,
    /// The number of the newest report.
    newest: watch::Sender<u64>,
}

struct State {
    ring: Ring,
    /// Where the next report begins.
    since: Instant,
    /// From workers that have ended.
    left: Vec<EdgeTraffic>,
    events: VecDeque<(Instant, ProxyEventKind, Arc<str>)>,
    events_dropped: u64,
}

// === impl Reports ===

impl Reports {
    pub fn new() -> Arc<Self> {
        let epoch = loop {
            let epoch = rand::random();
            if epoch != 0 {
                break epoch;
            }
        };
        let state = State {
            ring: Ring::new(epoch),
            since: now(),
            left: Vec::new(),
            events: VecDeque::new(),
            events_dropped: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            tables: AtomicUsize::new(0),
            newest: watch::Sender::new(0),
        })
    }

    /// Goes with the next report. Of more than one report takes, the latest are kept.
    pub fn event(&self, kind: ProxyEventKind, message: impl Into<Arc<str>>) {
        let mut state = self.state();
        if state.events.len() == MAX_REPORT_EVENTS {
            state.events.pop_front();
            state.events_dropped += 1;
        }
        state.events.push_back((now(), kind, message.into()));
    }

    /// For metrics.
    pub fn standing(&self) -> metrics::Reports {
        let state = self.state();
        let Counts { acknowledged, merged, dropped, refused } = state.ring.counts();
        metrics::Reports {
            acknowledged,
            merged,
            dropped,
            refused,
            waiting: state.ring.len() as u64,
            events_dropped: state.events_dropped,
        }
    }

    /// Makes a report of what the workers have handed over, if there is anything to report.
    fn close(&self, edges: Vec<EdgeTraffic>, now: Instant) {
        let mut state = self.state();
        let edges = fold::edges(mem::take(&mut state.left).into_iter().chain(edges), MAX_EDGES);
        let began = mem::replace(&mut state.since, now);
        if edges.is_empty() && state.events.is_empty() {
            return;
        }
        let events = state.events.drain(..).map(|(at, kind, message)| ProxyEvent {
            ago: now.saturating_duration_since(at),
            kind,
            message,
        });
        let events = events.collect();
        let newest = state.ring.push(edges, events, began, now);
        drop(state);
        self.newest.send_replace(newest);
    }

    /// Tells the last that there is, and gives up at the deadline.
    pub async fn flush(&self, within: Duration) {
        self.close(Vec::new(), now());
        let deadline = tokio::time::Instant::now() + within;
        while self.state().ring.is_owed() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    // --- for streams ---

    fn on_connected(&self, plane: usize) {
        self.state().ring.on_connected(plane);
    }

    fn on_lost(&self, plane: usize) {
        self.state().ring.on_lost(plane, now());
    }

    fn on_unable(&self, plane: usize) {
        self.state().ring.on_unable(plane);
    }

    fn on_ack(&self, plane: usize, sequence: u64) {
        self.state().ring.on_ack(plane, sequence, now());
    }

    fn on_refused(&self, plane: usize, sequence: u64) {
        self.state().ring.on_refused(plane, sequence, now());
    }

    /// The first report after the one with this number.
    fn after(&self, plane: usize, sequence: u64) -> Option<pb::TrafficReport> {
        self.state().ring.after(plane, sequence, now())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- for tables ---

    fn hand_over(&self, edges: Vec<EdgeTraffic>) {
        self.state().left.extend(edges);
    }

    fn has_tables(&self) -> bool {
        self.tables.load(Relaxed) > 0
    }
}

#[cfg(test)]
mod tests;
