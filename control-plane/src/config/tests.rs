mod protocol;
mod resilience;

use super::*;

fn files(files: &[(&str, &str)]) -> Vec<SourceFile> {
    files
        .iter()
        .map(|(name, text)| SourceFile { name: (*name).into(), text: Ok((*text).to_owned()) })
        .collect()
}

fn read_all(sources: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    read(&files(sources), &TrustDomain::parse("mesh.local").unwrap())
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn errors(sources: &[(&str, &str)]) -> Vec<String> {
    read_all(sources).expect_err("must be refused")
}

/// Takes the mark out of a text and says where it stood, as `LINE:COLUMN`.
fn unmark(text: &str) -> (String, String) {
    let (before, after) = text.split_once('¦').expect("a mark where the error is expected");
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or(before).chars().count() + 1;
    (format!("{before}{after}"), format!("{line}:{column}"))
}

const ORDERS: &str = r#"apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: orders, namespace: shop}
spec:
  hosts: [orders.shop.svc.cluster.local]
  addresses: [10.96.0.10]
  ports: [{name: http, port: 80, targetPort: 8080, appProtocol: http}]
  endpoints:
  - {address: 10.77.0.3, identity: "spiffe://mesh.local/ns/shop/sa/orders", zone: a, weight: 1}
  selector: {app: orders}
"#;

const DATABASE: &str = r"apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: database, namespace: shop}
spec:
  ports:
  - {name: sql, port: 3306, appProtocol: tcp}
  - {name: admin, port: 80}
";

#[test]
fn the_example_of_the_contract_is_read() {
    let config = read_all(&[("orders.yaml", ORDERS)]).unwrap();
    let service = &config.services[&ObjectName::new("shop", "orders")];
    assert_eq!(&*service.hosts[0], "orders.shop.svc.cluster.local");
    assert_eq!(service.addresses, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    let port = &service.ports[0];
    assert_eq!((port.port.get(), port.target.get()), (80, 8080));
    assert_eq!(service.endpoints[0].identity.service_account(), "orders");
    assert_eq!(&*service.endpoints[0].zone, "a");
    assert!(service.selector.as_ref().unwrap().select(&BTreeMap::from([
        ("app".to_owned(), "orders".to_owned()),
        ("version".to_owned(), "v1".to_owned()),
    ])));
}

#[test]
fn an_empty_directory_is_a_configuration() {
    assert_eq!(read_all(&[]).unwrap(), Config::default());
    assert_eq!(read_all(&[("a.yaml", "# nothing\n")]).unwrap(), Config::default());
}

/// One edit to the example, and the single error that it must give.
#[test]
fn every_bad_value_of_a_service_is_told_at_its_place() {
    for (from, to, expected) in [
        (
            "outrigger.dev/v1alpha1",
            "¦outrigger.dev/v1",
            r#"apiVersion: "outrigger.dev/v1" is not the version of MeshService, which is "outrigger.dev/v1alpha1""#,
        ),
        ("MeshService", "¦MeshServise", r#"kind: "MeshServise" is not known; did you mean "MeshService"?"#),
        (
            "MeshService",
            "¦Ingress",
            "kind: \"Ingress\" is not known; known are MeshService, HTTPRoute, TrafficPolicy, AuthorizationPolicy, ServerPolicy",
        ),
        ("{name: orders, ", "¦{", "MeshService: metadata.name: is required"),
        (
            "name: orders,",
            "name: ¦Orders,",
            r#"MeshService: metadata.name: "Orders" is not a name: want a-z, 0-9, - and . (not at the ends), at most 253 characters"#,
        ),
        (
            "  hosts:",
            "  ¦host:",
            r#"MeshService shop/orders: spec.host: unknown field: "host" is not known; did you mean "hosts"?"#,
        ),
        (
            "[orders.shop.svc.cluster.local]",
            "[¦'*.shop']",
            r#"MeshService shop/orders: spec.hosts[0]: "*.shop" is not a host name: wildcards are not supported"#,
        ),
        (
            "[orders.shop.svc.cluster.local]",
            "[¦a b]",
            r#"MeshService shop/orders: spec.hosts[0]: "a b" is not a host name"#,
        ),
        (
            "[orders.shop.svc.cluster.local]",
            "[¦10.0.0.1]",
            r#"MeshService shop/orders: spec.hosts[0]: "10.0.0.1" is an IP address: it belongs in spec.addresses"#,
        ),
        (
            "[10.96.0.10]",
            "[¦10.96.0.0/16]",
            r#"MeshService shop/orders: spec.addresses[0]: "10.96.0.0/16" is not an IP address: this is a network, want a single address"#,
        ),
        (
            "[10.96.0.10]",
            "[¦'10.96.0.10:80']",
            r#"MeshService shop/orders: spec.addresses[0]: "10.96.0.10:80" is not an IP address: leave the port out"#,
        ),
        (
            "[10.96.0.10]",
            "[¦10.96.0.300]",
            r#"MeshService shop/orders: spec.addresses[0]: "10.96.0.300" is not an IP address"#,
        ),
        (
            "[10.96.0.10]",
            "[¦0.0.0.0]",
            "MeshService shop/orders: spec.addresses[0]: 0.0.0.0 cannot be dialled",
        ),
        (
            "port: 80,",
            "port: ¦0,",
            "MeshService shop/orders: spec.ports[0].port: 0 is not a port: want 1 to 65535",
        ),
        (
            "port: 80,",
            "port: ¦65536,",
            "MeshService shop/orders: spec.ports[0].port: 65536 is not a port: want 1 to 65535",
        ),
        (
            "port: 80,",
            "port: ¦'80',",
            r#"MeshService shop/orders: spec.ports[0].port: wants a whole number, not the text "80""#,
        ),
        (
            "appProtocol: http}",
            "appProtocol: ¦htp}",
            r#"MeshService shop/orders: spec.ports[0].appProtocol: "htp" is not known; did you mean "http"?"#,
        ),
        (
            "appProtocol: http}",
            "appProtocol: ¦quic}",
            "MeshService shop/orders: spec.ports[0].appProtocol: \"quic\" is not known; known are detect, http, http2, grpc, tcp, tls",
        ),
        (
            "address: 10.77.0.3",
            "address: ¦pod-3",
            r#"MeshService shop/orders: spec.endpoints[0].address: "pod-3" is not an IP address"#,
        ),
        (
            "\"spiffe://mesh.local/ns/shop/sa/orders",
            "¦\"spiffe://mesh.local/orders",
            r#"MeshService shop/orders: spec.endpoints[0].identity: "spiffe://mesh.local/orders" is not an identity: path is not /ns/NAMESPACE/sa/SERVICE_ACCOUNT"#,
        ),
        (
            "\"spiffe://mesh.local/",
            "¦\"spiffe://other/",
            "MeshService shop/orders: spec.endpoints[0].identity: spiffe://other/ns/shop/sa/orders is of trust domain other; this mesh is mesh.local, so nobody has it",
        ),
        (
            "weight: 1",
            "weight: ¦0",
            "MeshService shop/orders: spec.endpoints[0].weight: 0 is not a weight: want 1 to 65535",
        ),
        (
            "weight: 1",
            "ports: {https: ¦1}",
            r#"MeshService shop/orders: spec.endpoints[0].ports.https: "https" is not the name of a port of this service"#,
        ),
        (
            "{app: orders}",
            "¦{}",
            "MeshService shop/orders: spec.selector: is empty: leave it out, or name a label",
        ),
        (
            "{app: orders}",
            "{app: ¦1}",
            "MeshService shop/orders: spec.selector.app: wants text, not the number 1 (put it in quotes)",
        ),
        (
            "[{name: http, port: 80, targetPort: 8080, appProtocol: http}]",
            "¦[]",
            "MeshService shop/orders: spec.ports: is empty: a service needs a port",
        ),
        (
            "[{name: http, port: 80, targetPort: 8080, appProtocol: http}]",
            "[¦{port: 80}, {name: b, port: 81}]",
            "MeshService shop/orders: spec.ports[0].name: is required where there are several ports",
        ),
        (
            "[{name: http, port: 80, targetPort: 8080, appProtocol: http}]",
            "[{name: a, port: 80}, {name: b, port: ¦80}]",
            "MeshService shop/orders: spec.ports[1].port: 80 is used by another port already",
        ),
    ] {
        assert!(ORDERS.contains(from), "{from}");
        let (text, place) = unmark(&ORDERS.replace(from, to));
        assert_eq!(errors(&[("shop/orders.yaml", &text)]), [format!("shop/orders.yaml:{place}: {expected}")]);
    }
}

#[test]
fn all_mistakes_of_all_documents_are_told_in_order() {
    let text = ORDERS
        .replace("port: 80,", "port: 0,")
        .replace("weight: 1", "wait: 1")
        .replace("appProtocol: http", "appProtocol: hhtp");
    let second = ORDERS
        .replace("10.96.0.10", "x")
        .replace("10.77.0.3", "y")
        .replace("name: orders", "name: b")
        .replace("orders.shop.svc", "b.shop.svc");
    assert_eq!(
        errors(&[
            ("b.yaml", &format!("{ORDERS}---\n{second}")),
            ("a.yaml", &text.replace("name: orders", "name: c"))
        ]),
        [
            // The shape is checked before the values: port 0 is told once the shape is right.
            r#"a.yaml:7:64: MeshService shop/c: spec.ports[0].appProtocol: "hhtp" is not known; did you mean "http"?"#,
            r#"a.yaml:9:86: MeshService shop/c: spec.endpoints[0].wait: unknown field: "wait" is not known; known are address, identity, zone, weight, ports, labels"#,
            r#"b.yaml:17:15: MeshService shop/b: spec.addresses[0]: "x" is not an IP address"#,
            r#"b.yaml:20:15: MeshService shop/b: spec.endpoints[0].address: "y" is not an IP address"#,
        ]
    );
}

#[test]
fn broken_syntax_is_told_and_hides_no_other_error() {
    let errors =
        errors(&[("a.yaml", "a: [1,\n  b: {\n"), ("b.yaml", &ORDERS.replace("port: 80,", "port: 0,"))]);
    assert!(errors[0].starts_with("a.yaml:"), "{errors:?}");
    assert_eq!(
        errors[1],
        "b.yaml:7:30: MeshService shop/orders: spec.ports[0].port: 0 is not a port: want 1 to 65535"
    );
    assert_eq!(errors.len(), 2);
}

#[test]
fn an_object_defined_twice_names_both_places() {
    assert_eq!(
        errors(&[("a.yaml", ORDERS), ("b.yaml", &format!("# second\n{ORDERS}"))]),
        [
            "b.yaml:4:18: MeshService shop/orders: metadata.name: MeshService shop/orders is defined in a.yaml:3 already"
        ]
    );
}

#[test]
fn two_services_cannot_claim_one_name_or_address() {
    let other = |from: &str, to: &str| ORDERS.replace("name: orders,", "name: carts,").replace(from, to);
    for (text, expected) in [
        (
            other("10.96.0.10", "10.96.0.11").replace("10.77.0.3", "10.77.0.4"),
            r#"b.yaml:5:11: MeshService shop/orders: spec.hosts[0]: the host "orders.shop.svc.cluster.local" is claimed by MeshService shop/carts already (a.yaml:5)"#,
        ),
        (
            other("orders.shop.svc.cluster.local", "carts.example"),
            "b.yaml:6:15: MeshService shop/orders: spec.addresses[0]: 10.96.0.10 is claimed by MeshService shop/carts already (a.yaml:6)",
        ),
        (
            other("orders.shop.svc.cluster.local", "orders.shop").replace("10.96.0.10", "10.96.0.11"),
            r#"a.yaml:5:11: MeshService shop/carts: spec.hosts[0]: the host "orders.shop" is claimed by MeshService shop/orders already (b.yaml:3)"#,
        ),
        (
            other("orders.shop.svc.cluster.local", "Orders.").replace("10.96.0.10", "10.96.0.11"),
            r#"a.yaml:5:11: MeshService shop/carts: spec.hosts[0]: the host "orders" is claimed by MeshService shop/orders already (b.yaml:3)"#,
        ),
        (
            other("orders.shop.svc.cluster.local", "carts.example")
                .replace("10.96.0.10", "10.96.0.11")
                .replace("10.77.0.3", "10.96.0.10"),
            "a.yaml:9:15: MeshService shop/carts: spec.endpoints[0].address: 10.96.0.10 is a virtual address of MeshService shop/orders (b.yaml:6)",
        ),
    ] {
        assert_eq!(errors(&[("a.yaml", &text), ("b.yaml", ORDERS)]), [expected]);
    }
    // A service may write down the names that it has anyway.
    read_all(&[("a.yaml", &ORDERS.replace("[orders.shop.svc.cluster.local]", "[orders.shop, orders]"))])
        .unwrap();
}

const ROUTE: &str = r#"apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: split, namespace: shop}
spec:
  parentRefs:
  - {group: "", kind: Service, name: orders, port: 80}
  rules:
  - matches:
    - path: {type: PathPrefix, value: /api/}
      headers: [{name: X-Test, value: "1"}]
      method: GET
    backendRefs:
    - {name: orders, port: 80, weight: 90}
    - {name: database, port: 80, weight: 10}
    timeouts: {request: 2s}
"#;

#[test]
fn a_route_is_read() {
    let config = read_all(&[("a.yaml", ORDERS), ("b.yaml", DATABASE), ("c.yaml", ROUTE)]).unwrap();
    let route = &config.routes[&ObjectName::new("shop", "split")];
    assert_eq!(&*route.rules[0].name, "shop/split/0");
    assert_eq!(route.rules[0].request_timeout, Some(std::time::Duration::from_secs(2)));
    let matched = &route.rules[0].matches[0];
    assert_eq!(matched.path, Some(outrigger_proto::spec::PathMatch::Prefix("/api".into())));
    assert_eq!(matched.headers[0].name, "x-test");
    assert_eq!(route.rules[0].backends.iter().map(|backend| backend.weight).collect::<Vec<_>>(), [90, 10]);
}

#[test]
fn every_bad_value_of_a_route_is_told_at_its_place() {
    for (from, to, expected) in [
        (
            "gateway.networking.k8s.io/v1",
            "¦gateway.networking.k8s.io/v2",
            r#"apiVersion: "gateway.networking.k8s.io/v2" is not the version of HTTPRoute, which is "gateway.networking.k8s.io/v1""#,
        ),
        (
            "{group: \"\", kind: Service, ",
            "¦{group: \"\", ",
            "HTTPRoute shop/split: spec.parentRefs[0].kind: is required: want Service or MeshService",
        ),
        (
            "kind: Service",
            "kind: ¦Gateway",
            r#"HTTPRoute shop/split: spec.parentRefs[0].kind: "Gateway" is not supported: want Service or MeshService"#,
        ),
        (
            r#"group: """#,
            "group: ¦apps",
            r#"HTTPRoute shop/split: spec.parentRefs[0].group: "apps" is not the group of Service, which is """#,
        ),
        (
            "name: orders, port: 80}",
            "name: ¦oders, port: 80}",
            "HTTPRoute shop/split: spec.parentRefs[0].name: there is no MeshService shop/oders",
        ),
        (
            "name: orders, port: 80}",
            "name: orders, port: ¦81}",
            "HTTPRoute shop/split: spec.parentRefs[0].port: MeshService shop/orders has no port 81; it has 80",
        ),
        (
            "name: orders, port: 80}",
            "name: database, port: ¦3306}",
            "HTTPRoute shop/split: spec.parentRefs[0].port: port 3306 of MeshService shop/database carries no HTTP: see its appProtocol",
        ),
        (
            "name: orders, port: 80}",
            "name: orders, sectionName: ¦x}",
            r#"HTTPRoute shop/split: spec.parentRefs[0].sectionName: MeshService shop/orders has no port named "x""#,
        ),
        (
            "name: orders, port: 80}",
            "name: ¦orders, namespace: other}",
            "HTTPRoute shop/split: spec.parentRefs[0].name: there is no MeshService other/orders",
        ),
        (
            "value: /api/",
            "value: ¦api",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].path.value: "api" does not begin with /"#,
        ),
        (
            "value: /api/",
            "value: ¦/a/../b",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].path.value: "/a/../b" has "/../", which no normalised path has"#,
        ),
        (
            "value: /api/",
            "value: ¦/a?b",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].path.value: "/a?b" has a character that no path has: a space, a control character, ? or #"#,
        ),
        (
            "type: PathPrefix",
            "type: ¦Prefix",
            "HTTPRoute shop/split: spec.rules[0].matches[0].path.type: \"Prefix\" is not known; known are Exact, PathPrefix",
        ),
        (
            "name: X-Test",
            "name: ¦'X Test'",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].headers[0].name: "X Test" is not the name of a header"#,
        ),
        (
            r#"value: "1"}"#,
            "value: ¦'(', type: RegularExpression}",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].headers[0].value: "(" is not a regular expression: unclosed group"#,
        ),
        (
            r#"value: "1"}"#,
            "value: ¦'\\w{400}', type: RegularExpression}",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].headers[0].value: "\\w{400}" is not a regular expression: Compiled regex exceeds size limit of 262144 bytes."#,
        ),
        (
            r#"value: "1"}"#,
            "value: ¦'(?x)a # b', type: RegularExpression}",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].headers[0].value: "(?x)a # b" is not a regular expression: unclosed group"#,
        ),
        (
            r#""1"}]"#,
            r#""1"}, {name: ¦x-test, value: a}]"#,
            "HTTPRoute shop/split: spec.rules[0].matches[0].headers[1].name: x-test is matched twice",
        ),
        (
            "method: GET",
            "method: ¦get",
            r#"HTTPRoute shop/split: spec.rules[0].matches[0].method: "get" is not known; did you mean "GET"?"#,
        ),
        (
            "- {name: orders, port: 80, weight: 90}\n    - {name: database, port: 80, weight: 10}",
            "- ¦{name: orders, port: 80, weight: 0}",
            "HTTPRoute shop/split: spec.rules[0].backendRefs: all have weight 0: matching requests have nowhere to go",
        ),
        (
            "weight: 90",
            "weight: ¦-1",
            "HTTPRoute shop/split: spec.rules[0].backendRefs[0].weight: -1 is not a weight: want 0 to 1000000",
        ),
        (
            "name: orders, port: 80, weight: 90",
            "name: ¦order",
            "HTTPRoute shop/split: spec.rules[0].backendRefs[0].name: there is no MeshService shop/order",
        ),
        (
            "{name: database, port: 80,",
            "¦{name: database,",
            "HTTPRoute shop/split: spec.rules[0].backendRefs[1].port: is required: MeshService shop/database has several ports",
        ),
        (
            "request: 2s",
            "request: ¦2",
            r#"HTTPRoute shop/split: spec.rules[0].timeouts.request: wants text, not the number 2 (put it in quotes)"#,
        ),
        (
            "request: 2s",
            "request: ¦2 seconds",
            r#"HTTPRoute shop/split: spec.rules[0].timeouts.request: "2 seconds" is not a duration: want for example "5s", "300ms" or "1h30m""#,
        ),
        (
            "request: 2s",
            "request: ¦0s",
            "HTTPRoute shop/split: spec.rules[0].timeouts.request: cannot be 0s here: \"no limit\" is said in a TrafficPolicy, for the whole service",
        ),
        (
            "    timeouts:",
            "    ¦filters: []\n    timeouts:",
            r#"HTTPRoute shop/split: spec.rules[0].filters: unknown field: "filters" is not known; known are name, matches, backendRefs, timeouts"#,
        ),
    ] {
        assert!(ROUTE.contains(from), "{from}");
        let (text, place) = unmark(&ROUTE.replace(from, to));
        let told = errors(&[("a.yaml", ORDERS), ("b.yaml", DATABASE), ("r.yaml", &text)]);
        assert_eq!(told, [format!("r.yaml:{place}: {expected}")]);
    }
}

