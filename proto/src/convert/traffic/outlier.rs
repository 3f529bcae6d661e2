//! Who gets nothing for a while.

use std::{num::NonZeroU32, time::Duration};

use super::super::{
    bulkhead::or_zero,
    fields::{Fields, milliseconds},
    path_text, status,
};
use crate::{
    limits::{MAX_DEVIATIONS, MAX_PERCENT, MAX_WINDOW, MIN_WINDOW},
    pb,
    spec::{
        CheckKind, Ejection, FailurePercentage, Failures, HealthCheck, LatencyOutlier, LoneOpinion,
        OutlierEjection, SuccessRate,
    },
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::OutlierEjection) -> Ejection {
    if from.off {
        return Ejection(None);
    }
    let failure_percentage = from
        .failure_percentage
        .and_then(|from| fields.at("failure_percentage", |fields| failure_percentage(fields, from)));
    let success_rate =
        from.success_rate.and_then(|from| fields.at("success_rate", |fields| success_rate(fields, from)));
    let latency = from.latency.and_then(|from| fields.at("latency", |fields| latency(fields, from)));
    let base = fields.at("base_ejection_ms", |fields| fields.time(from.base_ejection_ms));
    let max = fields.at("max_ejection_ms", |fields| fields.time(from.max_ejection_ms));
    if from.base_ejection_ms > from.max_ejection_ms {
        fields.refuse_at("base_ejection_ms", "is above max_ejection_ms");
    }
    let max_ejected_percent =
        fields.at("max_ejected_percent", |fields| fields.percent(from.max_ejected_percent, 0));
    let probes = fields.at("probes", |fields| fields.number(from.probes));
    let failures = from.failures.map(|from| {
        fields.at("failures", |fields| Failures {
            statuses: status::ranges(fields, "statuses", from.statuses),
            grpc: status::codes(fields, "grpc", from.grpc),
        })
    });
    let lone_opinion =
        from.lone_opinion.and_then(|from| fields.at("lone_opinion", |fields| lone_opinion(fields, from)));
    let default = OutlierEjection::default();
    Ejection(Some(OutlierEjection {
        consecutive_failures: NonZeroU32::new(from.consecutive_failures),
        failure_percentage,
        success_rate,
        consecutive_connect_failures: NonZeroU32::new(from.consecutive_connect_failures),
        latency,
        base_ejection: base.unwrap_or(default.base_ejection),
        max_ejection: max.unwrap_or(default.max_ejection),
        max_ejected_percent,
        min_ready: from.min_ready,
        probes: probes.unwrap_or(default.probes),
        failures: failures.unwrap_or_default(),
        lone_opinion,
    }))
}

fn failure_percentage(fields: &mut Fields, from: pb::FailurePercentage) -> Option<FailurePercentage> {
    let percent = fields.at("percent", |fields| fields.percent(from.percent, 1));
    let min_requests = fields.at("min_requests", |fields| fields.number(from.min_requests));
    let window = window(fields, "window_ms", from.window_ms);
    Some(FailurePercentage { percent, min_requests: min_requests?, window: window? })
}

fn success_rate(fields: &mut Fields, from: pb::SuccessRate) -> Option<SuccessRate> {
    let deviations_thousandths = fields.at("deviations_thousandths", |fields| {
        fields.within(from.deviations_thousandths, 1..=MAX_DEVIATIONS)
    });
    let min_endpoints = fields.at("min_endpoints", |fields| fields.number(from.min_endpoints));
    let min_requests = fields.at("min_requests", |fields| fields.number(from.min_requests));
    let window = window(fields, "window_ms", from.window_ms);
    Some(SuccessRate {
        deviations_thousandths,
        min_endpoints: min_endpoints?,
        min_requests: min_requests?,
        window: window?,
    })
}

fn latency(fields: &mut Fields, from: pb::LatencyOutlier) -> Option<LatencyOutlier> {
    let percent = fields.at("percent", |fields| fields.within(from.percent, 101..=MAX_PERCENT));
    let min_requests = fields.at("min_requests", |fields| fields.number(from.min_requests));
    let window = window(fields, "window_ms", from.window_ms);
    Some(LatencyOutlier { percent, min_requests: min_requests?, window: window? })
}

fn lone_opinion(fields: &mut Fields, from: pb::LoneOpinion) -> Option<LoneOpinion> {
    let min_callers = fields.at("min_callers", |fields| fields.number(from.min_callers));
    let shortened_percent =
        fields.at("shortened_percent", |fields| fields.percent(from.shortened_percent, 0));
    Some(LoneOpinion { min_callers: min_callers?, shortened_percent })
}

