//! What happened, told once and kept three times: as metrics, as an access-log line and in the report to control planes.
//!
//! The data path fills a [`RequestRecord`] or [`ConnectionRecord`] when its work has ended and hands it to its worker's
//! [`Shard`]; all sinks are fed from there without a lock, an allocation in the steady state, or a wait. Everything
//! that is counted on the control runtime (configuration, certificates) goes to [`Telemetry`] itself.
//!
//! It samples nothing and decides nothing; names and formats are in `metrics.rs` and `access_log.rs`.

use std::{cell::RefCell, net::SocketAddr, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_core::{
    trace::{SpanId, TraceId},
    verdict::Reason,
};
use tokio::sync::mpsc;

use crate::{
    access_log,
    metrics::{self, Event, Timed},
    report::{self, Reports},
};

mod key;

pub(crate) use key::{Key, Keys, MOST_GRPC, Outcome};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    Inbound,
    Outbound,
}

/// What was spoken, as far as the proxy knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Http1,
    Http2,
    Grpc,
    /// Opaque bytes.
    Tcp,
    /// The application's own TLS, passed through.
    Tls,
}

/// One request, from its head to the end of its answer.
#[derive(Clone, Debug)]
pub struct RequestRecord<'a> {
    pub direction: Direction,
    pub protocol: Protocol,
    pub method: &'a str,
    pub authority: &'a str,
    /// What follows a `?` is never logged, whether or not it is in here.
    pub path: &'a str,
    /// As the caller saw it; 0 when the caller left before there was one.
    pub status: u16,
    pub grpc_status: Option<u16>,
    /// Why the proxy answered itself, or cut the answer short.
    pub reason: Option<Reason>,
    /// What goes with the reason, such as the name of a policy or the text of an error.
    pub detail: &'a str,
    /// Outbound: the identity of the endpoint that answered. Inbound: of the caller; `None` for plaintext.
    pub peer: Option<&'a SpiffeId>,
    /// Address of whoever opened the connection.
    pub caller: SocketAddr,
    /// `NAMESPACE/NAME:PORT` outbound, `:PORT` inbound, empty if unknown.
    pub service: &'a str,
    /// Name of the route, empty without one.
    pub route: &'a str,
    /// Where the (last) attempt went.
    pub endpoint: Option<SocketAddr>,
    /// Body bytes from the caller.
    pub received: u64,
    /// Body bytes to the caller.
    pub sent: u64,
    /// Until the answer's head; zero if there was none.
    pub first_byte: Duration,
    pub duration: Duration,
    /// Tries at endpoints: 0 when none was tried.
    pub attempts: u32,
    /// The tries at endpoints, in the order of their beginning; as many as are kept, so it may be fewer than `attempts`.
    pub tries: &'a [Try],
    /// Of the connection to `peer`: `TLSv1_3 CIPHER GROUP`; empty: plaintext, or there was none.
    pub security: &'a str,
    pub trace: Option<Traced>,
    pub handled: Handled<'a>,
    /// Also in `outrigger-id`.
    pub id: u64,
}

/// The trace that something belongs to, whoever began it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced {
    pub trace: TraceId,
    /// This proxy's span; without one, the one that the caller named.
    pub span: SpanId,
    /// Whoever looks for it in the tracing backend finds it.
    pub sampled: bool,
}

/// One try at an endpoint. Times are since the request's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Try {
    pub endpoint: SocketAddr,
    pub began: Duration,
    /// How long its connection was waited for; zero: one was there.
    pub connect: Duration,
    /// Until the answer's head, or the failure.
    pub lasted: Duration,
    /// It began beside another one.
    pub hedge: bool,
    pub ended: Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Given up by this proxy or by the caller.
    Cancelled,
    Status(u16),
    /// A gRPC answer that was over with its head.
    Grpc(u16),
    Failed(Reason),
}

/// What resilience did about a request. All words are ours.
#[derive(Clone, Debug, Default)]
pub struct Handled<'a> {
    /// Waiting for bulkheads, all together.
    pub queued: Duration,
    /// Why a failure was not tried again, e.g. `budget`.
    pub gave_up: Option<&'static str>,
    /// What became of a second attempt beside the first: `won` or `lost`.
    pub hedged: Option<&'static str>,
    /// What was answered in place of a failure: `stale`, `backend` or `answer`.
    pub fallback: Option<&'static str>,
    /// What a cache had: `hit`, `miss`, `revalidated`, `stale`, `coalesced`.
    pub cache: Option<&'static str>,
    /// The rate limit or bulkhead that refused it, or would have (`dryRun`).
    pub limit: &'a str,
}

