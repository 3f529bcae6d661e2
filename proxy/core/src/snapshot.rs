//! The configuration in force: immutable, compiled, and shared between versions where it did not change.
//!
//! A request takes one [`Snapshot`] and is decided by it from beginning to end. An update makes a new one
//! ([`Snapshot::apply`]) or is refused as a whole with every broken field named; parts that did not change are the same
//! `Arc`s as before, so pointer equality tells what did, and state that belongs to a part (loads, pools) can be kept
//! beside it.
//!
//! It holds no runtime state, publishes nothing (that is `shared.rs` in the proxy), and asks for nothing: which keys
//! are subscribed is the business of the stream.

use std::{collections::HashSet, num::NonZeroU16, sync::Arc};

use hashbrown::HashMap;
use outrigger_proto::spec::{
    Backend, BackendKey, Body, Destination, DestinationKey, FieldError, Held, Inbound, InboundPort, Key,
    PortLimits, Protocol, Resource, Route, ServicePort, Trust, Update,
};

use crate::{authorize::Policies, route::CompiledRoute};

mod dump;

/// Everything that decides about a request, at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    inbound: Option<Entry<CompiledInbound>>,
    trust: Option<Entry<Trust>>,
    destinations: HashMap<DestinationKey, Entry<CompiledDestination>>,
    backends: HashMap<BackendKey, Entry<Backend>>,
}

/// The server side of this workload.
#[derive(Debug)]
pub struct CompiledInbound {
    pub spec: Arc<Inbound>,
    pub policies: Policies,
}

/// What an address or authority means.
#[derive(Debug)]
pub struct CompiledDestination {
    pub spec: Arc<Destination>,
    pub target: Target,
}

#[derive(Debug)]
pub enum Target {
    Service(ServiceTarget),
    /// One workload. Its backend has this only endpoint, so that it is used like any other.
    Workload {
        backend: Arc<Backend>,
        protocol: Protocol,
    },
    /// Known not to be in the mesh; the egress policy decides.
    External,
}

#[derive(Debug)]
pub struct ServiceTarget {
    pub protocol: Protocol,
    /// In the order of precedence. Empty: everything goes to `backend`.
    pub routes: Vec<Arc<CompiledRoute>>,
    pub backend: BackendKey,
}

#[derive(Debug)]
struct Entry<T> {
    version: Arc<str>,
    value: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { version: Arc::clone(&self.version), value: Arc::clone(&self.value) }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Takes an update as a whole or refuses it as a whole.
    pub fn apply(&self, update: Update) -> Result<Self, Vec<FieldError>> {
        let mut next = self.clone();
        let mut errors = Vec::new();
        let mut removed_backends = HashMap::new();
        for (index, key) in update.removed.into_iter().enumerate() {
            match key {
                // Without them a workload would be open to everyone, or trust nobody: their end is a restart.
                Key::Inbound | Key::Trust => {
                    errors.push(FieldError {
                        field: format!("removed[{index}]"),
                        reason: format!("{key} cannot be removed"),
                    });
                }
                Key::Destination(key) => {
                    next.destinations.remove(&key);
                }
                Key::Backend(key) => {
                    next.backends.remove(&key);
                    removed_backends.insert(key, index);
                }
            }
        }
        let mut seen = HashSet::new();
        let mut changed = Vec::new();
        let mut changed_backends = Vec::new();
        for (index, Resource { version, body }) in update.resources.into_iter().enumerate() {
            let key = body.key();
            if !seen.insert(key.clone()) {
                errors.push(FieldError {
                    field: format!("resources[{index}].key"),
                    reason: format!("{key} stands twice"),
                });
                continue;
            }
            match body {
                Body::Inbound(spec) => next.inbound = Some(self.compile_inbound(version, spec)),
                Body::Trust(trust) => {
                    let value = match &self.trust {
                        Some(old) if *old.value == *trust => Arc::clone(&old.value),
                        Some(_) | None => trust,
                    };
                    next.trust = Some(Entry { version, value });
                }
                Body::Destination(key, spec) => {
                    let old = self.destinations.get(&key).map(|entry| &entry.value);
                    let field = format!("resources[{index}].destination");
                    if let Some(value) = compile_destination(old, spec, &field, &mut errors) {
                        changed.push((field, Arc::clone(&value)));
                        next.destinations.insert(key, Entry { version, value });
                    }
                }
                Body::Backend(key, backend) => {
                    let value = match self.backends.get(&key) {
                        Some(old) if *old.value == *backend => Arc::clone(&old.value),
                        Some(_) | None => backend,
                    };
                    removed_backends.remove(&key);
                    changed_backends.push((index, Arc::clone(&value)));
                    next.backends.insert(key, Entry { version, value });
                }
            }
        }
        for (field, destination) in changed {
            destination.for_each_backend(|key, place| {
                if !next.backends.contains_key(key) {
                    let reason = format!("backend/{key} is not there");
                    errors.push(FieldError { field: format!("{field}.service.{place}"), reason });
                }
            });
        }
        for (index, backend) in changed_backends {
            if let Some(key) = backend.traffic.backup()
                && !next.backends.contains_key(key)
            {
                let field = format!("resources[{index}].backend.traffic.fallback.backend");
                errors.push(FieldError { field, reason: format!("backend/{key} is not there") });
            }
        }
        if !removed_backends.is_empty() {
            next.check_removed(&removed_backends, &mut errors);
        }
        if errors.is_empty() { Ok(next) } else { Err(errors) }
    }

