//! The control plane away, back, or one of several; tokens that must not be believed; what a user asks it.

use std::{
    fs,
    net::SocketAddr,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Workload, wait_for};

use crate::support::{
    SOON, Test,
    load::{Kind, Plan},
    long,
    origin::Origin,
    raw,
    yaml::{Service, split},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_killed_control_plane_costs_no_request_and_restarts_find_their_way", outage),
        Test::new("another_control_plane_takes_over_with_its_endpoints", failover),
        Test::new("tokens_expired_tampered_foreign_or_replayed_are_refused_with_the_reason", bad_tokens),
        Test::new("a_full_disk_for_the_snapshot_is_a_warning_and_nothing_else", full_disk),
        Test::new("status_and_certs_show_print_what_the_mesh_is", command_line),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);

fn service() -> String {
    Service::new("store").address("10.96.0.10").port(80, 8080, "http").yaml()
}

fn get(pod: &Pod) -> Result<String> {
    let request = b"GET /id HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
    raw::exchange(pod, SocketAddr::from(STORE), request)
}

fn wait_served(pod: &Pod, by: &str) -> Result<()> {
    let mut last = String::new();
    wait_for(SOON, &format!("an answer of {by}"), || {
        last = get(pod).unwrap_or_else(|error| format!("{error:#}"));
        last.starts_with("HTTP/1.1 200") && last.ends_with(by)
    })
    .context(last)
}

fn outage(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let mut keeper = mesh.workload("keeper").with_identity_dir().start()?;
    let mut forgetful = mesh.workload("forgetful").start()?;
    for workload in [&web, &keeper, &forgetful] {
        wait_served(&workload.pod, "store")?;
    }
    // What the keeper knows has to be on disk before it dies.
    let snapshot = keeper.state_dir().join("snapshot.pb");
    wait_for(SOON, "the destination in the keeper's snapshot", || {
        let text = fs::read(&snapshot).unwrap_or_default();
        String::from_utf8_lossy(&text).contains("address/10.96.0.10:80")
    })?;
    let load = Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
        .loops(4, Duration::from_millis(10))
        .start(&web.pod)?;

    let start = Instant::now();
    mesh.kill_control_plane(0);
    load.wait_for_more(50, SOON)?;
    keeper.restart_proxy()?;
    keeper.wait_ready().context("with an identity directory")?;
    wait_served(&keeper.pod, "store").context("from the snapshot")?;
    forgetful.restart_proxy()?;
    wait_for(SOON, "the forgetful proxy to say why it is not ready", || {
        forgetful.status("/ready").is_ok_and(|answer| {
            let told = answer.body.to_lowercase();
            answer.status == 503 && told.contains("certificate: ") && told.contains("15012")
        })
    })
    .with_context(|| format!("{:?}", forgetful.status("/ready")))?;
    let live = forgetful.status("/live")?;
    ensure!(live.status == 200, "{live:?}");
    let told = mesh.status(&[])?;
    ensure!(!told.status.success() && told.stderr.contains("15014"), "{told}");

    let away = Duration::from_secs(if long() { 60 } else { 10 });
    thread::sleep(away.saturating_sub(start.elapsed()));
    mesh.start_control_plane(0)?;
    forgetful.wait_ready().context("after the control plane came back")?;
    wait_served(&forgetful.pod, "store")?;
    // Endpoints joined by selector are still there when the time to come back is over for those that did not.
    load.wait_for_more(50, SOON)?;
    load.stop()?.expect_none_failed(500)?;
    // And it commands again.
    mesh.remove("store.yaml")?;
    wait_for(SOON, "the service to disappear", || get(&web.pod).is_ok_and(|answer| !answer.contains(" 200 ")))
}

