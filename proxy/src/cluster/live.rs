//! What a worker has learned about a backend, kept while configurations come and go.
//!
//! A [`super::Cluster`] is a backend as one configuration has it; all clusters under the same key, one after the other, share
//! one [`Live`]. Its members are linked anew when the endpoints change: who stays keeps circuit and load. A request that
//! began under an older configuration goes on with the members of now, so it is never sent to who has left.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    num::NonZeroU32,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use outrigger_core::{
    balance::{Load, Loads, Member, Picker, Wanted, hash},
    hedge::Hedger,
    outlier::{self, Breakers, Change, Ended},
    retry::Budget,
};
use outrigger_proto::spec::{Algorithm, Backend, BackendKey, Circuit, Fleet, Transition};

use super::Endpoint;
use crate::{
    observe::bulletin::Checked,
    path::{balance::Tried, coalesce::Flights},
    shared_limits::{Kind, Place, Places},
    worker::Worker,
};

pub struct Live {
    /// `None`: a workload dialled by its own address, whose circuit concerns nobody else.
    key: Option<BackendKey>,
    members: RefCell<Members>,
    pub budget: RefCell<Budget>,
    pub hedger: RefCell<Option<Hedger>>,
    /// Equal requests under way.
    pub flights: Rc<Flights>,
    /// HTTP connections to all endpoints, where they are limited.
    pub connections: Cell<u32>,
}

struct Members {
    backend: Arc<Backend>,
    endpoints: Endpoints,
    /// Empty without a limit on each endpoint.
    places: Vec<Arc<Places>>,
    picker: Picker,
    breakers: Breakers,
}

/// In the order of the backend's.
struct Endpoints(Vec<Rc<Endpoint>>);

/// Why nobody could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// There is no endpoint, or none for this subset.
    NoEndpoints,
    /// All that there are were tried.
    Tried,
    /// All circuits are open.
    Ejected { retry_after: Duration },
    /// All that could be used are at their limits.
    Full,
}

/// An endpoint that got a request.
pub struct Picked {
    pub endpoint: Rc<Endpoint>,
    pub trial: outlier::Trial,
    pub place: Option<Place>,
}

// === impl Live ===

impl Live {
    pub(super) fn new(
        worker: &Worker,
        key: Option<&BackendKey>,
        backend: &Arc<Backend>,
        endpoints: Vec<Rc<Endpoint>>,
        now: Instant,
    ) -> Self {
        let traffic = &backend.traffic;
        let breakers = Breakers::new(&traffic.outlier_ejection, endpoints.len(), now);
        let mut members = Members {
            places: places(worker, key, backend),
            picker: picker(worker, backend, now),
            backend: Arc::clone(backend),
            endpoints: Endpoints(endpoints),
            breakers,
        };
        // What active checks have found before this worker called it.
        for endpoint in key.map(|key| worker.ctx.bulletin.unhealthy(key)).unwrap_or_default() {
            if let Some(index) = members.index(endpoint) {
                members.breakers.on_health(index, false, now);
            }
        }
        let told = members.settle();
        let this = Self {
            key: key.cloned(),
            members: RefCell::new(members),
            budget: RefCell::new(Budget::new(&traffic.retries.budget, worker.ctx.config.workers, now)),
            hedger: RefCell::new(traffic.hedging.as_ref().map(|policy| Hedger::new(policy, now))),
            flights: Rc::default(),
            connections: Cell::new(0),
        };
        this.tell(worker, told);
        this
    }

    /// The endpoints of now, for those of a new backend: whoever stays is the same one.
    pub(super) fn staying(&self, backend: &Backend) -> Vec<Option<Rc<Endpoint>>> {
        let members = self.members.borrow();
        let stays = |found: Option<usize>| found.map(|index| Rc::clone(&members.endpoints.0[index]));
        links(&members.backend, backend).map(stays).collect()
    }

