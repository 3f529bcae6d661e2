//! The configuration stream.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proto::{
    convert,
    pb::{Resource, configure_request::Kind},
    spec::{Backend, BackendKey, Body, Destination, DestinationKey, Endpoint, Protocol, ServicePort, State},
};
use outrigger_proxy::{metrics::Observed, readiness::Gate, sync::Standing};

use crate::{
    control_plane::{Ca, ControlPlane, inbound, web},
    harness::{Setup, timed, until},
};

fn orders() -> DestinationKey {
    DestinationKey::address(([10, 96, 0, 10], 80).into())
}

fn backend_key() -> BackendKey {
    "shop/orders:80".parse().unwrap()
}

fn service() -> Resource {
    let service = ServicePort {
        namespace: "shop".into(),
        name: "orders".into(),
        port: 80.try_into().unwrap(),
        protocol: Protocol::Http,
        routes: vec![],
        backend: backend_key(),
    };
    convert::resource(&Body::Destination(orders(), Arc::new(Destination::Service(service))))
}

/// The service's backend, with this many endpoints.
fn backend(endpoints: u32) -> Resource {
    let endpoint = |n: u32| Endpoint {
        address: ([10, 77, (n >> 8) as u8, n as u8], 8080).into(),
        identity: SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(),
        zone: "a-place-with-a-name".into(),
        weight: NonZeroU32::MIN,
        subset: "".into(),
        ready_since: None,
    };
    let backend = Backend { endpoints: (1..=endpoints).map(endpoint).collect(), ..Backend::default() };
    convert::resource(&Body::Backend(backend_key(), Arc::new(backend)))
}

fn external(key: &DestinationKey) -> Resource {
    convert::resource(&Body::Destination(key.clone(), Arc::new(Destination::External)))
}

#[tokio::test]
async fn the_first_configuration_makes_it_ready() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token()).with(&[
        "--zone",
        "a",
        "--forward",
        "127.0.0.1:9001=orders.shop:80",
    ]);
    let proxy = setup.start();
    let mut stream = control_plane.stream().await;
    assert_eq!(stream.peer, web());
    assert_eq!(
        (stream.hello.addresses.as_slice(), stream.hello.zone.as_str()),
        (["127.0.0.1".to_owned()].as_slice(), "a")
    );
    assert_eq!((stream.hello.serves[0].mesh_port, stream.hello.serves[0].application_port), (9443, 8080));
    assert!(
        !stream.hello.presence_only && stream.hello.held.is_empty() && !stream.hello.state.unwrap().ready
    );
    let Kind::Subscribe(wanted) = stream.next().await else { panic!("asks for what it needs") };
    assert_eq!(wanted.keys, ["self", "trust", "authority/orders.shop:80"]);
    assert!(!proxy.readiness.is_ready());

    stream.send(vec![inbound(), ca.trust(&[])]).await;
    stream.acknowledged().await;
    proxy.ready().await;
    assert!(proxy.discovery.may_answer());
    let Kind::State(state) = stream.next().await else { panic!("tells that it is ready") };
    assert!(state.ready && !state.draining);
    proxy.readiness.draining();
    let Kind::State(state) = stream.next().await else { panic!("tells that it leaves") };
    assert!(!state.ready && state.draining);
}

#[tokio::test]
async fn what_is_wanted_is_asked_for_once_and_kept_current() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    // From another thread, as workers do.
    let discovery = proxy.discovery.clone();
    std::thread::spawn(move || (discovery.want(&orders()), discovery.want(&orders()))).join().unwrap();
    let Kind::Subscribe(wanted) = stream.next_but_state().await else { panic!("asks") };
    assert_eq!(wanted.keys, ["address/10.96.0.10:80"]);
    stream.send(vec![service(), backend(1)]).await;
    stream.acknowledged().await;
    proxy.knows(&orders()).await;
    let before = proxy.snapshot.load();
    stream.send(vec![backend(2)]).await;
    stream.acknowledged().await;
    let after = proxy.snapshot.load();
    assert_eq!(after.backend(&backend_key()).unwrap().endpoints.len(), 2);
    assert!(Arc::ptr_eq(before.destination(&orders()).unwrap(), after.destination(&orders()).unwrap()));
}

