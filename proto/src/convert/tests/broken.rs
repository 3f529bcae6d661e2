//! Each broken field gives its own error, under its own path.

use std::num::NonZeroU16;

use super::super::*;
use crate::{
    limits::{MAX_ENDPOINTS, MAX_ERRORS, MAX_REGEX_BYTES, MAX_TEXT_BYTES},
    spec::*,
};

const INBOUND: usize = 0;
const TRUST: usize = 1;
const SERVICE: usize = 2;
const WORKLOAD: usize = 3;
pub(super) const BACKEND: usize = 4;

pub(super) fn good_service() -> ServicePort {
    ServicePort {
        namespace: "shop".into(),
        name: "orders".into(),
        port: NonZeroU16::MIN,
        protocol: Protocol::Http,
        routes: vec![],
        backend: "shop/orders:80".parse().unwrap(),
    }
}

/// An update in which every field of the contract is set.
pub(super) fn good() -> pb::ConfigureResponse {
    let endpoint = pb::Endpoint {
        address: "10.77.0.3:8080".into(),
        identity: "spiffe://mesh.local/ns/shop/sa/orders".into(),
        zone: "a".into(),
        weight: 1,
        subset: "v1".into(),
        ready_since_ms: 1,
    };
    let route = pb::Route {
        name: "shop/orders/0".into(),
        matches: vec![pb::RouteMatch {
            path: Some(pb::PathMatch { kind: Some(pb::path_match::Kind::Prefix("/api".into())) }),
            headers: vec![
                pb::HeaderMatch { name: "x-a".into(), kind: Some(pb::header_match::Kind::Exact("1".into())) },
                pb::HeaderMatch {
                    name: "x-b".into(),
                    kind: Some(pb::header_match::Kind::Regex("^a+$".into())),
                },
            ],
            method: "GET".into(),
        }],
        backends: vec![pb::WeightedBackend { backend: "backend/shop/orders:80".into(), weight: 1 }],
        request_timeout_ms: 100,
    };
    let service = pb::ServicePort {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 80,
        protocol: pb::Protocol::Http.into(),
        routes: vec![route],
        backend: "backend/shop/orders:80".into(),
    };
    let workload = pb::Workload { endpoint: Some(endpoint.clone()), protocol: pb::Protocol::Tcp.into() };
    let inbound = pb::Inbound {
        ports: vec![pb::InboundPort {
            port: 8080,
            protocol: pb::Protocol::Detect.into(),
            mtls: pb::MtlsMode::Strict.into(),
            limits: None,
        }],
        authorization: vec![pb::AuthorizationPolicy {
            name: "shop/only-web".into(),
            action: pb::Action::Allow.into(),
            rules: vec![pb::AuthorizationRule {
                identities: vec!["spiffe://mesh.local/ns/shop/sa/web".into()],
                namespaces: vec!["shop".into()],
                ports: vec![8080],
            }],
        }],
        egress: pb::EgressPolicy::Allow.into(),
    };
    let backend = pb::Backend {
        endpoints: vec![endpoint],
        traffic: Some(pb::Traffic {
            load_balancer: Some(pb::LoadBalancer {
                algorithm: pb::Algorithm::PeakEwma.into(),
                ..pb::LoadBalancer::default()
            }),
            timeouts: Some(pb::Timeouts { connect_ms: 5_000, ..pb::Timeouts::default() }),
            ..pb::Traffic::default()
        }),
    };
    let trust = pb::Trust { trust_domain: "mesh.local".into(), roots_der: vec![vec![1]] };

    use pb::{destination::Kind, resource::Body as Pb};
    let destination = |kind| Pb::Destination(pb::Destination { kind: Some(kind) });
    let resource =
        |key: &str, body| pb::Resource { key: key.into(), version: version_of(&body), body: Some(body) };
    pb::ConfigureResponse {
        nonce: 7,
        resources: vec![
            resource("self", Pb::Inbound(inbound)),
            resource("trust", Pb::Trust(trust)),
            resource("address/10.96.0.10:80", destination(Kind::Service(service))),
            resource("address/10.77.0.3:8080", destination(Kind::Workload(workload))),
            resource("backend/shop/orders:80", Pb::Backend(backend)),
        ],
        removed: vec!["backend/shop/old:80".into()],
    }
}