fn window(fields: &mut Fields, name: &str, milliseconds: u64) -> Option<Duration> {
    fields.at(name, |fields| {
        let (least, most) = (MIN_WINDOW.as_millis() as u64, MAX_WINDOW.as_millis() as u64);
        Some(Duration::from_millis(fields.within(milliseconds, least..=most)))
    })
}

pub(super) fn check_from_pb(fields: &mut Fields, from: pb::HealthCheck) -> Option<HealthCheck> {
    use pb::health_check::Kind;

    let kind = match from.kind {
        Some(Kind::Http(pb::HttpCheck { path, expected })) => Some(fields.at("http", |fields| {
            let path = fields.at("path", |fields| path_text(fields, &path));
            if expected.is_empty() {
                fields.refuse_at("expected", "is empty: no answer would be good");
            }
            CheckKind::Http { path, expected: status::ranges(fields, "expected", expected) }
        })),
        Some(Kind::Grpc(pb::GrpcCheck { service })) => Some(fields.at("grpc", |fields| CheckKind::Grpc {
            service: fields.at("service", |fields| fields.text(&service)),
        })),
        Some(Kind::Tcp(pb::Nothing {})) => Some(CheckKind::Tcp),
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            None
        }
    };
    let interval = window(fields, "interval_ms", from.interval_ms);
    let timeout = fields.at("timeout_ms", |fields| {
        if from.timeout_ms > from.interval_ms {
            fields.refuse("is above interval_ms");
        }
        fields.time(from.timeout_ms)
    });
    let mut number = |name, number| fields.at(name, |fields| fields.number(number));
    let unhealthy_after = number("unhealthy_after", from.unhealthy_after);
    let healthy_after = number("healthy_after", from.healthy_after);
    let fleet_per_second = number("fleet_per_second", from.fleet_per_second);
    Some(HealthCheck {
        kind: kind?,
        interval: interval?,
        timeout: timeout?,
        unhealthy_after: unhealthy_after?,
        healthy_after: healthy_after?,
        fleet_per_second: fleet_per_second?,
    })
}

// === to the wire ===

pub(super) fn to_pb(from: &Ejection) -> pb::OutlierEjection {
    let Some(from) = &from.0 else { return pb::OutlierEjection { off: true, ..Default::default() } };
    pb::OutlierEjection {
        off: false,
        consecutive_failures: or_zero(from.consecutive_failures),
        failure_percentage: from.failure_percentage.map(|from| pb::FailurePercentage {
            percent: from.percent.into(),
            min_requests: from.min_requests.get(),
            window_ms: milliseconds(Some(from.window)),
        }),
        success_rate: from.success_rate.map(|from| pb::SuccessRate {
            deviations_thousandths: from.deviations_thousandths,
            min_endpoints: from.min_endpoints.get(),
            min_requests: from.min_requests.get(),
            window_ms: milliseconds(Some(from.window)),
        }),
        consecutive_connect_failures: or_zero(from.consecutive_connect_failures),
        latency: from.latency.map(|from| pb::LatencyOutlier {
            percent: from.percent,
            min_requests: from.min_requests.get(),
            window_ms: milliseconds(Some(from.window)),
        }),
        base_ejection_ms: milliseconds(Some(from.base_ejection)),
        max_ejection_ms: milliseconds(Some(from.max_ejection)),
        max_ejected_percent: from.max_ejected_percent.into(),
        min_ready: from.min_ready,
        probes: from.probes.get(),
        failures: Some(pb::Failures {
            statuses: status::ranges_to_pb(&from.failures.statuses),
            grpc: status::codes_to_pb(&from.failures.grpc),
        }),
        lone_opinion: from.lone_opinion.map(|from| pb::LoneOpinion {
            min_callers: from.min_callers.get(),
            shortened_percent: from.shortened_percent.into(),
        }),
    }
}

pub(super) fn check_to_pb(from: &HealthCheck) -> pb::HealthCheck {
    use pb::health_check::Kind;

    let kind = match &from.kind {
        CheckKind::Http { path, expected } => {
            Kind::Http(pb::HttpCheck { path: path.to_string(), expected: status::ranges_to_pb(expected) })
        }
        CheckKind::Grpc { service } => Kind::Grpc(pb::GrpcCheck { service: service.to_string() }),
        CheckKind::Tcp => Kind::Tcp(pb::Nothing {}),
    };
    pb::HealthCheck {
        kind: Some(kind),
        interval_ms: milliseconds(Some(from.interval)),
        timeout_ms: milliseconds(Some(from.timeout)),
        unhealthy_after: from.unhealthy_after.get(),
        healthy_after: from.healthy_after.get(),
        fleet_per_second: from.fleet_per_second.get(),
    }
}
