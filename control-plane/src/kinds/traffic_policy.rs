//! `TrafficPolicy`: how callers use a service.

use schemars::JsonSchema;
use serde::Deserialize;

use super::TargetRef;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "TrafficPolicy")]
pub struct TrafficPolicySpec {
    pub target_ref: TargetRef,
    #[serde(default)]
    pub load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub timeouts: Option<Timeouts>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancer {
    pub algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Of two random endpoints the one with the lower latency times requests in flight; the default.
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
}

/// Each as `5s`, `300ms`, `1h30m`; `0s`: none (not for `connect`).
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Timeouts {
    /// From the dial to the end of the TLS handshake. Default 5s.
    #[serde(default)]
    pub connect: Option<String>,
    /// From the request's head to the answer's head. Default 30s.
    #[serde(default)]
    pub request: Option<String>,
    /// An opaque connection without a byte either way. Default 1h.
    #[serde(default)]
    pub idle: Option<String>,
}
