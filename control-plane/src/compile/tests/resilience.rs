//! What policies of resilience become: merged, named, and on the endpoints that they speak of.

use std::{num::NonZeroU64, time::Duration};

use outrigger_proto::spec::{Algorithm, PortLimits};

use super::*;

fn traffic(name: &str, spec: &str) -> String {
    document("TrafficPolicy", "shop", name, spec)
}

fn backend_of(mesh: &Index, key: &str) -> Backend {
    backend(mesh, &key.parse().unwrap())
}

#[test]
fn sections_of_the_port_replace_those_of_the_service() {
    let mesh = index(
        &[
            orders(),
            traffic(
                "all",
                "{targetRef: {kind: Service, name: orders}, loadBalancer: {slowStart: 5s}, timeouts: {perTry: 1s, idle: 5s}, \
                 retries: {attempts: 5, bufferBytes: 1}, rateLimit: [{name: a, requests: 1}], coalesce: true}",
            ),
            traffic(
                "http",
                "{targetRef: {kind: Service, name: orders, port: 80}, timeouts: {perTry: 2s}, retries: {attempts: 1}, rateLimit: []}",
            ),
        ],
        vec![],
    );
    let http = backend_of(&mesh, "shop/orders:80").traffic;
    assert_eq!(http.timeouts.per_try, Some(Duration::from_secs(2)), "timeouts go one by one");
    assert_eq!(http.timeouts.idle, Some(Duration::from_secs(5)));
    assert_eq!(
        (http.retries.attempts, http.retries.buffer_bytes),
        (1, 65_536),
        "other sections go as a whole"
    );
    assert_eq!(http.rate_limits, []);
    assert_eq!(http.load_balancer.slow_start, Some(Duration::from_secs(5)));
    assert!(http.coalesce);
    assert_eq!(http.load_balancer.algorithm, Algorithm::PeakEwma);

    let raw = backend_of(&mesh, "shop/orders:9000").traffic;
    assert_eq!((raw.retries.attempts, raw.retries.buffer_bytes), (5, 1));
    assert_eq!(&*raw.rate_limits[0].name, "TrafficPolicy/shop/all/a");
}

#[test]
fn endpoints_carry_their_subset_and_since_when_they_are_ready() {
    let ledger = document(
        "MeshService",
        "shop",
        "ledger",
        r#"{ports: [{port: 80}], selector: {app: ledger}, endpoints: [
  {address: 10.77.0.1, identity: "spiffe://mesh.local/ns/shop/sa/ledger", labels: {version: listed}},
  {address: 10.77.0.2, identity: "spiffe://mesh.local/ns/shop/sa/ledger"},
  {address: 10.77.0.3, identity: "spiffe://mesh.local/ns/shop/sa/ledger"}]}"#,
    );
    let policy = "{targetRef: {kind: Service, name: ledger}, loadBalancer: {subset: {label: version, header: x-version}}}";
    let ready = |labels, address, since| Workload {
        ready_since: NonZeroU64::new(since),
        ..workload("shop/ledger", labels, address)
    };
    let workloads = vec![
        ready("app=ledger,version=own", "10.77.0.1", 1),
        ready("app=ledger,version=own", "10.77.0.2", 2),
        ready("app=ledger,version=new", "10.77.0.4", 4),
        ready("app=ledger", "10.77.0.5", 0),
    ];
    let described = |documents: &[String]| -> Vec<String> {
        let mesh = index(documents, workloads.clone());
        let endpoints = backend_of(&mesh, "shop/ledger:80").endpoints;
        let since = |endpoint: &Endpoint| endpoint.ready_since.map_or(0, NonZeroU64::get);
        endpoints.iter().map(|it| format!("{} {:?} {}", it.address, &*it.subset, since(it))).collect()
    };
    assert_eq!(
        described(&[ledger.clone(), traffic("p", policy)]),
        [
            r#"10.77.0.1:80 "listed" 1"#,
            r#"10.77.0.2:80 "own" 2"#,
            r#"10.77.0.3:80 "" 0"#,
            r#"10.77.0.4:80 "new" 4"#,
            r#"10.77.0.5:80 "" 0"#,
        ]
    );
    assert!(
        described(&[ledger]).iter().all(|endpoint| endpoint.contains(r#" "" "#)),
        "nobody asks for subsets"
    );
}

#[test]
fn a_backup_is_named_by_the_backend() {
    let other = |ports: &str| document("MeshService", "shop", "backup", &format!("{{ports: [{ports}]}}"));
    let policy = traffic(
        "p",
        "{targetRef: {kind: Service, name: orders, port: 80}, fallback: {backend: {name: backup}}}",
    );
    let mut mesh = index(&[orders(), other("{port: 81}"), policy.clone()], vec![]);
    let subscriber = workload("shop/web", "", "10.0.0.1");
    let names = |mesh: &Index, key: &str| -> Vec<String> {
        let body = body(mesh, &subscriber, &format!("backend/{key}").parse().unwrap()).unwrap();
        backends_of(&body).iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(&mesh, "shop/orders:80"), ["shop/backup:81"]);
    assert_eq!(names(&mesh, "shop/orders:9000"), Vec::<String>::new());
    assert_eq!(names(&mesh, "shop/backup:81"), Vec::<String>::new());

    // The backup alone changes, and what orders says of it with it.
    let topics = mesh.reset_config(read(&[orders(), other("{port: 82}"), policy]));
    assert_eq!(names(&mesh, "shop/orders:80"), ["shop/backup:82"]);
    assert!(topics.contains(&crate::index::Topic::Backend(ObjectName::new("shop", "orders"))), "{topics:?}");
}

#[test]
fn limits_of_a_port_go_field_by_field_and_make_it_a_declared_one() {
    let policy = |name, spec| document("ServerPolicy", "shop", name, spec);
    let mesh = index(
        &[
            policy(
                "all",
                "{ports: [{port: 8080, bulkhead: {perCaller: {maxRequests: 3}}, rateLimit: [{name: a, requests: 1}]}]}",
            ),
            policy(
                "orders",
                "{selector: {app: orders}, ports: [{port: 8080, rateLimit: [{name: b, requests: 2}]}]}",
            ),
        ],
        vec![],
    );
    let of = |labels: &str| -> Arc<PortLimits> {
        let inbound = inbound(&mesh, &workload("shop/x", labels, "10.0.0.1"));
        inbound.ports[&NonZeroU16::new(8080).unwrap()].limits.clone().unwrap()
    };
    let names =
        |limits: &PortLimits| limits.rate_limits.iter().map(|it| it.name.to_string()).collect::<Vec<_>>();
    assert_eq!(names(&of("app=web")), ["ServerPolicy/shop/all/a"]);
    assert_eq!(names(&of("app=orders")), ["ServerPolicy/shop/orders/b"]);
    for labels in ["app=web", "app=orders"] {
        assert_eq!(of(labels).bulkhead.unwrap().per_caller.requests, NonZeroU32::new(3), "{labels}");
    }
}
