//! Circuits per endpoint against real servers that fail in every way: ejected with evidence, probed, returned.

use std::{
    any::Any,
    cell::RefCell,
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Process, wait_for};
use outrigger_testkit::raw::{RawServer, Stage};
use serde_json::Value;

use crate::support::{
    Need, SOON, Test,
    app::{App, Asked, Say},
    call::Told,
    farm::{Builder, Farm, Found, Stand, hold, with_and_without, with_and_without_of},
    peers,
};

const NGINX: &[Need] = &[Need::Program("nginx")];

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::in_farm("ejection_of_an_nginx_that_answers_500", nginx_500).needs(NGINX),
        Test::in_farm("ejection_of_an_nginx_that_hangs", nginx_hangs).needs(NGINX),
        Test::in_farm("ejection_of_an_nginx_that_refuses_connections", nginx_refuses).needs(NGINX),
        Test::in_farm("ejection_of_a_server_that_resets_in_mid_body", resets_mid_body).needs(NGINX),
        Test::in_farm("ejection_of_an_nginx_that_is_slow", nginx_is_slow).needs(NGINX),
        Test::in_farm("ejection_of_a_grpc_server_in_another_language", grpc).needs(&[Need::Python]),
        Test::in_farm("ejection_obeys_the_floor_with_two_and_with_one", floor),
        Test::in_farm("ejection_of_all_fails_fast_and_says_when_to_come_back", all_ejected),
        Test::in_farm("ejection_never_beyond_its_share", share),
        Test::in_farm("ejection_by_each_detector_alone", detectors),
        Test::in_farm("ejection_counts_the_failures_of_the_policy", failures),
        Test::in_farm("ejection_grows_up_to_its_maximum_and_ends_after_probes", duration),
        Test::in_farm("ejection_is_told_to_everybody", told_to_everybody),
    ]
}

/// Three in a row open a circuit, for two seconds; nothing else does.
const THREE: &str = "consecutiveFailures: 3, consecutiveConnectFailures: 3, failurePercentage: {percent: 0}, \
                     successRate: {deviations: \"0\"}, baseEjection: 2s, probes: 2";
const IN_TURN: &str = "  retries: {attempts: 0}\n  loadBalancer: {algorithm: round-robin}\n";

fn in_turn<'f>(farm: &'f Farm, hosts: &[usize], lines: &str) -> Builder<'f> {
    farm.stand(hosts).policy(&format!("{IN_TURN}{lines}"))
}

/// Three endpoints, of which the last one is bad until it is healed.
struct Scene<'f> {
    stand: Stand<'f>,
    /// Servers, ended with the scene.
    running: Mutex<Vec<Box<dyn Any + Send>>>,
    heal: Heal<'f>,
}

type Heal<'f> = Box<dyn Fn(&Scene<'f>) -> Result<()> + Send + Sync + 'f>;

const BAD: usize = 2;

/// What a fault is called by the detector, and in its evidence.
struct Wanted {
    cause: &'static str,
    evidence: &'static str,
}

