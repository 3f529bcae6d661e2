use std::time::Duration;

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{
    Backend, BackendKey, Destination, Endpoint, HeaderMatch, HeaderValueMatch, Inbound, Protocol, Route,
    RouteMatch, ServicePort, Trust, WeightedBackend,
};
use proptest::prelude::*;

use super::{super::interest::UNUSED, *};
use crate::sync::Discovery;

// === what is sent ===

fn address(port: u16) -> DestinationKey {
    DestinationKey::address(([10, 0, 0, 1], port).into())
}

fn backend_key(name: &str) -> BackendKey {
    format!("shop/{name}:80").parse().unwrap()
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        address: ([10, 77, 0, 3], port).into(),
        identity: SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(),
        zone: "".into(),
        subset: "".into(),
        ready_since: None,
        weight: std::num::NonZeroU32::MIN,
    }
}

fn backend(name: &str, port: u16) -> Body {
    Body::Backend(
        backend_key(name),
        Arc::new(Backend { endpoints: vec![endpoint(port)], ..Backend::default() }),
    )
}

fn service(key: DestinationKey, name: &str) -> Body {
    let service = ServicePort {
        namespace: "shop".into(),
        name: name.into(),
        port: std::num::NonZeroU16::MIN,
        protocol: Protocol::Http,
        routes: vec![],
        backend: backend_key(name),
    };
    Body::Destination(key, Arc::new(Destination::Service(service)))
}

/// A service with a route whose regular expression does not compile: what only the snapshot can find out.
fn uncompilable(key: DestinationKey, name: &str) -> Body {
    let Body::Destination(key, body) = service(key, name) else { unreachable!() };
    let Destination::Service(mut service) = (*body).clone() else { unreachable!() };
    let value = HeaderValueMatch::Regex("(".into());
    let headers = vec![HeaderMatch { name: "x-a".parse().unwrap(), value }];
    service.routes = vec![Arc::new(Route {
        name: "shop/bad/0".into(),
        matches: vec![RouteMatch { headers, ..RouteMatch::default() }],
        backends: vec![WeightedBackend { backend: backend_key(name), weight: std::num::NonZeroU32::MIN }],
        request_timeout: None,
    })];
    Body::Destination(key, Arc::new(Destination::Service(service)))
}

fn inbound() -> Body {
    Body::Inbound(Arc::new(Inbound::default()))
}

fn update(nonce: u64, bodies: Vec<Body>, removed: Vec<Key>) -> pb::ConfigureResponse {
    let resources = bodies.iter().map(convert::resource).collect();
    pb::ConfigureResponse { nonce, resources, removed: removed.iter().map(Key::to_string).collect() }
}

// === what comes of it ===

