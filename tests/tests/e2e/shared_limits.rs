//! A rate limit that the instances of a service share: what they admit together, wherever the traffic goes.
//!
//! ```text
//!   stranger ── 300/s ──▶ store-0 … store-3    each with a proxy; the limit of all together is 100/s
//! ```
//!
//! Callers dial the instances' own addresses, so that a test decides which instance gets how much. What is admitted is
//! counted where it arrives, at the applications.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Workload, wait_for};
use serde_json::Value;

use crate::support::{
    SOON, Test,
    ask::{Ask, Loops, Running},
    booth::Booth,
    figure,
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("shared_limit_holds_over_instances_that_move_die_and_lose_the_control_plane", moves),
        Test::new("shared_limit_of_callers_holds_for_all_of_them_together", callers),
        Test::new("shared_limit_survives_one_of_two_control_planes", two_control_planes),
        Test::new("shared_limit_by_key_follows_demand_and_status_shows_the_shares", by_key),
    ]
}

const LIMIT: f64 = 100.0;
const OFFERED: u32 = 300;
/// Shares have followed by then.
const SETTLED: Duration = Duration::from_secs(2);
const WINDOW: Duration = Duration::from_secs(3);
/// The port with the shared limit, and beside it one where each instance has the whole of it.
const SHARED: u16 = 8080;
const LOCAL: u16 = 8081;

struct Instance {
    booths: [Booth; 2],
    workload: Workload,
}

struct Scene {
    instances: Vec<Instance>,
    stranger: Pod,
    mesh: Mesh,
}

fn scene(lab: &Lab, control_planes: usize, instances: usize, limit: &str) -> Result<Scene> {
    let service = Service::new("store").port(80, SHARED, "http").port(81, LOCAL, "http");
    let spec = format!(
        "  selector: {{app: store}}\n  ports:\n  \
           - {{port: {SHARED}, mtls: permissive, rateLimit: [{{name: shared, {limit}, scope: shared}}]}}\n  \
           - {{port: {LOCAL}, mtls: permissive, rateLimit: [{{name: local, {limit}, scope: local}}]}}\n"
    );
    let mesh = Mesh::builder()
        .replicas(control_planes)
        .file("store.yaml", service.yaml())
        .file("server.yaml", policy("ServerPolicy", "store", &spec))
        .start(lab)?;
    let instance = |number| {
        let name = format!("store-{number}");
        let workload = mesh.workload(&name).service_account("store").label("app", "store").start()?;
        let booth = |port| Booth::start(&workload.pod, port, &name);
        Ok(Instance { booths: [booth(SHARED)?, booth(LOCAL)?], workload })
    };
    let instances = (0..instances).map(instance).collect::<Result<Vec<_>>>()?;
    let stranger = lab.pod("stranger")?;
    let scene = Scene { instances, stranger, mesh };
    for number in 0..scene.instances.len() {
        wait_for(SOON, "an answer", || {
            scene.ask(number, SHARED).once(&scene.stranger).is_ok_and(|told| told.is_good())
        })?;
    }
    // Every proxy has a share, and they are of one whole.
    wait_for(SOON, "shares", || scene.shares().is_ok_and(|shares| shares.len() == scene.instances.len()))
        .with_context(|| format!("{:?}", scene.shares()))?;
    Ok(scene)
}

impl Scene {
    fn ask(&self, instance: usize, port: u16) -> Ask {
        Ask::new(SocketAddr::from((self.instances[instance].workload.pod.ipv4(), port)), "/")
    }

    /// All that is offered, divided equally among these instances.
    fn offer(&self, port: u16, instances: &[usize]) -> Result<Vec<Running>> {
        let each = OFFERED / instances.len() as u32;
        let start =
            |number: &usize| Loops::new(self.ask(*number, port), 6).at_rate(each).start(&self.stranger);
        instances.iter().map(start).collect()
    }

    /// Admitted per second over the next while.
    fn rate(&self, port: u16, window: Duration) -> f64 {
        let from = Instant::now();
        std::thread::sleep(window);
        let until = Instant::now();
        let booth = usize::from(port == LOCAL);
        let admitted: u64 = self.instances.iter().map(|i| i.booths[booth].arrived(from, until)).sum();
        admitted as f64 / (until - from).as_secs_f64()
    }

