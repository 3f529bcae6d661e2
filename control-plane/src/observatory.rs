//! Where all proxies' observations meet: opinions of endpoints ([`Fleet`]) and shared rate limits ([`Shares`]), and what
//! every one of them is told in return.
//!
//! One lock around two machines, as in the hub; it is never held across an await. Nothing here is policy: a control plane
//! that restarts begins empty and has heard everything again within a second.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{BackendKey, Guidance, Observations, RateLimit, Transition};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    fleet::Fleet,
    shares::{INTERVAL, Shares},
};

/// Guidance that a proxy has not taken yet. The next one says the same anew, so none is waited for.
const UNTAKEN: usize = 4;
/// Limits that one proxy may speak of.
const MAX_LIMITS: usize = 1024;

#[derive(Default)]
pub struct Observatory {
    inner: Mutex<Inner>,
}

/// A proxy's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observer(u64);

#[derive(Default)]
struct Inner {
    next: u64,
    streams: BTreeMap<Observer, Stream>,
    fleet: Fleet<Observer>,
    shares: Shares<Observer>,
    /// Who holds which limit.
    joined: BTreeMap<Arc<str>, Joined>,
}

struct Stream {
    identity: SpiffeId,
    address: SocketAddr,
    guidance: mpsc::Sender<Guidance>,
}

struct Joined {
    limit: RateLimit,
    holders: BTreeSet<Observer>,
}

/// A shared limit as the configuration has it now.
pub struct SharedLimit {
    pub limit: RateLimit,
    /// Live proxies that hold it, whomever they report to. 0: nobody can say.
    pub live: u32,
}

/// A circuit that somebody has opened.
#[derive(Clone, Debug, Serialize)]
pub struct CircuitReport {
    pub endpoint: SocketAddr,
    /// Proxies that call the service.
    pub callers: usize,
    pub opened_by: Vec<Opinion>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Opinion {
    pub identity: String,
    pub address: SocketAddr,
    #[serde(flatten)]
    pub transition: Transition,
}

/// A shared limit and what each holder has of it.
#[derive(Clone, Debug, Serialize)]
pub struct ShareReport {
    pub limit: Arc<str>,
    pub holders: Vec<Holding>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Holding {
    pub identity: String,
    pub address: SocketAddr,
    /// Both in millionths of the limit.
    pub demand: u64,
    pub share: u64,
}

impl Observatory {
    pub fn on_open(&self, identity: SpiffeId, address: SocketAddr) -> (Observer, mpsc::Receiver<Guidance>) {
        let (guidance, taken) = mpsc::channel(UNTAKEN);
        let mut inner = self.lock();
        inner.next += 1;
        let observer = Observer(inner.next);
        inner.streams.insert(observer, Stream { identity, address, guidance });
        (observer, taken)
    }

    /// `limit` finds a shared limit by its name.
    pub fn on_observations(
        &self,
        observer: Observer,
        seen: Observations,
        limit: impl Fn(&str) -> Option<SharedLimit>,
    ) {
        let mut inner = self.lock();
        inner.fleet.on_calling(&observer, &seen.calling);
        for transition in seen.transitions {
            inner.fleet.on_transition(&observer, transition);
        }
        let mut held = BTreeSet::new();
        for demand in seen.demands.iter().take(MAX_LIMITS) {
            if !inner.holds(observer, &demand.limit)
                && let Some(SharedLimit { limit, .. }) = limit(&demand.limit)
            {
                inner.join(observer, limit);
            }
            inner.shares.on_demand(&observer, demand);
            held.insert(&*demand.limit);
        }
        inner.leave(observer, |limit| !held.contains(limit));
    }

    pub fn on_closed(&self, observer: Observer) {
        let mut inner = self.lock();
        inner.streams.remove(&observer);
        inner.fleet.on_lost(&observer);
        // It may live on: its shares run out by themselves.
        inner.shares.on_lost(&observer);
        for joined in inner.joined.values_mut() {
            joined.holders.remove(&observer);
        }
    }

