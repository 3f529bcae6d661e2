//! A set of interchangeable endpoints and how to use them.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use outrigger_certs::SpiffeId;
use serde::{Serialize, Serializer};

use super::Traffic;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Sorted by address, without duplicates, so that equal sets have equal versions.
    pub endpoints: Vec<Endpoint>,
    pub traffic: Arc<Traffic>,
}

/// One place that serves: an address, and the only identity accepted there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Endpoint {
    /// Dialled as it is; the port is never 0.
    pub address: SocketAddr,
    #[serde(serialize_with = "identity_as_text")]
    pub identity: SpiffeId,
    /// Empty: unknown.
    pub zone: Arc<str>,
    pub weight: NonZeroU32,
    /// Its value of the label that the backend's [`super::Subset`] goes by. Empty: none.
    pub subset: Arc<str>,
    /// When it said that it was ready, in milliseconds since 1970. `None`: unknown, and long ago.
    pub ready_since: Option<NonZeroU64>,
}

fn identity_as_text<S: Serializer>(identity: &SpiffeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(identity.as_str())
}

pub(super) fn identities_as_text<S: Serializer>(
    identities: &[SpiffeId],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(identities.iter().map(SpiffeId::as_str))
}