#[test]
fn one_mistake_does_not_echo_in_references() {
    let broken = ORDERS.replace("port: 80,", "port: 0,");
    assert_eq!(
        errors(&[("a.yaml", &broken), ("b.yaml", DATABASE), ("r.yaml", ROUTE)]),
        ["a.yaml:7:30: MeshService shop/orders: spec.ports[0].port: 0 is not a port: want 1 to 65535"]
    );
    assert_eq!(errors(&[("a.yaml", "a: {"), ("r.yaml", ROUTE)]).len(), 1);
}

fn document(api: &str, kind: &str, name: &str, spec: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n")
}

#[test]
fn every_bad_value_of_a_policy_is_told_at_its_place() {
    for (kind, spec, expected) in [
        (
            "TrafficPolicy",
            "{targetRef: {kind: Service, name: ¦x}, coalesce: true}",
            "TrafficPolicy shop/p: spec.targetRef.name: there is no MeshService shop/x",
        ),
        (
            "TrafficPolicy",
            "{targetRef: {kind: Service, name: orders, port: ¦8080}, coalesce: true}",
            "TrafficPolicy shop/p: spec.targetRef.port: MeshService shop/orders has no port 8080; it has 80",
        ),
        (
            "TrafficPolicy",
            "{targetRef: {kind: MeshService, name: orders}, loadBalancer: {algorithm: ¦ewma}}",
            "TrafficPolicy shop/p: spec.loadBalancer.algorithm: \"ewma\" is not known; known are peak-ewma, least-request, round-robin, random, maglev, ring-hash",
        ),
        (
            "TrafficPolicy",
            "{targetRef: {kind: Service, name: orders}, timeouts: {connect: ¦0s}}",
            "TrafficPolicy shop/p: spec.timeouts.connect: cannot be 0s: a connection attempt needs an end",
        ),
        (
            "TrafficPolicy",
            "{targetRef: {kind: Service, name: orders}, timeouts: {request: ¦9000h}}",
            r#"TrafficPolicy shop/p: spec.timeouts.request: "9000h" is longer than a year; "0s" means no limit"#,
        ),
        (
            "TrafficPolicy",
            "¦{loadBalancer: {algorithm: random}}",
            "TrafficPolicy shop/p: spec.targetRef: is required",
        ),
        (
            "AuthorizationPolicy",
            "{action: ¦alow, rules: [{}]}",
            r#"AuthorizationPolicy shop/p: spec.action: "alow" is not known; did you mean "allow"?"#,
        ),
        ("AuthorizationPolicy", "¦{rules: [{}]}", "AuthorizationPolicy shop/p: spec.action: is required"),
        (
            "AuthorizationPolicy",
            "¦{action: deny}",
            "AuthorizationPolicy shop/p: spec.rules: is empty: the policy would never match; a rule {} matches every caller",
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, selector: {a: b}, targetRef: ¦{kind: Service, name: orders}, rules: [{}]}",
            "AuthorizationPolicy shop/p: spec.targetRef: cannot stand beside selector: a policy has one target",
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, rules: [{from: {identities: [¦web]}}]}",
            r#"AuthorizationPolicy shop/p: spec.rules[0].from.identities[0]: "web" is not an identity: does not begin with "spiffe://""#,
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, rules: [{from: {namespaces: [¦Shop]}}]}",
            r#"AuthorizationPolicy shop/p: spec.rules[0].from.namespaces[0]: "Shop" is not a name: want a-z, 0-9, - and . (not at the ends), at most 253 characters"#,
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, rules: [{to: {ports: [¦70000]}}]}",
            "AuthorizationPolicy shop/p: spec.rules[0].to.ports[0]: 70000 is not a port: want 1 to 65535",
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, rules: [{to: {ports: [80, ¦80]}}]}",
            "AuthorizationPolicy shop/p: spec.rules[0].to.ports[1]: 80 is listed twice",
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, targetRef: {kind: Service, name: orders}, rules: [{to: {ports: [¦80]}}]}",
            "AuthorizationPolicy shop/p: spec.rules[0].to.ports[0]: MeshService shop/orders is not served at 80, but at 8080",
        ),
        (
            "AuthorizationPolicy",
            "{action: allow, rules: [{¦when: {}}]}",
            r#"AuthorizationPolicy shop/p: spec.rules[0].when: unknown field: "when" is not known; known are from, to"#,
        ),
        ("ServerPolicy", "¦{}", "ServerPolicy shop/p: spec: says nothing: want ports or egress"),
        (
            "ServerPolicy",
            "{egress: ¦registered}",
            "ServerPolicy shop/p: spec.egress: \"registered\" is not known; did you mean \"registered-only\"?",
        ),
        (
            "ServerPolicy",
            "{ports: [{port: 80, mtls: ¦off}]}",
            "ServerPolicy shop/p: spec.ports[0].mtls: \"off\" is not known; known are strict, permissive",
        ),
        (
            "ServerPolicy",
            "{ports: [{port: 80}, {port: ¦80}]}",
            "ServerPolicy shop/p: spec.ports[1].port: 80 is listed twice",
        ),
    ] {
        let (text, place) = unmark(&document("outrigger.dev/v1alpha1", kind, "p", spec));
        assert_eq!(errors(&[("a.yaml", ORDERS), ("p.yaml", &text)]), [format!("p.yaml:{place}: {expected}")]);
    }
}