fn session(links: usize, now: Instant) -> Session {
    let trust_domain = TrustDomain::parse("mesh.local").unwrap();
    Session::new(trust_domain, Arc::new(Snapshot::default()), [], State::default(), links, now)
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

/// Events as short texts: what the tables below compare.
fn told(session: &mut Session) -> Vec<String> {
    let keys = |keys: &[Key]| keys.iter().map(Key::to_string).collect::<Vec<_>>().join(",");
    let describe = |event: Event| match event {
        Event::Open { link, open } if open.presence_only => {
            assert!(open.held.is_empty() && open.subscribe.is_empty());
            format!("open {link} presence")
        }
        Event::Open { link, open } => {
            let mut held: Vec<_> = open.held.iter().map(|held| held.key.to_string()).collect();
            held.sort();
            let mut subscribe: Vec<_> = open.subscribe.iter().map(Key::to_string).collect();
            subscribe.sort();
            format!("open {link} held[{}] subscribe[{}]", held.join(","), subscribe.join(","))
        }
        Event::Send { link, message } => match message {
            Message::Subscribe(wanted) => format!("{link}: subscribe {}", keys(&wanted)),
            Message::Unsubscribe(unwanted) => format!("{link}: unsubscribe {}", keys(&unwanted)),
            Message::Ack(nonce) => format!("{link}: ack {nonce}"),
            Message::Nack(nonce, errors) => {
                let fields: Vec<_> = errors.into_iter().map(|error| error.field).collect();
                format!("{link}: nack {nonce} {}", fields.join(","))
            }
            Message::State(state) => {
                format!("{link}: state {}{}", u8::from(state.ready), u8::from(state.draining))
            }
        },
        Event::Forget(forgotten) => format!("forget {}", forgotten.len()),
        Event::Trust(bundle) => format!("trust {}", bundle.roots().len()),
        Event::Publish(_) => "publish".to_owned(),
    };
    events(session).into_iter().map(describe).collect()
}

/// A session whose only control plane is active, with its first words spoken.
fn connected(now: Instant) -> Session {
    let mut session = session(1, now);
    session.on_connected(0);
    told(&mut session);
    session
}

fn follow(session: &mut Session, ports: &[u16], now: Instant) {
    session.on_wanted(ports.iter().copied().map(address).collect(), now);
    told(session);
}

fn no_uses() -> Uses {
    Discovery::new().take_uses()
}

#[test]
fn the_first_to_connect_is_active_and_the_others_stand_by() {
    let mut session = session(3, Instant::now());
    session.on_connected(1);
    session.on_connected(0);
    session.on_connected(2);
    assert_eq!(
        told(&mut session),
        ["open 1 held[] subscribe[self,trust]", "open 0 presence", "open 2 presence"]
    );
    assert_eq!(session.active(), Some(1));
}

#[test]
fn when_the_active_one_is_lost_the_next_in_the_list_takes_over_with_what_is_held() {
    let now = Instant::now();
    let mut session = session(3, now);
    for link in [1, 0, 2] {
        session.on_connected(link);
    }
    follow(&mut session, &[80], now);
    session.on_updates(
        1,
        vec![update(1, vec![inbound(), service(address(80), "orders"), backend("orders", 1)], vec![])],
    );
    assert_eq!(told(&mut session), ["publish", "1: ack 1"]);

    session.on_lost(1);
    assert_eq!(
        told(&mut session),
        [
            "open 0 held[address/10.0.0.1:80,backend/shop/orders:80,self] subscribe[address/10.0.0.1:80,self,trust]"
        ]
    );
    session.on_connected(1);
    assert_eq!(
        told(&mut session),
        ["open 1 presence"],
        "one that comes back does not push the active one out"
    );
    session.on_lost(2);
    assert_eq!(told(&mut session), [""; 0], "a stand-by that is lost changes nothing");
    session.on_lost(0);
    session.on_lost(1);
    assert_eq!(session.active(), None);
}

#[test]
fn what_was_wanted_while_nobody_was_there_is_asked_for_at_the_next_greeting() {
    let now = Instant::now();
    let mut session = session(1, now);
    session.on_wanted(vec![address(80)], now);
    assert_eq!(told(&mut session), [""; 0]);
    session.on_connected(0);
    assert_eq!(told(&mut session), ["open 0 held[] subscribe[address/10.0.0.1:80,self,trust]"]);
    session.on_wanted(vec![address(80), address(81)], now);
    assert_eq!(told(&mut session), ["0: subscribe address/10.0.0.1:81"]);
}

#[test]
fn what_was_on_disk_is_followed_and_held() {
    let now = Instant::now();
    let on_disk =
        convert::update(update(0, vec![service(address(80), "orders"), backend("orders", 1)], vec![]))
            .unwrap();
    let on_disk = Snapshot::default().apply(on_disk).unwrap();
    let trust_domain = TrustDomain::parse("mesh.local").unwrap();
    let mut session = Session::new(trust_domain, Arc::new(on_disk), [address(99)], State::default(), 1, now);
    session.on_connected(0);
    assert_eq!(
        told(&mut session),
        ["open 0 held[address/10.0.0.1:80,backend/shop/orders:80] \
          subscribe[address/10.0.0.1:80,address/10.0.0.1:99,self,trust]"]
    );
}

#[test]
fn the_state_goes_to_every_control_plane() {
    let mut session = session(3, Instant::now());
    session.on_connected(0);
    session.on_connected(2);
    told(&mut session);
    session.on_state(State { ready: true, draining: false, ready_since: None });
    session.on_state(State { ready: true, draining: false, ready_since: None });
    assert_eq!(told(&mut session), ["0: state 10", "2: state 10"]);
    session.on_state(State { ready: false, draining: true, ready_since: None });
    session.on_connected(1);
    assert_eq!(told(&mut session), ["0: state 01", "2: state 01", "open 1 presence"]);
}

#[test]
fn a_refused_update_changes_nothing_and_names_the_field() {
    let now = Instant::now();
    let mut session = connected(now);
    follow(&mut session, &[80], now);
    session.on_updates(
        0,
        vec![update(1, vec![inbound(), service(address(80), "orders"), backend("orders", 1)], vec![])],
    );
    told(&mut session);
    let before = Arc::clone(&session.snapshot);

    // Refused by the conversion; the good part of it is not taken either.
    let mut bad = update(2, vec![backend("orders", 2), service(address(80), "orders")], vec![]);
    bad.resources[1].key = "address/10.0.0.1".into();
    session.on_updates(0, vec![bad]);
    assert_eq!(told(&mut session), ["0: nack 2 resources[1].key"]);
    // Refused by the snapshot.
    session.on_updates(
        0,
        vec![update(3, vec![backend("orders", 2), uncompilable(address(80), "orders")], vec![])],
    );
    assert_eq!(
        told(&mut session),
        ["0: nack 3 resources[1].destination.service.routes[0].matches[0].headers[0].regex"]
    );
    assert!(Arc::ptr_eq(&before, &session.snapshot));
    // The next good one is taken.
    session.on_updates(0, vec![update(4, vec![backend("orders", 2)], vec![])]);
    assert_eq!(told(&mut session), ["publish", "0: ack 4"]);
    assert_eq!(session.snapshot.backend(&backend_key("orders")).unwrap().endpoints, [endpoint(2)]);
}

#[test]
fn several_updates_are_one_step_and_the_newest_wins() {
    let now = Instant::now();
    let mut session = connected(now);
    follow(&mut session, &[80, 81], now);
    session.on_updates(
        0,
        vec![
            update(1, vec![inbound(), service(address(80), "orders"), backend("orders", 1)], vec![]),
            update(2, vec![backend("orders", 2), service(address(81), "carts"), backend("carts", 1)], vec![]),
            update(
                3,
                vec![backend("orders", 3)],
                vec![Key::Destination(address(81)), Key::Backend(backend_key("carts"))],
            ),
        ],
    );
    assert_eq!(told(&mut session), ["publish", "0: ack 1", "0: ack 2", "0: ack 3"]);
    assert_eq!(session.snapshot.backend(&backend_key("orders")).unwrap().endpoints, [endpoint(3)]);
    assert!(session.snapshot.destination(&address(81)).is_none());
}

#[test]
fn among_several_updates_only_the_bad_one_is_refused() {
    let now = Instant::now();
    let mut session = connected(now);
    follow(&mut session, &[80], now);
    let mut garbage = update(2, vec![inbound()], vec![]);
    garbage.resources[0].body = None;
    session.on_updates(
        0,
        vec![
            update(1, vec![inbound(), service(address(80), "orders"), backend("orders", 1)], vec![]),
            garbage,
            update(3, vec![backend("orders", 2), uncompilable(address(80), "orders")], vec![]),
            update(4, vec![backend("orders", 3)], vec![]),
        ],
    );
    assert_eq!(
        told(&mut session),
        [
            "publish",
            "0: ack 1",
            "0: nack 2 resources[0].body",
            "0: nack 3 resources[1].destination.service.routes[0].matches[0].headers[0].regex",
            "0: ack 4",
        ]
    );
    assert_eq!(session.snapshot.backend(&backend_key("orders")).unwrap().endpoints, [endpoint(3)]);
}

#[test]
fn a_trust_bundle_is_judged_before_it_is_believed() {
    let mut session = connected(Instant::now());
    let trust = |domain: &str, roots: Vec<Vec<u8>>| {
        Body::Trust(Arc::new(Trust { trust_domain: TrustDomain::parse(domain).unwrap(), roots }))
    };
    let root = root();
    session.on_updates(
        0,
        vec![update(1, vec![trust("mesh.local", vec![root.clone(), b"no".to_vec()])], vec![])],
    );
    session.on_updates(0, vec![update(2, vec![inbound(), trust("other.local", vec![root.clone()])], vec![])]);
    assert_eq!(
        told(&mut session),
        ["0: nack 1 resources[0].trust.roots_der[1]", "0: nack 2 resources[1].trust.trust_domain"]
    );
    assert!(!session.is_configured());
    session.on_updates(0, vec![update(3, vec![inbound(), trust("mesh.local", vec![root])], vec![])]);
    assert_eq!(told(&mut session), ["trust 1", "publish", "0: ack 3"]);
    assert!(session.is_configured());
}

fn root() -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let trust_domain = TrustDomain::parse("mesh.local").unwrap();
    let authority = outrigger_certs::Authority::load_or_create(
        directory.path(),
        &trust_domain,
        std::time::SystemTime::now(),
    );
    authority.unwrap().roots_der()[0].clone()
}