    /// Offers the load to these instances, and says what they admit together once shares have followed.
    fn settled(&self, what: &str, port: u16, instances: &[usize], good: impl Fn(f64) -> bool) -> Result<f64> {
        let offered = self.offer(port, instances)?;
        std::thread::sleep(SETTLED);
        let mut rates = Vec::new();
        // Others use the machine too: a window in which it stood still says nothing.
        let rate = loop {
            let rate = self.rate(port, WINDOW);
            rates.push(rate);
            if good(rate) || rates.len() == 3 {
                break rate;
            }
        };
        figure(&format!("{what}: admitted per second in windows of {WINDOW:?}: {rates:.1?}"));
        for offered in offered {
            offered.stop()?.expect_only(&["rate-limited"])?;
        }
        ensure!(rates.iter().all(|rate| *rate < LIMIT * 1.3) || port == LOCAL, "{what}: {rates:?}");
        Ok(rate)
    }

    /// The shares of the shared limit as the control plane has them, in millionths, by address.
    fn shares(&self) -> Result<Vec<(String, u64)>> {
        let status: Value = serde_json::from_str(&self.mesh.status(&["-o", "json"])?.stdout)?;
        let limits = status["shared_limits"].as_array().context("shared_limits")?;
        let ours = limits.iter().find(|limit| limit["limit"] == "ServerPolicy/shop/store/shared");
        let holders =
            ours.and_then(|limit| limit["holders"].as_array()).with_context(|| status.to_string())?;
        let of = |holder: &Value| {
            let address = holder["address"].as_str().context("address")?.to_owned();
            Ok((address, holder["share"].as_u64().context("share")?))
        };
        holders.iter().map(of).collect()
    }
}

fn close(rate: f64) -> bool {
    (LIMIT * 0.9..=LIMIT * 1.1).contains(&rate)
}

fn moves(lab: &Lab) -> Result<()> {
    let mut scene = scene(lab, 1, 4, "requests: 100, per: 1s, burst: 20")?;
    let holds = |scene: &Scene, what: &str, instances: &[usize]| -> Result<()> {
        let rate = scene.settled(what, SHARED, instances, close)?;
        ensure!(close(rate), "{what}: {rate} per second were admitted instead of {LIMIT}");
        Ok(())
    };
    holds(&scene, "all on one of four", &[0])?;
    holds(&scene, "evenly on four", &[0, 1, 2, 3])?;
    holds(&scene, "all on another of four", &[1])?;
    // The same limit, not shared: each instance admits it by itself.
    let rate = scene.settled("evenly on four, scope local", LOCAL, &[0, 1, 2, 3], |_| true)?;
    ensure!(!close(rate) && rate > LIMIT * 2.0, "{rate}: also without sharing");

    // One dies with its proxy, as in a power cut.
    let mut dead = scene.instances.pop().context("an instance")?;
    dead.workload.proxy.kill();
    drop(dead);
    holds(&scene, "evenly on the three left", &[0, 1, 2])?;
    holds(&scene, "all on one of three", &[0])?;

    // Nobody divides any more. Shares run out, then each goes by one part of as many as it last knew of.
    scene.mesh.kill_control_plane(0);
    let bounded = |rate: f64| rate <= LIMIT * 1.1;
    let rate = scene.settled("evenly on three without a control plane", SHARED, &[0, 1, 2], bounded)?;
    ensure!(bounded(rate) && rate > LIMIT / 2.0, "without a control plane {rate} per second were admitted");
    let rate = scene.settled("all on one of three without a control plane", SHARED, &[0], bounded)?;
    ensure!(bounded(rate) && rate > LIMIT / 6.0, "without a control plane {rate} per second were admitted");

    // It comes back, and so do the shares.
    scene.mesh.start_control_plane(0)?;
    wait_for(SOON, "all of them to hold the limit again", || {
        scene.shares().is_ok_and(|shares| shares.len() == 3)
    })?;
    holds(&scene, "all on one of three with the control plane back", &[0])
}

fn two_control_planes(lab: &Lab) -> Result<()> {
    let scene = scene(lab, 2, 2, "requests: 100, per: 1s, burst: 20")?;
    let rate = scene.settled("all on one of two", SHARED, &[0], close)?;
    ensure!(close(rate), "{rate} per second were admitted instead of {LIMIT}");
    // The other one goes on dividing: with nobody to do it, one of two would admit half.
    scene.mesh.kill_control_plane(0);
    for (what, instances) in [("all on the other", &[1][..]), ("evenly", &[0, 1])] {
        let rate =
            scene.settled(&format!("{what}, one of two control planes gone"), SHARED, instances, close)?;
        ensure!(close(rate), "{what}: {rate} per second were admitted instead of {LIMIT}");
    }
    Ok(())
}