#[tokio::test]
async fn a_refused_update_leaves_the_last_good_one() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    stream.send(vec![service(), backend(1)]).await;
    stream.acknowledged().await;

    let mut bad = backend(3);
    let Some(outrigger_proto::pb::resource::Body::Backend(body)) = &mut bad.body else { panic!("a backend") };
    body.endpoints[2].address = "10.0.0.1:0".into();
    body.endpoints[1].identity = "web".into();
    stream.send(vec![inbound(), bad]).await;
    let Kind::Nack(nack) = stream.next_but_state().await else { panic!("refuses") };
    let fields: Vec<_> = nack.errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        ["resources[1].backend.endpoints[1].identity", "resources[1].backend.endpoints[2].address"]
    );
    assert!(nack.errors[1].reason.contains("cannot be dialled"));
    assert_eq!(proxy.snapshot.load().backend(&backend_key()).unwrap().endpoints.len(), 1);
    assert!(proxy.readiness.is_ready());
    let observed = Observed { ready: true, ..Observed::default() };
    let text = proxy.metrics.render(&observed);
    assert!(text.contains("outrigger_config_updates_total{result=\"refused\"} 1"), "{text}");

    stream.send(vec![backend(2)]).await;
    stream.acknowledged().await;
    assert_eq!(proxy.snapshot.load().backend(&backend_key()).unwrap().endpoints.len(), 2);
}

#[tokio::test]
async fn a_restarted_control_plane_is_told_what_is_held() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    stream.send(vec![service(), backend(1)]).await;
    stream.acknowledged().await;
    let instance = stream.hello.instance.clone();

    let address = control_plane.kill();
    until(|| (!proxy.discovery.may_answer()).then_some(()).ok_or("still connected")).await;
    // What is held is used, what is wanted is remembered.
    assert!(proxy.readiness.is_ready());
    proxy.knows(&orders()).await;
    let other = DestinationKey::address(([192, 0, 2, 1], 443).into());
    proxy.discovery.want(&other);

    let mut control_plane = ControlPlane::restart(&ca, address);
    let mut stream = control_plane.stream().await;
    assert_eq!(stream.hello.instance, instance);
    assert!(stream.hello.state.unwrap().ready);
    let versions =
        [service(), backend(1), inbound(), ca.trust(&[])].map(|resource| (resource.key, resource.version));
    for (key, version) in &versions {
        assert!(stream.held().contains(&(key, version)), "{key}: {:?}", stream.held());
    }
    assert_eq!(stream.hello.held.len(), versions.len());
    let Kind::Subscribe(wanted) = stream.next().await else { panic!("asks again") };
    let mut keys = wanted.keys;
    keys.sort();
    assert_eq!(keys, ["address/10.96.0.10:80", "address/192.0.2.1:443", "self", "trust"]);
    stream.send(vec![external(&other)]).await;
    stream.acknowledged().await;
    proxy.knows(&other).await;
}

#[tokio::test]
async fn another_control_plane_takes_over_within_a_second() {
    let ca = Ca::new();
    let (mut first, mut second) = (ControlPlane::start(&ca), ControlPlane::start(&ca));
    let setup = Setup::new(&[first.address, second.address], &ca.token());
    let proxy = setup.start();
    let stream = first.configured().await;
    let mut presence = second.stream().await;
    assert!(presence.hello.presence_only && presence.hello.held.is_empty());
    assert_eq!(presence.hello.instance, stream.hello.instance);
    // Both know whether this workload serves.
    proxy.ready().await;
    if !presence.hello.state.unwrap().ready {
        let Kind::State(state) = presence.next().await else { panic!("tells the one that stands by, too") };
        assert!(state.ready);
    }
    proxy.stands([Standing::Active, Standing::Standby]).await;
    let connection = || proxy.active.borrow().as_ref().map(|active| active.number);
    let observed = connection().expect("observations go to the active one");
    let connections = || -> Vec<_> {
        proxy.connections.iter().map(|one| one.borrow().as_ref().map(|now| now.number)).collect()
    };
    let reported = connections();
    assert!(reported[0] == Some(observed) && reported[1].is_some(), "reports go to both: {reported:?}");

    let address = first.kill();
    let (mut stream, took) = timed(second.stream()).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(!stream.hello.presence_only);
    assert_eq!(stream.hello.held.len(), 2);
    let Kind::Subscribe(_) = stream.next().await else { panic!("asks") };
    stream.send(vec![inbound()]).await;
    stream.acknowledged().await;

    // The first comes back to stand by.
    let mut first = ControlPlane::restart(&ca, address);
    assert!(first.stream().await.hello.presence_only);
    proxy.stands([Standing::Standby, Standing::Active]).await;
    assert!(connection().is_some_and(|now| now != observed), "they have moved with it");
    let now = connections();
    assert!(now[0].is_some_and(|number| number > observed), "another one: {now:?}");
    assert_eq!(now[1], reported[1], "the same one, although it does more now");
}

