//! A model proxy on the other end: it takes updates whole or refuses them whole, and never lacks what it
//! uses.

use std::collections::BTreeMap;

use outrigger_proto::spec::{
    Backend, Destination, DestinationKey, Fallback, FallbackOn, FallbackTo, Inbound, Protocol, Route,
    ServicePort, WeightedBackend,
};
use proptest::prelude::*;

use super::*;

/// What the control plane knows: destinations name backends, backends have content.
#[derive(Clone, Debug, Default)]
struct World {
    /// Names by the number of the destination.
    destinations: BTreeMap<u16, BTreeSet<u16>>,
    /// Content by the number of the backend.
    backends: BTreeMap<u16, u32>,
    /// Which backend stands in for which; never in a circle.
    backups: BTreeMap<u16, u16>,
}

fn destination_key(number: u16) -> Key {
    Key::Destination(DestinationKey::Address(([10, 0, 0, 1], 1000 + number).into()))
}

fn backend_name(number: u16) -> BackendKey {
    BackendKey { namespace: "shop".into(), name: format!("b{number}").into(), port: 80.try_into().unwrap() }
}

fn backend_key(number: u16) -> Key {
    Key::Backend(backend_name(number))
}

impl World {
    fn compile(&self, key: &Key) -> Option<Arc<Compiled>> {
        let body = match key {
            Key::Trust => return None,
            Key::Inbound => Body::Inbound(Arc::new(Inbound::default())),
            Key::Destination(destination) => {
                let DestinationKey::Address(address) = destination else { unreachable!() };
                let names = self.destinations.get(&(address.port() - 1000)).cloned().unwrap_or_default();
                let body = match names.first() {
                    None => Destination::External,
                    Some(first) => Destination::Service(ServicePort {
                        namespace: "shop".into(),
                        name: "s".into(),
                        port: 80.try_into().unwrap(),
                        protocol: Protocol::Http,
                        routes: vec![Arc::new(Route {
                            name: "shop/r/0".into(),
                            matches: vec![],
                            backends: names
                                .iter()
                                .map(|name| WeightedBackend {
                                    backend: backend_name(*name),
                                    weight: 1.try_into().unwrap(),
                                })
                                .collect(),
                            request_timeout: None,
                        })],
                        backend: backend_name(*first),
                    }),
                };
                Body::Destination(destination.clone(), Arc::new(body))
            }
            Key::Backend(name) => {
                let number: u16 = name.name[1..].parse().unwrap();
                let mut backend = Backend::default();
                Arc::make_mut(&mut backend.traffic).timeouts.connect = std::time::Duration::from_secs(
                    1 + u64::from(self.backends.get(&number).copied().unwrap_or(0)),
                );
                let backup = self.backups.get(&number).map(|backup| Fallback {
                    on: FallbackOn::default(),
                    to: FallbackTo::Backend(backend_name(*backup)),
                });
                Arc::make_mut(&mut backend.traffic).fallback = backup;
                Body::Backend(name.clone(), Arc::new(backend))
            }
        };
        Some(Arc::new(Compiled::new(&body)))
    }
}

#[derive(Default)]
struct Proxy {
    held: BTreeMap<Key, Arc<Compiled>>,
}

impl Proxy {
    fn take(&mut self, update: &Outgoing) {
        for compiled in &update.resources {
            self.held.insert(compiled.resource.key.parse().unwrap(), compiled.clone());
        }
        for key in &update.removed {
            assert!(self.held.remove(key).is_some(), "{key} is removed but was never there");
        }
    }