type Send1<'a> = &'a (dyn Fn(&Stand<'_>) -> Result<bool> + Sync);

/// Whether it came back whole, and good.
fn whole(stand: &Stand<'_>) -> Result<bool> {
    let told = stand.send(&stand.get("/"))?;
    Ok(told.status == 200 && told.whole && !told.body.is_empty())
}

/// From the first failure to the return, and what was told about it.
fn life(scene: &Scene<'_>, send: Send1<'_>, wanted: &Wanted) -> Result<Found> {
    let stand = &scene.stand;
    // Who answers 503 is passed over for a second each time, so it takes time and not only requests.
    let end = Instant::now() + Duration::from_secs(10);
    for sent in 0.. {
        if stand.not_closed()? == [BAD] || (sent >= 60 && Instant::now() > end) {
            break;
        }
        send(stand)?;
    }
    hold!(stand.not_closed()? == [BAD], "not closed: {:?} {:?}", stand.not_closed()?, stand.transitions()?);
    // While it is out, nobody notices anything. A probe in between would be one who does.
    let quiet = wait_for(SOON, "20 good answers in a row", || {
        let before = stand.transitions().map_or(0, |all| all.len());
        let good = (0..20).all(|_| send(stand).unwrap_or(false));
        let is_open = stand.wait_for_circuit(BAD, "open").is_ok();
        good && is_open && stand.transitions().is_ok_and(|all| all.len() == before)
    });
    hold!(quiet.is_ok(), "{quiet:?} {:?}", stand.transitions()?);
    let opened = stand.transitions()?.into_iter().next().context("a transition")?;
    hold!(opened["to"] == "open" && opened["cause"] == wanted.cause, "{opened}");
    hold!(opened["why"].as_str().is_some_and(|why| !why.is_empty()), "{opened}");
    let evidence = opened["evidence"].as_array().cloned().unwrap_or_default();
    let told = evidence.iter().any(|one| one["what"].as_str().is_some_and(|what| what == wanted.evidence));
    hold!(told, "no {:?} in the evidence: {opened}", wanted.evidence);

    (scene.heal)(scene)?;
    let mut last = Value::Null;
    let back = wait_for(SOON, "its return", || {
        drop(send(stand));
        last = stand.transitions().unwrap_or_default().pop().unwrap_or_default();
        last["to"] == "closed" && last["cause"] == "probes-succeeded"
    });
    hold!(back.is_ok(), "{back:?} {last}");
    let all = stand.transitions()?;
    let probed = all.iter().any(|one| one["to"] == "half-open" && one["cause"] == "time-served");
    hold!(probed, "{all:?}");
    let good = (0..9).map(|_| send(stand)).collect::<Result<Vec<_>>>()?;
    hold!(good.iter().all(|good| *good), "after its return: {good:?}");
    // The control plane has heard of it.
    let mut told = Vec::new();
    let heard = wait_for(SOON, "the transitions at the control plane", || {
        let status = stand.farm.status().unwrap_or_default();
        let mine = |one: &&Value| one["backend"] == stand.key().as_str();
        told = status["transitions"].as_array().into_iter().flatten().filter(mine).cloned().collect();
        ["open", "closed"].iter().all(|to| told.iter().any(|one| one["to"] == *to))
    });
    hold!(heard.is_ok(), "{heard:?}: {told:?}");
    Ok(Ok(()))
}

/// Runs the life of the endpoint with ejection and without.
fn lives<'f>(
    ejection: &str,
    scene: impl Fn(&str) -> Result<Scene<'f>> + Sync,
    send: Send1<'_>,
    wanted: &Wanted,
) -> Result<()> {
    let with = format!("  outlierEjection: {{{ejection}}}\n");
    with_and_without_of(
        &[with.as_str(), "  outlierEjection: {enabled: false}\n"],
        |lines| scene(lines),
        |scene| life(scene, send, wanted),
    )
}

/// nginx on a host of a stand, one server that does this.
fn nginx(farm: &Farm, host: usize, port: u16, server: &str) -> Result<Process> {
    let pod = &farm.hosts[host].pod;
    let http = format!("  server {{ listen {port} reuseport; location / {{ {server} }} }}");
    let name = format!("{}-{port}", pod.name());
    let process =
        pod.spawn(&mut peers::nginx_named(farm.lab(), pod, &name, &http)?, &format!("{name}-nginx"))?;
    pod.wait_listening(port)?;
    Ok(process)
}

const GOOD: &str = "return 200 \"good\\n\";";

/// Two good ones, and what `bad` starts.
fn scene<'f, B: Any + Send>(
    builder: Builder<'f>,
    farm: &'f Farm,
    bad: impl FnOnce(u16) -> Result<B>,
    heal: impl Fn(&Scene<'f>) -> Result<()> + Send + Sync + 'f,
) -> Result<Scene<'f>> {
    let port = builder.port();
    let mut running: Vec<Box<dyn Any + Send>> = vec![Box::new(bad(port)?)];
    for host in 0..BAD {
        running.push(Box::new(nginx(farm, host, port, GOOD)?));
    }
    Ok(Scene { stand: builder.empty()?, running: Mutex::new(running), heal: Box::new(heal) })
}