#[test]
fn updates_on_a_stand_by_stream_are_not_looked_at() {
    let mut session = session(2, Instant::now());
    session.on_connected(0);
    session.on_connected(1);
    told(&mut session);
    session.on_updates(1, vec![update(1, vec![inbound()], vec![])]);
    assert_eq!(told(&mut session), [""; 0]);
    assert!(session.snapshot.inbound().is_none());
}

#[test]
fn an_empty_update_is_acknowledged_and_nothing_else() {
    let mut session = connected(Instant::now());
    session.on_updates(0, vec![update(9, vec![], vec![])]);
    assert_eq!(told(&mut session), ["0: ack 9"]);
}

#[test]
fn what_nobody_uses_is_given_up_but_its_backend_stays_until_withdrawn() {
    let now = Instant::now();
    let mut session = connected(now);
    follow(&mut session, &[80], now);
    session
        .on_updates(0, vec![update(1, vec![service(address(80), "orders"), backend("orders", 1)], vec![])]);
    told(&mut session);
    session.handle_timeout(&no_uses(), now + UNUSED);
    assert_eq!(told(&mut session), ["forget 1", "publish", "0: unsubscribe address/10.0.0.1:80"]);
    assert!(session.snapshot.destination(&address(80)).is_none());
    assert!(session.snapshot.backend(&backend_key("orders")).is_some());
    // Another destination may use it: the control plane knows that we have it.
    follow(&mut session, &[81], now);
    session.on_updates(0, vec![update(2, vec![service(address(81), "orders")], vec![])]);
    assert_eq!(told(&mut session), ["publish", "0: ack 2"]);
    session.on_updates(
        0,
        vec![update(3, vec![], vec![Key::Destination(address(81)), Key::Backend(backend_key("orders"))])],
    );
    assert_eq!(told(&mut session), ["publish", "0: ack 3"]);
    assert!(session.snapshot.backend(&backend_key("orders")).is_none());
}

