//! What is known of one endpoint.

use std::time::Duration;

use outrigger_proto::spec::Circuit;

use super::{
    Ended, ONE_DIAL,
    evidence::Learned,
    policy::{Policy, Why, nanoseconds},
    window::At,
};

pub(super) const NEVER: At = At::MAX;

/// The index of a slot that no endpoint has, and the slot of a trial that counts for nothing.
pub(super) const GONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) index: u32,
    /// Goes up with each transition, each probe and each owner of the slot: a trial of another round does not count.
    pub(super) round: u32,
    pub(super) circuit: Circuit,
    /// A detector has opened it, so it has to pass probes. Otherwise active checks alone have.
    pub(super) ejected: bool,
    /// Active checks fail.
    pub(super) sick: bool,
    /// Half-open: a probe is under way.
    pub(super) probing: bool,
    /// It is in `Breakers::recent`.
    pub(super) listed: bool,
    /// In a row.
    failures: u32,
    connect_failures: u32,
    /// Successes in the half-open state.
    pub(super) passed: u32,
    /// Ejections in a row.
    pub(super) times: u32,
    /// When the state began.
    pub(super) since: At,
    /// Open: when it ends. Half-open: since when it waits for a probe; with one under way, when that will have lasted
    /// long enough.
    pub(super) due: At,
    /// Open: when it ends unless this proxy is alone with its opinion.
    pub(super) term: At,
    pub(super) learned: Option<Box<Learned>>,
}

impl Endpoint {
    pub(super) fn new(index: u32, round: u32) -> Self {
        Self {
            index,
            round,
            circuit: Circuit::Closed,
            ejected: false,
            sick: false,
            probing: false,
            listed: false,
            failures: 0,
            connect_failures: 0,
            passed: 0,
            times: 0,
            since: 0,
            due: NEVER,
            term: NEVER,
            learned: None,
        }
    }

    /// Counts an outcome in the closed state; whether it was a failure, `None` if it says nothing.
    pub(super) fn record(
        &mut self,
        policy: &Policy,
        ended: Ended,
        latency: Duration,
        at: At,
    ) -> Option<bool> {
        let (what, failed) = ended.told()?;
        let learned = self.learned.get_or_insert_with(|| Box::new(Learned::new(&policy.widths, at)));
        if ended == Ended::ConnectFailed {
            if learned.last_connect.is_some_and(|last| at.saturating_sub(last) < ONE_DIAL) {
                return None;
            }
            learned.last_connect = Some(at);
            self.connect_failures = self.connect_failures.saturating_add(1);
        }
        learned.record(&policy.widths, what, failed, latency, at);
        if failed {
            self.failures = self.failures.saturating_add(1);
        } else {
            (self.failures, self.connect_failures) = (0, 0);
        }
        Some(failed)
    }

    /// The first detector that wants it out, judging it by itself.
    pub(super) fn tripped(&mut self, policy: &Policy, at: At) -> Option<Why> {
        let spec = &policy.spec;
        if let Some(limit) = spec.consecutive_connect_failures.map(u32::from)
            && self.connect_failures >= limit
        {
            return Some(Why::ConnectsInARow { failures: self.connect_failures, limit });
        }
        if let Some(limit) = spec.consecutive_failures.map(u32::from)
            && self.failures >= limit
        {
            return Some(Why::InARow { failures: self.failures, limit });
        }
        let detector = spec.failure_percentage?;
        let counts = self.learned.as_mut()?.counts.sum(at, policy.widths.counts);
        let (failed, share) = (u64::from(counts.failed), u64::from(detector.percent));
        let crossed =
            counts.total >= detector.min_requests.get() && failed * 100 >= share * u64::from(counts.total);
        crossed.then_some(Why::Percentage { counts, limit: detector.percent, window: detector.window })
    }

    /// Which ejection in a row the next one is.
    pub(super) fn next_times(&self, policy: &Policy, at: At) -> u32 {
        let healthy = match self.circuit {
            Circuit::Closed => at.saturating_sub(self.since) / nanoseconds(policy.spec.base_ejection).max(1),
            Circuit::Open | Circuit::HalfOpen => 0,
        };
        self.times.saturating_sub(u32::try_from(healthy).unwrap_or(u32::MAX)).saturating_add(1)
    }

    pub(super) fn start_probe(&mut self) {
        self.probing = true;
        self.due = NEVER;
        self.round = self.round.wrapping_add(1);
    }

    /// Nothing counts any more.
    pub(super) fn clear(&mut self, at: At) {
        (self.failures, self.connect_failures) = (0, 0);
        if let Some(learned) = &mut self.learned {
            learned.clear(at);
        }
    }
}