/// Ends what is bad and starts a good nginx in its place.
fn replace(scene: &Scene<'_>) -> Result<()> {
    let mut running = scene.running.lock().unwrap_or_else(PoisonError::into_inner);
    running.remove(0);
    let port = scene.stand.port;
    running.insert(0, Box::new(nginx(scene.stand.farm, BAD, port, GOOD)?));
    Ok(())
}

fn nginx_500(farm: &Farm) -> Result<()> {
    let bad = |port| nginx(farm, BAD, port, "return 500;");
    let scene = |lines: &str| scene(in_turn(farm, &[0, 1, BAD], lines), farm, bad, replace);
    lives(THREE, scene, &whole, &Wanted { cause: "consecutive-failures", evidence: "500" })
}

fn nginx_hangs(farm: &Farm) -> Result<()> {
    let signal = |scene: &Scene<'_>, signal: &str| -> Result<()> {
        let running = scene.running.lock().unwrap_or_else(PoisonError::into_inner);
        let process = running[0].downcast_ref::<Process>().context("nginx")?;
        let status = Command::new("sh").args(["-c", &format!("kill -{signal} {}", process.id())]).status()?;
        ensure!(status.success(), "kill -{signal}");
        Ok(())
    };
    let bad = |port| nginx(farm, BAD, port, GOOD);
    let scene = |lines: &str| {
        let lines = format!("{lines}  timeouts: {{perTry: 300ms}}\n");
        let heal = move |scene: &Scene<'_>| signal(scene, "CONT");
        let scene = scene(in_turn(farm, &[0, 1, BAD], &lines), farm, bad, heal)?;
        // The kernel goes on accepting connections for it.
        signal(&scene, "STOP")?;
        Ok(scene)
    };
    lives(THREE, scene, &whole, &Wanted { cause: "consecutive-failures", evidence: "timeout" })
}

fn nginx_refuses(farm: &Farm) -> Result<()> {
    let scene = |lines: &str| scene(in_turn(farm, &[0, 1, BAD], lines), farm, |_| Ok(()), replace);
    // Retries would hide it; these are of what was never sent, which nothing turns off. So the bad one must be asked often
    // enough, and that its ejection is what ends it shows in the circuits.
    let wanted = Wanted { cause: "consecutive-connect-failures", evidence: "connect-failed" };
    lives(THREE, scene, &whole, &wanted)
}

fn resets_mid_body(farm: &Farm) -> Result<()> {
    let bad = |port| {
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        farm.hosts[BAD].pod.enter(|| RawServer::start(address, vec![Stage::MidResponseBody.reset()]))?
    };
    let scene = |lines: &str| scene(in_turn(farm, &[0, 1, BAD], lines), farm, bad, replace);
    lives(THREE, scene, &whole, &Wanted { cause: "consecutive-failures", evidence: "reset" })
}

fn nginx_is_slow(farm: &Farm) -> Result<()> {
    // nginx in front of something slow: its answers are good, and late.
    let bad = |port: u16| {
        let pod = &farm.hosts[BAD].pod;
        let behind = port + 10_000;
        let app = App::start(pod, behind, |_| Say::ok("good").after(Duration::from_millis(150)))?;
        Ok((nginx(farm, BAD, port, &format!("proxy_pass http://127.0.0.1:{behind};"))?, app))
    };
    let ejection = "consecutiveFailures: 0, failurePercentage: {percent: 0}, successRate: {deviations: \"0\"}, \
                    latency: {percent: 400, minRequests: 5, window: 10s}, baseEjection: 2s, probes: 2";
    let scene = |lines: &str| scene(in_turn(farm, &[0, 1, BAD], lines), farm, bad, replace);
    // Slow is no failure; what tells is the circuit.
    lives(ejection, scene, &whole, &Wanted { cause: "latency", evidence: "200" })
}

