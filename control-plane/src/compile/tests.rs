//! Tables: a configuration and some workloads, a question, and the answer in one line.

mod resilience;

use std::collections::BTreeMap;

use outrigger_certs::{SpiffeId, TrustDomain};
use outrigger_proto::spec::{HeaderValueMatch, MtlsMode, PathMatch, Route, Serve};

use super::*;
use crate::{
    config::{Config, SourceFile},
    index::WorkloadId,
};

const OUTRIGGER: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: ";
const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n";

fn read(documents: &[String]) -> Arc<Config> {
    let text = documents.join("---\n");
    let files = [SourceFile { name: "test.yaml".into(), text: Ok(text) }];
    Arc::new(config::read(&files, &TrustDomain::parse("mesh.local").unwrap()).unwrap())
}

fn document(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    let head = if kind == "HTTPRoute" { ROUTE.to_owned() } else { format!("{OUTRIGGER}{kind}\n") };
    format!("{head}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n")
}

fn workload(service_account: &str, labels: &str, addresses: &str) -> Workload {
    let (namespace, name) = service_account.split_once('/').unwrap();
    let labels = labels.split(',').filter_map(|label| label.split_once('='));
    Workload {
        id: WorkloadId {
            identity: SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), namespace, name).unwrap(),
            instance: addresses.into(),
        },
        labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        addresses: addresses.split(',').map(|address| address.parse().unwrap()).collect(),
        zone: "a".into(),
        serves: Vec::new(),
        serving: true,
        ready_since: None,
        registered: 0,
    }
}

fn serving_at(mut workload: Workload, mesh_port: u16, application_port: u16) -> Workload {
    let port = |number| NonZeroU16::new(number).unwrap();
    workload.serves.push(Serve { mesh_port: port(mesh_port), application_port: port(application_port) });
    workload
}

fn index(documents: &[String], workloads: Vec<Workload>) -> Index {
    let mut index = Index::default();
    index.reset_config(read(documents));
    for (position, mut workload) in workloads.into_iter().enumerate() {
        workload.registered = position as u64;
        index.apply_workload(Arc::new(workload));
    }
    index
}

fn orders() -> String {
    document(
        "MeshService",
        "shop",
        "orders",
        "{hosts: [orders.example], addresses: [10.96.0.10], ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}, \
         {name: raw, port: 9000, appProtocol: tcp}], selector: {app: orders}}",
    )
}

fn listing() -> String {
    document(
        "MeshService",
        "shop",
        "ledger",
        r#"{ports: [{name: api, port: 80, targetPort: 8080, appProtocol: grpc}], endpoints: [
  {address: 10.77.0.3, identity: "spiffe://mesh.local/ns/bank/sa/ledger", zone: b, weight: 3},
  {address: 127.0.0.1, identity: "spiffe://mesh.local/ns/bank/sa/ledger", ports: {api: 9443}}]}"#,
    )
}

fn describe(destination: &Destination) -> String {
    match destination {
        Destination::External => "external".into(),
        Destination::Workload(workload) => {
            let Endpoint { address, identity, .. } = &workload.endpoint;
            format!(
                "workload {address} {}/{} {:?}",
                identity.namespace(),
                identity.service_account(),
                workload.protocol
            )
        }
        Destination::Service(service) => {
            let routes = if service.routes.is_empty() { "" } else { " routed" };
            format!("service {} {:?}{routes}", service.backend, service.protocol)
        }
    }
}

fn reach(index: &Index, namespace: &str, key: &str) -> String {
    let Key::Destination(key) = key.parse().unwrap() else { panic!("{key} is not a destination") };
    describe(&destination(index, namespace, &key))
}

