//! What is readable on the wire between the pods: nothing, unless a port is permissive and the caller has no sidecar.

use std::{io::Write, net::SocketAddr};

use anyhow::{Result, ensure};
use outrigger_lab::{Lab, Mesh, wait_for};

use crate::support::{
    SOON, Test,
    origin::Origin,
    raw,
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![Test::new("nothing_is_readable_on_the_wire_and_the_check_can_fail", readable)]
}

const SECRET: &str = "a-very-readable-secret";

fn readable(lab: &Lab) -> Result<()> {
    let service = Service::new("store")
        .address("10.96.0.10")
        .port(80, 8080, "http")
        .port(88, 8080, "")
        .port(86, 8086, "tcp");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let sink = raw::Sink::start(&store.pod, 8086)?;
    let web = mesh.workload("web").start()?;
    let bare = lab.pod("bare")?;

    let body = format!("{SECRET} ").repeat(1000);
    let post = format!(
        "POST /echo HTTP/1.1\r\nhost: store.shop\r\nx-secret: {SECRET}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let virtual_address = |port| SocketAddr::from(([10, 96, 0, 10], port));
    let direct = SocketAddr::new(store.pod.ipv4().into(), 8080);

    let capture = lab.capture()?;
    for target in [virtual_address(80), virtual_address(88), direct] {
        let answer = raw::exchange(&web.pod, target, post.as_bytes())?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains(SECRET), "{target}: {answer}");
    }
    let mut tcp = raw::connect(&web.pod, virtual_address(86))?;
    tcp.write_all(body.as_bytes())?;
    wait_for(SOON, "the bytes to arrive", || sink.bytes() == body.len() as u64)?;
    let captured = capture.stop()?;
    ensure!(
        captured.bytes > 6 * body.len() as u64,
        "the capture missed the traffic: {} bytes",
        captured.bytes
    );
    ensure!(captured.unsearched() == 0);
    for readable in [SECRET, "POST /echo", "store.shop"] {
        let found = captured.count(readable.as_bytes());
        ensure!(found == 0, "{readable:?} was readable in {found} packets");
    }

    // The same check with a permissive port and a caller without a sidecar: it has to find them.
    let permissive = "  selector: {app: store}\n  ports: [{port: 8080, mtls: permissive}]\n";
    mesh.write("permissive.yaml", &policy("ServerPolicy", "store", permissive))?;
    wait_for(SOON, "plaintext to be taken", || {
        raw::exchange(&bare, direct, post.as_bytes()).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })?;
    let capture = lab.capture()?;
    let answer = raw::exchange(&bare, direct, post.as_bytes())?;
    ensure!(answer.contains(SECRET), "{answer}");
    let captured = capture.stop()?;
    ensure!(captured.count(SECRET.as_bytes()) > 0, "the check cannot fail");

    // Callers with a sidecar go on in mutual TLS.
    let capture = lab.capture()?;
    let answer = raw::exchange(&web.pod, virtual_address(80), post.as_bytes())?;
    ensure!(answer.contains(SECRET), "{answer}");
    let captured = capture.stop()?;
    ensure!(captured.count(SECRET.as_bytes()) == 0, "readable although both have sidecars");
    Ok(())
}
