//! What became of spans, and of metrics that are pushed, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outrigger_core::trace::{Cause, Discarded, Dropped, Format, Malformed};

/// Why a span was not sent, or not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// There were as many as there may be waiting.
    Queue,
    /// There were as many in this second as there may be.
    Rate,
    /// The backend was away, or in trouble, for longer than a batch waits.
    Backend,
    /// The backend wants nothing like it.
    Refused,
    /// The backend took the others of its batch.
    Rejected,
    /// The proxy ended before it could be sent.
    Shutdown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Traces,
    Metrics,
}

/// Fields of requests that were replaced or left out, and why: `field`, `cause`. What else there may be wrong with a
/// context is of use only to who makes one; that it came twice, also to who passes it on.
const DISCARDED: [(&str, &str); 10] = [
    ("traceparent", "repeated"),
    ("traceparent", "malformed"),
    ("b3", "repeated"),
    ("b3", "malformed"),
    ("x-b3", "malformed"),
    ("tracestate", "too-long"),
    ("tracestate", "too-many"),
    ("tracestate", "orphaned"),
    ("baggage", "too-long"),
    ("baggage", "too-many"),
];

#[derive(Debug, Default)]
pub struct Counters {
    exported: AtomicU64,
    /// Spans of the batch that is being sent.
    in_hand: AtomicU64,
    discarded: [AtomicU64; DISCARDED.len()],
    lost: [AtomicU64; Lost::ALL.len()],
    calls: [[AtomicU64; 2]; Signal::ALL.len()],
}

/// They only grow, but for `queued`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Spans that the backend has taken.
    pub exported: u64,
    /// Those that it will never have, by [`Lost::name`].
    pub dropped: [(&'static str, u64); Lost::ALL.len()],
    /// Spans that wait to be sent, or are being sent.
    pub queued: u64,
    /// Fields of requests that were replaced or left out, each with its cause.
    pub discarded: [(&'static str, &'static str, u64); DISCARDED.len()],
    /// Calls of the backend by signal: those that went well, and those that did not.
    pub calls: [(&'static str, [u64; 2]); Signal::ALL.len()],
}

impl Lost {
    pub const ALL: [Self; 6] =
        [Self::Queue, Self::Rate, Self::Backend, Self::Refused, Self::Rejected, Self::Shutdown];

    pub fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Rate => "rate",
            Self::Backend => "backend",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Signal {
    pub const ALL: [Self; 2] = [Self::Traces, Self::Metrics];

    pub fn name(self) -> &'static str {
        match self {
            Self::Traces => "traces",
            Self::Metrics => "metrics",
        }
    }
}

impl Counters {
    pub fn exported(&self, spans: u64) {
        self.exported.fetch_add(spans, Relaxed);
    }

    /// So many are being sent now.
    pub fn holds(&self, spans: u64) {
        self.in_hand.store(spans, Relaxed);
    }

    pub fn discarded(&self, what: Discarded) {
        let told = told(what);
        if let Some(at) = DISCARDED.iter().position(|known| *known == told) {
            self.discarded[at].fetch_add(1, Relaxed);
        }
    }

    pub fn lost(&self, why: Lost, spans: u64) {
        self.lost[why as usize].fetch_add(spans, Relaxed);
    }

    pub fn called(&self, signal: Signal, good: bool) {
        self.calls[signal as usize][usize::from(!good)].fetch_add(1, Relaxed);
    }

    /// `queued`: see [`Numbers`].
    pub(super) fn read(&self, queued: usize) -> Numbers {
        let lost = |why: Lost| (why.name(), self.lost[why as usize].load(Relaxed));
        let calls = |signal: Signal| {
            let [good, bad] = &self.calls[signal as usize];
            (signal.name(), [good.load(Relaxed), bad.load(Relaxed)])
        };
        Numbers {
            exported: self.exported.load(Relaxed),
            dropped: Lost::ALL.map(lost),
            queued: queued as u64 + self.in_hand.load(Relaxed),
            discarded: std::array::from_fn(|at| {
                let (field, cause) = DISCARDED[at];
                (field, cause, self.discarded[at].load(Relaxed))
            }),
            calls: Signal::ALL.map(calls),
        }
    }
}

/// By field and cause.
fn told(what: Discarded) -> (&'static str, &'static str) {
    let dropped = |why: Dropped| match why {
        Dropped::TooLong => "too-long",
        Dropped::TooMany => "too-many",
        Dropped::Orphaned => "orphaned",
    };
    match what {
        Discarded::Malformed(Malformed { format, cause }) => {
            let field = match format {
                Format::W3c => "traceparent",
                Format::B3 => "b3",
                Format::B3Multi => "x-b3",
            };
            (field, if cause == Cause::Repeated { "repeated" } else { "malformed" })
        }
        Discarded::Tracestate(why) => ("tracestate", dropped(why)),
        Discarded::Baggage(why) => ("baggage", dropped(why)),
    }
}

impl Default for Numbers {
    /// Of a proxy that has sent nothing yet.
    fn default() -> Self {
        Counters::default().read(0)
    }
}
