//! Each broken field of a policy of resilience gives its own error.

use super::broken::{Pb, backend_of, check, inbound_of};
use crate::pb;

/// A policy in which every section is there.
fn full() -> pb::Traffic {
    let range = || vec![pb::StatusRange { first: 500, last: 599 }];
    pb::Traffic {
        load_balancer: Some(pb::LoadBalancer {
            algorithm: pb::Algorithm::Maglev.into(),
            hash_on: vec![pb::HashOn { kind: Some(pb::hash_on::Kind::Header("x-user".into())) }],
            zone: Some(pb::ZonePreference { min_healthy_percent: 70 }),
            slow_start_ms: 1,
            panic_percent: 10,
            subset: Some(pb::Subset { header: "x-v".into(), label: "v".into(), fallback_to_any: true }),
        }),
        timeouts: Some(pb::Timeouts { connect_ms: 1, ..pb::Timeouts::default() }),
        bulkhead: Some(pb::Bulkhead {
            upstream: None,
            endpoint: None,
            route_requests: 0,
            queue: Some(pb::Queue { size: 1, timeout_ms: 1 }),
            adaptive: Some(pb::Adaptive { min: 1, max: 2, tolerance_percent: 150 }),
        }),
        outlier_ejection: Some(pb::OutlierEjection {
            off: false,
            consecutive_failures: 5,
            failure_percentage: Some(pb::FailurePercentage { percent: 50, min_requests: 1, window_ms: 100 }),
            success_rate: Some(pb::SuccessRate {
                deviations_thousandths: 1_900,
                min_endpoints: 1,
                min_requests: 1,
                window_ms: 100,
            }),
            consecutive_connect_failures: 3,
            latency: Some(pb::LatencyOutlier { percent: 200, min_requests: 1, window_ms: 100 }),
            base_ejection_ms: 1,
            max_ejection_ms: 2,
            max_ejected_percent: 50,
            min_ready: 1,
            probes: 3,
            failures: Some(pb::Failures { statuses: range(), grpc: vec![14] }),
            lone_opinion: Some(pb::LoneOpinion { min_callers: 5, shortened_percent: 20 }),
        }),
        health_check: Some(pb::HealthCheck {
            kind: Some(pb::health_check::Kind::Http(pb::HttpCheck { path: "/".into(), expected: range() })),
            interval_ms: 1_000,
            timeout_ms: 100,
            unhealthy_after: 1,
            healthy_after: 1,
            fleet_per_second: 1,
        }),
        retries: Some(pb::Retries {
            attempts: 2,
            on: Some(pb::RetryOn { statuses: range(), grpc: vec![14], reset: true, timeout: true }),
            unsafe_methods: false,
            backoff: Some(pb::Backoff { base_ms: 1, max_ms: 2 }),
            buffer_bytes: 1,
            max_retry_after_ms: 0,
            budget: Some(pb::RetryBudget { percent: 20, min_per_second: 10 }),
        }),
        hedging: Some(pb::Hedging { budget_percent: 5, delay: Some(pb::hedging::Delay::AfterMs(1)) }),
        rate_limits: vec![limit()],
        fallback: Some(pb::Fallback {
            on: Some(pb::FallbackOn { statuses: range(), ..pb::FallbackOn::default() }),
            to: Some(pb::fallback::To::Answer(pb::Answer {
                status: 200,
                headers: vec![pb::HeaderField { name: "a".into(), value: b"b".to_vec() }],
                body: b"[]".to_vec(),
            })),
        }),
        cache: Some(pb::Cache { max_bytes: 2, max_object_bytes: 1, stale_if_error_ms: 0 }),
        coalesce: true,
    }
}

fn limit() -> pb::RateLimit {
    pb::RateLimit {
        name: "TrafficPolicy/shop/orders/a".into(),
        algorithm: pb::RateAlgorithm::TokenBucket.into(),
        requests: 1,
        per_ms: 1,
        burst: 1,
        key: vec![pb::RateKey { kind: Some(pb::rate_key::Kind::Header("x-user".into())) }],
        scope: pb::RateScope::Local.into(),
        dry_run: false,
        max_keys: 1,
    }
}

macro_rules! broken {
    ($($field:literal, $reason:literal, |$traffic:ident| $change:expr;)*) => {$(
        check(concat!("resources[4].backend.traffic.", $field), $reason, |update: &mut Pb| {
            let mut full = full();
            let $traffic = &mut full;
            $change;
            backend_of(update).traffic = Some(full);
        });
    )*};
}

