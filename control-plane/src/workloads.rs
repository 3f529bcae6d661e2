//! Who is there: the presence of workloads, as their streams come and go. Sans-IO.
//!
//! ```text
//!                on_hello                     on_disconnected, not draining
//!   (nobody) ───────────────▶ ┌───────────┐ ────────────────────────────────▶ ┌────────────────┐
//!      ▲                      │ Connected │                                   │ Leased {until} │
//!      │                      └───────────┘ ◀──────────────────────────────── └────────────────┘
//!      │   on_disconnected, draining │          on_hello of the same process           │  ▲
//!      ├─────────────────────────────┘                                                 │  │ restore: 30 s
//!      └───────────────────────────────────────────────────────────────────────────────┘
//!             handle_timeout at `until`; on_hello of another process in the same place
//! ```
//!
//! Leased workloads stay endpoints: 5 s bridge a lost connection, 30 s a restart of ours. Draining withdraws
//! at once, whatever happens to the stream.
//!
//! Call contract: every `on_*` and `handle_timeout` returns effects, to be applied in order; `handle_timeout`
//! is due at `poll_timeout`. It holds no stream, verifies nothing and writes nothing.

pub mod store;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Serve, State};

use crate::index::{Workload, WorkloadId};

/// How long a workload stays when its stream ended without a word.
pub const LEASE: Duration = Duration::from_secs(5);
/// How long a workload has to come back after a restart of the control plane.
pub const RESTART_LEASE: Duration = Duration::from_secs(30);

/// A configuration stream of this process, numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What a workload is, as attested and as it says of itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Presence {
    pub id: WorkloadId,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub zone: Arc<str>,
    pub serves: Vec<Serve>,
    /// Build of the proxy.
    pub version: String,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// To be applied to the index.
    Changed(Arc<Workload>),
    Gone(WorkloadId),
    /// Another stream speaks for the process now: this one is to be ended.
    Replaced(StreamId),
}

#[derive(Clone, Debug)]
pub struct Entry {
    pub presence: Presence,
    pub state: State,
    pub phase: Phase,
    registered: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Connected { stream: StreamId },
    Leased { until: Instant },
}

#[derive(Debug, Default)]
pub struct Workloads {
    entries: BTreeMap<WorkloadId, Entry>,
    streams: HashMap<StreamId, WorkloadId>,
    registrations: u64,
}

impl Workloads {
    /// Takes over what an earlier process of ours knew.
    pub fn restore(
        &mut self,
        known: impl IntoIterator<Item = (Presence, State)>,
        now: Instant,
    ) -> Vec<Effect> {
        let phase = Phase::Leased { until: now + RESTART_LEASE };
        known.into_iter().map(|(presence, state)| self.put(presence, state, phase)).collect()
    }

    /// A stream has introduced itself; whether it may is settled.
    pub fn on_hello(&mut self, stream: StreamId, presence: Presence, state: State) -> Vec<Effect> {
        let mut effects = Vec::new();
        let id = presence.id.clone();
        if let Some(Phase::Connected { stream: old }) = self.entries.get(&id).map(|entry| entry.phase) {
            self.streams.remove(&old);
            effects.push(Effect::Replaced(old));
        }
        // The restarted self of a process that was lost. One that is still connected may be a neighbour.
        let same_place = |other: &Presence| {
            other.id.identity == id.identity
                && other.id != id
                && other.addresses == presence.addresses
                && other.serves == presence.serves
        };
        let is_lost =
            |entry: &mut Entry| matches!(entry.phase, Phase::Leased { .. }) && same_place(&entry.presence);
        let lost: Vec<_> = self.entries.extract_if(.., |_, entry| is_lost(entry)).collect();

        self.streams.insert(stream, id);
        effects.push(self.put(presence, state, Phase::Connected { stream }));
        effects.extend(lost.into_iter().map(|(id, _)| Effect::Gone(id)));
        effects
    }

    pub fn knows(&self, id: &WorkloadId) -> bool {
        self.entries.contains_key(id)
    }

    pub fn is_connected(&self, identity: &SpiffeId) -> bool {
        self.streams.values().any(|id| id.identity == *identity)
    }

    /// Whose state says for the first time that it drains.
    pub fn begins_to_drain(&self, stream: StreamId, state: &State) -> Option<&WorkloadId> {
        let entry = self.entries.get(self.streams.get(&stream)?)?;
        (state.draining && !entry.state.draining).then_some(&entry.presence.id)
    }

    pub fn on_state(&mut self, stream: StreamId, state: State) -> Vec<Effect> {
        let entry = self.streams.get(&stream).and_then(|id| self.entries.get_mut(id));
        let Some(entry) = entry else { return Vec::new() };
        entry.state = state;
        vec![Effect::Changed(entry.workload())]
    }

    pub fn on_disconnected(&mut self, stream: StreamId, now: Instant) -> Vec<Effect> {
        let Some(id) = self.streams.remove(&stream) else { return Vec::new() };
        let Some(entry) = self.entries.get_mut(&id) else { return Vec::new() };
        if entry.state.draining {
            self.entries.remove(&id);
            return vec![Effect::Gone(id)];
        }
        entry.phase = Phase::Leased { until: now + LEASE };
        Vec::new()
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Effect> {
        let is_over = |entry: &mut Entry| matches!(entry.phase, Phase::Leased { until } if until <= now);
        self.entries.extract_if(.., |_, entry| is_over(entry)).map(|(id, _)| Effect::Gone(id)).collect()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let ends = self.entries.values().filter_map(|entry| match entry.phase {
            Phase::Leased { until } => Some(until),
            Phase::Connected { .. } => None,
        });
        ends.min()
    }

    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    fn put(&mut self, presence: Presence, state: State, phase: Phase) -> Effect {
        self.registrations += 1;
        let id = presence.id.clone();
        let entry = Entry { presence, state, phase, registered: self.registrations };
        let workload = entry.workload();
        self.entries.insert(id, entry);
        Effect::Changed(workload)
    }
}

impl Entry {
    fn workload(&self) -> Arc<Workload> {
        let serving = self.state.ready && !self.state.draining;
        let ready_since = self.state.ready_since;
        Arc::new(Workload { serving, ready_since, registered: self.registered, ..self.presence.workload() })
    }
}

impl Presence {
    /// What it is, apart from the state it is in.
    pub fn workload(&self) -> Workload {
        let Self { id, labels, addresses, zone, serves, version: _ } = self.clone();
        Workload { id, labels, addresses, zone, serves, serving: false, ready_since: None, registered: 0 }
    }
}
