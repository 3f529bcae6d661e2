//! What a key means to a caller: the index, compiled into the types of the contract. Pure functions.
//!
//! - [`destination`]: an address or a name, as seen from a namespace;
//! - [`backend`]: endpoints of a service, and how to use them;
//! - [`inbound`](inbound()): the server side of one workload.
//!
//! Equal input gives equal output on every control plane: everything is sorted before it is handed out.

mod inbound;
mod routes;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use outrigger_proto::spec::{
    self, Backend, BackendKey, Body, Destination, DestinationKey, Endpoint, Key, Protocol, ServicePort,
    Traffic,
};

use crate::{
    config::{self, ObjectName, Port, Service},
    index::{Index, Workload},
};

pub use inbound::inbound;

/// The resource behind a key. `None`: not known yet (trust before the authority was read).
pub fn body(index: &Index, subscriber: &Workload, key: &Key) -> Option<Body> {
    Some(match key {
        Key::Inbound => Body::Inbound(Arc::new(inbound(index, subscriber))),
        Key::Trust => Body::Trust(index.trust()?.clone()),
        Key::Destination(key) => {
            Body::Destination(key.clone(), Arc::new(destination(index, subscriber.namespace(), key)))
        }
        Key::Backend(key) => Body::Backend(key.clone(), Arc::new(backend(index, key))),
    })
}

/// Backends that a resource names, which go with it: those of a service's routes, and the one that stands in for another.
pub fn backends_of(body: &Body) -> Vec<BackendKey> {
    let mut keys: Vec<BackendKey> = match body {
        Body::Destination(_, destination) => match &**destination {
            Destination::Service(service) => {
                let routed = service.routes.iter().flat_map(|route| &route.backends);
                routed.map(|weighted| &weighted.backend).chain([&service.backend]).cloned().collect()
            }
            Destination::Workload(_) | Destination::External => Vec::new(),
        },
        Body::Backend(_, backend) => backend.traffic.backup().cloned().into_iter().collect(),
        Body::Inbound(_) | Body::Trust(_) => Vec::new(),
    };
    keys.sort();
    keys.dedup();
    keys
}

/// What a caller of the namespace reaches.
pub fn destination(index: &Index, namespace: &str, key: &DestinationKey) -> Destination {
    match key {
        DestinationKey::Authority(authority) => match index.service_by_host(authority.host(), namespace) {
            Some(service) => service_port(index, namespace, service, authority.port()),
            None => Destination::External,
        },
        DestinationKey::Address(address) => {
            let Some(port) = NonZeroU16::new(address.port()) else { return Destination::External };
            match index.service_by_address(address.ip()) {
                Some(service) => service_port(index, namespace, service, port),
                None => workload_at(index, address.ip(), port)
                    .map_or(Destination::External, Destination::Workload),
            }
        }
    }
}

/// A port that the service does not have leads to a backend without endpoints: a name or virtual address of
/// the mesh never leads out of it.
fn service_port(index: &Index, namespace: &str, service: &Service, port: NonZeroU16) -> Destination {
    let declared = service.port(port);
    Destination::Service(ServicePort {
        namespace: service.name.namespace.clone(),
        name: service.name.name.clone(),
        port,
        protocol: declared.map_or(Protocol::Detect, |port| port.protocol),
        routes: declared.map(|port| routes::routes(index, namespace, service, port)).unwrap_or_default(),
        backend: service.backend(port),
    })
}

/// Whose own address this is. What the configuration lists goes before what a workload says of itself.
fn workload_at(index: &Index, ip: IpAddr, port: NonZeroU16) -> Option<spec::Workload> {
    let listed =
        || index.listed_at(ip).flat_map(|service| &service.endpoints).filter(move |it| it.address == ip);
    for service in index.listed_at(ip) {
        for declared in &service.ports {
            let endpoint = service.endpoints.iter().find(|it| it.address == ip && it.port(declared) == port);
            if let Some(endpoint) = endpoint {
                return Some(at_listed(index, endpoint, port));
            }
        }
    }
    for workload in index.workloads_at(ip) {
        let serve = |serve: &&spec::Serve| serve.mesh_port == port || serve.application_port == port;
        if let Some(serve) = workload.serves.iter().find(serve) {
            return Some(at_workload(index, workload, ip, serve.mesh_port));
        }
    }
    if ip.is_loopback() {
        // Many programs share it, and nothing is redirected there: only what was named is in the mesh.
        return None;
    }
    if let Some(first) = listed().next() {
        let one_identity = listed().all(|endpoint| endpoint.identity == first.identity);
        return one_identity.then(|| at_listed(index, first, port));
    }
    let captured = index.workloads_at(ip).find(|workload| workload.serves.is_empty())?;
    Some(at_workload(index, captured, ip, port))
}

