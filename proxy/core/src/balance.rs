//! Which endpoint gets the next request.
//!
//! All algorithms respect weights, and all take the same things from outside: the [`Load`]s, who is admitted (closed
//! circuits, healthy), what is usable (not tried already, not at its limit), and a generator.
//!
//! - **peak-EWMA** (default): two endpoints are drawn, the one with the lower [`Load::cost`] is taken. Drawing follows
//!   the weights, and the cost counts requests in flight per weight, so equal endpoints share by weight when idle and
//!   when full. Choosing among 1,000 costs as much as among 2.
//! - **least-request**: the same, comparing requests in flight alone.
//! - **round-robin**: each in turn; with unequal weights by the time of its next turn, as often as its weight says.
//!   It begins at a random place, so that many callers do not begin at the same one.
//! - **random**: by weight.
//! - **Maglev, ring**: equal keys to the same endpoint, see [`table`]; without a key, at random.
//!
//! # From the request to the endpoint
//!
//! 1. The **subset** that the request names; no other endpoint is looked at.
//! 2. **Panic**: if less than `panic_percent` of it is admitted, or nobody at all, everybody there counts as admitted. So a
//!    last endpoint is never refused. Whoever wants to fail fast when all circuits are open asks them first.
//! 3. **Zone**: the own zone keeps `healthy / min_healthy` of the requests (by key: of the keys), the other zones get the
//!    rest by capacity; who finds nobody usable on one side looks on the other. Without endpoints in the own zone, or
//!    elsewhere, zones do not count. In panic both sides share by weight.
//! 4. **Slow start**: a new endpoint is drawn, or has its turn, at first a tenth as often as its weight says.
//! 5. The algorithm. Endpoints that refuse ([`Load::on_refusal`]) are passed over while there are others, except by key.
//!    When drawing finds nothing usable, the admitted are tried in order from a random place, so the last usable one is
//!    always found.
//!
//! It keeps no loads (they outlive a change of endpoints) and ejects nobody.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use hashbrown::HashMap;
use outrigger_proto::spec::{Algorithm, Endpoint, LoadBalancer};
use rand_core::Rng;

mod draws;
pub mod ewma;
mod fleet;
pub mod hash;
mod key;
mod question;
mod scope;
mod table;
mod turns;
mod weights;

pub use ewma::Load;
pub use key::{Cookie, Facts, Key, key};

use fleet::{Fleet, Layout, Ramp};
use question::{Measure, Method, Question};
use scope::Scope;
use weights::unit;

/// An endpoint, as far as a choice among many has to know it.
#[derive(Clone, Debug)]
pub struct Member {
    /// From [`hash::endpoint`]; only needed by the algorithms that hash.
    pub key: u64,
    pub weight: NonZeroU32,
    /// Empty: unknown.
    pub zone: Arc<str>,
    /// Empty: none.
    pub subset: Arc<str>,
    /// `None`: long ago.
    pub ready_since: Option<Instant>,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted<'a> {
    /// From [`key()`].
    pub hash: Option<u64>,
    /// The value of [`outrigger_proto::spec::Subset::header`], if the request has it.
    pub subset: Option<&'a str>,
}

/// The choice among the endpoints of one backend, in one worker. Made anew when the endpoints or the policy change; then
/// everybody is admitted until [`Self::set_admitted`] says otherwise.
#[derive(Debug)]
pub struct Picker {
    fleet: Fleet,
    method: Method,
    /// By position; empty unless the method hashes.
    keys: Box<[u64]>,
    /// Own zone and others of everybody, then the own zones of all subsets, then their others.
    scopes: Vec<Scope>,
    subsets: HashMap<Arc<str>, u32>,
    /// Whether a request may go to any endpoint when it names no subset that exists.
    any_subset: bool,
    min_healthy: Option<f64>,
    panic_percent: u64,
}

/// The loads of the endpoints, by the index that [`Picker::pick`] returns.
pub trait Loads {
    /// Calls with the load of an endpoint.
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R;
}

impl Loads for [Load] {
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R {
        read(&self[index])
    }
}

impl Member {
    /// `now` and `today` are the same moment on two clocks.
    pub fn new(endpoint: &Endpoint, now: Instant, today: SystemTime) -> Self {
        let ready_since = endpoint.ready_since.and_then(|since| {
            let since = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(since.get()))?;
            // Before the machine's start there is no `Instant`; that is long ago too.
            now.checked_sub(today.duration_since(since).unwrap_or_default())
        });
        Self {
            key: hash::endpoint(endpoint.address, endpoint.identity.as_str()),
            weight: endpoint.weight,
            zone: Arc::clone(&endpoint.zone),
            subset: Arc::clone(&endpoint.subset),
            ready_since,
        }
    }
}

