//! The breakers beside a plain account of what they said and were asked.

use std::collections::{HashMap, HashSet};

use outrigger_proto::spec::{Cause, OutlierEjection};
use rand::{SeedableRng, rngs::SmallRng};

use super::*;

/// An endpoint as told by events and by what was asked, by a name that relinking does not change.
#[derive(Clone, Debug, Default)]
struct Seen {
    circuit: Circuit,
    sick: bool,
    /// Of the last opening.
    opened: Option<(Instant, Option<Duration>)>,
    /// The trial that is the probe under way, and when its head came.
    probe: Option<(u64, Option<Instant>)>,
}

pub(super) struct World {
    pub(super) breakers: Breakers,
    policy: Option<OutlierEjection>,
    rng: SmallRng,
    pub(super) now: Instant,
    /// Names by index.
    pub(super) names: Vec<u64>,
    seen: HashMap<u64, Seen>,
    /// Name of the endpoint, number, the thing itself.
    pub(super) trials: Vec<(u64, u64, Trial)>,
    next: u64,
}

impl World {
    pub(super) fn new(policy: OutlierEjection, endpoints: usize, seed: u64) -> Self {
        let now = crate::testing::start();
        let breakers = Breakers::new(&Ejection(Some(policy.clone())), endpoints, now);
        let names: Vec<_> = (0..endpoints as u64).collect();
        let seen = names.iter().map(|name| (*name, Seen::default())).collect();
        let (rng, trials) = (SmallRng::seed_from_u64(seed), Vec::new());
        Self { breakers, policy: Some(policy), rng, now, names, seen, trials, next: 1000 }
    }

    fn dispatch(&mut self, index: usize) {
        let Some(name) = self.names.get(index).copied() else { return };
        let (circuit, admits) = (self.breakers.circuit(index), self.breakers.admits(index));
        let trial = self.breakers.on_dispatch(index, self.now);
        self.next += 1;
        let seen = self.seen.get_mut(&name).unwrap();
        if circuit == Circuit::HalfOpen && admits {
            assert_eq!(seen.probe, None, "one probe at a time");
            seen.probe = Some((self.next, None));
        }
        assert!(circuit != Circuit::HalfOpen || !self.breakers.admits(index));
        self.trials.push((name, self.next, trial));
    }

    pub(super) fn end(&mut self, at: usize, ended: Ended, latency: Duration) {
        let (name, number, trial) = self.trials.swap_remove(at);
        self.breakers.on_outcome(trial, ended, latency, self.now, &mut self.rng);
        if let Some(seen) = self.seen.get_mut(&name)
            && seen.probe.is_some_and(|probe| probe.0 == number)
        {
            seen.probe = None;
        }
    }

    pub(super) fn run(&mut self, op: Op) {
        match op {
            Op::Requests(index, ended, count, milliseconds) => {
                for _ in 0..count {
                    self.dispatch(index);
                    if index < self.names.len() {
                        self.end(self.trials.len() - 1, ended, Duration::from_millis(milliseconds));
                    }
                    self.now += Duration::from_millis(2);
                    self.check();
                }
            }
            Op::Dispatch(index) => self.dispatch(self.breakers.probe(|_| true).unwrap_or(index)),
            Op::Head(trial) => {
                if let Some((name, number, trial)) = self.trials.get(trial) {
                    self.breakers.on_head(trial, self.now);
                    if let Some(Some((probe, head @ None))) =
                        self.seen.get_mut(name).map(|seen| &mut seen.probe)
                        && probe == number
                    {
                        *head = Some(self.now);
                    }
                }
            }
            Op::End(trial, ended) => {
                if trial < self.trials.len() {
                    self.end(trial, ended, Duration::from_millis(3));
                }
            }
            Op::Wait(milliseconds) => {
                let until = self.now + Duration::from_millis(milliseconds);
                while let Some(due) = self.breakers.poll_timeout().filter(|due| *due <= until) {
                    self.now = due.max(self.now);
                    self.breakers.handle_timeout(self.now, &mut self.rng);
                    assert!(
                        self.breakers.poll_timeout().is_none_or(|next| next > self.now),
                        "time stands still"
                    );
                    self.proven();
                    self.check();
                }
                self.now = until;
            }
            Op::Relink(mut before) => {
                self.drain();
                let mut taken = HashSet::new();
                before
                    .iter_mut()
                    .for_each(|it| *it = it.filter(|it| *it < self.names.len() && taken.insert(*it)));
                self.breakers.relink(&before, self.now);
                self.names = before
                    .iter()
                    .map(|from| {
                        self.next += 1;
                        from.map_or(self.next, |from| self.names[from])
                    })
                    .collect();
                self.seen.retain(|name, _| self.names.contains(name));
                self.names.iter().for_each(|name| _ = self.seen.entry(*name).or_default());
            }
            Op::Policy(policy) => {
                self.drain();
                let before: Vec<_> =
                    self.breakers.slots.iter().map(|it| (it.circuit, it.times, it.due)).collect();
                self.breakers.set_policy(&Ejection(policy.clone()), self.now);
                for (was, is) in before.iter().zip(&self.breakers.slots) {
                    assert_eq!(was.1, is.times);
                    let same = *was == (is.circuit, is.times, is.due);
                    assert!(same || is.circuit == Circuit::Closed || is.sick, "{was:?} {is:?}");
                }
                self.policy = policy;
                for change in self.drain() {
                    assert!(
                        change.cause == Cause::Policy || change.cause == Cause::HealthCheck,
                        "{change:?}"
                    );
                }
            }
            Op::Health(index, healthy) => {
                if let Some(name) = self.names.get(index) {
                    self.seen.get_mut(name).unwrap().sick = !healthy;
                    self.breakers.on_health(index, healthy, self.now);
                }
            }
            Op::Check(index, good) => self.breakers.on_check(index, good, self.now),
            Op::Fleet(index, callers, by) => _ = self.breakers.on_fleet(index, callers, by, self.now),
        }
    }

