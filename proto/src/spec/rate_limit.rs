//! How often something may be asked for: on the callers' side ([`super::Traffic`]) and on the server's
//! ([`super::PortLimits`]) alike.

use std::{
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use serde::{Serialize, Serializer};

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// `KIND/NAMESPACE/NAME/RULE`, unique in the mesh: shown in answers, logs and metrics; shared limits are counted under it.
    pub name: Arc<str>,
    pub algorithm: RateAlgorithm,
    pub requests: NonZeroU64,
    /// Never 0.
    pub per: Duration,
    /// Beyond the rate, at once (token bucket). At least 1.
    pub burst: NonZeroU64,
    /// Each combination of these values has a count of its own; empty: one for all.
    pub key: Vec<RateKey>,
    pub scope: Scope,
    /// Decides nothing; what it would have refused is logged and counted.
    pub dry_run: bool,
    /// Counts kept at a time; beyond, whoever was idle longest is forgotten. 10,000.
    pub max_keys: NonZeroU32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateAlgorithm {
    #[default]
    TokenBucket,
    SlidingWindow,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Each proxy has the whole of it.
    #[default]
    Local,
    /// All proxies that hold it share it; the control plane divides it by demand.
    Shared,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RateKey {
    CallerIdentity,
    ClientAddress,
    Path,
    #[serde(serialize_with = "name_as_text")]
    Header(HeaderName),
}

fn name_as_text<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
