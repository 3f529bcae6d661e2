//! Reports over real streams, questions and events over real HTTP.

use std::{
    fs,
    time::{Duration, Instant},
};

use outrigger_proto::spec::{
    Cause, Circuit, Durations, EdgeKey, EdgeTraffic, Observations, OutcomeCount, ProxyEvent, ProxyEventKind,
    Side, TrafficReport, Transition,
};
use outrigger_proto::{convert, pb, pb::mesh_client::MeshClient};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::rig::{DEADLINE, Joined, Rig, Stream};

const ORDERS: &str = "
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: orders, namespace: shop}
spec: {ports: [{port: 80, targetPort: 8080}], selector: {app: orders}}
";

/// One report stream, as a proxy has it.
struct Reports {
    reports: mpsc::UnboundedSender<pb::TrafficReport>,
    acks: Streaming<pb::ReportAck>,
}

impl Reports {
    async fn open(channel: Channel) -> Result<Self, Status> {
        let (reports, receiver) = mpsc::unbounded_channel();
        let acks =
            MeshClient::new(channel).report(UnboundedReceiverStream::new(receiver)).await?.into_inner();
        Ok(Self { reports, acks })
    }

    async fn of(rig: &Rig, joined: &Joined) -> Self {
        Self::open(rig.connect_as(&joined.credentials).await).await.unwrap()
    }

    fn send(&self, report: &TrafficReport) {
        // A stream that was ended by the other side is noticed when it is read.
        let _ = self.reports.send(convert::report_to_pb(report));
    }

    async fn acked(&mut self, sequence: u64) {
        while timeout(DEADLINE, self.acks.message()).await.expect("an ack").unwrap().expect("open").sequence
            < sequence
        {}
    }

