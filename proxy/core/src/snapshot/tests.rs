use std::num::NonZeroU32;

use http::HeaderName;
use outrigger_certs::{SpiffeId, TrustDomain};
use outrigger_proto::spec::{
    Endpoint, HeaderMatch, HeaderValueMatch, MtlsMode, RouteMatch, WeightedBackend, Workload,
};

use super::*;

fn domain() -> TrustDomain {
    TrustDomain::parse("mesh.local").unwrap()
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

fn destination_key(text: &str) -> DestinationKey {
    let Key::Destination(key) = key(text) else { panic!("{text} is no destination") };
    key
}

fn backend_key(name: &str) -> BackendKey {
    format!("shop/{name}:80").parse().unwrap()
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        identity: SpiffeId::new(&domain(), "shop", "orders").unwrap(),
        zone: "a".into(),
        weight: NonZeroU32::MIN,
        subset: "".into(),
        ready_since: None,
    }
}

fn resource(version: &str, body: Body) -> Resource {
    Resource { version: version.into(), body }
}

fn backend(name: &str, addresses: &[&str]) -> Resource {
    let endpoints = addresses.iter().map(|address| endpoint(address)).collect();
    let backend = Backend { endpoints, ..Backend::default() };
    resource(&format!("{name} at {addresses:?}"), Body::Backend(backend_key(name), Arc::new(backend)))
}

fn rule(name: &str, regex: Option<&str>, backends: &[&str]) -> Arc<Route> {
    let headers = regex.map(|regex| HeaderMatch {
        name: HeaderName::from_static("x-user"),
        value: HeaderValueMatch::Regex(regex.into()),
    });
    Arc::new(Route {
        name: name.into(),
        matches: vec![RouteMatch { headers: headers.into_iter().collect(), ..RouteMatch::default() }],
        backends: backends
            .iter()
            .map(|name| WeightedBackend { backend: backend_key(name), weight: NonZeroU32::MIN })
            .collect(),
        request_timeout: None,
    })
}

fn service(at: &str, version: &str, routes: Vec<Arc<Route>>, backend: &str) -> Resource {
    let service = ServicePort {
        namespace: "shop".into(),
        name: "orders".into(),
        port: NonZeroU16::new(80).unwrap(),
        protocol: Protocol::Http,
        routes,
        backend: backend_key(backend),
    };
    resource(version, Body::Destination(destination_key(at), Arc::new(Destination::Service(service))))
}

fn update(resources: Vec<Resource>, removed: &[&str]) -> Update {
    Update { nonce: 1, resources, removed: removed.iter().map(|text| key(text)).collect() }
}

const A: &str = "address/10.96.0.10:80";
const B: &str = "authority/orders.shop:80";

/// Two destinations, two backends, an inbound and trust.
fn full() -> Snapshot {
    let trust = Trust { trust_domain: domain(), roots: vec![vec![1, 2, 3]] };
    let resources = vec![
        service(
            A,
            "1",
            vec![rule("shop/r/0", Some("a+"), &["blue"]), rule("shop/r/1", None, &["blue", "green"])],
            "blue",
        ),
        service(B, "1", vec![], "green"),
        backend("blue", &["10.0.0.1:8080"]),
        backend("green", &[]),
        resource("1", Body::Inbound(Arc::new(Inbound::default()))),
        resource("1", Body::Trust(Arc::new(trust))),
    ];
    Snapshot::default().apply(update(resources, &[])).unwrap()
}

fn fields(refused: Result<Snapshot, Vec<FieldError>>) -> Vec<String> {
    refused.unwrap_err().into_iter().map(|error| error.to_string()).collect()
}

#[test]
fn an_update_changes_what_it_names_and_shares_the_rest() {
    let before = full();
    let after =
        before.apply(update(vec![backend("blue", &["10.0.0.1:8080", "10.0.0.2:8080"])], &[])).unwrap();
    assert_eq!(after.backend(&backend_key("blue")).unwrap().endpoints.len(), 2);
    assert_eq!(before.backend(&backend_key("blue")).unwrap().endpoints.len(), 1, "the old one is as it was");
    let same =
        |key: &DestinationKey| Arc::ptr_eq(before.destination(key).unwrap(), after.destination(key).unwrap());
    assert!(same(&destination_key(A)) && same(&destination_key(B)));
    assert!(Arc::ptr_eq(before.inbound().unwrap(), after.inbound().unwrap()));
    assert!(Arc::ptr_eq(before.trust().unwrap(), after.trust().unwrap()));
    let green = backend_key("green");
    assert!(Arc::ptr_eq(before.backend(&green).unwrap(), after.backend(&green).unwrap()));
}

