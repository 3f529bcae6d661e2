//! Certificates that live for seconds, and a root that is replaced: under load, without a failed request.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Workload, wait_for, wait_for_some};

use crate::support::{
    SOON, Test,
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

fn is_served(pod: &Pod) -> bool {
    certificate_of_caller(pod).is_some()
}

/// Hash of the certificate with which the callee knows the caller. Connections between proxies are kept, so it is that
/// of the connection's making.
fn certificate_of_caller(pod: &Pod) -> Option<String> {
    let request = b"GET /headers HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
    let answer = raw::exchange(pod, SocketAddr::from(STORE), request).ok()?;
    let (_, rest) = answer.split_once("Hash=")?;
    Some(rest.split(';').next()?.to_owned())
}

/// Connections must not outlive the certificate they were made with.
fn wait_for_new_connections(pod: &Pod, old: &str) -> Result<()> {
    wait_for(SOON, "connections with the new certificate", || {
        certificate_of_caller(pod).is_some_and(|new| new != old)
    })
}

fn short_life(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).flag("--leaf-life", "20s").start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let old = wait_for_some(SOON, "an answer", || certificate_of_caller(&web.pod))?;
    let chain = |workload| certs(workload).map(|certs| certs["chain"].clone()).context("a chain");
    let first = [chain(&web)?, chain(&store)?];
    let loads = loads(&web.pod)?;

    // Long enough that a certificate which was not renewed would have ended twice.
    let end = Instant::now() + Duration::from_secs(if long() { 300 } else { 45 });
    while Instant::now() < end {
        for load in &loads {
            load.wait_for_more(20, SOON)?;
        }
        thread::sleep(Duration::from_millis(200));
    }
    for load in loads {
        load.stop()?.expect_none_failed(1000)?;
    }
    let last = [chain(&web)?, chain(&store)?];
    ensure!(first[0] != last[0] && first[1] != last[1], "the same certificate all the time: {last:?}");
    wait_for_new_connections(&web.pod, &old)?;
    // New connections too.
    ensure!(is_served(&mesh.workload("late").start()?.pod), "a workload that joined at the end");
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

/// What a proxy shows at its admin port.
fn certs(workload: &Workload) -> Option<serde_json::Value> {
    serde_json::from_str(&workload.admin("/certs").ok()?.body).ok()
}

fn wait_for_certs(workload: &Workload, what: &str, holds: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
    let mut last = None;
    let what = format!("{what} in {}", workload.name());
    let waited = wait_for(SOON, &what, || {
        last = certs(workload);
        last.as_ref().is_some_and(&holds)
    });
    waited.with_context(|| format!("{last:?}"))
}

fn wait_for_roots(workload: &Workload, count: usize) -> Result<()> {
    wait_for_certs(workload, &format!("{count} trusted roots"), |certs| {
        certs["roots"].as_array().is_some_and(|roots| roots.len() == count)
    })
}

fn root_replacement(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).flag("--leaf-life", "10m").start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let old = wait_for_some(SOON, "an answer", || certificate_of_caller(&web.pod))?;
    let loads = loads(&web.pod)?;
    let other = other_authority(&mesh)?;
    let ca = mesh.state_dir().join("ca");
    let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
    let (old_root, new_root) = (read(&ca.join("trust.pem"))?, read(&other.join("trust.pem"))?);
    ensure!(old_root != new_root);

    // First both are trusted, everywhere.
    replace(&ca.join("trust.pem"), &format!("{old_root}{new_root}"))?;
    [&web, &store].into_iter().try_for_each(|workload| wait_for_roots(workload, 2))?;
    // Then the new one issues, and everyone has a certificate of it before the old one goes.
    let issuer = |certs: &serde_json::Value| certs["chain"][0]["issuer"].as_str().map(str::to_owned);
    let old_issuer = certs(&web).as_ref().and_then(issuer).context("an issuer")?;
    replace(&ca.join("ca.key"), &read(&other.join("ca.key"))?)?;
    replace(&ca.join("ca.pem"), &read(&other.join("ca.pem"))?)?;
    for workload in [&web, &store] {
        wait_for_certs(workload, "a certificate of the new root", |certs| {
            issuer(certs).is_some_and(|issuer| issuer != old_issuer)
        })?;
    }
    wait_for_new_connections(&web.pod, &old)?;
    for load in &loads {
        load.wait_for_more(100, SOON)?;
    }
    // In the end the old one is forgotten.
    replace(&ca.join("trust.pem"), &new_root)?;
    [&web, &store].into_iter().try_for_each(|workload| wait_for_roots(workload, 1))?;
    for load in &loads {
        load.wait_for_more(100, SOON)?;
    }
    for load in loads {
        load.stop()?.expect_none_failed(200)?;
    }
    // New connections too.
    ensure!(is_served(&mesh.workload("late").start()?.pod), "a workload that joined after the change");
    Ok(())
}