    async fn end(&mut self) -> Status {
        loop {
            match timeout(DEADLINE, self.acks.message()).await.expect("an end") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

fn edge(side: Side, service: &str, peer: Option<&Joined>, requests: u64) -> EdgeTraffic {
    let mut durations = Durations::new();
    (0..requests).for_each(|n| durations.record(Duration::from_micros(1_000 + n)));
    let peer = peer.map(|peer| peer.credentials.current().unwrap().identity().clone());
    let key = EdgeKey { side, service: service.into(), route: "r".into(), peer };
    let outcome = OutcomeCount { status_class: 2, grpc_status: None, reason: "".into(), count: requests };
    EdgeTraffic {
        security: Some("TLSv1_3 X Y".into()),
        outcomes: vec![outcome],
        durations,
        ..EdgeTraffic::new(key)
    }
}

fn report(epoch: u64, sequence: u64, edges: Vec<EdgeTraffic>) -> TrafficReport {
    let (length, ended_ago) = (Duration::from_secs(1), Duration::ZERO);
    TrafficReport { epoch, sequence, length, ended_ago, edges, events: vec![] }
}

/// From an hour ago to an hour from now.
async fn stat(rig: &Rig, question: &str) -> Value {
    let now = crate::recorder::wall();
    let path = format!("/stat?{question}&from={}&to={}", now - 3_600_000, now + 3_600_000);
    let (status, body) = rig.get(&path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

async fn events(rig: &Rig, question: &str) -> (Vec<Value>, u64) {
    let (status, body) = rig.get(&format!("/events?{question}")).await;
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["missed"], 0);
    (answer["events"].as_array().unwrap().clone(), answer["next"].as_u64().unwrap())
}

/// The first event that is wanted, waited for.
async fn event(rig: &Rig, kind: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    let mut after = 0;
    while start.elapsed() < DEADLINE {
        let (all, next) = events(rig, &format!("kind={kind}&after={after}&wait=2s")).await;
        if let Some(found) = all.into_iter().find(&wanted) {
            return found;
        }
        after = next;
    }
    panic!("no {kind} came: {:#?}", events(rig, "").await.0);
}

#[tokio::test]
async fn reports_count_once_also_over_a_restart() {
    let rig = Rig::start(&[("a.yaml", ORDERS)]).await;
    let (web, orders) = (rig.join("web").await, rig.join("orders").await);
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let _orders = Stream::greeted(&rig, &orders, &orders.hello("10.0.0.2")).await;
    let (mut caller, mut called) = (Reports::of(&rig, &web).await, Reports::of(&rig, &orders).await);
    let of_caller =
        |sequence| report(1, sequence, vec![edge(Side::Outbound, "shop/orders:80", Some(&orders), 10)]);
    let of_called = report(2, 1, vec![edge(Side::Inbound, ":8080", Some(&web), 8)]);
    for sequence in 1..=3 {
        caller.send(&of_caller(sequence));
    }
    called.send(&of_called);
    caller.acked(3).await;
    called.acked(1).await;

    let told = stat(&rig, "by=edge").await;
    assert_eq!(
        (&told["proxies"], &told["connected"], &told["complete"]),
        (&2.into(), &2.into(), &true.into())
    );
    let row = &told["rows"][0];
    assert_eq!(
        (&row["requests"], &row["meshed"], &row["security"]),
        (&30.into(), &true.into(), &"TLSv1_3 X Y".into())
    );
    assert_eq!(row["source"], "spiffe://mesh.local/ns/shop/sa/web");
    assert_eq!(row["target"], "spiffe://mesh.local/ns/shop/sa/orders");
    assert_eq!(
        row["outcomes"],
        serde_json::json!([{"status": "2xx", "grpc_status": null, "reason": null, "count": 30, "failed": false}])
    );
    // The called side knows the port only; the service is who selects the workload.
    let told = stat(&rig, "by=service&side=inbound&service=orders").await;
    assert_eq!(
        (&told["rows"][0]["service"], &told["rows"][0]["requests"]),
        (&"shop/orders:80".into(), &8.into())
    );
    assert_eq!(stat(&rig, "by=route&namespace=shop").await["rows"][0]["route"], "r");
    assert_eq!(stat(&rig, "namespace=bank").await["rows"], serde_json::json!([]));

    let rig = rig.restart().await;
    assert_eq!(stat(&rig, "by=service").await["rows"][0]["requests"], 30);
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let mut caller = Reports::of(&rig, &web).await;
    for sequence in 2..=4 {
        caller.send(&of_caller(sequence));
    }
    caller.acked(4).await;
    assert_eq!(stat(&rig, "by=service").await["rows"][0]["requests"], 40, "two of the three counted already");
    let metrics = rig.get("/metrics").await.1;
    assert!(metrics.contains("reports_total{result=\"duplicate\"} 2\n"), "{metrics}");
    assert!(metrics.contains("reports_total{result=\"taken\"} 1\n"), "{metrics}");
    let report = rig.report().await;
    assert_eq!(
        (&report["history"]["reports"], &report["history"]["disk"]["error"]),
        (&1.into(), &Value::Null)
    );
    assert_eq!(report["reports"]["streams"], 1);
}

#[tokio::test]
async fn a_stop_acknowledges_what_it_keeps() {
    let mut rig = Rig::start(&[]).await;
    let web = rig.join("web").await;
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let mut reports = Reports::of(&rig, &web).await;
    reports.send(&report(1, 1, vec![]));
    reports.acked(1).await;
    reports.send(&report(1, 2, vec![]));
    rig.wait_for("the second one", |report| report["history"]["reports"] == 2).await;
    let (_, ()) = tokio::join!(reports.acked(2), rig.stop());
    assert_eq!(reports.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn who_has_no_configuration_stream_is_told() {
    let rig = Rig::start(&[]).await;
    let refused = Reports::open(rig.connect_pinned().await.unwrap()).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let web = rig.join("web").await;
    let mut early = Reports::of(&rig, &web).await;
    early.send(&report(1, 1, vec![]));
    let status = early.end().await;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");

    // Opened before its greeting has come.
    let mut reports = Reports::of(&rig, &web).await;
    reports.send(&report(1, 1, vec![]));
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    reports.acked(1).await;
}

/// A proxy of another version, or a mad one: its other reports count, on the same stream, and it gains nothing by haste.
#[tokio::test]
async fn a_report_that_breaks_the_rules_costs_that_report() {
    let rig = Rig::start(&[]).await;
    let web = rig.join("web").await;
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let mut reports = Reports::of(&rig, &web).await;
    let good = |sequence| report(1, sequence, vec![edge(Side::Outbound, "shop/orders:80", None, 10)]);
    for sequence in 1..=9 {
        let mut one = convert::report_to_pb(&good(sequence));
        if sequence % 3 == 2 {
            one.epoch = 0;
            one.length_ms = 0;
        }
        reports.reports.send(one).unwrap();
    }
    let (mut acked, mut refused) = (0, Vec::new());
    while acked < 9 {
        let ack = timeout(DEADLINE, reports.acks.message()).await.expect("an ack").unwrap().expect("open");
        acked = ack.sequence;
        refused.extend(ack.refused);
    }
    assert_eq!(refused.iter().map(|one| one.sequence).collect::<Vec<_>>(), [2, 5, 8]);
    for one in &refused {
        assert!(one.why.contains("epoch") && one.why.contains("length_ms"), "{}", one.why);
    }
    assert_eq!(stat(&rig, "by=service").await["rows"][0]["requests"], 60, "all others count");
    assert!(rig.get("/metrics").await.1.contains("reports_total{result=\"refused\"} 3\n"));

    // As many as may wait, and no more until those are answered.
    let bad = pb::TrafficReport { sequence: 10, ..convert::report_to_pb(&report(0, 1, vec![])) };
    (0..1_000).for_each(|_| _ = reports.reports.send(bad.clone()));
    let ack = timeout(DEADLINE, reports.acks.message()).await.expect("an ack").unwrap().expect("open");
    assert!(ack.refused.len() <= 128, "{}", ack.refused.len());

    // What cannot be read at all has no number.
    let mut reports = Reports::of(&rig, &web).await;
    reports.send(&good(11));
    reports.acked(11).await;
    let mut wrong = convert::report_to_pb(&good(12));
    wrong.edges[0].durations = vec![0; 5 << 20];
    reports.reports.send(wrong).unwrap();
    let status = reports.end().await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("cannot be read"), "{status}");
}

#[tokio::test]
async fn questions_that_make_no_sense_are_told_what_is_wanted() {
    let rig = Rig::start(&[]).await;
    for (path, expected) in [
        ("/stat?by=pod", "by: \"pod\" is not one of service, route, edge\n"),
        ("/stat?window=1d", "window: \"1d\" is not a duration such as 30s, from 1s to 21600s\n"),
        ("/events?x=1", "\"x\" is not known; known are after, limit, wait, kind, since_ms\n"),
    ] {
        assert_eq!(rig.get(path).await, (400, expected.to_owned()));
    }
    let (status, body) = rig.get("/stat").await;
    let told: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &told["rows"], &told["resolution_ms"]), (200, &serde_json::json!([]), &1000.into()));
    assert_eq!(told["to_ms"].as_u64().unwrap() - told["from_ms"].as_u64().unwrap(), 30_000);
}

#[tokio::test]
async fn what_happens_in_the_mesh_is_an_event() {
    let rig = Rig::start(&[("a.yaml", ORDERS)]).await;
    let taken = event(&rig, "configuration-taken", |_| true).await;
    assert_eq!((&taken["seq"], &taken["details"]["generation"]), (&1.into(), &1.into()));
    let web = rig.join("web").await;
    let web_id = "spiffe://mesh.local/ns/shop/sa/web";
    let mut stream = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let joined = event(&rig, "proxy-joined", |_| true).await;
    assert_eq!(
        (&joined["subject"], &joined["details"]["addresses"]),
        (&web_id.into(), &serde_json::json!(["10.0.0.1"]))
    );

    let update = stream.next().await;
    let errors = vec![pb::FieldError { field: "resources[0].body".into(), reason: "no".into() }];
    stream.say(pb::configure_request::Kind::Nack(pb::Nack { nonce: update.nonce, errors }));
    let refused = event(&rig, "update-refused", |_| true).await;
    assert_eq!((&refused["reporter"], &refused["details"]["reason"]), (&web_id.into(), &"no".into()));

    rig.write("b.yaml", "kind: [");
    let refused = event(&rig, "configuration-refused", |_| true).await;
    assert_eq!((&refused["subject"], &refused["severity"]), (&"b.yaml".into(), &"error".into()));
    assert_eq!(refused["details"]["errors"][0]["file"], "b.yaml");
    // Good again, though nothing is new.
    fs::remove_file(rig.dir.path().join("config/b.yaml")).unwrap();
    let later = |event: &Value| event["seq"].as_u64() > refused["seq"].as_u64();
    let again = event(&rig, "configuration-taken", later).await;
    assert_eq!(
        (&again["details"]["generation"], &again["details"]["version"]),
        (&1.into(), &taken["details"]["version"])
    );
    assert_eq!(again["message"], "1 files, generation 1, as before the errors");

    let mut reports = Reports::of(&rig, &web).await;
    let ago = Duration::from_secs(5);
    let broken =
        ProxyEvent { ago, kind: ProxyEventKind::CaptureBroken, message: "the rules are gone".into() };
    let told = TrafficReport { events: vec![broken], ..report(1, 1, vec![]) };
    reports.send(&told);
    reports.send(&told);
    reports.acked(1).await;
    let broken = event(&rig, "capture-broken", |_| true).await;
    assert_eq!((&broken["subject"], &broken["message"]), (&web_id.into(), &"the rules are gone".into()));
    assert!(broken["at_ms"].as_u64().unwrap() + 4_000 < crate::recorder::wall());
    assert_eq!(
        events(&rig, "kind=capture-broken").await.0.len(),
        1,
        "a report that comes again tells nothing new"
    );

    // Two streams one after the other tell the same transition.
    for _ in 0..2 {
        let (sender, receiver) = mpsc::unbounded_channel();
        let channel = rig.connect_as(&web.credentials).await;
        let mut guidance = MeshClient::new(channel)
            .observe(UnboundedReceiverStream::new(receiver))
            .await
            .unwrap()
            .into_inner();
        let transition = Transition {
            backend: "shop/orders:80".parse().unwrap(),
            endpoint: ([10, 0, 0, 2], 8080).into(),
            to: Circuit::Open,
            cause: Cause::ConsecutiveFailures,
            at: 5_000,
            lasts: None,
            times: 1,
            why: "5 failures in a row (limit 5)".into(),
            evidence: vec![],
        };
        let seen = Observations {
            calling: vec![transition.backend.clone()],
            transitions: vec![transition],
            ..Observations::default()
        };
        sender.send(convert::observations_to_pb(&seen)).unwrap();
        timeout(DEADLINE, guidance.message()).await.expect("guidance").unwrap();
    }
    let opened = event(&rig, "circuit-opened", |_| true).await;
    assert_eq!((&opened["at_ms"], &opened["details"]["service"]), (&5_000.into(), &"shop/orders:80".into()));
    assert_eq!(events(&rig, "kind=circuit-opened").await.0.len(), 1);

    stream.say(pb::configure_request::Kind::State(pb::State {
        ready: true,
        draining: true,
        ..Default::default()
    }));
    event(&rig, "draining", |_| true).await;
    drop(stream);
    let left = event(&rig, "proxy-left", |_| true).await;
    assert_eq!((&left["subject"], &left["severity"]), (&web_id.into(), &"info".into()));

    let (all, next) = events(&rig, "limit=10000").await;
    let rig = rig.restart().await;
    let (again, _) = events(&rig, "limit=10000").await;
    assert_eq!(again[..all.len()], all, "they are kept, and numbers go on");
    assert_eq!(again[all.len()]["seq"], next + 1);
}

/// Of one identity, over as many connections as it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_reporters() {
    const STREAMS: u64 = 1_000;
    let rig = Rig::start(&[]).await;
    let web = rig.join("web").await;
    let _web = Stream::greeted(&rig, &web, &web.hello("10.0.0.1")).await;
    let mut channels = Vec::new();
    for _ in 0..STREAMS.div_ceil(16) {
        channels.push(rig.connect_as(&web.credentials).await);
    }
    let edges = |n: u64| {
        (0..10).map(move |e| edge(Side::Outbound, &format!("shop/s{e}:80"), None, 1 + n % 5)).collect()
    };
    let mut all = Vec::new();
    for number in 0..STREAMS {
        let reports = Reports::open(channels[(number / 16) as usize].clone()).await.unwrap();
        for sequence in 1..=3 {
            reports.send(&report(number + 1, sequence, edges(number)));
            reports.send(&report(number + 1, sequence, edges(number)));
        }
        all.push(reports);
    }
    for reports in &mut all {
        reports.acked(3).await;
    }
    let told = stat(&rig, "by=service").await;
    assert_eq!((&told["proxies"], told["rows"].as_array().unwrap().len()), (&STREAMS.into(), 10));
    let each: u64 = (0..STREAMS).map(|number| 3 * (1 + number % 5)).sum();
    for row in told["rows"].as_array().unwrap() {
        assert_eq!(row["requests"], each);
    }
    let metrics = rig.get("/metrics").await.1;
    assert!(
        metrics.contains("report_streams 1000\n") && metrics.contains("result=\"duplicate\"} 3000\n"),
        "{metrics}"
    );
}