impl Picker {
    /// `own_zone` is the caller's; empty: unknown.
    pub fn new(
        policy: &LoadBalancer,
        members: &[Member],
        own_zone: &str,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Self {
        let method = match &policy.algorithm {
            Algorithm::PeakEwma => Method::TwoChoices(Measure::Ewma),
            Algorithm::LeastRequest => Method::TwoChoices(Measure::InFlight),
            Algorithm::Random => Method::Random,
            Algorithm::RoundRobin => Method::RoundRobin,
            Algorithm::Consistent(table, _) => Method::Hash(*table),
        };
        let zone = policy.zone.filter(|_| !own_zone.is_empty());
        let mut layout = Layout::new(members, zone.map(|_| own_zone), policy.subset.is_some());
        let ramp = policy.slow_start.and_then(|window| Ramp::new(members, &layout, window, now));
        let keys = match method {
            Method::Hash(_) => {
                (0..members.len()).map(|position| members[layout.index(position)].key).collect()
            }
            Method::TwoChoices(_) | Method::Random | Method::RoundRobin => Box::default(),
        };
        let fleet = Fleet::new(members, &mut layout, ramp);
        let mut scopes: Vec<_> = layout.ranges.iter().map(|range| Scope::new(&fleet, *range)).collect();
        // Sure to be needed, and cheap; tables and subsets can wait for the first request that needs them.
        if !matches!(method, Method::Hash(_)) {
            let everybody = scopes.iter_mut().take(2).filter(|scope| scope.len() > 1);
            everybody.for_each(|scope| scope.prepare(method, &fleet, &keys, rng));
        }
        Self {
            fleet,
            method,
            keys,
            scopes,
            subsets: layout.subsets,
            any_subset: policy.subset.as_ref().is_none_or(|subset| subset.fallback_to_any),
            min_healthy: zone.map(|zone| f64::from(zone.min_healthy_percent.max(1)) / 100.0),
            panic_percent: policy.panic_percent.into(),
        }
    }

    /// Whether an endpoint may get requests: its circuit is closed and it is healthy.
    pub fn set_admitted(&mut self, index: usize, admitted: bool) {
        let position = self.fleet.position(index);
        if !self.fleet.admitted.set(position, admitted) {
            return;
        }
        let (all, by_subset) = self.scopes.split_at_mut(2);
        let step = if admitted { 1 } else { -1 };
        let count = |scope: &mut Scope| {
            scope.admitted = scope.admitted.wrapping_add_signed(step);
        };
        count(&mut all[usize::from(position as u32 >= all[1].start())]);
        // Empty scopes begin where the next one does, so the last that begins here or before has it.
        let after = by_subset.partition_point(|scope| scope.start() as usize <= position);
        if let Some(scope) = after.checked_sub(1).and_then(|at| by_subset.get_mut(at)) {
            count(scope);
        }
    }

    /// How many are admitted.
    pub fn admitted(&self) -> usize {
        self.scopes.iter().take(2).map(|scope| scope.admitted as usize).sum()
    }

    /// One endpoint for which `usable` holds: an admitted one, or in panic any. `None` if there is none.
    pub fn pick(
        &mut self,
        loads: &(impl Loads + ?Sized),
        wanted: &Wanted<'_>,
        usable: impl Fn(usize) -> bool,
        rng: &mut impl Rng,
        now: Instant,
    ) -> Option<usize> {
        if self.fleet.ramp.as_ref().is_some_and(|ramp| ramp.is_over(now)) {
            self.fleet.ramp = None;
        }
        let (own, others) = self.scopes_of(wanted.subset)?;
        let (own_len, others_len) = (self.scopes[own].len(), self.scopes[others].len());
        let all = u64::from(own_len) + u64::from(others_len);
        let admitted = u64::from(self.scopes[own].admitted) + u64::from(self.scopes[others].admitted);
        let panic = admitted == 0 || admitted * 100 < self.panic_percent * all;
        let order = match self.min_healthy {
            _ if own_len == 0 => [others, own],
            _ if others_len == 0 => [own, others],
            None => [others, own],
            Some(min_healthy) => {
                let kept = if panic {
                    let (own, others) = (self.scopes[own].capacity, self.scopes[others].capacity);
                    own as f64 / (own + others) as f64
                } else {
                    f64::from(self.scopes[own].admitted) / f64::from(own_len) / min_healthy
                };
                let place = match wanted.hash {
                    _ if kept >= 1.0 => 0.0,
                    // Other bits than those that look into the table.
                    Some(hash) => hash::spread(!hash) as f64 / u64::MAX as f64,
                    None => unit(rng),
                };
                if place < kept { [own, others] } else { [others, own] }
            }
        };
        let question = Question {
            fleet: &self.fleet,
            keys: &self.keys,
            loads,
            usable: &usable,
            panic,
            hash: wanted.hash,
            now,
            clock: self.fleet.ramp.as_ref().map_or(0.0, |ramp| ramp.clock(now)),
        };
        let picked = self.scopes[order[0]].pick(self.method, &question, rng);
        let picked = picked.or_else(|| self.scopes[order[1]].pick(self.method, &question, rng))?;
        Some(self.fleet.index(picked))
    }

    /// Own zone and others, of the subset if it is known.
    fn scopes_of(&self, subset: Option<&str>) -> Option<(usize, usize)> {
        let named = subset.filter(|named| !named.is_empty() && self.scopes.len() > 2);
        let known = named.map(|named| self.subsets.get(named).map(|number| *number as usize));
        let known = match known {
            Some(None) if !self.any_subset => return None,
            known => known.flatten(),
        };
        Some(known.map_or((0, 1), |number| (2 + number, 2 + self.subsets.len() + number)))
    }
}

#[cfg(test)]
mod tests;