#[test]
fn equal_content_keeps_its_part_even_when_it_is_sent_again() {
    let before = full();
    let again = Update { nonce: 2, resources: before.resources(), removed: vec![] };
    let copies = again
        .resources
        .into_iter()
        .map(|mut resource| {
            match &mut resource.body {
                Body::Inbound(part) => *part = Arc::new((**part).clone()),
                Body::Trust(part) => *part = Arc::new((**part).clone()),
                Body::Destination(_, part) => *part = Arc::new((**part).clone()),
                Body::Backend(_, part) => *part = Arc::new((**part).clone()),
            }
            resource
        })
        .collect();
    let after = before.apply(update(copies, &[])).unwrap();
    assert!(Arc::ptr_eq(before.inbound().unwrap(), after.inbound().unwrap()));
    assert!(Arc::ptr_eq(before.trust().unwrap(), after.trust().unwrap()));
    for (key, part) in before.destinations() {
        assert!(Arc::ptr_eq(part, after.destination(key).unwrap()), "{key}");
    }
    for (key, part) in before.backends() {
        assert!(Arc::ptr_eq(part, after.backend(key).unwrap()), "{key}");
    }
}

#[test]
fn a_changed_service_keeps_the_rules_that_did_not_change() {
    let before = full();
    let changed = vec![rule("shop/r/0", Some("a+"), &["blue"]), rule("shop/r/1", None, &["green"])];
    let after = before.apply(update(vec![service(A, "2", changed, "blue")], &[])).unwrap();
    let routes = |snapshot: &Snapshot| snapshot.destination(&destination_key(A)).unwrap().routes().to_vec();
    let (old, new) = (routes(&before), routes(&after));
    assert!(Arc::ptr_eq(&old[0], &new[0]) && !Arc::ptr_eq(&old[1], &new[1]));
}

#[test]
fn a_broken_update_is_refused_whole_with_every_field() {
    let before = full();
    let broken = vec![
        backend("blue", &[]),
        service(
            A,
            "2",
            vec![rule("shop/r/0", Some("("), &["blue"]), rule("shop/r/1", Some("["), &["blue"])],
            "blue",
        ),
        service(B, "2", vec![rule("shop/r/0", None, &["blue", "red"])], "grey"),
        backend("blue", &[]),
    ];
    let errors = fields(before.apply(update(broken, &["self", "trust"])));
    let places: Vec<_> = errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(
        places,
        [
            "removed[0]",
            "removed[1]",
            "resources[1].destination.service.routes[0].matches[0].headers[0].regex",
            "resources[1].destination.service.routes[1].matches[0].headers[0].regex",
            "resources[3].key",
            "resources[2].destination.service.backend",
            "resources[2].destination.service.routes[0].backends[1].backend",
        ],
        "{errors:#?}"
    );
    assert_eq!(before.backend(&backend_key("blue")).unwrap().endpoints.len(), 1);
}

#[test]
fn a_backend_goes_only_when_nobody_refers_to_it() {
    let before = full();
    let errors = fields(before.apply(update(vec![], &["backend/shop/green:80"])));
    assert_eq!(errors.len(), 2, "by a service and by a rule: {errors:#?}");
    assert!(
        errors
            .iter()
            .all(|error| error.starts_with("removed[0]: backend/shop/green:80 is still referred to by"))
    );
    let moved = vec![service(A, "2", vec![], "blue"), service(B, "2", vec![], "blue")];
    let after = before.apply(update(moved, &["backend/shop/green:80"])).unwrap();
    assert!(after.backend(&backend_key("green")).is_none());
    let replaced =
        before.apply(update(vec![backend("green", &["10.0.0.9:80"])], &["backend/shop/green:80"])).unwrap();
    assert_eq!(replaced.backend(&backend_key("green")).unwrap().endpoints.len(), 1);
    let gone =
        before.apply(update(vec![], &[A, B, "backend/shop/green:80", "backend/shop/unknown:1"])).unwrap();
    assert_eq!((gone.destinations().count(), gone.backends().count()), (0, 1));
}

