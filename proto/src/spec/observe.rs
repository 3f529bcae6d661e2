//! What proxies tell each other through the control plane about traffic as it is now. None of it is policy: it is not
//! versioned, not acknowledged and not written to disk, and a proxy that hears nothing goes by what it sees itself.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde::Serialize;

use super::BackendKey;

/// From a proxy: what changed since its last one, and all that is still so on a new stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observations {
    pub transitions: Vec<Transition>,
    pub demands: Vec<Demand>,
    /// Backends that this proxy calls now, whether or not anything is wrong with them. Complete.
    pub calling: Vec<BackendKey>,
}

/// A circuit has opened, half-opened or closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transition {
    pub backend: BackendKey,
    pub endpoint: SocketAddr,
    pub to: Circuit,
    pub cause: Cause,
    /// Milliseconds since 1970, by the proxy's clock.
    pub at: u64,
    /// Of an opened circuit: how long it stays so.
    pub lasts: Option<Duration>,
    /// How many times in a row, this one included.
    pub times: u32,
    /// The threshold that was crossed and by what, in words, e.g. `5 failures in a row (limit 5)`.
    pub why: Arc<str>,
    /// The latest outcomes before it, the oldest first: at most 10.
    pub evidence: Vec<Outcome>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Circuit {
    #[default]
    Closed,
    Open,
    HalfOpen,
}

/// Who or what decided a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    ConsecutiveFailures,
    FailurePercentage,
    SuccessRate,
    ConsecutiveConnectFailures,
    Latency,
    HealthCheck,
    /// A request in the half-open state failed.
    ProbeFailed,
    /// The ejection has lasted its time.
    TimeServed,
    /// Enough requests in the half-open state succeeded.
    ProbesSucceeded,
    /// The floor needs it back, or the policy no longer ejects.
    Policy,
}

/// How one request to an endpoint ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Before the transition.
    pub ago: Duration,
    /// `200`, `503`, `grpc 14`, `reset`, `connect-failed`, `timeout`, …
    pub what: Arc<str>,
    pub failed: bool,
    pub latency: Duration,
}

/// How much a proxy is asked for under a shared rate limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Demand {
    /// [`super::RateLimit::name`].
    pub limit: Arc<str>,
    /// Requests per second that asked, admitted or not, in thousandths.
    pub thousandths_per_second: u64,
}

/// To a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guidance {
    pub shares: Vec<Share>,
    pub fleets: Vec<Fleet>,
}

/// This proxy's part of a shared rate limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    pub limit: Arc<str>,
    pub parts_per_million: u32,
    /// Proxies among which it is divided: who hears nothing until `valid_for` has passed takes one part of so many.
    pub holders: u32,
    pub valid_for: Duration,
}

/// What all callers of a backend make of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fleet {
    pub backend: BackendKey,
    /// Proxies that call it, this one included.
    pub callers: u32,
    /// Endpoints that at least one of them has ejected, and how many have.
    pub ejected: Vec<(SocketAddr, u32)>,
}
