//! What is said of requests where there are none: at ports that carry a connection's bytes.
//!
//! A proxy looks at such a connection once, when it is opened: which endpoint, how long to connect, how many at a time, how
//! often. Everything that needs a request, its head or its answer never comes into play there, and is refused. Health
//! checks stay: they ask by themselves. A port that a route sends requests to gets them whatever it is declared to speak.

use std::{collections::BTreeSet, num::NonZeroU16};

use outrigger_proto::spec::{Algorithm, HashOn, RateKey, RateLimit};

use super::{
    super::{
        ConfigError, Draft, ObjectName, Path, Port, ServerPolicy, ServerPort, Service, Source, TrafficPolicy,
        service,
    },
    find, find_port, whole,
};

/// Of a TrafficPolicy, below `spec`.
const OF_REQUESTS: [&[&str]; 16] = [
    &["loadBalancer", "subset"],
    &["timeouts", "request"],
    &["timeouts", "perTry"],
    &["timeouts", "responseHeader"],
    &["timeouts", "streamIdle"],
    &["timeouts", "maxConnectionAge"],
    &["bulkhead", "upstream", "maxRequests"],
    &["bulkhead", "endpoint", "maxRequests"],
    &["bulkhead", "route"],
    &["bulkhead", "adaptive"],
    &["outlierEjection", "failures"],
    &["retries"],
    &["hedging"],
    &["fallback"],
    &["cache"],
    &["coalesce"],
];

/// Of a port of a ServerPolicy, below that. Its connections wait for nothing, so a queue is one of requests.
const OF_REQUESTS_TO_PORT: [&[&str]; 4] = [
    &["bulkhead", "total", "maxRequests"],
    &["bulkhead", "perCaller", "maxRequests"],
    &["bulkhead", "queue"],
    &["bulkhead", "adaptive"],
];

type Routed<'a> = BTreeSet<(&'a ObjectName, NonZeroU16)>;

pub(super) fn check(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let broken = draft.routes.values().any(|route| route.value.is_none())
        || draft.services.values().any(|service| service.value.is_none());
    if broken {
        // What they would say may be all that is missing.
        return;
    }
    let routed = routed(draft);
    for (policy, source) in whole(&draft.traffic) {
        if let Some(because) = opaque_target(draft, policy, &routed) {
            traffic(policy, &mut Opaque { source, because, errors });
        }
    }
    for (policy, source) in whole(&draft.server) {
        for (index, port) in policy.ports.iter().enumerate() {
            if is_opaque(draft, policy, port, &routed) {
                let because = format!("port {} carries no HTTP (see protocol)", port.port);
                let path = Path::of("spec").key("ports").index(index);
                server(&path, port, &mut Opaque { source, because, errors });
            }
        }
    }
}

/// Ports that routes send requests to.
fn routed(draft: &Draft) -> Routed<'_> {
    let rules = whole(&draft.routes).flat_map(|(route, _)| &route.rules);
    rules
        .flat_map(|rule| &rule.backends)
        .filter_map(|backend| {
            let service = find(&draft.services, &backend.service).ok()??;
            Some((&backend.service, backend.resolve(service)?))
        })
        .collect()
}

fn gets_requests(service: &Service, port: &Port, routed: &Routed<'_>) -> bool {
    port.may_be_http() || routed.contains(&(&service.name, port.port))
}

/// Why no request ever goes where the policy says something of, if that is so.
fn opaque_target(draft: &Draft, policy: &TrafficPolicy, routed: &Routed<'_>) -> Option<String> {
    let (service, port) = find_port(&draft.services, &policy.service, policy.port).ok()??;
    let name = &service.name;
    match port {
        Some(port) if !gets_requests(service, port, routed) => {
            Some(format!("port {} of MeshService {name} carries no HTTP (see its appProtocol)", port.port))
        }
        None if !service.ports.iter().any(|port| gets_requests(service, port, routed)) => {
            Some(format!("no port of MeshService {name} carries HTTP (see its appProtocol)"))
        }
        Some(_) | None => None,
    }
}