pub(super) type Pb = pb::ConfigureResponse;

pub(super) fn inbound_of(from: &mut Pb) -> &mut pb::Inbound {
    let Some(pb::resource::Body::Inbound(body)) = &mut from.resources[INBOUND].body else {
        panic!("inbound")
    };
    body
}

fn trust_of(from: &mut Pb) -> &mut pb::Trust {
    let Some(pb::resource::Body::Trust(body)) = &mut from.resources[TRUST].body else { panic!("trust") };
    body
}

fn destination_of(from: &mut Pb, index: usize) -> &mut pb::Destination {
    let Some(pb::resource::Body::Destination(body)) = &mut from.resources[index].body else {
        panic!("destination")
    };
    body
}

pub(super) fn service_of(from: &mut Pb) -> &mut pb::ServicePort {
    let Some(pb::destination::Kind::Service(body)) = &mut destination_of(from, SERVICE).kind else {
        panic!("service")
    };
    body
}

fn route_of(from: &mut Pb) -> &mut pb::Route {
    &mut service_of(from).routes[0]
}

fn match_of(from: &mut Pb) -> &mut pb::RouteMatch {
    &mut route_of(from).matches[0]
}

fn workload_of(from: &mut Pb) -> &mut pb::Workload {
    let Some(pb::destination::Kind::Workload(body)) = &mut destination_of(from, WORKLOAD).kind else {
        panic!("workload")
    };
    body
}

pub(super) fn backend_of(from: &mut Pb) -> &mut pb::Backend {
    let Some(pb::resource::Body::Backend(body)) = &mut from.resources[BACKEND].body else {
        panic!("backend")
    };
    body
}

fn timeouts_of(from: &mut Pb) -> &mut pb::Timeouts {
    backend_of(from).traffic.as_mut().unwrap().timeouts.as_mut().unwrap()
}

fn path_of(from: &mut Pb, kind: pb::path_match::Kind) {
    match_of(from).path = Some(pb::PathMatch { kind: Some(kind) });
}

/// Breaks one thing; wants exactly one error, at `field`, whose reason contains `reason`.
pub(super) fn check(field: &str, reason: &str, break_it: impl FnOnce(&mut Pb)) {
    let mut from = good();
    break_it(&mut from);
    let errors = update(from).expect_err(field).0;
    assert_eq!(errors.len(), 1, "{field}: {errors:?}");
    assert_eq!(errors[0].field, field, "{errors:?}");
    assert!(errors[0].reason.contains(reason), "{errors:?}");
}

#[test]
fn the_unbroken_update_is_taken() {
    let update = update(good()).unwrap();
    assert_eq!((update.nonce, update.resources.len(), update.removed.len()), (7, 5, 1));
}

