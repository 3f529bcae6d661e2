//! What proxies see together through the control plane, and policies that nobody can mean.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for, wait_for_some};
use serde_json::Value;

use crate::support::{
    SOON, Test,
    ask::{Ask, Loops},
    booth::Booth,
    figure,
    guarded::{FILE, Guarded, VIRTUAL, server_policy},
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("fleet_opinion_shortens_the_ejection_of_a_lone_caller_only", opinions),
        Test::new("fleet_status_shows_circuits_with_who_sees_them_and_why", circuits),
        Test::new("impossible_server_policies_are_refused_whole_with_file_line_and_field", impossible),
    ]
}

/// Two instances behind 10.96.0.10; port 80 + N is served at 8080 + N.
struct Scene {
    booths: Vec<Booth>,
    bad: IpAddr,
    callers: Vec<Workload>,
    _instances: Vec<Workload>,
    mesh: Mesh,
}

/// `spec`: of the callers' policies, by service port.
fn scene(lab: &Lab, callers: usize, specs: &[&str]) -> Result<Scene> {
    let ports = 0..specs.len() as u16;
    let mut service = Service::new("store").address("10.96.0.10");
    let mut builder = Mesh::builder();
    for (number, spec) in ports.clone().zip(specs) {
        service = service.port(80 + number, 8080 + number, "http");
        let target = format!("  targetRef: {{kind: Service, name: store, port: {}}}\n", 80 + number);
        // What the application says of itself must come through.
        let text =
            format!("{target}  retries: {{attempts: 0}}\n  loadBalancer: {{algorithm: round-robin}}\n{spec}");
        builder = builder.file(
            &format!("callers-{number}.yaml"),
            policy("TrafficPolicy", &format!("store-{number}"), &text),
        );
    }
    let mesh = builder.file("store.yaml", service.yaml()).start(lab)?;
    let (mut instances, mut booths) = (Vec::new(), Vec::new());
    for name in ["good", "bad"] {
        let instance = mesh.workload(name).service_account("store").label("app", "store").start()?;
        for number in ports.clone() {
            booths.push(Booth::start(&instance.pod, 8080 + number, name)?);
        }
        instances.push(instance);
    }
    let bad = instances[1].pod.ipv4().into();
    let start = |number| mesh.workload(&format!("caller-{number}")).start();
    let callers = (0..callers).map(start).collect::<Result<Vec<_>>>()?;
    let scene = Scene { booths, bad, callers, _instances: instances, mesh };
    for caller in &scene.callers {
        for number in ports.clone() {
            for name in ["good", "bad"] {
                wait_for(SOON, "answers of both instances", || {
                    scene.ask(number, "/").once(&caller.pod).is_ok_and(|told| told.body == name)
                })?;
            }
        }
    }
    Ok(scene)
}

impl Scene {
    #[expect(clippy::unused_self, reason = "reads as what it is: asking this store")]
    fn ask(&self, number: u16, path: &str) -> Ask {
        Ask::new(SocketAddr::from((VIRTUAL, 80 + number)), path)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.mesh.status(&["-o", "json"])?.stdout)?)
    }

    /// The circuit of the bad instance as one caller has it: `open`, `half-open` or `closed`.
    fn circuit(&self, caller: usize, number: u16) -> Result<String> {
        let page: Value = serde_json::from_str(&self.callers[caller].admin("/clusters")?.body)?;
        let address = SocketAddr::new(self.bad, 8080 + number).to_string();
        let standing = page["circuits"]["not_closed"].as_array().context("not_closed")?;
        let ours = standing.iter().find(|circuit| circuit["endpoint"] == *address);
        Ok(ours.map_or("closed", |circuit| circuit["to"].as_str().unwrap_or_default()).to_owned())
    }

    /// Lets a caller find out that the bad instance fails.
    fn find_out(&self, caller: usize, number: u16) -> Result<()> {
        wait_for(SOON, "the bad instance to be ejected", || {
            drop(self.ask(number, "/fail-at-bad").once(&self.callers[caller].pod));
            self.circuit(caller, number).is_ok_and(|circuit| circuit == "open")
        })
    }
}

