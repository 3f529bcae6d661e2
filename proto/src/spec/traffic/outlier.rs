//! When an endpoint gets no more requests, and how it comes back.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use serde::Serialize;

use super::super::StatusRange;

/// Circuit breaking per endpoint. A detector that is `None` is off.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutlierEjection {
    /// Failures without a success between them. 5, as Envoy's.
    pub consecutive_failures: Option<NonZeroU32>,
    pub failure_percentage: Option<FailurePercentage>,
    pub success_rate: Option<SuccessRate>,
    /// Connections that could not be made, without a success between them. 3.
    pub consecutive_connect_failures: Option<NonZeroU32>,
    pub latency: Option<LatencyOutlier>,
    /// The n-th ejection in a row lasts n times as long, up to the maximum, plus up to a tenth. 30 s, as Envoy's.
    pub base_ejection: Duration,
    /// 300 s, as Envoy's.
    pub max_ejection: Duration,
    /// Of the endpoints, in per cent, at most so many are ejected; rounded so that 1 of 2 can be. 50 (Envoy's 10 ejects
    /// nobody below 10 endpoints).
    pub max_ejected_percent: u8,
    /// So many endpoints always stay. 1; 0 lets every endpoint be ejected, and requests fail fast with `all-ejected`.
    pub min_ready: u32,
    /// Successes of single requests that close a half-open circuit. 3.
    pub probes: NonZeroU32,
    pub failures: Failures,
    /// What to make of being alone in one's opinion. `None`: nothing.
    pub lone_opinion: Option<LoneOpinion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    /// 1 to 100. 50.
    pub percent: u8,
    /// Answers in the window below which nothing is concluded. 10.
    pub min_requests: NonZeroU32,
    /// 10 s.
    pub window: Duration,
}

/// An endpoint is out when its success rate is below the mean of all minus so many standard deviations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    /// Standard deviations, in thousandths. 1,900, as Envoy's.
    pub deviations_thousandths: u32,
    /// Endpoints with enough answers below which nothing is concluded. 5, as Envoy's.
    pub min_endpoints: NonZeroU32,
    /// Answers of one endpoint in the window that are enough. 20 (Envoy 100, which a sidecar's share rarely reaches).
    pub min_requests: NonZeroU32,
    /// 10 s.
    pub window: Duration,
}

/// An endpoint is out when its latency is so many times the median of the others'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LatencyOutlier {
    /// In per cent of the median; above 100.
    pub percent: u32,
    pub min_requests: NonZeroU32,
    pub window: Duration,
}

/// Which answers count as failures. A proxy's own answer and a caller's cancel never do; no answer always does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failures {
    /// 500 to 599.
    pub statuses: Vec<StatusRange>,
    /// UNKNOWN 2, DEADLINE_EXCEEDED 4, INTERNAL 13, UNAVAILABLE 14, DATA_LOSS 15.
    pub grpc: Vec<u8>,
}

/// One proxy of at least `min_callers` that sees a bad endpoint which the others see as good has a bad path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LoneOpinion {
    /// 5.
    pub min_callers: NonZeroU32,
    /// An ejection then lasts this share of its time, in per cent. 20.
    pub shortened_percent: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    pub kind: CheckKind,
    /// Of one endpoint, give or take a tenth. 10 s.
    pub interval: Duration,
    /// At most the interval. 1 s.
    pub timeout: Duration,
    /// Failed checks in a row that take an endpoint out. 3.
    pub unhealthy_after: NonZeroU32,
    /// Good checks in a row that take it back. 2.
    pub healthy_after: NonZeroU32,
    /// Checks per second that an endpoint gets from all callers together; the interval is stretched to that. 10.
    pub fleet_per_second: NonZeroU32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckKind {
    Http {
        path: Arc<str>,
        expected: Vec<StatusRange>,
    },
    /// `grpc.health.v1.Health/Check` of this service; empty: the server.
    Grpc {
        service: Arc<str>,
    },
    Tcp,
}

impl Default for OutlierEjection {
    fn default() -> Self {
        Self {
            consecutive_failures: NonZeroU32::new(5),
            failure_percentage: Some(FailurePercentage::default()),
            success_rate: Some(SuccessRate::default()),
            consecutive_connect_failures: NonZeroU32::new(3),
            latency: None,
            base_ejection: Duration::from_secs(30),
            max_ejection: Duration::from_secs(300),
            max_ejected_percent: 50,
            min_ready: 1,
            probes: number(3),
            failures: Failures::default(),
            lone_opinion: Some(LoneOpinion::default()),
        }
    }
}

impl Default for FailurePercentage {
    fn default() -> Self {
        Self { percent: 50, min_requests: number(10), window: Duration::from_secs(10) }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self {
            deviations_thousandths: 1_900,
            min_endpoints: number(5),
            min_requests: number(20),
            window: Duration::from_secs(10),
        }
    }
}

impl Default for Failures {
    fn default() -> Self {
        Self { statuses: vec![StatusRange::new(500, 599)], grpc: vec![2, 4, 13, 14, 15] }
    }
}

impl Default for LoneOpinion {
    fn default() -> Self {
        Self { min_callers: number(5), shortened_percent: 20 }
    }
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            kind: CheckKind::Tcp,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            unhealthy_after: number(3),
            healthy_after: number(2),
            fleet_per_second: number(10),
        }
    }
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}
