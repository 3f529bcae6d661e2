//! A circuit breaker per endpoint: which endpoints of one upstream get requests, as one worker sees them.
//!
//! ```text
//!                   a detector trips, and the floor allows it
//!        ┌────────┐ ─────────────────────────────────────────▶ ┌────────┐
//!   ────▶│ closed │   active checks fail, min_ready allows it  │  open  │◀──────────────────┐
//!        └────────┘ ◀───────────────────────────────────────── └────────┘                   │
//!          ▲    ▲     active checks succeed (if only they           │ min(base * n, max)    │ a probe fails
//!          │    │     had opened it); the floor needs it back;      │ + up to a tenth       │ (n + 1), or
//!          │    │     the policy is turned off                      │ has passed            │ active checks
//!          │    │                                                   ▼                       │ fail
//!          │    └────────────────────────────────────────────── ┌───────────┐               │
//!          │          the floor needs it back; turned off       │ half-open │───────────────┘
//!          └─────────────────────────────────────────────────── └───────────┘
//!                     `probes` successes in a row: of single requests, or of active checks
//! ```
//!
//! - **Closed**: requests go there and their ends are counted. Detectors: failures in a row, connect failures in a row,
//!   the share of failures in a window (all judged at each failure); success rate and latency against the others
//!   ([`Breakers::handle_timeout`], ten times a window while there is traffic).
//! - **Open**: no requests. n counts ejections; it falls by one for each base period that the circuit stays closed.
//!   Alone with its opinion in the fleet, a proxy waits less ([`Breakers::on_fleet`]).
//! - **Half-open**: one request at a time, given out by [`Breakers::probe`], because a picker that compares two drawn
//!   endpoints would hardly find it. A stream whose head has come counts as a success once it has lasted
//!   [`STREAM_PROVES`] ([`Breakers::on_head`]), so that a call of an hour does not keep a circuit half-open for an hour.
//!
//! **The floor**, in hosts. Circuits that are not closed through a detector: at most `max_ejected_percent` of all
//! endpoints, rounded up, so that 1 of 2 can be. Circuits that are closed: at least `min_ready`, counting active checks
//! too. What the floor does not allow stays closed, keeps its counters and is tried again at its next failure.
//! Endpoints that leave can make it take others back (cause `policy`).
//!
//! **Counters** start at zero when a circuit closes. Only requests that were dispatched in the present state count: a
//! failure of before the ejection says nothing about the endpoint that has come back.
//!
//! A request is a [`Trial`] from its dispatch to its end and survives [`Breakers::relink`]. Recording allocates nothing
//! but an endpoint's memory at its first outcome; words are made at a transition only.
//!
//! It chooses no endpoint, retries nothing and does no checks itself ([`crate::health`]). Whether endpoints that are not
//! admitted are used nevertheless (panic) is the picker's decision: their outcomes then count for nothing.