    /// Another configuration: nothing that was learned is lost. Gives back the endpoints of before.
    pub(super) fn relink(
        &self,
        worker: &Worker,
        backend: &Arc<Backend>,
        endpoints: Vec<Rc<Endpoint>>,
        now: Instant,
    ) -> Vec<Rc<Endpoint>> {
        let traffic = &backend.traffic;
        self.budget.borrow_mut().set_policy(&traffic.retries.budget, worker.ctx.config.workers);
        match (&mut *self.hedger.borrow_mut(), &traffic.hedging) {
            (Some(hedger), Some(policy)) => hedger.set_policy(policy),
            (hedger, policy) => *hedger = policy.as_ref().map(|policy| Hedger::new(policy, now)),
        }
        let mut members = self.members.borrow_mut();
        let Members { backend: old, breakers, .. } = &mut *members;
        let same = old.endpoints == backend.endpoints;
        if !same {
            let before: Vec<Option<usize>> = links(old, backend).collect();
            breakers.relink(&before, now);
        }
        breakers.set_policy(&traffic.outlier_ejection, now);
        if !same || old.traffic.load_balancer != traffic.load_balancer {
            members.picker = picker(worker, backend, now);
            let Members { picker, breakers, .. } = &mut *members;
            for index in 0..if breakers.out() > 0 { backend.endpoints.len() } else { 0 } {
                picker.set_admitted(index, breakers.circuit(index) == Circuit::Closed);
            }
        }
        members.places = places(worker, self.key.as_ref(), backend);
        members.backend = Arc::clone(backend);
        let left = std::mem::replace(&mut members.endpoints, Endpoints(endpoints));
        let told = members.settle();
        drop(members);
        self.tell(worker, told);
        left.0
    }

    /// Nobody knows the backend any more: its endpoints, which are nobody's from now on.
    pub(super) fn leave(&self) -> Vec<Rc<Endpoint>> {
        let mut members = self.members.borrow_mut();
        members.breakers.relink(&[], crate::worker::now());
        members.backend =
            Arc::new(Backend { traffic: Arc::clone(&members.backend.traffic), ..Backend::default() });
        members.places = Vec::new();
        std::mem::replace(&mut members.endpoints, Endpoints(Vec::new())).0
    }

    /// Closes a connection that nobody uses, at any endpoint. `false`: there is none.
    pub fn close_idle(&self, worker: &Rc<Worker>) -> bool {
        let endpoints: Vec<_> = self.members.borrow().endpoints.0.to_vec();
        endpoints.iter().any(|endpoint| endpoint.close_idle(worker))
    }

    /// One endpoint for a request, which is counted there from now on.
    pub fn pick(
        &self,
        worker: &Worker,
        wanted: &Wanted<'_>,
        tried: &Tried,
        kind: Kind,
        now: Instant,
    ) -> Result<Picked, Nobody> {
        let mut members = self.members.borrow_mut();
        if members.breakers.poll_timeout().is_some_and(|due| due <= now) {
            members.breakers.handle_timeout(now, &mut *worker.rng());
            let told = members.settle();
            if !told.is_empty() {
                drop(members);
                self.tell(worker, told);
                members = self.members.borrow_mut();
            }
        }
        members.pick(worker, wanted, tried, kind, now)
    }

    /// Endpoints that get nothing for now.
    pub fn ejected(&self) -> u32 {
        self.members.borrow().breakers.out() as u32
    }

    /// Whether nobody takes a request: then failures are not made worse by repeating them.
    pub fn is_open(&self, now: Instant) -> bool {
        let members = self.members.borrow();
        members.breakers.out() > 0 && members.breakers.all_open(now).is_some()
    }

    pub fn on_head(&self, trial: &RefCell<Option<outlier::Trial>>, now: Instant) {
        if let Some(trial) = &*trial.borrow() {
            self.members.borrow_mut().breakers.on_head(trial, now);
        }
    }

    pub fn on_outcome(
        &self,
        worker: &Worker,
        trial: outlier::Trial,
        ended: Ended,
        latency: Duration,
        now: Instant,
    ) {
        let mut members = self.members.borrow_mut();
        members.breakers.on_outcome(trial, ended, latency, now, &mut *worker.rng());
        let told = members.settle();
        drop(members);
        self.tell(worker, told);
    }

