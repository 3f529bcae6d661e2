//! `HTTPRoute`: the Gateway API's own kind, attached to a service (GAMMA).
//!
//! Field names and meanings are those of `gateway.networking.k8s.io/v1`. Fields of the Gateway API that are
//! missing here are refused, as every unknown field is.

use schemars::JsonSchema;
use serde::Deserialize;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "HTTPRoute")]
pub struct HttpRouteSpec {
    /// The services whose requests are routed.
    pub parent_refs: Vec<ParentRef>,
    pub rules: Vec<HttpRouteRule>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ParentRef {
    #[serde(default)]
    pub group: Option<String>,
    /// `Service` or `MeshService`.
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub namespace: Option<String>,
    pub name: String,
    /// A port of the service by its name.
    #[serde(default)]
    pub section_name: Option<String>,
    /// A port of the service by its number. Without both: every port that may carry HTTP.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Shown in logs and metrics instead of the rule's number.
    #[serde(default)]
    pub name: Option<String>,
    /// Any of these; none: every request.
    #[serde(default)]
    pub matches: Vec<RouteMatch>,
    pub backend_refs: Vec<BackendRef>,
    #[serde(default)]
    pub timeouts: Option<RouteTimeouts>,
}

/// All conditions hold.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteMatch {
    #[serde(default)]
    pub path: Option<PathMatch>,
    #[serde(default)]
    pub headers: Vec<HeaderMatch>,
    #[serde(default)]
    pub method: Option<Method>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathMatch {
    /// Absent: `PathPrefix`.
    #[serde(default, rename = "type")]
    pub kind: PathMatchType,
    /// Absent: `/`.
    #[serde(default)]
    pub value: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum PathMatchType {
    Exact,
    /// By whole elements: `/a` matches `/a` and `/a/b`, not `/ab`.
    #[default]
    PathPrefix,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderMatch {
    /// Absent: `Exact`.
    #[serde(default, rename = "type")]
    pub kind: HeaderMatchType,
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq)]
pub enum HeaderMatchType {
    #[default]
    Exact,
    /// The whole value matches.
    RegularExpression,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendRef {
    #[serde(default)]
    pub group: Option<String>,
    /// `Service` (the default) or `MeshService`.
    #[serde(default)]
    pub kind: Option<String>,
    pub name: String,
    /// Absent: the route's own.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Absent: the service's only port.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i64>,
    /// Share of the requests relative to the rule's other backends: 0 to 1,000,000. Absent: 1.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: Option<i64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteTimeouts {
    /// From the request's head to the answer's head. Absent: the TrafficPolicy's.
    #[serde(default)]
    pub request: Option<String>,
}
