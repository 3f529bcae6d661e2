//! A policy made ready for the hot path, and the words of a decision.

use std::{fmt, time::Duration};

use outrigger_proto::spec::{Cause, OutlierEjection};

use super::{
    evidence::What,
    window::{BUCKETS, Counts},
};

#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) spec: OutlierEjection,
    pub(super) widths: Widths,
    /// How often the endpoints are compared; `None`: no detector does.
    pub(super) compare_every: Option<u64>,
}

/// Of one bucket of each window, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Widths {
    pub(super) counts: u64,
    /// Where the success rate has another window than the failure percentage.
    pub(super) rates: Option<u64>,
    pub(super) latencies: Option<u64>,
}

/// Why a circuit changes, in numbers: words cost an allocation and are made only when it does. `Display` makes them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Why {
    InARow {
        failures: u32,
        limit: u32,
    },
    ConnectsInARow {
        failures: u32,
        limit: u32,
    },
    Percentage {
        counts: Counts,
        limit: u8,
        window: Duration,
    },
    /// All in per cent.
    Rate {
        rate: f64,
        mean: f64,
        deviation: f64,
        thousandths: u32,
        endpoints: usize,
    },
    /// Latencies in microseconds.
    Slow {
        latency: f64,
        median: f64,
        limit: u32,
        others: usize,
    },
    ChecksFail,
    ChecksSucceed,
    Probe(What),
    Served(Duration),
    Probed {
        limit: u32,
    },
    TurnedOff,
    Share {
        most: usize,
        endpoints: usize,
    },
    MinReady(usize),
}

impl Policy {
    pub(super) fn new(spec: &OutlierEjection) -> Self {
        let width = |window: Duration| nanoseconds(window / BUCKETS as u32).max(1);
        let failures = spec.failure_percentage.map(|detector| width(detector.window));
        let rates = spec.success_rate.map(|detector| width(detector.window));
        let latencies = spec.latency.map(|detector| width(detector.window));
        let counts = failures.or(rates).unwrap_or_else(|| nanoseconds(Duration::from_secs(1)));
        let widths = Widths { counts, rates: rates.filter(|rates| *rates != counts), latencies };
        let compare_every = rates.into_iter().chain(latencies).min();
        Self { spec: spec.clone(), widths, compare_every }
    }

    /// How long the n-th ejection in a row lasts, before jitter.
    pub(super) fn ejection(&self, times: u32) -> u64 {
        nanoseconds(self.spec.base_ejection.saturating_mul(times).min(self.spec.max_ejection))
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// === impl Why ===

impl Why {
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::InARow { .. } => Cause::ConsecutiveFailures,
            Self::ConnectsInARow { .. } => Cause::ConsecutiveConnectFailures,
            Self::Percentage { .. } => Cause::FailurePercentage,
            Self::Rate { .. } => Cause::SuccessRate,
            Self::Slow { .. } => Cause::Latency,
            Self::ChecksFail | Self::ChecksSucceed => Cause::HealthCheck,
            Self::Probe(_) => Cause::ProbeFailed,
            Self::Served(_) => Cause::TimeServed,
            Self::Probed { .. } => Cause::ProbesSucceeded,
            Self::TurnedOff | Self::Share { .. } | Self::MinReady(_) => Cause::Policy,
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InARow { failures, limit } => write!(f, "{failures} failures in a row (limit {limit})"),
            Self::ConnectsInARow { failures, limit } => {
                write!(f, "{failures} connections in a row could not be made (limit {limit})")
            }
            Self::Percentage { counts, limit, window } => {
                let Counts { total, failed } = counts;
                let percent = counts.failed_percent();
                write!(
                    f,
                    "{failed} of {total} requests in {window:?} failed: {percent:.0} % (limit {limit} %)"
                )
            }
            Self::Rate { rate, mean, deviation, thousandths, endpoints } => {
                let (times, limit) =
                    (f64::from(*thousandths) / 1e3, rate_limit(*mean, *deviation, *thousandths));
                write!(
                    f,
                    "{rate:.1} % of its requests succeed (limit {limit:.1} %: mean {mean:.1} % - {times} x \
                     {deviation:.1} % of {endpoints} endpoints)"
                )
            }
            Self::Slow { latency, median, limit, others } => {
                let percent = latency / median.max(1.0) * 100.0;
                let [latency, median] =
                    [latency, median].map(|value| Duration::from_micros(value.round() as u64));
                write!(
                    f,
                    "latency {latency:?} is {percent:.0} % of {median:?}, the median of the {others} others \
                     (limit {limit} %)"
                )
            }
            Self::ChecksFail => f.write_str("active checks fail"),
            Self::ChecksSucceed => f.write_str("active checks succeed again"),
            Self::Probe(what) => write!(f, "the probe ended with {what}"),
            Self::Served(lasted) => write!(f, "was out for {:.1} s", lasted.as_secs_f64()),
            Self::Probed { limit } => write!(f, "{limit} probes in a row succeeded (of {limit})"),
            Self::TurnedOff => f.write_str("outlier ejection is turned off"),
            Self::Share { most, endpoints } => {
                write!(f, "of {endpoints} endpoints at most {most} may be ejected")
            }
            Self::MinReady(endpoints) => write!(f, "at least {endpoints} must stay"),
        }
    }
}

/// All in per cent.
pub(super) fn rate_limit(mean: f64, deviation: f64, thousandths: u32) -> f64 {
    mean - deviation * f64::from(thousandths) / 1e3
}
