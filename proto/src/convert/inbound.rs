//! The server side of a workload.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use super::{bulkhead, fields::Fields};
use crate::{
    limits::{MAX_CALLERS, MAX_POLICIES, MAX_PORTS, MAX_RULES},
    pb,
    spec::{
        Action, AuthorizationPolicy, AuthorizationRule, EgressPolicy, Inbound, InboundPort, MtlsMode,
        Protocol,
    },
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::Inbound) -> Inbound {
    let mut seen = BTreeMap::new();
    let ports = fields.list("ports", from.ports, MAX_PORTS, |fields, from| {
        let (port, policy) = port_from_pb(fields, from)?;
        if seen.insert(port, ()).is_some() {
            fields.refuse_at("port", format!("{port} is listed twice"));
        }
        Some((port, policy))
    });
    let authorization = fields.list("authorization", from.authorization, MAX_POLICIES, policy_from_pb);
    let egress = fields.at("egress", |fields| {
        fields.kind(from.egress, |kind| match kind {
            pb::EgressPolicy::Unspecified => None,
            pb::EgressPolicy::Allow => Some(EgressPolicy::Allow),
            pb::EgressPolicy::RegisteredOnly => Some(EgressPolicy::RegisteredOnly),
        })
    });
    Inbound { ports, authorization, egress: egress.unwrap_or_default() }
}

fn port_from_pb(fields: &mut Fields, from: pb::InboundPort) -> Option<(NonZeroU16, InboundPort)> {
    let port = fields.at("port", |fields| fields.port(from.port));
    let protocol = fields.at("protocol", |fields| protocol(fields, from.protocol));
    let mtls = fields.at("mtls", |fields| {
        fields.kind(from.mtls, |kind| match kind {
            pb::MtlsMode::Unspecified => None,
            pb::MtlsMode::Strict => Some(MtlsMode::Strict),
            pb::MtlsMode::Permissive => Some(MtlsMode::Permissive),
        })
    });
    let limits = from
        .limits
        .map(|from| fields.at("limits", |fields| bulkhead::port_limits(fields, from)))
        .map(Arc::new);
    Some((port?, InboundPort { protocol: protocol?, mtls: mtls?, limits }))
}

pub(super) fn protocol(fields: &mut Fields, number: i32) -> Option<Protocol> {
    fields.kind(number, |kind| match kind {
        pb::Protocol::Unspecified => None,
        pb::Protocol::Detect => Some(Protocol::Detect),
        pb::Protocol::Http => Some(Protocol::Http),
        pb::Protocol::Http2 => Some(Protocol::Http2),
        pb::Protocol::Grpc => Some(Protocol::Grpc),
        pb::Protocol::Tcp => Some(Protocol::Tcp),
        pb::Protocol::Tls => Some(Protocol::Tls),
    })
}

fn policy_from_pb(fields: &mut Fields, from: pb::AuthorizationPolicy) -> Option<AuthorizationPolicy> {
    let name = fields.at("name", |fields| fields.label(&from.name));
    let action = fields.at("action", |fields| {
        fields.kind(from.action, |kind| match kind {
            pb::Action::Unspecified => None,
            pb::Action::Allow => Some(Action::Allow),
            pb::Action::Deny => Some(Action::Deny),
            pb::Action::Audit => Some(Action::Audit),
        })
    });
    let rules = fields.list("rules", from.rules, MAX_RULES, |fields, from| Some(rule_from_pb(fields, from)));
    Some(AuthorizationPolicy { name, action: action?, rules })
}

fn rule_from_pb(fields: &mut Fields, from: pb::AuthorizationRule) -> AuthorizationRule {
    AuthorizationRule {
        identities: fields
            .list("identities", from.identities, MAX_CALLERS, |fields, text| fields.parse(&text)),
        namespaces: fields
            .list("namespaces", from.namespaces, MAX_CALLERS, |fields, text| Some(fields.name(&text))),
        ports: fields.list("ports", from.ports, MAX_PORTS, Fields::port),
    }
}

// === to the wire ===

pub(super) fn to_pb(from: &Inbound) -> pb::Inbound {
    let ports = from.ports.iter().map(|(port, policy)| pb::InboundPort {
        port: port.get().into(),
        protocol: protocol_to_pb(policy.protocol).into(),
        mtls: match policy.mtls {
            MtlsMode::Strict => pb::MtlsMode::Strict,
            MtlsMode::Permissive => pb::MtlsMode::Permissive,
        }
        .into(),
        limits: policy.limits.as_deref().map(bulkhead::port_limits_to_pb),
    });
    let egress = match from.egress {
        EgressPolicy::Allow => pb::EgressPolicy::Allow,
        EgressPolicy::RegisteredOnly => pb::EgressPolicy::RegisteredOnly,
    };
    pb::Inbound {
        ports: ports.collect(),
        authorization: from.authorization.iter().map(policy_to_pb).collect(),
        egress: egress.into(),
    }
}

pub(super) fn protocol_to_pb(from: Protocol) -> pb::Protocol {
    match from {
        Protocol::Detect => pb::Protocol::Detect,
        Protocol::Http => pb::Protocol::Http,
        Protocol::Http2 => pb::Protocol::Http2,
        Protocol::Grpc => pb::Protocol::Grpc,
        Protocol::Tcp => pb::Protocol::Tcp,
        Protocol::Tls => pb::Protocol::Tls,
    }
}

fn policy_to_pb(from: &AuthorizationPolicy) -> pb::AuthorizationPolicy {
    let rules = from.rules.iter().map(|rule| pb::AuthorizationRule {
        identities: rule.identities.iter().map(ToString::to_string).collect(),
        namespaces: rule.namespaces.iter().map(ToString::to_string).collect(),
        ports: rule.ports.iter().map(|port| port.get().into()).collect(),
    });
    let action = match from.action {
        Action::Allow => pb::Action::Allow,
        Action::Deny => pb::Action::Deny,
        Action::Audit => pb::Action::Audit,
    };
    pb::AuthorizationPolicy { name: from.name.to_string(), action: action.into(), rules: rules.collect() }
}
