//! The configuration kinds: one Rust type each, as written in YAML.
//!
//! These types say what may be *written*: field names, which fields there are, which are required. The same
//! types give the JSON schema for editors (`outrigger-control-plane --print-schema`). What a value *means*,
//! and whether it makes sense beside the others, is decided in `config/`; the reference for people is
//! docs/configuration.md.
//!
//! Texts that have a grammar of their own (hosts, durations, identities) are plain strings here, so that a
//! document with three bad values is told of all three.

mod authorization_policy;
mod http_route;
mod limits;
mod mesh_service;
mod server_policy;
mod traffic_policy;

use std::{collections::BTreeMap, fmt};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use authorization_policy::{Action, AuthorizationPolicySpec, AuthorizationRule};
pub use http_route::{
    BackendRef, HeaderMatch, HeaderMatchType, HttpRouteRule, HttpRouteSpec, Method, ParentRef, PathMatch,
    PathMatchType, RouteMatch, RouteTimeouts,
};
pub use limits::{Adaptive, Caller, Client, Limits, Queue, RateAlgorithm, RateKey, RateLimit, Scope};
pub use mesh_service::{Endpoint, MeshServiceSpec, ServicePort};
pub use server_policy::{Egress, Mtls, ServerBulkhead, ServerPolicySpec, ServerPort};
pub use traffic_policy::{
    Algorithm, Answer, Backoff, Bulkhead, Cache, Cookie, FailurePercentage, Failures, Fallback,
    FallbackBackend, GrpcCheck, HashOn, HealthCheck, Hedging, HttpCheck, LatencyOutlier, LoadBalancer,
    LoneOpinion, Nothing, Otherwise, OutlierEjection, Retries, RetryBudget, RetryOn, RouteLimits, Source,
    Subset, SuccessRate, Timeouts, TrafficPolicySpec, Zone,
};

pub const OUTRIGGER_API: &str = "outrigger.dev/v1alpha1";
pub const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
pub const DEFAULT_NAMESPACE: &str = "default";

/// A whole document.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "{Spec}Document")]
pub struct Document<Spec> {
    pub api_version: String,
    pub kind: String,
    pub metadata: Metadata,
    pub spec: Spec,
}

/// Name and namespace identify an object among those of its kind.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    #[serde(default)]
    pub namespace: Option<String>,
    /// For people and their tools; nothing here depends on them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// For people and their tools; nothing here depends on them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// RFC 3339 in UTC. Of two routes that match equally well the older wins; one without a time is the
    /// youngest.
    #[serde(default)]
    pub creation_timestamp: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    MeshService,
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
    TrafficPolicy,
    AuthorizationPolicy,
    ServerPolicy,
}

/// A service of the policy's own namespace.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TargetRef {
    #[serde(default)]
    pub group: Option<String>,
    /// `MeshService`, or `Service`, which means the same where there is no Kubernetes.
    pub kind: String,
    pub name: String,
    /// A port of the service, by number; absent: all of them.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i64>,
}

/// What an application speaks.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum AppProtocol {
    /// Told from the first bytes, of whichever side speaks first; the same as no declaration.
    Detect,
    /// HTTP/1.1 or HTTP/2, told apart by the first bytes.
    Http,
    Http2,
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS, passed through.
    Tls,
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::MeshService,
        Self::HttpRoute,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::ServerPolicy,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MeshService => "MeshService",
            Self::HttpRoute => "HTTPRoute",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::ServerPolicy => "ServerPolicy",
        }
    }

    pub fn api_version(self) -> &'static str {
        match self {
            Self::HttpRoute => GATEWAY_API,
            Self::MeshService | Self::TrafficPolicy | Self::AuthorizationPolicy | Self::ServerPolicy => {
                OUTRIGGER_API
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A JSON schema that accepts a document of any kind, for editors and linters.
pub fn schema() -> serde_json::Value {
    let documents = Kind::ALL.map(|kind| {
        let mut schema = match kind {
            Kind::MeshService => schemars::schema_for!(Document<MeshServiceSpec>),
            Kind::HttpRoute => schemars::schema_for!(Document<HttpRouteSpec>),
            Kind::TrafficPolicy => schemars::schema_for!(Document<TrafficPolicySpec>),
            Kind::AuthorizationPolicy => schemars::schema_for!(Document<AuthorizationPolicySpec>),
            Kind::ServerPolicy => schemars::schema_for!(Document<ServerPolicySpec>),
        };
        if let Some(properties) = schema.get_mut("properties") {
            properties["apiVersion"]["const"] = kind.api_version().into();
            properties["kind"]["const"] = kind.as_str().into();
        }
        schema.to_value()
    });
    serde_json::json!({ "$schema": "https://json-schema.org/draft/2020-12/schema", "oneOf": documents })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                if let Some(serde_json::Value::Object(properties)) = map.get("properties") {
                    found.extend(properties.keys().cloned());
                }
                map.values().for_each(|value| fields(value, found));
            }
            serde_json::Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Number(_)
            | serde_json::Value::String(_) => {}
        }
    }

    #[test]
    fn the_reference_names_every_field_and_kind() {
        let reference = include_str!("../../docs/configuration.md");
        let mut found = Vec::new();
        fields(&schema(), &mut found);
        assert!(found.len() > 40, "{found:?}");
        for name in found.iter().map(String::as_str).chain(Kind::ALL.map(Kind::as_str)) {
            assert!(reference.contains(name), "docs/configuration.md does not mention {name}");
        }
    }

    #[test]
    fn the_schema_refuses_unknown_fields_and_fixes_kind_and_version() {
        let schema = schema();
        let documents = schema["oneOf"].as_array().unwrap();
        assert_eq!(documents.len(), Kind::ALL.len());
        for (document, kind) in documents.iter().zip(Kind::ALL) {
            assert_eq!(document["additionalProperties"], false, "{kind}");
            assert_eq!(document["properties"]["kind"]["const"], kind.as_str());
            assert_eq!(document["properties"]["apiVersion"]["const"], kind.api_version());
        }
    }
}