#[tokio::test]
async fn a_control_plane_that_refuses_is_left_for_the_next() {
    let ca = Ca::new();
    let (mut first, mut second) = (ControlPlane::start(&ca), ControlPlane::start(&ca));
    *first.script().unwelcome.lock().unwrap() = Some(tonic::Status::resource_exhausted("full"));
    let setup = Setup::new(&[first.address, second.address], &ca.token());
    let proxy = setup.start();
    let _stream = second.configured().await;
    proxy.ready().await;
    proxy.stands([Standing::Away, Standing::Active]).await;
    assert_eq!(proxy.discovery.control_planes()[0].last_error, "ResourceExhausted: full");
    *first.script().unwelcome.lock().unwrap() = None;
    assert!(first.stream().await.hello.presence_only);
    proxy.stands([Standing::Standby, Standing::Active]).await;
}

#[tokio::test]
async fn a_control_plane_that_falls_silent_is_noticed_in_ten_seconds() {
    let ca = Ca::new();
    let (mut first, mut second) = (ControlPlane::start(&ca), ControlPlane::start(&ca));
    let setup = Setup::new(&[first.address, second.address], &ca.token());
    let _proxy = setup.start();
    let _stream = first.configured().await;
    let _presence = second.stream().await;
    let thaw = first.freeze();
    // Nothing closes, nothing answers.
    let mut seconds = 0;
    let taking_over = async {
        // A slow machine may lose the other connection to the haste of this test; it comes back to stand by.
        while second.stream().await.hello.presence_only {}
    };
    tokio::pin!(taking_over);
    loop {
        tokio::select! {
            () = &mut taking_over => break,
            () = pass(Duration::from_secs(1)) => seconds += 1,
        }
        assert!(seconds < 12, "not noticed");
    }
    assert!(seconds > 2, "a moment of silence is not the end");
    drop(thaw);
}

#[tokio::test]
async fn without_a_control_plane_it_says_why_it_is_not_ready_and_goes_on_trying() {
    let ca = Ca::new();
    let address = ControlPlane::start(&ca).kill();
    let setup = Setup::new(&[address], &ca.token());
    let proxy = setup.start();
    proxy.missing("certificate: 127.0.0.1:").await;
    proxy.missing("Connection refused").await;
    assert!(!proxy.discovery.may_answer());
    let mut control_plane = ControlPlane::restart(&ca, address);
    control_plane.configured().await;
    proxy.ready().await;
}

#[tokio::test]
async fn with_snapshot_and_identity_it_starts_without_a_control_plane() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token()).with_state().with_identity(true);
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    stream.send(vec![service(), backend(1)]).await;
    stream.acknowledged().await;
    proxy.ready().await;
    let snapshot = setup.directory.join("state/snapshot.pb");
    let whole = proxy.snapshot.load().held().len();
    let written = || {
        std::fs::read(&snapshot).ok().and_then(|bytes| {
            prost::Message::decode(bytes.as_slice())
                .ok()
                .map(|saved: outrigger_proto::pb::Saved| saved.resources.len())
        })
    };
    until(|| if written() == Some(whole) { Ok(()) } else { Err(written()) }).await;
    let instance = stream.hello.instance.clone();
    drop(proxy);
    let address = control_plane.kill();

    let proxy = setup.start();
    proxy.ready().await;
    proxy.knows(&orders()).await;
    assert!(proxy.credentials.usable().is_ok() && proxy.credentials.trust().is_some());

    // And it goes on from there when one is back.
    let mut control_plane = ControlPlane::restart(&ca, address);
    let mut stream = control_plane.stream().await;
    assert_ne!(stream.hello.instance, instance, "another process");
    assert_eq!(stream.hello.held.len(), whole);
    let Kind::Subscribe(wanted) = stream.next().await else { panic!("asks") };
    assert!(wanted.keys.contains(&"address/10.96.0.10:80".to_owned()));
    assert!(control_plane.script().signed.lock().unwrap().is_empty(), "no new certificate was needed");
}

