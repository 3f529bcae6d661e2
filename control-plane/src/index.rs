//! Everything known about the mesh: configuration and workloads, arranged for looking up.
//!
//! A plain struct without locks, clocks or IO. Events go in (`reset_config`, `reset_trust`, `apply_workload`,
//! `delete_workload`); each returns the [`Topic`]s that may look different now. `compile.rs` answers what a
//! caller asks; who is told, and when, is decided by `subscription.rs`.
//!
//! ```text
//!   [ Workload ] ──labels──▶ [ MeshService ] ◀──parentRefs── [ HTTPRoute ] ──backendRefs──▶ [ MeshService ]
//!        ▲                     ▲        ▲
//!        │ selector            │        └──targetRef── [ TrafficPolicy ]
//!   [ ServerPolicy ]           └──targetRef─┐
//!   [ AuthorizationPolicy ] ────────────────┘
//! ```
//!
//! Topics are generous: one more than needed costs a comparison of versions, one too few leaves a proxy
//! behind. The property test in `index/tests.rs` holds them to that.

mod diff;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    num::{NonZeroU16, NonZeroU64},
    sync::Arc,
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{DestinationKey, Key, Serve, Trust};
use serde::Serialize;

use crate::config::{Config, HttpRoute, ObjectName, Service};

/// What a resource depends on. Every key has exactly one topic.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    Trust,
    /// The server sides of all workloads of a namespace.
    Inbound(Arc<str>),
    /// What an address means, at any port.
    Address(IpAddr),
    /// What a name means, at any port and from any namespace.
    Host(Arc<str>),
    /// Endpoints of a service and how to use them, at any port.
    Backend(ObjectName),
}

pub type Topics = HashSet<Topic>;

/// A running proxy and the program beside it.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    pub id: WorkloadId,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub zone: Arc<str>,
    pub serves: Vec<Serve>,
    /// Ready and not draining.
    pub serving: bool,
    /// In milliseconds since 1970, by its own clock.
    pub ready_since: Option<NonZeroU64>,
    /// Position among all registrations: where two workloads say the same of themselves, the later one
    /// counts.
    pub registered: u64,
}

/// A process: replicas of one identity differ by their instance, and so do a proxy and its restarted self.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct WorkloadId {
    #[serde(serialize_with = "identity_as_text")]
    pub identity: SpiffeId,
    pub instance: Arc<str>,
}

#[derive(Debug, Default)]
pub struct Index {
    trust: Option<Arc<Trust>>,
    config: Arc<Config>,
    /// Names valid everywhere.
    hosts: HashMap<Arc<str>, ObjectName>,
    virtual_addresses: HashMap<IpAddr, ObjectName>,
    /// Services that list an endpoint at the address.
    listed: HashMap<IpAddr, BTreeSet<ObjectName>>,
    /// Routes attached to a service.
    routes: HashMap<ObjectName, Vec<Arc<HttpRoute>>>,
    workloads: BTreeMap<WorkloadId, Arc<Workload>>,
    by_address: HashMap<IpAddr, LatestFirst>,
    by_namespace: HashMap<Arc<str>, LatestFirst>,
}

/// Workloads by their registration, the latest first.
type LatestFirst = BTreeMap<(Reverse<u64>, WorkloadId), Arc<Workload>>;

// === impl Topic ===

impl Topic {
    /// The topic of a key, for a subscriber of the namespace.
    pub fn of(key: &Key, namespace: &Arc<str>) -> Self {
        match key {
            Key::Trust => Self::Trust,
            Key::Inbound => Self::Inbound(namespace.clone()),
            Key::Destination(DestinationKey::Address(address)) => Self::Address(address.ip()),
            Key::Destination(DestinationKey::Authority(authority)) => Self::Host(authority.host().into()),
            Key::Backend(key) => {
                Self::Backend(ObjectName { namespace: key.namespace.clone(), name: key.name.clone() })
            }
        }
    }
}

// === impl Workload ===

impl Workload {
    pub fn namespace(&self) -> &str {
        self.id.identity.namespace()
    }

