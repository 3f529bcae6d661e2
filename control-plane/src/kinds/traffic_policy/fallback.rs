//! Instead, and from memory.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

/// Exactly one of `backend` and `answer`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fallback {
    /// `breaker`, `no-endpoints`, `timeout`, `failure`, and statuses as `"503"` or `"500-599"`. Absent: the four words.
    #[serde(default)]
    pub on: Option<Vec<String>>,
    /// Another service.
    #[serde(default)]
    pub backend: Option<FallbackBackend>,
    #[serde(default)]
    pub answer: Option<Answer>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FallbackBackend {
    pub name: String,
    /// Absent: the policy's.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Absent: the only one.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Answer {
    #[schemars(range(min = 200, max = 599))]
    pub status: i64,
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// At most 64 KiB.
    #[serde(default)]
    pub body: Option<String>,
}

/// Of answers to GET that their origin allows to be kept, per proxy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cache {
    /// All answers together. Default 16777216.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_bytes: Option<i64>,
    /// One answer. Default 1048576, or `maxBytes` if that is less.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub max_object_bytes: Option<i64>,
    /// A stale answer serves for so long where a fresh one fails. Absent: only as its origin says.
    #[serde(default)]
    pub stale_if_error: Option<String>,
}