fn grpc(farm: &Farm) -> Result<()> {
    let serve = |host: usize, port: u16, code: Option<&str>| -> Result<Process> {
        let pod = &farm.hosts[host].pod;
        let mut command = peers::script(pod, "grpc_peer.py");
        command.args(["serve", &format!("0.0.0.0:{port}"), "farm"]).args(code);
        let process = pod.spawn(&mut command, &format!("{}-{port}-grpc", pod.name()))?;
        pod.wait_listening(port)?;
        Ok(process)
    };
    let scene = |lines: &str| -> Result<Scene<'_>> {
        let builder = in_turn(farm, &[0, 1, BAD], lines).protocol("grpc");
        let port = builder.port();
        let mut running: Vec<Box<dyn Any + Send>> = vec![Box::new(serve(BAD, port, Some("UNAVAILABLE"))?)];
        for host in 0..BAD {
            running.push(Box::new(serve(host, port, None)?));
        }
        let heal = move |scene: &Scene<'_>| {
            let mut running = scene.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.remove(0);
            running.insert(0, Box::new(serve(BAD, port, None)?));
            Ok(())
        };
        Ok(Scene { stand: builder.empty()?, running: Mutex::new(running), heal: Box::new(heal) })
    };
    let send = |stand: &Stand<'_>| {
        let told = stand.post("/outrigger.test.Echo/Unary", "hello").grpc(stand.web())?;
        Ok(told.grpc == Some(0) && told.body == "hello")
    };
    lives(THREE, scene, &send, &Wanted { cause: "consecutive-failures", evidence: "grpc 14" })
}

/// Fails while it is bad.
fn failing(bad: &'static [usize]) -> impl Fn(usize, &Asked) -> Say + Clone + Send + Sync {
    move |place, _| if bad.contains(&place) { Say::status(500) } else { Say::ok("good") }
}

/// Longer than any test.
const FOR_LONG: &str = "baseEjection: 5m, maxEjection: 5m";

fn send_many(stand: &Stand<'_>, count: usize) -> Result<Vec<Told>> {
    stand.get("/").in_turn(stand.web(), count)
}

fn floor(farm: &Farm) -> Result<()> {
    // Everybody fails. One of two may go, the last one never: `minReady` is 1 and the share 50 per cent by default.
    for (hosts, bad, out, without) in [
        (&[0, 1][..], &[0, 1][..], 1, "minReady: 0, maxEjectedPercent: 100, "),
        (&[0][..], &[0][..], 0, "minReady: 0, "),
    ] {
        with_and_without_of(
            &["", without],
            |floor| {
                let lines = format!("  outlierEjection: {{{floor}consecutiveFailures: 3, {FOR_LONG}}}\n");
                in_turn(farm, hosts, &lines).apps(failing(bad))
            },
            |stand| {
                let told = send_many(stand, 30)?;
                hold!(told.iter().all(|told| told.status == 500), "{:?}", told.last());
                hold!(stand.not_closed()?.len() == out, "out: {:?}", stand.not_closed()?);
                Ok(Ok(()))
            },
        )?;
    }
    Ok(())
}

