//! The server side of a workload: what each port speaks, who may call it, and where its own calls may go.

use std::{collections::BTreeMap, num::NonZeroU16, sync::Arc};

use outrigger_certs::SpiffeId;
use serde::Serialize;

use super::{Adaptive, Limits, Queue, RateLimit};

/// Policy of the workload that holds it. The default is the safe one: every port detected, strict mTLS, every
/// authenticated caller allowed, egress allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inbound {
    /// Ports with a declaration; the others get [`InboundPort::default`].
    pub ports: BTreeMap<NonZeroU16, InboundPort>,
    pub authorization: Vec<AuthorizationPolicy>,
    pub egress: EgressPolicy,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InboundPort {
    pub protocol: Protocol,
    pub mtls: MtlsMode,
    /// `None`: no limits but the proxy's own.
    pub limits: Option<Arc<PortLimits>>,
}

/// What protects the application behind a port from its callers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PortLimits {
    pub bulkhead: Option<ServerBulkhead>,
    /// All of them must admit a request.
    pub rate_limits: Vec<RateLimit>,
}

/// How much of the application its callers may occupy. Waiting callers take turns, so that none starves another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerBulkhead {
    /// All callers together.
    pub total: Limits,
    /// Each caller's identity; those without one count as one.
    pub per_caller: Limits,
    pub queue: Option<Queue>,
    /// Moves the total of requests by what latency says. It then ignores `total.requests`.
    pub adaptive: Option<Adaptive>,
}

/// What an application speaks on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Undeclared: told from the first bytes, racing the server's (server-first protocols work).
    #[default]
    Detect,
    /// HTTP/1.1 or HTTP/2 with prior knowledge, told apart by the first bytes.
    Http,
    Http2,
    Grpc,
    Tcp,
    /// The application's own TLS, carried as opaque bytes.
    Tls,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    #[default]
    Strict,
    /// Plaintext is accepted too (and its callers have no identity).
    Permissive,
}

/// Where calls to destinations outside the mesh may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum EgressPolicy {
    #[default]
    Allow,
    RegisteredOnly,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuthorizationPolicy {
    /// `NAMESPACE/NAME`, shown in denials.
    pub name: Arc<str>,
    pub action: Action,
    /// Matches when any rule does; without rules it matches nothing.
    pub rules: Vec<AuthorizationRule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
    /// Decides nothing; matches are logged and counted.
    Audit,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AuthorizationRule {
    /// Any of these identities or namespaces; both empty: every authenticated caller (deny: plaintext too).
    #[serde(serialize_with = "super::backend::identities_as_text")]
    pub identities: Vec<SpiffeId>,
    pub namespaces: Vec<Arc<str>>,
    /// Any of these ports; empty: every port.
    pub ports: Vec<NonZeroU16>,
}
