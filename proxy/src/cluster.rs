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
    time::{Duration, Instant, SystemTime},
};

use hashbrown::HashMap;
use outrigger_certs::{Credentials, SpiffeId, alpn, tls};
use outrigger_core::{
    balance::{Load, Loads, Member, Picker},
    limits,
    race::Learned,
    retry::Budget,
    snapshot::{Snapshot, Target},
};
use outrigger_proto::spec::{Backend, BackendKey, DestinationKey, RetryBudget};
use rustls::ServerConfig;
use tokio::{sync::Semaphore, task};

use crate::{
    path::{
        pool::{Connections, Numbers},
        upstream::Remote,
    },
    worker::{Worker, now},
};

mod endpoint;

pub use endpoint::Endpoint;

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
    workers: NonZeroUsize,
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

/// A backend with the state of its endpoints.
pub struct Cluster {
    pub backend: Arc<Backend>,
    /// In the order of the backend's.
    pub endpoints: Vec<Rc<Endpoint>>,
    pub picker: RefCell<Picker>,
    pub budget: Rc<RefCell<Budget>>,
    /// `NAMESPACE/NAME:PORT`, or the address of a workload.
    pub label: Rc<str>,
}

/// An endpoint as `/clusters` shows it.
pub struct EndpointState {
    pub cluster: String,
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
            workers,
            learned: RefCell::default(),
            handshakes: Semaphore::new(limits::MAX_HANDSHAKES),
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
        let endpoints: Vec<_> = backend.endpoints.iter().map(|spec| self.endpoint(spec, now)).collect();
        for endpoint in &endpoints {
            endpoint.users.set(endpoint.users.get() + 1);
        }
        let today = SystemTime::now();
        let members: Vec<_> =
            backend.endpoints.iter().map(|endpoint| Member::new(endpoint, now, today)).collect();
        let zone = &worker.ctx.config.zone;
        let picker =
            Picker::new(&backend.traffic.load_balancer, &members, zone, &mut *worker.rng(), now);
        let old = self.remove(key);
        let policy = &backend.traffic.retries.budget;
        let (budget, label) = match &old {
            Some(old) => (Rc::clone(&old.budget), Rc::clone(&old.label)),
            None => (Rc::new(RefCell::new(Budget::new(policy, self.workers, now))), key.label()),
        };
        budget.borrow_mut().set_policy(policy, self.workers);
        let cluster = Rc::new(Cluster {
            backend: Arc::clone(backend),
            endpoints,
            picker: RefCell::new(picker),
            budget,
            label,
        });
        match key {
            ClusterKey::Backend(key) => self.backends.borrow_mut().insert(key.clone(), Rc::clone(&cluster)),
            ClusterKey::Workload(address) => {
                self.workloads.borrow_mut().insert(*address, Rc::clone(&cluster))
            }
        };
        if let Some(old) = old {
            self.unlink(worker, &old);
        }
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

    fn unlink(&self, worker: &Rc<Worker>, cluster: &Cluster) {
        for endpoint in &cluster.endpoints {
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
        let state = |cluster: &Cluster, endpoint: &Endpoint| {
            let load = endpoint.load.borrow();
            EndpointState {
                cluster: cluster.label.to_string(),
                address: endpoint.spec.address,
                identity: endpoint.spec.identity.clone(),
                in_flight: load.in_flight(),
                latency: load.latency(now),
                connections: endpoint.numbers(),
            }
        };
        let all = self.all();
        all.iter()
            .flat_map(|(_, cluster)| cluster.endpoints.iter().map(|endpoint| state(cluster, endpoint)))
            .collect()
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
                    self.unlink(worker, &cluster);
                }
            }
        }
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

// === impl ClusterKey ===

impl ClusterKey {
    fn label(&self) -> Rc<str> {
        match self {
            Self::Backend(key) => key.to_string().into(),
            Self::Workload(address) => address.to_string().into(),
        }
    }
}

impl Loads for Cluster {
    fn load<R>(&self, index: usize, read: impl FnOnce(&Load) -> R) -> R {
        read(&self.endpoints[index].load.borrow())
    }
}