    /// Probes that have lasted long enough are not under way any more.
    fn proven(&mut self) {
        for seen in self.seen.values_mut() {
            seen.probe =
                seen.probe.filter(|(_, head)| head.is_none_or(|head| self.now < head + STREAM_PROVES));
        }
    }

    /// Takes the events; each has to be an arrow of the drawing.
    fn drain(&mut self) -> Vec<Change> {
        let changes: Vec<_> = std::iter::from_fn(|| self.breakers.poll_event()).collect();
        for change in &changes {
            let seen = self.seen.get_mut(&self.names[change.index]).unwrap();
            let arrow = (seen.circuit, change.to);
            use Circuit::{Closed, HalfOpen, Open};
            let drawn = match change.cause {
                Cause::ConsecutiveFailures
                | Cause::FailurePercentage
                | Cause::SuccessRate
                | Cause::Latency
                | Cause::ConsecutiveConnectFailures => arrow == (Closed, Open),
                Cause::ProbeFailed => arrow == (HalfOpen, Open),
                Cause::TimeServed => arrow == (Open, HalfOpen),
                Cause::ProbesSucceeded => arrow == (HalfOpen, Closed),
                Cause::Policy => change.to == Closed && seen.circuit != Closed,
                Cause::HealthCheck => seen.circuit != change.to && arrow != (HalfOpen, Closed),
            };
            assert!(drawn, "{arrow:?} {change:?}");
            assert!(change.evidence.len() <= 10 && !change.why.is_empty());
            assert!(change.evidence.windows(2).all(|pair| pair[0].ago >= pair[1].ago), "{change:?}");
            if let Some(lasts) = change.lasts {
                let max = self.policy.as_ref().unwrap().max_ejection;
                assert!(lasts <= max * 11 / 10, "{lasts:?} of {max:?}");
            }
            seen.circuit = change.to;
            seen.probe = None;
            if change.to == Open {
                seen.opened = Some((change.at, change.lasts));
            }
        }
        changes
    }

    pub(super) fn check(&mut self) {
        self.drain();
        let (mut closed, mut admitting) = (0, 0);
        for (index, name) in self.names.iter().enumerate() {
            let (seen, circuit) = (&self.seen[name], self.breakers.circuit(index));
            assert_eq!(seen.circuit, circuit);
            let admits = self.breakers.admits(index);
            assert_eq!(
                admits,
                circuit == Circuit::Closed || circuit == Circuit::HalfOpen && seen.probe.is_none()
            );
            closed += usize::from(circuit == Circuit::Closed);
            admitting += usize::from(admits);
            if circuit == Circuit::Open && !seen.sick {
                let (at, lasts) = seen.opened.unwrap();
                let late = self.breakers.poll_timeout().is_some_and(|due| due <= self.now);
                assert!(late || self.now < at + lasts.unwrap(), "open for too long");
            }
        }
        let endpoints = self.names.len();
        let (share, least) = self.policy.as_ref().map_or((0, 1), |policy| {
            (most_ejected(endpoints, policy.max_ejected_percent), policy.min_ready as usize)
        });
        assert!(self.breakers.ejected() <= share, "{} of {share}", self.breakers.ejected());
        assert!(closed >= least.min(endpoints), "{closed} closed of {least}");
        assert_eq!(self.breakers.out(), endpoints - closed);
        assert_eq!(self.breakers.all_open(self.now).is_some(), admitting == 0 && endpoints > 0);
        let probe = self.breakers.probe(|_| true);
        assert!(
            probe.is_none_or(|at| self.breakers.circuit(at) == Circuit::HalfOpen && self.breakers.admits(at))
        );
        assert_eq!(probe.is_some(), admitting > closed);
        // Nobody stays in only because of the floor while there is room.
        let held =
            self.names.iter().filter(|it| self.seen[*it].sick && self.seen[*it].circuit == Circuit::Closed);
        assert!(held.count() == 0 || closed <= least, "sick and closed without need");
    }
}
