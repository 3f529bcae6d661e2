//! The server side of a workload: what its ports speak, who may call it, and where its own calls may go.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    num::NonZeroU16,
    sync::Arc,
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{AuthorizationPolicy, AuthorizationRule, Inbound, InboundPort, Protocol};

use crate::{
    config::{self, Service, Target},
    index::{Index, Workload},
};

pub fn inbound(index: &Index, workload: &Workload) -> Inbound {
    let egress = server_policies(index, workload).iter().find_map(|policy| policy.egress).unwrap_or_default();
    let ports =
        ports(index, workload).into_iter().filter(|(_, port)| *port != InboundPort::default()).collect();
    Inbound { ports, authorization: authorization(index, workload), egress }
}

/// Everything declared about ports at which the application listens.
pub(super) fn ports(index: &Index, workload: &Workload) -> BTreeMap<NonZeroU16, InboundPort> {
    let mut ports: BTreeMap<NonZeroU16, InboundPort> = protocols(index, workload)
        .into_iter()
        .map(|(port, protocol)| (port, InboundPort { protocol, ..InboundPort::default() }))
        .collect();
    // The least specific first, so that what is more specific overwrites it.
    for policy in server_policies(index, workload).into_iter().rev() {
        for said in &policy.ports {
            let port = ports.entry(said.port).or_default();
            port.protocol = said.protocol.unwrap_or(port.protocol);
            port.mtls = said.mtls.unwrap_or(port.mtls);
            if said.bulkhead.is_some() || said.rate_limits.is_some() {
                let limits = Arc::make_mut(port.limits.get_or_insert_default());
                limits.bulkhead = said.bulkhead.or(limits.bulkhead);
                if let Some(rate_limits) = &said.rate_limits {
                    limits.rate_limits.clone_from(rate_limits);
                }
            }
        }
    }
    ports
}

/// The most specific first.
fn server_policies<'a>(index: &'a Index, workload: &Workload) -> Vec<&'a config::ServerPolicy> {
    let applies = |policy: &&config::ServerPolicy| {
        *policy.name.namespace == *workload.namespace() && policy.selector.select(&workload.labels)
    };
    let mut policies: Vec<_> =
        index.config().server.values().map(|policy| &**policy).filter(applies).collect();
    policies.sort_by_key(|policy| (Reverse(policy.selector.0.len()), &policy.name));
    policies
}

/// What services say about the workload's ports.
fn protocols(index: &Index, workload: &Workload) -> BTreeMap<NonZeroU16, Protocol> {
    let mut said = Said::default();
    for service in index.config().services.values() {
        for (declared, port) in served(workload, service) {
            said.say(port, declared.protocol);
        }
    }
    said.0
}

/// The same where nothing is known but that services list the address; ports are those that callers dial.
pub(super) fn listed_protocols(
    index: &Index,
    identity: &SpiffeId,
    addresses: &[IpAddr],
) -> BTreeMap<NonZeroU16, Protocol> {
    let mut said = Said::default();
    for service in index.config().services.values() {
        for (declared, port) in listed(identity, addresses, service) {
            said.say(port, declared.protocol);
        }
    }
    said.0
}

/// Where two services contradict each other, neither is believed.
#[derive(Default)]
struct Said(BTreeMap<NonZeroU16, Protocol>);

impl Said {
    fn say(&mut self, port: NonZeroU16, protocol: Protocol) {
        let known = self.0.entry(port).or_insert(protocol);
        if *known != protocol {
            *known = Protocol::Detect;
        }
    }
}

/// The ports of a service that the workload serves, each with the port at which its application listens.
fn served<'a>(workload: &'a Workload, service: &'a Service) -> Vec<(&'a config::Port, NonZeroU16)> {
    let selected =
        workload.is_selected_by(service).then(|| service.ports.iter().map(|port| (port, port.target)));
    let listed = listed(&workload.id.identity, &workload.addresses, service)
        .map(|(declared, port)| (declared, workload.application_port(port)));
    selected.into_iter().flatten().chain(listed).collect()
}

fn listed<'a>(
    identity: &'a SpiffeId,
    addresses: &'a [IpAddr],
    service: &'a Service,
) -> impl Iterator<Item = (&'a config::Port, NonZeroU16)> {
    let here = |endpoint: &&config::Endpoint| {
        endpoint.identity == *identity && addresses.contains(&endpoint.address)
    };
    let endpoints = service.endpoints.iter().filter(here);
    endpoints.flat_map(|endpoint| service.ports.iter().map(|port| (port, endpoint.port(port))))
}

fn authorization(index: &Index, workload: &Workload) -> Vec<AuthorizationPolicy> {
    let policies = index.config().authorization.values();
    policies
        .filter_map(|policy| {
            let rules = match &policy.target {
                Target::Workloads(labels) => {
                    let applies =
                        *policy.name.namespace == *workload.namespace() && labels.select(&workload.labels);
                    applies.then(|| policy.rules.clone())?
                }
                Target::Service { name, port } => {
                    let service = index.config().services.get(name)?;
                    let ports: BTreeSet<NonZeroU16> = served(workload, service)
                        .into_iter()
                        .filter(|(declared, _)| port.is_none_or(|port| port == declared.port))
                        .map(|(_, port)| port)
                        .collect();
                    let rules: Vec<_> =
                        policy.rules.iter().filter_map(|rule| narrowed(rule, &ports)).collect();
                    (!rules.is_empty()).then_some(rules)?
                }
            };
            Some(AuthorizationPolicy { name: policy.name.to_string().into(), action: policy.action, rules })
        })
        .collect()
}

/// A rule for some ports only. `None` where none is left: a rule without ports would cover all of them.
fn narrowed(rule: &AuthorizationRule, ports: &BTreeSet<NonZeroU16>) -> Option<AuthorizationRule> {
    let meant = |port: &NonZeroU16| rule.ports.is_empty() || rule.ports.contains(port);
    let ports: Vec<_> = ports.iter().copied().filter(meant).collect();
    (!ports.is_empty()).then(|| AuthorizationRule { ports, ..rule.clone() })
}