use std::{
    collections::{BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use outrigger_proto::spec::{Circuit, Ejection};
use rand_core::Rng;

mod compare;
mod endpoint;
mod evidence;
mod floor;
mod policy;
mod transitions;
mod trial;
mod window;

pub use evidence::What;
pub use floor::most_ejected;
pub use transitions::Change;
pub use trial::{Ended, Trial, classify};

use endpoint::{Endpoint, GONE, NEVER};
use policy::Policy;
use window::At;

/// A stream in the half-open state that goes on for so long after its head is a success.
pub const STREAM_PROVES: Duration = Duration::from_secs(10);

/// Connect failures within this time are of one connection for which several requests have waited, and count once.
const ONE_DIAL: u64 = 1_000_000;

/// The circuits of one upstream's endpoints.
#[derive(Debug)]
pub struct Breakers {
    /// `None`: outlier ejection is off; active checks still count.
    policy: Option<Policy>,
    origin: Instant,
    /// The slot of each endpoint.
    order: Vec<u32>,
    /// Whether it takes a request now; by index and apart from the rest, so that asking touches one byte.
    gates: Vec<bool>,
    slots: Vec<Endpoint>,
    free: Vec<u32>,
    /// Circuits that are closed.
    admitted: usize,
    /// Circuits that a detector has opened and that are not closed again.
    ejected: usize,
    /// Circuits that are closed only because of the floor although active checks fail.
    held: usize,
    /// What has a time: the end of an ejection, or a probe that will have lasted long enough.
    timers: BTreeSet<(At, u32)>,
    /// Half-open without a probe under way, by how long they have waited.
    waiting: BTreeSet<(At, u32)>,
    /// Endpoints with outcomes in a window that is compared.
    recent: Vec<u32>,
    next_comparison: Option<At>,
    events: VecDeque<(u32, Change)>,
}

impl Breakers {
    pub fn new(policy: &Ejection, endpoints: usize, now: Instant) -> Self {
        let mut breakers = Self {
            policy: policy.0.as_ref().map(Policy::new),
            origin: now,
            order: Vec::new(),
            gates: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            admitted: 0,
            ejected: 0,
            held: 0,
            timers: BTreeSet::new(),
            waiting: BTreeSet::new(),
            recent: Vec::new(),
            next_comparison: None,
            events: VecDeque::new(),
        };
        breakers.relink(&vec![None; endpoints], now);
        breakers
    }

    /// Closed for an index that there is none of.
    pub fn circuit(&self, index: usize) -> Circuit {
        self.endpoint(index).map_or(Circuit::Closed, |endpoint| endpoint.circuit)
    }

    /// Closed, or half-open without a probe under way.
    #[inline]
    pub fn admits(&self, index: usize) -> bool {
        self.gates.get(index).copied().unwrap_or(false)
    }

    /// A half-open endpoint that wants the next request, the one that has waited longest of those for which `usable`
    /// holds. It gets the place by [`Self::on_dispatch`].
    #[inline]
    pub fn probe(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        if self.waiting.is_empty() {
            return None;
        }
        self.waiting.iter().map(|(_, slot)| self.slots[*slot as usize].index as usize).find(|at| usable(*at))
    }

    /// A request is about to go there. In the half-open state the first one is the probe.
    pub fn on_dispatch(&mut self, index: usize, _now: Instant) -> Trial {
        let Some(&slot) = self.order.get(index) else { return Trial { slot: GONE, round: 0 } };
        let endpoint = &mut self.slots[slot as usize];
        if endpoint.circuit == Circuit::HalfOpen {
            if endpoint.probing {
                return Trial { slot: GONE, round: 0 };
            }
            self.waiting.remove(&(endpoint.due, slot));
            endpoint.start_probe();
            self.gates[index] = false;
        }
        Trial { slot, round: endpoint.round }
    }

    /// The answer's head has come and is no failure, but the answer may go on for long. Only a probe makes use of it.
    pub fn on_head(&mut self, trial: &Trial, now: Instant) {
        let due = self.at(now).saturating_add(policy::nanoseconds(STREAM_PROVES));
        if let Some(endpoint) = self.slots.get_mut(trial.slot as usize)
            && endpoint.round == trial.round
            && endpoint.probing
            && endpoint.due == NEVER
        {
            endpoint.due = due;
            self.timers.insert((due, trial.slot));
        }
    }

    /// A request has ended. `latency`: from its dispatch to the answer's head, or to its end where there was none.
    pub fn on_outcome(
        &mut self,
        trial: Trial,
        ended: Ended,
        latency: Duration,
        now: Instant,
        rng: &mut impl Rng,
    ) {
        let Trial { slot, round } = trial;
        let at = self.at(now);
        let Some(endpoint) = self.slots.get_mut(slot as usize).filter(|one| one.round == round) else {
            return;
        };
        match endpoint.circuit {
            Circuit::Open => {}
            Circuit::Closed => {
                let Some(policy) = &self.policy else { return };
                let Some(failed) = endpoint.record(policy, ended, latency, at) else { return };
                if let (Some(every), false) = (policy.compare_every, endpoint.listed) {
                    endpoint.listed = true;
                    self.recent.push(slot);
                    self.next_comparison.get_or_insert_with(|| at.saturating_add(every));
                }
                if failed && let Some(why) = endpoint.tripped(policy, at) {
                    self.eject(slot, why, at, rng);
                }
            }
            Circuit::HalfOpen => {
                self.end_probe(slot, ended, latency, at, rng);
                self.settle(at);
            }
        }
    }

    /// An active check has ended. A good one counts like a probe's success; a bad one is nothing before it is the
    /// change of [`Self::on_health`].
    pub fn on_check(&mut self, index: usize, good: bool, now: Instant) {
        let at = self.at(now);
        let Some(&slot) = self.order.get(index) else { return };
        if good && self.slots[slot as usize].circuit == Circuit::HalfOpen {
            self.pass(slot, false, at);
            self.settle(at);
        }
    }

    /// Active checks have changed their mind.
    pub fn on_health(&mut self, index: usize, healthy: bool, now: Instant) {
        let at = self.at(now);
        let Some(&slot) = self.order.get(index) else { return };
        if self.slots[slot as usize].sick == healthy {
            self.change_health(slot, healthy, at);
            self.settle(at);
        }
    }

    /// Of `callers` proxies, `ejected_by` (this one included) have ejected the endpoint. While that is this one alone
    /// among enough, its ejection lasts the policy's share of its time: the first to notice is alone for a moment, so
    /// those who follow before it is over give it its full time again. Whether that changed anything.
    pub fn on_fleet(&mut self, index: usize, callers: u32, ejected_by: u32, _now: Instant) -> bool {
        let lone = self.policy.as_ref().and_then(|policy| policy.spec.lone_opinion);
        let lone = lone.filter(|lone| callers >= lone.min_callers.get() && ejected_by <= 1);
        let Some(&slot) = self.order.get(index) else { return false };
        let endpoint = &mut self.slots[slot as usize];
        let lasts = endpoint.term.saturating_sub(endpoint.since);
        let due = lone.map_or(endpoint.term, |lone| {
            endpoint.since + lasts / 100 * u64::from(lone.shortened_percent.min(100))
        });
        if endpoint.circuit != Circuit::Open || endpoint.due == NEVER || endpoint.due == due {
            return false;
        }
        self.timers.remove(&(endpoint.due, slot));
        endpoint.due = due;
        self.timers.insert((due, slot));
        true
    }

    /// When nobody takes a request although there are endpoints: how long until somebody may. At least a second.
    pub fn all_open(&self, now: Instant) -> Option<Duration> {
        /// A probe is under way.
        const SOON: Duration = Duration::from_secs(1);
        /// Active checks decide; their default interval.
        const UNKNOWN: Duration = Duration::from_secs(10);
        if self.order.is_empty() || self.admitted > 0 || !self.waiting.is_empty() {
            return None;
        }
        let half_open = |slot: &u32| self.slots[*slot as usize].circuit == Circuit::HalfOpen;
        if self.order.iter().any(half_open) {
            return Some(SOON);
        }
        let first = self.timers.first().map(|(due, _)| due.saturating_sub(self.at(now)));
        Some(first.map_or(UNKNOWN, Duration::from_nanos).max(SOON))
    }

    /// Endpoints whose circuit a detector has opened and that are not back yet.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Endpoints that are not closed, for whatever cause.
    pub fn out(&self) -> usize {
        self.order.len() - self.admitted
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.first().map(|(due, _)| *due);
        let first = timer.into_iter().chain(self.next_comparison).min()?;
        self.origin.checked_add(Duration::from_nanos(first))
    }

    pub fn handle_timeout(&mut self, now: Instant, rng: &mut impl Rng) {
        let at = self.at(now);
        while let Some(&(due, slot)) = self.timers.first()
            && due <= at
        {
            self.timers.pop_first();
            self.timed_out(slot, at);
        }
        if self.next_comparison.is_some_and(|due| due <= at) {
            self.compare(at, rng);
        }
        self.settle(at);
    }

    pub fn poll_event(&mut self) -> Option<Change> {
        let (slot, mut change) = self.events.pop_front()?;
        change.index = self.slots[slot as usize].index as usize;
        Some(change)
    }

    fn endpoint(&self, index: usize) -> Option<&Endpoint> {
        self.order.get(index).map(|slot| &self.slots[*slot as usize])
    }

    fn at(&self, now: Instant) -> At {
        policy::nanoseconds(now.saturating_duration_since(self.origin))
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
