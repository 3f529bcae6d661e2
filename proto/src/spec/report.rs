//! What traffic there was, told by each proxy to all its control planes about once a second.
//!
//! Deltas: sums over proxies and over time are sums of numbers, and percentiles over them are as good as those of one
//! proxy, because all histograms have the same buckets. A report is kept by its proxy until it is acknowledged and has a
//! number, so that it counts exactly once wherever it arrives.
//!
//! It carries no single request (that is the access log and traces) and nothing that a stranger can name.

use std::{sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use outrigger_certs::SpiffeId;
use serde::Serialize;

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

/// A histogram of durations from 10 µs to 10 min in microseconds, with an error of less than 1 %. What is outside counts
/// at the end of the range.
///
/// Without a record it takes no room; then it grows with the longest duration: 6 KiB for one of some milliseconds, 1 KiB
/// more for each doubling, 24 KiB for 10 min.
#[derive(Clone, Debug, Default)]
pub struct Durations(pub(crate) Option<Histogram<u64>>);

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
    /// Whether these count against a service's success: 5xx, and of gRPC the codes that are the server's fault (UNKNOWN,
    /// DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS). A caller that left judges nothing.
    pub fn is_failure(&self) -> bool {
        match self.grpc_status {
            Some(code) => matches!(code, 2 | 4 | 13 | 14 | 15),
            None => self.status_class == 5,
        }
    }

    /// All but the count is the same.
    pub fn is_like(&self, other: &Self) -> bool {
        (self.status_class, self.grpc_status) == (other.status_class, other.grpc_status)
            && self.reason == other.reason
    }
}

// === impl Durations ===

impl Durations {
    /// What can be told apart at the lower end: with 10 µs there, buckets below 2 ms would all be 8 µs wide.
    pub(crate) const UNIT_US: u64 = 1;
    pub(crate) const LEAST_US: u64 = 10;
    pub(crate) const MOST_US: u64 = 600_000_000;
    pub(crate) const DIGITS: u8 = 2;

    pub fn new() -> Self {
        Self(None)
    }

    pub fn record(&mut self, duration: Duration) {
        self.add_bucket(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX), 1);
    }

    /// Exact: both have the same buckets.
    pub fn add(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            // It grows as needed.
            (Some(histogram), Some(other)) => _ = histogram.add(other),
            (None, Some(_)) => *self = other.clone(),
            (_, None) => {}
        }
    }

    /// Forgets what was recorded, not the room for it.
    pub fn reset(&mut self) {
        if let Some(histogram) = &mut self.0 {
            histogram.reset();
        }
    }

    pub fn count(&self) -> u64 {
        self.0.as_ref().map_or(0, Histogram::len)
    }

    /// `None`: nothing was recorded. `quantile`: 0 to 1.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        self.recorded().map(|histogram| Duration::from_micros(histogram.value_at_quantile(quantile)))
    }

    pub fn max(&self) -> Option<Duration> {
        self.recorded().map(|histogram| Duration::from_micros(histogram.max()))
    }

    /// The buckets that are not empty, the shortest first: a value within each, in microseconds, and how often.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let buckets = self.0.iter().flat_map(Histogram::iter_recorded);
        buckets.map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
    }

    /// Adds what [`Self::buckets`] of another one has said.
    pub fn add_bucket(&mut self, micros: u64, count: u64) {
        if self.0.is_none() {
            // The bounds are legal, so it is there from now on.
            self.0 = Histogram::new_with_bounds(Self::UNIT_US, 2 * Self::UNIT_US, Self::DIGITS).ok();
            self.0.iter_mut().for_each(|histogram| histogram.auto(true));
        }
        // Nothing recorded no times would still be the longest duration.
        if let (Some(histogram), 1..) = (&mut self.0, count) {
            // It grows as needed.
            let _ = histogram.record_n(micros.clamp(Self::LEAST_US, Self::MOST_US), count);
        }
    }

    fn recorded(&self) -> Option<&Histogram<u64>> {
        self.0.as_ref().filter(|histogram| !histogram.is_empty())
    }
}

/// By what was recorded, not by the room for it.
impl PartialEq for Durations {
    fn eq(&self, other: &Self) -> bool {
        self.buckets().eq(other.buckets())
    }
}

#[cfg(test)]
mod tests;