#[test]
fn what_is_in_use_stays_and_while_nobody_is_there_everything_stays() {
    let now = Instant::now();
    let mut session = connected(now);
    follow(&mut session, &[80], now);
    let discovery = Discovery::new();
    discovery.touch(&address(80));
    session.handle_timeout(&discovery.take_uses(), now + UNUSED);
    assert_eq!(told(&mut session), [""; 0]);
    session.on_lost(0);
    session.handle_timeout(&no_uses(), now + UNUSED * 3);
    assert_eq!(told(&mut session), [""; 0]);
    assert!(session.poll_timeout() > now + UNUSED * 3);
    session.on_connected(0);
    assert_eq!(told(&mut session), ["open 0 held[] subscribe[address/10.0.0.1:80,self,trust]"]);
}

#[test]
fn an_answer_on_its_way_to_something_given_up_is_not_kept() {
    let now = Instant::now();
    let mut session = connected(now);
    session
        .on_updates(0, vec![update(1, vec![service(address(80), "orders"), backend("orders", 1)], vec![])]);
    assert_eq!(told(&mut session), ["publish", "0: ack 1"]);
    assert!(session.snapshot.destination(&address(80)).is_none());
}

#[test]
fn a_full_table_makes_room_for_the_new() {
    let now = Instant::now();
    let mut session = connected(now);
    let all: Vec<_> = (1..=MAX_DESTINATIONS as u16).map(address).collect();
    session.on_wanted(all, now);
    told(&mut session);
    session.on_full(&no_uses(), now + Duration::from_secs(1));
    let told = told(&mut session);
    assert_eq!(told[0], format!("forget {}", MAX_DESTINATIONS / 8));
    assert!(told.last().unwrap().starts_with("0: unsubscribe "));
}

