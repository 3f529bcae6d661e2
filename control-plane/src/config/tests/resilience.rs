//! Every section of TrafficPolicy and ServerPolicy: what is taken, and what is refused where and why.

use std::{num::NonZeroU32, time::Duration};

use outrigger_proto::spec::{
    Algorithm, CheckKind, Fallback, HashOn, HedgeDelay, RateAlgorithm, RateKey, Scope, StatusRange, Table,
    Traffic,
};

use super::*;

const TARGET: &str = "targetRef: {kind: Service, name: orders}";

fn traffic_policy(name: &str, spec: &str) -> String {
    document("outrigger.dev/v1alpha1", "TrafficPolicy", name, spec)
}

/// Each row: what stands beside `targetRef`, with a mark where the error is, its field below `spec`, and its reason.
#[track_caller]
fn refused(rows: &[(&str, &str, &str)]) {
    for (section, field, reason) in rows {
        let (text, place) = unmark(&traffic_policy("p", &format!("{{{TARGET}, {section}}}")));
        let expected = format!("p.yaml:{place}: TrafficPolicy shop/p: spec.{field}: {reason}");
        let told = errors(&[("a.yaml", ORDERS), ("b.yaml", DATABASE), ("p.yaml", &text)]);
        assert_eq!(told, [expected], "{section}");
    }
}

/// The policy as it is compiled, with nothing beside it.
#[track_caller]
fn taken(sections: &str) -> Traffic {
    let text = traffic_policy("p", &format!("{{{TARGET}, {sections}}}"));
    let config = read_all(&[("a.yaml", ORDERS), ("b.yaml", DATABASE), ("p.yaml", &text)]).unwrap();
    let policy = &config.traffic[&ObjectName::new("shop", "p")];
    policy.usage.clone().traffic(|backup| {
        let service = &config.services[&backup.service];
        Some(service.backend(backup.resolve(service)?))
    })
}

#[test]
fn every_bad_balancing_is_told_at_its_place() {
    refused(&[
        (
            "loadBalancer: {hashOn: ¦[{path: {}}]}",
            "loadBalancer.hashOn",
            "is for maglev and ring-hash alone: this algorithm goes by no key",
        ),
        (
            "loadBalancer: ¦{algorithm: maglev}",
            "loadBalancer",
            "hashOn is required: this algorithm goes by a key",
        ),
        (
            "loadBalancer: {algorithm: ring-hash, hashOn: ¦[]}",
            "loadBalancer.hashOn",
            "is empty: this algorithm goes by a key",
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [¦{}]}",
            "loadBalancer.hashOn[0]",
            "wants one of header, cookie, source, path, query",
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [{header: a, path: ¦{}}]}",
            "loadBalancer.hashOn[0].path",
            "cannot stand beside header: want one of them",
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [{header: ¦'a b'}]}",
            "loadBalancer.hashOn[0].header",
            r#""a b" is not the name of a header"#,
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [{cookie: {name: ¦'a;b'}}]}",
            "loadBalancer.hashOn[0].cookie.name",
            r#""a;b" is not the name of a cookie"#,
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [{query: ¦''}]}",
            "loadBalancer.hashOn[0].query",
            "is empty or has a control character",
        ),
        (
            "loadBalancer: {algorithm: maglev, hashOn: [{path: {}}, ¦{path: {}}]}",
            "loadBalancer.hashOn[1]",
            "is listed twice",
        ),
        (
            "loadBalancer: {zone: {minHealthyPercent: ¦0}}",
            "loadBalancer.zone.minHealthyPercent",
            "0 is not within 1 to 100",
        ),
        ("loadBalancer: {panicPercent: ¦101}", "loadBalancer.panicPercent", "101 is not within 0 to 100"),
        (
            "loadBalancer: {slowStart: ¦-1s}",
            "loadBalancer.slowStart",
            r#""-1s" is not a duration: want for example "5s", "300ms" or "1h30m""#,
        ),
        (
            "loadBalancer: {subset: {label: v, header: x-v, otherwise: ¦nobody}}",
            "loadBalancer.subset.otherwise",
            "\"nobody\" is not known; known are any, none",
        ),
        (
            "loadBalancer: {¦hashon: []}",
            "loadBalancer.hashon",
            r#"unknown field: "hashon" is not known; did you mean "hashOn"?"#,
        ),
    ]);
}