#[test]
fn what_names_and_addresses_mean() {
    let mesh = index(
        &[orders(), listing()],
        vec![
            workload("shop/orders", "app=orders", "10.77.0.2"),
            workload("shop/web", "app=web", "fd00::5,10.77.0.5"),
            serving_at(workload("shop/cart", "app=cart", "10.77.0.6"), 9443, 8080),
            serving_at(workload("shop/orders", "app=orders", "127.0.0.1"), 9555, 8080),
        ],
    );
    for (from, key, expected) in [
        ("shop", "authority/orders:80", "service shop/orders:80 Http"),
        ("shop", "authority/orders.shop:80", "service shop/orders:80 Http"),
        ("shop", "authority/ORDERS.example.:80", "service shop/orders:80 Http"),
        ("bank", "authority/orders.shop:80", "service shop/orders:80 Http"),
        ("bank", "authority/orders.example:9000", "service shop/orders:9000 Tcp"),
        // Short names are the namespace's own affair.
        ("bank", "authority/orders:80", "external"),
        ("shop", "authority/orders.shop.svc.cluster.local:80", "external"),
        ("shop", "authority/orders:81", "service shop/orders:81 Detect"),
        ("bank", "address/10.96.0.10:80", "service shop/orders:80 Http"),
        ("bank", "address/10.96.0.10:9000", "service shop/orders:9000 Tcp"),
        ("bank", "address/10.96.0.10:443", "service shop/orders:443 Detect"),
        ("bank", "address/10.77.0.2:8080", "workload 10.77.0.2:8080 shop/orders Http"),
        ("bank", "address/10.77.0.2:9000", "workload 10.77.0.2:9000 shop/orders Tcp"),
        ("bank", "address/10.77.0.2:22", "workload 10.77.0.2:22 shop/orders Detect"),
        ("bank", "address/[fd00::5]:80", "workload [fd00::5]:80 shop/web Detect"),
        ("bank", "address/10.77.0.5:80", "workload 10.77.0.5:80 shop/web Detect"),
        // Listed, at its port and at any other.
        ("shop", "address/10.77.0.3:8080", "workload 10.77.0.3:8080 bank/ledger Grpc"),
        ("shop", "address/10.77.0.3:5432", "workload 10.77.0.3:5432 bank/ledger Detect"),
        ("shop", "address/127.0.0.1:9443", "workload 127.0.0.1:9443 bank/ledger Grpc"),
        // Explicit listeners: by the port of either side, and nothing else of that machine.
        ("shop", "address/10.77.0.6:9443", "workload 10.77.0.6:9443 shop/cart Detect"),
        ("shop", "address/10.77.0.6:8080", "workload 10.77.0.6:9443 shop/cart Detect"),
        ("shop", "address/10.77.0.6:22", "external"),
        ("shop", "address/127.0.0.1:9555", "workload 127.0.0.1:9555 shop/orders Http"),
        ("shop", "address/127.0.0.1:22", "external"),
        ("shop", "address/93.184.216.34:443", "external"),
        ("shop", "authority/example.com:443", "external"),
    ] {
        assert_eq!(reach(&mesh, from, key), expected, "{key} from {from}");
    }
}

fn endpoints_of(index: &Index, key: &str) -> Vec<String> {
    let Key::Backend(key) = key.parse().unwrap() else { panic!("{key} is not a backend") };
    let describe = |endpoint: &Endpoint| {
        let Endpoint { address, identity, zone, weight, .. } = endpoint;
        format!("{address} {} {zone} {weight}", identity.service_account())
    };
    backend(index, &key).endpoints.iter().map(describe).collect()
}