#[test]
fn every_broken_resource_gives_its_own_error() {
    let long = "x".repeat(MAX_TEXT_BYTES + 1);
    check("resources[0].key", "unknown kind", |u| u.resources[0].key = "selfish".into());
    check("resources[0].version", "1 to 128", |u| u.resources[0].version.clear());
    check("resources[0].version", "1 to 128", |u| u.resources[0].version = "x".repeat(129));
    check("resources[4].key", "65537 bytes", |u| u.resources[4].key = long.clone());
    check("resources[1].body", "missing", |u| u.resources[1].body = None);
    check("resources[4].body", "does not name a resource of kind backend", |u| {
        u.resources[4].key = "address/10.0.0.9:1".into();
    });
    check("resources[0].body", "key address/10.0.0.9:1 does not", |u| {
        u.resources[0].key = "address/10.0.0.9:1".into();
    });
    check("resources[1].body", "kind trust", |u| u.resources[1].key = "backend/a/b:1".into());
    check("resources[2].body", "kind destination", |u| u.resources[2].key = "backend/a/b:1".into());
    check("resources[5].key", "twice", |u| u.resources.push(u.resources[0].clone()));
    check("resources[5].key", "twice", |u| {
        // Two spellings of one key.
        u.resources.push(pb::Resource {
            key: "address/[::ffff:10.77.0.3]:8080".into(),
            ..u.resources[WORKLOAD].clone()
        });
    });
    check("resources", "at most 65536", |u| u.resources = vec![pb::Resource::default(); 65_537]);
    check("removed[0]", "unknown kind", |u| u.removed[0] = "x".into());
    check("removed[0]", "self can be replaced but not removed", |u| u.removed[0] = "self".into());
    check("removed[0]", "trust can be replaced but not removed", |u| u.removed[0] = "trust".into());
    check("removed[0]", "twice", |u| u.removed[0] = "backend/shop/orders:80".into());
    check("removed[1]", "twice", |u| u.removed.push(u.removed[0].clone()));
    check("removed", "at most 65536", |u| u.removed = vec![String::new(); 65_537]);
}

#[test]
fn every_broken_trust_gives_its_own_error() {
    check("resources[1].trust.trust_domain", "trust domain is empty", |u| trust_of(u).trust_domain.clear());
    check("resources[1].trust.roots_der", "nobody", |u| trust_of(u).roots_der.clear());
    check("resources[1].trust.roots_der", "at most 64", |u| trust_of(u).roots_der = vec![vec![1]; 65]);
    check("resources[1].trust.roots_der[0]", "empty", |u| trust_of(u).roots_der[0].clear());
    check("resources[1].trust.roots_der[0]", "65537 bytes", |u| trust_of(u).roots_der[0] = vec![0; 65_537]);
}

#[test]
fn every_broken_inbound_gives_its_own_error() {
    let policy =
        |u: &mut Pb, change: fn(&mut pb::AuthorizationPolicy)| change(&mut inbound_of(u).authorization[0]);
    let rule = |u: &mut Pb, change: fn(&mut pb::AuthorizationRule)| {
        change(&mut inbound_of(u).authorization[0].rules[0]);
    };
    check("resources[0].inbound.ports[0].port", "0 is not a port", |u| inbound_of(u).ports[0].port = 0);
    check("resources[0].inbound.ports[0].port", "65536 is not", |u| inbound_of(u).ports[0].port = 65_536);
    check("resources[0].inbound.ports[0].protocol", "missing", |u| inbound_of(u).ports[0].protocol = 0);
    check("resources[0].inbound.ports[0].protocol", "99 is unknown", |u| {
        inbound_of(u).ports[0].protocol = 99;
    });
    check("resources[0].inbound.ports[0].mtls", "missing", |u| inbound_of(u).ports[0].mtls = 0);
    check("resources[0].inbound.ports[0].mtls", "unknown", |u| inbound_of(u).ports[0].mtls = -1);
    check("resources[0].inbound.ports[1].port", "8080 is listed twice", |u| {
        let twice = inbound_of(u).ports[0].clone();
        inbound_of(u).ports.push(twice);
    });
    check("resources[0].inbound.egress", "missing", |u| inbound_of(u).egress = 0);
    check("resources[0].inbound.egress", "unknown", |u| inbound_of(u).egress = 9);
    check("resources[0].inbound.authorization[0].name", "empty", |u| policy(u, |p| p.name.clear()));
    check("resources[0].inbound.authorization[0].name", "control", |u| policy(u, |p| p.name = "a\nb".into()));
    check("resources[0].inbound.authorization[0].action", "missing", |u| policy(u, |p| p.action = 0));
    check("resources[0].inbound.authorization[0].action", "unknown", |u| policy(u, |p| p.action = 4));
    check("resources[0].inbound.authorization[0].rules", "at most", |u| {
        policy(u, |p| p.rules = vec![Default::default(); 4_097]);
    });
    check("resources[0].inbound.authorization[0].rules[0].identities[0]", "spiffe://", |u| {
        rule(u, |r| r.identities[0] = "web".into());
    });
    check("resources[0].inbound.authorization[0].rules[0].namespaces[0]", "not a name", |u| {
        rule(u, |r| r.namespaces[0].clear());
    });
    check("resources[0].inbound.authorization[0].rules[0].ports[0]", "0 is not a port", |u| {
        rule(u, |r| r.ports[0] = 0);
    });
    check("resources[0].inbound.authorization", "at most", |u| {
        let policy = inbound_of(u).authorization[0].clone();
        inbound_of(u).authorization = vec![policy; 4_097];
    });
}