/// Whether requests can never come to the port. Callers go by what services say of it, and where they dial it directly, by
/// what the server policies say; only if these agree is there nothing to limit.
fn is_opaque(draft: &Draft, policy: &ServerPolicy, port: &ServerPort, routed: &Routed<'_>) -> bool {
    if port.protocol.is_none_or(service::may_be_http) {
        return false;
    }
    let namespace = &*policy.name.namespace;
    let declared_http = whole(&draft.server)
        .filter(|(other, _)| *other.name.namespace == *namespace)
        .flat_map(|(other, _)| &other.ports)
        .any(|other| other.port == port.port && other.protocol.is_some_and(service::may_be_http));
    let leads_here = |service: &Service, from: &Port| {
        let selected = service.selector.is_some() && *service.name.namespace == *namespace;
        (selected && from.target == port.port)
            || service.endpoints.iter().any(|endpoint| {
                endpoint.identity.namespace() == namespace && endpoint.port(from) == port.port
            })
    };
    let called_by_http = whole(&draft.services).any(|(service, _)| {
        service.ports.iter().any(|from| gets_requests(service, from, routed) && leads_here(service, from))
    });
    !declared_http && !called_by_http
}

/// A policy for what carries no requests.
struct Opaque<'a> {
    source: &'a Source,
    because: String,
    errors: &'a mut Vec<ConfigError>,
}

fn traffic(policy: &TrafficPolicy, opaque: &mut Opaque<'_>) {
    let spec = Path::of("spec");
    opaque.refuse(&spec, &OF_REQUESTS);
    if let Some(Algorithm::Consistent(_, keys)) =
        policy.usage.load_balancer.as_ref().map(|policy| &policy.algorithm)
    {
        for (index, key) in keys.iter().enumerate() {
            let field = match key {
                HashOn::Header(_) => "header",
                HashOn::Cookie { .. } => "cookie",
                HashOn::Path => "path",
                HashOn::QueryParameter(_) => "query",
                HashOn::SourceIdentity | HashOn::SourceAddress => continue,
            };
            opaque.refuse(&spec.key("loadBalancer").key("hashOn").index(index), &[&[field]]);
        }
    }
    // Whoever finds all endpoints at their limit does not wait.
    if policy.usage.bulkhead.is_some_and(|bulkhead| bulkhead.upstream.connections.is_none()) {
        opaque.refuse_unless(&spec.key("bulkhead"), &["queue"], " without upstream.maxConnections");
    }
    rates(&spec.key("rateLimit"), policy.usage.rate_limits.as_deref(), opaque);
}

fn server(path: &Path, port: &ServerPort, opaque: &mut Opaque<'_>) {
    opaque.refuse(path, &OF_REQUESTS_TO_PORT);
    rates(&path.key("rateLimit"), port.rate_limits.as_deref(), opaque);
}

/// A connection counts as one request of the limits, but there is one count for all where they go by what only that has.
fn rates(path: &Path, limits: Option<&[RateLimit]>, opaque: &mut Opaque<'_>) {
    for (index, limit) in limits.unwrap_or_default().iter().enumerate() {
        for (position, key) in limit.key.iter().enumerate() {
            let field = match key {
                RateKey::Header(_) => "header",
                RateKey::Path => "path",
                RateKey::CallerIdentity | RateKey::ClientAddress => continue,
            };
            opaque.refuse(&path.index(index).key("key").index(position), &[&[field]]);
        }
    }
}

impl Opaque<'_> {
    /// Those of the fields that were written.
    fn refuse(&mut self, below: &Path, fields: &[&[&str]]) {
        for field in fields {
            self.refuse_unless(below, field, "");
        }
    }

    fn refuse_unless(&mut self, below: &Path, field: &[&str], unless: &str) {
        let path = field.iter().fold(below.clone(), |path, key| path.key(key));
        if let (true, Some(last)) = (self.source.node.has(&path), field.last()) {
            let reason = format!("{}: {last} would never apply{unless}", self.because);
            self.errors.push(self.source.error(&(path, reason)));
        }
    }
}
