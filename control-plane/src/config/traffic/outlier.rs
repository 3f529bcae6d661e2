//! Who gets nothing for a while.

use std::num::NonZeroU32;

use outrigger_proto::{
    limits::{MAX_DEVIATIONS, MAX_PERCENT, MAX_TEXT_BYTES},
    spec::{
        CheckKind, Ejection, FailurePercentage, Failures, HealthCheck, LatencyOutlier, LoneOpinion,
        OutlierEjection, StatusRange, SuccessRate,
    },
};

use super::super::notes::Notes;
use crate::{kinds, yaml::Path};

pub(super) fn from_kind(path: &Path, written: kinds::OutlierEjection, notes: &mut Notes<'_>) -> Ejection {
    let default = OutlierEjection::default();
    let enabled = written.enabled.unwrap_or(true);
    let base = notes.time(&path.key("baseEjection"), written.base_ejection.as_deref(), default.base_ejection);
    let max = notes.time(&path.key("maxEjection"), written.max_ejection.as_deref(), default.max_ejection);
    if base > max {
        let field = if written.base_ejection.is_some() { "baseEjection" } else { "maxEjection" };
        let reason =
            format!("baseEjection, {}ms, is above maxEjection, {}ms", base.as_millis(), max.as_millis());
        notes.note(&path.key(field), reason);
    }
    let mut off_at_zero = |field, written, default: Option<NonZeroU32>| {
        let default = default.map_or(0, NonZeroU32::get);
        NonZeroU32::new(notes.number(&path.key(field), written, default, (0, u32::MAX.into())))
    };
    let consecutive_failures =
        off_at_zero("consecutiveFailures", written.consecutive_failures, default.consecutive_failures);
    let consecutive_connect_failures = off_at_zero(
        "consecutiveConnectFailures",
        written.consecutive_connect_failures,
        default.consecutive_connect_failures,
    );
    let ejection = OutlierEjection {
        consecutive_failures,
        failure_percentage: match &written.failure_percentage {
            Some(written) => failure_percentage(&path.key("failurePercentage"), written, notes),
            None => default.failure_percentage,
        },
        success_rate: match &written.success_rate {
            Some(written) => success_rate(&path.key("successRate"), written, notes),
            None => default.success_rate,
        },
        consecutive_connect_failures,
        latency: written.latency.as_ref().and_then(|written| latency(&path.key("latency"), written, notes)),
        base_ejection: base,
        max_ejection: max,
        max_ejected_percent: notes.percent(
            &path.key("maxEjectedPercent"),
            written.max_ejected_percent,
            default.max_ejected_percent,
            0,
        ),
        min_ready: notes.number(
            &path.key("minReady"),
            written.min_ready,
            default.min_ready,
            (0, u32::MAX.into()),
        ),
        probes: notes.count(&path.key("probes"), written.probes, default.probes),
        failures: written
            .failures
            .map(|written| failures(&path.key("failures"), written, notes))
            .unwrap_or_default(),
        lone_opinion: match &written.lone_opinion {
            Some(written) => lone_opinion(&path.key("loneOpinion"), written, notes),
            None => default.lone_opinion,
        },
    };
    let detectors = ejection.consecutive_failures.is_some()
        || ejection.failure_percentage.is_some()
        || ejection.success_rate.is_some()
        || ejection.consecutive_connect_failures.is_some()
        || ejection.latency.is_some();
    if enabled && !detectors && !notes.any() {
        notes.note(path, "has every detector turned off: say enabled: false");
    }
    Ejection(enabled.then_some(ejection))
}

fn failure_percentage(
    path: &Path,
    written: &kinds::FailurePercentage,
    notes: &mut Notes<'_>,
) -> Option<FailurePercentage> {
    let default = FailurePercentage::default();
    let percent = notes.percent(&path.key("percent"), written.percent, default.percent, 0);
    let min_requests = notes.count(&path.key("minRequests"), written.min_requests, default.min_requests);
    let window = notes.window(&path.key("window"), written.window.as_deref(), default.window);
    (percent > 0).then_some(FailurePercentage { percent, min_requests, window })
}

fn success_rate(path: &Path, written: &kinds::SuccessRate, notes: &mut Notes<'_>) -> Option<SuccessRate> {
    let default = SuccessRate::default();
    let deviations_thousandths = match &written.deviations {
        None => default.deviations_thousandths,
        Some(text) => match thousandths(text).filter(|number| *number <= MAX_DEVIATIONS) {
            Some(number) => number,
            None => {
                let most = MAX_DEVIATIONS / 1_000;
                let reason = format!(
                    "{text:?} is not a number of deviations: want \"0\" to \"{most}\", for example \"1.9\""
                );
                notes.note(&path.key("deviations"), reason);
                default.deviations_thousandths
            }
        },
    };
    let min_endpoints = notes.count(&path.key("minEndpoints"), written.min_endpoints, default.min_endpoints);
    let min_requests = notes.count(&path.key("minRequests"), written.min_requests, default.min_requests);
    let window = notes.window(&path.key("window"), written.window.as_deref(), default.window);
    let on = deviations_thousandths > 0;
    on.then_some(SuccessRate { deviations_thousandths, min_endpoints, min_requests, window })
}

