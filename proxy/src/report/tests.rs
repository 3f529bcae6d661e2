//! What two proxies between a program and an application report of it.

use std::rc::Rc;

use outrigger_proto::spec::{Protocol, Side};
use tokio::{io::AsyncWriteExt as _, sync::mpsc, time::sleep};

use super::*;
use crate::{
    rig::{PATIENCE, Reply, Rig, identity, read_rest, read_until, run, write},
    worker::Worker,
};

/// All that the proxy has to report, once there is so much.
async fn told(worker: &Rc<Worker>, wanted: impl Fn(&EdgeTraffic) -> bool) -> Vec<EdgeTraffic> {
    let (give, mut given) = mpsc::channel(1);
    let mut all = Vec::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while tokio::time::Instant::now() < deadline {
        worker.telemetry.report(0, &give);
        all = fold::edges(all.into_iter().chain(given.recv().await.unwrap().1), 100);
        if all.iter().any(&wanted) {
            return all;
        }
        sleep(Duration::from_millis(5)).await;
    }
    panic!("it is never told; all there is: {all:#?}");
}

/// Of a mesh connection between our proxies.
fn is_secured(edge: &EdgeTraffic) -> bool {
    let words: Vec<_> = edge.security.as_deref().unwrap_or_default().split(' ').collect();
    matches!(&words[..], ["TLSv1_3", cipher, "X25519MLKEM768"] if cipher.starts_with("TLS13_"))
}

#[test]
fn both_sides_tell_of_a_request_who_it_was_with_and_how_it_was_secured() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        rig.servers[0].serve(|number, _| {
            let status = if number < 3 { "200 OK" } else { "503 Service Unavailable" };
            Reply::Answer(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"))
        });
        let mut program = rig.dial();
        for _ in 0..4 {
            write(&mut program, "POST /a HTTP/1.1\r\nHost: orders\r\nContent-Length: 3\r\n\r\nabc").await;
            read_until(&mut program, "ok").await;
        }
        drop(program);
        let all = |edge: &EdgeTraffic| edge.requests() == 4;
        let port = format!(":{}", rig.servers[0].app.local_addr().unwrap().port());
        for (worker, side, service, peer) in [
            (&rig.client, Side::Outbound, "shop/orders:80", identity("orders")),
            (&rig.servers[0].worker, Side::Inbound, &*port, identity("web")),
        ] {
            let [edge] = &told(worker, all).await[..] else { panic!("one edge") };
            assert_eq!((edge.key.side, &*edge.key.service, &edge.key.peer), (side, service, &Some(peer)));
            assert_eq!((edge.failures(), edge.durations.count()), (1, 4));
            assert_eq!((edge.received, edge.sent, edge.connections), (12, 8, 0));
            assert!(is_secured(edge), "{edge:?}");
        }
    });
}

#[test]
fn both_sides_tell_of_an_opaque_connection() {
    run(|| async {
        let rig = Rig::new(Protocol::Tcp, 1).await;
        let mut program = rig.dial();
        write(&mut program, "ping\n").await;
        let mut app = rig.app().await;
        read_until(&mut app, "ping\n").await;
        write(&mut app, "pong").await;
        app.shutdown().await.unwrap();
        read_rest(&mut program).await;
        program.shutdown().await.unwrap();
        drop((program, app));
        for (worker, side) in [(&rig.client, Side::Outbound), (&rig.servers[0].worker, Side::Inbound)] {
            let [edge] = &told(worker, |edge| edge.connections == 1).await[..] else { panic!("one edge") };
            assert_eq!((edge.key.side, edge.connections_failed), (side, 0));
            assert_eq!((edge.received, edge.sent, edge.requests()), (5, 4, 0));
            assert!(is_secured(edge), "{edge:?}");
        }
    });
}

#[test]
fn events_are_told_with_the_next_report_and_too_many_are_counted() {
    let reports = Reports::new();
    for number in 0..=MAX_REPORT_EVENTS {
        reports.event(ProxyEventKind::CaptureBroken, format!("{number}"));
    }
    reports.close(Vec::new(), now());
    let report = reports.after(0, 0).unwrap();
    assert_eq!((report.events.len(), report.events[0].message.as_str()), (MAX_REPORT_EVENTS, "1"));
    assert_eq!(reports.standing().events_dropped, 1);
    reports.close(Vec::new(), now());
    assert!(reports.after(0, 1).is_none(), "nothing has happened since");
}
