//! Once more, or beside.

use schemars::JsonSchema;
use serde::Deserialize;

/// Of requests that were sent. One of which nothing was sent goes elsewhere whatever this says.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retries {
    /// Further attempts. Default 2; 0: none.
    #[serde(default)]
    #[schemars(range(min = 0, max = 32))]
    pub attempts: Option<i64>,
    #[serde(default)]
    pub on: Option<RetryOn>,
    /// Also methods that are not idempotent, without an `Idempotency-Key`. Default false.
    #[serde(default)]
    pub unsafe_methods: Option<bool>,
    #[serde(default)]
    pub backoff: Option<Backoff>,
    /// Body kept for another attempt. Default 65536.
    #[serde(default)]
    #[schemars(range(min = 0, max = 67_108_864))]
    pub buffer_bytes: Option<i64>,
    /// A `Retry-After` up to this is waited for. Default 1s; 0s: none is.
    #[serde(default)]
    pub max_retry_after: Option<String>,
    #[serde(default)]
    pub budget: Option<RetryBudget>,
}

/// What is absent keeps its default.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryOn {
    /// Default 502-504.
    #[serde(default)]
    pub statuses: Option<Vec<String>>,
    /// Default UNAVAILABLE.
    #[serde(default)]
    pub grpc: Option<Vec<String>>,
    /// The connection broke before an answer. Default true.
    #[serde(default)]
    pub reset: Option<bool>,
    /// `timeouts.perTry` or `timeouts.responseHeader` ran out. Default true.
    #[serde(default)]
    pub timeout: Option<bool>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backoff {
    /// Default 25ms.
    #[serde(default)]
    pub base: Option<String>,
    /// Default 250ms.
    #[serde(default)]
    pub max: Option<String>,
}

/// Retries per upstream: this share of the requests, or so many in each second, whichever is more.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Default 20.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<i64>,
    /// Default 10.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub min_per_second: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hedging {
    /// A duration, or `p95`: what 95 of 100 answers of the upstream take. Default p95.
    #[serde(default)]
    pub delay: Option<String>,
    /// Hedges per hundred requests. Default 5.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100))]
    pub budget_percent: Option<i64>,
}