    /// An active check has ended.
    pub fn on_check(&self, worker: &Worker, checked: &Checked, now: Instant) {
        let mut members = self.members.borrow_mut();
        let Some(index) = members.index(checked.endpoint) else { return };
        members.breakers.on_check(index, checked.good, now);
        members.breakers.on_health(index, checked.healthy, now);
        let told = members.settle();
        drop(members);
        self.tell(worker, told);
    }

    /// What all callers make of the endpoints.
    pub fn on_fleet(&self, fleet: &Fleet, now: Instant) {
        let mut members = self.members.borrow_mut();
        for (endpoint, ejected_by) in &fleet.ejected {
            if let Some(index) = members.index(*endpoint) {
                members.breakers.on_fleet(index, fleet.callers, *ejected_by, now);
            }
        }
    }

    /// What has become due with time, for a backend that nobody calls.
    pub(super) fn sweep(&self, worker: &Worker, now: Instant) {
        let mut members = self.members.borrow_mut();
        if members.breakers.poll_timeout().is_some_and(|due| due <= now) {
            members.breakers.handle_timeout(now, &mut *worker.rng());
        }
        let told = members.settle();
        drop(members);
        self.tell(worker, told);
    }

    /// With its circuit, and whether that takes a request now.
    pub fn endpoints(&self) -> Vec<(Rc<Endpoint>, (Circuit, bool))> {
        let members = self.members.borrow();
        let state = |index: usize| (members.breakers.circuit(index), members.breakers.admits(index));
        let all = members.endpoints.0.iter().enumerate();
        all.map(|(index, endpoint)| (Rc::clone(endpoint), state(index))).collect()
    }

    fn tell(&self, worker: &Worker, changes: Vec<(Change, SocketAddr)>) {
        let Some(key) = &self.key else { return };
        for (change, endpoint) in changes {
            let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let transition = Transition {
                backend: key.clone(),
                endpoint,
                to: change.to,
                cause: change.cause,
                at: at.as_millis() as u64,
                lasts: change.lasts,
                times: change.times,
                why: change.why,
                evidence: change.evidence,
            };
            worker.ctx.events.tell(worker, transition);
        }
    }
}

// === impl Members ===

impl Members {
    fn pick(
        &mut self,
        worker: &Worker,
        wanted: &Wanted<'_>,
        tried: &Tried,
        kind: Kind,
        now: Instant,
    ) -> Result<Picked, Nobody> {
        let Self { backend, endpoints, places, picker, breakers } = self;
        let traffic = &backend.traffic;
        let limits = &traffic.bulkhead.endpoint;
        let limit = match kind {
            Kind::Request => limits.requests,
            Kind::Connection => limits.connections,
        };
        let limit = limit.map(NonZeroU32::get);
        let has_room = |index: usize| match limit {
            None => true,
            Some(limit) => places.get(index).is_none_or(|places| places.taken(kind) < limit),
        };
        let some_out = breakers.out() > 0;
        if some_out
            && traffic.load_balancer.panic_percent == 0
            && let Some(retry_after) = breakers.all_open(now)
        {
            return Err(Nobody::Ejected { retry_after });
        }
        loop {
            let probe = if some_out {
                let wants = |index: usize| {
                    let subset =
                        wanted.subset.is_none_or(|subset| *backend.endpoints[index].subset == *subset);
                    subset && !tried.contains(&endpoints.0[index]) && has_room(index)
                };
                breakers.probe(wants)
            } else {
                None
            };
            let picked = probe.or_else(|| {
                let mut among = |tried: &dyn Fn(&Rc<Endpoint>) -> bool| {
                    let usable = |index: usize| !tried(&endpoints.0[index]) && has_room(index);
                    picker.pick(&*endpoints, wanted, usable, &mut *worker.rng(), now)
                };
                // Who has only failed may do better than nobody.
                let again = |tried_at: &Rc<Endpoint>| tried.is_lost(tried_at);
                among(&|endpoint| tried.contains(endpoint))
                    .or_else(|| if tried.is_empty() { None } else { among(&again) })
            });
            let Some(index) = picked else {
                return Err(self.nobody(wanted, tried, limit.is_some(), now));
            };
            let place = match limit {
                None => None,
                // Another worker may have taken the last one since it was looked at.
                Some(limit) => match places.get(index).map(|places| places.enter(kind, Some(limit))) {
                    Some(None) => continue,
                    place => place.flatten(),
                },
            };
            let trial = breakers.on_dispatch(index, now);
            return Ok(Picked { endpoint: Rc::clone(&endpoints.0[index]), trial, place });
        }
    }