    fn whole(&self) -> Result<(), String> {
        for (key, compiled) in &self.held {
            for name in &compiled.backends {
                if !self.held.contains_key(&Key::Backend(name.clone())) {
                    return Err(format!("{key} names {name}, which is not there"));
                }
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Op {
    Name {
        destination: u16,
        backends: BTreeSet<u16>,
    },
    Change {
        backend: u16,
        to: u32,
    },
    /// Only to a higher number, so that there is no circle at any moment.
    Backup {
        backend: u16,
        to: u16,
    },
    Subscribe(u16),
    Unsubscribe(u16),
    Send,
    Ack,
    /// Refuses the update for the resource at this position, if it has as many.
    Nack(usize),
    Reconnect,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0..4u16, prop::collection::btree_set(0..5u16, 0..3)).prop_map(|(destination, backends)| Op::Name { destination, backends }),
        2 => (0..5u16, 0..3u32).prop_map(|(backend, to)| Op::Change { backend, to }),
        2 => (0..5u16, 0..6u16).prop_map(|(backend, to)| Op::Backup { backend, to }),
        2 => (0..4u16).prop_map(Op::Subscribe),
        1 => (0..4u16).prop_map(Op::Unsubscribe),
        4 => Just(Op::Send),
        4 => Just(Op::Ack),
        1 => (0..4usize).prop_map(Op::Nack),
        1 => Just(Op::Reconnect),
    ]
}

fn subscription(held: Vec<Held>) -> Subscription {
    Subscription::new("shop".into(), held).unwrap()
}

fn error(field: &str) -> FieldError {
    FieldError { field: field.into(), reason: "no".into() }
}

proptest! {
    #[test]
    fn a_proxy_ends_with_the_newest_of_what_it_wants_and_never_lacks_a_backend(
        ops in prop::collection::vec(ops(), 1..60)
    ) {
        let mut world = World::default();
        let mut machine = subscription(vec![]);
        let mut proxy = Proxy::default();
        let mut wanted = BTreeSet::new();
        let mut on_the_wire: Option<Outgoing> = None;
        // Contents that this proxy will not take, ever.
        let mut poison: HashSet<(Key, Arc<str>)> = HashSet::new();
        for op in ops {
            match op {
                Op::Name { destination, backends } => {
                    world.destinations.insert(destination, backends);
                    machine.on_topics(&[Topic::of(&destination_key(destination), &"shop".into())]);
                }
                Op::Change { backend, to } => {
                    world.backends.insert(backend, to);
                    machine.on_topics(&[Topic::of(&backend_key(backend), &"shop".into())]);
                }
                Op::Backup { backend, to } => {
                    if to > backend {
                        world.backups.insert(backend, to);
                    } else {
                        world.backups.remove(&backend);
                    }
                    machine.on_topics(&[Topic::of(&backend_key(backend), &"shop".into())]);
                }
                Op::Subscribe(number) => {
                    wanted.insert(destination_key(number));
                    machine.on_subscribe(vec![destination_key(number)]).unwrap();
                }
                Op::Unsubscribe(number) => {
                    wanted.remove(&destination_key(number));
                    proxy.held.remove(&destination_key(number));
                    machine.on_unsubscribe(vec![destination_key(number)]).unwrap();
                }
                Op::Send => {
                    let update = machine.poll(true, |key| world.compile(key));
                    prop_assert!(update.is_none() || on_the_wire.is_none(), "two updates under way");
                    on_the_wire = on_the_wire.or(update);
                }
                Op::Nack(position) => {
                    let Some(update) = on_the_wire.take() else { continue };
                    if let Some(compiled) = update.resources.get(position) {
                        poison.insert((compiled.resource.key.parse().unwrap(), compiled.version.clone()));
                        machine.on_nack(update.nonce, &[error(&format!("resources[{position}].x"))]).unwrap();
                    } else {
                        proxy.take(&update);
                        proxy.held.retain(|key, _| !matches!(key, Key::Destination(_)) || wanted.contains(key));
                        machine.on_ack(update.nonce).unwrap();
                    }
                }
                Op::Ack => {
                    let Some(update) = on_the_wire.take() else { continue };
                    let bad = update.resources.iter().position(|compiled| {
                        poison.contains(&(compiled.resource.key.parse().unwrap(), compiled.version.clone()))
                    });
                    if let Some(bad) = bad {
                        machine.on_nack(update.nonce, &[error(&format!("resources[{bad}].x"))]).unwrap();
                    } else {
                        proxy.take(&update);
                        // What was unsubscribed meanwhile is dropped on arrival.
                        proxy.held.retain(|key, _| !matches!(key, Key::Destination(_)) || wanted.contains(key));
                        machine.on_ack(update.nonce).unwrap();
                    }
                    prop_assert_eq!(proxy.whole(), Ok(()));
                }
                Op::Reconnect => {
                    on_the_wire = None;
                    let held = proxy.held.iter().map(|(key, compiled)| Held { key: key.clone(), version: compiled.version.clone() });
                    machine = subscription(held.collect());
                    machine.on_subscribe(wanted.iter().cloned().collect()).unwrap();
                }
            }
        }
        // Let it come to rest.
        for _ in 0..64 {
            let Some(update) = on_the_wire.take().or_else(|| machine.poll(true, |key| world.compile(key))) else { break };
            let bad = update.resources.iter().position(|compiled| {
                poison.contains(&(compiled.resource.key.parse().unwrap(), compiled.version.clone()))
            });
            match bad {
                Some(bad) => drop(machine.on_nack(update.nonce, &[error(&format!("resources[{bad}].x"))]).unwrap()),
                None => {
                    proxy.take(&update);
                    proxy.held.retain(|key, _| !matches!(key, Key::Destination(_)) || wanted.contains(key));
                    machine.on_ack(update.nonce).unwrap();
                }
            }
            prop_assert_eq!(proxy.whole(), Ok(()));
        }
        prop_assert!(machine.poll(true, |key| world.compile(key)).is_none(), "it does not come to rest");
        if poison.is_empty() {
            prop_assert!(machine.is_in_sync());
            let mut expected = wanted.clone();
            expected.insert(Key::Inbound);
            let mut open: Vec<Key> = wanted.iter().cloned().collect();
            while let Some(key) = open.pop() {
                let names = world.compile(&key).unwrap().backends.iter().cloned().map(Key::Backend).collect::<Vec<_>>();
                expected.extend(names.iter().cloned());
                open.extend(names);
            }
            prop_assert_eq!(proxy.held.keys().cloned().collect::<BTreeSet<_>>(), expected);
            for (key, compiled) in &proxy.held {
                prop_assert_eq!(&compiled.version, &world.compile(key).unwrap().version, "{} is old", key);
            }
        }
    }
}

fn world() -> World {
    World {
        destinations: BTreeMap::from([(0, BTreeSet::from([0, 1])), (1, BTreeSet::from([1]))]),
        backends: BTreeMap::new(),
        backups: BTreeMap::new(),
    }
}

fn keys(update: &Outgoing) -> Vec<String> {
    let sent = update.resources.iter().map(|compiled| compiled.resource.key.clone());
    sent.chain(update.removed.iter().map(|key| format!("-{key}"))).collect()
}

#[test]
fn backends_come_and_go_with_the_destinations_that_name_them() {
    let mut world = world();
    let mut machine = subscription(vec![]);
    machine.on_subscribe(vec![destination_key(0)]).unwrap();
    let first = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&first), ["self", "address/10.0.0.1:1000", "backend/shop/b0:80", "backend/shop/b1:80"]);
    machine.on_subscribe(vec![destination_key(1)]).unwrap();
    assert!(machine.poll(true, |key| world.compile(key)).is_none(), "one update at a time");
    machine.on_ack(first.nonce).unwrap();
    let second = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&second), ["address/10.0.0.1:1001"], "its backend is there already");
    machine.on_ack(second.nonce).unwrap();

    world.destinations.insert(0, BTreeSet::new());
    assert!(machine.on_topics(&[Topic::Address([10, 0, 0, 1].into())]));
    let third = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&third), ["address/10.0.0.1:1000", "-backend/shop/b0:80"]);
    machine.on_ack(third.nonce).unwrap();

    machine.on_unsubscribe(vec![destination_key(1)]).unwrap();
    let fourth = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&fourth), ["-backend/shop/b1:80"]);
    machine.on_ack(fourth.nonce).unwrap();
    assert!(machine.is_in_sync());
}