fn all_ejected(farm: &Farm) -> Result<()> {
    with_and_without(
        "minReady: 0, ",
        "",
        |ready| {
            let lines = format!(
                "  outlierEjection: {{{ready}maxEjectedPercent: 100, consecutiveFailures: 2, {FOR_LONG}}}\n"
            );
            in_turn(farm, &[0, 1], &lines).apps(failing(&[0, 1]))
        },
        |stand| {
            let told = send_many(stand, 20)?;
            let last = told.last().context("an answer")?;
            hold!(last.status == 503 && last.reason() == "all-ejected", "{last:?}");
            let after = last.field("retry-after").and_then(|after| after.parse::<u64>().ok());
            hold!(after.is_some_and(|after| (1..=330).contains(&after)), "{last:?}");
            let before = stand.total();
            send_many(stand, 5)?;
            hold!(stand.total() == before, "requests still reach endpoints that are out");
            Ok(Ok(()))
        },
    )?;
    // A gRPC caller is told in its own way.
    let lines = format!("  outlierEjection: {{minReady: 0, consecutiveFailures: 1, {FOR_LONG}}}\n");
    let stand = in_turn(farm, &[0], &lines).protocol("grpc").apps(|_, _| Say::grpc(13))?;
    let call = || stand.post("/outrigger.test.Echo/Unary", "x").grpc(stand.web());
    let told = [call()?, call()?];
    ensure!(told[0].grpc == Some(13) && told[1].grpc == Some(14), "{told:?}");
    ensure!(told[1].reason() == "all-ejected", "{told:?}");
    Ok(())
}

fn share(farm: &Farm) -> Result<()> {
    with_and_without(
        "maxEjectedPercent: 25, ",
        "",
        |share| {
            let lines = format!("  outlierEjection: {{{share}consecutiveFailures: 2, {FOR_LONG}}}\n");
            in_turn(farm, &[0, 1, 2, 3], &lines).apps(failing(&[1, 2, 3]))
        },
        |stand| {
            send_many(stand, 60)?;
            hold!(stand.not_closed()?.len() == 1, "out: {:?}", stand.not_closed()?);
            Ok(Ok(()))
        },
    )
}

fn detectors(farm: &Farm) -> Result<()> {
    // A policy with every detector turned off is refused; this one never trips here.
    let off = [
        ("consecutiveFailures", "1000"),
        ("consecutiveConnectFailures", "0"),
        ("failurePercentage", "{percent: 0}"),
        ("successRate", "{deviations: \"0\"}"),
    ];
    let policy = |name: &str, on: &str| {
        let rest = off.iter().map(|(other, off)| {
            let value = if *other == name { on } else { off };
            format!("{other}: {value}, ")
        });
        format!("  outlierEjection: {{{}{FOR_LONG}}}\n", rest.collect::<String>())
    };
    // Every other answer of the last endpoint fails, so there are never two in a row.
    let half = |place: usize, asked: &Asked| {
        if place == 4 && asked.number.is_multiple_of(2) { Say::status(500) } else { Say::ok("good") }
    };
    let always = |place: usize, _: &Asked| if place == 4 { Say::status(500) } else { Say::ok("good") };
    type Says = fn(usize, &Asked) -> Say;
    let cases: [(&str, &str, &str, &str, Says); 3] = [
        ("consecutiveFailures", "4", "1000", "consecutive-failures", always),
        (
            "failurePercentage",
            "{percent: 30, minRequests: 8, window: 10s}",
            "{percent: 0}",
            "failure-percentage",
            half,
        ),
        (
            // One of five cannot be further from the mean than 1.79 deviations.
            "successRate",
            "{deviations: \"1.5\", minEndpoints: 5, minRequests: 10, window: 2s}",
            "{deviations: \"0\"}",
            "success-rate",
            half,
        ),
    ];
    for (name, on, off, cause, say) in cases {
        with_and_without(
            &policy(name, on),
            &policy(name, off),
            |lines| in_turn(farm, &[0, 1, 2, 3, 4], lines).apps(say),
            |stand| {
                for _ in 0..10 {
                    send_many(stand, 50)?;
                    if !stand.not_closed()?.is_empty() {
                        break;
                    }
                }
                let transitions = stand.transitions()?;
                hold!(stand.not_closed()? == [4], "{name}: {transitions:?}");
                hold!(transitions[0]["cause"] == cause, "{name}: {transitions:?}");
                Ok(Ok(()))
            },
        )?;
    }
    // An endpoint that is no host of ours: it refuses connections.
    let nobody = IpAddr::V4(farm.mesh.control_plane_pod(0).ipv4());
    with_and_without(
        &policy("consecutiveConnectFailures", "2"),
        &policy("consecutiveConnectFailures", "0"),
        |lines| in_turn(farm, &[0, 1], lines).stranger(nobody).apps(|_, _| Say::ok("good")),
        |stand| {
            let told = send_many(stand, 20)?;
            hold!(told.iter().all(|told| told.status == 200), "{told:?}");
            let transitions = stand.transitions()?;
            let cause = "consecutive-connect-failures";
            hold!(transitions.first().is_some_and(|one| one["cause"] == cause), "{transitions:?}");
            hold!(
                transitions[0]["endpoint"] == SocketAddr::new(nobody, stand.port).to_string(),
                "{transitions:?}"
            );
            Ok(Ok(()))
        },
    )
}

