//! Which endpoint.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Nothing;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancer {
    /// Absent: peak-ewma.
    #[serde(default)]
    pub algorithm: Option<Algorithm>,
    /// Required by `maglev` and `ring-hash`, and for them alone: the first that a request has is its key.
    #[serde(default)]
    pub hash_on: Option<Vec<HashOn>>,
    /// Endpoints in the caller's own zone go first. Absent: zones do not matter.
    #[serde(default)]
    pub zone: Option<Zone>,
    /// An endpoint gets its full share only so long after it became ready. Absent: at once.
    #[serde(default)]
    pub slow_start: Option<String>,
    /// When less than this share of the endpoints is admitted, in per cent, all are used. Default 0: never.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub panic_percent: Option<i64>,
    #[serde(default)]
    pub subset: Option<Subset>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Of two random endpoints the one with the lower latency times requests in flight; the default.
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    /// Equal keys go to the same endpoint: the fewest moves of keys when endpoints come and go within reason, and the
    /// most even spread.
    Maglev,
    /// Equal keys go to the same endpoint: only keys of an endpoint that left move.
    RingHash,
}

/// Exactly one of these.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HashOn {
    /// A request header, by name.
    #[serde(default)]
    pub header: Option<String>,
    #[serde(default)]
    pub cookie: Option<Cookie>,
    #[serde(default)]
    pub source: Option<Source>,
    /// The path without the query.
    #[serde(default)]
    pub path: Option<Nothing>,
    /// A parameter of the query, by name.
    #[serde(default)]
    pub query: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cookie {
    pub name: String,
    /// Of the cookie that the proxy sets where a request has none. Absent: the browser's session.
    #[serde(default)]
    pub ttl: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Identity,
    Address,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Zone {
    /// While at least this share of the zone's endpoints is healthy, in per cent, the zone keeps all its traffic; below,
    /// the rest goes to other zones. Default 70.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub min_healthy_percent: Option<i64>,
}

/// A request goes only to endpoints whose label equals its header.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Subset {
    /// Of the workloads, or of the service's `endpoints`.
    pub label: String,
    pub header: String,
    /// What a request gets whose header names no endpoint. Absent: any.
    #[serde(default)]
    pub otherwise: Option<Otherwise>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Otherwise {
    Any,
    /// `no-endpoints`.
    None,
}