#[test]
fn every_broken_destination_gives_its_own_error() {
    use pb::path_match::Kind::{Exact, Prefix};

    check("resources[2].destination.kind", "missing", |u| destination_of(u, SERVICE).kind = None);
    check("resources[2].destination.service.namespace", "not a name", |u| {
        service_of(u).namespace = "a/b".into();
    });
    check("resources[2].destination.service.name", "not a name", |u| service_of(u).name.clear());
    check("resources[2].destination.service.name", "not a name", |u| service_of(u).name = "x".repeat(254));
    check("resources[2].destination.service.name", "control", |u| service_of(u).name = "x\u{1b}".into());
    check("resources[2].destination.service.port", "not a port", |u| service_of(u).port = 0);
    check("resources[2].destination.service.protocol", "missing", |u| service_of(u).protocol = 0);
    check("resources[2].destination.service.backend", "unknown kind", |u| {
        service_of(u).backend = "shop/orders:80".into();
    });
    check("resources[2].destination.service.backend", "not the key of a backend", |u| {
        service_of(u).backend = "self".into();
    });
    check("resources[2].destination.service.routes", "at most 4096", |u| {
        service_of(u).routes = vec![Default::default(); 4_097];
    });
    check("resources[2].destination.service.routes[0].name", "empty", |u| route_of(u).name.clear());
    check("resources[2].destination.service.routes[0].name", "bytes", |u| {
        route_of(u).name = "x".repeat(65_537);
    });
    check("resources[2].destination.service.routes[0].backends", "needs a backend", |u| {
        route_of(u).backends.clear();
    });
    check("resources[2].destination.service.routes[0].backends[0].backend", "not NAMESPACE", |u| {
        route_of(u).backends[0].backend = "backend/x".into();
    });
    check("resources[2].destination.service.routes[0].backends[0].weight", "is 0", |u| {
        route_of(u).backends[0].weight = 0;
    });
    check("resources[2].destination.service.routes[0].request_timeout_ms", "longer than 366 days", |u| {
        route_of(u).request_timeout_ms = u64::MAX;
    });
    check("resources[2].destination.service.routes[0].matches", "at most", |u| {
        route_of(u).matches = vec![Default::default(); 257];
    });
    check("resources[2].destination.service.routes[0].matches[0].path.kind", "missing", |u| {
        match_of(u).path = Some(pb::PathMatch { kind: None });
    });
    check("resources[2].destination.service.routes[0].matches[0].path.exact", "begin with /", |u| {
        path_of(u, Exact("api".into()));
    });
    check("resources[2].destination.service.routes[0].matches[0].path.exact", "no path has", |u| {
        path_of(u, Exact("/a?b".into()));
    });
    check("resources[2].destination.service.routes[0].matches[0].path.prefix", "begin with /", |u| {
        path_of(u, Prefix(String::new()));
    });
    check("resources[2].destination.service.routes[0].matches[0].path.prefix", "ends with /", |u| {
        path_of(u, Prefix("/a/".into()));
    });
    check("resources[2].destination.service.routes[0].matches[0].method", "method", |u| {
        match_of(u).method = "G T".into();
    });
    check("resources[2].destination.service.routes[0].matches[0].headers", "at most", |u| {
        match_of(u).headers = vec![Default::default(); 65];
    });
    check("resources[2].destination.service.routes[0].matches[0].headers[0].name", "header name", |u| {
        match_of(u).headers[0].name = "a b".into();
    });
    check("resources[2].destination.service.routes[0].matches[0].headers[0].kind", "missing", |u| {
        match_of(u).headers[0].kind = None;
    });
    check("resources[2].destination.service.routes[0].matches[0].headers[0].exact", "no header value", |u| {
        match_of(u).headers[0].kind = Some(pb::header_match::Kind::Exact("a\r\nb".into()));
    });
    check("resources[2].destination.service.routes[0].matches[0].headers[1].regex", "empty", |u| {
        match_of(u).headers[1].kind = Some(pb::header_match::Kind::Regex(String::new()));
    });
    check("resources[2].destination.service.routes[0].matches[0].headers[1].regex", "1025 bytes", |u| {
        match_of(u).headers[1].kind = Some(pb::header_match::Kind::Regex("a".repeat(MAX_REGEX_BYTES + 1)));
    });
    check("resources[3].destination.workload.endpoint", "missing", |u| workload_of(u).endpoint = None);
    check("resources[3].destination.workload.protocol", "missing", |u| workload_of(u).protocol = 0);
    check("resources[3].destination.workload.endpoint.weight", "is 0", |u| {
        workload_of(u).endpoint.as_mut().unwrap().weight = 0;
    });
}