#[test]
fn two_policies_cannot_say_different_things_of_the_same() {
    let traffic = |name| {
        document(
            "outrigger.dev/v1alpha1",
            "TrafficPolicy",
            name,
            "{targetRef: {kind: Service, name: orders}, coalesce: true}",
        )
    };
    assert_eq!(
        errors(&[("a.yaml", ORDERS), ("p.yaml", &traffic("p")), ("q.yaml", &traffic("q"))]),
        [
            "q.yaml:4:19: TrafficPolicy shop/q: spec.targetRef: TrafficPolicy shop/p has the same target already (p.yaml:4)"
        ]
    );
    let server = |name, spec| document("outrigger.dev/v1alpha1", "ServerPolicy", name, spec);
    assert_eq!(
        errors(&[
            ("p.yaml", &server("p", "{selector: {app: a}, ports: [{port: 80, mtls: permissive}]}")),
            ("q.yaml", &server("q", "{selector: {app: a}, ports: [{port: 80, mtls: strict}]}")),
        ]),
        [
            "q.yaml:4:43: ServerPolicy shop/q: spec.ports[0].port: ServerPolicy shop/p says this of the same workloads already (p.yaml:4)"
        ]
    );
    read_all(&[
        ("p.yaml", &server("p", "{selector: {app: a}, ports: [{port: 80, mtls: permissive}]}")),
        ("q.yaml", &server("q", "{ports: [{port: 80, mtls: strict}]}")),
    ])
    .unwrap();
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = read_all(&[("a.yaml", &text)]);
    }

    /// Structured garbage gets further than random characters do.
    #[test]
    fn no_damage_panics(at in 0usize..330, with in "[\\[\\]{}:,'\"&*!|>#\\-a0 \n]{0,4}") {
        let mut text = ORDERS.to_owned();
        text.insert_str(at.min(text.len()), &with);
        let _ = read_all(&[("a.yaml", &text)]);
    }
}