    fn nobody(&self, wanted: &Wanted<'_>, tried: &Tried, limited: bool, now: Instant) -> Nobody {
        let subset = |index: usize| {
            wanted.subset.is_none_or(|subset| *self.backend.endpoints[index].subset == *subset)
        };
        let matching = || (0..self.endpoints.0.len()).filter(|index| subset(*index));
        if let Some(retry_after) = self.breakers.all_open(now) {
            Nobody::Ejected { retry_after }
        } else if matching().next().is_none() {
            Nobody::NoEndpoints
        } else if limited && matching().any(|index| !tried.is_lost(&self.endpoints.0[index])) {
            Nobody::Full
        } else {
            Nobody::Tried
        }
    }

    /// Carries changes of circuits over to the picker.
    fn settle(&mut self) -> Vec<(Change, SocketAddr)> {
        let mut told = Vec::new();
        while let Some(change) = self.breakers.poll_event() {
            self.picker.set_admitted(change.index, change.to == Circuit::Closed);
            if let Some(endpoint) = self.endpoints.0.get(change.index) {
                let address = endpoint.spec.address;
                told.push((change, address));
            }
        }
        told
    }

    fn index(&self, endpoint: SocketAddr) -> Option<usize> {
        self.backend.endpoints.binary_search_by_key(&endpoint, |endpoint| endpoint.address).ok()
    }
}

impl Loads for Endpoints {
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R {
        read(&self.0[index].load.borrow())
    }
}

/// Of each endpoint of the new backend, where the same one was in the old one. Both are sorted by address.
fn links<'a>(old: &'a Backend, new: &'a Backend) -> impl Iterator<Item = Option<usize>> + use<'a> {
    let mut at = 0;
    new.endpoints.iter().map(move |endpoint| {
        while old.endpoints.get(at).is_some_and(|old| old.address < endpoint.address) {
            at += 1;
        }
        let same = old.endpoints.get(at)?;
        (same.address == endpoint.address && same.identity == endpoint.identity).then_some(at)
    })
}

fn picker(worker: &Worker, backend: &Backend, now: Instant) -> Picker {
    let policy = &backend.traffic.load_balancer;
    let hashes = matches!(policy.algorithm, Algorithm::Consistent(..));
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let members: Vec<Member> = backend
        .endpoints
        .iter()
        .map(|endpoint| Member {
            key: if hashes { hash::endpoint(endpoint.address, endpoint.identity.as_str()) } else { 0 },
            weight: endpoint.weight,
            zone: Arc::clone(&endpoint.zone),
            subset: Arc::clone(&endpoint.subset),
            ready_since: policy
                .slow_start
                .and(endpoint.ready_since)
                .and_then(|since| now.checked_sub(time.saturating_sub(Duration::from_millis(since.get())))),
        })
        .collect();
    Picker::new(policy, &members, &worker.ctx.config.zone, &mut *worker.rng(), now)
}

fn places(worker: &Worker, key: Option<&BackendKey>, backend: &Backend) -> Vec<Arc<Places>> {
    let limits = &backend.traffic.bulkhead.endpoint;
    match key {
        Some(key) if limits.requests.is_some() || limits.connections.is_some() => {
            let endpoints = backend.endpoints.iter();
            endpoints.map(|endpoint| worker.ctx.limits.places(key, endpoint.address)).collect()
        }
        _ => Vec::new(),
    }
}