#[test]
fn endpoints_are_those_listed_and_those_selected() {
    let mut not_ready = workload("shop/orders", "app=orders", "10.77.0.8");
    not_ready.serving = false;
    let mesh = index(
        &[orders(), listing()],
        vec![
            workload("shop/orders", "app=orders,version=v1", "10.77.0.2"),
            workload("shop/orders", "app=orders", "fd00::7,10.77.0.7"),
            workload("shop/orders", "app=orders", "fd00::9"),
            not_ready,
            // Another namespace's, however it calls itself.
            workload("bank/orders", "app=orders", "10.77.0.4"),
            workload("shop/web", "app=web", "10.77.0.5"),
            serving_at(workload("shop/orders", "app=orders", "127.0.0.1"), 9443, 8080),
            serving_at(workload("shop/orders", "app=orders", "127.0.0.1,127.0.0.2"), 9444, 8080),
        ],
    );
    assert_eq!(
        endpoints_of(&mesh, "backend/shop/orders:80"),
        [
            "10.77.0.2:8080 orders a 1",
            "10.77.0.7:8080 orders a 1",
            "127.0.0.1:9443 orders a 1",
            "127.0.0.1:9444 orders a 1",
            "[fd00::9]:8080 orders a 1",
        ]
    );
    // Loopback has no redirect rules: without a listener for the port there is no way in.
    assert_eq!(
        endpoints_of(&mesh, "backend/shop/orders:9000"),
        ["10.77.0.2:9000 orders a 1", "10.77.0.7:9000 orders a 1", "[fd00::9]:9000 orders a 1"]
    );
    assert_eq!(
        endpoints_of(&mesh, "backend/shop/ledger:80"),
        ["10.77.0.3:8080 ledger b 3", "127.0.0.1:9443 ledger  1"]
    );
    for nothing in ["backend/shop/orders:443", "backend/shop/nobody:80"] {
        assert_eq!(endpoints_of(&mesh, nothing), [""; 0]);
    }
}

#[test]
fn a_listed_endpoint_is_withdrawn_while_its_workload_says_so() {
    let mut draining = workload("bank/ledger", "", "10.77.0.3");
    draining.serving = false;
    let mut impostor = workload("shop/web", "", "10.77.0.3");
    impostor.serving = false;
    let mesh = |workloads| index(&[listing()], workloads);
    assert_eq!(
        endpoints_of(&mesh(vec![draining.clone()]), "backend/shop/ledger:80"),
        ["127.0.0.1:9443 ledger  1"]
    );
    assert_eq!(endpoints_of(&mesh(vec![impostor]), "backend/shop/ledger:80").len(), 2);
    let restarted = Workload {
        serving: true,
        id: WorkloadId { instance: "new".into(), ..draining.id.clone() },
        ..draining.clone()
    };
    assert_eq!(endpoints_of(&mesh(vec![draining, restarted]), "backend/shop/ledger:80").len(), 2);
}

#[test]
fn of_two_selves_the_later_speaks_for_the_address() {
    let old = workload("shop/orders", "app=orders", "10.77.0.2");
    let new = Workload {
        serving: false,
        id: WorkloadId { instance: "new".into(), ..old.id.clone() },
        ..old.clone()
    };
    assert_eq!(
        endpoints_of(&index(&[orders()], vec![old.clone(), new.clone()]), "backend/shop/orders:80"),
        [""; 0]
    );
    assert_eq!(endpoints_of(&index(&[orders()], vec![new, old]), "backend/shop/orders:80").len(), 1);
}

fn routes_from(index: &Index, namespace: &str) -> Vec<String> {
    let key = "authority/orders.shop:80".parse().unwrap();
    let Key::Destination(key) = key else { unreachable!() };
    let Destination::Service(service) = destination(index, namespace, &key) else { panic!("a service") };
    service.routes.iter().map(|route| describe_route(route)).collect()
}

fn describe_route(route: &Route) -> String {
    let matched = route.matches.first().map_or_else(
        || "any".to_owned(),
        |matched| {
            let path = match &matched.path {
                Some(PathMatch::Exact(path)) => format!("={path}"),
                Some(PathMatch::Prefix(path)) => format!("{path}*"),
                None => "*".to_owned(),
            };
            let headers = matched.headers.iter().map(|header| match &header.value {
                HeaderValueMatch::Exact(value) => format!(" {}={value}", header.name),
                HeaderValueMatch::Regex(source) => format!(" {}~{source}", header.name),
            });
            let method = matched.method.as_ref().map_or("", |method| method.as_str());
            format!("{method}{path}{}", headers.collect::<String>())
        },
    );
    let backends: Vec<_> =
        route.backends.iter().map(|it| format!("{}@{}", it.backend.name, it.weight)).collect();
    format!("{} {matched} -> {}", route.name, backends.join(" "))
}