fn failures(farm: &Farm) -> Result<()> {
    let policy =
        |failures: &str| format!("  outlierEjection: {{{failures}consecutiveFailures: 3, {FOR_LONG}}}\n");
    let counted = |stand: &Stand<'_>| {
        send_many(stand, 20)?;
        hold!(stand.not_closed()? == [1], "{:?}", stand.transitions()?);
        Ok(Ok(()))
    };
    let says = |status: u16| {
        move |place: usize, _: &Asked| if place == 1 { Say::status(status) } else { Say::ok("good") }
    };
    let stand = |lines: &str, status: u16| in_turn(farm, &[0, 1], lines).apps(says(status));
    let own = policy("failures: {statuses: [\"404\"]}, ");
    with_and_without(&own, &policy(""), |lines| stand(lines, 404), counted)?;
    with_and_without(&policy(""), &own, |lines| stand(lines, 500), counted)?;
    let counted = |stand: &Stand<'_>| {
        for _ in 0..12 {
            stand.post("/outrigger.test.Echo/Unary", "x").grpc(stand.web())?;
        }
        hold!(stand.not_closed()? == [1], "{:?}", stand.transitions()?);
        Ok(Ok(()))
    };
    let says =
        |code: u8| move |place: usize, _: &Asked| if place == 1 { Say::grpc(code) } else { Say::ok("good") };
    let stand = |lines: &str, code: u8| in_turn(farm, &[0, 1], lines).protocol("grpc").apps(says(code));
    let own = policy("failures: {grpc: [NOT_FOUND]}, ");
    with_and_without(&own, &policy(""), |lines| stand(lines, 5), counted)?;
    with_and_without(&policy(""), &own, |lines| stand(lines, 14), counted)
}

/// How long an ejection was said to last.
fn lasts(transition: &Value) -> Duration {
    let part = |name: &str| transition["lasts"][name].as_u64().unwrap_or(0);
    Duration::new(part("secs"), u32::try_from(part("nanos")).unwrap_or(0))
}

