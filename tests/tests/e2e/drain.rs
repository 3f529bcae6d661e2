//! SIGTERM to one of three instances under load: nothing is lost.

use std::{
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, wait_for};

use crate::support::{
    SOON, Test,
    load::{Kind, MESSAGES, Plan},
    origin::Origin,
    raw,
    yaml::Service,
};

/// What the issue asks for: failures among fewer would be luck.
const FEWEST: u64 = 20_000;

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("sigterm_of_one_of_three_loses_no_http1_request", |lab| one_of_three(lab, Kind::Http1)),
        Test::new("sigterm_of_one_of_three_loses_no_http2_request", |lab| one_of_three(lab, Kind::Http2)),
        Test::new("sigterm_of_one_of_three_loses_no_grpc_stream", |lab| one_of_three(lab, Kind::GrpcStream)),
        Test::new("sigterm_is_not_ready_finishes_what_runs_and_exits_with_0", finishes_what_runs),
    ]
}

fn one_of_three(lab: &Lab, kind: Kind) -> Result<()> {
    let protocol = if kind == Kind::GrpcStream { "grpc" } else { "http" };
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, protocol);
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let mut instances = Vec::new();
    for name in ["one", "two", "three"] {
        let workload = mesh
            .workload(name)
            .service_account("store")
            .label("app", "store")
            .proxy_arg("--drain-grace")
            .proxy_arg("10s")
            .start()?;
        let origin = Origin::start(&workload.pod, 8080, name)?;
        instances.push((workload, origin));
    }
    let web = mesh.workload("web").start()?;
    let target = SocketAddr::from(([10, 96, 0, 10], 80));
    let load = Plan::new(kind, target, "store.shop").loops(16, Duration::from_micros(500)).start(&web.pod)?;
    // A stream counts as its messages.
    let fewest = if kind == Kind::GrpcStream { FEWEST / MESSAGES } else { FEWEST };
    load.wait_for_more(fewest / 2, SOON)?;

    let (mut leaving, origin) = instances.remove(1);
    leaving.proxy.terminate()?;
    let status = leaving.proxy.wait_deadline(Duration::from_secs(20)).context("the drained proxy")?;
    ensure!(status.success(), "the drained proxy ended with {status}");
    let served = origin.requests();
    load.wait_for_more(fewest / 2, SOON)?;
    let report = load.stop()?;
    report.expect_none_failed(fewest)?;
    ensure!(origin.requests() == served, "requests reached the instance after its proxy had ended");
    for name in ["one", "two", "three"] {
        ensure!(report.instances.get(name).is_some_and(|count| *count > 0), "{name} got nothing: {report}");
    }
    Ok(())
}

fn finishes_what_runs(lab: &Lab) -> Result<()> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let mut store = mesh.workload("store").proxy_arg("--drain-grace").proxy_arg("20s").start()?;
    let origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let target = SocketAddr::from(([10, 96, 0, 10], 80));
    let mut slow = raw::connect(&web.pod, target)?;
    slow.write_all(b"GET /slow/4000 HTTP/1.1\r\nhost: store.shop\r\n\r\n")?;
    wait_for(SOON, "the request to arrive", || origin.requests() == 1)?;

    let start = Instant::now();
    store.proxy.terminate()?;
    wait_for(SOON, "/ready to say no", || store.status("/ready").is_ok_and(|answer| answer.status == 503))?;
    let (head, body) = raw::read_answer(&mut slow).context("the request in flight")?;
    ensure!(head.starts_with("http/1.1 200") && body == b"store", "{head}");
    let status = store.proxy.wait_deadline(Duration::from_secs(15))?;
    ensure!(status.success(), "{status}");
    ensure!(start.elapsed() < Duration::from_secs(18), "it waited out its grace although nothing was left");
    Ok(())
}