fn backends(namespace: &str) -> [String; 2] {
    ["v1", "v2"].map(|name| document("MeshService", namespace, name, "{ports: [{port: 80}]}"))
}

#[test]
fn matches_are_in_the_order_of_the_gateway_api() {
    let rules = "{parentRefs: [{kind: Service, name: orders, port: 80}], rules: [
  {name: rest, backendRefs: [{name: v1, weight: 9}, {name: v2, weight: 1}]},
  {name: deep, matches: [{path: {value: /a/b}}, {path: {type: Exact, value: /x}}], backendRefs: [{name: v1}]},
  {name: method, matches: [{path: {value: /a}, method: GET}], backendRefs: [{name: v1}]},
  {name: headers, matches: [{path: {value: /a}, headers: [{name: b, value: x}, {name: c, value: y.*, type: RegularExpression}]}], backendRefs: [{name: v1}]},
  {name: plain, matches: [{path: {value: /a/}}], backendRefs: [{name: v2}, {name: v1, weight: 0}]}]}";
    let mut documents = vec![orders(), document("HTTPRoute", "shop", "r", rules)];
    documents.extend(backends("shop"));
    assert_eq!(
        routes_from(&index(&documents, vec![]), "bank"),
        [
            "shop/r/deep =/x -> v1@1",
            "shop/r/deep /a/b* -> v1@1",
            "shop/r/method GET/a* -> v1@1",
            "shop/r/headers /a* b=x c~y.* -> v1@1",
            "shop/r/plain /a* -> v2@1",
            "shop/r/rest any -> v1@9 v2@1",
        ]
    );
}

#[test]
fn equal_matches_are_settled_by_age_then_name_then_position() {
    let route = |name: &str, created: &str, to: &str| {
        let spec = format!(
            "{{parentRefs: [{{kind: Service, name: orders}}], rules: [{{backendRefs: [{{name: {to}}}]}}, {{backendRefs: [{{name: {to}}}]}}]}}"
        );
        document("HTTPRoute", "shop", name, &spec)
            .replace("namespace: shop}", &format!("namespace: shop{created}}}"))
    };
    let mut documents = vec![
        orders(),
        route("a", "", "v1"),
        route("c", ", creationTimestamp: \"2026-02-01T00:00:00Z\"", "v1"),
        route("b", "", "v1"),
        route("d", ", creationTimestamp: \"2026-01-01T00:00:00Z\"", "v1"),
    ];
    documents.extend(backends("shop"));
    let names: Vec<_> = routes_from(&index(&documents, vec![]), "shop")
        .iter()
        .map(|route| route.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        ["shop/d/0", "shop/d/1", "shop/c/0", "shop/c/1", "shop/a/0", "shop/a/1", "shop/b/0", "shop/b/1"]
    );
}

#[test]
fn a_route_of_the_callers_own_namespace_replaces_the_services() {
    let route = |namespace: &str| {
        let spec = "{parentRefs: [{kind: Service, name: orders, namespace: shop}], rules: [{backendRefs: [{name: v1}]}]}";
        document("HTTPRoute", namespace, "r", spec)
    };
    let mut documents = vec![orders(), route("shop"), route("bank")];
    documents.extend(backends("shop"));
    documents.extend(backends("bank"));
    let mesh = index(&documents, vec![]);
    assert_eq!(routes_from(&mesh, "shop"), ["shop/r/0 any -> v1@1"]);
    assert_eq!(routes_from(&mesh, "bank"), ["bank/r/0 any -> v1@1"]);
    assert_eq!(routes_from(&mesh, "third"), ["shop/r/0 any -> v1@1"]);
    // The opaque port of the same service is not routed.
    assert_eq!(reach(&mesh, "shop", "authority/orders:9000"), "service shop/orders:9000 Tcp");
    assert_eq!(reach(&mesh, "shop", "authority/orders:80"), "service shop/orders:80 Http routed");
}

