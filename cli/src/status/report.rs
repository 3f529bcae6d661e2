//! What is read of the control plane's `/status`. Fields that are not shown are not named; ones that are
//! missing, as in the answer of another version, count as empty.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Report {
    pub(super) version: String,
    pub(super) uptime_seconds: u64,
    pub(super) ready: bool,
    #[serde(default)]
    pub(super) reasons: Vec<String>,
    pub(super) ca: Ca,
    pub(super) configuration: Configuration,
    #[serde(default)]
    pub(super) proxies: Vec<Proxy>,
    #[serde(default)]
    pub(super) services: Vec<Service>,
    #[serde(default)]
    pub(super) circuits: Vec<Circuits>,
    #[serde(default)]
    pub(super) shared_limits: Vec<SharedLimit>,
    #[serde(default)]
    pub(super) history: Option<History>,
    #[serde(default)]
    pub(super) events: Option<Events>,
}

/// What is kept of traffic.
#[derive(Deserialize)]
pub(super) struct History {
    /// What an earlier process saved is read back.
    pub(super) loaded: bool,
    pub(super) bytes: u64,
    pub(super) cap_bytes: u64,
    pub(super) series: u64,
    /// Series that count as `other` because there is no room for them.
    pub(super) folded: u64,
    /// How far back seconds, and anything, can be told.
    pub(super) fine_seconds: u64,
    pub(super) kept_seconds: u64,
    pub(super) disk: Disk,
}

#[derive(Deserialize)]
pub(super) struct Disk {
    pub(super) bytes: u64,
    pub(super) cap_bytes: u64,
    #[serde(default)]
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Events {
    /// The number of the latest; 0: there is none.
    pub(super) last: u64,
    pub(super) held: u64,
    #[serde(default)]
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Circuits {
    pub(super) service: String,
    pub(super) circuits: Vec<Circuit>,
}

#[derive(Deserialize)]
pub(super) struct Circuit {
    pub(super) endpoint: String,
    pub(super) callers: u64,
    pub(super) opened_by: Vec<Opinion>,
}

#[derive(Deserialize)]
pub(super) struct Opinion {
    pub(super) identity: String,
    pub(super) to: String,
    pub(super) why: String,
    /// Milliseconds since 1970.
    pub(super) at: i64,
}

#[derive(Deserialize)]
pub(super) struct SharedLimit {
    pub(super) limit: String,
    #[serde(default)]
    pub(super) holders: Vec<Holder>,
}

#[derive(Deserialize)]
pub(super) struct Holder {
    pub(super) identity: String,
    pub(super) address: String,
    /// Both in millionths of the limit.
    pub(super) demand: u64,
    pub(super) share: u64,
}

#[derive(Deserialize)]
pub(super) struct Ca {
    pub(super) trust_domain: String,
    #[serde(default)]
    pub(super) roots: Vec<outrigger_certs::inspect::Summary>,
    #[serde(default)]
    pub(super) error: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Configuration {
    pub(super) generation: u64,
    #[serde(default)]
    pub(super) version: String,
    #[serde(default)]
    pub(super) taken_at: i64,
    #[serde(default)]
    pub(super) files: Vec<String>,
    #[serde(default)]
    pub(super) errors: Vec<ConfigError>,
}

#[derive(Deserialize)]
pub(super) struct ConfigError {
    pub(super) file: String,
    pub(super) line: u64,
    pub(super) column: u64,
    #[serde(default)]
    pub(super) object: String,
    #[serde(default)]
    pub(super) field: String,
    pub(super) reason: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Proxy {
    pub(super) identity: String,
    pub(super) instance: String,
    pub(super) version: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) addresses: Vec<String>,
    pub(super) zone: String,
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) connected: bool,
    pub(super) presence_only: bool,
    pub(super) subscriptions: u64,
    pub(super) in_sync: bool,
    pub(super) acked_generation: u64,
    pub(super) refused: Vec<Refusal>,
}

#[derive(Deserialize)]
pub(super) struct Refusal {
    pub(super) key: String,
    #[serde(default)]
    pub(super) errors: Vec<FieldError>,
}

#[derive(Deserialize)]
pub(super) struct FieldError {
    pub(super) field: String,
    pub(super) reason: String,
}

#[derive(Deserialize)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) addresses: Vec<String>,
    #[serde(default)]
    pub(super) ports: Vec<Port>,
}

#[derive(Deserialize)]
pub(super) struct Port {
    pub(super) port: u16,
    #[serde(default)]
    pub(super) protocol: String,
    #[serde(default)]
    pub(super) routes: Vec<String>,
    #[serde(default)]
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
pub(super) struct Endpoint {
    pub(super) address: String,
}
