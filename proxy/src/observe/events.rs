//! What workers say about circuits, put together to what this proxy says.
//!
//! Each worker has circuits of its own. To everybody else the proxy has one opinion of an endpoint: open if any worker's
//! circuit is, half-open if any is that, closed otherwise. A change of that opinion goes out with the evidence of the
//! transition that made it. Transitions are rare, so the workers put them in under a lock; whoever is to be told takes
//! them out. If nobody does for long, the oldest are dropped and counted, but never the opinion itself: it is told whole
//! when the next stream opens.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use hashbrown::HashMap;
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::spec::{BackendKey, Cause, Circuit, Transition};
use tokio::sync::Notify;

use crate::{metrics::Event, worker::Worker};

/// Changes that wait to be told.
const MAX_PENDING: usize = 1_024;
/// Transitions that `/clusters` shows.
const MAX_RECENT: usize = 100;

/// Process-wide.
#[derive(Default)]
pub struct Events {
    record: Mutex<Record>,
    news: Notify,
    dropped: AtomicU64,
}

#[derive(Default)]
struct Record {
    opinions: HashMap<(BackendKey, SocketAddr), Opinion>,
    pending: VecDeque<Transition>,
    recent: VecDeque<Transition>,
}

/// Of one endpoint that at least one worker does not find good.
struct Opinion {
    /// One bit per worker.
    open: u128,
    half_open: u128,
    last: Transition,
}

impl Events {
    /// A circuit of this worker's has changed.
    pub fn tell(&self, worker: &Worker, transition: Transition) {
        let service = transition.backend.to_string();
        let words = [circuit(transition.to), cause(transition.cause)];
        worker.telemetry.event(Event::CircuitTransition, &service, words);
        tracing::info!(
            %service, endpoint = %transition.endpoint, to = words[0], cause = words[1], why = &*transition.why,
            lasts_ms = transition.lasts.map(|lasts| lasts.as_millis() as u64), worker = worker.id, "circuit"
        );
        // First: an opinion counts only of what is called.
        worker.ctx.bulletin.add_calling(worker.id, &transition.backend);
        self.put(worker.id, transition);
    }

    fn put(&self, worker: usize, transition: Transition) {
        let mut record = self.record();
        if record.recent.len() == MAX_RECENT {
            record.recent.pop_front();
        }
        record.recent.push_back(transition.clone());
        let Some(changed) = record.merge(worker, transition) else { return };
        if record.pending.len() == MAX_PENDING {
            record.pending.pop_front();
            self.dropped.fetch_add(1, Relaxed);
        }
        record.pending.push_back(changed);
        drop(record);
        self.news.notify_one();
    }

    /// Waits until there may be something to [`Self::take`].
    pub async fn has_news(&self) {
        self.news.notified().await;
    }

    /// Changes since the last time.
    pub fn take(&self) -> Vec<Transition> {
        self.record().pending.drain(..).collect()
    }

    /// All that is not closed now, in place of the changes that led there.
    pub fn take_whole(&self) -> Vec<Transition> {
        let mut record = self.record();
        record.pending.clear();
        record.opinions.values().map(|opinion| opinion.last.clone()).collect()
    }

    /// All that is not closed now, each with the transition that made it so.
    pub fn standing(&self) -> Vec<Transition> {
        let mut standing: Vec<_> =
            self.record().opinions.values().map(|opinion| opinion.last.clone()).collect();
        standing.sort_by(|a, b| (&a.backend, a.endpoint).cmp(&(&b.backend, b.endpoint)));
        standing
    }

    /// The newest last.
    pub fn recent(&self) -> Vec<Transition> {
        self.record().recent.iter().cloned().collect()
    }

