//! `TrafficPolicy`: how callers use a service.

mod balance;
mod fallback;
mod outlier;
mod retry;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Adaptive, Limits, Queue, RateLimit, TargetRef};

pub use balance::{Algorithm, Cookie, HashOn, LoadBalancer, Otherwise, Source, Subset, Zone};
pub use fallback::{Answer, Cache, Fallback, FallbackBackend};
pub use outlier::{
    FailurePercentage, Failures, GrpcCheck, HealthCheck, HttpCheck, LatencyOutlier, LoneOpinion,
    OutlierEjection, SuccessRate,
};
pub use retry::{Backoff, Hedging, Retries, RetryBudget, RetryOn};

/// A choice without anything to say about it: `{}`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "TrafficPolicy")]
pub struct TrafficPolicySpec {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub timeouts: Option<Timeouts>,
    #[serde(default)]
    pub bulkhead: Option<Bulkhead>,
    /// Absent: on, with defaults.
    #[serde(default)]
    pub outlier_ejection: Option<OutlierEjection>,
    #[serde(default)]
    pub health_check: Option<HealthCheck>,
    /// Absent: on, with defaults.
    #[serde(default)]
    pub retries: Option<Retries>,
    #[serde(default)]
    pub hedging: Option<Hedging>,
    /// Of the calls that leave each caller; all of them must admit a request.
    #[serde(default)]
    pub rate_limit: Option<Vec<RateLimit>>,
    #[serde(default)]
    pub fallback: Option<Fallback>,
    #[serde(default)]
    pub cache: Option<Cache>,
    /// Identical GETs under way at the same time become one. Absent: false.
    #[serde(default)]
    pub coalesce: Option<bool>,
}

/// Each as `5s`, `300ms`, `1h30m`; `0s`: none (not for `connect`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Timeouts {
    /// From the dial to the end of the TLS handshake. Default 5s.
    #[serde(default)]
    pub connect: Option<String>,
    /// From the request's head to the answer's head, over all attempts. Default 30s.
    #[serde(default)]
    pub request: Option<String>,
    /// One attempt, from its dispatch to the answer's head. Default none.
    #[serde(default)]
    pub per_try: Option<String>,
    /// One attempt, from the end of the request to the answer's head. Default none.
    #[serde(default)]
    pub response_header: Option<String>,
    /// A request or its answer under way without a byte in either direction. Default 5m.
    #[serde(default)]
    pub stream_idle: Option<String>,
    /// An opaque connection without a byte either way. Default 1h.
    #[serde(default)]
    pub idle: Option<String>,
    /// A connection takes no new requests once it is so old, give or take a tenth. Default none.
    #[serde(default)]
    pub max_connection_age: Option<String>,
}

/// How much of a caller one upstream may occupy. What is absent has no limit.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Bulkhead {
    /// All endpoints together.
    #[serde(default)]
    pub upstream: Option<Limits>,
    /// Each endpoint.
    #[serde(default)]
    pub endpoint: Option<Limits>,
    /// Each route.
    #[serde(default)]
    pub route: Option<RouteLimits>,
    #[serde(default)]
    pub queue: Option<Queue>,
    /// Moves the upstream's limit of requests by what latency says.
    #[serde(default)]
    pub adaptive: Option<Adaptive>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteLimits {
    /// In flight.
    #[schemars(range(min = 1))]
    pub max_requests: i64,
}