    /// The address that others dial: one per workload, IPv4 if it has one.
    pub fn address(&self) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv4()).or_else(|| self.addresses.first()).copied()
    }

    /// Where others reach the application's port: at its `--serve` listener, or at the port itself, where
    /// redirect rules catch it. On loopback nothing is redirected.
    pub fn mesh_port(&self, application_port: NonZeroU16) -> Option<NonZeroU16> {
        let serve = self.serves.iter().find(|serve| serve.application_port == application_port);
        match serve {
            Some(serve) => Some(serve.mesh_port),
            None if self.address()?.is_loopback() => None,
            None => Some(application_port),
        }
    }

    /// The port at which the application listens, given one at which others dial.
    pub fn application_port(&self, mesh_port: NonZeroU16) -> NonZeroU16 {
        let serve = self.serves.iter().find(|serve| serve.mesh_port == mesh_port);
        serve.map_or(mesh_port, |serve| serve.application_port)
    }

    fn place(&self) -> (Reverse<u64>, WorkloadId) {
        (Reverse(self.registered), self.id.clone())
    }

    pub fn is_selected_by(&self, service: &Service) -> bool {
        *service.name.namespace == *self.namespace()
            && service.selector.as_ref().is_some_and(|selector| selector.select(&self.labels))
    }
}

// === impl Index ===

impl Index {
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    pub fn trust(&self) -> Option<&Arc<Trust>> {
        self.trust.as_ref()
    }

    /// The service that answers to a name which a caller of the namespace uses. `orders` means the
    /// namespace's own.
    pub fn service_by_host(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let own = || self.config.services.get(&ObjectName::new(namespace, host));
        own().or_else(|| self.config.services.get(self.hosts.get(host)?))
    }

    pub fn service_by_address(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.config.services.get(self.virtual_addresses.get(&address)?)
    }

    /// Services that list an endpoint at the address.
    pub fn listed_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Service>> {
        let names = self.listed.get(&address).into_iter().flatten();
        names.filter_map(|name| self.config.services.get(name))
    }

    pub fn routes_of(&self, service: &ObjectName) -> &[Arc<HttpRoute>] {
        self.routes.get(service).map_or(&[], Vec::as_slice)
    }

    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The latest registered first.
    pub fn workloads_at(&self, address: IpAddr) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_address.get(&address).into_iter().flat_map(BTreeMap::values)
    }

    /// The latest registered first.
    pub fn workloads_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<Workload>> {
        self.by_namespace.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub fn reset_trust(&mut self, trust: Arc<Trust>) -> Topics {
        if self.trust.as_ref() == Some(&trust) {
            return Topics::new();
        }
        self.trust = Some(trust);
        Topics::from([Topic::Trust])
    }

    pub fn reset_config(&mut self, config: Arc<Config>) -> Topics {
        let old = std::mem::replace(&mut self.config, config);
        let old_routes = std::mem::take(&mut self.routes);
        self.arrange();
        diff::config(&old, &old_routes, self)
    }

    fn arrange(&mut self) {
        self.hosts.clear();
        self.virtual_addresses.clear();
        self.listed.clear();
        for (name, service) in &self.config.services {
            for host in service.hosts.iter().cloned().chain([service.implied_host()]) {
                self.hosts.insert(host, name.clone());
            }
            for address in &service.addresses {
                self.virtual_addresses.insert(*address, name.clone());
            }
            for endpoint in &service.endpoints {
                self.listed.entry(endpoint.address).or_default().insert(name.clone());
            }
        }
        for route in self.config.routes.values() {
            let parents: BTreeSet<_> = route.parents.iter().map(|parent| &parent.service).collect();
            for parent in parents {
                self.routes.entry(parent.clone()).or_default().push(route.clone());
            }
        }
    }

    pub fn apply_workload(&mut self, workload: Arc<Workload>) -> Topics {
        let old = self.workloads.get(&workload.id).cloned();
        if old.as_ref() == Some(&workload) {
            return Topics::new();
        }
        let mut topics = Topics::new();
        if let Some(old) = old {
            self.unlink(&old);
            diff::workload(&old, self, &mut topics);
        }
        diff::workload(&workload, self, &mut topics);
        for address in &workload.addresses {
            self.by_address.entry(*address).or_default().insert(workload.place(), workload.clone());
        }
        let in_namespace = self.by_namespace.entry(workload.namespace().into()).or_default();
        in_namespace.insert(workload.place(), workload.clone());
        self.workloads.insert(workload.id.clone(), workload);
        topics
    }

    pub fn delete_workload(&mut self, id: &WorkloadId) -> Topics {
        let mut topics = Topics::new();
        if let Some(old) = self.workloads.remove(id) {
            self.unlink(&old);
            diff::workload(&old, self, &mut topics);
        }
        topics
    }

    fn unlink(&mut self, workload: &Workload) {
        for address in &workload.addresses {
            if let Some(there) = self.by_address.get_mut(address) {
                there.remove(&workload.place());
                if there.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        if let Some(there) = self.by_namespace.get_mut(workload.namespace()) {
            there.remove(&workload.place());
            if there.is_empty() {
                self.by_namespace.remove(workload.namespace());
            }
        }
    }
}

fn identity_as_text<S: serde::Serializer>(identity: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(identity.as_str())
}
