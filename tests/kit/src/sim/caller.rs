//! A caller's sidecar: the product's own machines, driven as its shell drives them.
//!
//! It also watches over them: a promise of theirs that does not hold is a line in [`super::Report::broken`].

use std::time::{Duration, Instant, SystemTime};

use http::Method;
use outrigger_core::{
    balance::{Load, Member, Picker, Wanted},
    hedge::Hedger,
    outlier::{self, Breakers, Trial, What, classify, most_ejected},
    retry::{Answer, Attempts, Budget, Failure, Moment, Next, Traits},
};
use outrigger_proto::spec::{Circuit, Endpoint, Failures, Traffic};
use rand::rngs::SmallRng;

use super::report::Pair;

pub(super) struct Caller<'a> {
    traffic: &'a Traffic,
    picker: Picker,
    breakers: Breakers,
    loads: Vec<Load>,
    budget: Budget,
    hedger: Option<Hedger>,
    failures: Failures,
    pub(super) pairs: Vec<Pair>,
}

/// One request that is on its way to one endpoint.
pub(super) struct Sent {
    pub(super) endpoint: usize,
    dispatched: Instant,
    trial: Trial,
}

/// How an attempt ended, as the sidecar sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ended {
    /// With this status.
    Answered(u16),
    Refused,
    TimedOut,
    /// Nobody waits for it any more.
    Cancelled,
}

impl<'a> Caller<'a> {
    pub(super) fn new(
        traffic: &'a Traffic,
        endpoints: &[Endpoint],
        now: Instant,
        rng: &mut SmallRng,
    ) -> Self {
        let members: Vec<_> =
            endpoints.iter().map(|endpoint| Member::new(endpoint, now, SystemTime::UNIX_EPOCH)).collect();
        Self {
            traffic,
            picker: Picker::new(&traffic.load_balancer, &members, "", rng, now),
            breakers: Breakers::new(&traffic.outlier_ejection, endpoints.len(), now),
            loads: vec![Load::new(now); endpoints.len()],
            budget: Budget::new(&traffic.retries.budget, std::num::NonZeroUsize::MIN, now),
            hedger: traffic.hedging.as_ref().map(|policy| Hedger::new(policy, now)),
            failures: traffic
                .outlier_ejection
                .0
                .as_ref()
                .map_or_else(Failures::default, |it| it.failures.clone()),
            pairs: vec![Pair::default(); endpoints.len()],
        }
    }

