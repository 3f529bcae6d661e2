//! What an address or a name means to a caller: a service, one workload, or something outside the mesh.

use std::{
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use http::{HeaderName, Method};
use serde::{Serialize, Serializer};

use super::{BackendKey, Endpoint, Protocol};

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Destination {
    Service(ServicePort),
    /// A pod's own address: that pod and no other.
    Workload(Workload),
    /// Known not to be in the mesh; the egress policy decides.
    External,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServicePort {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: NonZeroU16,
    pub protocol: Protocol,
    /// In the order of precedence, the first match wins. Empty: everything goes to `backend`.
    pub routes: Vec<Arc<Route>>,
    /// The service's own endpoints.
    pub backend: BackendKey,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    pub endpoint: Endpoint,
    pub protocol: Protocol,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Route {
    /// `NAMESPACE/NAME/RULE`, shown in logs and metrics.
    pub name: Arc<str>,
    /// Any of these; empty: every request.
    pub matches: Vec<RouteMatch>,
    /// Never empty. A backend with weight 0 in the source is left out; all at 0 is refused at the source.
    pub backends: Vec<WeightedBackend>,
    /// `None`: the backend's own.
    pub request_timeout: Option<Duration>,
}

/// All conditions hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RouteMatch {
    pub path: Option<PathMatch>,
    pub headers: Vec<HeaderMatch>,
    #[serde(serialize_with = "method_as_text")]
    pub method: Option<Method>,
}

/// Paths are normalised before they are compared; these begin with `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PathMatch {
    Exact(Arc<str>),
    /// By whole elements: `/a` matches `/a` and `/a/b`, not `/ab`. Without a trailing slash, except `/` itself.
    Prefix(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HeaderMatch {
    #[serde(serialize_with = "name_as_text")]
    pub name: HeaderName,
    pub value: HeaderValueMatch,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderValueMatch {
    Exact(Arc<str>),
    /// Source of a regular expression; compiled, with a size limit, when a snapshot is compiled. At most 1,024 bytes.
    Regex(Arc<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WeightedBackend {
    pub backend: BackendKey,
    pub weight: NonZeroU32,
}

fn method_as_text<S: Serializer>(method: &Option<Method>, serializer: S) -> Result<S::Ok, S::Error> {
    match method {
        Some(method) => serializer.serialize_str(method.as_str()),
        None => serializer.serialize_none(),
    }
}

fn name_as_text<S: Serializer>(name: &HeaderName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name.as_str())
}