#[tokio::test]
async fn with_a_snapshot_but_no_identity_it_says_why_it_is_not_ready() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token()).with_state();
    let proxy = setup.start();
    control_plane.configured().await;
    until(|| std::fs::metadata(setup.directory.join("state/snapshot.pb"))).await;
    drop(proxy);
    control_plane.kill();

    let proxy = setup.start();
    proxy.missing("Connection refused").await;
    let missing = proxy.readiness.missing();
    assert!(missing.len() == 1 && missing[0].starts_with("certificate: "), "{missing:?}");
    assert!(proxy.snapshot.load().inbound().is_some());
}

#[tokio::test]
async fn what_is_unused_for_ten_minutes_is_unsubscribed() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token())
        .with(&["--forward", "127.0.0.1:9001=orders.shop:80"]);
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    stream.send(vec![service(), backend(1)]).await;
    stream.acknowledged().await;
    proxy.knows(&orders()).await;

    for _ in 0..12 {
        // In use: as often as this is looked at.
        proxy.discovery.touch(&orders());
        pass(Duration::from_secs(60)).await;
        // Twice there and back: what keeps the connection alive has gone the same way.
        for _ in 0..2 {
            stream.send(vec![]).await;
            stream.acknowledged().await;
        }
    }
    proxy.knows(&orders()).await;
    pass(Duration::from_secs(660)).await;
    let Kind::Unsubscribe(unwanted) = stream.next_but_state().await else { panic!("gives it up") };
    assert_eq!(unwanted.keys, ["address/10.96.0.10:80"], "and not what was configured");
    proxy.no_longer_knows(&orders()).await;
    // Used again, it is asked for again.
    proxy.discovery.want(&orders());
    let Kind::Subscribe(wanted) = stream.next_but_state().await else { panic!("asks again") };
    assert_eq!(wanted.keys, ["address/10.96.0.10:80"]);
}

/// Moves the proxy's clock, and gives its connections real time to live on.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[tokio::test]
async fn a_storm_of_updates_ends_with_the_newest() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    stream.send(vec![service()]).await;
    let Kind::Nack(nack) = stream.next_but_state().await else { panic!("its backend is missing") };
    assert_eq!(nack.errors[0].field, "resources[0].destination.service.backend");
    const STORM: u32 = 1_000;
    for n in 1..=STORM {
        let more = if n == 1 { vec![service()] } else { vec![] };
        stream.send([more, vec![backend(n)]].concat()).await;
    }
    for n in 1..=u64::from(STORM) {
        let Kind::Ack(ack) = stream.next_but_state().await else { panic!("each is answered") };
        assert_eq!(ack.nonce, n + 2);
    }
    let endpoints = proxy.snapshot.load().backend(&backend_key()).unwrap().endpoints.len();
    assert_eq!(endpoints, STORM as usize);
}

#[tokio::test]
async fn an_update_of_many_megabytes_is_taken() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    let mut stream = control_plane.configured().await;
    proxy.discovery.want(&orders());
    let Kind::Subscribe(_) = stream.next_but_state().await else { panic!("asks") };
    let resources = vec![service(), backend(65_000)];
    assert!(resources.iter().map(prost::Message::encoded_len).sum::<usize>() > 4 * 1024 * 1024);
    stream.send(resources).await;
    stream.acknowledged().await;
    proxy.knows(&orders()).await;
}

#[tokio::test]
async fn a_state_is_told_even_if_it_changed_while_nobody_was_there() {
    let ca = Ca::new();
    let mut control_plane = ControlPlane::start(&ca);
    let setup = Setup::new(&[control_plane.address], &ca.token());
    let proxy = setup.start();
    control_plane.configured().await;
    proxy.ready().await;
    let address = control_plane.kill();
    until(|| (!proxy.discovery.may_answer()).then_some(()).ok_or("still connected")).await;
    proxy.readiness.waiting(Gate::Listeners, "for the test");
    let mut control_plane = ControlPlane::restart(&ca, address);
    let stream = control_plane.stream().await;
    let State { ready, draining, .. } = convert::state(stream.hello.state.unwrap());
    assert!(!ready && !draining);
}