#[test]
fn every_bad_timeout_is_told_at_its_place() {
    refused(&[
        ("timeouts: ¦{}", "timeouts", "says nothing: want one of its fields"),
        (
            "timeouts: {request: 1s, perTry: ¦2s}",
            "timeouts.perTry",
            "2000ms is above request, 1000ms: perTry could never run out",
        ),
        (
            "timeouts: {perTry: ¦31s}",
            "timeouts.perTry",
            "31000ms is above request, 30000ms: perTry could never run out",
        ),
        (
            "timeouts: {responseHeader: ¦1m}",
            "timeouts.responseHeader",
            "60000ms is above request, 30000ms: responseHeader could never run out",
        ),
        (
            "timeouts: {perTry: 1s, responseHeader: ¦2s}",
            "timeouts.responseHeader",
            "2000ms is above perTry, 1000ms: responseHeader could never run out",
        ),
        (
            "timeouts: {maxConnectionAge: ¦9000h}",
            "timeouts.maxConnectionAge",
            r#""9000h" is longer than a year; "0s" means no limit"#,
        ),
    ]);
    let timeouts = taken("timeouts: {request: 0s, perTry: 1h, streamIdle: 0s}").timeouts;
    assert_eq!((timeouts.request, timeouts.per_try), (None, Some(Duration::from_secs(3_600))));
    assert_eq!((timeouts.stream_idle, timeouts.idle), (None, Some(Duration::from_secs(3_600))));
}

#[test]
fn every_bad_bulkhead_is_told_at_its_place() {
    refused(&[
        ("bulkhead: ¦{}", "bulkhead", "says nothing: want upstream, endpoint, route or adaptive"),
        (
            "bulkhead: {queue: ¦{size: 1, timeout: 1s}}",
            "bulkhead.queue",
            "has nothing to wait for: want upstream, endpoint, route or adaptive beside it",
        ),
        (
            "bulkhead: {upstream: {maxRequests: ¦0}}",
            "bulkhead.upstream.maxRequests",
            "0 is not within 1 to 4294967295",
        ),
        (
            "bulkhead: {upstream: {maxConnections: ¦4294967296}}",
            "bulkhead.upstream.maxConnections",
            "4294967296 is not within 1 to 4294967295",
        ),
        (
            "bulkhead: {upstream: {maxRequests: 1}, endpoint: {maxRequests: ¦2}}",
            "bulkhead.endpoint.maxRequests",
            "2 is above upstream.maxRequests, 1: it would never matter",
        ),
        (
            "bulkhead: {upstream: {maxRequests: 1}, route: {maxRequests: ¦2}}",
            "bulkhead.route.maxRequests",
            "2 is above upstream.maxRequests, 1: it would never matter",
        ),
        (
            "bulkhead: {route: {maxRequests: 1}, queue: {size: ¦0, timeout: 1s}}",
            "bulkhead.queue.size",
            "0 is not within 1 to 1000000",
        ),
        (
            "bulkhead: {route: {maxRequests: 1}, queue: {size: 1, timeout: ¦0s}}",
            "bulkhead.queue.timeout",
            "cannot be 0s",
        ),
        (
            "bulkhead: {adaptive: {minRequests: ¦9, maxRequests: 8}}",
            "bulkhead.adaptive.minRequests",
            "9 is above maxRequests, 8",
        ),
        (
            "bulkhead: {adaptive: {minRequests: 1, maxRequests: 8, tolerancePercent: ¦99}}",
            "bulkhead.adaptive.tolerancePercent",
            "99 is not within 100 to 100000",
        ),
        (
            "bulkhead: {upstream: {maxRequests: ¦9}, adaptive: {minRequests: 1, maxRequests: 8}}",
            "bulkhead.upstream.maxRequests",
            "does not count beside adaptive, which moves this limit: leave one of the two out",
        ),
        (
            "bulkhead: {endpoint: {maxRequests: ¦9}, adaptive: {minRequests: 1, maxRequests: 8}}",
            "bulkhead.endpoint.maxRequests",
            "9 is above adaptive.maxRequests, 8: it would never matter",
        ),
        (
            "bulkhead: {route: {maxRequests: ¦9}, adaptive: {minRequests: 1, maxRequests: 8}}",
            "bulkhead.route.maxRequests",
            "9 is above adaptive.maxRequests, 8: it would never matter",
        ),
    ]);
    let bulkhead = taken("bulkhead: {upstream: {maxConnections: 1}, endpoint: {maxRequests: 8}, adaptive: {minRequests: 1, maxRequests: 8}}").bulkhead;
    assert_eq!(bulkhead.adaptive.unwrap().tolerance_percent, 150);
    assert_eq!(bulkhead.queue, None);
}