    pub(super) fn attempts(&self, idempotent: bool) -> Attempts<'a> {
        let method = if idempotent { Method::GET } else { Method::POST };
        let traits = Traits { replayable: true, idempotency_key: false, outer_layer: false };
        Attempts::new(&self.traffic.retries, &method, traits)
    }

    /// A call begins; after how long a second request goes beside the first.
    pub(super) fn begin(&mut self, now: Instant) -> Option<Duration> {
        self.budget.on_request(now);
        let hedger = self.hedger.as_mut()?;
        hedger.on_request(now);
        hedger.delay(now)
    }

    pub(super) fn may_hedge(&mut self, now: Instant) -> bool {
        self.hedger.as_mut().is_some_and(|hedger| hedger.withdraw(now))
    }

    /// Where the next attempt goes; `None`: nobody takes it.
    pub(super) fn send(
        &mut self,
        tried: &[usize],
        now: Instant,
        rng: &mut SmallRng,
        broken: &mut Vec<String>,
    ) -> Option<Sent> {
        self.tick(now, rng, broken);
        if self.breakers.all_open(now).is_some() {
            return None;
        }
        let free = |index: usize| !tried.contains(&index);
        let (picker, loads) = (&mut self.picker, &self.loads);
        let probe = self.breakers.probe(free);
        let endpoint = match probe {
            Some(endpoint) => endpoint,
            None => picker.pick(&loads[..], &Wanted::default(), free, rng, now)?,
        };
        let panics = self.traffic.load_balancer.panic_percent > 0;
        let other = (0..loads.len()).any(|index| free(index) && self.breakers.admits(index));
        if !self.breakers.admits(endpoint) && other && !panics {
            broken.push(format!("endpoint {endpoint} was picked although it is out and another one is not"));
        }
        self.loads[endpoint].on_dispatch(now);
        self.pairs[endpoint].sent += 1;
        Some(Sent { endpoint, dispatched: now, trial: self.breakers.on_dispatch(endpoint, now) })
    }

    /// An attempt has ended. What comes after it, where it was no success; nothing for one that nobody waits for.
    pub(super) fn end(
        &mut self,
        sent: Sent,
        ended: Ended,
        attempts: Option<(&mut Attempts<'a>, Option<Duration>)>,
        now: Instant,
        rng: &mut SmallRng,
        broken: &mut Vec<String>,
    ) -> Option<Next> {
        let Sent { endpoint, dispatched, trial } = sent;
        let latency = now.saturating_duration_since(dispatched);
        let load = &mut self.loads[endpoint];
        let told = match ended {
            Ended::Answered(status) => {
                if status == 503 {
                    load.on_refusal(None, now);
                } else {
                    load.on_response(latency, now);
                }
                if let Some(hedger) = &mut self.hedger {
                    hedger.on_answer(latency, now);
                }
                classify(&self.failures, status, None, false)
            }
            Ended::Refused => {
                load.on_failure(latency, now);
                outlier::Ended::ConnectFailed
            }
            Ended::TimedOut => {
                load.on_failure(latency, now);
                outlier::Ended::Failure(What::Timeout)
            }
            Ended::Cancelled => {
                load.on_cancel(latency, now);
                outlier::Ended::Cancelled
            }
        };
        load.on_end(now);
        let failed = matches!(told, outlier::Ended::Failure(_) | outlier::Ended::ConnectFailed);
        self.pairs[endpoint].failed += u64::from(failed);
        self.breakers.on_outcome(trial, told, latency, now, rng);
        self.tick(now, rng, broken);
        let (attempts, left) = attempts?;
        let moment = Moment { breaker_open: self.breakers.all_open(now).is_some(), left, now };
        match ended {
            Ended::Answered(status) => {
                let answer = Answer { status, ..Answer::default() };
                attempts.on_answer(&answer, &moment, &mut self.budget, rng)
            }
            Ended::Refused => Some(attempts.on_failure(Failure::Unsent, &moment, &mut self.budget, rng)),
            Ended::TimedOut => Some(attempts.on_failure(Failure::TimedOut, &moment, &mut self.budget, rng)),
            Ended::Cancelled => None,
        }
    }

    fn tick(&mut self, now: Instant, rng: &mut SmallRng, broken: &mut Vec<String>) {
        if self.breakers.poll_timeout().is_some_and(|due| due <= now) {
            self.breakers.handle_timeout(now, rng);
        }
        while let Some(outlier::Change { index, to, .. }) = self.breakers.poll_event() {
            self.picker.set_admitted(index, to == Circuit::Closed);
            let pair = &mut self.pairs[index];
            if to == Circuit::Open {
                pair.ejections += 1;
                pair.sent_until_ejected.get_or_insert(pair.sent);
                pair.failed_until_ejected.get_or_insert(pair.failed);
            }
        }
        self.watch(broken);
    }

    fn watch(&self, broken: &mut Vec<String>) {
        let Some(policy) = &self.traffic.outlier_ejection.0 else { return };
        let all = self.loads.len();
        let most = most_ejected(all, policy.max_ejected_percent);
        if self.breakers.ejected() > most {
            broken.push(format!("{} of {all} are ejected, and {most} may be", self.breakers.ejected()));
        }
        if all - self.breakers.out() < (policy.min_ready as usize).min(all) {
            broken.push(format!(
                "{} of {all} are out, and {} must stay",
                self.breakers.out(),
                policy.min_ready
            ));
        }
    }

    /// Requests that are under way by the machines' own count.
    pub(super) fn in_flight(&self) -> u32 {
        self.loads.iter().map(Load::in_flight).sum()
    }
}
