//! Counters in per-worker shards, merged when they are asked for, in whatever format.
//!
//! ```text
//!  worker ─ Shard ─▶ cells ┐
//!  worker ─ Shard ─▶ cells ┼─ Registry::families(Observed) ─▶ Families ─┬─▶ text: Prometheus, OpenMetrics ┐
//!  control runtime ────────┘   (the governor decides about series)      └─▶ otlp                          │
//!                                       the application's own, `merge` ───────────────────────────────────┴▶ page
//! ```
//!
//! One pass makes [`Families`], and every format is made from those, so that all say the same. How series are limited, and
//! how they leave, is in `governor`; what each label means and who chooses it is in `docs/metrics.md`.
//!
//! It keeps no history: rates and percentiles are the business of the reader.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant, SystemTime},
};

use crate::telemetry::Direction;

mod cells;
mod collect;
pub mod families;
mod governor;
mod kinds;
pub mod merge;
mod observed;
pub mod otlp;
mod process;
mod shard;
pub mod text;

#[cfg(test)]
mod tests;

pub use cells::BOUNDS_US;
pub use families::Families;
pub use governor::{Folded, Standing};
pub use kinds::{Event, Timed};
pub use observed::{Hall, Observed, Reports, Upstream, keep, observe};
pub(crate) use shard::Shard;
pub use text::Format;

use governor::Governor;

/// Lines of a scrape, unless told otherwise.
pub const SERIES_BUDGET: usize = 2_000;
/// With less, not even what is always there has room beside some services.
pub const LEAST_SERIES: usize = 500;
/// How long a series stays that nobody counts in, unless told otherwise.
pub const IDLE: Duration = Duration::from_secs(600);

/// All counts of the process.
pub struct Registry {
    governor: Governor,
    started: SystemTime,
    panics: AtomicU64,
    traffic: [Traffic; 2],
    control: Control,
}

/// Written at accept and close by any worker.
#[derive(Default)]
struct Traffic {
    opened: AtomicU64,
    open: AtomicI64,
}

/// Written by the control runtime.
#[derive(Default)]
struct Control {
    connected: AtomicU64,
    applied: AtomicU64,
    refused: AtomicU64,
    last_applied: AtomicU64,
    issued: AtomicU64,
    not_issued: AtomicU64,
}

// === impl Registry ===

impl Registry {
    /// With the usual time for series without traffic.
    pub fn new(budget: usize) -> Arc<Self> {
        Self::with(budget, Some(IDLE))
    }

    /// `budget`: lines of a scrape. `idle`: how long a series stays that nobody counts in; `None`: for ever.
    pub fn with(budget: usize, idle: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            governor: Governor::new(budget, idle),
            started: process::started().unwrap_or_else(SystemTime::now),
            panics: AtomicU64::new(0),
            traffic: Default::default(),
            control: Control::default(),
        })
    }

    pub(crate) fn shard(self: &Arc<Self>) -> Shard {
        Shard::new(self)
    }

    /// When the process was.
    pub fn started(&self) -> SystemTime {
        self.started
    }

    /// The whole answer to a scrape in Prometheus' own format.
    pub fn render(&self, observed: &Observed) -> String {
        text::encode(&self.families(observed), Format::Text)
    }

    /// Takes out series that were idle for too long. To be called now and then; `true`: workers have something to let go
    /// of ([`Shard::let_go`]).
    pub fn sweep(&self, now: Instant) -> bool {
        self.governor.sweep(now)
    }

    /// How the series stand within their budget.
    pub fn standing(&self) -> Standing {
        self.governor.standing()
    }

    pub fn connection_opened(&self, direction: Direction) {
        let traffic = &self.traffic[direction as usize];
        traffic.opened.fetch_add(1, Relaxed);
        traffic.open.fetch_add(1, Relaxed);
    }

    pub fn connection_closed(&self, direction: Direction) {
        self.traffic[direction as usize].open.fetch_sub(1, Relaxed);
    }

    pub fn connections_open(&self, direction: Direction) -> i64 {
        self.traffic[direction as usize].open.load(Relaxed)
    }

    /// A task has panicked, which ended its connection and no other.
    pub fn panicked(&self) {
        self.panics.fetch_add(1, Relaxed);
    }

    /// The stream to the active control plane is there or lost.
    pub fn control_plane(&self, connected: bool) {
        self.control.connected.store(connected.into(), Relaxed);
    }

    /// An update was taken (and acknowledged).
    pub fn config_applied(&self, now: SystemTime) {
        self.control.applied.fetch_add(1, Relaxed);
        self.control.last_applied.store(unix_seconds(now), Relaxed);
    }

    /// An update was refused with a NACK.
    pub fn config_refused(&self) {
        self.control.refused.fetch_add(1, Relaxed);
    }

    pub fn certificate_issued(&self) {
        self.control.issued.fetch_add(1, Relaxed);
    }

    pub fn certificate_not_issued(&self) {
        self.control.not_issued.fetch_add(1, Relaxed);
    }
}

fn unix_seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}