fn opinions(lab: &Lab) -> Result<()> {
    // The same but for what the fleet may say; long enough for the difference to be seen.
    let ejection = "baseEjection: 60s, consecutiveFailures: 3";
    let scene = scene(
        lab,
        5,
        &[
            &format!(
                "  outlierEjection: {{{ejection}, loneOpinion: {{minCallers: 5, shortenedPercent: 5}}}}\n"
            ),
            &format!("  outlierEjection: {{{ejection}, loneOpinion: {{minCallers: 0}}}}\n"),
            &format!(
                "  outlierEjection: {{{ejection}, loneOpinion: {{minCallers: 6, shortenedPercent: 5}}}}\n"
            ),
            &format!(
                "  outlierEjection: {{{ejection}, loneOpinion: {{minCallers: 5, shortenedPercent: 5}}}}\n"
            ),
        ],
    )?;
    // All five are known to call all ports. On the last, two of them see the bad instance fail for good.
    let (mut loops, mut failing) = (Vec::new(), Vec::new());
    for (number, caller) in scene.callers.iter().enumerate() {
        for port in 0..4 {
            let fails = port == 3 && (1..=2).contains(&number);
            let ask = scene.ask(port, if fails { "/fail-at-bad" } else { "/" });
            let running = Loops::new(ask, 1).at_rate(4).start(&caller.pod)?;
            if fails { failing.push(running) } else { loops.push(running) }
        }
    }
    for caller in [1, 2] {
        wait_for(SOON, "others to see it", || {
            scene.circuit(caller, 3).is_ok_and(|circuit| circuit == "open")
        })?;
    }
    // The first is alone with what it sees on three ports, and not on that one.
    for port in [3, 2, 1, 0] {
        scene.find_out(0, port)?;
    }
    let began = Instant::now();
    // 5 % of 60 s, give or take: alone, it lets the instance back in. Requests that go on close the circuit.
    wait_for(Duration::from_secs(40), "the lone opinion to give way", || {
        scene.circuit(0, 0).is_ok_and(|circuit| circuit != "open")
    })
    .with_context(|| format!("{:?}", scene.status().map(|status| status["circuits"].to_string())))?;
    let took = began.elapsed();
    figure(&format!("a lone opinion of 60 s gave way after {took:?}"));
    // Nowhere else: told not to listen, too few callers, and not alone.
    for number in [1, 2, 3] {
        ensure!(scene.circuit(0, number)? == "open", "port {number} gave way as well, after {took:?}");
    }
    drop(failing);
    for running in loops {
        running.stop()?.expect_only(&[])?;
    }
    Ok(())
}

fn circuits(lab: &Lab) -> Result<()> {
    let on =
        "  outlierEjection: {consecutiveFailures: 3, failurePercentage: {percent: 0}, baseEjection: 5s}\n";
    let off = "  outlierEjection: {enabled: false}\n";
    let scene = scene(lab, 2, &[on, off])?;
    let text = || scene.mesh.status(&[])?.success();
    ensure!(!text()?.contains("CIRCUITS"), "{}", text()?);
    let running: Vec<_> = scene
        .callers
        .iter()
        .map(|caller| Loops::new(scene.ask(0, "/"), 1).at_rate(20).start(&caller.pod))
        .collect::<Result<_>>()?;
    scene.find_out(0, 0)?;
    // The same failures change nothing where ejection is off.
    for _ in 0..20 {
        drop(scene.ask(1, "/fail-at-bad").once(&scene.callers[0].pod));
    }
    let bad = SocketAddr::new(scene.bad, 8080).to_string();
    let mut told = String::new();
    wait_for(SOON, "the circuit in `outrigger status`", || {
        told = text().unwrap_or_default();
        told.lines().any(|line| line.contains(&bad) && line.contains("caller-0") && line.contains("1 of 2"))
    })
    .with_context(|| told.clone())?;
    let row = told.lines().find(|line| line.contains(&bad) && line.contains("1 of 2")).unwrap_or_default();
    ensure!(row.contains("shop/store:80") && row.contains("open"), "{row}");
    ensure!(row.contains("3 failures in a row"), "why? {row}");
    ensure!(told.contains("CIRCUITS NOT CLOSED (1)") && !told.contains("shop/store:81  "), "{told}");
    // With its evidence, for machines.
    let transition = wait_for_some(SOON, "the transition", || {
        let status = scene.status().ok()?;
        let transitions = status["transitions"].as_array()?;
        transitions.iter().find(|transition| transition["to"] == "open").cloned()
    })?;
    let evidence = transition["evidence"].as_array().with_context(|| transition.to_string())?;
    let failed = evidence.iter().filter(|outcome| outcome["failed"] == true && outcome["what"] == "503");
    ensure!(failed.count() >= 3, "{transition}");
    // It serves its time, its probes succeed, and the row goes.
    wait_for(SOON, "the circuit to be closed again", || text().is_ok_and(|text| !text.contains("CIRCUITS")))?;
    for running in running {
        running.stop()?.expect_only(&[])?;
    }
    ensure!(scene.booths.iter().all(|booth| booth.requests() > 0));
    Ok(())
}