#[test]
fn every_broken_backend_gives_its_own_error() {
    let endpoint = |u: &mut Pb, change: fn(&mut pb::Endpoint)| change(&mut backend_of(u).endpoints[0]);
    let field = "resources[4].backend.endpoints[0].address";
    check(field, "invalid socket address", |u| endpoint(u, |e| e.address = "orders:80".into()));
    check(field, "cannot be dialled", |u| endpoint(u, |e| e.address = "10.0.0.1:0".into()));
    check(field, "cannot be dialled", |u| endpoint(u, |e| e.address = "0.0.0.0:80".into()));
    check(field, "cannot be dialled", |u| endpoint(u, |e| e.address = "[ff02::1]:80".into()));
    check("resources[4].backend.endpoints[0].identity", "spiffe://", |u| endpoint(u, |e| e.identity.clear()));
    check("resources[4].backend.endpoints[0].zone", "bytes", |u| {
        endpoint(u, |e| e.zone = "z".repeat(65_537));
    });
    check("resources[4].backend.endpoints[0].weight", "is 0", |u| endpoint(u, |e| e.weight = 0));
    check("resources[4].backend.endpoints[1].address", "twice", |u| {
        let twice = backend_of(u).endpoints[0].clone();
        backend_of(u).endpoints.push(twice);
    });
    check("resources[4].backend.endpoints", "at most", |u| {
        backend_of(u).endpoints = vec![pb::Endpoint::default(); MAX_ENDPOINTS + 1];
    });
    check("resources[4].backend.endpoints[0].subset", "bytes", |u| {
        endpoint(u, |e| e.subset = "z".repeat(65_537));
    });
    check("resources[4].backend.traffic.timeouts.connect_ms", "is 0", |u| timeouts_of(u).connect_ms = 0);
    check("resources[4].backend.traffic.timeouts.connect_ms", "longer", |u| {
        timeouts_of(u).connect_ms = u64::MAX;
    });
    check("resources[4].backend.traffic.timeouts.request_ms", "longer", |u| {
        timeouts_of(u).request_ms = u64::MAX;
    });
    check("resources[4].backend.traffic.timeouts.idle_ms", "longer", |u| timeouts_of(u).idle_ms = u64::MAX);
}

