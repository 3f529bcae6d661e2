//! Active checks, and what a fleet of callers makes of an endpoint.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for};
use outrigger_testkit::raw::{RawServer, Step};
use serde_json::Value;

use crate::support::{
    Need, SOON, Test,
    app::{App, Asked, Say},
    call::Call,
    farm::{Builder, Farm, Stand, clusters, hold, with_and_without, with_and_without_of},
    peers, raw,
    yaml::policy,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("health_checks_over_http_take_out_and_bring_back", http),
        Test::in_farm("health_checks_over_http_want_the_expected_status_in_time", http_terms),
        Test::in_farm("health_checks_over_grpc_ask_the_standard_service", grpc).needs(&[Need::Python]),
        Test::in_farm("health_checks_over_tcp_want_a_connection_to_the_application", tcp),
        Test::new("ejection_by_one_of_five_callers_is_shortened", lone_opinion),
    ]
}

/// No detector is on: only checks decide.
const ALONE: &str = "  outlierEjection: {enabled: false}\n  retries: {attempts: 0}\n  loadBalancer: {algorithm: round-robin}\n";
/// The same for connections, which are not retried.
const ALONE_OPAQUE: &str = "  outlierEjection: {enabled: false}\n  loadBalancer: {algorithm: round-robin}\n";
const OFTEN: &str =
    "interval: 300ms, timeout: 300ms, unhealthyAfter: 2, healthyAfter: 2, fleetPerSecond: 1000";

fn alone<'f>(farm: &'f Farm, lines: &str) -> Builder<'f> {
    farm.stand(&[0, 1]).policy(&format!("{ALONE}{lines}"))
}

/// Asks until the checks have had time to say something: they begin with the first request.
fn settle(stand: &Stand<'_>, ask: impl Fn() -> Result<()>) -> Result<bool> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        ask()?;
        if stand.not_closed()? == [1] {
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(50)); // checks take their time
    }
    Ok(false)
}

fn http(farm: &Farm) -> Result<()> {
    let check = format!("  healthCheck: {{http: {{path: /healthz}}, {OFTEN}}}\n");
    with_and_without_of(
        &[check.as_str(), ""],
        |lines| {
            let healthy = Arc::new(AtomicBool::new(false));
            let says = Arc::clone(&healthy);
            // Good at its work, and unwell by its own word.
            let stand = alone(farm, lines).apps(move |place, asked| {
                let sick = place == 1 && asked.path == "/healthz" && !says.load(Ordering::SeqCst);
                if sick { Say::status(503) } else { Say::ok("good") }
            })?;
            Ok((stand, healthy))
        },
        |(stand, healthy)| {
            let ask = || stand.send(&stand.get("/")).map(drop);
            hold!(settle(stand, ask)?, "{:?}", stand.transitions()?);
            let opened = stand.transitions()?.pop().context("a transition")?;
            hold!(opened["to"] == "open" && opened["cause"] == "health-check", "{opened}");
            let requests =
                |place: usize| stand.apps[place].asked().iter().filter(|asked| asked.path == "/").count();
            let before = requests(1);
            stand.get("/").in_turn(stand.web(), 20)?;
            hold!(requests(1) == before, "requests went to it");
            let agent = stand.apps[1].asked().into_iter().find(|asked| asked.path == "/healthz");
            let agent = agent.and_then(|asked| asked.headers.get("user-agent").cloned()).context("agent")?;
            hold!(agent.as_bytes().starts_with(b"outrigger-health-check/"), "{agent:?}");

            healthy.store(true, Ordering::SeqCst);
            wait_for(SOON, "its return", || stand.not_closed().is_ok_and(|out| out.is_empty()))?;
            stand.get("/").in_turn(stand.web(), 4)?;
            hold!(requests(1) > before, "no request goes to it after its return");
            Ok(Ok(()))
        },
    )
}

