use std::{collections::BTreeMap, time::SystemTime};

use outrigger_certs::{SpiffeId, TrustDomain};

use super::*;
use crate::{
    config::{self, SourceFile},
    index::WorkloadId,
};

fn presence(name: &str, number: u32) -> Presence {
    let identity = SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), "shop", name).unwrap();
    Presence {
        id: WorkloadId { identity, instance: number.to_string().into() },
        labels: BTreeMap::from([("app".into(), name.into())]),
        addresses: vec![std::net::Ipv4Addr::from(0x0a00_0000 + number).into()],
        zone: "".into(),
        serves: vec![],
        version: "".into(),
    }
}

const READY: State = State { ready: true, draining: false, ready_since: None };

fn hub() -> Arc<Hub> {
    let hub = Arc::new(Hub::new(Instant::now(), Arc::default()));
    let text = "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}], selector: {app: orders}}\n";
    let files = [SourceFile { name: "a.yaml".into(), text: Ok(text.into()) }];
    let result = config::read(&files, &TrustDomain::parse("mesh.local").unwrap());
    hub.on_reading(Reading { files: vec![], version: "1".into(), result }, SystemTime::now());
    hub
}

/// A rollout of a thousand workloads is a few updates for each of their callers, and ends with all of them.
#[tokio::test]
async fn a_storm_of_changes_wakes_streams_a_few_times() {
    let hub = hub();
    let timers = tokio::spawn({
        let hub = hub.clone();
        async move { hub.run_timers().await }
    });
    let caller = presence("web", 1);
    let (subscriber, remote) = (caller.workload(), "127.0.0.1:1".parse().unwrap());
    let (stream, handle) = hub.on_hello(caller, READY, false, remote);
    let mut subscription = Subscription::new("shop".into(), vec![]).unwrap();
    subscription.on_subscribe(vec!["backend/shop/orders:80".parse().unwrap()]).unwrap();

    let storm = std::thread::spawn({
        let hub = hub.clone();
        move || {
            for number in 0..1000 {
                hub.on_hello(presence("orders", 100 + number), READY, true, remote);
            }
        }
    });
    let (mut updates, mut endpoints) = (0, 0);
    while endpoints < 1000 {
        tokio::time::timeout(Duration::from_secs(20), handle.woken()).await.expect("woken for what is new");
        for topics in handle.take().topics {
            subscription.on_topics(&*topics);
        }
        let Some(update) = hub.poll(stream, &subscriber, &mut subscription, Instant::now()) else { continue };
        updates += 1;
        for compiled in &update.resources {
            if let Some(outrigger_proto::pb::resource::Body::Backend(backend)) = &compiled.resource.body {
                assert!(backend.endpoints.len() > endpoints);
                endpoints = backend.endpoints.len();
            }
        }
        subscription.on_ack(update.nonce).unwrap();
    }
    storm.join().unwrap();
    assert!(updates < 500, "{updates} updates for 1000 changes");
    assert_eq!(hub.totals(Instant::now()).serving, 1001);
    timers.abort();
}

#[test]
fn a_thousand_subscribers_compile_a_backend_once() {
    let hub = hub();
    let mut first: Option<Arc<Compiled>> = None;
    for number in 0..100 {
        let caller = presence("web", number);
        let subscriber = caller.workload();
        let (stream, _) = hub.on_hello(caller, READY, false, "127.0.0.1:1".parse().unwrap());
        let mut subscription = Subscription::new("shop".into(), vec![]).unwrap();
        subscription.on_subscribe(vec!["backend/shop/orders:80".parse().unwrap()]).unwrap();
        let update = hub.poll(stream, &subscriber, &mut subscription, Instant::now()).unwrap();
        let sent = update.resources.iter().find(|it| it.resource.key.starts_with("backend/")).unwrap();
        assert!(first.as_ref().is_none_or(|first| Arc::ptr_eq(first, sent)), "compiled again");
        first = Some(sent.clone());
    }
}