macro_rules! section {
    ($traffic:ident.$section:ident) => {
        $traffic.$section.as_mut().unwrap()
    };
    ($traffic:ident.$section:ident.$part:ident) => {
        $traffic.$section.as_mut().unwrap().$part.as_mut().unwrap()
    };
}

fn answer(traffic: &mut pb::Traffic) -> &mut pb::Answer {
    let Some(pb::fallback::To::Answer(answer)) = &mut section!(traffic.fallback).to else {
        panic!("an answer")
    };
    answer
}

#[test]
fn the_unbroken_policy_is_taken() {
    let mut from = super::broken::good();
    backend_of(&mut from).traffic = Some(full());
    crate::convert::update(from).unwrap();
}

#[test]
fn every_broken_balancer_and_timeout_gives_its_own_error() {
    use pb::hash_on::Kind;
    broken! {
        "load_balancer.algorithm", "missing", |t| section!(t.load_balancer).algorithm = 0;
        "load_balancer.algorithm", "99 is unknown", |t| section!(t.load_balancer).algorithm = 99;
        "load_balancer.hash_on", "goes by a key", |t| section!(t.load_balancer).hash_on.clear();
        "load_balancer.hash_on", "goes by no key", |t| section!(t.load_balancer).algorithm = 1;
        "load_balancer.hash_on", "at most 8", |t| {
            let one = section!(t.load_balancer).hash_on[0].clone();
            section!(t.load_balancer).hash_on = vec![one; 9];
        };
        "load_balancer.hash_on[0].kind", "missing", |t| section!(t.load_balancer).hash_on[0].kind = None;
        "load_balancer.hash_on[0].header", "header name", |t| {
            section!(t.load_balancer).hash_on[0].kind = Some(Kind::Header("a b".into()));
        };
        "load_balancer.hash_on[0].cookie.name", "not a cookie's name", |t| {
            let cookie = pb::Cookie { name: "a;b".into(), ttl_ms: 0 };
            section!(t.load_balancer).hash_on[0].kind = Some(Kind::Cookie(cookie));
        };
        "load_balancer.hash_on[0].query_parameter", "empty", |t| {
            section!(t.load_balancer).hash_on[0].kind = Some(Kind::QueryParameter(String::new()));
        };
        "load_balancer.zone.min_healthy_percent", "0 is not within 1 to 100", |t| {
            section!(t.load_balancer.zone).min_healthy_percent = 0;
        };
        "load_balancer.slow_start_ms", "longer", |t| section!(t.load_balancer).slow_start_ms = u64::MAX;
        "load_balancer.panic_percent", "101 is not within", |t| section!(t.load_balancer).panic_percent = 101;
        "load_balancer.subset.header", "header name", |t| section!(t.load_balancer.subset).header.clear();
        "load_balancer.subset.label", "empty", |t| section!(t.load_balancer.subset).label.clear();
        "timeouts.per_try_ms", "longer", |t| section!(t.timeouts).per_try_ms = u64::MAX;
        "timeouts.response_header_ms", "longer", |t| section!(t.timeouts).response_header_ms = u64::MAX;
        "timeouts.stream_idle_ms", "longer", |t| section!(t.timeouts).stream_idle_ms = u64::MAX;
        "timeouts.max_connection_age_ms", "longer", |t| section!(t.timeouts).max_connection_age_ms = u64::MAX;
        "bulkhead.queue.size", "0 is not within", |t| section!(t.bulkhead.queue).size = 0;
        "bulkhead.queue.timeout_ms", "is 0", |t| section!(t.bulkhead.queue).timeout_ms = 0;
        "bulkhead.adaptive.min", "is 0", |t| section!(t.bulkhead.adaptive).min = 0;
        "bulkhead.adaptive.min", "3 is above max, 2", |t| section!(t.bulkhead.adaptive).min = 3;
        "bulkhead.adaptive.tolerance_percent", "99 is not", |t| section!(t.bulkhead.adaptive).tolerance_percent = 99;
    }
}