/// The same on the way out: what all callers of a service may ask for together.
fn callers(lab: &Lab) -> Result<()> {
    let service =
        Service::new("store").address("10.96.0.10").port(80, SHARED, "http").port(81, LOCAL, "http");
    let limit = |port: u16, scope: &str| {
        let target = format!("targetRef: {{kind: Service, name: store, port: {port}}}");
        let limit = format!("rateLimit: [{{name: all, requests: 100, per: 1s, burst: 20, scope: {scope}}}]");
        policy("TrafficPolicy", &format!("{scope}-{port}"), &format!("  {target}\n  {limit}\n"))
    };
    let mesh = Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("shared.yaml", limit(80, "shared"))
        .file("local.yaml", limit(81, "local"))
        .start(lab)?;
    let store = mesh.workload("store").start()?;
    let callers = (0..3).map(|number| mesh.workload(&format!("web-{number}")).start());
    let callers = callers.collect::<Result<Vec<_>>>()?;
    for (port, target, shared) in [(80, SHARED, true), (81, LOCAL, false)] {
        let booth = Booth::start(&store.pod, target, "store")?;
        let ask = Ask::new(SocketAddr::from(([10, 96, 0, 10], port)), "/");
        for caller in &callers {
            wait_for(SOON, "an answer", || ask.once(&caller.pod).is_ok_and(|told| told.is_good()))?;
        }
        // Half of it is one caller's, a quarter each of the others.
        let offered: Vec<_> = callers
            .iter()
            .zip([80, 40, 40])
            .map(|(caller, rate)| Loops::new(ask.clone(), 4).at_rate(rate).start(&caller.pod))
            .collect::<Result<_>>()?;
        std::thread::sleep(SETTLED);
        let mut rates = Vec::new();
        while rates.len() < 3 && rates.last().is_none_or(|rate| close(*rate) != shared) {
            let from = Instant::now();
            std::thread::sleep(WINDOW);
            let until = Instant::now();
            rates.push(booth.arrived(from, until) as f64 / (until - from).as_secs_f64());
        }
        figure(&format!("160/s by three callers, {}: {rates:.1?}", if shared { "shared" } else { "local" }));
        ensure!(rates.last().is_some_and(|rate| close(*rate) == shared), "shared: {shared}: {rates:?}");
        for offered in offered {
            offered.stop()?.expect_only(&["rate-limited"])?;
        }
    }
    Ok(())
}

fn by_key(lab: &Lab) -> Result<()> {
    let scene = scene(lab, 1, 2, "requests: 100, per: 1s, burst: 20, key: [{header: x-user}]")?;
    let own = |number: usize| scene.instances[number].workload.pod.ipv4().to_string();
    for busy in [0, 1] {
        let offered = Loops::new(scene.ask(busy, SHARED).field("x-user", "u"), 6)
            .at_rate(OFFERED)
            .start(&scene.stranger)?;
        // Whoever is asked has nearly all of it, after a while; together they never have more than the whole.
        let mut seen = Vec::new();
        wait_for(SOON, "the share of the one that is asked", || {
            seen = scene.shares().unwrap_or_default();
            seen.iter().any(|(address, share)| address.contains(&own(busy)) && *share > 900_000)
        })
        .with_context(|| format!("{seen:?}"))?;
        ensure!(seen.iter().map(|(_, share)| share).sum::<u64>() <= 1_000_000, "{seen:?}");
        // The same for people, and on the proxy itself.
        let text = scene.mesh.status(&[])?.success()?;
        let row = text
            .lines()
            .find(|line| line.contains("ServerPolicy/shop/store/shared") && line.contains(&own(busy)));
        ensure!(text.contains("SHARED LIMITS (1)") && row.is_some_and(|row| row.contains(" %")), "{text}");
        for (number, instance) in scene.instances.iter().enumerate() {
            let share_of = |name: &str| -> Option<u64> {
                let page: Value =
                    serde_json::from_str(&instance.workload.admin("/limits").ok()?.body).ok()?;
                let limits = page["rate_limits"].as_array()?;
                limits.iter().find(|limit| limit["policy"]["name"] == name)?["share_parts_per_million"]
                    .as_u64()
            };
            let mut share = None;
            wait_for(SOON, "the share to arrive", || {
                share = share_of("ServerPolicy/shop/store/shared");
                let wanted = if number == busy { 900_001..1_000_000 } else { 0..100_000 };
                share.is_some_and(|share| wanted.contains(&share))
            })
            .with_context(|| format!("{number} has {share:?}"))?;
            ensure!(share_of("ServerPolicy/shop/store/local").is_none_or(|share| share == 1_000_000));
        }
        offered.stop()?.expect_only(&["rate-limited"])?;
    }
    Ok(())
}
