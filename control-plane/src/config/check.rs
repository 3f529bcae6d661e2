//! What only shows when all objects lie side by side: references and conflicts.
//!
//! A conflict is told at the later object (in the order of names) and names the place of the earlier one.
//! References to an object that exists but is broken are let pass: its own error is told, and one mistake
//! should not echo.

mod protocol;
mod traffic;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use outrigger_proto::limits::MAX_ROUTES;

use super::{
    ConfigError, Draft, Labels, ObjectName, Objects, Path, Port, ServerPolicy, Service, Source, Target,
    Written,
    route::{BackendRef, HttpRoute, Parent},
};

pub(super) fn check(draft: &mut Draft) {
    let mut errors = Vec::new();
    claims(&draft.services, &mut errors);
    // With a document that could not even be named, no reference can be called dangling.
    if !draft.incomplete {
        for written in draft.routes.values() {
            route(written, &draft.services, &mut errors);
        }
        route_count(draft, &mut errors);
        traffic::check(draft, &mut errors);
        protocol::check(draft, &mut errors);
        authorization(draft, &mut errors);
    }
    server(&draft.server, &mut errors);
    draft.errors.append(&mut errors);
}

/// Objects whose value is whole, with their source.
fn whole<T>(objects: &Objects<T>) -> impl Iterator<Item = (&T, &Source)> {
    objects.values().filter_map(|written| Some((&**written.value.as_ref()?, &written.source)))
}

/// A reference to a service that cannot be followed: why, and whether the last step (the port) is to blame.
enum Dangling {
    Service(String),
    Port(String),
}

/// The service, or `None` where it exists but is broken.
fn find<'a>(services: &'a Objects<Service>, name: &ObjectName) -> Result<Option<&'a Service>, Dangling> {
    match services.get(name) {
        Some(written) => Ok(written.value.as_deref()),
        None => Err(Dangling::Service(format!("there is no MeshService {name}"))),
    }
}

fn find_port<'a>(
    services: &'a Objects<Service>,
    name: &ObjectName,
    port: Option<NonZeroU16>,
) -> Result<Option<(&'a Service, Option<&'a Port>)>, Dangling> {
    let Some(service) = find(services, name)? else { return Ok(None) };
    let Some(port) = port else { return Ok(Some((service, None))) };
    match service.port(port) {
        Some(port) => Ok(Some((service, Some(port)))),
        None => {
            let known: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
            Err(Dangling::Port(format!("MeshService {name} has no port {port}; it has {}", known.join(", "))))
        }
    }
}

impl Dangling {
    fn error(self, source: &Source, path: &Path) -> ConfigError {
        match self {
            Self::Service(reason) => source.error(&(path.key("name"), reason)),
            Self::Port(reason) => source.error(&(path.key("port"), reason)),
        }
    }
}

/// No two services answer to one name or virtual address.
fn claims(services: &Objects<Service>, errors: &mut Vec<ConfigError>) {
    let spec = Path::of("spec");
    let mut hosts = Claims::default();
    // Names that services have by being there come first, so that a conflict is told where a name was
    // written.
    for (service, source) in whole(services) {
        let ObjectName { namespace, name } = &service.name;
        let path = Path::of("metadata").key("name");
        hosts.claim((Some(namespace.clone()), name.clone()), source, &path, errors);
        // `a.b` in `c` and `a` in `b.c` both imply `a.b.c`.
        hosts.claim((None, service.implied_host()), source, &path, errors);
    }
    let mut addresses = Claims::default();
    for (service, source) in whole(services) {
        for (index, host) in service.hosts.iter().enumerate() {
            let path = spec.key("hosts").index(index);
            // Inside the namespace a name without dots means the service of that name.
            let bare = (Some(service.name.namespace.clone()), host.clone());
            if hosts.may_claim(&bare, source, &path, errors) {
                hosts.claim((None, host.clone()), source, &path, errors);
            }
        }
        for (index, address) in service.addresses.iter().enumerate() {
            addresses.claim(*address, source, &spec.key("addresses").index(index), errors);
        }
    }
    for (service, source) in whole(services) {
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            let path = spec.key("endpoints").index(index).key("address");
            if let Some((other, at)) = addresses.0.get(&endpoint.address) {
                let address = endpoint.address;
                let reason = format!("{address} is a virtual address of {} ({})", other.label, other.at(at));
                errors.push(source.error(&(path, reason)));
            }
        }
    }
}

