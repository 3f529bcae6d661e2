//! What is remembered of the latest outcomes, and the words that are made of it when a circuit changes.

use std::{fmt, time::Duration};

use outrigger_proto::spec::{self, OutlierEjection};

use super::{
    policy::Widths,
    window::{At, Counts, Latencies, Window},
};

/// Outcomes kept per endpoint.
const KEPT: usize = 10;

/// How an attempt ended, as it is kept. `Display` is how it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// An HTTP answer.
    Status(u16),
    /// A gRPC answer.
    Grpc(u8),
    /// An opaque connection that came to a good end.
    Closed,
    /// No connection, in time or at all.
    ConnectFailed,
    /// The connection broke before the answer or in the middle of it.
    Reset,
    /// No answer in time.
    Timeout,
    /// An answer that is none: garbage, an endless head, a body unlike its length.
    Invalid,
}

/// Made with the first outcome of an endpoint, so that one without traffic costs nothing.
#[derive(Debug)]
pub(super) struct Learned {
    entries: [Entry; KEPT],
    /// Bit n: entry n is a failure.
    failed: u16,
    recorded: u32,
    /// The last failed connection that was counted.
    pub(super) last_connect: Option<At>,
    /// For the failure percentage, and for the success rate unless that has a window of its own.
    pub(super) counts: Window<Counts>,
    rates: Option<Box<Window<Counts>>>,
    latencies: Option<Box<Window<Latencies>>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    at: At,
    microseconds: u32,
    what: What,
}

impl Learned {
    pub(super) fn new(widths: &Widths, at: At) -> Self {
        Self {
            entries: [Entry { at: 0, microseconds: 0, what: What::Closed }; KEPT],
            failed: 0,
            recorded: 0,
            last_connect: None,
            counts: Window::new(at),
            rates: widths.rates.map(|_| Box::new(Window::new(at))),
            latencies: widths.latencies.map(|_| Box::new(Window::new(at))),
        }
    }

    /// An outcome as evidence only.
    pub(super) fn remember(&mut self, what: What, failed: bool, latency: Duration, at: At) {
        let place = self.recorded as usize % KEPT;
        let microseconds = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        self.entries[place] = Entry { at, microseconds, what };
        self.failed = self.failed & !(1 << place) | u16::from(failed) << place;
        // Counts up to KEPT twice, so that it says how many there are and still never ends.
        self.recorded = if self.recorded as usize + 1 == 2 * KEPT { KEPT as u32 } else { self.recorded + 1 };
    }

    /// An outcome that the detectors see, too.
    pub(super) fn record(&mut self, widths: &Widths, what: What, failed: bool, latency: Duration, at: At) {
        self.remember(what, failed, latency, at);
        self.counts.now(at, widths.counts).record(failed);
        if let (Some(rates), Some(width)) = (&mut self.rates, widths.rates) {
            rates.now(at, width).record(failed);
        }
        if let (Some(latencies), Some(width), false) = (&mut self.latencies, widths.latencies, failed) {
            latencies.now(at, width).record(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
        }
    }

    /// What the success rate is made of.
    pub(super) fn rates(&mut self, widths: &Widths, at: At) -> Counts {
        match (&mut self.rates, widths.rates) {
            (Some(rates), Some(width)) => rates.sum(at, width),
            _ => self.counts.sum(at, widths.counts),
        }
    }

    pub(super) fn latencies(&mut self, widths: &Widths, at: At) -> Latencies {
        match (&mut self.latencies, widths.latencies) {
            (Some(latencies), Some(width)) => latencies.sum(at, width),
            _ => Latencies::default(),
        }
    }

    /// Nothing counts any more; the evidence stays.
    pub(super) fn clear(&mut self, at: At) {
        self.last_connect = None;
        self.counts = Window::new(at);
        if let Some(rates) = &mut self.rates {
            **rates = Window::new(at);
        }
        if let Some(latencies) = &mut self.latencies {
            **latencies = Window::new(at);
        }
    }

    /// Windows of other widths, with what the old ones hold.
    pub(super) fn adopt(&mut self, old: &Widths, new: &Widths, policy: &OutlierEjection, at: At) {
        let rates_source = match (&self.rates, old.rates) {
            (Some(rates), Some(width)) => ((**rates).clone(), width),
            _ => (self.counts.clone(), old.counts),
        };
        let counts_source = match policy.failure_percentage {
            Some(_) => (self.counts.clone(), old.counts),
            None => rates_source.clone(),
        };
        self.counts = counts_source.0.rewidth(counts_source.1, new.counts, at);
        self.rates = new.rates.map(|width| Box::new(rates_source.0.rewidth(rates_source.1, width, at)));
        let latencies = self.latencies.take();
        self.latencies = new.latencies.map(|width| match (latencies, old.latencies) {
            (Some(latencies), Some(old)) => Box::new(latencies.rewidth(old, width, at)),
            _ => Box::new(Window::new(at)),
        });
    }

    /// The latest outcomes in words, the oldest first.
    pub(super) fn tell(&self, at: At) -> Vec<spec::Outcome> {
        let count = (self.recorded as usize).min(KEPT);
        let first = self.recorded as usize - count;
        (first..first + count)
            .map(|n| {
                let Entry { at: then, microseconds, what } = self.entries[n % KEPT];
                spec::Outcome {
                    ago: Duration::from_nanos(at.saturating_sub(then)),
                    what: what.to_string().into(),
                    failed: self.failed >> (n % KEPT) & 1 == 1,
                    latency: Duration::from_micros(microseconds.into()),
                }
            })
            .collect()
    }
}

// === impl What ===

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "{status}"),
            Self::Grpc(code) => write!(f, "grpc {code}"),
            Self::Closed => f.write_str("closed"),
            Self::ConnectFailed => f.write_str("connect-failed"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Invalid => f.write_str("invalid"),
        }
    }
}