#[test]
fn a_backend_that_stands_in_comes_and_goes_with_the_one_that_names_it() {
    let mut world = world();
    world.backups = BTreeMap::from([(1, 2), (2, 3)]);
    let mut machine = subscription(vec![]);
    machine.on_subscribe(vec![destination_key(1)]).unwrap();
    let first = machine.poll(true, |key| world.compile(key)).unwrap();
    let [b1, b2, b3] = [1, 2, 3].map(|number| backend_key(number).to_string());
    assert_eq!(keys(&first), ["self", "address/10.0.0.1:1001", &b1, &b2, &b3]);
    machine.on_ack(first.nonce).unwrap();

    // What stands in by way of another one goes with it.
    world.backups.remove(&1);
    assert!(machine.on_topics(&[Topic::of(&backend_key(1), &"shop".into())]));
    let second = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&second), [b1, format!("-{b2}"), format!("-{b3}")]);
    machine.on_ack(second.nonce).unwrap();
    assert!(machine.is_in_sync());

    // Refused for good: whoever needs it waits, with all that leads there.
    world.backups = BTreeMap::from([(0, 4)]);
    machine.on_subscribe(vec![destination_key(0)]).unwrap();
    let third = machine.poll(true, |key| world.compile(key)).unwrap();
    let position =
        third.resources.iter().position(|it| it.resource.key == backend_key(4).to_string()).unwrap();
    machine.on_nack(third.nonce, &[error(&format!("resources[{position}].backend.traffic"))]).unwrap();
    assert!(machine.poll(true, |key| world.compile(key)).is_none());
}

