//! What a worker knows about endpoints that a configuration does not: load, connections, lessons learned.
//!
//! The registry lies beside the snapshot and survives it. A [`Cluster`] is a backend of the snapshot linked to the
//! [`Endpoint`]s of the registry; when the snapshot brings a new backend under the same key, it is linked anew to the same
//! endpoints, so a push resets no load and closes no connection. An endpoint that no cluster has any more is retired: its
//! idle connections close, the others when they have answered.
//!
//! It balances nothing (`path/balance.rs`) and knows no routes.

use std::{
    cell::{Cell, RefCell},
    hash::Hash,
    net::SocketAddr,
    num::NonZeroUsize,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;
use outrigger_certs::{Credentials, SpiffeId, alpn, tls};
use outrigger_core::{
    limits as core_limits,
    race::Learned,
    retry::Budget,
    snapshot::{Snapshot, Target},
};
use outrigger_proto::spec::{Backend, BackendKey, Circuit, DestinationKey, Fleet, RetryBudget};
use rustls::ServerConfig;
use tokio::{sync::Semaphore, task};

use crate::{
    metrics,
    observe::bulletin::Checked,
    path::{
        cache,
        pool::{Connections, Numbers},
        upstream::Remote,
    },
    worker::{Worker, now},
};

mod endpoint;
mod limits;
mod live;

pub use endpoint::Endpoint;
pub use limits::Limits;
pub use live::{Live, Nobody, Picked};

/// How often idle connections and forgotten backends are looked for.
const SWEEP: Duration = Duration::from_secs(5);
/// Idle connections to the own application: less than what common servers allow, so that they rarely close first.
const APPLICATION_IDLE: Duration = Duration::from_secs(55);
/// Destinations about which lessons are kept.
const MAX_LESSONS: usize = 4096;

pub struct Clusters {
    /// Terminates the mesh hop; rotates by itself.
    pub server_tls: Arc<ServerConfig>,
    credentials: Arc<Credentials>,
    backends: RefCell<HashMap<BackendKey, Rc<Cluster>>>,
    workloads: RefCell<HashMap<SocketAddr, Rc<Cluster>>>,
    endpoints: RefCell<HashMap<(SocketAddr, SpiffeId), Rc<Endpoint>>>,
    applications: RefCell<HashMap<(SocketAddr, bool), Rc<Connections>>>,
    /// Of requests that an application closed an idle connection on.
    pub application_budget: RefCell<Budget>,
    learned: RefCell<HashMap<DestinationKey, Learned>>,
    /// Turns for the costly part of a caller's TLS handshake, and the handshakes under way.
    pub handshakes: Semaphore,
    pub handshakes_under_way: Cell<usize>,
    sweeping: Cell<bool>,
}

/// Backends of services by their key; a workload dialled by its own address by that.
enum ClusterKey {
    Backend(BackendKey),
    Workload(SocketAddr),
}

/// A backend as one configuration has it, with what is known of it.
pub struct Cluster {
    pub backend: Arc<Backend>,
    /// `NAMESPACE/NAME:PORT`, or the address of a workload.
    pub label: Rc<str>,
    pub live: Rc<Live>,
    pub limits: Limits,
    pub cache: Option<cache::Shared>,
}

/// An endpoint as `/clusters` shows it.
pub struct EndpointState {
    pub cluster: String,
    pub circuit: Circuit,
    /// Whether it takes a request now.
    pub admits: bool,
    pub address: SocketAddr,
    pub identity: SpiffeId,
    pub in_flight: u32,
    pub latency: Option<Duration>,
    pub connections: Numbers,
}

// === impl Clusters ===

impl Clusters {
    /// `workers`: of this proxy; each has its part of what is limited per second.
    pub fn new(credentials: &Arc<Credentials>, workers: NonZeroUsize) -> Self {
        Self {
            server_tls: tls::server_config(credentials, alpn::MESH),
            credentials: Arc::clone(credentials),
            backends: RefCell::default(),
            workloads: RefCell::default(),
            endpoints: RefCell::default(),
            applications: RefCell::default(),
            application_budget: RefCell::new(Budget::new(&RetryBudget::default(), workers, now())),
            learned: RefCell::default(),
            handshakes: Semaphore::new(core_limits::MAX_HANDSHAKES),
            handshakes_under_way: Cell::new(0),
            sweeping: Cell::new(false),
        }
    }

    /// The cluster of a backend; linked anew if the backend is another than before.
    pub fn backend(&self, worker: &Rc<Worker>, key: &BackendKey, backend: &Arc<Backend>) -> Rc<Cluster> {
        let current = Self::current(&self.backends.borrow(), key, backend);
        current.unwrap_or_else(|| self.link(worker, &ClusterKey::Backend(key.clone()), backend))
    }

    /// The same for a workload that is dialled by its own address.
    pub fn workload(&self, worker: &Rc<Worker>, address: SocketAddr, backend: &Arc<Backend>) -> Rc<Cluster> {
        let current = Self::current(&self.workloads.borrow(), &address, backend);
        current.unwrap_or_else(|| self.link(worker, &ClusterKey::Workload(address), backend))
    }

    fn current<K: Eq + Hash>(
        clusters: &HashMap<K, Rc<Cluster>>,
        key: &K,
        backend: &Arc<Backend>,
    ) -> Option<Rc<Cluster>> {
        clusters.get(key).filter(|cluster| Arc::ptr_eq(&cluster.backend, backend)).cloned()
    }

    fn link(&self, worker: &Rc<Worker>, key: &ClusterKey, backend: &Arc<Backend>) -> Rc<Cluster> {
        self.start_sweeping(worker);
        let now = now();
        let specs = backend.endpoints.iter();
        let old = self.remove(key);
        let (live, label, left) = match old {
            Some(old) => {
                let stays = old.live.staying(backend).into_iter().zip(specs);
                let endpoints: Vec<_> =
                    stays.map(|(stays, spec)| stays.unwrap_or_else(|| self.endpoint(spec, now))).collect();
                enlist(&endpoints);
                let left = old.live.relink(worker, backend, endpoints, now);
                (Rc::clone(&old.live), Rc::clone(&old.label), left)
            }
            None => {
                let endpoints: Vec<_> = specs.map(|spec| self.endpoint(spec, now)).collect();
                enlist(&endpoints);
                let live = Live::new(worker, key.backend(), backend, endpoints, now);
                (Rc::new(live), key.label(), Vec::new())
            }
        };
        let limits = Limits::of(worker, key.backend(), backend);
        let cache = match (key.backend(), &backend.traffic.cache) {
            (Some(key), Some(policy)) => Some(worker.ctx.caches.of(key, policy)),
            _ => None,
        };
        let cluster = Rc::new(Cluster { backend: Arc::clone(backend), label, live, limits, cache });
        match key {
            ClusterKey::Backend(key) => self.backends.borrow_mut().insert(key.clone(), Rc::clone(&cluster)),
            ClusterKey::Workload(address) => {
                self.workloads.borrow_mut().insert(*address, Rc::clone(&cluster))
            }
        };
        self.unlink(worker, &left);
        cluster
    }

    fn remove(&self, key: &ClusterKey) -> Option<Rc<Cluster>> {
        match key {
            ClusterKey::Backend(key) => self.backends.borrow_mut().remove(key),
            ClusterKey::Workload(address) => self.workloads.borrow_mut().remove(address),
        }
    }

    fn all(&self) -> Vec<(ClusterKey, Rc<Cluster>)> {
        let (backends, workloads) = (self.backends.borrow(), self.workloads.borrow());
        let backends =
            backends.iter().map(|(key, cluster)| (ClusterKey::Backend(key.clone()), Rc::clone(cluster)));
        let workloads =
            workloads.iter().map(|(key, cluster)| (ClusterKey::Workload(*key), Rc::clone(cluster)));
        backends.chain(workloads).collect()
    }

    fn endpoint(&self, spec: &outrigger_proto::spec::Endpoint, now: Instant) -> Rc<Endpoint> {
        let key = (spec.address, spec.identity.clone());
        let mut endpoints = self.endpoints.borrow_mut();
        let endpoint = endpoints
            .entry(key)
            .or_insert_with(|| Rc::new(Endpoint::new(spec.clone(), Arc::clone(&self.credentials), now)));
        Rc::clone(endpoint)
    }

    fn unlink(&self, worker: &Rc<Worker>, endpoints: &[Rc<Endpoint>]) {
        for endpoint in endpoints {
            endpoint.users.set(endpoint.users.get().saturating_sub(1));
            if endpoint.users.get() == 0 {
                let key = (endpoint.spec.address, endpoint.spec.identity.clone());
                self.endpoints.borrow_mut().remove(&key);
                endpoint.retire(worker);
            }
        }
    }

    /// The connections to an application of this workload, or to a destination outside the mesh.
    pub fn application(&self, worker: &Rc<Worker>, address: SocketAddr, http2: bool) -> Rc<Connections> {
        self.start_sweeping(worker);
        let mut applications = self.applications.borrow_mut();
        let connections = applications
            .entry((address, http2))
            .or_insert_with(|| Connections::new(Remote::Plain(address), http2, APPLICATION_IDLE));
        Rc::clone(connections)
    }

    /// Who speaks first at an undeclared destination, as far as earlier connections have shown.
    pub fn learned(&self, key: &DestinationKey) -> Learned {
        self.learned.borrow().get(key).copied().unwrap_or_default()
    }

    pub fn learn(&self, key: &DestinationKey, lesson: Learned) {
        let mut learned = self.learned.borrow_mut();
        if learned.len() >= MAX_LESSONS && !learned.contains_key(key) {
            learned.clear();
        }
        learned.insert(key.clone(), lesson);
    }

    /// For `/clusters`.
    pub fn states(&self) -> Vec<EndpointState> {
        let now = now();
        let state = |cluster: &Cluster, endpoint: &Endpoint, (circuit, admits): (Circuit, bool)| {
            let load = endpoint.load.borrow();
            EndpointState {
                cluster: cluster.label.to_string(),
                circuit,
                admits,
                address: endpoint.spec.address,
                identity: endpoint.spec.identity.clone(),
                in_flight: load.in_flight(),
                latency: load.latency(now),
                connections: endpoint.numbers(),
            }
        };
        let all = self.all();
        all.iter()
            .flat_map(|(_, cluster)| {
                let endpoints = cluster.live.endpoints();
                endpoints.into_iter().map(|(endpoint, circuit)| state(cluster, &endpoint, circuit))
            })
            .collect()
    }

    /// What is called, for metrics.
    pub fn upstreams(&self) -> Vec<metrics::Upstream> {
        let now = now();
        let one = |cluster: &Cluster| {
            let numbers = cluster.live.endpoints().into_iter().map(|(endpoint, _)| endpoint.numbers());
            let (open, idle) = numbers.fold((0, 0), |(open, idle), n| (open + n.open, idle + n.idle));
            metrics::Upstream {
                service: cluster.label.to_string(),
                open: open as u64,
                idle: idle as u64,
                retries_left: cluster.live.budget.borrow_mut().left(now).into(),
            }
        };
        self.all().iter().map(|(_, cluster)| one(cluster)).collect()
    }

    /// The backends that are called from here.
    pub fn calling(&self) -> Vec<BackendKey> {
        self.backends.borrow().keys().cloned().collect()
    }

    /// An active check of an endpoint has ended.
    pub fn on_check(&self, worker: &Worker, checked: &Checked) {
        let cluster = self.backends.borrow().get(&checked.backend).cloned();
        if let Some(cluster) = cluster {
            cluster.live.on_check(worker, checked, now());
        }
    }

    /// What all callers of a backend make of its endpoints.
    pub fn on_fleet(&self, fleet: &Fleet) {
        if let Some(cluster) = self.backends.borrow().get(&fleet.backend) {
            cluster.live.on_fleet(fleet, now());
        }
    }

    fn start_sweeping(&self, worker: &Rc<Worker>) {
        if self.sweeping.replace(true) {
            return;
        }
        let worker = Rc::downgrade(worker);
        task::spawn_local(async move {
            loop {
                tokio::time::sleep(SWEEP).await;
                let Some(worker) = worker.upgrade() else { return };
                worker.clusters.sweep(&worker);
            }
        });
    }

    fn sweep(&self, worker: &Rc<Worker>) {
        let snapshot = worker.snapshot();
        for (key, cluster) in self.all() {
            let current = match &key {
                ClusterKey::Backend(key) => snapshot.backend(key).cloned(),
                ClusterKey::Workload(address) => workload(&snapshot, *address),
            };
            match current {
                Some(backend) if Arc::ptr_eq(&backend, &cluster.backend) => {}
                Some(backend) => drop(self.link(worker, &key, &backend)),
                None => {
                    self.remove(&key);
                    self.unlink(worker, &cluster.live.leave());
                    continue;
                }
            }
            cluster.live.sweep(worker, now());
        }
        worker.ctx.caches.prune();
        let endpoints: Vec<_> = self.endpoints.borrow().values().cloned().collect();
        for endpoint in endpoints {
            endpoint.sweep(worker);
        }
        let applications: Vec<_> = self.applications.borrow().values().cloned().collect();
        for connections in applications {
            connections.sweep(worker);
        }
        self.applications
            .borrow_mut()
            .retain(|_, connections| Rc::strong_count(connections) > 1 || !connections.is_unused());
    }
}

/// The backend of a workload that is dialled by its own address.
fn workload(snapshot: &Snapshot, address: SocketAddr) -> Option<Arc<Backend>> {
    match &snapshot.destination(&DestinationKey::address(address))?.target {
        Target::Workload { backend, .. } => Some(Arc::clone(backend)),
        Target::Service(_) | Target::External => None,
    }
}

fn enlist(endpoints: &[Rc<Endpoint>]) {
    for endpoint in endpoints {
        endpoint.users.set(endpoint.users.get() + 1);
    }
}

// === impl Cluster ===

impl Cluster {
    /// Whether a request may be answered by somebody else than an endpoint.
    pub fn has_detour(&self) -> bool {
        self.cache.is_some() || self.backend.traffic.coalesce || self.backend.traffic.fallback.is_some()
    }
}

// === impl ClusterKey ===

impl ClusterKey {
    fn backend(&self) -> Option<&BackendKey> {
        match self {
            Self::Backend(key) => Some(key),
            Self::Workload(_) => None,
        }
    }

    fn label(&self) -> Rc<str> {
        match self {
            Self::Backend(key) => key.to_string().into(),
            Self::Workload(address) => address.to_string().into(),
        }
    }
}