fn failover(lab: &Lab) -> Result<()> {
    let version = |name: &str| {
        Service::new(name).select("app", "store").select("version", name).port(80, 8080, "http").yaml()
    };
    let mesh = Mesh::builder()
        .file("store.yaml", service())
        .file("v1.yaml", version("v1"))
        .file("v2.yaml", version("v2"))
        .file("split.yaml", split("split", "store", 80, &[("v1", 1)]))
        .replicas(2)
        .start(lab)?;
    let instance = |name: &str| -> Result<(Workload, Origin)> {
        let workload = mesh
            .workload(name)
            .service_account("store")
            .label("app", "store")
            .label("version", name)
            .start()?;
        let origin = Origin::start(&workload.pod, 8080, name)?;
        Ok((workload, origin))
    };
    let (_one, _two) = (instance("v1")?, instance("v2")?);
    let web = mesh.workload("web").start()?;
    wait_served(&web.pod, "v1")?;
    let load = Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
        .loops(2, Duration::from_millis(10))
        .start(&web.pod)?;
    mesh.kill_control_plane(0);
    load.wait_for_more(50, SOON)?;
    // Only the second one can tell them.
    mesh.write("split.yaml", &split("split", "store", 80, &[("v2", 1)]))?;
    wait_served(&web.pod, "v2")?;
    let late =
        mesh.workload("late").start().context("a workload that joins through the second control plane")?;
    wait_served(&late.pod, "v2")?;
    load.stop()?.expect_none_failed(50)
}

fn bad_tokens(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).start(lab)?;
    let good = mesh.token("shop", "web", &["--label", "app=web"])?;
    ensure!(good.starts_with("or1."), "{good}");

    let mut tampered: Vec<&str> = good.split('.').collect();
    let other = mesh.token("shop", "admin", &[])?;
    let other: Vec<&str> = other.split('.').collect();
    // The payload of one with the signature of another.
    tampered[1] = other[1];
    let expired = mesh.token("shop", "web", &["--ttl", "1s"])?;
    let foreign = {
        // Of another authority, which the control plane cannot be pinned to.
        let elsewhere = Lab::named("foreign")?;
        let foreign = Mesh::builder().flag("--trust-domain", "elsewhere.example").start(&elsewhere)?;
        foreign.token("shop", "web", &[])?
    };
    thread::sleep(Duration::from_millis(1500));

    let cases = [
        ("expired", expired, &["the join token expired"][..]),
        ("tampered", tampered.join("."), &["not signed by this mesh"][..]),
        ("foreign", foreign, &["fingerprint", "root", "trust domain"][..]),
        ("nonsense", "or1.nonsense".to_owned(), &["the join token is malformed"][..]),
    ];
    for (name, token, reasons) in cases {
        let pod = lab.pod(name)?;
        let mut proxy = pod.spawn(&mut bare_proxy(&mesh, &pod, name, &token), &format!("{name}-proxy"))?;
        wait_for(SOON, &format!("the {name} token to be refused with a reason"), || {
            let told = format!("{}{}", proxy.log(), ready(&pod)).to_lowercase();
            reasons.iter().any(|reason| told.contains(reason))
        })
        .with_context(|| ready(&pod))?;
        if name == "nonsense" {
            // What no control plane could ever take ends it.
            ensure!(!proxy.wait_deadline(SOON)?.success(), "{}", proxy.log());
        } else {
            ensure!(ready(&pod).contains("503"), "{name}: {}", ready(&pod));
        }
        ensure!(!proxy.log().contains(&token), "{name}: the token is in the log");
    }

    // Single use: the first key takes it, another is refused, and the first may come back.
    let single = mesh.token("shop", "web", &["--single-use"])?;
    let [first, second] = ["first", "second"].map(|name| lab.pod(name));
    let (first, second) = (first?, second?);
    let _one = first.spawn(&mut bare_proxy(&mesh, &first, "first", &single), "first-proxy")?;
    wait_for(SOON, "the first use", || ready(&first).contains("200"))?;
    let two = second.spawn(&mut bare_proxy(&mesh, &second, "second", &single), "second-proxy")?;
    wait_for(SOON, "the second use to be refused", || {
        format!("{}{}", two.log(), ready(&second)).to_lowercase().contains("used")
    })
    .with_context(|| ready(&second))?;
    ensure!(ready(&second).contains("503"));
    Ok(())
}

