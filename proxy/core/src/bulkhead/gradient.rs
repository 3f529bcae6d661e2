//! A limit that follows latency against its own floor.
//!
//! Latencies are averaged over windows, and the lowest such average is the floor: what the other side takes when nothing
//! waits in front of it. A window whose average is above the floor by more than the tolerance lowers the limit, any other
//! raises it by about its square root:
//!
//! ```text
//! gradient = clamp(tolerance × floor / average, 0.5, 1)
//! limit    = limit + 0.2 × (limit × gradient + √limit − limit)      within [min, max]
//! ```
//!
//! (Netflix's gradient2, with the floor of its gradient.) It moves only while it is used: a window in which less than
//! half of it was in flight says nothing about it. Averages are compared with averages: with the fastest single answer as
//! the floor, one cached answer in ten would look like overload of the other nine.
//!
//! # The floor is forgotten
//!
//! An upstream that has become slower for good must not look overloaded for ever, and a floor first seen under load is
//! too high. So when no window has confirmed the floor for [`FLOOR_LIFE`], it is measured anew:
//!
//! ```text
//!            floor confirmed, or a window at most a quarter used (that one is the new floor)
//!            ┌────────┐
//!            ▼        │
//!         Following ──┴─ floor too old ─▶ Probing: a quarter of the limit ─▶ one window of requests that began there
//!            ▲                                   │ or PROBE_LIFE                        │
//!            └───────────────────────────────────┴──────────────────────────────────────┘
//! ```
//!
//! The shell decides which latencies tell something: not those of failures that took no time.

use std::time::{Duration, Instant};

use outrigger_proto::spec::Adaptive;

/// Where it begins, unless that is outside the configured range. As Netflix's.
const INITIAL: u32 = 20;
/// As Netflix's.
const SMOOTHING: f64 = 0.2;
/// At least so long is a window, as Envoy's `concurrency_update_interval`,
const WINDOW: Duration = Duration::from_millis(100);
/// and so many latencies.
const WINDOW_SAMPLES: u32 = 10;
/// A floor not confirmed for so long is measured anew. Envoy measures every 60 s, BBR every 10 s.
const FLOOR_LIFE: Duration = Duration::from_secs(30);
/// An average up to this confirms the floor.
const CONFIRMS: f64 = 1.1;
/// A probe that measures nothing ends after four average latencies, within this.
const PROBE_LIFE: (f64, f64) = (1.0, 10.0);
/// Of the limit, while probing; and what counts as nearly idle.
const QUARTER: f64 = 0.25;

#[derive(Debug)]
pub struct Gradient {
    config: Adaptive,
    limit: f64,
    /// In seconds, as all latencies here.
    floor: Option<f64>,
    confirmed_at: Instant,
    window: Window,
    probe: Option<Probe>,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    since: Instant,
    until: Instant,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    sum: f64,
    samples: u32,
    most_in_flight: u32,
}

impl Gradient {
    pub fn new(config: Adaptive, now: Instant) -> Self {
        let mut gradient = Self {
            config,
            limit: f64::from(INITIAL),
            floor: None,
            confirmed_at: now,
            window: Window::new(now),
            probe: None,
        };
        gradient.set_config(config);
        gradient
    }

    /// What was learned stays, within the new range.
    pub fn set_config(&mut self, config: Adaptive) {
        self.config = config;
        self.set_limit(self.limit);
    }

    /// As it is in force now, also while probing.
    #[inline]
    pub fn limit(&self) -> u32 {
        match self.probe {
            None => self.limit as u32,
            Some(_) => ((self.limit * QUARTER) as u32).max(self.config.min.get()),
        }
    }

    /// What the other side takes when nothing waits in front of it.
    pub fn floor(&self) -> Option<Duration> {
        self.floor.and_then(|floor| Duration::try_from_secs_f64(floor).ok())
    }

    pub fn is_probing(&self) -> bool {
        self.probe.is_some()
    }

    /// Something took this long and ended, or began to answer, while so many were in flight, it included.
    pub fn on_latency(&mut self, latency: Duration, in_flight: u32, now: Instant) {
        self.handle_timeout(now);
        // Of a probe, only what began in it counts: the rest has queued with the crowd before.
        let began_before = |probe: Probe| now.checked_sub(latency).is_none_or(|began| began < probe.since);
        if self.probe.is_some_and(began_before) {
            return;
        }
        self.window.add(latency, in_flight);
        if self.window.is_full(now) {
            self.end_window(now);
        }
    }

    /// Ends a probe that measured nothing.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|end| end <= now) {
            self.probe = None;
            self.confirmed_at = now;
            self.window = Window::new(now);
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        Some(self.probe?.until)
    }

    fn end_window(&mut self, now: Instant) {
        let average = self.window.sum / f64::from(self.window.samples);
        let used = f64::from(self.window.most_in_flight);
        self.window = Window::new(now);
        let probed = self.probe.take().is_some();
        let too_old = now.saturating_duration_since(self.confirmed_at) >= FLOOR_LIFE;
        let is_measured = probed || (too_old && used <= self.limit * QUARTER);
        let floor = match self.floor {
            Some(floor) if !is_measured => floor.min(average),
            Some(_) | None => average,
        };
        self.floor = Some(floor);
        if average <= floor * CONFIRMS {
            self.confirmed_at = now;
        } else if too_old {
            let life = Duration::from_secs_f64((4.0 * average).clamp(PROBE_LIFE.0, PROBE_LIFE.1));
            self.probe = now.checked_add(life).map(|until| Probe { since: now, until });
            return;
        }
        if used < self.limit / 2.0 {
            return;
        }
        let tolerated = floor * f64::from(self.config.tolerance_percent) / 100.0;
        let gradient = if average > 0.0 { (tolerated / average).clamp(0.5, 1.0) } else { 1.0 };
        let next = self.limit * gradient + self.limit.sqrt();
        self.set_limit(self.limit + SMOOTHING * (next - self.limit));
    }

    fn set_limit(&mut self, limit: f64) {
        let (min, max) = (f64::from(self.config.min.get()), f64::from(self.config.max.get()));
        self.limit = limit.min(max).max(min);
    }
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { since: now, sum: 0.0, samples: 0, most_in_flight: 0 }
    }

    fn add(&mut self, latency: Duration, in_flight: u32) {
        self.sum += latency.as_secs_f64();
        self.samples += 1;
        self.most_in_flight = self.most_in_flight.max(in_flight);
    }

    fn is_full(&self, now: Instant) -> bool {
        self.samples >= WINDOW_SAMPLES && now.saturating_duration_since(self.since) >= WINDOW
    }
}
