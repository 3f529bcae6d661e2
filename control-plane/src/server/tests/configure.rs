use outrigger_proto::{
    convert,
    pb::{self, configure_request::Kind, destination, resource::Body},
    spec::{Held, Serve, State},
};
use tonic::Code;

use super::rig::{Rig, Stream};

const SHOP: &str = r#"
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: orders, namespace: shop}
spec: {addresses: [10.96.0.10], ports: [{port: 80, targetPort: 8080, appProtocol: http}], selector: {app: orders}}
---
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: v2, namespace: shop}
spec: {ports: [{port: 80}]}
"#;

fn split(v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: split, namespace: shop}}
spec:
  parentRefs: [{{kind: Service, name: orders}}]
  rules: [{{backendRefs: [{{name: orders, weight: {v1}}}, {{name: v2, weight: {v2}}}]}}]
"
    )
}

fn weights(update: &pb::ConfigureResponse, key: &str) -> Option<Vec<u32>> {
    let resource = update.resources.iter().find(|resource| resource.key == key)?;
    let Some(Body::Destination(pb::Destination { kind: Some(destination::Kind::Service(service)) })) =
        &resource.body
    else {
        return None;
    };
    Some(service.routes.first()?.backends.iter().map(|backend| backend.weight).collect())
}

fn endpoints(update: &pb::ConfigureResponse) -> Option<Vec<String>> {
    update.resources.iter().find_map(|resource| match &resource.body {
        Some(Body::Backend(backend)) if resource.key == "backend/shop/orders:80" => {
            Some(backend.endpoints.iter().map(|endpoint| endpoint.address.clone()).collect())
        }
        _ => None,
    })
}

#[tokio::test]
async fn a_proxy_gets_what_it_asks_for_and_follows_every_edit() {
    let rig = Rig::start(&[("shop.yaml", SHOP), ("split.yaml", &split(90, 10))]).await;
    let web = rig.join("web").await;
    let mut stream = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    assert_eq!(stream.take().await.1, ["self", "trust"]);
    stream.subscribe(&["address/10.96.0.10:80", "authority/elsewhere.example:443"]);
    let (update, keys) = stream.take().await;
    assert_eq!(
        keys,
        [
            "address/10.96.0.10:80",
            "authority/elsewhere.example:443",
            "backend/shop/orders:80",
            "backend/shop/v2:80"
        ]
    );
    assert_eq!(weights(&update, "address/10.96.0.10:80"), Some(vec![90, 10]));
    convert::update(update).expect("the contract's own checks find nothing wrong");

    rig.write("split.yaml", &split(10, 90));
    let (update, keys) = stream.take().await;
    assert_eq!(keys, ["address/10.96.0.10:80"], "only what changed");
    assert_eq!(weights(&update, "address/10.96.0.10:80"), Some(vec![10, 90]));

    // A broken file changes nothing, and is told.
    rig.write("split.yaml", &split(10, 90).replace("backendRefs", "backendRef"));
    rig.wait_for("the error", |report| {
        report["configuration"]["errors"].as_array().is_some_and(|all| !all.is_empty())
    })
    .await;
    let report = rig.report().await;
    let error = &report["configuration"]["errors"][0];
    assert_eq!((error["file"].as_str(), error["line"].as_u64()), (Some("split.yaml"), Some(6)));
    assert_eq!(error["field"], "spec.rules[0].backendRef");
    assert_eq!(report["configuration"]["generation"], 2);
    assert_eq!(rig.get("/readyz").await.0, 200, "the last good configuration is in force");

    std::fs::remove_file(rig.dir.path().join("config/split.yaml")).unwrap();
    let (update, keys) = stream.take().await;
    assert_eq!(keys, ["address/10.96.0.10:80", "-backend/shop/v2:80"]);
    assert_eq!(weights(&update, "address/10.96.0.10:80"), None);

    stream.say(Kind::Unsubscribe(pb::Unsubscribe { keys: vec!["address/10.96.0.10:80".into()] }));
    assert_eq!(stream.take().await.1, ["-backend/shop/orders:80"]);
    rig.wait_for("a proxy in sync", |report| {
        report["proxies"][0]["in_sync"] == true && report["proxies"][0]["acked_generation"] == 3
    })
    .await;
}

