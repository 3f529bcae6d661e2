//! The arrows of the drawing: every change of a circuit goes through [`Breakers::enter`].

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_proto::spec::{Cause, Circuit, Outcome};
use rand_core::Rng;

use super::{
    Breakers, Ended,
    endpoint::NEVER,
    evidence::Learned,
    policy::{Policy, Why},
    window::At,
};

/// A circuit has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub index: usize,
    pub to: Circuit,
    pub cause: Cause,
    pub at: Instant,
    /// The threshold that was crossed and by what.
    pub why: Arc<str>,
    /// The latest outcomes, the oldest first.
    pub evidence: Vec<Outcome>,
    /// Of an ejection: how long it lasts. `None` also while active checks decide.
    pub lasts: Option<Duration>,
    /// Ejections in a row, this one included.
    pub times: u32,
}

impl Breakers {
    /// Closed to open, if the floor allows it.
    pub(super) fn eject(&mut self, slot: u32, why: Why, at: At, rng: &mut impl Rng) {
        let endpoint = &self.slots[slot as usize];
        if endpoint.circuit == Circuit::Closed && self.may_eject() {
            self.open(slot, why, at, rng);
        }
    }

    /// To open, for the time that its number of ejections in a row deserves.
    fn open(&mut self, slot: u32, why: Why, at: At, rng: &mut impl Rng) {
        let Some(policy) = &self.policy else { return };
        let endpoint = &mut self.slots[slot as usize];
        endpoint.times = endpoint.next_times(policy, at);
        let lasts = policy.ejection(endpoint.times);
        let jitter = (u128::from(lasts / 10) * u128::from(rng.next_u32()) / u128::from(u32::MAX)) as u64;
        let due = at.saturating_add(lasts).saturating_add(jitter).min(NEVER - 1);
        self.ejected += usize::from(!endpoint.ejected);
        endpoint.ejected = true;
        self.enter(slot, Circuit::Open, due, why, at);
    }

    /// The time of a timer has come, which is already taken out.
    pub(super) fn timed_out(&mut self, slot: u32, at: At) {
        let endpoint = &mut self.slots[slot as usize];
        endpoint.due = NEVER;
        match endpoint.circuit {
            // Now active checks decide.
            Circuit::Open if endpoint.sick => {}
            Circuit::Open => {
                let lasted = Duration::from_nanos(at.saturating_sub(endpoint.since));
                self.enter(slot, Circuit::HalfOpen, at, Why::Served(lasted), at);
            }
            Circuit::HalfOpen => self.pass(slot, true, at),
            Circuit::Closed => {}
        }
    }

    /// The probe of a half-open circuit has ended.
    pub(super) fn end_probe(
        &mut self,
        slot: u32,
        ended: Ended,
        latency: Duration,
        at: At,
        rng: &mut impl Rng,
    ) {
        let Some(policy) = &self.policy else { return };
        let endpoint = &mut self.slots[slot as usize];
        let told = ended.told();
        if let Some((what, failed)) = told {
            let learned = endpoint.learned.get_or_insert_with(|| Box::new(Learned::new(&policy.widths, at)));
            learned.remember(what, failed, latency, at);
        }
        match told {
            Some((what, true)) => self.open(slot, Why::Probe(what), at, rng),
            Some((_, false)) => self.pass(slot, true, at),
            None => self.await_probe(slot, at),
        }
    }

    /// One success more in the half-open state, by the probe under way or by an active check.
    pub(super) fn pass(&mut self, slot: u32, by_probe: bool, at: At) {
        let limit = self.policy.as_ref().map_or(1, |policy| policy.spec.probes.get());
        let endpoint = &mut self.slots[slot as usize];
        endpoint.passed += 1;
        if endpoint.passed >= limit {
            self.enter(slot, Circuit::Closed, NEVER, Why::Probed { limit }, at);
        } else if by_probe {
            self.await_probe(slot, at);
        }
    }

    /// The place of the probe is free again.
    fn await_probe(&mut self, slot: u32, at: At) {
        let endpoint = &mut self.slots[slot as usize];
        if endpoint.due != NEVER {
            self.timers.remove(&(endpoint.due, slot));
        }
        endpoint.probing = false;
        endpoint.round = endpoint.round.wrapping_add(1);
        endpoint.due = at;
        self.waiting.insert((at, slot));
        self.gates[endpoint.index as usize] = true;
    }