/// What is claimed, by whom, and where that is written.
struct Claims<'a, K>(BTreeMap<K, (&'a Source, Path)>);

impl<K> Default for Claims<'_, K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'a, K: Ord + Claimed> Claims<'a, K> {
    fn claim(&mut self, what: K, source: &'a Source, path: &Path, errors: &mut Vec<ConfigError>) {
        if self.may_claim(&what, source, path, errors) {
            self.0.entry(what).or_insert_with(|| (source, path.clone()));
        }
    }

    /// Whether the claim may stand: nobody else has it.
    fn may_claim(&self, what: &K, source: &Source, path: &Path, errors: &mut Vec<ConfigError>) -> bool {
        match self.0.get(what) {
            Some((other, at)) if !std::ptr::eq(*other, source) => {
                let reason =
                    format!("{} is claimed by {} already ({})", what.text(), other.label, other.at(at));
                errors.push(source.error(&(path.clone(), reason)));
                false
            }
            Some(_) | None => true,
        }
    }
}

trait Claimed {
    fn text(&self) -> String;
}

/// A host, everywhere or within a namespace.
impl Claimed for (Option<Arc<str>>, Arc<str>) {
    fn text(&self) -> String {
        format!("the host {:?}", self.1)
    }
}

impl Claimed for IpAddr {
    fn text(&self) -> String {
        self.to_string()
    }
}

