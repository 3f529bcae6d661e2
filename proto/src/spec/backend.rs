//! A set of interchangeable endpoints and how to use them.

use std::{net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use serde::{Serialize, Serializer};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Sorted by address, without duplicates, so that equal sets have equal versions.
    pub endpoints: Vec<Endpoint>,
    pub load_balancer: LoadBalancer,
    pub timeouts: Timeouts,
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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LoadBalancer {
    /// Power of two choices on peak-EWMA latency times requests in flight.
    #[default]
    PeakEwma,
    LeastRequest,
    RoundRobin,
    Random,
}

/// `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From the dial to the end of the TLS handshake.
    pub connect: Duration,
    /// From the request's head to the answer's head.
    pub request: Option<Duration>,
    /// An opaque connection without a byte either way.
    pub idle: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Some(Duration::from_secs(30)),
            idle: Some(Duration::from_secs(3600)),
        }
    }
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
