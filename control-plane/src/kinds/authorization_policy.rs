//! `AuthorizationPolicy`: who may call a workload.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::TargetRef;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "AuthorizationPolicy")]
pub struct AuthorizationPolicySpec {
    /// Labels of the protected workloads in the policy's namespace. Neither this nor `targetRef`: all of
    /// them.
    #[serde(default)]
    pub selector: Option<BTreeMap<String, String>>,
    /// The workloads that serve this service, on the ports at which they serve it.
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
    pub action: Action,
    /// The policy matches when any rule does.
    #[serde(default)]
    pub rules: Vec<AuthorizationRule>,
}

#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Where any allow policy covers a port, only what one of them matches gets in.
    Allow,
    /// Decided before every allow.
    Deny,
    /// Decides nothing; matches are logged and counted.
    Audit,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    #[serde(default)]
    pub from: Callers,
    #[serde(default)]
    pub to: Operations,
}

/// Any of the identities or namespaces; both absent: every authenticated caller (deny: plaintext too).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Callers {
    #[serde(default)]
    pub identities: Vec<String>,
    #[serde(default)]
    pub namespaces: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Operations {
    /// Ports at which the application listens; absent: every port.
    #[serde(default)]
    pub ports: Vec<i64>,
}
