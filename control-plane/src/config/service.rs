//! A `MeshService`, validated.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
};

use outrigger_certs::SpiffeId;
use outrigger_proto::{
    limits::MAX_ENDPOINTS,
    spec::{BackendKey, Protocol},
};

use super::{Labels, ObjectName, notes::Notes, policy::labels};
use crate::{
    kinds::{self, Document, MeshServiceSpec},
    yaml::Path,
};

#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub name: ObjectName,
    /// As written; the implied names are not among them.
    pub hosts: Vec<Arc<str>>,
    pub addresses: Vec<IpAddr>,
    /// Never empty.
    pub ports: Vec<Port>,
    pub endpoints: Vec<Endpoint>,
    pub selector: Option<Labels>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Empty where it has none.
    pub name: Arc<str>,
    pub port: NonZeroU16,
    pub target: NonZeroU16,
    pub protocol: Protocol,
}

/// Written in the service, as opposed to found by its selector.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub identity: SpiffeId,
    pub zone: Arc<str>,
    pub weight: NonZeroU32,
    /// By the service's port: where this endpoint differs from the target port.
    pub ports: BTreeMap<NonZeroU16, NonZeroU16>,
    pub labels: BTreeMap<String, String>,
}

impl Service {
    pub fn port(&self, port: NonZeroU16) -> Option<&Port> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    pub fn backend(&self, port: NonZeroU16) -> BackendKey {
        BackendKey { namespace: self.name.namespace.clone(), name: self.name.name.clone(), port }
    }

    /// `NAME.NAMESPACE`, by which the service is known everywhere.
    pub fn implied_host(&self) -> Arc<str> {
        format!("{}.{}", self.name.name, self.name.namespace).into()
    }
}

impl Endpoint {
    pub fn port(&self, port: &Port) -> NonZeroU16 {
        self.ports.get(&port.port).copied().unwrap_or(port.target)
    }
}

impl Port {
    pub fn may_be_http(&self) -> bool {
        may_be_http(self.protocol)
    }
}

pub(super) fn may_be_http(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Detect | Protocol::Http | Protocol::Http2 | Protocol::Grpc => true,
        Protocol::Tcp | Protocol::Tls => false,
    }
}

pub(super) fn from_kind(
    name: &ObjectName,
    document: Document<MeshServiceSpec>,
    notes: &mut Notes<'_>,
) -> Option<Service> {
    let MeshServiceSpec { hosts, addresses, ports, endpoints, selector } = document.spec;
    let spec = Path::of("spec");

    let hosts = each(&spec.key("hosts"), hosts, |path, host| notes.host(path, &host));
    once(&spec.key("hosts"), hosts.as_deref(), notes);
    let addresses = each(&spec.key("addresses"), addresses, |path, address| notes.ip(path, &address));
    once(&spec.key("addresses"), addresses.as_deref(), notes);
    let selector = selector.map(|selector| labels(&spec.key("selector"), selector, notes));
    let ports = ports_from_kind(&spec.key("ports"), ports, notes);

    let path = spec.key("endpoints");
    notes.at_most(&path, endpoints.len(), MAX_ENDPOINTS);
    // With broken ports, endpoints are still read for what else is wrong with them.
    let known = ports.as_deref();
    let endpoints = each(&path, endpoints, |path, endpoint| endpoint_from_kind(path, endpoint, known, notes));
    for port in ports.iter().flatten() {
        let mut seen = BTreeSet::new();
        for (index, endpoint) in endpoints.iter().flatten().enumerate() {
            let number = endpoint.port(port);
            if !seen.insert((endpoint.address, number)) {
                let reason = format!("port {number} of {} is listed twice", endpoint.address);
                notes.note(&path.index(index).key("address"), reason);
            }
        }
    }
    Some(Service {
        name: name.clone(),
        hosts: hosts?,
        addresses: addresses?,
        ports: ports?,
        endpoints: endpoints?,
        selector,
    })
}

fn ports_from_kind(path: &Path, ports: Vec<kinds::ServicePort>, notes: &mut Notes<'_>) -> Option<Vec<Port>> {
    if ports.is_empty() {
        notes.note(path, "is empty: a service needs a port");
    }
    let several = ports.len() > 1;
    let ports = each(path, ports, |path, written| {
        let kinds::ServicePort { name, port, target_port, app_protocol } = written;
        if several && name.is_none() {
            notes.note(&path.key("name"), "is required where there are several ports");
        }
        let name = match &name {
            Some(name) => notes.name(&path.key("name"), name),
            None => Some(Arc::default()),
        };
        let port = notes.port(&path.key("port"), port);
        let target = match target_port {
            Some(target) => notes.port(&path.key("targetPort"), target),
            None => port,
        };
        let protocol = app_protocol.map_or(Protocol::Detect, Protocol::from);
        Some(Port { name: name?, port: port?, target: target?, protocol })
    })?;
    for (index, port) in ports.iter().enumerate() {
        let same =
            |other: &&Port| other.port == port.port || (other.name == port.name && !port.name.is_empty());
        if let Some(other) = ports[..index].iter().find(same) {
            let (field, what) = match other.port == port.port {
                true => ("port", port.port.to_string()),
                false => ("name", format!("{:?}", port.name)),
            };
            notes.note(&path.index(index).key(field), format!("{what} is used by another port already"));
        }
    }
    Some(ports)
}

fn endpoint_from_kind(
    path: &Path,
    written: kinds::Endpoint,
    ports: Option<&[Port]>,
    notes: &mut Notes<'_>,
) -> Option<Endpoint> {
    let kinds::Endpoint { address, identity, zone, weight, ports: own, labels } = written;
    let address = notes.ip(&path.key("address"), &address);
    let identity = notes.identity(&path.key("identity"), &identity);
    let weight = notes.weight(&path.key("weight"), weight, u16::MAX.into());
    let mut own_ports = BTreeMap::new();
    for (name, number) in own {
        let path = path.key("ports").key(&name);
        let number = notes.port(&path, number);
        let Some(ports) = ports else { continue };
        match ports.iter().find(|port| *port.name == *name && !name.is_empty()) {
            None => notes.note(&path, format!("{name:?} is not the name of a port of this service")),
            Some(port) => own_ports.extend(number.map(|number| (port.port, number))),
        }
    }
    for (key, value) in &labels {
        notes.label(&path.key("labels"), key, value);
    }
    let zone = zone.unwrap_or_default();
    if zone.len() > 253 || zone.chars().any(char::is_control) {
        notes.note(&path.key("zone"), "is longer than 253 bytes or has a control character");
    }
    Some(Endpoint {
        address: address?,
        identity: identity?,
        zone: zone.into(),
        weight: weight?,
        ports: own_ports,
        labels,
    })
}

/// Converts each item under its own path; nothing when any of them fails, so that positions in the result are
/// those in the file.
pub(super) fn each<A, B>(
    path: &Path,
    items: Vec<A>,
    mut convert: impl FnMut(&Path, A) -> Option<B>,
) -> Option<Vec<B>> {
    // Not `collect::<Option<_>>()`, which would stop at the first failure and leave the others untold.
    let converted: Vec<Option<B>> =
        items.into_iter().enumerate().map(|(index, item)| convert(&path.index(index), item)).collect();
    converted.into_iter().collect()
}

pub(super) fn once<T: Ord + std::fmt::Display>(path: &Path, items: Option<&[T]>, notes: &mut Notes<'_>) {
    let mut seen = BTreeSet::new();
    for (index, item) in items.unwrap_or_default().iter().enumerate() {
        if !seen.insert(item) {
            notes.note(&path.index(index), format!("{item} is listed twice"));
        }
    }
}