#[test]
fn every_bad_ejection_is_told_at_its_place() {
    refused(&[
        (
            "outlierEjection: {¦consecutive5xx: 3}",
            "outlierEjection.consecutive5xx",
            "unknown field: \"consecutive5xx\" is not known; known are enabled, consecutiveFailures, failurePercentage, \
             successRate, consecutiveConnectFailures, latency, baseEjection, maxEjection, maxEjectedPercent, minReady, \
             probes, failures, loneOpinion",
        ),
        (
            "outlierEjection: {baseEjection: ¦10m}",
            "outlierEjection.baseEjection",
            "baseEjection, 600000ms, is above maxEjection, 300000ms",
        ),
        (
            "outlierEjection: {maxEjection: ¦1s}",
            "outlierEjection.maxEjection",
            "baseEjection, 30000ms, is above maxEjection, 1000ms",
        ),
        (
            "outlierEjection: {failurePercentage: {percent: ¦150}}",
            "outlierEjection.failurePercentage.percent",
            "150 is not within 0 to 100",
        ),
        (
            "outlierEjection: {failurePercentage: {window: ¦10ms}}",
            "outlierEjection.failurePercentage.window",
            "is not within 100ms to 3600s",
        ),
        (
            "outlierEjection: {successRate: {deviations: ¦'-1'}}",
            "outlierEjection.successRate.deviations",
            r#""-1" is not a number of deviations: want "0" to "100", for example "1.9""#,
        ),
        (
            "outlierEjection: {latency: {percent: ¦100}}",
            "outlierEjection.latency.percent",
            "100 is not within 101 to 100000",
        ),
        (
            "outlierEjection: {maxEjectedPercent: ¦-1}",
            "outlierEjection.maxEjectedPercent",
            "-1 is not within 0 to 100",
        ),
        ("outlierEjection: {probes: ¦0}", "outlierEjection.probes", "0 is not within 1 to 4294967295"),
        (
            "outlierEjection: {failures: {grpc: [¦UNAVAILABEL]}}",
            "outlierEjection.failures.grpc[0]",
            r#""UNAVAILABEL" is not known; did you mean "UNAVAILABLE"?"#,
        ),
        (
            "outlierEjection: {failures: {grpc: [¦OK]}}",
            "outlierEjection.failures.grpc[0]",
            "OK is no failure",
        ),
        (
            "outlierEjection: {failures: {statuses: [¦'600']}}",
            "outlierEjection.failures.statuses[0]",
            r#""600" is not a status or a range of them: want for example "503" or "500-599""#,
        ),
        (
            "outlierEjection: {failures: {statuses: [¦'599-500']}}",
            "outlierEjection.failures.statuses[0]",
            "599 is above 500",
        ),
        (
            "outlierEjection: {failures: {statuses: [¦503]}}",
            "outlierEjection.failures.statuses[0]",
            "wants text, not the number 503 (put it in quotes)",
        ),
        (
            "outlierEjection: ¦{consecutiveFailures: 0, failurePercentage: {percent: 0}, successRate: {deviations: '0'}, consecutiveConnectFailures: 0}",
            "outlierEjection",
            "has every detector turned off: say enabled: false",
        ),
    ]);
    assert_eq!(taken("outlierEjection: {enabled: false}").outlier_ejection.0, None);
    let ejection = taken(
        "outlierEjection: {failurePercentage: {percent: 0}, latency: {percent: 300}, loneOpinion: {minCallers: 0}, successRate: {deviations: '2.25'}}",
    );
    let ejection = ejection.outlier_ejection.0.unwrap();
    assert_eq!((ejection.failure_percentage, ejection.lone_opinion), (None, None));
    assert_eq!(ejection.success_rate.unwrap().deviations_thousandths, 2_250);
    assert_eq!(ejection.consecutive_failures, NonZeroU32::new(5));
}