/// A section of a port, the field that is told, and a part of the reason.
type Impossible = (&'static str, &'static str, &'static str);

fn impossible(lab: &Lab) -> Result<()> {
    let sound = ["rateLimit: [{name: sound, requests: 2, per: 1000s}]"];
    let shop = Guarded::open(lab, &["web"], &sound)?;
    let pod = &shop.callers[0].pod;
    let load = Loops::new(shop.ask(0, "/"), 2).at_rate(50).start(pod)?;
    ensure!(shop.ask(1, "/").once(pod)?.is_good());
    let cases: [Impossible; 12] = [
        ("bulkhead: {total: {maxRequests: 0}}", "bulkhead.total.maxRequests", "0"),
        (
            "bulkhead: {total: {maxRequests: 1}, perCaller: {maxRequests: 2}}",
            "bulkhead.perCaller.maxRequests",
            "above",
        ),
        ("bulkhead: {total: {maxRequests: 1}, queue: {size: 1}}", "bulkhead.queue", "timeout"),
        ("bulkhead: {adaptive: {minRequests: 9, maxRequests: 3}}", "bulkhead.adaptive", "above"),
        (
            "bulkhead: {total: {maxRequests: 3}, adaptive: {minRequests: 1, maxRequests: 3}}",
            "bulkhead.total.maxRequests",
            "beside adaptive",
        ),
        (
            "bulkhead: {adaptive: {minRequests: 1, maxRequests: 3, tolerancePercent: 99}}",
            "bulkhead.adaptive.tolerancePercent",
            "99",
        ),
        ("rateLimit: [{name: a, requests: 0}]", "rateLimit[0].requests", "0"),
        ("rateLimit: [{name: a, requests: 1, per: -1s}]", "rateLimit[0].per", "-1s"),
        ("rateLimit: [{name: a, requests: 1, per: 9000000h}]", "rateLimit[0].per", "9000000h"),
        ("rateLimit: [{name: a, requests: 1}, {name: a, requests: 2}]", "rateLimit[1].name", "another limit"),
        (
            "rateLimit: [{name: a, requests: 1, algorithm: leaky-bucket}]",
            "rateLimit[0].algorithm",
            "leaky-bucket",
        ),
        (
            "rateLimit: [{name: a, requests: 1, algorithm: sliding-window, burst: 2}]",
            "rateLimit[0].burst",
            "",
        ),
    ];
    let mut wrong = Vec::new();
    for (section, field, reason) in cases {
        // Beside what is impossible stands a change that would be fine: none of it is taken.
        shop.mesh.write(FILE, &server_policy(&["rateLimit: [{name: sound, requests: 1000}]", section]))?;
        // apiVersion, kind, metadata, spec, selector, ports, 8080, 8081, and here it is.
        let place = format!("{FILE}:9");
        let field = format!("spec.ports[2].{field}");
        let mut told = String::new();
        let named = wait_for(Duration::from_secs(20), "the error in `outrigger status`", || {
            told = shop.mesh.status(&[]).map_or_else(|error| error.to_string(), |output| output.to_string());
            let names = |line: &str| [&*place, &*field, reason].iter().all(|part| line.contains(part));
            told.lines().any(names)
        });
        if named.is_err() {
            let errors: Vec<_> = told.lines().filter(|line| line.contains(FILE)).collect();
            wrong.push(format!("{section}: wanted {place}, {field}, {reason:?}: {errors:?}"));
        }
        shop.mesh.write(FILE, &server_policy(&sound))?;
        wait_for(SOON, "a clean status", || {
            shop.mesh
                .status(&[])
                .is_ok_and(|output| output.status.success() && !output.stdout.contains(&place))
        })?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What was in force went on as if nothing had been: one is left of two, and nobody was disturbed.
    let told = [shop.ask(1, "/").once(pod)?, shop.ask(1, "/").once(pod)?];
    ensure!(told[0].is_good() && told[1].reason() == "rate-limited", "{told:?}");
    load.stop()?.expect_only(&[])
}
