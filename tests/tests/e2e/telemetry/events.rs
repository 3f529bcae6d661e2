//! What happened, as `outrigger events` tells it, and still tells it after the control plane was killed.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, wait_for, wait_for_some};
use serde_json::Value;

use super::{page, wait_captured};
use crate::support::{
    SOON, Test,
    app::{App, Say},
    ask::Ask,
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![Test::new("events_tell_what_happened_also_after_a_restart", events)]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
const ALL: [&str; 9] = [
    "proxy-joined",
    "circuit-opened",
    "circuit-closed",
    "configuration-refused",
    "configuration-taken",
    "capture-broken",
    "capture-restored",
    "draining",
    "proxy-left",
];

fn all_events(mesh: &Mesh) -> Result<Vec<Value>> {
    let told = page(mesh, "/events?after=0&limit=1000")?;
    told["events"].as_array().cloned().with_context(|| told.to_string())
}

/// Waits for an event of this kind that says all these words somewhere; `after`: its number is higher.
fn wait_event(mesh: &Mesh, kind: &str, words: &[&str], after: u64) -> Result<Value> {
    let mut last = Vec::new();
    let found = wait_for_some(SOON, &format!("event {kind} with {words:?}"), || {
        last = all_events(mesh).unwrap_or_default();
        let fits = |event: &&Value| {
            let text = event.to_string();
            event["kind"] == kind
                && event["seq"].as_u64() > Some(after)
                && words.iter().all(|word| text.contains(word))
        };
        last.iter().find(fits).cloned()
    });
    let event = found.with_context(|| format!("{last:#?}"))?;
    ensure!(["info", "warning", "error"].iter().any(|severity| event["severity"] == *severity), "{event}");
    ensure!(!event["message"].as_str().unwrap_or_default().is_empty(), "{event}");
    ensure!(!event["subject"].as_str().unwrap_or_default().is_empty(), "{event}");
    Ok(event)
}

fn events(lab: &Lab) -> Result<()> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    let ejection = "  targetRef: {kind: Service, name: store}\n  retries: {attempts: 0}\n  \
                    loadBalancer: {algorithm: round-robin}\n  outlierEjection: {consecutiveFailures: 3, baseEjection: 1s}\n";
    let mesh = Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("ejection.yaml", policy("TrafficPolicy", "store", ejection))
        .start(lab)?;
    let instance = |name: &str| mesh.workload(name).service_account("store").label("app", "store").start();
    let (good, bad) = (instance("good")?, instance("bad")?);
    let _apps =
        [
            App::start(&good.pod, 8080, |_| Say::ok("good"))?,
            App::start(&bad.pod, 8080, |asked| {
                if asked.path == "/fail" { Say::status(503) } else { Say::ok("bad") }
            })?,
        ];
    let web = mesh.workload("web").start()?;
    wait_event(&mesh, "proxy-joined", &["sa/web"], 0)?;

    // A circuit, open and closed again.
    let ask = |path: &str| Ask::new(SocketAddr::from(STORE), path).once(&web.pod);
    for body in ["good", "bad"] {
        wait_for(SOON, &format!("an answer of {body}"), || ask("/").is_ok_and(|told| told.body == body))?;
    }
    let endpoint = SocketAddr::new(IpAddr::V4(bad.pod.ipv4()), 8080).to_string();
    let opened = wait_for_some(SOON, "the circuit to open", || {
        for _ in 0..10 {
            drop(ask("/fail"));
        }
        let events = all_events(&mesh).ok()?;
        events.into_iter().find(|event| event["kind"] == "circuit-opened")
    })?;
    ensure!(opened.to_string().contains(&endpoint) && opened.to_string().contains("shop/store"), "{opened}");
    let closed = wait_for_some(SOON, "the circuit to close", || {
        drop(ask("/"));
        let events = all_events(&mesh).ok()?;
        events.into_iter().find(|event| event["kind"] == "circuit-closed")
    })?;
    ensure!(closed["seq"].as_u64() > opened["seq"].as_u64(), "{closed} before {opened}");

    // Configuration that cannot be, and none of it any more.
    mesh.write(
        "broken.yaml",
        "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {name: x}\nspec: {colour: red}\n",
    )?;
    let refused = wait_event(&mesh, "configuration-refused", &["broken.yaml", "colour"], 0)?;
    ensure!(refused["severity"] == "error", "{refused}");
    mesh.write("broken.yaml", &Service::new("another").address("10.96.0.11").port(80, 8080, "http").yaml())?;
    let seq = refused["seq"].as_u64().context("seq")?;
    wait_event(&mesh, "configuration-taken", &[], seq)?;

    // The rules that lead traffic into the proxy are gone: somebody flushed them. Then they are back.
    wait_captured(&good)?;
    good.pod.run(good.pod.command("nft").args(["flush", "ruleset"]))?.success()?;
    wait_event(&mesh, "capture-broken", &["sa/store"], seq)?;
    good.pod.run(good.pod.command(mesh.binaries().proxy()).arg("init"))?.success()?;
    wait_event(&mesh, "capture-restored", &["sa/store"], seq)?;

    // One that leaves, and says so before.
    let mut leaving = mesh.workload("leaving").start()?;
    wait_event(&mesh, "proxy-joined", &["sa/leaving"], seq)?;
    leaving.proxy.terminate()?;
    leaving.proxy.wait_deadline(Duration::from_secs(30))?;
    wait_event(&mesh, "draining", &["sa/leaving"], seq)?;
    wait_event(&mesh, "proxy-left", &["sa/leaving"], seq)?;

    // What is on disk is there after a death, in the same order; what comes later has higher numbers.
    let told = mesh.outrigger(&["events"])?.success()?;
    for kind in ALL {
        ensure!(told.contains(kind), "{kind} is not in `outrigger events`:\n{told}");
    }
    let before = all_events(&mesh)?;
    // The last is a second old: that long, nothing is promised.
    std::thread::sleep(Duration::from_millis(1500));
    mesh.kill_control_plane(0);
    mesh.start_control_plane(0)?;
    let after = all_events(&mesh)?;
    ensure!(after.len() >= before.len(), "{} events of {}", after.len(), before.len());
    for (old, new) in before.iter().zip(&after) {
        ensure!(
            old["seq"] == new["seq"] && old["kind"] == new["kind"] && old["message"] == new["message"],
            "{old} became {new}"
        );
    }
    let last = before.last().and_then(|event| event["seq"].as_u64()).context("seq")?;
    mesh.write("broken.yaml", "kind: nonsense\n")?;
    wait_event(&mesh, "configuration-refused", &["broken.yaml"], last)?;
    // Of one kind, and for machines.
    let told = mesh.outrigger(&["events", "--kind", "circuit-opened", "-o", "json"])?.success()?;
    ensure!(told.contains("circuit-opened") && told.contains(&endpoint), "{told}");
    ensure!(!told.contains("configuration-refused") && !told.contains("proxy-left"), "{told}");
    Ok(())
}
