//! What traffic there was, told by each proxy to all its control planes about once a second.
//!
//! Deltas: sums over proxies and over time are sums of numbers, and percentiles over them are as good as those of one
//! proxy, because all histograms have the same buckets. A report is kept by its proxy until it is acknowledged and has a
//! number, so that it counts exactly once wherever it arrives.
//!
//! It carries no single request (that is the access log and traces) and nothing that a stranger can name.

use std::{sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use serde::Serialize;

use super::durations::Durations;

#[derive(Clone, Debug, PartialEq)]
pub struct TrafficReport {
    /// Random for each life of a proxy: numbers begin again with it. Never 0.
    pub epoch: u64,
    /// From 1, rising. A gap: a report was merged with the one before it, or lost, before it was ever sent.
    pub sequence: u64,
    /// The time reported about.
    pub length: Duration,
    /// How long ago that ended when it is sent, by the proxy's monotonic clock.
    pub ended_ago: Duration,
    pub edges: Vec<EdgeTraffic>,
    pub events: Vec<ProxyEvent>,
}

/// Requests and connections of one kind between the reporting proxy and one peer that ended within the time.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeTraffic {
    pub key: EdgeKey,
    /// `TLSv1_3 CIPHER GROUP` of the connection to the peer; `None`: plaintext, or nothing was opened.
    pub security: Option<Arc<str>>,
    pub outcomes: Vec<OutcomeCount>,
    /// Of all requests, whatever their outcome: from the head to the end of the answer.
    pub durations: Durations,
    /// Body bytes (or of connections) from and to callers.
    pub received: u64,
    pub sent: u64,
    /// Connections that ended and were carried as bytes or carried nothing; those of them that the proxy ended or could
    /// not make.
    pub connections: u64,
    pub connections_failed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    pub side: Side,
    /// As in metrics: `NAMESPACE/NAME:PORT`, `external`, `:PORT` (inbound), `other`, or empty.
    pub service: Arc<str>,
    pub route: Arc<str>,
    /// Proven identity of the other side.
    pub peer: Option<SpiffeId>,
}

/// Which side of a call the reporting proxy was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Outbound,
    Inbound,
}

/// Requests that ended alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeCount {
    /// 1 to 5; 0: the caller left before there was an answer.
    pub status_class: u8,
    pub grpc_status: Option<u8>,
    /// Of an answer that a proxy made: [`outrigger-reason`](https://docs.rs/outrigger-core), otherwise empty.
    pub reason: Arc<str>,
    /// Never 0.
    pub count: u64,
}

/// Something that an operator wants to know of and no other stream tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyEvent {
    /// When the report is sent.
    pub ago: Duration,
    pub kind: ProxyEventKind,
    pub message: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyEventKind {
    CertificateNearEnd,
    CaptureBroken,
    CaptureRestored,
    Draining,
}

/// Reasons for which a proxy cuts an answer short that has begun.
pub const CUT_SHORT: [&str; 3] = ["upstream-reset", "upstream-protocol", "stream-idle"];

/// The one rule of what is a failure, for everybody who counts or keeps some: the called side answered 5xx, or a gRPC
/// status that says the same, or began to answer and did not end it. Alerts and dashboards say it in PromQL.
///
/// What a caller did wrong, what a policy refused with a 4xx and a caller that left (class 0) are none.
pub fn is_failure(status_class: u8, grpc_status: Option<u16>, reason: &str) -> bool {
    status_class == 5
        || grpc_status.is_some_and(is_grpc_failure)
        || (status_class > 0 && CUT_SHORT.contains(&reason))
}

/// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS: the codes that gRPC translates to a 5xx
/// (google/rpc/code.proto), and those that OpenTelemetry's conventions make errors of a server's span. What is beyond gRPC's
/// last code is to be taken for UNKNOWN.
pub fn is_grpc_failure(code: u16) -> bool {
    matches!(code, 2 | 4 | 12 | 13 | 14 | 15) || code > 16
}

// === impl EdgeTraffic ===

impl EdgeTraffic {
    /// Without any traffic.
    pub fn new(key: EdgeKey) -> Self {
        Self {
            key,
            security: None,
            outcomes: Vec::new(),
            durations: Durations::new(),
            received: 0,
            sent: 0,
            connections: 0,
            connections_failed: 0,
        }
    }

    pub fn requests(&self) -> u64 {
        self.outcomes.iter().fold(0, |sum, outcome| sum.saturating_add(outcome.count))
    }

    pub fn failures(&self) -> u64 {
        let failed = self.outcomes.iter().filter(|outcome| outcome.is_failure());
        failed.fold(0, |sum, outcome| sum.saturating_add(outcome.count))
    }

    /// Adds what happened later, whatever its key. Nothing is lost by it but when it was.
    pub fn add(&mut self, later: &Self) {
        for outcome in &later.outcomes {
            match self.outcomes.iter_mut().find(|known| known.is_like(outcome)) {
                Some(known) => known.count = known.count.saturating_add(outcome.count),
                None => self.outcomes.push(outcome.clone()),
            }
        }
        self.security = later.security.clone().or_else(|| self.security.take());
        self.durations.add(&later.durations);
        self.received = self.received.saturating_add(later.received);
        self.sent = self.sent.saturating_add(later.sent);
        self.connections = self.connections.saturating_add(later.connections);
        self.connections_failed = self.connections_failed.saturating_add(later.connections_failed);
    }
}

// === impl OutcomeCount ===

impl OutcomeCount {
    /// Whether these count against a service's success: [`is_failure`].
    pub fn is_failure(&self) -> bool {
        is_failure(self.status_class, self.grpc_status.map(u16::from), &self.reason)
    }

    /// All but the count is the same.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.status_class, self.grpc_status) == (other.status_class, other.grpc_status)
            && self.reason == other.reason
    }
}

#[cfg(test)]
mod tests;