fn http_terms(farm: &Farm) -> Result<()> {
    let out = |stand: &Stand<'_>| {
        let ask = || stand.send(&stand.get("/")).map(drop);
        hold!(settle(stand, ask)?, "{:?}", stand.transitions()?);
        Ok(Ok(()))
    };
    let check = |http: &str, more: &str| {
        format!("  healthCheck: {{http: {{path: /healthz{http}}}, {OFTEN}{more}}}\n")
    };
    // Which statuses are good is the policy's to say. No check runs into its timeout here.
    let with_time = |http: &str, time: &str| {
        let own = format!("interval: {time}, timeout: {time}");
        check(http, "").replace("interval: 300ms, timeout: 300ms", &own)
    };
    with_and_without(
        &with_time("", "1s"),
        &with_time(", expected: [\"200-299\", \"404\"]", "1s"),
        |lines| {
            alone(farm, lines).apps(|place, asked| {
                if place == 1 && asked.path == "/healthz" { Say::status(404) } else { Say::ok("good") }
            })
        },
        out,
    )?;
    // A good answer that comes too late is a bad one.
    let slow = |place: usize, asked: &Asked| {
        let say = Say::ok("good");
        if place == 1 && asked.path == "/healthz" { say.after(Duration::from_secs(1)) } else { say }
    };
    with_and_without(&check("", ""), &with_time("", "5s"), |lines| alone(farm, lines).apps(slow), out)
}

fn grpc(farm: &Farm) -> Result<()> {
    with_and_without_of(
        &[format!("  healthCheck: {{grpc: {{}}, {OFTEN}}}\n").as_str(), ""],
        |lines| {
            let builder = alone(farm, lines).protocol("grpc");
            let port = builder.port();
            let serve = |host: usize, code: Option<&str>| {
                let pod = &farm.hosts[host].pod;
                let mut command = peers::script(pod, "grpc_peer.py");
                command.args(["serve", &format!("0.0.0.0:{port}"), "farm"]).args(code);
                let process = pod.spawn(&mut command, &format!("{}-{port}-grpc", pod.name()))?;
                pod.wait_listening(port)?;
                Ok::<_, anyhow::Error>(process)
            };
            // NOT_SERVING is what the second one says of itself.
            let servers = [serve(0, None)?, serve(1, Some("UNAVAILABLE"))?];
            Ok((builder.empty()?, servers))
        },
        |(stand, _)| {
            let call = || stand.post("/outrigger.test.Echo/Unary", "hello").grpc(stand.web());
            hold!(settle(stand, || call().map(drop))?, "{:?}", stand.transitions()?);
            let opened = stand.transitions()?.pop().context("a transition")?;
            hold!(opened["cause"] == "health-check", "{opened}");
            for _ in 0..8 {
                let told = call()?;
                hold!(told.grpc == Some(0), "{told:?}");
            }
            Ok(Ok(()))
        },
    )
}

fn tcp(farm: &Farm) -> Result<()> {
    with_and_without_of(
        &[format!("  healthCheck: {{tcp: {{}}, {OFTEN}}}\n").as_str(), ""],
        |lines| {
            let policy = format!("{ALONE_OPAQUE}{lines}");
            let builder = farm.stand(&[0, 1]).policy(&policy).protocol("tcp");
            let address = SocketAddr::from(([0, 0, 0, 0], builder.port()));
            let greet = vec![Step::Write(b"hello".into()), Step::Hold];
            // On one host alone; the proxy of the other one accepts connections for nobody.
            let server = farm.hosts[0].pod.enter(|| RawServer::start(address, vec![greet]))??;
            Ok((builder.empty()?, server))
        },
        |(stand, _)| {
            let greeted = || {
                let mut stream = raw::connect(stand.web(), stand.target)?;
                let mut greeting = [0; 5];
                Ok::<_, anyhow::Error>(stream.read_exact(&mut greeting).is_ok())
            };
            hold!(settle(stand, || greeted().map(drop))?, "{:?}", stand.transitions()?);
            for _ in 0..8 {
                hold!(greeted()?, "a connection went to an endpoint without an application");
            }
            Ok(Ok(()))
        },
    )
}