#[tokio::test]
async fn endpoints_follow_the_presence_of_workloads() {
    let rig = Rig::start(&[("shop.yaml", SHOP)]).await;
    let (web, orders) = (rig.join("web").await, rig.join("orders").await);
    let mut client = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    client.subscribe(&["authority/orders:80"]);
    let update = client.take_until(|update| endpoints(update).is_some()).await;
    assert_eq!(endpoints(&update).unwrap(), [""; 0]);

    let mut hello = orders.hello("10.0.0.2");
    hello.serves =
        vec![Serve { mesh_port: 9443.try_into().unwrap(), application_port: 8080.try_into().unwrap() }];
    let mut first = Stream::greeted(&rig, &orders, &hello).await;
    first.take().await;
    let update = client.take_until(|update| endpoints(update).is_some()).await;
    assert_eq!(endpoints(&update).unwrap(), ["10.0.0.2:9443"]);

    // Announced elsewhere too, but not ready yet.
    let mut hello = orders.hello("10.0.0.3");
    hello.state = State { ready: false, draining: false, ready_since: None };
    hello.presence_only = true;
    let second = Stream::greeted(&rig, &orders, &hello).await;
    second.say(Kind::State(pb::State { ready: true, draining: false, ready_since_ms: 0 }));
    let update = client.take_until(|update| endpoints(update).is_some()).await;
    assert_eq!(endpoints(&update).unwrap(), ["10.0.0.2:9443", "10.0.0.3:8080"]);

    first.say(Kind::State(pb::State { ready: true, draining: true, ready_since_ms: 0 }));
    let update = client.take_until(|update| endpoints(update).is_some()).await;
    assert_eq!(endpoints(&update).unwrap(), ["10.0.0.3:8080"], "draining withdraws at once");

    // A stream that is lost: gone, but only after its lease.
    let lost = std::time::Instant::now();
    drop(second);
    let update = client.take_until(|update| endpoints(update).is_some()).await;
    assert_eq!(endpoints(&update).unwrap(), [""; 0]);
    assert!(lost.elapsed() >= crate::workloads::LEASE);
}

#[tokio::test]
async fn a_restart_of_ours_withdraws_nobody_and_sends_nothing_twice() {
    let rig = Rig::start(&[("shop.yaml", SHOP)]).await;
    let (web, orders) = (rig.join("web").await, rig.join("orders").await);
    let mut client = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    client.subscribe(&["authority/orders:80"]);
    let mut serving = Stream::greeted(&rig, &orders, &orders.hello("10.0.0.2")).await;
    serving.take().await;
    let mut held = std::collections::BTreeMap::new();
    let mut note = |update: &pb::ConfigureResponse| {
        held.extend(update.resources.iter().map(|resource| (resource.key.clone(), resource.version.clone())));
        endpoints(update) == Some(vec!["10.0.0.2:8080".into()])
    };
    client.take_until(&mut note).await;

    let restarting = tokio::spawn(rig.restart());
    let status = client.end().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let rig = restarting.await.unwrap();

    let mut hello = web.hello("10.0.0.1");
    hello.held = held
        .iter()
        .map(|(key, version)| Held { key: key.parse().unwrap(), version: version.as_str().into() })
        .collect();
    let mut client = Stream::greeted(&rig, &web, &hello).await;
    rig.wait_for("a proxy in sync", |report| {
        report["proxies"].as_array().unwrap().iter().any(|proxy| proxy["in_sync"] == true)
    })
    .await;
    let report = rig.report().await;
    let orders_proxy = report["proxies"]
        .as_array()
        .unwrap()
        .iter()
        .find(|proxy| proxy["addresses"][0] == "10.0.0.2")
        .unwrap();
    assert_eq!((&orders_proxy["connected"], &orders_proxy["ready"]), (&false.into(), &true.into()));
    assert_eq!(report["services"][0]["ports"][0]["endpoints"][0]["address"], "10.0.0.2:8080");

    // Nothing was sent: the first update is the next edit's.
    rig.write("split.yaml", &split(1, 1));
    assert_eq!(client.take().await.1, ["authority/orders:80", "backend/shop/v2:80"]);
}