/// `1.9` is 1,900. At most three digits after the point.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 3 {
        return None;
    }
    let whole: u32 = whole.parse().ok()?;
    let part: u32 = format!("{part:0<3}").parse().ok()?;
    whole.checked_mul(1_000)?.checked_add(part)
}

fn latency(path: &Path, written: &kinds::LatencyOutlier, notes: &mut Notes<'_>) -> Option<LatencyOutlier> {
    // As of the success rate, which compares endpoints too.
    let default = SuccessRate::default();
    let percent = match written.percent {
        0 => 0,
        percent => notes.number(&path.key("percent"), Some(percent), 101, (101, MAX_PERCENT.into())),
    };
    let min_requests = notes.count(&path.key("minRequests"), written.min_requests, default.min_requests);
    let window = notes.window(&path.key("window"), written.window.as_deref(), default.window);
    (percent > 0).then_some(LatencyOutlier { percent, min_requests, window })
}

fn failures(path: &Path, written: kinds::Failures, notes: &mut Notes<'_>) -> Failures {
    let default = Failures::default();
    Failures {
        statuses: match written.statuses {
            Some(statuses) => notes.statuses(&path.key("statuses"), statuses),
            None => default.statuses,
        },
        grpc: match written.grpc {
            Some(grpc) => notes.grpc_codes(&path.key("grpc"), grpc),
            None => default.grpc,
        },
    }
}

fn lone_opinion(path: &Path, written: &kinds::LoneOpinion, notes: &mut Notes<'_>) -> Option<LoneOpinion> {
    let default = LoneOpinion::default();
    let (min, max) = (0, u32::MAX.into());
    let min_callers =
        notes.number(&path.key("minCallers"), written.min_callers, default.min_callers.get(), (min, max));
    let path = path.key("shortenedPercent");
    let shortened_percent = notes.percent(&path, written.shortened_percent, default.shortened_percent, 0);
    NonZeroU32::new(min_callers).map(|min_callers| LoneOpinion { min_callers, shortened_percent })
}

pub(super) fn check(path: &Path, written: kinds::HealthCheck, notes: &mut Notes<'_>) -> Option<HealthCheck> {
    let default = HealthCheck::default();
    let kinds::HealthCheck { http, grpc, tcp, interval, timeout, .. } = &written;
    let interval = notes.window(&path.key("interval"), interval.as_deref(), default.interval);
    let field = path.key("timeout");
    let timeout = notes.time(&field, timeout.as_deref(), default.timeout.min(interval));
    if timeout > interval {
        let (timeout, interval) = (timeout.as_millis(), interval.as_millis());
        notes.note(&field, format!("{timeout}ms is above interval, {interval}ms"));
    }
    let unhealthy_after =
        notes.count(&path.key("unhealthyAfter"), written.unhealthy_after, default.unhealthy_after);
    let healthy_after = notes.count(&path.key("healthyAfter"), written.healthy_after, default.healthy_after);
    let fleet_per_second =
        notes.count(&path.key("fleetPerSecond"), written.fleet_per_second, default.fleet_per_second);
    let given = [("http", http.is_some()), ("grpc", grpc.is_some()), ("tcp", tcp.is_some())];
    if !notes.exactly_one(path, &given) {
        return None;
    }
    let kind = match (written.http, written.grpc) {
        (Some(http), _) => {
            let path = path.key("http");
            let expected = match http.expected {
                None => vec![StatusRange::new(200, 299)],
                Some(expected) if expected.is_empty() => {
                    notes.note(&path.key("expected"), "is empty: no answer would be good");
                    Vec::new()
                }
                Some(expected) => notes.statuses(&path.key("expected"), expected),
            };
            let text = &http.path;
            let never = |byte: u8| byte <= b' ' || byte == 0x7f || matches!(byte, b'?' | b'#');
            if !text.starts_with('/') {
                notes.note(&path.key("path"), format!("{text:?} does not begin with /"));
            } else if text.bytes().any(never) || text.len() > MAX_TEXT_BYTES {
                let reason = "has a character that no path has: a space, a control character, ? or #";
                notes.note(&path.key("path"), format!("{text:?} {reason}"));
            }
            CheckKind::Http { path: http.path.into(), expected }
        }
        (None, Some(grpc)) => {
            let service = grpc.service.unwrap_or_default();
            if service.chars().any(|character| character.is_control() || character.is_whitespace()) {
                notes.note(
                    &path.key("grpc").key("service"),
                    format!("{service:?} is not the name of a service"),
                );
            }
            CheckKind::Grpc { service: service.into() }
        }
        (None, None) => CheckKind::Tcp,
    };
    Some(HealthCheck { kind, interval, timeout, unhealthy_after, healthy_after, fleet_per_second })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly() {
        for (text, number) in [
            ("1.9", Some(1_900)),
            ("0", Some(0)),
            ("2", Some(2_000)),
            ("0.001", Some(1)),
            ("1.25", Some(1_250)),
        ] {
            assert_eq!(thousandths(text), number, "{text}");
        }
        for text in ["", ".", "1.", ".5", "-1", "+1", "1e3", "1.0001", "4294968", "99999999999", "1,9"] {
            assert_eq!(thousandths(text), None, "{text}");
        }
    }
}