/// A proxy without redirect rules, which a forward gives something to do, with a token that need not be good.
fn bare_proxy(mesh: &Mesh, pod: &Pod, name: &str, token: &str) -> Command {
    let mut command = pod.command(mesh.binaries().proxy());
    command
        .args(["run", "--no-capture", "--workers", "1", "--control-plane", &mesh.control_plane_list()])
        .args(["--token", token, "--forward", "127.0.0.1:9001=store.shop:80"])
        .arg("--state-dir")
        .arg(mesh.lab().directory().join(format!("{name}-state")));
    command
}

fn ready(pod: &Pod) -> String {
    let address = SocketAddr::new(pod.ipv4().into(), 15020);
    pod.lab()
        .get(address, "/ready")
        .map_or_else(|error| error.to_string(), |answer| format!("{} {}", answer.status, answer.body))
}

fn full_disk(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let small = lab.directory().join("small");
    fs::create_dir_all(&small)?;
    let pod = lab.pod("web")?;
    pod.run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4k,nr_inodes=16", "tmpfs"]).arg(&small))?
        .success()?;
    // Its one page is taken, so there is room for names but for no content.
    fs::write(small.join("filler"), vec![0; 4096])?;
    let served = (|| {
        let web = mesh
            .workload("web")
            .on(&pod)
            .proxy_arg("--state-dir")
            .proxy_arg(small.display().to_string())
            .start()?;
        wait_served(&web.pod, "store")?;
        wait_for(SOON, "a warning about the snapshot", || {
            web.proxy
                .log()
                .lines()
                .any(|line| line.contains("WARN") && line.to_lowercase().contains("snapshot"))
        })?;
        wait_served(&web.pod, "store")
    })();
    pod.run(Command::new("umount").arg("-l").arg(&small))?;
    served
}

fn command_line(lab: &Lab) -> Result<()> {
    let mesh = Mesh::builder().file("store.yaml", service()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let _origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    wait_served(&web.pod, "store")?;

    let table = mesh.status(&[])?.success()?;
    for part in ["store", "web", &store.pod.ipv4().to_string()] {
        ensure!(table.contains(part), "no {part:?} in {table}");
    }
    let json = mesh.status(&["-o", "json"])?.success()?;
    let status: serde_json::Value = serde_json::from_str(&json).context(json)?;
    ensure!(status.to_string().contains("spiffe://mesh.local/ns/shop/sa/web"), "{status}");

    let show = |arguments: &[&str]| {
        let pod = &web.pod;
        pod.run(pod.command(mesh.binaries().outrigger()).args(["certs", "show"]).args(arguments))
    };
    let certs = show(&["--proxy", "http://127.0.0.1:15000"])?.success()?;
    ensure!(certs.contains("spiffe://mesh.local/ns/shop/sa/web"), "{certs}");
    let certs = show(&["--proxy", "http://127.0.0.1:15000", "-o", "json"])?.success()?;
    serde_json::from_str::<serde_json::Value>(&certs).context(certs)?;
    let authority = mesh.state_dir().join("ca/ca.pem").display().to_string();
    let certs = show(&["--file", &authority])?.success()?;
    ensure!(certs.contains("mesh.local"), "{certs}");

    // No key material where anyone may look.
    for path in ["/config_dump", "/stats", "/clusters", "/certs"] {
        let answer = web.admin(path)?;
        ensure!(answer.status == 200 && !answer.body.contains("PRIVATE KEY"), "{path}: {answer:?}");
    }
    let metrics = web.status("/metrics")?;
    ensure!(metrics.status == 200 && metrics.body.contains("outrigger_"), "{metrics:?}");
    let shown = web.status("/config_dump")?;
    ensure!(shown.status == 404, "the status port shows more than health and metrics: {shown:?}");
    let log = web.access_log();
    let line = log.lines().last().context("an empty access log")?;
    serde_json::from_str::<serde_json::Value>(line).context(line.to_owned())?;
    Ok(())
}