/// One connection that was carried as bytes, or that ended before it carried a request.
#[derive(Clone, Debug)]
pub struct ConnectionRecord<'a> {
    pub direction: Direction,
    pub protocol: Protocol,
    pub reason: Option<Reason>,
    pub detail: &'a str,
    pub peer: Option<&'a SpiffeId>,
    pub caller: SocketAddr,
    pub service: &'a str,
    /// Server name of a passed-through TLS connection, or the name dialled; empty if unknown.
    pub authority: &'a str,
    pub endpoint: Option<SocketAddr>,
    pub received: u64,
    pub sent: u64,
    /// Until the connection to the endpoint was there; zero if it never was.
    pub connected: Duration,
    pub duration: Duration,
    pub attempts: u32,
    /// As of a request.
    pub security: &'a str,
    pub trace: Option<Traced>,
    pub id: u64,
}

/// Process-wide: makes shards, holds what the control runtime counts, answers scrapes.
pub struct Telemetry {
    pub metrics: Arc<metrics::Registry>,
    pub reports: Arc<Reports>,
    access_log: access_log::AccessLog,
}

/// A worker's own counters and log buffer.
pub struct Shard {
    keys: Keys,
    metrics: RefCell<metrics::Shard>,
    access_log: RefCell<access_log::Lane>,
    report: RefCell<report::Table>,
}

// === impl Direction ===

impl Direction {
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

// === impl Protocol ===

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

// === impl Telemetry ===

impl Telemetry {
    pub fn new(access_log: access_log::AccessLog) -> Self {
        Self::with(metrics::Registry::new(metrics::SERIES_BUDGET), access_log)
    }

    pub fn with(metrics: Arc<metrics::Registry>, access_log: access_log::AccessLog) -> Self {
        Self { metrics, reports: Reports::new(), access_log }
    }

    /// For the worker on whose thread it will be used.
    pub fn shard(&self) -> Shard {
        Shard {
            keys: Keys::default(),
            metrics: RefCell::new(self.metrics.shard()),
            access_log: RefCell::new(self.access_log.lane()),
            report: RefCell::new(report::Table::new(&self.reports)),
        }
    }

    pub fn access_log_dropped(&self) -> u64 {
        self.access_log.dropped()
    }

    pub fn access_log_filtered(&self) -> u64 {
        self.access_log.filtered()
    }

    /// Writes out what is queued; gives up at the deadline (nobody may be reading the pipe any more).
    pub fn flush(&self, within: Duration) {
        self.access_log.flush(within);
    }
}

// === impl Shard ===

impl Shard {
    pub fn request(&self, record: &RequestRecord<'_>) {
        let (key, outcome) = (self.keys.of_request(record), Outcome::of(record));
        self.metrics.borrow_mut().request(&key, outcome, record);
        self.report.borrow_mut().request(&key, outcome, record);
        self.access_log.borrow_mut().request(record);
    }

    pub fn connection(&self, record: &ConnectionRecord<'_>) {
        let key = self.keys.of_connection(record);
        self.metrics.borrow_mut().connection(&key, record);
        self.report.borrow_mut().connection(&key, record);
        self.access_log.borrow_mut().connection(record);
    }

    /// Hands over what there is to report since the last time.
    pub fn report(&self, worker: usize, answer: &mpsc::Sender<report::Given>) {
        self.report.borrow_mut().give(worker, answer);
    }

    /// Counts under a name of the configuration's, never of a caller's.
    pub fn event(&self, event: Event, name: &str, words: [&'static str; 2]) {
        self.events(event, name, words, 1);
    }

    pub fn events(&self, event: Event, name: &str, words: [&'static str; 2], times: u64) {
        self.metrics.borrow_mut().event(event, name, words, times);
    }

    /// The same for how long something took.
    pub fn timed(&self, timed: Timed, name: &str, took: Duration) {
        self.metrics.borrow_mut().timed(timed, name, ["", ""], took);
    }

    /// Forgets its way to series that were idle; done with each count too.
    pub fn let_go(&self) {
        self.metrics.borrow_mut().let_go();
    }

    /// Ways to series that are kept.
    #[cfg(test)]
    pub(crate) fn ways(&self) -> usize {
        self.metrics.borrow().ways()
    }

    /// A TLS handshake of the mesh hop failed. `cause` is one of a fixed few, never the peer's words.
    pub fn handshake_failed(&self, direction: Direction, cause: &'static str) {
        self.event(Event::HandshakeFailed, direction.name(), [cause, ""]);
    }
}