#[test]
fn a_destination_names_its_backends() {
    let mut documents = vec![
        orders(),
        document(
            "HTTPRoute",
            "shop",
            "r",
            "{parentRefs: [{kind: Service, name: orders}], rules: [{backendRefs: [{name: v2}, {name: v1}]}, {backendRefs: [{name: v1}]}]}",
        ),
    ];
    documents.extend(backends("shop"));
    let mesh = index(&documents, vec![]);
    let subscriber = workload("shop/web", "", "10.0.0.1");
    let names = |key: &str| -> Vec<String> {
        backends_of(&body(&mesh, &subscriber, &key.parse().unwrap()).unwrap())
            .iter()
            .map(ToString::to_string)
            .collect()
    };
    assert_eq!(names("authority/orders:80"), ["shop/orders:80", "shop/v1:80", "shop/v2:80"]);
    assert_eq!(names("authority/elsewhere:80"), [""; 0]);
    assert_eq!(names("self"), [""; 0]);
}

#[test]
fn traffic_policies_go_field_by_field() {
    let policy = |name, spec| document("TrafficPolicy", "shop", name, spec);
    let mesh = index(
        &[
            orders(),
            policy(
                "all",
                "{targetRef: {kind: Service, name: orders}, loadBalancer: {algorithm: round-robin}, timeouts: {connect: 1s, request: 0s}}",
            ),
            policy("http", "{targetRef: {kind: Service, name: orders, port: 80}, timeouts: {request: 2s}}"),
        ],
        vec![],
    );
    let seconds = |key: &str| {
        let Key::Backend(key) = key.parse().unwrap() else { unreachable!() };
        let traffic = backend(&mesh, &key).traffic;
        let timeouts = traffic.timeouts;
        (
            traffic.load_balancer.algorithm.clone(),
            timeouts.connect.as_secs(),
            timeouts.request.map(|it| it.as_secs()),
            timeouts.idle.map(|it| it.as_secs()),
        )
    };
    use outrigger_proto::spec::Algorithm::{PeakEwma, RoundRobin};
    assert_eq!(seconds("backend/shop/orders:80"), (RoundRobin, 1, Some(2), Some(3600)));
    assert_eq!(seconds("backend/shop/orders:9000"), (RoundRobin, 1, None, Some(3600)));
    assert_eq!(seconds("backend/shop/none:80"), (PeakEwma, 5, Some(30), Some(3600)));
}

#[test]
fn the_more_specific_server_policy_wins_field_by_field() {
    let policy = |name, spec| document("ServerPolicy", "shop", name, spec);
    let mesh = index(
        &[
            orders(),
            policy(
                "all",
                "{ports: [{port: 8080, mtls: permissive}, {port: 7000, mtls: permissive}], egress: registered-only}",
            ),
            policy(
                "v1",
                "{selector: {app: orders, version: v1}, ports: [{port: 8080, mtls: strict}, {port: 9000, protocol: tls}], egress: allow}",
            ),
            policy("orders", "{selector: {app: orders}, ports: [{port: 8080, protocol: http2}]}"),
        ],
        vec![],
    );
    let of = |labels: &str| {
        let inbound = inbound(&mesh, &workload("shop/orders", labels, "10.0.0.1"));
        let ports: Vec<_> = inbound
            .ports
            .iter()
            .map(|(port, it)| {
                format!(
                    "{port} {:?}{}",
                    it.protocol,
                    if it.mtls == MtlsMode::Strict { "" } else { " permissive" }
                )
            })
            .collect();
        format!("{} {:?}", ports.join(", "), inbound.egress)
    };
    assert_eq!(of("app=orders,version=v1"), "7000 Detect permissive, 8080 Http2, 9000 Tls Allow");
    assert_eq!(of("app=orders"), "7000 Detect permissive, 8080 Http2 permissive, 9000 Tcp RegisteredOnly");
    assert_eq!(of("app=web"), "7000 Detect permissive, 8080 Detect permissive RegisteredOnly");
    let elsewhere = inbound(&mesh, &workload("bank/orders", "app=orders", "10.0.0.1"));
    assert_eq!(elsewhere, spec::Inbound::default());
}

