//! How callers use a backend: what a TrafficPolicy says, with every default filled in.
//!
//! The numbers of [`Default`] are the product's: each says where it comes from. `None` means that a limit or a feature
//! is off. Shares are whole per cents or thousandths, so that equal policies have equal bytes.

use std::{num::NonZeroU32, time::Duration};

use serde::Serialize;

mod balance;
mod fallback;
mod outlier;
mod retry;

pub use balance::{Algorithm, HashOn, LoadBalancer, Subset, Table, ZonePreference};
pub use fallback::{Answer, Cache, Fallback, FallbackOn, FallbackTo};
pub use outlier::{
    CheckKind, FailurePercentage, Failures, HealthCheck, LatencyOutlier, LoneOpinion, OutlierEjection,
    SuccessRate,
};
pub use retry::{Backoff, HedgeDelay, Hedging, Retries, RetryBudget, RetryOn};

use super::{BackendKey, RateLimit};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    pub load_balancer: LoadBalancer,
    pub timeouts: Timeouts,
    pub bulkhead: Bulkhead,
    /// Off: no endpoint is ever ejected.
    pub outlier_ejection: Ejection,
    pub health_check: Option<HealthCheck>,
    pub retries: Retries,
    pub hedging: Option<Hedging>,
    /// Of the calls that leave each caller; all of them must admit a request.
    pub rate_limits: Vec<RateLimit>,
    pub fallback: Option<Fallback>,
    pub cache: Option<Cache>,
    /// Identical GETs under way at the same time become one.
    pub coalesce: bool,
}

impl Traffic {
    /// The backend that stands in for this one, if another one does.
    pub fn backup(&self) -> Option<&BackendKey> {
        match &self.fallback.as_ref()?.to {
            FallbackTo::Backend(key) => Some(key),
            FallbackTo::Answer(_) => None,
        }
    }
}

/// Ejection is on unless a policy turns it off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Ejection(pub Option<OutlierEjection>);

impl Default for Ejection {
    fn default() -> Self {
        Self(Some(OutlierEjection::default()))
    }
}

/// `None` means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From the dial to the end of the TLS handshake. 5 s, as Envoy's.
    pub connect: Duration,
    /// From the request's head to the answer's head, over all attempts. 30 s.
    pub request: Option<Duration>,
    /// One attempt, from its dispatch to the answer's head.
    pub per_try: Option<Duration>,
    /// One attempt, from the end of the request to the answer's head.
    pub response_header: Option<Duration>,
    /// A request or its answer under way without a byte in either direction. 5 min, as Envoy's `stream_idle_timeout`.
    pub stream_idle: Option<Duration>,
    /// An opaque connection without a byte either way. 1 h.
    pub idle: Option<Duration>,
    /// A connection takes no new requests once it is so old, give or take a tenth; those under way go on.
    pub max_connection_age: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            request: Some(Duration::from_secs(30)),
            per_try: None,
            response_header: None,
            stream_idle: Some(Duration::from_secs(300)),
            idle: Some(Duration::from_secs(3600)),
            max_connection_age: None,
        }
    }
}

/// How much of a caller one upstream may occupy. All of it is per caller's proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Bulkhead {
    /// All endpoints together.
    pub upstream: Limits,
    /// Each endpoint.
    pub endpoint: Limits,
    /// Requests in flight of each route.
    pub route_requests: Option<NonZeroU32>,
    /// Where requests wait that a limit does not admit at once. `None`: nobody waits.
    pub queue: Option<Queue>,
    /// Moves the upstream's request limit by what latency says. It then ignores `upstream.requests`.
    pub adaptive: Option<Adaptive>,
}

/// `None` means no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Limits {
    pub connections: Option<NonZeroU32>,
    /// Requests in flight.
    pub requests: Option<NonZeroU32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    pub size: NonZeroU32,
    /// Never 0.
    pub timeout: Duration,
}

/// A limit that follows latency against its own floor (gradient).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Adaptive {
    /// At most `max`.
    pub min: NonZeroU32,
    pub max: NonZeroU32,
    /// Latency above the floor that is taken as healthy, in per cent of the floor; at least 100. Netflix's gradient2: 150.
    pub tolerance_percent: u32,
}