fn at_listed(index: &Index, endpoint: &config::Endpoint, port: NonZeroU16) -> spec::Workload {
    let there = |workload: &&Arc<Workload>| workload.id.identity == endpoint.identity;
    let protocol = match index.workloads_at(endpoint.address).find(there) {
        Some(workload) => protocol_at(index, workload, port),
        // Nobody registered there: its labels are unknown, the services that list it are not.
        None => inbound::listed_protocols(index, &endpoint.identity, &[endpoint.address])
            .get(&port)
            .copied()
            .unwrap_or_default(),
    };
    spec::Workload {
        endpoint: Endpoint {
            address: SocketAddr::new(endpoint.address, port.get()),
            identity: endpoint.identity.clone(),
            zone: endpoint.zone.clone(),
            weight: NonZeroU32::MIN,
            subset: Arc::default(),
            ready_since: None,
        },
        protocol,
    }
}

fn at_workload(index: &Index, workload: &Workload, ip: IpAddr, port: NonZeroU16) -> spec::Workload {
    spec::Workload {
        endpoint: Endpoint {
            address: SocketAddr::new(ip, port.get()),
            identity: workload.id.identity.clone(),
            zone: workload.zone.clone(),
            weight: NonZeroU32::MIN,
            subset: Arc::default(),
            ready_since: None,
        },
        protocol: protocol_at(index, workload, port),
    }
}

fn protocol_at(index: &Index, workload: &Workload, mesh_port: NonZeroU16) -> Protocol {
    let port = workload.application_port(mesh_port);
    inbound::ports(index, workload).get(&port).map(|port| port.protocol).unwrap_or_default()
}

/// Endpoints of a service's port. A service or port that does not exist has none.
pub fn backend(index: &Index, key: &BackendKey) -> Backend {
    let name = ObjectName { namespace: key.namespace.clone(), name: key.name.clone() };
    let Some(service) = index.config().services.get(&name) else { return Backend::default() };
    let Some(port) = service.port(key.port) else { return Backend::default() };
    let traffic = usage(index, &name, key.port);
    let label = traffic.load_balancer.subset.as_ref().map(|subset| &*subset.label);
    Backend { endpoints: endpoints(index, service, port, label), traffic: Arc::new(traffic) }
}

/// `label`: the one that tells subsets apart, if the service has any.
fn endpoints(index: &Index, service: &Service, port: &Port, label: Option<&str>) -> Vec<Endpoint> {
    let subset_of =
        |labels: &BTreeMap<String, String>| -> Option<Arc<str>> { Some(labels.get(label?)?.as_str().into()) };
    let mut found: BTreeMap<SocketAddr, Option<Endpoint>> = BTreeMap::new();
    for listed in &service.endpoints {
        let number = listed.port(port);
        let address = SocketAddr::new(listed.address, number.get());
        // The latest word of the workload there, if one with this identity is known.
        let known = index.workloads_at(listed.address).find(|workload| {
            let served = workload.mesh_port(workload.application_port(number)) == Some(number);
            workload.id.identity == listed.identity && served
        });
        let serving = known.is_none_or(|workload| workload.serving);
        let endpoint = Endpoint {
            address,
            identity: listed.identity.clone(),
            zone: listed.zone.clone(),
            weight: listed.weight,
            subset: subset_of(&listed.labels).or_else(|| subset_of(&known?.labels)).unwrap_or_default(),
            ready_since: known.and_then(|workload| workload.ready_since),
        };
        found.insert(address, serving.then_some(endpoint));
    }
    for workload in index.workloads_in(&service.name.namespace) {
        let dialled = || Some(SocketAddr::new(workload.address()?, workload.mesh_port(port.target)?.get()));
        let Some(address) = workload.is_selected_by(service).then(dialled).flatten() else { continue };
        // The latest registered come first, so a restarted proxy speaks for the address and not its old self.
        found.entry(address).or_insert_with(|| {
            workload.serving.then(|| Endpoint {
                address,
                identity: workload.id.identity.clone(),
                zone: workload.zone.clone(),
                weight: NonZeroU32::MIN,
                subset: subset_of(&workload.labels).unwrap_or_default(),
                ready_since: workload.ready_since,
            })
        });
    }
    found.into_values().flatten().collect()
}

/// The policy for the port goes before the one for the whole service.
fn usage(index: &Index, service: &ObjectName, port: NonZeroU16) -> Traffic {
    let policies = || index.config().traffic.values().filter(|policy| policy.service == *service);
    let of = |port| policies().find(|policy| policy.port == port).map(|policy| &policy.usage);
    let usage = match (of(Some(port)), of(None)) {
        (Some(own), Some(whole)) => own.or(whole),
        (Some(usage), None) | (None, Some(usage)) => usage.clone(),
        (None, None) => return Traffic::default(),
    };
    usage.traffic(|backup| {
        let service = index.config().services.get(&backup.service)?;
        Some(service.backend(backup.resolve(service)?))
    })
}