#[test]
fn services_that_contradict_each_other_about_a_port_are_not_believed() {
    let other = document(
        "MeshService",
        "shop",
        "other",
        "{ports: [{port: 81, targetPort: 8080, appProtocol: tcp}], selector: {app: orders}}",
    );
    let mesh = index(&[orders(), other], vec![]);
    let ports = inbound(&mesh, &workload("shop/orders", "app=orders", "10.0.0.1")).ports;
    assert_eq!(
        ports.into_iter().map(|(port, it)| (port.get(), it.protocol)).collect::<Vec<_>>(),
        [(9000, Protocol::Tcp)]
    );
}

#[test]
fn authorization_goes_to_the_workloads_that_it_targets() {
    let policy = |namespace, name, spec| document("AuthorizationPolicy", namespace, name, spec);
    let mesh = index(
        &[
            orders(),
            listing(),
            policy("shop", "everybody", "{action: audit, rules: [{}]}"),
            policy("shop", "nobody", "{selector: {app: vault}, action: allow}"),
            policy(
                "shop",
                "orders-http",
                "{targetRef: {kind: Service, name: orders, port: 80}, action: allow, rules: [{from: {namespaces: [shop]}}]}",
            ),
            policy(
                "shop",
                "orders",
                "{targetRef: {kind: Service, name: orders}, action: deny, rules: [{}, {to: {ports: [9000]}}]}",
            ),
            policy(
                "shop",
                "ledger",
                "{targetRef: {kind: MeshService, name: ledger}, action: allow, rules: [{to: {ports: [8080]}}]}",
            ),
            policy("bank", "bank", "{action: allow, rules: [{to: {ports: [1]}}]}"),
        ],
        vec![],
    );
    let of = |who: &str, labels: &str, address: &str| -> BTreeMap<String, Vec<Vec<u16>>> {
        let policies = inbound(&mesh, &workload(who, labels, address)).authorization;
        let ports = |policy: &spec::AuthorizationPolicy| {
            policy.rules.iter().map(|rule| rule.ports.iter().map(|port| port.get()).collect()).collect()
        };
        policies.iter().map(|policy| (policy.name.to_string(), ports(policy))).collect()
    };
    let expect = |rows: &[(&str, &[&[u16]])]| -> BTreeMap<String, Vec<Vec<u16>>> {
        rows.iter()
            .map(|(name, rules)| ((*name).to_owned(), rules.iter().map(|ports| ports.to_vec()).collect()))
            .collect()
    };
    assert_eq!(
        of("shop/orders", "app=orders", "10.0.0.1"),
        expect(&[
            ("shop/everybody", &[&[]]),
            ("shop/orders-http", &[&[8080]]),
            ("shop/orders", &[&[8080, 9000], &[9000]])
        ])
    );
    assert_eq!(
        of("shop/vault", "app=vault", "10.0.0.1"),
        expect(&[("shop/everybody", &[&[]]), ("shop/nobody", &[])])
    );
    // Listed in a service of another namespace: that service's policies protect it too, where it serves it.
    assert_eq!(
        of("bank/ledger", "", "10.77.0.3"),
        expect(&[("bank/bank", &[&[1]]), ("shop/ledger", &[&[8080]])])
    );
    assert_eq!(of("bank/ledger", "", "10.0.0.9"), expect(&[("bank/bank", &[&[1]])]));
}
