//! `ServerPolicy`: what a workload's ports speak, whether they take plaintext, how much and how often its callers may ask
//! for, and where its own calls may go.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Adaptive, AppProtocol, Limits, Queue, RateLimit};

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "ServerPolicy")]
pub struct ServerPolicySpec {
    /// Labels of the workloads in the policy's namespace; absent: all of them.
    #[serde(default)]
    pub selector: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub ports: Vec<ServerPort>,
    /// Calls of these workloads to destinations outside the mesh. Absent: allow.
    #[serde(default)]
    pub egress: Option<Egress>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServerPort {
    /// Where the application listens.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
    /// Absent: as the services say that have this port as their target.
    #[serde(default)]
    pub protocol: Option<AppProtocol>,
    /// Absent: strict.
    #[serde(default)]
    pub mtls: Option<Mtls>,
    /// How much of the application its callers may occupy.
    #[serde(default)]
    pub bulkhead: Option<ServerBulkhead>,
    /// All of them must admit a request.
    #[serde(default)]
    pub rate_limit: Option<Vec<RateLimit>>,
}

/// Waiting callers take turns, so that none starves another. What is absent has no limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServerBulkhead {
    /// All callers together.
    #[serde(default)]
    pub total: Option<Limits>,
    /// Each caller's identity; those without one count as one.
    #[serde(default)]
    pub per_caller: Option<Limits>,
    #[serde(default)]
    pub queue: Option<Queue>,
    /// Moves the total of requests by what latency says.
    #[serde(default)]
    pub adaptive: Option<Adaptive>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    Strict,
    /// Plaintext is taken too, and its callers have no identity.
    Permissive,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Egress {
    Allow,
    /// Only destinations in the mesh.
    RegisteredOnly,
}