#[test]
fn every_bad_health_check_is_told_at_its_place() {
    refused(&[
        ("healthCheck: ¦{}", "healthCheck", "wants one of http, grpc, tcp"),
        (
            "healthCheck: {http: {path: /}, tcp: ¦{}}",
            "healthCheck.tcp",
            "cannot stand beside http: want one of them",
        ),
        (
            "healthCheck: {http: {path: ¦healthz}}",
            "healthCheck.http.path",
            r#""healthz" does not begin with /"#,
        ),
        (
            "healthCheck: {http: {path: /, expected: ¦[]}}",
            "healthCheck.http.expected",
            "is empty: no answer would be good",
        ),
        (
            "healthCheck: {tcp: {}, interval: 1s, timeout: ¦2s}",
            "healthCheck.timeout",
            "2000ms is above interval, 1000ms",
        ),
        ("healthCheck: {tcp: {}, interval: ¦1ms}", "healthCheck.interval", "is not within 100ms to 3600s"),
        (
            "healthCheck: {tcp: {}, unhealthyAfter: ¦0}",
            "healthCheck.unhealthyAfter",
            "0 is not within 1 to 4294967295",
        ),
    ]);
    let check = taken("healthCheck: {http: {path: /healthz}, interval: 500ms}").health_check.unwrap();
    assert_eq!(check.timeout, Duration::from_millis(500), "a timeout that is not written gives way");
    let expected = vec![StatusRange::new(200, 299)];
    assert_eq!(check.kind, CheckKind::Http { path: "/healthz".into(), expected });
}

