//! Any legal value of the contract's types.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32, NonZeroU64},
    sync::Arc,
    time::Duration,
};

use outrigger_certs::{SpiffeId, TrustDomain};
use proptest::{collection::vec, option, prelude::*, sample::select};

use super::policies::{port_limits, traffic};
use crate::{limits::MAX_TIMEOUT, spec::*};

pub(super) fn text() -> impl Strategy<Value = Arc<str>> {
    "[a-z][a-z0-9-]{0,12}".prop_map(Arc::from)
}

pub(super) fn port() -> impl Strategy<Value = NonZeroU16> {
    any::<NonZeroU16>()
}

pub(super) fn address() -> impl Strategy<Value = SocketAddr> {
    let legal = |ip: &IpAddr| !ip.is_unspecified() && !ip.is_multicast();
    (any::<IpAddr>().prop_map(|ip| ip.to_canonical()).prop_filter("dialled", legal), port())
        .prop_map(|(ip, port)| SocketAddr::new(ip, port.get()))
}

pub(super) fn identity() -> impl Strategy<Value = SpiffeId> {
    (text(), text()).prop_map(|(namespace, account)| {
        SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), &namespace, &account).unwrap()
    })
}

pub(super) fn timeout() -> impl Strategy<Value = Option<Duration>> {
    option::of((1..MAX_TIMEOUT.as_millis() as u64).prop_map(Duration::from_millis))
}

pub(super) fn weight() -> impl Strategy<Value = NonZeroU32> {
    any::<NonZeroU32>()
}

pub(super) fn protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::*;
    select(vec![Detect, Http, Http2, Grpc, Tcp, Tls])
}

pub(super) fn since() -> impl Strategy<Value = Option<NonZeroU64>> {
    option::of(any::<NonZeroU64>())
}

pub(super) fn endpoint() -> BoxedStrategy<Endpoint> {
    let label = || prop_oneof![Just(Arc::from("")), text()];
    (address(), identity(), label(), weight(), label(), since())
        .prop_map(|(address, identity, zone, weight, subset, ready_since)| Endpoint {
            address,
            identity,
            zone,
            weight,
            subset,
            ready_since,
        })
        .boxed()
}

pub(super) fn backend() -> BoxedStrategy<Backend> {
    (vec(endpoint(), 0..6), traffic())
        .prop_map(|(mut endpoints, traffic)| {
            endpoints.sort_by_key(|endpoint| endpoint.address);
            endpoints.dedup_by_key(|endpoint| endpoint.address);
            Backend { endpoints, traffic: Arc::new(traffic) }
        })
        .boxed()
}

pub(super) fn backend_key() -> impl Strategy<Value = BackendKey> {
    (text(), text(), port()).prop_map(|(namespace, name, port)| BackendKey { namespace, name, port })
}

pub(super) fn destination_key() -> impl Strategy<Value = DestinationKey> {
    prop_oneof![
        address().prop_map(DestinationKey::Address),
        (text(), port())
            .prop_map(|(host, port)| DestinationKey::Authority(Authority::new(&host, port).unwrap())),
    ]
}

pub(super) fn route_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        "/[a-z/]{0,8}".prop_map(|path| PathMatch::Exact(path.into())),
        "(/[a-z]{1,5}){1,3}|/".prop_map(|path| PathMatch::Prefix(path.into())),
    ];
    let value = prop_oneof![
        "[ -~]{0,9}".prop_map(|value| HeaderValueMatch::Exact(value.into())),
        ".{1,9}".prop_map(|source| HeaderValueMatch::Regex(source.into())),
    ];
    let header = ("[a-z][a-z-]{0,9}", value)
        .prop_map(|(name, value)| HeaderMatch { name: name.parse().unwrap(), value });
    (option::of(path), vec(header, 0..3), option::of("[A-Z]{1,7}")).prop_map(|(path, headers, method)| {
        RouteMatch { path, headers, method: method.map(|m| m.parse().unwrap()) }
    })
}

pub(super) fn route() -> impl Strategy<Value = Route> {
    let weighted =
        (backend_key(), weight()).prop_map(|(backend, weight)| WeightedBackend { backend, weight });
    (text(), vec(route_match(), 0..3), vec(weighted, 1..4), timeout()).prop_map(
        |(name, matches, backends, request_timeout)| Route { name, matches, backends, request_timeout },
    )
}