#[tokio::test]
async fn a_refusal_is_shown_with_field_and_proxy_and_does_not_end_the_stream() {
    let rig = Rig::start(&[("shop.yaml", SHOP)]).await;
    let web = rig.join("web").await;
    let mut stream = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    stream.take().await;
    stream.subscribe(&["authority/orders:80"]);
    let update = stream.next().await;
    let field = "resources[1].backend.load_balancer".to_owned();
    let errors = vec![pb::FieldError { field: field.clone(), reason: "unknown".into() }];
    stream.say(Kind::Nack(pb::Nack { nonce: update.nonce, errors }));
    rig.wait_for("the refusal", |report| {
        report["proxies"][0]["refused"].as_array().is_some_and(|all| all.len() == 1)
    })
    .await;
    let report = rig.report().await;
    let proxy = &report["proxies"][0];
    assert_eq!(proxy["identity"], "spiffe://mesh.local/ns/shop/sa/web");
    assert_eq!(proxy["refused"][0]["key"], "backend/shop/orders:80");
    assert_eq!(proxy["refused"][0]["errors"][0]["field"], field.as_str());
    assert_eq!(proxy["in_sync"], false);

    // New content is tried, and makes it good.
    rig.write("policy.yaml", "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec: {targetRef: {kind: Service, name: orders}, loadBalancer: {algorithm: random}}\n");
    let (_, keys) = stream.take().await;
    assert_eq!(keys, ["authority/orders:80", "backend/shop/orders:80"]);
    rig.wait_for("a proxy in sync", |report| report["proxies"][0]["in_sync"] == true).await;
    let report = rig.report().await;
    assert_eq!(report["proxies"][0]["refused"].as_array().unwrap().len(), 0);
    assert_eq!(report["proxies"][0]["last_nack"][0]["key"], "backend/shop/orders:80");
}

#[tokio::test]
async fn who_breaks_the_rules_is_shown_out_with_the_reason() {
    let rig = Rig::start(&[("shop.yaml", SHOP)]).await;
    let (web, orders) = (rig.join("web").await, rig.join("orders").await);
    let hello = web.hello("10.0.0.1");
    let said = |kind: Kind| vec![Kind::Hello(convert::hello_to_pb(&hello)), kind];
    let keys = |keys: Vec<String>| Kind::Subscribe(pb::Subscribe { keys });
    let mut of_another = hello.clone();
    of_another.registration = orders.registration.clone();
    let mut unregistered = hello.clone();
    unregistered.registration = "orr1.x.y".into();
    let mut nowhere = convert::hello_to_pb(&hello);
    nowhere.addresses = vec!["0.0.0.0".into()];
    let mut announcing = hello.clone();
    announcing.presence_only = true;

    for (messages, code, reason) in [
        (vec![Kind::Ack(pb::Ack { nonce: 1 })], Code::InvalidArgument, "the first message must be a hello"),
        (said(Kind::Hello(convert::hello_to_pb(&hello))), Code::FailedPrecondition, "hello comes once"),
        (said(keys(vec!["other/x".into()])), Code::InvalidArgument, "unknown kind of key"),
        (said(keys(vec!["address/10.0.0.1".into()])), Code::InvalidArgument, "is not IP:PORT"),
        (
            said(keys((1..=10_001).map(|port| format!("address/10.0.0.1:{port}")).collect())),
            Code::ResourceExhausted,
            "more than 10000 keys",
        ),
        (said(Kind::Ack(pb::Ack { nonce: 77 })), Code::InvalidArgument, "nonce 77"),
        (
            said(Kind::Unsubscribe(pb::Unsubscribe { keys: vec!["self".into()] })),
            Code::InvalidArgument,
            "self",
        ),
        (
            vec![Kind::Hello(convert::hello_to_pb(&of_another))],
            Code::PermissionDenied,
            "the registration is of spiffe://mesh.local/ns/shop/sa/orders",
        ),
        (vec![Kind::Hello(convert::hello_to_pb(&unregistered))], Code::Unauthenticated, "registration"),
        (vec![Kind::Hello(nowhere)], Code::InvalidArgument, "addresses[0]"),
        (
            vec![Kind::Hello(convert::hello_to_pb(&announcing)), keys(vec!["self".into()])],
            Code::FailedPrecondition,
            "presence only",
        ),
    ] {
        let mut stream = Stream::open(rig.connect_as(&web.credentials).await).await.unwrap();
        messages.into_iter().for_each(|message| stream.say(message));
        let status = stream.end().await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status} does not say {reason:?}");
    }
    // Without a certificate there is no stream at all.
    let mut stream = Stream::open(rig.connect_pinned().await.unwrap()).await;
    let status = match &mut stream {
        Ok(stream) => stream.end().await,
        Err(status) => status.clone(),
    };
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");

    // And all the while nobody else noticed.
    let mut stream = Stream::greeted(&rig, &web, &hello).await;
    assert_eq!(stream.take().await.1, ["self", "trust"]);
}

#[tokio::test]
async fn a_second_stream_of_a_proxy_takes_over() {
    let rig = Rig::start(&[]).await;
    let web = rig.join("web").await;
    let mut first = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    first.take().await;
    let mut second = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    second.take().await;
    let status = first.end().await;
    assert_eq!(status.code(), Code::Aborted, "{status}");
    rig.wait_for("one proxy in sync", |report| {
        let proxies = report["proxies"].as_array().unwrap();
        proxies.len() == 1 && proxies[0]["connected"] == true && proxies[0]["in_sync"] == true
    })
    .await;
}
