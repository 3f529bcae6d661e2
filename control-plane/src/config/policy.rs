//! `AuthorizationPolicy` and `ServerPolicy`, validated.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
    sync::Arc,
};

use outrigger_proto::{
    limits::{MAX_CALLERS, MAX_RULES},
    spec::{Action, AuthorizationRule, EgressPolicy, MtlsMode, Protocol, RateLimit, ServerBulkhead},
};

use super::{
    ObjectName, limits,
    notes::Notes,
    service::{each, once},
};
use crate::{
    kinds::{self, Document, Egress, Kind, Mtls, TargetRef},
    yaml::Path,
};

/// Labels that a workload must have, all of them. Empty: every workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels(pub BTreeMap<Arc<str>, Arc<str>>);

#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationPolicy {
    pub name: ObjectName,
    pub target: Target,
    pub action: Action,
    pub rules: Vec<AuthorizationRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Workloads of the policy's namespace.
    Workloads(Labels),
    /// Workloads that serve a service, on the ports at which they do.
    Service { name: ObjectName, port: Option<NonZeroU16> },
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerPolicy {
    pub name: ObjectName,
    pub selector: Labels,
    pub ports: Vec<ServerPort>,
    pub egress: Option<EgressPolicy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPort {
    pub port: NonZeroU16,
    pub protocol: Option<Protocol>,
    pub mtls: Option<MtlsMode>,
    pub bulkhead: Option<ServerBulkhead>,
    pub rate_limits: Option<Vec<RateLimit>>,
}

impl Labels {
    pub fn select(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|(key, value)| labels.get(&**key).is_some_and(|has| **has == **value))
    }
}

pub(super) fn labels(path: &Path, written: BTreeMap<String, String>, notes: &mut Notes<'_>) -> Labels {
    if written.is_empty() {
        notes.note(path, "is empty: leave it out, or name a label");
    }
    for (key, value) in &written {
        notes.label(path, key, value);
    }
    Labels(written.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
}

pub(super) fn target_ref(
    path: &Path,
    policy: &ObjectName,
    written: TargetRef,
    notes: &mut Notes<'_>,
) -> Option<(ObjectName, Option<NonZeroU16>)> {
    let TargetRef { group, kind, name, port } = written;
    notes.service_kind(path, group.as_deref(), &kind);
    let name = notes.name(&path.key("name"), &name);
    let port = match port {
        Some(port) => Some(notes.port(&path.key("port"), port)?),
        None => None,
    };
    Some((ObjectName { namespace: policy.namespace.clone(), name: name? }, port))
}

pub(super) fn authorization(
    name: &ObjectName,
    document: Document<kinds::AuthorizationPolicySpec>,
    notes: &mut Notes<'_>,
) -> Option<AuthorizationPolicy> {
    let kinds::AuthorizationPolicySpec { selector, target_ref: target, action, rules } = document.spec;
    let spec = Path::of("spec");
    if selector.is_some() && target.is_some() {
        notes.note(&spec.key("targetRef"), "cannot stand beside selector: a policy has one target");
    }
    let selector = selector.map(|selector| labels(&spec.key("selector"), selector, notes));
    let has_ref = target.is_some();
    let target = match target {
        Some(target) => target_ref(&spec.key("targetRef"), name, target, notes)
            .map(|(name, port)| Target::Service { name, port }),
        None => Some(Target::Workloads(selector.unwrap_or_default())),
    };
    let action = match action {
        kinds::Action::Allow => Action::Allow,
        kinds::Action::Deny => Action::Deny,
        kinds::Action::Audit => Action::Audit,
    };
    let path = spec.key("rules");
    notes.at_most(&path, rules.len(), MAX_RULES);
    if rules.is_empty() && (action != Action::Allow || has_ref) {
        let reason = match action {
            Action::Allow => {
                "is required with targetRef (without rules a policy covers every port, not only those of the service)"
            }
            Action::Deny | Action::Audit => {
                "is empty: the policy would never match; a rule {} matches every caller"
            }
        };
        notes.note(&path, reason);
    }
    let rules = each(&path, rules, |path, rule| {
        let (from, to) = (path.key("from"), path.key("to"));
        let identities =
            each(&from.key("identities"), rule.from.identities, |path, id| notes.identity(path, &id));
        let namespaces =
            each(&from.key("namespaces"), rule.from.namespaces, |path, name| notes.name(path, &name));
        let ports = each(&to.key("ports"), rule.to.ports, |path, port| notes.port(path, port));
        once(&to.key("ports"), ports.as_deref(), notes);
        let (identities, namespaces) = (identities?, namespaces?);
        notes.at_most(&from.key("identities"), identities.len(), MAX_CALLERS);
        notes.at_most(&from.key("namespaces"), namespaces.len(), MAX_CALLERS);
        Some(AuthorizationRule { identities, namespaces, ports: ports? })
    });
    Some(AuthorizationPolicy { name: name.clone(), target: target?, action, rules: rules? })
}

pub(super) fn server(
    name: &ObjectName,
    document: Document<kinds::ServerPolicySpec>,
    notes: &mut Notes<'_>,
) -> Option<ServerPolicy> {
    let kinds::ServerPolicySpec { selector, ports, egress } = document.spec;
    let spec = Path::of("spec");
    if ports.is_empty() && egress.is_none() {
        notes.note(&spec, "says nothing: want ports or egress");
    }
    let selector =
        selector.map(|selector| labels(&spec.key("selector"), selector, notes)).unwrap_or_default();
    let path = spec.key("ports");
    let ports = each(&path, ports, |path, written| {
        let kinds::ServerPort { port, protocol, mtls, bulkhead, rate_limit } = written;
        let port = notes.port(&path.key("port"), port);
        let mtls = mtls.map(|mtls| match mtls {
            Mtls::Strict => MtlsMode::Strict,
            Mtls::Permissive => MtlsMode::Permissive,
        });
        let bulkhead = bulkhead.map(|it| limits::server_bulkhead(&path.key("bulkhead"), it, notes));
        let own = (Kind::ServerPolicy, name);
        let rate_limits = rate_limit.map(|it| limits::rate_limits(&path.key("rateLimit"), own, it, notes));
        Some(ServerPort { port: port?, protocol: protocol.map(Protocol::from), mtls, bulkhead, rate_limits })
    })?;
    // Within a port that was seen to already; across ports a name is one of a policy, too.
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let limits = port.rate_limits.iter().flatten();
        let own: BTreeSet<_> = limits.clone().map(|limit| &limit.name).collect();
        for (position, limit) in limits.enumerate() {
            if names.contains(&limit.name) {
                let path = path.index(index).key("rateLimit").index(position).key("name");
                notes.note(&path, "is the name of a limit of another port already");
            }
        }
        names.extend(own);
    }
    for (index, port) in ports.iter().enumerate() {
        if ports[..index].iter().any(|other| other.port == port.port) {
            notes.note(&path.index(index).key("port"), format!("{} is listed twice", port.port));
        }
    }
    let egress = egress.map(|egress| match egress {
        Egress::Allow => EgressPolicy::Allow,
        Egress::RegisteredOnly => EgressPolicy::RegisteredOnly,
    });
    Some(ServerPolicy { name: name.clone(), selector, ports, egress })
}