pub(super) fn destination() -> BoxedStrategy<Destination> {
    let service = (text(), text(), port(), protocol(), vec(route().prop_map(Arc::new), 0..4), backend_key())
        .prop_map(|(namespace, name, port, protocol, routes, backend)| {
            Destination::Service(ServicePort { namespace, name, port, protocol, routes, backend })
        });
    let workload = (endpoint(), protocol())
        .prop_map(|(endpoint, protocol)| Destination::Workload(Workload { endpoint, protocol }));
    prop_oneof![service, workload, Just(Destination::External)].boxed()
}

pub(super) fn inbound() -> BoxedStrategy<Inbound> {
    let mtls = select(vec![MtlsMode::Strict, MtlsMode::Permissive]);
    let inbound_port = (protocol(), mtls, option::of(port_limits().prop_map(Arc::new)))
        .prop_map(|(protocol, mtls, limits)| InboundPort { protocol, mtls, limits });
    let rule = (vec(identity(), 0..3), vec(text(), 0..3), vec(port(), 0..3))
        .prop_map(|(identities, namespaces, ports)| AuthorizationRule { identities, namespaces, ports });
    let action = select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let policy = (text(), action, vec(rule, 0..3)).prop_map(|(name, action, rules)| AuthorizationPolicy {
        name,
        action,
        rules,
    });
    let egress = select(vec![EgressPolicy::Allow, EgressPolicy::RegisteredOnly]);
    (proptest::collection::btree_map(port(), inbound_port, 0..4), vec(policy, 0..4), egress)
        .prop_map(|(ports, authorization, egress)| Inbound { ports, authorization, egress })
        .boxed()
}

pub(super) fn body() -> BoxedStrategy<Body> {
    let trust = vec(vec(any::<u8>(), 1..20), 1..3)
        .prop_map(|roots| Trust { trust_domain: TrustDomain::parse("mesh.local").unwrap(), roots });
    prop_oneof![
        1 => inbound().prop_map(|body| Body::Inbound(Arc::new(body))),
        1 => trust.prop_map(|body| Body::Trust(Arc::new(body))),
        3 => (destination_key(), destination()).prop_map(|(key, body)| Body::Destination(key, Arc::new(body))),
        3 => (backend_key(), backend()).prop_filter("not its own backup", |(key, it)| it.traffic.backup() != Some(key)).prop_map(|(key, body)| Body::Backend(key, Arc::new(body))),
    ].boxed()
}

pub(super) fn update_strategy() -> impl Strategy<Value = Update> {
    let removed =
        prop_oneof![destination_key().prop_map(Key::Destination), backend_key().prop_map(Key::Backend)];
    (any::<u64>(), vec((text(), body()), 0..8), vec(removed, 0..4)).prop_map(
        |(nonce, bodies, mut removed)| {
            let mut seen = HashSet::new();
            let resources: Vec<_> = bodies
                .into_iter()
                .filter(|(_, body)| seen.insert(body.key()))
                .map(|(version, body)| Resource { version, body })
                .collect();
            removed.retain(|key| seen.insert(key.clone()));
            Update { nonce, resources, removed }
        },
    )
}

pub(super) fn hello_strategy() -> impl Strategy<Value = Hello> {
    let state = (any::<bool>(), any::<bool>(), since()).prop_map(|(ready, draining, since)| State {
        ready,
        draining,
        ready_since: since.filter(|_| ready),
    });
    let serve =
        (port(), port()).prop_map(|(mesh_port, application_port)| Serve { mesh_port, application_port });
    let held = (body().prop_map(|body| body.key()), text()).prop_map(|(key, version)| Held { key, version });
    let addresses = proptest::collection::hash_set(address().prop_map(|address| address.ip()), 0..3);
    (text(), text(), text(), addresses, text(), vec(serve, 0..3), vec(held, 0..4), state, any::<bool>())
        .prop_map(|(version, registration, instance, addresses, zone, serves, held, state, presence_only)| {
            Hello {
                version: version.to_string(),
                registration: registration.to_string(),
                instance: instance.to_string(),
                addresses: addresses.into_iter().collect(),
                zone,
                serves,
                held,
                state,
                presence_only,
            }
        })
}