    pub(super) fn change_health(&mut self, slot: u32, healthy: bool, at: At) {
        let endpoint = &mut self.slots[slot as usize];
        endpoint.sick = !healthy;
        match (endpoint.circuit, healthy) {
            // `settle` takes it out if the floor allows it.
            (Circuit::Closed, false) => self.held += 1,
            (Circuit::Closed, true) => self.held -= 1,
            (Circuit::HalfOpen, false) => self.enter(slot, Circuit::Open, NEVER, Why::ChecksFail, at),
            (Circuit::Open, true) if endpoint.due == NEVER && endpoint.ejected => {
                self.enter(slot, Circuit::HalfOpen, at, Why::ChecksSucceed, at);
            }
            (Circuit::Open, true) if endpoint.due == NEVER => {
                self.enter(slot, Circuit::Closed, NEVER, Why::ChecksSucceed, at);
            }
            (Circuit::Open, _) | (Circuit::HalfOpen, true) => {}
        }
    }

    /// Nothing is ejected any more; what active checks have taken out stays out.
    pub(super) fn turn_off(&mut self, at: At) {
        for index in 0..self.order.len() {
            let slot = self.order[index];
            let endpoint = &mut self.slots[slot as usize];
            endpoint.listed = false;
            if endpoint.ejected && endpoint.sick {
                self.pardon(slot);
            } else if endpoint.ejected {
                self.enter(slot, Circuit::Closed, NEVER, Why::TurnedOff, at);
            }
            let endpoint = &mut self.slots[slot as usize];
            endpoint.clear(at);
            endpoint.learned = None;
        }
        self.recent = Vec::new();
        self.next_comparison = None;
    }

    /// It stays open because of active checks alone.
    pub(super) fn pardon(&mut self, slot: u32) {
        let endpoint = &mut self.slots[slot as usize];
        self.timers.remove(&(endpoint.due, slot));
        endpoint.due = NEVER;
        endpoint.ejected = false;
        self.ejected -= 1;
    }

    /// Changes a circuit and tells it. `due`: see [`super::endpoint::Endpoint::due`].
    pub(super) fn enter(&mut self, slot: u32, to: Circuit, due: At, why: Why, at: At) {
        let endpoint = &mut self.slots[slot as usize];
        self.timers.remove(&(endpoint.due, slot));
        self.waiting.remove(&(endpoint.due, slot));
        if endpoint.circuit == Circuit::Closed {
            self.admitted -= 1;
            self.held -= usize::from(endpoint.sick);
        }
        match to {
            Circuit::Closed => {
                self.admitted += 1;
                self.held += usize::from(endpoint.sick);
                self.ejected -= usize::from(endpoint.ejected);
                endpoint.ejected = false;
                endpoint.clear(at);
            }
            Circuit::Open if due != NEVER => _ = self.timers.insert((due, slot)),
            Circuit::Open => {}
            Circuit::HalfOpen => _ = self.waiting.insert((due, slot)),
        }
        let lasts = (to == Circuit::Open && due != NEVER).then(|| Duration::from_nanos(due - at));
        endpoint.circuit = to;
        endpoint.round = endpoint.round.wrapping_add(1);
        (endpoint.since, endpoint.due, endpoint.term) = (at, due, due);
        (endpoint.probing, endpoint.passed) = (false, 0);
        self.gates[endpoint.index as usize] = to != Circuit::Open;
        let change = Change {
            index: endpoint.index as usize,
            to,
            cause: why.cause(),
            at: self.origin + Duration::from_nanos(at),
            why: why.to_string().into(),
            evidence: endpoint.learned.as_ref().map(|learned| learned.tell(at)).unwrap_or_default(),
            lasts,
            times: endpoint.times,
        };
        self.events.push_back((slot, change));
    }

    /// What is asked of a policy even when there is none, for active checks.
    pub(super) fn min_ready(&self) -> usize {
        self.policy.as_ref().map_or(1, |Policy { spec, .. }| spec.min_ready as usize)
    }
}
