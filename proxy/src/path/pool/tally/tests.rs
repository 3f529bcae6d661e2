use std::time::Duration;

use outrigger_proto::spec::Protocol;
use tokio::time::{sleep, timeout};

use crate::{
    metrics::Observed,
    rig::{PATIENCE, Reply, Rig, read_rest, run, write},
    worker::Worker,
};

const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Waits until a worker has counted all of this.
async fn shows(worker: &Worker, lines: &[&str]) {
    let page = || worker.ctx.telemetry.metrics.render(&Observed::default());
    let missing = || lines.iter().find(|line| !page().lines().any(|one| one == **line));
    let waiting = async {
        while missing().is_some() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("{} is not in\n{}", missing().unwrap_or(&""), page()));
}

#[test]
fn connections_count_for_the_service_that_uses_them() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        rig.servers[0].serve(|_, _| Reply::Answer(ANSWER.to_owned()));
        for _ in 0..3 {
            let mut program = rig.dial();
            write(&mut program, "GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n").await;
            assert!(read_rest(&mut program).await.0.starts_with("HTTP/1.1 200"));
        }
        let [upstream] = &*rig.client.clusters.upstreams() else { panic!("one service") };
        assert_eq!((&*upstream.service, upstream.open, upstream.idle), ("shop/orders:80", 1, 1));
        assert_eq!(upstream.retries_left, 10, "the minimum, and three requests add less");
        shows(
            &rig.client,
            &[
                "outrigger_upstream_connect_seconds_count{service=\"shop/orders:80\"} 1",
                "outrigger_upstream_reused_total{service=\"shop/orders:80\"} 2",
            ],
        )
        .await;
        // The connection to the application is one too.
        let inbound = &rig.servers[0].worker.ctx.telemetry.metrics;
        assert!(inbound.render(&Observed::default()).contains("outrigger_upstream_connect_seconds_count{"));

        rig.backend.endpoints.clear();
        rig.configure();
        shows(
            &rig.client,
            &["outrigger_upstream_closed_total{service=\"shop/orders:80\",cause=\"endpoint-left\"} 1"],
        )
        .await;
    });
}

#[test]
fn what_cannot_be_dialled_is_counted_by_reason() {
    run(|| async {
        let mut rig = Rig::new(Protocol::Http, 1).await;
        // Nobody listens there.
        rig.backend.endpoints[0].address.set_port(1);
        rig.configure();
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n").await;
        assert!(read_rest(&mut program).await.0.starts_with("HTTP/1.1 503"));
        let line = "outrigger_upstream_connect_failures_total{service=\"shop/orders:80\",reason=\"connect-failed\"} ";
        let page = rig.client.ctx.telemetry.metrics.render(&Observed::default());
        assert!(page.lines().any(|one| one.starts_with(line)), "{page}");
    });
}

#[test]
fn who_closes_is_told_apart() {
    run(|| async {
        let rig = Rig::new(Protocol::Http, 1).await;
        // The application closes after its first answer.
        rig.servers[0].serve(|_, _| Reply::Last(ANSWER.to_owned()));
        let mut program = rig.dial();
        write(&mut program, "GET / HTTP/1.1\r\nHost: orders.shop\r\nConnection: close\r\n\r\n").await;
        assert!(read_rest(&mut program).await.0.starts_with("HTTP/1.1 200"));
        let closed = |page: &str| {
            let line = page.lines().find(|line| line.starts_with("outrigger_upstream_closed_total{"));
            line.map(str::to_owned)
        };
        let told = async {
            loop {
                let page = rig.servers[0].worker.ctx.telemetry.metrics.render(&Observed::default());
                match closed(&page) {
                    Some(line) => return line,
                    None => sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let line = timeout(PATIENCE, told).await.expect("it is never counted");
        assert!(line.contains("cause=\"peer\"} 1"), "{line}");
    });
}