#[test]
fn every_bad_retry_and_hedge_is_told_at_its_place() {
    refused(&[
        ("retries: {attempts: ¦33}", "retries.attempts", "33 is not within 0 to 32"),
        ("retries: {backoff: {base: ¦1s}}", "retries.backoff.base", "base, 1000ms, is above max, 250ms"),
        ("retries: {backoff: {max: ¦1ms}}", "retries.backoff.max", "base, 25ms, is above max, 1ms"),
        ("retries: {backoff: {base: ¦0s}}", "retries.backoff.base", "cannot be 0s"),
        ("retries: {bufferBytes: ¦67108865}", "retries.bufferBytes", "67108865 is not within 0 to 67108864"),
        ("retries: {budget: {percent: ¦101}}", "retries.budget.percent", "101 is not within 0 to 100"),
        (
            "retries: {on: {grpc: [¦unavailable]}}",
            "retries.on.grpc[0]",
            r#""unavailable" is not known; did you mean "UNAVAILABLE"?"#,
        ),
        ("retries: {on: {grpc: [ABORTED, ¦ABORTED]}}", "retries.on.grpc[1]", "ABORTED is listed twice"),
        ("hedging: {delay: ¦0s}", "hedging.delay", "cannot be 0s: every request would be sent twice"),
        ("hedging: {delay: ¦p99}", "hedging.delay", r#""p99" is neither p95 nor a duration as "100ms""#),
        ("hedging: {budgetPercent: ¦0}", "hedging.budgetPercent", "0 is not within 1 to 100"),
    ]);
    let traffic = taken("retries: {on: {reset: false}, maxRetryAfter: 0s}, hedging: {delay: 100ms}");
    assert!(!traffic.retries.on.reset && traffic.retries.on.timeout);
    assert_eq!(traffic.retries.on.statuses, [StatusRange::new(502, 504)]);
    assert_eq!(traffic.retries.max_retry_after, Duration::ZERO);
    assert_eq!(traffic.hedging.unwrap().delay, HedgeDelay::After(Duration::from_millis(100)));
}

#[test]
fn every_bad_rate_limit_is_told_at_its_place() {
    refused(&[
        (
            "rateLimit: [{name: a, requests: 1}, {name: ¦a, requests: 2}]",
            "rateLimit[1].name",
            "a is the name of another limit already",
        ),
        ("rateLimit: [{name: a, requests: ¦0}]", "rateLimit[0].requests", "0 is not within 1 to 1000000000"),
        ("rateLimit: [{name: a, requests: 1, per: ¦0s}]", "rateLimit[0].per", "cannot be 0s"),
        (
            "rateLimit: [{name: a, requests: 1, algorithm: sliding-window, burst: ¦2}]",
            "rateLimit[0].burst",
            "a sliding window has none: it admits requests within any span of per",
        ),
        (
            "rateLimit: [{name: a, requests: 1, key: [¦{}]}]",
            "rateLimit[0].key[0]",
            "wants one of header, caller, client, path",
        ),
        (
            "rateLimit: [{name: a, requests: 1, key: [{caller: ¦name}]}]",
            "rateLimit[0].key[0].caller",
            "\"name\" is not known; known are identity",
        ),
        (
            "rateLimit: [{name: a, requests: 1, key: [{path: {}}, ¦{path: {}}]}]",
            "rateLimit[0].key[1]",
            "is part of the key already",
        ),
        (
            "rateLimit: [{name: a, requests: 1, maxKeys: ¦5}]",
            "rateLimit[0].maxKeys",
            "is of no use without key: there is one count for all",
        ),
        (
            "rateLimit: [{name: a, requests: 1, scope: ¦global}]",
            "rateLimit[0].scope",
            "\"global\" is not known; known are local, shared",
        ),
    ]);
    let limits = taken(
        "rateLimit: [{name: a, requests: 7, key: [{caller: identity}, {header: X-User}], scope: shared}]",
    )
    .rate_limits;
    let limit = &limits[0];
    assert_eq!(&*limit.name, "TrafficPolicy/shop/p/a");
    assert_eq!((limit.requests.get(), limit.burst.get(), limit.per), (7, 7, Duration::from_secs(1)));
    assert_eq!(limit.key, [RateKey::CallerIdentity, RateKey::Header("x-user".parse().unwrap())]);
    assert_eq!((limit.algorithm, limit.scope), (RateAlgorithm::TokenBucket, Scope::Shared));
}

#[test]
fn every_bad_fallback_and_cache_is_told_at_its_place() {
    refused(&[
        ("fallback: ¦{}", "fallback", "wants one of backend, answer"),
        (
            "fallback: {backend: {name: database, port: 80}, answer: ¦{status: 200}}",
            "fallback.answer",
            "cannot stand beside backend: want one of them",
        ),
        (
            "fallback: {backend: ¦{name: orders}}",
            "fallback.backend",
            "is the service itself: nothing would stand in for it",
        ),
        ("fallback: {backend: {name: ¦x}}", "fallback.backend.name", "there is no MeshService shop/x"),
        (
            "fallback: {backend: ¦{name: database}}",
            "fallback.backend.port",
            "is required: MeshService shop/database has several ports",
        ),
        (
            "fallback: {backend: ¦{name: database, port: 3306}}",
            "fallback.backend",
            "port 3306 of MeshService shop/database carries no HTTP: see its appProtocol",
        ),
        ("fallback: {on: ¦[], answer: {status: 200}}", "fallback.on", "is empty: it would never be used"),
        (
            "fallback: {on: [¦braker], answer: {status: 200}}",
            "fallback.on[0]",
            r#""braker" is not known; did you mean "breaker"?"#,
        ),
        ("fallback: {answer: {status: ¦99}}", "fallback.answer.status", "99 is not within 200 to 599"),
        (
            "fallback: {answer: {status: 204, body: ¦x}}",
            "fallback.answer.body",
            "cannot be there: an answer 204 has no body",
        ),
        (
            "fallback: {answer: {status: 200, headers: {Content-Length: ¦'1'}}}",
            "fallback.answer.headers.Content-Length",
            "content-length is for the proxy to set",
        ),
        (
            r#"fallback: {answer: {status: 200, headers: {a: ¦"x\ny"}}}"#,
            "fallback.answer.headers.a",
            r#""x\ny" has a character that no header value has"#,
        ),
        ("cache: {maxBytes: 10, maxObjectBytes: ¦11}", "cache.maxObjectBytes", "11 is above maxBytes, 10"),
        ("cache: {maxBytes: ¦0}", "cache.maxBytes", "0 is not within 1 to 68719476736"),
    ]);
    let long = format!("fallback: {{answer: {{status: 200, body: ¦{}}}}}", "x".repeat(65_537));
    refused(&[(&long, "fallback.answer.body", "has 65537 bytes; at most 65536 are taken")]);
    let traffic =
        taken("fallback: {on: [breaker, '503'], backend: {name: database, port: 80}}, cache: {maxBytes: 10}");
    let Fallback { on, .. } = traffic.fallback.clone().unwrap();
    assert!(on.breaker && !on.failure && on.statuses == [StatusRange::new(503, 503)]);
    assert_eq!(traffic.backup().unwrap().to_string(), "shop/database:80");
    assert_eq!(traffic.cache.unwrap().max_object_bytes, 10);
}

#[test]
fn a_policy_that_says_nothing_is_refused() {
    let (text, place) = unmark(&traffic_policy("p", &format!("¦{{{TARGET}}}")));
    assert_eq!(
        errors(&[("a.yaml", ORDERS), ("p.yaml", &text)]),
        [format!(
            "p.yaml:{place}: TrafficPolicy shop/p: spec: says nothing: want anything besides targetRef"
        )]
    );
}

#[test]
fn keys_of_balancing_are_read() {
    let on = "[{header: X-User}, {cookie: {name: sid, ttl: 1h}}, {source: identity}, {source: address}, {path: {}}, {query: user}]";
    let traffic = taken(&format!("loadBalancer: {{algorithm: ring-hash, hashOn: {on}}}"));
    let cookie = HashOn::Cookie { name: "sid".into(), ttl: Some(Duration::from_secs(3_600)) };
    let keys = vec![
        HashOn::Header("x-user".parse().unwrap()),
        cookie,
        HashOn::SourceIdentity,
        HashOn::SourceAddress,
        HashOn::Path,
        HashOn::QueryParameter("user".into()),
    ];
    assert_eq!(traffic.load_balancer.algorithm, Algorithm::Consistent(Table::Ring, keys));
}

#[test]
fn policies_of_one_service_cannot_contradict_each_other_once_merged() {
    let whole = traffic_policy("whole", "{targetRef: {kind: Service, name: orders}, timeouts: {perTry: 5s}}");
    let port = "{targetRef: {kind: Service, name: orders, port: 80}, timeouts: {request: ¦2s}}";
    let (port, place) = unmark(&traffic_policy("port", port));
    assert_eq!(
        errors(&[("a.yaml", ORDERS), ("p.yaml", &port), ("q.yaml", &whole)]),
        [format!(
            "p.yaml:{place}: TrafficPolicy shop/port: spec.timeouts.request: with TrafficPolicy shop/whole (q.yaml:4): \
             2000ms is below perTry, 5000ms: perTry could never run out"
        )]
    );
}

#[test]
fn backups_in_a_circle_are_told_once() {
    let database = traffic_policy(
        "database",
        "{targetRef: {kind: Service, name: database, port: 80}, fallback: {backend: ¦{name: orders}}}",
    );
    let (database, place) = unmark(&database);
    let orders = traffic_policy(
        "orders",
        &format!("{{{TARGET}, fallback: {{backend: {{name: database, port: 80}}}}}}"),
    );
    assert_eq!(
        errors(&[("a.yaml", ORDERS), ("b.yaml", DATABASE), ("d.yaml", &database), ("o.yaml", &orders)]),
        [format!(
            "d.yaml:{place}: TrafficPolicy shop/database: spec.fallback.backend: stands in a circle: shop/database:80, \
             shop/orders:80 are backups of each other"
        )]
    );
}

#[test]
fn every_bad_limit_of_a_server_is_told_at_its_place() {
    for (ports, field, reason) in [
        (
            "[{port: 80, bulkhead: {total: {maxRequests: 1}, perCaller: {maxRequests: ¦2}}}]",
            "[0].bulkhead.perCaller.maxRequests",
            "2 is above total.maxRequests, 1: it would never matter",
        ),
        (
            "[{port: 80, bulkhead: {total: {maxRequests: ¦9}, adaptive: {minRequests: 1, maxRequests: 8}}}]",
            "[0].bulkhead.total.maxRequests",
            "does not count beside adaptive, which moves this limit: leave one of the two out",
        ),
        (
            "[{port: 80, bulkhead: {perCaller: {maxRequests: ¦9}, adaptive: {minRequests: 1, maxRequests: 8}}}]",
            "[0].bulkhead.perCaller.maxRequests",
            "9 is above adaptive.maxRequests, 8: it would never matter",
        ),
        (
            "[{port: 80, bulkhead: {total: {maxConnections: 9}, queue: ¦{size: 1, timeout: 1s}}}]",
            "[0].bulkhead.queue",
            "has nothing to wait for, connections do not: want maxRequests or adaptive beside it",
        ),
        ("[{port: 80, bulkhead: ¦{}}]", "[0].bulkhead", "says nothing: want total, perCaller or adaptive"),
        (
            "[{port: 80, bulkhead: {total: ¦{}, perCaller: {maxRequests: 1}}}]",
            "[0].bulkhead.total",
            "says nothing: want maxConnections or maxRequests",
        ),
        (
            "[{port: 80, rateLimit: [{name: a, requests: 1}]}, {port: 81, rateLimit: [{name: ¦a, requests: 1}]}]",
            "[1].rateLimit[0].name",
            "is the name of a limit of another port already",
        ),
    ] {
        let spec = format!("{{ports: {ports}}}");
        let (text, place) = unmark(&document("outrigger.dev/v1alpha1", "ServerPolicy", "p", &spec));
        assert_eq!(
            errors(&[("p.yaml", &text)]),
            [format!("p.yaml:{place}: ServerPolicy shop/p: spec.ports{field}: {reason}")]
        );
    }
}

#[test]
fn the_examples_are_whole() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for example in ["shop", "resilience"] {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory.join(example)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            found.push(SourceFile { name: name.into(), text: Ok(std::fs::read_to_string(&path).unwrap()) });
        }
        let config = read(&found, &TrustDomain::parse("mesh.local").unwrap()).unwrap();
        assert!(!config.services.is_empty() && !config.traffic.is_empty(), "{example}");
    }
}