#[test]
fn a_thousand_edits_behind_a_slow_proxy_are_one_update() {
    let mut world = world();
    let mut machine = subscription(vec![]);
    machine.on_subscribe(vec![destination_key(1)]).unwrap();
    let first = machine.poll(true, |key| world.compile(key)).unwrap();
    for edit in 0..1000 {
        world.backends.insert(1, edit);
        machine.on_topics(&[Topic::of(&backend_key(1), &"shop".into())]);
        assert!(machine.poll(true, |key| world.compile(key)).is_none());
    }
    machine.on_ack(first.nonce).unwrap();
    let second = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&second), ["backend/shop/b1:80"]);
    assert_eq!(second.resources[0].version, world.compile(&backend_key(1)).unwrap().version);
}

#[test]
fn what_is_held_already_is_left_out() {
    let world = world();
    let held = |key: Key| Held { version: world.compile(&key).unwrap().version.clone(), key };
    let mut machine = subscription(vec![held(destination_key(0)), held(backend_key(0)), held(Key::Inbound)]);
    let update = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&update), ["backend/shop/b1:80"]);
    machine.on_ack(update.nonce).unwrap();
    assert!(machine.poll(true, |key| world.compile(key)).is_none());
    assert!(machine.is_in_sync());
}

#[test]
fn held_backends_that_nothing_names_are_removed() {
    let world = world();
    let held = |key: Key| Held { version: "old".into(), key };
    let mut machine =
        subscription(vec![held(destination_key(1)), held(backend_key(1)), held(backend_key(4))]);
    let update = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&update), ["self", "address/10.0.0.1:1001", "backend/shop/b1:80", "-backend/shop/b4:80"]);
}