fn lone_opinion(lab: &Lab) -> Result<()> {
    const CALLERS: usize = 5;
    let service = |name: &str, address: &str, store: &Workload, other: &Workload| {
        let endpoint = |workload: &Workload| {
            let address = IpAddr::V4(workload.pod.ipv4());
            format!("  - {{address: \"{address}\", identity: \"spiffe://mesh.local/ns/shop/sa/store\"}}\n")
        };
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             addresses: [{address}]\n  ports: [{{port: 80, targetPort: 8080, appProtocol: http}}]\n  endpoints:\n{}{}",
            endpoint(store),
            endpoint(other)
        )
    };
    // A shortened ejection lasts three seconds, any other one five minutes. Without: five callers are too few to tell.
    let ejection = |name: &str, callers: usize| {
        policy(
            "TrafficPolicy",
            name,
            &format!(
                "  targetRef: {{kind: Service, name: {name}}}\n  loadBalancer: {{algorithm: round-robin}}\n  \
                 outlierEjection: {{consecutiveConnectFailures: 1, baseEjection: 5m, maxEjection: 5m, loneOpinion: \
                 {{minCallers: {callers}, shortenedPercent: 1}}}}\n"
            ),
        )
    };
    let mesh = Mesh::builder().start(lab)?;
    let start = |name: &str, account: &str| {
        mesh.workload(name).service_account(account).label("app", account).start()
    };
    let (stores, callers) = thread::scope(|scope| {
        let start = &start;
        let stores = ["one", "two"].map(|name| scope.spawn(move || start(name, "store")));
        let mut callers = Vec::new();
        for number in 0..CALLERS {
            callers.push(scope.spawn(move || start(&format!("web-{number}"), "web")));
        }
        let stores = stores.map(|store| store.join().expect("store"));
        let callers = callers.into_iter().map(|caller| caller.join().expect("caller"));
        (stores, callers.collect::<Result<Vec<_>>>())
    });
    let [one, two] = stores;
    let (one, two, callers) = (one?, two?, callers?);
    let _apps =
        [App::start(&one.pod, 8080, |_| Say::ok("good"))?, App::start(&two.pod, 8080, |_| Say::ok("good"))?];
    for (name, address, least) in [("with", "10.96.0.10", CALLERS), ("without", "10.96.0.11", CALLERS + 1)] {
        let text = format!("{}---\n{}", service(name, address, &one, &two), ejection(name, least));
        mesh.write(&format!("{name}.yaml"), &text)?;
    }
    // One caller's way to the second store is broken; the store is well.
    let pod = &callers[0].pod;
    let mut ip = pod.command("ip");
    ip.args(["route", "add", "unreachable", &format!("{}/32", two.pod.ipv4())]);
    pod.run(&mut ip)?.success()?;

    let targets = [[10, 96, 0, 10], [10, 96, 0, 11]].map(|address| SocketAddr::from((address, 80)));
    for caller in &callers {
        for target in targets {
            wait_for(SOON, "an answer", || {
                Call::get(target, "/").send(&caller.pod).is_ok_and(|told| told.status == 200)
            })?;
        }
    }
    let transitions = |name: &str| -> Result<Vec<Value>> {
        let clusters = clusters(&callers[0])?;
        let all = clusters["circuits"]["transitions"].as_array().context("transitions")?;
        let key = format!("shop/{name}:80");
        Ok(all.iter().filter(|one| one["backend"] == key.as_str()).cloned().collect())
    };
    let ask = || {
        for target in targets {
            for caller in &callers {
                for _ in 0..2 {
                    drop(Call::get(target, "/").send(&caller.pod));
                }
            }
        }
    };
    for name in ["with", "without"] {
        wait_for(SOON, &format!("the ejection of {name}"), || {
            ask();
            transitions(name).is_ok_and(|all| all.first().is_some_and(|one| one["to"] == "open"))
        })?;
    }
    let mut seen = Vec::new();
    let ended = wait_for(SOON, "the end of the shortened ejection", || {
        seen = transitions("with").unwrap_or_default();
        seen.iter().any(|one| one["to"] == "half-open" && one["cause"] == "time-served")
    });
    ended.with_context(|| format!("{seen:?}"))?;
    let others = transitions("without")?;
    ensure!(others.len() == 1, "the check cannot fail: without, the ejection ended too: {others:?}");
    Ok(())
}