    /// How many endpoints of each backend are not closed.
    pub fn ejected(&self) -> Vec<(String, u64)> {
        let mut counts = std::collections::BTreeMap::new();
        for (backend, _) in self.record().opinions.keys() {
            *counts.entry(backend.to_string()).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    /// Forgets endpoints that the configuration does not have any more.
    pub fn prune(&self, snapshot: &Snapshot) {
        self.record().opinions.retain(|(backend, address), _| {
            let endpoints = snapshot.backend(backend).map(|backend| &backend.endpoints);
            endpoints.is_some_and(|endpoints| endpoints.iter().any(|endpoint| endpoint.address == *address))
        });
    }

    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    /// The proxy's opinion, if this has changed it.
    fn merge(&mut self, worker: usize, transition: Transition) -> Option<Transition> {
        let key = (transition.backend.clone(), transition.endpoint);
        let bit = 1_u128 << (worker % 128);
        let old = self.opinions.get(&key);
        let before = old.map_or(Circuit::Closed, Opinion::circuit);
        let (mut open, mut half_open) = old.map_or((0, 0), |old| (old.open & !bit, old.half_open & !bit));
        match transition.to {
            Circuit::Open => open |= bit,
            Circuit::HalfOpen => half_open |= bit,
            Circuit::Closed => {}
        }
        let mut opinion = Opinion { open, half_open, last: transition };
        let after = opinion.circuit();
        opinion.last.to = after;
        let last = opinion.last.clone();
        match (old.is_some(), after) {
            (_, Circuit::Closed) => drop(self.opinions.remove(&key)),
            // What another worker sees is told already, with its own evidence.
            (true, _) if after == before => {
                if let Some(old) = self.opinions.get_mut(&key) {
                    (old.open, old.half_open) = (open, half_open);
                }
            }
            _ => drop(self.opinions.insert(key, opinion)),
        }
        // Open once more, after a failed probe, is news: it lasts longer.
        let again = after == Circuit::Open && last.cause == Cause::ProbeFailed && open == bit;
        (after != before || again).then_some(last)
    }
}

impl Opinion {
    fn circuit(&self) -> Circuit {
        match (self.open, self.half_open) {
            (0, 0) => Circuit::Closed,
            (0, _) => Circuit::HalfOpen,
            _ => Circuit::Open,
        }
    }
}

/// As metrics and admin pages name it.
pub fn circuit(circuit: Circuit) -> &'static str {
    match circuit {
        Circuit::Closed => "closed",
        Circuit::Open => "open",
        Circuit::HalfOpen => "half-open",
    }
}

fn cause(cause: Cause) -> &'static str {
    match cause {
        Cause::ConsecutiveFailures => "consecutive-failures",
        Cause::FailurePercentage => "failure-percentage",
        Cause::SuccessRate => "success-rate",
        Cause::ConsecutiveConnectFailures => "consecutive-connect-failures",
        Cause::Latency => "latency",
        Cause::HealthCheck => "health-check",
        Cause::ProbeFailed => "probe-failed",
        Cause::TimeServed => "time-served",
        Cause::ProbesSucceeded => "probes-succeeded",
        Cause::Policy => "policy",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn transition(to: Circuit) -> Transition {
        Transition {
            backend: "shop/orders:80".parse().unwrap(),
            endpoint: "10.0.0.1:80".parse().unwrap(),
            to,
            cause: Cause::ConsecutiveFailures,
            at: 1,
            lasts: (to == Circuit::Open).then_some(Duration::from_secs(30)),
            times: 1,
            why: "5 failures in a row (limit 5)".into(),
            evidence: Vec::new(),
        }
    }

    fn told(events: &Events) -> Vec<Circuit> {
        events.take().into_iter().map(|transition| transition.to).collect()
    }

    #[test]
    fn the_proxy_has_one_opinion_of_several_workers() {
        use Circuit::{Closed, HalfOpen, Open};
        let events = Events::default();
        let steps = [
            (0, Open, &[Open][..]),
            (1, Open, &[]),
            (0, HalfOpen, &[]),
            (0, Closed, &[]),
            (1, HalfOpen, &[HalfOpen]),
            (1, Open, &[Open]),
            (1, HalfOpen, &[HalfOpen]),
            (1, Closed, &[Closed]),
        ];
        for (step, (worker, to, expected)) in steps.into_iter().enumerate() {
            events.put(worker, transition(to));
            assert_eq!(told(&events), expected, "step {step}");
        }
        assert!(events.ejected().is_empty() && events.take_whole().is_empty());
        assert_eq!(events.recent().len(), steps.len());
    }

    #[test]
    fn a_new_stream_is_told_all_that_still_is() {
        let events = Events::default();
        events.put(0, transition(Circuit::Open));
        assert_eq!(told(&events), [Circuit::Open]);
        let whole = events.take_whole();
        assert_eq!((whole.len(), whole[0].to), (1, Circuit::Open));
        assert_eq!(events.ejected(), [("shop/orders:80".to_owned(), 1)]);
        events.prune(&Snapshot::default());
        assert!(events.take_whole().is_empty(), "its endpoint is gone");
    }

    #[test]
    fn what_nobody_takes_is_dropped_and_counted() {
        let events = Events::default();
        for n in 0..MAX_PENDING + 3 {
            let to = if n % 2 == 0 { Circuit::Open } else { Circuit::Closed };
            events.put(0, transition(to));
        }
        assert_eq!(events.dropped(), 3);
        assert_eq!(events.take().len(), MAX_PENDING);
    }
}