#[test]
fn a_control_plane_that_has_only_started_replaces_nothing() {
    let world = world();
    let held = |key: Key| Held { version: "old".into(), key };
    let mut machine =
        subscription(vec![held(destination_key(1)), held(backend_key(1)), held(backend_key(4))]);
    let update = machine.poll(false, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&update), ["self"]);
    machine.on_ack(update.nonce).unwrap();
    assert!(machine.poll(false, |key| world.compile(key)).is_none());
    let update = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&update), ["address/10.0.0.1:1001", "backend/shop/b1:80", "-backend/shop/b4:80"]);
}

#[test]
fn a_refused_resource_waits_for_new_content_and_the_others_go_again() {
    let mut world = world();
    let mut machine = subscription(vec![]);
    machine.on_subscribe(vec![destination_key(1)]).unwrap();
    let first = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&first), ["self", "address/10.0.0.1:1001", "backend/shop/b1:80"]);
    let errors = [error("resources[2].backend.endpoints[0].address")];
    let refusals = machine.on_nack(first.nonce, &errors).unwrap();
    assert_eq!(refusals.len(), 1);
    assert_eq!((refusals[0].key.clone(), &refusals[0].errors[..]), (backend_key(1), &errors[..]));
    // The destination waits for its backend.
    let second = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&second), ["self"]);
    machine.on_ack(second.nonce).unwrap();
    assert!(machine.poll(true, |key| world.compile(key)).is_none());
    assert!(!machine.is_in_sync());
    assert_eq!(machine.refusals().count(), 1);

    world.backends.insert(1, 7);
    machine.on_topics(&[Topic::of(&backend_key(1), &"shop".into())]);
    let third = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(keys(&third), ["address/10.0.0.1:1001", "backend/shop/b1:80"]);
    machine.on_ack(third.nonce).unwrap();
    assert!(machine.is_in_sync());
}

#[test]
fn a_refusal_without_a_field_refuses_everything_and_ends() {
    let world = world();
    let mut machine = subscription(vec![]);
    machine.on_subscribe(vec![destination_key(1)]).unwrap();
    let update = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(machine.on_nack(update.nonce, &[]).unwrap().len(), 3);
    assert!(machine.poll(true, |key| world.compile(key)).is_none());
}

#[test]
fn misuse_is_told() {
    let world = world();
    let mut machine = subscription(vec![]);
    assert_eq!(machine.on_ack(1), Err(Misuse::Nonce(1)), "nothing was sent");
    let update = machine.poll(true, |key| world.compile(key)).unwrap();
    assert_eq!(machine.on_ack(update.nonce + 1), Err(Misuse::Nonce(update.nonce + 1)));
    machine.on_ack(update.nonce).unwrap();
    assert_eq!(machine.on_nack(update.nonce, &[]), Err(Misuse::Nonce(update.nonce)), "twice");
    assert_eq!(machine.on_unsubscribe(vec![Key::Inbound]), Err(Misuse::Essential(Key::Inbound)));
    let too_many = (0..=MAX_KEYS as u16).map(destination_key).collect();
    assert_eq!(machine.on_subscribe(too_many), Err(Misuse::TooManyKeys));
}

#[test]
fn a_large_answer_goes_in_parts() {
    let mut machine = subscription(vec![]);
    let world = World::default();
    machine.on_subscribe((0..2000).map(backend_key).collect()).unwrap();
    let mut count = 0;
    let mut parts = 0;
    while let Some(update) = machine.poll(true, |key| {
        let compiled = world.compile(key)?;
        // As large as a backend with some hundred endpoints.
        Some(Arc::new(Compiled {
            resource: compiled.resource.clone(),
            version: compiled.version.clone(),
            backends: vec![],
            bytes: 20_000,
        }))
    }) {
        assert!(update.resources.len() <= UPDATE_BYTES / 20_000 + 1);
        count += update.resources.len();
        parts += 1;
        machine.on_ack(update.nonce).unwrap();
    }
    assert_eq!(count, 2001);
    assert!(parts > 30);
}