// === whatever happens in whatever order ===

#[derive(Clone, Debug)]
enum Op {
    Connect(usize),
    Lose(usize),
    Want(u16),
    Update(usize, Vec<(u16, bool)>),
    Pass(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0..3usize).prop_map(Op::Connect),
        (0..3usize).prop_map(Op::Lose),
        (1..6u16).prop_map(Op::Want),
        (0..3usize, proptest::collection::vec((1..6u16, any::<bool>()), 0..4))
            .prop_map(|(link, services)| Op::Update(link, services)),
        (0..700u64).prop_map(Op::Pass),
    ]
}

proptest! {
    #[test]
    fn one_is_active_and_every_update_to_it_is_answered_once(ops in proptest::collection::vec(op(), 0..60)) {
        let mut now = Instant::now();
        let mut session = session(3, now);
        let mut up = [false; 3];
        let mut nonce = 0;
        for op in ops {
            match op {
                Op::Connect(link) if !up[link] => {
                    up[link] = true;
                    session.on_connected(link);
                }
                Op::Lose(link) if up[link] => {
                    up[link] = false;
                    session.on_lost(link);
                }
                Op::Connect(_) | Op::Lose(_) => continue,
                Op::Want(port) => session.on_wanted(vec![address(port)], now),
                Op::Update(link, services) => {
                    nonce += 1;
                    let mut bodies = Vec::new();
                    let mut seen = std::collections::HashSet::new();
                    for (port, good) in services {
                        if seen.insert(port) {
                            let name = format!("s{port}");
                            bodies.push(backend(&name, port));
                            bodies.push(if good { service(address(port), &name) } else { uncompilable(address(port), &name) });
                        }
                    }
                    let active = session.active() == Some(link);
                    session.on_updates(link, vec![update(nonce, bodies, vec![])]);
                    let answers = events(&mut session).into_iter().filter(|event| {
                        let Event::Send { link: to, message: Message::Ack(n) | Message::Nack(n, _) } = event else {
                            return false;
                        };
                        assert_eq!((*to, *n), (link, nonce));
                        true
                    });
                    prop_assert_eq!(answers.count(), usize::from(active));
                }
                Op::Pass(seconds) => {
                    now += Duration::from_secs(seconds);
                    if now >= session.poll_timeout() {
                        session.handle_timeout(&no_uses(), now);
                    }
                }
            }
            // What the driver is told at each greeting is what is held at that moment.
            for event in events(&mut session) {
                if let Event::Send { link, .. } = &event {
                    prop_assert!(up[*link]);
                }
                let Event::Open { link, open } = event else { continue };
                if !open.presence_only {
                    prop_assert_eq!(session.active(), Some(link));
                    prop_assert_eq!(open.held, session.snapshot.held());
                }
            }
            prop_assert_eq!(session.active().is_some(), up.contains(&true));
            prop_assert_eq!(session.links.iter().filter(|phase| **phase == Phase::Active).count(), usize::from(up.contains(&true)));
            // Nothing is kept that is not followed.
            for (key, _) in session.snapshot.destinations() {
                prop_assert!(session.interest.contains(key));
            }
        }
    }
}
