//! Topics are complete: whatever an event changes for anybody, its topic was named.

use std::collections::BTreeMap;

use outrigger_certs::TrustDomain;
use outrigger_proto::spec::Body;
use proptest::prelude::*;

use super::*;
use crate::{
    compile,
    config::{self, SourceFile},
};

#[derive(Clone, Debug)]
enum Event {
    /// A choice among the documents below: each bit takes one, or its variant.
    Config(u32),
    Workload {
        who: usize,
        at: usize,
        serving: bool,
        serve: bool,
    },
    Gone {
        who: usize,
    },
}

/// Pairs of documents that can stand beside all others; of each pair one, the other or none is in force.
const DOCUMENTS: [[&str; 2]; 8] = [
    [
        "kind: MeshService\nmetadata: {name: orders, namespace: shop}\nspec: {hosts: [orders.example], addresses: [10.96.0.10], ports: [{port: 80, targetPort: 8080, appProtocol: http}], selector: {app: orders}}",
        "kind: MeshService\nmetadata: {name: orders, namespace: shop}\nspec: {addresses: [10.96.0.11], ports: [{port: 80, targetPort: 9090, appProtocol: grpc}], selector: {app: orders, version: v1}}",
    ],
    [
        "kind: MeshService\nmetadata: {name: orders, namespace: other}\nspec: {ports: [{port: 80, targetPort: 8080}], selector: {app: orders}}",
        "kind: MeshService\nmetadata: {name: orders, namespace: other}\nspec: {ports: [{port: 80, targetPort: 8080}], endpoints: [{address: 10.0.0.1, identity: \"spiffe://mesh.local/ns/shop/sa/orders\"}]}",
    ],
    [
        "kind: MeshService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web.example], ports: [{port: 80, targetPort: 8080, appProtocol: tcp}], endpoints: [{address: 10.0.0.2, identity: \"spiffe://mesh.local/ns/shop/sa/web\"}]}",
        "kind: MeshService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web.example], ports: [{port: 80, targetPort: 8080, appProtocol: tcp}], endpoints: [{address: 10.0.0.2, identity: \"spiffe://mesh.local/ns/shop/sa/web\"}, {address: 10.0.0.9, identity: \"spiffe://mesh.local/ns/other/sa/orders\"}]}",
    ],
    [
        "kind: ServerPolicy\nmetadata: {name: a, namespace: shop}\nspec: {selector: {app: orders}, ports: [{port: 8080, protocol: tcp, mtls: permissive}]}",
        "kind: ServerPolicy\nmetadata: {name: a, namespace: shop}\nspec: {egress: registered-only}",
    ],
    [
        "kind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {selector: {app: orders}, action: deny, rules: [{from: {namespaces: [other]}}]}",
        "kind: AuthorizationPolicy\nmetadata: {name: a, namespace: shop}\nspec: {action: allow}",
    ],
    [
        "kind: AuthorizationPolicy\nmetadata: {name: b, namespace: other}\nspec: {action: audit, rules: [{}]}",
        "kind: AuthorizationPolicy\nmetadata: {name: b, namespace: other}\nspec: {targetRef: {kind: Service, name: orders}, action: allow, rules: [{}]}",
    ],
    [
        "kind: TrafficPolicy\nmetadata: {name: a, namespace: shop}\nspec: {targetRef: {kind: Service, name: orders}, timeouts: {request: 1s}}",
        "kind: TrafficPolicy\nmetadata: {name: a, namespace: shop}\nspec: {targetRef: {kind: Service, name: orders, port: 80}, loadBalancer: {algorithm: random}}",
    ],
    [
        "kind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec: {parentRefs: [{kind: Service, name: orders}], rules: [{backendRefs: [{name: orders, port: 80, weight: 1}]}]}",
        "kind: HTTPRoute\nmetadata: {name: r, namespace: other}\nspec: {parentRefs: [{kind: Service, name: orders, namespace: shop}], rules: [{backendRefs: [{name: orders, namespace: shop, port: 80, weight: 2}]}]}",
    ],
];

fn configuration(choice: u32) -> Option<Arc<Config>> {
    let mut files = Vec::new();
    for (index, pair) in DOCUMENTS.iter().enumerate() {
        let text = match (choice >> (2 * index)) & 3 {
            0 => continue,
            1 => pair[0],
            _ => pair[1],
        };
        let version = if text.starts_with("kind: HTTPRoute") {
            "gateway.networking.k8s.io/v1"
        } else {
            "outrigger.dev/v1alpha1"
        };
        files.push(SourceFile {
            name: format!("{index}.yaml").into(),
            text: Ok(format!("apiVersion: {version}\n{text}\n")),
        });
    }
    config::read(&files, &TrustDomain::parse("mesh.local").unwrap()).ok().map(Arc::new)
}

