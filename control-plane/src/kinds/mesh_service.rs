//! `MeshService`: a service with its names, virtual addresses, ports and endpoints.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::AppProtocol;

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[schemars(rename = "MeshService")]
pub struct MeshServiceSpec {
    /// Names that clients use, besides NAME.NAMESPACE and, inside the namespace, NAME.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Virtual addresses that clients dial. None: clients dial the endpoints' own addresses.
    #[serde(default)]
    pub addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
    /// Endpoints that are always there, besides the workloads that `selector` finds.
    #[serde(default)]
    pub endpoints: Vec<Endpoint>,
    /// Labels of the workloads, in the service's own namespace, that are endpoints while they are ready.
    #[serde(default)]
    pub selector: Option<BTreeMap<String, String>>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    /// Required where there are several ports.
    #[serde(default)]
    pub name: Option<String>,
    /// What clients dial.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i64,
    /// Where the application listens; absent: `port`.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub target_port: Option<i64>,
    /// Absent: detected.
    #[serde(default)]
    pub app_protocol: Option<AppProtocol>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Endpoint {
    /// An IP address, without port.
    pub address: String,
    /// The only identity accepted there.
    pub identity: String,
    #[serde(default)]
    pub zone: Option<String>,
    /// Share of the traffic relative to the other endpoints: 1 to 65,535. Absent: 1.
    #[serde(default)]
    #[schemars(range(min = 1, max = 65535))]
    pub weight: Option<i64>,
    /// Ports of this endpoint that differ from `targetPort`, by the name of the service's port.
    #[serde(default)]
    pub ports: BTreeMap<String, i64>,
    /// What a `subset` of a TrafficPolicy goes by.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}
