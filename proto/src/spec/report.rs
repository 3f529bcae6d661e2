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
    /// From 1, without gaps.
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
    /// Opaque or failed connections that ended.
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

/// A histogram of durations: 10 µs to 10 min in microseconds, two significant digits (an error of less than 1 %). What
/// is outside counts at the end of the range. It grows with the longest duration: 6 KiB for one of some milliseconds,
/// 24 KiB for 10 min.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations(pub(crate) Histogram<u64>);

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
}

// === impl Durations ===

impl Durations {
    /// What can be told apart at the lower end: with 10 µs there, buckets below 2 ms would all be 8 µs wide.
    pub(crate) const UNIT_US: u64 = 1;
    pub(crate) const LEAST_US: u64 = 10;
    pub(crate) const MOST_US: u64 = 600_000_000;
    pub(crate) const DIGITS: u8 = 2;

    /// `None` never happens: the bounds are legal constants (`tests` makes one).
    pub fn new() -> Self {
        let made = Histogram::new_with_bounds(Self::UNIT_US, 2 * Self::UNIT_US, Self::DIGITS);
        let mut histogram = made.unwrap_or_else(|_| unreachable!("the bounds are legal"));
        histogram.auto(true);
        Self(histogram)
    }

    pub fn record(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        // Within the bounds it grows as needed and cannot fail.
        let _ = self.0.record(micros.clamp(Self::LEAST_US, Self::MOST_US));
    }

    pub fn add(&mut self, other: &Self) {
        // The same buckets, and it grows as needed.
        let _ = self.0.add(&other.0);
    }

    /// Forgets what was recorded, not the room for it.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// `None`: nothing was recorded. `quantile`: 0 to 1.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_micros(self.0.value_at_quantile(quantile)))
    }

    pub fn max(&self) -> Option<Duration> {
        (self.count() > 0).then(|| Duration::from_micros(self.0.max()))
    }

    /// The buckets that are not empty: a value within each, in microseconds, and how often.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter_recorded().map(|bucket| (bucket.value_iterated_to(), bucket.count_at_value()))
    }

    /// Adds what [`Self::buckets`] of another one has said.
    pub fn add_bucket(&mut self, micros: u64, count: u64) {
        let _ = self.0.record_n(micros.clamp(Self::LEAST_US, Self::MOST_US), count);
    }
}

impl Default for Durations {
    fn default() -> Self {
        Self::new()
    }
}