#[test]
fn every_broken_ejection_and_check_gives_its_own_error() {
    broken! {
        "outlier_ejection.failure_percentage.percent", "0 is not", |t| {
            section!(t.outlier_ejection.failure_percentage).percent = 0;
        };
        "outlier_ejection.failure_percentage.min_requests", "is 0", |t| {
            section!(t.outlier_ejection.failure_percentage).min_requests = 0;
        };
        "outlier_ejection.failure_percentage.window_ms", "99 is not", |t| {
            section!(t.outlier_ejection.failure_percentage).window_ms = 99;
        };
        "outlier_ejection.success_rate.deviations_thousandths", "0 is not", |t| {
            section!(t.outlier_ejection.success_rate).deviations_thousandths = 0;
        };
        "outlier_ejection.success_rate.min_endpoints", "is 0", |t| {
            section!(t.outlier_ejection.success_rate).min_endpoints = 0;
        };
        "outlier_ejection.latency.percent", "100 is not", |t| section!(t.outlier_ejection.latency).percent = 100;
        "outlier_ejection.base_ejection_ms", "is 0", |t| section!(t.outlier_ejection).base_ejection_ms = 0;
        "outlier_ejection.base_ejection_ms", "above", |t| section!(t.outlier_ejection).base_ejection_ms = 3;
        "outlier_ejection.max_ejected_percent", "101", |t| section!(t.outlier_ejection).max_ejected_percent = 101;
        "outlier_ejection.probes", "is 0", |t| section!(t.outlier_ejection).probes = 0;
        "outlier_ejection.failures.statuses[0].first", "99 is not within 100 to 599", |t| {
            section!(t.outlier_ejection.failures).statuses[0].first = 99;
        };
        "outlier_ejection.failures.statuses[0]", "599 is above 500", |t| {
            section!(t.outlier_ejection.failures).statuses[0] = pb::StatusRange { first: 599, last: 500 };
        };
        "outlier_ejection.failures.statuses", "at most 64", |t| {
            section!(t.outlier_ejection.failures).statuses = vec![pb::StatusRange { first: 500, last: 500 }; 65];
        };
        "outlier_ejection.failures.grpc[0]", "17 is not", |t| section!(t.outlier_ejection.failures).grpc[0] = 17;
        "outlier_ejection.lone_opinion.min_callers", "is 0", |t| {
            section!(t.outlier_ejection.lone_opinion).min_callers = 0;
        };
        "outlier_ejection.lone_opinion.shortened_percent", "101", |t| {
            section!(t.outlier_ejection.lone_opinion).shortened_percent = 101;
        };
        "health_check.kind", "missing", |t| section!(t.health_check).kind = None;
        "health_check.http.path", "begin with /", |t| {
            let expected = vec![pb::StatusRange { first: 200, last: 200 }];
            let http = pb::HttpCheck { path: "x".into(), expected };
            section!(t.health_check).kind = Some(pb::health_check::Kind::Http(http));
        };
        "health_check.http.expected", "no answer", |t| {
            let http = pb::HttpCheck { path: "/".into(), expected: vec![] };
            section!(t.health_check).kind = Some(pb::health_check::Kind::Http(http));
        };
        "health_check.interval_ms", "3600001 is not", |t| section!(t.health_check).interval_ms = 3_600_001;
        "health_check.timeout_ms", "above interval_ms", |t| section!(t.health_check).timeout_ms = 1_001;
        "health_check.timeout_ms", "is 0", |t| section!(t.health_check).timeout_ms = 0;
        "health_check.unhealthy_after", "is 0", |t| section!(t.health_check).unhealthy_after = 0;
        "health_check.healthy_after", "is 0", |t| section!(t.health_check).healthy_after = 0;
        "health_check.fleet_per_second", "is 0", |t| section!(t.health_check).fleet_per_second = 0;
    }
}