const WHO: [(&str, &str, &str); 4] =
    [("shop", "orders", "v1"), ("shop", "orders", "v2"), ("shop", "web", "v1"), ("other", "orders", "v1")];
const ADDRESSES: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "127.0.0.1"];

fn workload(who: usize, at: usize, serving: bool, serve: bool, registered: u64) -> Workload {
    let (namespace, app, version) = WHO[who];
    let identity = SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), namespace, app).unwrap();
    let port = |number: u16| NonZeroU16::new(number).unwrap();
    Workload {
        id: WorkloadId { identity, instance: who.to_string().into() },
        labels: BTreeMap::from([("app".into(), app.into()), ("version".into(), version.into())]),
        addresses: vec![ADDRESSES[at].parse().unwrap()],
        zone: "".into(),
        serves: if serve {
            vec![Serve { mesh_port: port(9443), application_port: port(8080) }]
        } else {
            vec![]
        },
        serving,
        ready_since: None,
        registered,
    }
}

/// Everything that anybody may see.
fn view(index: &Index) -> BTreeMap<(usize, String), (Topic, Option<Body>)> {
    let mut view = BTreeMap::new();
    let mut keys = vec!["self".to_owned()];
    for port in [80, 8080, 9090, 9443] {
        keys.extend(ADDRESSES.iter().map(|address| format!("address/{address}:{port}")));
        keys.extend(
            ["10.96.0.10", "10.96.0.11", "10.0.0.9"].map(|address| format!("address/{address}:{port}")),
        );
        keys.extend(
            ["orders", "orders.shop", "orders.other", "orders.example", "web", "web.example"]
                .map(|host| format!("authority/{host}:{port}")),
        );
        keys.extend(["shop/orders", "other/orders", "shop/web"].map(|name| format!("backend/{name}:{port}")));
    }
    for who in 0..WHO.len() {
        let subscriber = workload(who, who, true, false, 0);
        let namespace: Arc<str> = subscriber.namespace().into();
        for text in &keys {
            let key: Key = text.parse().unwrap();
            let body = compile::body(index, &subscriber, &key);
            view.insert((who, text.clone()), (Topic::of(&key, &namespace), body));
        }
    }
    view
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => any::<u32>().prop_map(Event::Config),
        3 => (0..WHO.len(), 0..ADDRESSES.len(), any::<bool>(), any::<bool>())
            .prop_map(|(who, at, serving, serve)| Event::Workload { who, at, serving, serve }),
        1 => (0..WHO.len()).prop_map(|who| Event::Gone { who }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_changes_is_named(events in prop::collection::vec(events(), 1..12)) {
        let mut index = Index::default();
        let mut before = view(&index);
        for (position, event) in events.iter().enumerate() {
            let topics = match event {
                Event::Config(choice) => match configuration(*choice) {
                    Some(config) => index.reset_config(config),
                    None => continue,
                },
                Event::Workload { who, at, serving, serve } => {
                    index.apply_workload(Arc::new(workload(*who, *at, *serving, *serve, position as u64)))
                }
                Event::Gone { who } => index.delete_workload(&workload(*who, 0, true, false, 0).id),
            };
            let after = view(&index);
            for (key, (topic, body)) in &after {
                prop_assert!(
                    *body == before[key].1 || topics.contains(topic),
                    "{key:?} changed by {event:?} without {topic:?}:\n{:?}\n{body:?}", before[key].1
                );
            }
            before = after;
        }
    }
}

#[test]
fn most_choices_are_legal_configurations() {
    // The property above would hold of nothing if every choice were refused.
    let legal = (0..1u32 << 16).step_by(97).filter(|choice| configuration(*choice).is_some()).count();
    assert!(legal > 100, "{legal}");
}

#[test]
fn equal_events_touch_nothing() {
    let mut index = Index::default();
    let config = configuration(0b01_01_01_01_01_01_01_01).unwrap();
    assert!(!index.reset_config(config).is_empty());
    assert!(index.reset_config(configuration(0b01_01_01_01_01_01_01_01).unwrap()).is_empty());
    let workload = Arc::new(workload(0, 0, true, false, 1));
    assert!(!index.apply_workload(workload.clone()).is_empty());
    assert!(index.apply_workload(workload).is_empty());
}

#[test]
fn one_edit_touches_only_what_hangs_from_it() {
    let mut index = Index::default();
    index.reset_config(configuration(0b01_01_01_01_01_01_01_01).unwrap());
    // The route's other variant lies in another namespace; its parent keeps the endpoints it had.
    let topics = index.reset_config(configuration(0b10_01_01_01_01_01_01_01).unwrap());
    let host = |host: &str| Topic::Host(host.into());
    assert_eq!(
        topics,
        Topics::from([
            host("orders"),
            host("orders.shop"),
            host("orders.example"),
            Topic::Address("10.96.0.10".parse().unwrap()),
        ])
    );
}
