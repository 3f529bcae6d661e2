//! Certificates that live for seconds, and a root that is replaced: under load, without a failed request.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Pod, wait_for, wait_for_some};

use crate::support::{
    Test,
    load::{Kind, Load, Plan},
    long,
    origin::Origin,
    raw,
    yaml::Service,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("leaf_certificates_of_20_seconds_renew_under_load_without_a_failed_request", short_life),
        Test::new("the_root_is_replaced_live_under_load_without_a_failed_request", root_replacement),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);

fn service() -> String {
    Service::new("store").address("10.96.0.10").port(80, 8080, "http").yaml()
}

fn loads(pod: &Pod) -> Result<[Load; 2]> {
    let start = |kind| {
        Plan::new(kind, SocketAddr::from(STORE), "store.shop").loops(4, Duration::from_millis(10)).start(pod)
    };
    Ok([start(Kind::Http1)?, start(Kind::Http2)?])
}

/// Hash of the certificate that the caller showed, as its callee was told; on a connection of its own.
fn certificate_of_caller(pod: &Pod) -> Option<String> {
    let request = b"GET /headers HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
    let answer = raw::exchange(pod, SocketAddr::from(STORE), request).ok()?;
    let (_, rest) = answer.split_once("Hash=")?;
    Some(rest.split(';').next()?.to_owned())
}

fn short_life(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).flag("--leaf-life", "20s").start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let first = wait_for_some(Duration::from_secs(10), "an answer", || certificate_of_caller(&web.pod))?;
    let loads = loads(&web.pod)?;

    // Long enough that a certificate which was not renewed would have ended twice.
    let end = Instant::now() + Duration::from_secs(if long() { 300 } else { 45 });
    while Instant::now() < end {
        for load in &loads {
            load.wait_for_more(20, Duration::from_secs(20))?;
        }
        thread::sleep(Duration::from_millis(200));
    }
    for load in loads {
        load.stop()?.expect_none_failed(1000)?;
    }
    let last = certificate_of_caller(&web.pod).context("an answer at the end")?;
    ensure!(first != last, "the same certificate all the time");
    Ok(())
}

/// Makes another authority by starting a control plane on an empty directory.
fn other_authority(mesh: &Mesh) -> Result<std::path::PathBuf> {
    let lab = mesh.lab();
    let directory = lab.directory().join("other-authority");
    let config = lab.directory().join("other-config");
    fs::create_dir_all(&config)?;
    let pod = lab.pod("other-authority")?;
    let mut other = pod.spawn(
        pod.command(mesh.binaries().control_plane())
            .arg("--config-dir")
            .arg(&config)
            .arg("--state-dir")
            .arg(&directory),
        "other-authority",
    )?;
    let key = directory.join("ca/ca.key");
    wait_for(Duration::from_secs(20), "another authority", || {
        !other.is_running() || (key.exists() && directory.join("ca/trust.pem").exists())
    })?;
    ensure!(key.exists(), "{}", other.log());
    Ok(directory.join("ca"))
}

/// In one step, so that a watcher never sees half a file.
fn replace(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, text)?;
    fs::rename(&draft, path).with_context(|| path.display().to_string())
}

/// How many roots the caller's proxy trusts, by its admin port.
fn trusted_roots(web: &outrigger_lab::Workload) -> Option<usize> {
    let answer = web.admin("/certs").ok()?;
    let certs: serde_json::Value = serde_json::from_str(&answer.body).ok()?;
    let roots = certs.get("roots").or_else(|| certs.get("trust").and_then(|trust| trust.get("roots")))?;
    Some(roots.as_array()?.len())
}

fn root_replacement(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).flag("--leaf-life", "10m").start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let soon = Duration::from_secs(30);
    let old = wait_for_some(soon, "an answer", || certificate_of_caller(&web.pod))?;
    let loads = loads(&web.pod)?;
    let other = other_authority(&mesh)?;
    let ca = mesh.state_dir().join("ca");
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let (old_root, new_root) = (read(&ca.join("trust.pem"))?, read(&other.join("trust.pem"))?);
    ensure!(old_root != new_root);

    // First both are trusted, everywhere.
    replace(&ca.join("trust.pem"), &format!("{old_root}{new_root}"))?;
    for workload in [&web, &store] {
        wait_for(soon, "two trusted roots", || trusted_roots(workload) == Some(2))
            .with_context(|| format!("{:?}", workload.admin("/certs")))?;
    }
    // Then the new one issues.
    replace(&ca.join("ca.key"), &read(&other.join("ca.key"))?)?;
    replace(&ca.join("ca.pem"), &read(&other.join("ca.pem"))?)?;
    wait_for(soon, "certificates of the new root", || {
        certificate_of_caller(&web.pod).is_some_and(|new| new != old)
    })?;
    for load in &loads {
        load.wait_for_more(100, soon)?;
    }
    // In the end the old one is forgotten. The callee's certificate is renewed too by now, or its proxy would be
    // unreachable below.
    let subject_of = |workload: &outrigger_lab::Workload| workload.admin("/certs").map(|answer| answer.body);
    let before = subject_of(&store)?;
    replace(&ca.join("trust.pem"), &new_root)?;
    for workload in [&web, &store] {
        wait_for(soon, "one trusted root", || trusted_roots(workload) == Some(1))
            .with_context(|| format!("before: {before}; now: {:?}", workload.admin("/certs")))?;
    }
    for load in &loads {
        load.wait_for_more(100, soon)?;
    }
    for load in loads {
        load.stop()?.expect_none_failed(200)?;
    }
    // New connections too, and a workload that joins now.
    let late = mesh.workload("late").start()?;
    certificate_of_caller(&late.pod).context("a workload that joined after the change")?;
    Ok(())
}