fn route(written: &Written<HttpRoute>, services: &Objects<Service>, errors: &mut Vec<ConfigError>) {
    let (Some(route), source) = (&written.value, &written.source) else { return };
    let spec = Path::of("spec");
    for (index, parent) in route.parents.iter().enumerate() {
        let path = spec.key("parentRefs").index(index);
        if route.parents[..index].contains(parent) {
            errors.push(source.error(&(path.clone(), "is the same parent once more".to_owned())));
        }
        match find_port(services, &parent.service, parent.port) {
            Err(dangling) => errors.push(dangling.error(source, &path)),
            Ok(None) => {}
            Ok(Some((service, port))) => {
                if let Some((field, reason)) = unroutable(service, port, parent) {
                    errors.push(source.error(&(path.key(field), reason)));
                }
            }
        }
    }
    for (index, rule) in route.rules.iter().enumerate() {
        for (position, backend) in rule.backends.iter().enumerate() {
            let path = spec.key("rules").index(index).key("backendRefs").index(position);
            match find_port(services, &backend.service, backend.port) {
                Err(dangling) => errors.push(dangling.error(source, &path)),
                Ok(Some((service, None))) if service.ports.len() > 1 => {
                    let reason = format!("is required: MeshService {} has several ports", backend.service);
                    errors.push(source.error(&(path.key("port"), reason)));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Why requests of a parent cannot be routed, and which field to blame.
fn unroutable(service: &Service, port: Option<&Port>, parent: &Parent) -> Option<(&'static str, String)> {
    let section = match &parent.section {
        Some(section) => match service.ports.iter().find(|port| port.name == *section) {
            None => {
                return Some((
                    "sectionName",
                    format!("MeshService {} has no port named {section:?}", service.name),
                ));
            }
            Some(named) if port.is_some_and(|port| port != named) => {
                return Some(("sectionName", format!("names port {}, and port says otherwise", named.port)));
            }
            Some(named) => Some(named),
        },
        None => None,
    };
    match section.or(port) {
        Some(port) if !port.may_be_http() => {
            let field = if section.is_some() { "sectionName" } else { "port" };
            Some((
                field,
                format!(
                    "port {} of MeshService {} carries no HTTP: see its appProtocol",
                    port.port, service.name
                ),
            ))
        }
        None if !service.ports.iter().any(Port::may_be_http) => Some((
            "name",
            format!("no port of MeshService {} carries HTTP: see its appProtocol", service.name),
        )),
        Some(_) | None => None,
    }
}

/// Proxies take a limited number of routes per service.
fn route_count(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let mut counts: BTreeMap<&ObjectName, usize> = BTreeMap::new();
    for (route, source) in whole(&draft.routes) {
        let matches: usize = route.rules.iter().map(|rule| rule.matches.len().max(1)).sum();
        for (index, parent) in route.parents.iter().enumerate() {
            let count = counts.entry(&parent.service).or_default();
            let before = *count;
            *count += matches;
            if before <= MAX_ROUTES && *count > MAX_ROUTES {
                let path = Path::of("spec").key("parentRefs").index(index);
                let reason = format!(
                    "with this route MeshService {} has more than {MAX_ROUTES} matches",
                    parent.service
                );
                errors.push(source.error(&(path, reason)));
            }
        }
    }
}

fn authorization(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let spec = Path::of("spec");
    for (policy, source) in whole(&draft.authorization) {
        let Target::Service { name, port } = &policy.target else { continue };
        let (service, port) = match find_port(&draft.services, name, *port) {
            Err(dangling) => {
                errors.push(dangling.error(source, &spec.key("targetRef")));
                continue;
            }
            Ok(None) => continue,
            Ok(Some(found)) => found,
        };
        let served = service.target_ports(port);
        for (index, rule) in policy.rules.iter().enumerate() {
            for (position, port) in rule.ports.iter().enumerate() {
                if !served.contains(port) {
                    let path = spec.key("rules").index(index).key("to").key("ports").index(position);
                    let known: Vec<String> = served.iter().map(ToString::to_string).collect();
                    let reason =
                        format!("MeshService {name} is not served at {port}, but at {}", known.join(", "));
                    errors.push(source.error(&(path, reason)));
                }
            }
        }
    }
}

/// No two policies say something about one port of the same workloads. Selectors that merely overlap are
/// legal: the one with more labels wins.
fn server(policies: &Objects<ServerPolicy>, errors: &mut Vec<ConfigError>) {
    let mut said: BTreeMap<(&str, &Labels, Option<NonZeroU16>), (&Source, Path)> = BTreeMap::new();
    for (policy, source) in whole(policies) {
        let spec = Path::of("spec");
        let ports = policy
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| (Some(port.port), spec.key("ports").index(index).key("port")));
        let egress = policy.egress.map(|_| (None, spec.key("egress")));
        for (what, path) in ports.chain(egress) {
            let claim = (&*policy.name.namespace, &policy.selector, what);
            if let Some((other, at)) = said.get(&claim) {
                let reason =
                    format!("{} says this of the same workloads already ({})", other.label, other.at(at));
                errors.push(source.error(&(path, reason)));
            } else {
                said.insert(claim, (source, path));
            }
        }
    }
}

impl Service {
    /// Where the application listens: for one port of the service, or for all. Endpoints with ports of their
    /// own count.
    pub(crate) fn target_ports(&self, port: Option<&Port>) -> BTreeSet<NonZeroU16> {
        let ports = self.ports.iter().filter(|candidate| port.is_none_or(|port| port == *candidate));
        ports
            .flat_map(|port| {
                let own = self.endpoints.iter().map(|endpoint| endpoint.port(port));
                own.chain([port.target])
            })
            .collect()
    }
}

impl BackendRef {
    /// The port of the service that is meant; `check` has seen to it that there is one.
    pub(crate) fn resolve(&self, service: &Service) -> Option<NonZeroU16> {
        self.port.or_else(|| service.ports.first().map(|port| port.port))
    }
}

impl Parent {
    /// Whether requests to a port of the parent are routed.
    pub(crate) fn covers(&self, port: &Port) -> bool {
        port.may_be_http()
            && self.port.is_none_or(|number| number == port.port)
            && self.section.as_ref().is_none_or(|section| *section == port.name)
    }
}