    fn compile_inbound(&self, version: Arc<str>, spec: Arc<Inbound>) -> Entry<CompiledInbound> {
        if let Some(old) = &self.inbound
            && *old.value.spec == *spec
        {
            return Entry { version, value: Arc::clone(&old.value) };
        }
        let policies = Policies::compile(&spec.authorization);
        Entry { version, value: Arc::new(CompiledInbound { spec, policies }) }
    }

    /// A backend that is being removed must not be one that somebody still refers to.
    fn check_removed(&self, removed: &HashMap<BackendKey, usize>, errors: &mut Vec<FieldError>) {
        for (name, destination) in self.destinations() {
            destination.for_each_backend(|key, _| {
                if let Some(index) = removed.get(key)
                    && !self.backends.contains_key(key)
                {
                    let reason = format!("backend/{key} is still referred to by {name}");
                    errors.push(FieldError { field: format!("removed[{index}]"), reason });
                }
            });
        }
        for (name, backend) in self.backends() {
            if let Some(key) = backend.traffic.backup()
                && let Some(index) = removed.get(key)
            {
                let reason = format!("backend/{key} still stands in for backend/{name}");
                errors.push(FieldError { field: format!("removed[{index}]"), reason });
            }
        }
    }

    /// Without these destinations, which nobody asks for any more. Their backends stay until the control plane removes
    /// them: only it knows whether it counts on them being held.
    pub fn without(&self, keys: &[DestinationKey]) -> Self {
        let mut next = self.clone();
        for key in keys {
            next.destinations.remove(key);
        }
        next
    }

    /// `None`: not configured yet, so nobody is let in.
    pub fn inbound(&self) -> Option<&Arc<CompiledInbound>> {
        self.inbound.as_ref().map(|entry| &entry.value)
    }

    pub fn trust(&self) -> Option<&Arc<Trust>> {
        self.trust.as_ref().map(|entry| &entry.value)
    }

    pub fn destination(&self, key: &DestinationKey) -> Option<&Arc<CompiledDestination>> {
        self.destinations.get(key).map(|entry| &entry.value)
    }

    pub fn backend(&self, key: &BackendKey) -> Option<&Arc<Backend>> {
        self.backends.get(key).map(|entry| &entry.value)
    }

