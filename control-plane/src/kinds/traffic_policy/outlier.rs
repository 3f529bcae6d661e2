//! Who gets nothing for a while.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Nothing;

/// A detector is turned off by 0.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutlierEjection {
    /// Absent: true.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// Failures without a success between them. Default 5; 0: off.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub consecutive_failures: Option<i64>,
    /// Absent: on, with defaults.
    #[serde(default)]
    pub failure_percentage: Option<FailurePercentage>,
    /// Absent: on, with defaults.
    #[serde(default)]
    pub success_rate: Option<SuccessRate>,
    /// Default 3; 0: off.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub consecutive_connect_failures: Option<i64>,
    /// Absent: off.
    #[serde(default)]
    pub latency: Option<LatencyOutlier>,
    /// The n-th ejection in a row lasts n times as long. Default 30s.
    #[serde(default)]
    pub base_ejection: Option<String>,
    /// Default 5m.
    #[serde(default)]
    pub max_ejection: Option<String>,
    /// Of the endpoints at most this share is ejected, rounded so that 1 of 2 can be. Default 50.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub max_ejected_percent: Option<i64>,
    /// So many endpoints always stay. Default 1.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_ready: Option<i64>,
    /// Successes of single requests that end an ejection. Default 3.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub probes: Option<i64>,
    #[serde(default)]
    pub failures: Option<Failures>,
    /// Absent: on, with defaults.
    #[serde(default)]
    pub lone_opinion: Option<LoneOpinion>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FailurePercentage {
    /// Default 50; 0: off.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i64>,
    /// Answers in the window below which nothing is concluded. Default 10.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub min_requests: Option<i64>,
    /// Default 10s.
    #[serde(default)]
    pub window: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SuccessRate {
    /// Standard deviations below the mean of all endpoints, a decimal number as text. Default "1.9"; "0": off.
    #[serde(default)]
    pub deviations: Option<String>,
    /// Default 5.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub min_endpoints: Option<i64>,
    /// Default 20.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub min_requests: Option<i64>,
    /// Default 10s.
    #[serde(default)]
    pub window: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LatencyOutlier {
    /// Of the median of the other endpoints; 0: off.
    pub percent: i64,
    /// Default 20.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub min_requests: Option<i64>,
    /// Default 10s.
    #[serde(default)]
    pub window: Option<String>,
}

/// Which answers count as failures; no answer always does.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Failures {
    /// `"503"` or `"500-599"`. Default 500-599.
    #[serde(default)]
    pub statuses: Option<Vec<String>>,
    /// Names of gRPC codes. Default UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    #[serde(default)]
    pub grpc: Option<Vec<String>>,
}

/// A proxy that is alone with its ejection, among at least `minCallers`, shortens it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LoneOpinion {
    /// Default 5; 0: off.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_callers: Option<i64>,
    /// To this share of its time. Default 20.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub shortened_percent: Option<i64>,
}

/// Exactly one of `http`, `grpc` and `tcp`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthCheck {
    #[serde(default)]
    pub http: Option<HttpCheck>,
    #[serde(default)]
    pub grpc: Option<GrpcCheck>,
    /// A connection.
    #[serde(default)]
    pub tcp: Option<Nothing>,
    /// Of one endpoint, give or take a tenth. Default 10s.
    #[serde(default)]
    pub interval: Option<String>,
    /// At most the interval. Default 1s.
    #[serde(default)]
    pub timeout: Option<String>,
    /// Failed checks in a row. Default 3.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub unhealthy_after: Option<i64>,
    /// Good checks in a row. Default 2.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub healthy_after: Option<i64>,
    /// Checks per second that an endpoint gets from all callers together. Default 10.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub fleet_per_second: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpCheck {
    pub path: String,
    /// Default 200-299.
    #[serde(default)]
    pub expected: Option<Vec<String>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GrpcCheck {
    /// As `grpc.health.v1.Health/Check` wants it. Absent: the server as a whole.
    #[serde(default)]
    pub service: Option<String>,
}