#[test]
fn unsubscribing_leaves_backends_to_the_control_plane() {
    let after = full().without(&[destination_key(A)]);
    assert!(
        after.destination(&destination_key(A)).is_none() && after.destination(&destination_key(B)).is_some()
    );
    assert!(after.backend(&backend_key("blue")).is_some());
    let after = after.apply(update(vec![], &["backend/shop/blue:80"])).unwrap();
    assert!(after.backend(&backend_key("blue")).is_none());
}

#[test]
fn a_workload_is_a_backend_of_one() {
    let workload = Workload { endpoint: endpoint("10.0.0.7:9000"), protocol: Protocol::Grpc };
    let body = Body::Destination(
        destination_key("address/10.0.0.7:9000"),
        Arc::new(Destination::Workload(workload)),
    );
    let snapshot = Snapshot::default().apply(update(vec![resource("1", body)], &[])).unwrap();
    let compiled = snapshot.destination(&destination_key("address/10.0.0.7:9000")).unwrap();
    let Target::Workload { backend, protocol: Protocol::Grpc } = &compiled.target else {
        panic!("{compiled:?}")
    };
    assert_eq!(backend.endpoints, [endpoint("10.0.0.7:9000")]);
}

#[test]
fn what_is_held_makes_the_same_snapshot_again() {
    let before = full();
    let held: Vec<_> = before.held().iter().map(|held| format!("{}={}", held.key, held.version)).collect();
    assert_eq!(
        held,
        [
            "self=1",
            "trust=1",
            "address/10.96.0.10:80=1",
            "authority/orders.shop:80=1",
            "backend/shop/blue:80=blue at [\"10.0.0.1:8080\"]",
            "backend/shop/green:80=green at []"
        ]
    );
    let again = Snapshot::default().apply(update(before.resources(), &[])).unwrap();
    assert_eq!(again.resources(), before.resources());
}

#[test]
fn undeclared_ports_are_detected_and_strict() {
    let declared = InboundPort { protocol: Protocol::Http2, mtls: MtlsMode::Permissive, limits: None };
    let ports = [(NonZeroU16::new(8080).unwrap(), declared.clone())].into();
    let spec = Inbound { ports, ..Inbound::default() };
    let body = Body::Inbound(Arc::new(spec));
    let snapshot = Snapshot::default().apply(update(vec![resource("1", body)], &[])).unwrap();
    let inbound = snapshot.inbound().unwrap();
    assert_eq!(inbound.port(8080), declared);
    assert_eq!(
        inbound.port(8081),
        InboundPort { protocol: Protocol::Detect, mtls: MtlsMode::Strict, limits: None }
    );
    assert_eq!(inbound.port(0).mtls, MtlsMode::Strict);
}

#[test]
fn the_dump_shows_everything_under_its_key() {
    let dump = serde_json::to_value(full()).unwrap();
    assert_eq!(dump["trust"]["resource"]["roots"], 1);
    assert_eq!(dump["destinations"][A]["version"], "1");
    assert_eq!(dump["destinations"][A]["resource"]["service"]["routes"][0]["name"], "shop/r/0");
    assert_eq!(
        dump["backends"]["backend/shop/blue:80"]["resource"]["endpoints"][0]["address"],
        "10.0.0.1:8080"
    );
    assert!(dump["inbound"]["resource"]["authorization"].is_array());
}

#[test]
fn a_backend_that_stands_in_has_to_be_there_and_stays() {
    use outrigger_proto::spec::{Fallback, FallbackOn, FallbackTo, Traffic};

    let backed = || {
        let to = FallbackTo::Backend(backend_key("spare"));
        let fallback = Some(Fallback { on: FallbackOn::default(), to });
        let traffic = Arc::new(Traffic { fallback, ..Traffic::default() });
        resource(
            "backed",
            Body::Backend(backend_key("blue"), Arc::new(Backend { endpoints: vec![], traffic })),
        )
    };
    let before = full();
    assert_eq!(
        fields(before.apply(update(vec![backed()], &[]))),
        ["resources[0].backend.traffic.fallback.backend: backend/shop/spare:80 is not there"]
    );
    let after = before.apply(update(vec![backed(), backend("spare", &[])], &[])).unwrap();
    assert_eq!(
        fields(after.apply(update(vec![], &["backend/shop/spare:80"]))),
        ["removed[0]: backend/shop/spare:80 still stands in for backend/shop/blue:80"]
    );
    let alone = after.apply(update(vec![backend("blue", &[])], &["backend/shop/spare:80"])).unwrap();
    assert!(alone.backend(&backend_key("spare")).is_none());
}