fn duration(farm: &Farm) -> Result<()> {
    let policy =
        |more: &str| format!("  outlierEjection: {{consecutiveFailures: 2, baseEjection: 300ms{more}}}\n");
    let opened = |stand: &Stand<'_>, count: usize| -> Result<Vec<Value>> {
        let mut opened = Vec::new();
        let seen = wait_for(SOON, &format!("{count} ejections"), || {
            drop(send_many(stand, 4));
            let all = stand.transitions().unwrap_or_default();
            opened = all.into_iter().filter(|one| one["to"] == "open").collect();
            opened.len() >= count
        });
        seen.with_context(|| format!("{opened:?}"))?;
        Ok(opened)
    };
    // The n-th one takes n times as long, and a tenth more at most, up to the maximum.
    with_and_without(
        &policy(", maxEjection: 400ms"),
        &policy(""),
        |lines| in_turn(farm, &[0, 1], lines).apps(failing(&[1])),
        |stand| {
            let opened = opened(stand, 3)?;
            let times: Vec<_> = opened.iter().take(3).map(|one| one["times"].as_u64().unwrap_or(0)).collect();
            hold!(times == [1, 2, 3], "{opened:?}");
            let lasts: Vec<_> = opened.iter().map(lasts).collect();
            let within = |time: Duration, millis: u64| {
                time >= Duration::from_millis(millis)
                    && time <= Duration::from_millis(millis + millis / 10 + 1)
            };
            hold!(within(lasts[0], 300) && within(lasts[1], 400) && within(lasts[2], 400), "{lasts:?}");
            Ok(Ok(()))
        },
    )?;
    // It takes so many good answers to come back.
    let healed = Arc::new(AtomicBool::new(false));
    for (with, without, probes) in [(", probes: 5", "", "5"), ("", ", probes: 1", "3")] {
        healed.store(false, Ordering::SeqCst);
        let say = {
            let healed = Arc::clone(&healed);
            move |place: usize, _: &Asked| {
                if place == 1 && !healed.load(Ordering::SeqCst) { Say::status(500) } else { Say::ok("good") }
            }
        };
        // Two runs side by side share the switch: healed once both have been ejected.
        let both = std::sync::Barrier::new(2);
        with_and_without(
            &policy(with),
            &policy(without),
            |lines| in_turn(farm, &[0, 1], lines).apps(say.clone()),
            |stand| {
                let seen = opened(stand, 1);
                both.wait();
                seen?;
                healed.store(true, Ordering::SeqCst);
                let closed = RefCell::new(Value::Null);
                wait_for(SOON, "its return", || {
                    drop(send_many(stand, 4));
                    *closed.borrow_mut() = stand.transitions().unwrap_or_default().pop().unwrap_or_default();
                    closed.borrow()["to"] == "closed"
                })?;
                let closed = closed.into_inner();
                let why = closed["why"].as_str().unwrap_or_default();
                hold!(why.contains(probes), "{why}: {closed}");
                Ok(Ok(()))
            },
        )?;
    }
    Ok(())
}

fn told_to_everybody(farm: &Farm) -> Result<()> {
    with_and_without(
        &format!("  outlierEjection: {{consecutiveFailures: 3, {FOR_LONG}}}\n"),
        "  outlierEjection: {enabled: false}\n",
        |lines| in_turn(farm, &[0, 1], lines).apps(failing(&[1])),
        |stand| {
            send_many(stand, 20)?;
            // In metrics ...
            let metrics = farm.web.status("/metrics")?.body;
            let of_mine = |line: &&str| line.contains(&stand.key());
            let mine: Vec<_> = metrics.lines().filter(of_mine).collect();
            let counted = |name: &str| mine.iter().any(|line| line.starts_with(name) && line.ends_with(" 1"));
            hold!(counted("outrigger_endpoints_ejected{"), "{mine:?}");
            hold!(counted("outrigger_circuit_transitions_total{"), "{mine:?}");
            // ... and, with who sees it so, at the control plane.
            let (mut circuits, mut all) = (Value::Null, Value::Null);
            let told = wait_for(SOON, "the circuit at the control plane", || {
                all = farm.status().unwrap_or_default();
                let all = all["circuits"].as_array().cloned().unwrap_or_default();
                let mine = all.into_iter().find(|one| one["service"] == stand.key().as_str());
                circuits = mine.unwrap_or_default();
                circuits["circuits"][0]["opened_by"].as_array().is_some_and(|by| by.len() == 1)
            });
            told.with_context(|| format!("{} {} {}", stand.key(), all["circuits"], all["transitions"]))?;
            let circuit = &circuits["circuits"][0];
            let endpoint = SocketAddr::from((stand.host(1).pod.ipv4(), stand.port)).to_string();
            hold!(circuit["endpoint"] == endpoint.as_str(), "{circuit}");
            hold!(
                circuit["opened_by"][0].to_string().contains("spiffe://mesh.local/ns/shop/sa/web"),
                "{circuit}"
            );
            let printed = farm.mesh.status(&[])?;
            hold!(printed.to_string().contains(&endpoint), "outrigger status: {printed}");
            Ok(Ok(()))
        },
    )
}