    /// In no order.
    pub fn destinations(&self) -> impl Iterator<Item = (&DestinationKey, &Arc<CompiledDestination>)> {
        self.destinations.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// In no order.
    pub fn backends(&self) -> impl Iterator<Item = (&BackendKey, &Arc<Backend>)> {
        self.backends.iter().map(|(key, entry)| (key, &entry.value))
    }

    /// What is held, for Hello: sorted by key.
    pub fn held(&self) -> Vec<Held> {
        let mut held: Vec<_> = self
            .resources()
            .into_iter()
            .map(|resource| Held { key: resource.body.key(), version: resource.version })
            .collect();
        held.sort_by(|a, b| a.key.cmp(&b.key));
        held
    }

    /// Everything held, to be written to disk and applied again: sorted by key.
    pub fn resources(&self) -> Vec<Resource> {
        let inbound = self.inbound.iter().map(|entry| Resource {
            version: Arc::clone(&entry.version),
            body: Body::Inbound(Arc::clone(&entry.value.spec)),
        });
        let trust = self.trust.iter().map(|entry| Resource {
            version: Arc::clone(&entry.version),
            body: Body::Trust(Arc::clone(&entry.value)),
        });
        let destinations = self.destinations.iter().map(|(key, entry)| Resource {
            version: Arc::clone(&entry.version),
            body: Body::Destination(key.clone(), Arc::clone(&entry.value.spec)),
        });
        let backends = self.backends.iter().map(|(key, entry)| Resource {
            version: Arc::clone(&entry.version),
            body: Body::Backend(key.clone(), Arc::clone(&entry.value)),
        });
        let mut all: Vec<_> = inbound.chain(trust).chain(destinations).chain(backends).collect();
        all.sort_by_cached_key(|resource| resource.body.key());
        all
    }
}

// === impl CompiledInbound ===

impl CompiledInbound {
    /// The declaration of a port, or the default (detected, strict).
    pub fn port(&self, port: u16) -> InboundPort {
        let declared = NonZeroU16::new(port).and_then(|port| self.spec.ports.get(&port));
        declared.cloned().unwrap_or_default()
    }

    /// What protects a port from its callers.
    pub fn limits(&self, port: u16) -> Option<&Arc<PortLimits>> {
        self.spec.ports.get(&NonZeroU16::new(port)?)?.limits.as_ref()
    }
}

// === impl CompiledDestination ===

impl CompiledDestination {
    /// Calls with each backend that this refers to, and where in the resource.
    fn for_each_backend<'a>(&'a self, mut visit: impl FnMut(&'a BackendKey, &dyn std::fmt::Display)) {
        let Target::Service(service) = &self.target else { return };
        visit(&service.backend, &"backend");
        for (rule, route) in service.routes.iter().enumerate() {
            for (index, weighted) in route.spec().backends.iter().enumerate() {
                visit(&weighted.backend, &format_args!("routes[{rule}].backends[{index}].backend"));
            }
        }
    }

    fn routes(&self) -> &[Arc<CompiledRoute>] {
        match &self.target {
            Target::Service(service) => &service.routes,
            Target::Workload { .. } | Target::External => &[],
        }
    }
}

fn compile_destination(
    old: Option<&Arc<CompiledDestination>>,
    spec: Arc<Destination>,
    field: &str,
    errors: &mut Vec<FieldError>,
) -> Option<Arc<CompiledDestination>> {
    if let Some(old) = old
        && *old.spec == *spec
    {
        return Some(Arc::clone(old));
    }
    let target = match &*spec {
        Destination::External => Target::External,
        Destination::Workload(workload) => {
            let backend = Backend { endpoints: vec![workload.endpoint.clone()], ..Backend::default() };
            Target::Workload { backend: Arc::new(backend), protocol: workload.protocol }
        }
        Destination::Service(service) => {
            let old = old.map_or(&[][..], |old| old.routes());
            Target::Service(compile_service(old, service, field, errors)?)
        }
    };
    Some(Arc::new(CompiledDestination { spec, target }))
}

fn compile_service(
    old: &[Arc<CompiledRoute>],
    service: &ServicePort,
    field: &str,
    errors: &mut Vec<FieldError>,
) -> Option<ServiceTarget> {
    let before = errors.len();
    let mut routes = Vec::with_capacity(service.routes.len());
    for (index, spec) in service.routes.iter().enumerate() {
        if let Some(kept) = old.iter().find(|old| same_route(old.spec(), spec)) {
            routes.push(Arc::clone(kept));
            continue;
        }
        match CompiledRoute::compile(spec, &format!("{field}.service.routes[{index}]")) {
            Ok(route) => routes.push(Arc::new(route)),
            Err(refused) => errors.extend(refused),
        }
    }
    let target = ServiceTarget { protocol: service.protocol, routes, backend: service.backend.clone() };
    (errors.len() == before).then_some(target)
}

fn same_route(a: &Arc<Route>, b: &Arc<Route>) -> bool {
    Arc::ptr_eq(a, b) || a == b
}

#[cfg(test)]
mod tests;