#[test]
fn every_broken_hello_gives_its_own_error() {
    let good = || pb::Hello {
        version: "0.1.0".into(),
        registration: "or1.x.y".into(),
        instance: "a1".into(),
        addresses: vec!["10.77.0.2".into()],
        zone: "a".into(),
        serves: vec![pb::Serve { mesh_port: 1, application_port: 2 }],
        held: vec![pb::Held { key: "self".into(), version: "v".into() }],
        state: None,
        presence_only: false,
    };
    assert_eq!(hello(good()).unwrap().state, State::default());
    let check = |field: &str, reason: &str, break_it: fn(&mut pb::Hello)| {
        let mut from = good();
        break_it(&mut from);
        let errors = hello(from).expect_err(field).0;
        assert_eq!((errors.len(), errors[0].field.as_str()), (1, field), "{errors:?}");
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    };
    check("version", "empty", |h| h.version.clear());
    check("registration", "empty", |h| h.registration.clear());
    check("instance", "empty", |h| h.instance.clear());
    check("instance", "at most 128", |h| h.instance = "x".repeat(129));
    check("addresses[0]", "invalid IP", |h| h.addresses[0] = "10.0.0.1:80".into());
    check("addresses[0]", "not the address of a workload", |h| h.addresses[0] = "::".into());
    check("addresses[1]", "twice", |h| h.addresses.push("::ffff:10.77.0.2".into()));
    check("addresses", "at most", |h| h.addresses = vec![String::new(); 257]);
    check("serves[0].mesh_port", "not a port", |h| h.serves[0].mesh_port = 0);
    check("serves[0].application_port", "not a port", |h| h.serves[0].application_port = 65_536);
    check("held[0].key", "unknown kind", |h| h.held[0].key = "x".into());
    check("held[0].version", "empty", |h| h.held[0].version.clear());
    check("held", "at most", |h| h.held = vec![Default::default(); 65_537]);
}

#[test]
fn keys_name_the_bad_ones() {
    assert_eq!(keys(vec!["trust".into(), "authority/a:1".into()]).unwrap().len(), 2);
    let errors = keys(vec!["trust".into(), "authority/a".into(), "?".into()]).unwrap_err().0;
    assert_eq!(errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), ["keys[1]", "keys[2]"]);
}

#[test]
fn all_errors_of_an_update_are_told_at_once() {
    let mut from = good();
    inbound_of(&mut from).egress = 0;
    from.resources[TRUST].key = "nonsense".into();
    trust_of(&mut from).roots_der.clear();
    route_of(&mut from).name.clear();
    backend_of(&mut from).endpoints[0].address = "nowhere".into();
    backend_of(&mut from).endpoints[0].weight = 0;
    from.removed[0] = "self".into();
    let error = update(from).unwrap_err();
    assert_eq!(
        error.0.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(),
        [
            "resources[0].inbound.egress",
            "resources[1].key",
            "resources[1].trust.roots_der",
            "resources[2].destination.service.routes[0].name",
            "resources[4].backend.endpoints[0].address",
            "resources[4].backend.endpoints[0].weight",
            "removed[0]",
        ]
    );
    assert!(
        error.to_string().starts_with("resources[0].inbound.egress: is missing; resources[1].key: "),
        "{error}"
    );
}

#[test]
fn a_flood_of_errors_is_counted_not_listed() {
    let mut from = good();
    from.resources = vec![pb::Resource::default(); 1_000];
    let errors = update(from).unwrap_err().0;
    // Each has a bad key, no version and no body.
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS].reason, format!("and {} more errors", 3_000 - MAX_ERRORS));
}

#[test]
fn the_descriptors_name_both_services() {
    let text = String::from_utf8_lossy(pb::DESCRIPTORS);
    assert!(text.contains("Configure") && text.contains("Sign") && text.contains("outrigger.v1"));
}
