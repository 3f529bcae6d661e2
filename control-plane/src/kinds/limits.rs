//! How much at a time and how often, on both sides alike.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Nothing;

/// What is absent has no limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_connections: Option<i64>,
    /// In flight.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_requests: Option<i64>,
}

/// Where requests wait that a limit does not admit at once. Absent: nobody waits.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Queue {
    #[schemars(range(min = 1))]
    pub size: i64,
    pub timeout: String,
}

/// A limit that follows latency against its own floor.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Adaptive {
    #[schemars(range(min = 1))]
    pub min_requests: i64,
    #[schemars(range(min = 1))]
    pub max_requests: i64,
    /// Latency above the floor that is taken as healthy, in per cent of the floor. Default 150.
    #[serde(default)]
    #[schemars(range(min = 100))]
    pub tolerance_percent: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// Shown in answers, logs and metrics; once per policy.
    pub name: String,
    #[schemars(range(min = 1))]
    pub requests: i64,
    /// Absent: 1s.
    #[serde(default)]
    pub per: Option<String>,
    /// So many at once (token bucket). Absent: `requests`.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub burst: Option<i64>,
    /// Absent: token-bucket.
    #[serde(default)]
    pub algorithm: Option<RateAlgorithm>,
    /// Each combination of these values has a count of its own. Absent: one for all.
    #[serde(default)]
    pub key: Vec<RateKey>,
    /// Absent: local.
    #[serde(default)]
    pub scope: Option<Scope>,
    /// Refuses nobody; what it would have refused is logged and counted.
    #[serde(default)]
    pub dry_run: bool,
    /// Counts kept at a time. Default 10000.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_keys: Option<i64>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum RateAlgorithm {
    TokenBucket,
    SlidingWindow,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each proxy has the whole of it.
    Local,
    /// All proxies that hold it share it.
    Shared,
}

/// Exactly one of these.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateKey {
    #[serde(default)]
    pub header: Option<String>,
    #[serde(default)]
    pub caller: Option<Caller>,
    #[serde(default)]
    pub client: Option<Client>,
    /// The path without the query.
    #[serde(default)]
    pub path: Option<Nothing>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Caller {
    Identity,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Client {
    Address,
}