    /// Divides the limits anew and tells everybody what is new to them. Due every [`INTERVAL`].
    pub fn on_tick(&self, limit: impl Fn(&str) -> Option<SharedLimit>, now: Instant) {
        let mut inner = self.lock();
        let mut live = BTreeMap::new();
        inner.follow(|name| {
            let found = limit(name)?;
            live.insert(Arc::<str>::from(name), found.live);
            Some(found.limit)
        });
        let mut guidance: BTreeMap<Observer, Guidance> = BTreeMap::new();
        for (observer, share) in inner.shares.divide(|name| live.get(name).copied().unwrap_or(0), now) {
            guidance.entry(observer).or_default().shares.push(share);
        }
        for (fleet, callers) in inner.fleet.take_changed() {
            for observer in callers {
                guidance.entry(observer).or_default().fleets.push(fleet.clone());
            }
        }
        for (observer, guidance) in guidance {
            if let Some(stream) = inner.streams.get(&observer) {
                // A proxy that takes nothing goes by what it sees itself.
                let _ = stream.guidance.try_send(guidance);
            }
        }
    }

    /// Circuits of a backend that are not closed.
    pub fn circuits(&self, key: &BackendKey) -> Vec<CircuitReport> {
        let inner = self.lock();
        let callers = inner.fleet.callers(key);
        let circuits = inner.fleet.circuits(key).map(|(endpoint, opinions)| CircuitReport {
            endpoint,
            callers,
            opened_by: opinions.filter_map(|(observer, it)| inner.opinion(*observer, it)).collect(),
        });
        circuits.collect()
    }

    /// The latest transitions by proxies that are still there, the newest first.
    pub fn history(&self) -> Vec<Opinion> {
        let inner = self.lock();
        inner.fleet.history().filter_map(|(observer, it)| inner.opinion(*observer, it)).collect()
    }

    pub fn shares(&self) -> Vec<ShareReport> {
        let inner = self.lock();
        let holding = |(observer, demand, share): (&Observer, u64, u64)| {
            let stream = inner.streams.get(observer)?;
            Some(Holding { identity: stream.identity.to_string(), address: stream.address, demand, share })
        };
        let report = |limit: &Arc<str>| ShareReport {
            limit: limit.clone(),
            holders: inner.shares.holders(limit).filter_map(holding).collect(),
        };
        inner.joined.keys().map(report).collect()
    }

    /// Streams, and circuits that are not closed.
    pub fn totals(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.streams.len(), inner.fleet.open())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Between two ticks.
pub const TICK: Duration = INTERVAL;

impl Inner {
    fn holds(&self, observer: Observer, limit: &str) -> bool {
        self.joined.get(limit).is_some_and(|joined| joined.holders.contains(&observer))
    }

    fn join(&mut self, observer: Observer, limit: RateLimit) {
        self.shares.on_join(observer, &limit);
        let joined = self.joined.entry(limit.name.clone());
        joined.or_insert_with(|| Joined { limit, holders: BTreeSet::new() }).holders.insert(observer);
    }

    fn leave(&mut self, observer: Observer, left: impl Fn(&str) -> bool) {
        for (name, joined) in &mut self.joined {
            if left(name) && joined.holders.remove(&observer) {
                self.shares.on_left(&observer, name);
            }
        }
        self.joined.retain(|_, joined| !joined.holders.is_empty());
    }

    /// The configuration may have changed or dropped limits since they were joined.
    fn follow(&mut self, mut current: impl FnMut(&str) -> Option<RateLimit>) {
        let shares = &mut self.shares;
        self.joined.retain(|name, joined| {
            let Some(limit) = current(name) else {
                joined.holders.iter().for_each(|holder| shares.on_left(holder, name));
                return false;
            };
            if joined.limit != limit {
                joined.holders.iter().for_each(|holder| shares.on_join(*holder, &limit));
                joined.limit = limit;
            }
            !joined.holders.is_empty()
        });
    }

    fn opinion(&self, observer: Observer, transition: &Transition) -> Option<Opinion> {
        let Stream { identity, address, .. } = self.streams.get(&observer)?;
        Some(Opinion { identity: identity.to_string(), address: *address, transition: transition.clone() })
    }
}

#[cfg(test)]
mod tests;
