//! Which endpoint gets a request.

use std::{sync::Arc, time::Duration};

use http::HeaderName;
use serde::{Serialize, Serializer};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LoadBalancer {
    pub algorithm: Algorithm,
    pub zone: Option<ZonePreference>,
    /// An endpoint gets its full share only so long after it became ready.
    pub slow_start: Option<Duration>,
    /// When less than this share of the hosts is admitted, in per cent, all are used. 0 to 100; 0: never, except that
    /// the floor of outlier ejection always leaves somebody.
    pub panic_percent: u8,
    pub subset: Option<Subset>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// Power of two choices on peak-EWMA latency times requests in flight.
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
    /// Equal keys go to the same endpoint as long as it is there. The first of these that a request has is its key; a
    /// request without any is balanced at random. Never empty.
    Consistent(Table, Vec<HashOn>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    Maglev,
    Ring,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashOn {
    #[serde(serialize_with = "name_as_text")]
    Header(HeaderName),
    /// Made and set by the proxy where a request has none, for so long (`None`: the browser's session).
    Cookie {
        name: Arc<str>,
        ttl: Option<Duration>,
    },
    SourceIdentity,
    SourceAddress,
    Path,
    QueryParameter(Arc<str>),
}

impl HashOn {
    /// A token of RFC 9110, as RFC 6265 wants it: what may stand in a `Set-Cookie` without breaking it.
    pub fn is_cookie_name(name: &str) -> bool {
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !name.is_empty() && name.bytes().all(token)
    }
}

/// Endpoints in the caller's own zone go first; the others take over what the healthy ones there cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ZonePreference {
    /// While at least this share of the zone's endpoints is healthy, in per cent, the zone keeps all its traffic; below,
    /// it keeps `healthy / min_healthy` of it. 1 to 100. Envoy's overprovisioning factor of 1.4 is 71.
    pub min_healthy_percent: u8,
}

/// A request goes only to endpoints whose label equals one of its headers; the label's values are
/// [`super::super::Endpoint::subset`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Subset {
    #[serde(serialize_with = "name_as_text")]
    pub header: HeaderName,
    /// The label's key, for people.
    pub label: Arc<str>,
    /// What a request gets whose header names no endpoint: any endpoint, or `no-endpoints`. One without the header always
    /// gets any.
    pub fallback_to_any: bool,
}

fn name_as_text<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