#[test]
fn every_broken_retry_limit_and_fallback_gives_its_own_error() {
    broken! {
        "retries.attempts", "33 is not", |t| section!(t.retries).attempts = 33;
        "retries.on.grpc[0]", "0 is not", |t| section!(t.retries.on).grpc[0] = 0;
        "retries.on.grpc", "at most 16", |t| section!(t.retries.on).grpc = vec![1; 17];
        "retries.backoff.base_ms", "is 0", |t| section!(t.retries.backoff).base_ms = 0;
        "retries.backoff.base_ms", "above max_ms", |t| section!(t.retries.backoff).base_ms = 3;
        "retries.buffer_bytes", "is not within", |t| section!(t.retries).buffer_bytes = u32::MAX;
        "retries.max_retry_after_ms", "longer", |t| section!(t.retries).max_retry_after_ms = u64::MAX;
        "retries.budget.percent", "101", |t| section!(t.retries.budget).percent = 101;
        "retries.budget.min_per_second", "1000001", |t| section!(t.retries.budget).min_per_second = 1_000_001;
        "hedging.delay", "missing", |t| section!(t.hedging).delay = None;
        "hedging.after_ms", "is 0", |t| section!(t.hedging).delay = Some(pb::hedging::Delay::AfterMs(0));
        "hedging.budget_percent", "0 is not", |t| section!(t.hedging).budget_percent = 0;
        "rate_limits", "at most 64", |t| t.rate_limits = vec![limit(); 65];
        "rate_limits[1].name", "twice", |t| t.rate_limits.push(limit());
        "rate_limits[0].name", "empty", |t| t.rate_limits[0].name.clear();
        "rate_limits[0].algorithm", "missing", |t| t.rate_limits[0].algorithm = 0;
        "rate_limits[0].requests", "0 is not", |t| t.rate_limits[0].requests = 0;
        "rate_limits[0].requests", "1000000001", |t| t.rate_limits[0].requests = 1_000_000_001;
        "rate_limits[0].per_ms", "is 0", |t| t.rate_limits[0].per_ms = 0;
        "rate_limits[0].burst", "0 is not", |t| t.rate_limits[0].burst = 0;
        "rate_limits[0].key", "at most 8", |t| t.rate_limits[0].key = vec![Default::default(); 9];
        "rate_limits[0].key[0].kind", "missing", |t| t.rate_limits[0].key[0].kind = None;
        "rate_limits[0].scope", "unknown", |t| t.rate_limits[0].scope = 9;
        "rate_limits[0].max_keys", "0 is not", |t| t.rate_limits[0].max_keys = 0;
        "fallback.to", "missing", |t| section!(t.fallback).to = None;
        "fallback.backend", "not the key", |t| section!(t.fallback).to = Some(pb::fallback::To::Backend("self".into()));
        "fallback.backend", "is this backend itself", |t| {
            section!(t.fallback).to = Some(pb::fallback::To::Backend("backend/shop/orders:80".into()));
        };
        "fallback.answer.status", "199 is not", |t| answer(t).status = 199;
        "fallback.answer.body", "204 has none", |t| answer(t).status = 204;
        "fallback.answer.body", "65537 bytes", |t| answer(t).body = vec![0; 65_537];
        "fallback.answer.headers", "at most 64", |t| answer(t).headers = vec![Default::default(); 65];
        "fallback.answer.headers[0].name", "for the proxy", |t| answer(t).headers[0].name = "Connection".into();
        "fallback.answer.headers[0].value", "no header value", |t| answer(t).headers[0].value = b"a\nb".to_vec();
        "cache.max_bytes", "is not within", |t| section!(t.cache).max_bytes = u64::MAX;
        "cache.max_object_bytes", "is 0", |t| section!(t.cache).max_object_bytes = 0;
        "cache.max_object_bytes", "above max_bytes", |t| section!(t.cache).max_object_bytes = 3;
        "cache.stale_if_error_ms", "longer", |t| section!(t.cache).stale_if_error_ms = u64::MAX;
    }
}

#[test]
fn every_broken_limit_of_a_port_gives_its_own_error() {
    let limits = |update: &mut Pb, change: fn(&mut pb::PortLimits)| {
        let bulkhead = pb::ServerBulkhead {
            queue: Some(pb::Queue { size: 1, timeout_ms: 1 }),
            adaptive: Some(pb::Adaptive { min: 1, max: 2, tolerance_percent: 150 }),
            ..pb::ServerBulkhead::default()
        };
        let mut limits = pb::PortLimits { bulkhead: Some(bulkhead), rate_limits: vec![limit()] };
        change(&mut limits);
        inbound_of(update).ports[0].limits = Some(limits);
    };
    check("resources[0].inbound.ports[0].limits.bulkhead.queue.size", "0 is not", |u| {
        limits(u, |it| it.bulkhead.as_mut().unwrap().queue.as_mut().unwrap().size = 0);
    });
    check("resources[0].inbound.ports[0].limits.bulkhead.adaptive.max", "is 0", |u| {
        limits(u, |it| it.bulkhead.as_mut().unwrap().adaptive.as_mut().unwrap().max = 0);
    });
    check("resources[0].inbound.ports[0].limits.rate_limits[0].name", "control", |u| {
        limits(u, |it| it.rate_limits[0].name = "a\nb".into());
    });
}
