//! Any legal policy of resilience, and any legal observation.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use http::{HeaderName, HeaderValue, StatusCode};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::strategies::{address, backend_key, text, timeout};
use crate::{limits::*, spec::*};

fn time() -> impl Strategy<Value = Duration> {
    (1..100_000_000u64).prop_map(Duration::from_millis)
}

fn window() -> impl Strategy<Value = Duration> {
    (100..=3_600_000u64).prop_map(Duration::from_millis)
}

/// Two, the lesser first.
fn ordered<T: PartialOrd + std::fmt::Debug>(
    strategy: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = (T, T)> {
    (strategy.clone(), strategy).prop_map(|(a, b)| if a > b { (b, a) } else { (a, b) })
}

fn count() -> impl Strategy<Value = NonZeroU32> + Clone {
    any::<NonZeroU32>()
}

fn header() -> impl Strategy<Value = HeaderName> {
    "x-[a-z]{1,8}".prop_map(|name| name.parse().unwrap())
}

fn statuses() -> impl Strategy<Value = Vec<StatusRange>> {
    vec(ordered(100..=599u16).prop_map(|(first, last)| StatusRange::new(first, last)), 0..4)
}

fn grpc() -> impl Strategy<Value = Vec<u8>> {
    vec(1..=16u8, 0..5)
}

fn load_balancer() -> BoxedStrategy<LoadBalancer> {
    let hash_on = prop_oneof![
        header().prop_map(HashOn::Header),
        ("[a-z_]{1,9}", timeout()).prop_map(|(name, ttl)| HashOn::Cookie { name: name.into(), ttl }),
        Just(HashOn::SourceIdentity),
        Just(HashOn::SourceAddress),
        Just(HashOn::Path),
        text().prop_map(HashOn::QueryParameter),
    ];
    let consistent = (select(vec![Table::Maglev, Table::Ring]), vec(hash_on, 1..4))
        .prop_map(|(table, on)| Algorithm::Consistent(table, on));
    use Algorithm::{LeastRequest, PeakEwma, Random, RoundRobin};
    let algorithm =
        prop_oneof![select(vec![PeakEwma, LeastRequest, RoundRobin, Random]).boxed(), consistent.boxed()];
    let zone = option::of((1..=100u8).prop_map(|percent| ZonePreference { min_healthy_percent: percent }));
    let subset =
        option::of((header(), text(), any::<bool>()).prop_map(|(header, label, fallback_to_any)| Subset {
            header,
            label,
            fallback_to_any,
        }));
    (algorithm, zone, timeout(), 0..=100u8, subset)
        .prop_map(|(algorithm, zone, slow_start, panic_percent, subset)| LoadBalancer {
            algorithm,
            zone,
            slow_start,
            panic_percent,
            subset,
        })
        .boxed()
}

fn timeouts() -> BoxedStrategy<Timeouts> {
    (time(), timeout(), timeout(), timeout(), timeout(), timeout(), timeout())
        .prop_map(|(connect, request, per_try, response_header, stream_idle, idle, max_connection_age)| {
            Timeouts { connect, request, per_try, response_header, stream_idle, idle, max_connection_age }
        })
        .boxed()
}

fn limits() -> impl Strategy<Value = Limits> {
    (option::of(count()), option::of(count()))
        .prop_map(|(connections, requests)| Limits { connections, requests })
}

fn queue() -> impl Strategy<Value = Option<Queue>> {
    option::of(
        (1..=MAX_QUEUE, time())
            .prop_map(|(size, timeout)| Queue { size: NonZeroU32::new(size).unwrap(), timeout }),
    )
}

fn adaptive() -> impl Strategy<Value = Option<Adaptive>> {
    option::of((ordered(count()), 100..=MAX_PERCENT).prop_map(|((min, max), tolerance_percent)| Adaptive {
        min,
        max,
        tolerance_percent,
    }))
}

fn bulkhead() -> BoxedStrategy<Bulkhead> {
    (limits(), limits(), option::of(count()), queue(), adaptive())
        .prop_map(|(upstream, endpoint, route_requests, queue, adaptive)| Bulkhead {
            upstream,
            endpoint,
            route_requests,
            queue,
            adaptive,
        })
        .boxed()
}

pub(super) fn port_limits() -> BoxedStrategy<PortLimits> {
    let bulkhead =
        (limits(), limits(), queue(), adaptive()).prop_map(|(total, per_caller, queue, adaptive)| {
            ServerBulkhead { total, per_caller, queue, adaptive }
        });
    (option::of(bulkhead), rate_limits())
        .prop_map(|(bulkhead, rate_limits)| PortLimits { bulkhead, rate_limits })
        .boxed()
}

fn rate_limits() -> BoxedStrategy<Vec<RateLimit>> {
    let key = prop_oneof![
        Just(RateKey::CallerIdentity),
        Just(RateKey::ClientAddress),
        Just(RateKey::Path),
        header().prop_map(RateKey::Header),
    ];
    let rate = || (1..=MAX_RATE).prop_map(|rate| NonZeroU64::new(rate).unwrap());
    let algorithm = select(vec![RateAlgorithm::TokenBucket, RateAlgorithm::SlidingWindow]);
    let scope = select(vec![Scope::Local, Scope::Shared]);
    let limit =
        (algorithm, rate(), time(), rate(), vec(key, 0..4), scope, any::<bool>(), 1..=MAX_COUNTED_KEYS)
            .prop_map(|(algorithm, requests, per, burst, key, scope, dry_run, max_keys)| RateLimit {
                name: "".into(),
                algorithm,
                requests,
                per,
                burst,
                key,
                scope,
                dry_run,
                max_keys: NonZeroU32::new(max_keys).unwrap(),
            });
    vec(limit, 0..3)
        .prop_map(|mut limits| {
            for (index, limit) in limits.iter_mut().enumerate() {
                limit.name = format!("TrafficPolicy/shop/orders/{index}").into();
            }
            limits
        })
        .boxed()
}

fn ejection() -> BoxedStrategy<Ejection> {
    let failure_percentage = option::of(
        (1..=100u8, count(), window()).prop_map(|(percent, min_requests, window)| FailurePercentage {
            percent,
            min_requests,
            window,
        }),
    );
    let success_rate = option::of((1..=MAX_DEVIATIONS, count(), count(), window()).prop_map(
        |(deviations_thousandths, min_endpoints, min_requests, window)| SuccessRate {
            deviations_thousandths,
            min_endpoints,
            min_requests,
            window,
        },
    ));
    let latency =
        option::of(
            (101..=MAX_PERCENT, count(), window())
                .prop_map(|(percent, min_requests, window)| LatencyOutlier { percent, min_requests, window }),
        );
    let detectors = (option::of(count()), failure_percentage, success_rate, option::of(count()), latency);
    let lone_opinion = option::of(
        (count(), 0..=100u8)
            .prop_map(|(min_callers, shortened_percent)| LoneOpinion { min_callers, shortened_percent }),
    );
    let failures = (statuses(), grpc()).prop_map(|(statuses, grpc)| Failures { statuses, grpc });
    let times = ordered((1..100_000_000u64).prop_map(Duration::from_millis));
    let ejection = (detectors, times, 0..=100u8, any::<u32>(), count(), failures, lone_opinion).prop_map(
        |(detectors, (base, max), max_ejected_percent, min_ready, probes, failures, lone_opinion)| {
            let (consecutive, failure_percentage, success_rate, connect, latency) = detectors;
            OutlierEjection {
                consecutive_failures: consecutive,
                failure_percentage,
                success_rate,
                consecutive_connect_failures: connect,
                latency,
                base_ejection: base,
                max_ejection: max,
                max_ejected_percent,
                min_ready,
                probes,
                failures,
                lone_opinion,
            }
        },
    );
    option::of(ejection).prop_map(Ejection).boxed()
}

fn health_check() -> BoxedStrategy<HealthCheck> {
    let range = Just(vec![StatusRange::new(200, 299)]);
    let kind = prop_oneof![
        ("/[a-z/]{0,9}", range).prop_map(|(path, expected)| CheckKind::Http { path: path.into(), expected }),
        "[a-z.]{0,9}".prop_map(|service| CheckKind::Grpc { service: service.into() }),
        Just(CheckKind::Tcp),
    ];
    let times = ordered((100..=3_600_000u64).prop_map(Duration::from_millis));
    (kind, times, count(), count(), count())
        .prop_map(|(kind, (timeout, interval), unhealthy_after, healthy_after, fleet_per_second)| {
            HealthCheck { kind, interval, timeout, unhealthy_after, healthy_after, fleet_per_second }
        })
        .boxed()
}

fn retries() -> BoxedStrategy<Retries> {
    let on = (statuses(), grpc(), any::<bool>(), any::<bool>())
        .prop_map(|(statuses, grpc, reset, timeout)| RetryOn { statuses, grpc, reset, timeout });
    let backoff = ordered((1..100_000u64).prop_map(Duration::from_millis))
        .prop_map(|(base, max)| Backoff { base, max });
    let budget = (0..=100u32, 0..=MAX_RETRIES_PER_SECOND)
        .prop_map(|(percent, min_per_second)| RetryBudget { percent, min_per_second });
    (0..=MAX_ATTEMPTS, on, any::<bool>(), backoff, 0..=MAX_BUFFER_BYTES, timeout(), budget)
        .prop_map(|(attempts, on, unsafe_methods, backoff, buffer_bytes, max_retry_after, budget)| Retries {
            attempts,
            on,
            unsafe_methods,
            backoff,
            buffer_bytes,
            max_retry_after: max_retry_after.unwrap_or_default(),
            budget,
        })
        .boxed()
}

fn fallback() -> BoxedStrategy<Fallback> {
    let on =
        (any::<[bool; 4]>(), statuses()).prop_map(|([breaker, no_endpoints, timeout, failure], statuses)| {
            FallbackOn { breaker, no_endpoints, timeout, failure, statuses }
        });
    let value = vec(32..=126u8, 0..9).prop_map(|bytes| HeaderValue::from_bytes(&bytes).unwrap());
    let answer = (200..=599u16, vec((header(), value), 0..3), vec(any::<u8>(), 0..9)).prop_map(
        |(status, headers, body)| {
            let status = StatusCode::from_u16(status).unwrap();
            let body = if Answer::may_have_body(status) { body } else { Vec::new() };
            FallbackTo::Answer(Answer { status, headers, body: body.into() })
        },
    );
    (on, prop_oneof![answer, backend_key().prop_map(FallbackTo::Backend)])
        .prop_map(|(on, to)| Fallback { on, to })
        .boxed()
}

pub(super) fn traffic() -> BoxedStrategy<Traffic> {
    let delay = prop_oneof![time().prop_map(HedgeDelay::After), Just(HedgeDelay::P95)];
    let hedging =
        option::of((delay, 1..=100u32).prop_map(|(delay, budget_percent)| Hedging { delay, budget_percent }));
    let cache = option::of((ordered(1..=MAX_CACHE_BYTES), timeout()).prop_map(
        |((max_object_bytes, max_bytes), stale_if_error)| Cache {
            max_bytes,
            max_object_bytes,
            stale_if_error,
        },
    ));
    let usual = (load_balancer(), timeouts(), bulkhead(), ejection(), retries());
    let optional = (option::of(health_check()), hedging, rate_limits(), option::of(fallback()), cache);
    (usual, optional, any::<bool>())
        .prop_map(|(usual, optional, coalesce)| {
            let (load_balancer, timeouts, bulkhead, outlier_ejection, retries) = usual;
            let (health_check, hedging, rate_limits, fallback, cache) = optional;
            Traffic {
                load_balancer,
                timeouts,
                bulkhead,
                outlier_ejection,
                health_check,
                retries,
                hedging,
                rate_limits,
                fallback,
                cache,
                coalesce,
            }
        })
        .boxed()
}

// === observations ===

pub(super) fn observations_strategy() -> impl Strategy<Value = Observations> {
    use Cause::*;
    let cause = select(vec![
        ConsecutiveFailures,
        FailurePercentage,
        SuccessRate,
        ConsecutiveConnectFailures,
        Latency,
        HealthCheck,
        ProbeFailed,
        TimeServed,
        ProbesSucceeded,
        Policy,
    ]);
    let micros = || (0..1_000_000_000u64).prop_map(Duration::from_micros);
    let outcome = (micros(), text(), any::<bool>(), micros())
        .prop_map(|(ago, what, failed, latency)| Outcome { ago, what, failed, latency });
    let to = select(vec![Circuit::Closed, Circuit::Open, Circuit::HalfOpen]);
    let what = (backend_key(), address(), to, cause);
    let transition = (what, any::<u64>(), timeout(), any::<u32>(), text(), vec(outcome, 0..=10)).prop_map(
        |((backend, endpoint, to, cause), at, lasts, times, why, evidence)| Transition {
            backend,
            endpoint,
            to,
            cause,
            at,
            lasts,
            times,
            why,
            evidence,
        },
    );
    let demand = (text(), any::<u64>())
        .prop_map(|(limit, thousandths_per_second)| Demand { limit, thousandths_per_second });
    (vec(transition, 0..4), vec(demand, 0..4), vec(backend_key(), 0..4))
        .prop_map(|(transitions, demands, calling)| Observations { transitions, demands, calling })
}

pub(super) fn guidance_strategy() -> impl Strategy<Value = Guidance> {
    let share = (text(), 0..=1_000_000u32, count(), time()).prop_map(
        |(limit, parts_per_million, holders, valid_for)| Share {
            limit,
            parts_per_million,
            holders: holders.get(),
            valid_for,
        },
    );
    let ejected = (address(), count()).prop_map(|(endpoint, callers)| (endpoint, callers.get()));
    let fleet = (backend_key(), any::<u32>(), vec(ejected, 0..4))
        .prop_map(|(backend, callers, ejected)| Fleet { backend, callers, ejected });
    (vec(share, 0..4), vec(fleet, 0..4)).prop_map(|(shares, fleets)| Guidance { shares, fleets })
}
