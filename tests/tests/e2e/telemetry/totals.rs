//! The same totals, to the request, from everybody who counts: the Prometheus text, OpenMetrics, metrics pushed by OTLP,
//! `/stat` of the control plane and the access log, after a mixture of requests in which every kind of failure occurs.

use std::{collections::BTreeMap, io::Write, net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result, anyhow, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for};
use serde_json::Value;

use super::{many, stat};
use crate::support::{
    SOON, Test,
    app::{App, Say},
    ask::{Ask, Told, at_once, in_turn},
    booth::Booth,
    collector::{Collector, Mood},
    figure, log,
    prometheus::{Format, samples},
    raw,
    yaml::{Service, document, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![Test::new("totals_are_the_same_to_the_request_whoever_tells_them", totals)]
}

/// How requests ended: class of the status (`none`: the caller left before), gRPC status, reason.
type Outcome = (String, String, String);
type Totals = BTreeMap<Outcome, u64>;

/// What is asked for, as which share of all (in thousands).
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// The service, and what is added to 10.96.0.10 and 9000 for it.
    service: u16,
    path: &'static str,
    grpc: bool,
    share: usize,
}

const fn wish(service: u16, path: &'static str, share: usize) -> Wish {
    Wish { service, path, grpc: false, share }
}

const fn call(path: &'static str, share: usize) -> Wish {
    Wish { service: 0, path, grpc: true, share }
}

const PLAIN: u16 = 0;
const NOBODY: u16 = 1;
const DENIED: u16 = 2;
const LIMITED: u16 = 3;
const FULL: u16 = 4;
/// Where callers leave: nothing is too slow there.
const LEFT: u16 = 5;
/// Where nobody answers in time.
const SLOW: u16 = 6;
const WISHES: [Wish; 13] = [
    wish(PLAIN, "/ok", 500),
    wish(PLAIN, "/status/500", 90),
    wish(PLAIN, "/status/404", 50),
    wish(PLAIN, "/status/302", 10),
    wish(PLAIN, "/reset", 30),
    wish(SLOW, "/never", 20),
    wish(NOBODY, "/", 50),
    wish(DENIED, "/", 50),
    wish(LIMITED, "/", 50),
    wish(FULL, "/", 50),
    call("/test.Calls/0", 50),
    call("/test.Calls/5", 20),
    call("/test.Calls/14", 10),
];
/// Of all, in thousands: requests whose caller leaves.
const CANCELLED: usize = 20;

struct Scene {
    /// Of callers that leave.
    waiting: App,
    booth: Booth,
    _apps: Vec<App>,
    web: Workload,
    store: Workload,
    collector: Collector,
    mesh: Mesh,
}

fn target(service: u16) -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10 + service as u8], 80))
}

fn scene(lab: &Lab) -> Result<Scene> {
    let mut builder = Mesh::builder();
    for (number, name) in (0..).zip(["plain", "nobody", "denied", "limited", "full", "left", "slow"]) {
        let text = if number == NOBODY {
            document("outrigger.dev/v1alpha1", "MeshService", name)
                + &format!(
                    "  addresses: [{}]\n  ports: [{{port: 80, appProtocol: http}}]\n",
                    target(number).ip()
                )
        } else {
            let service = Service::new(name).address(&target(number).ip().to_string()).select("app", "store");
            service.port(80, 9000 + number, "http").yaml()
        };
        // What the application says is what its caller gets, and every request is one.
        let mut spec = format!(
            "  targetRef: {{kind: Service, name: {name}}}\n  retries: {{attempts: 0}}\n  outlierEjection: {{enabled: false}}\n  \
             timeouts: {{request: 600s}}\n"
        );
        match number {
            LIMITED => spec += "  rateLimit: [{name: hardly, requests: 1, per: 1000s}]\n",
            FULL => spec += "  bulkhead: {upstream: {maxRequests: 1}}\n",
            _ => {}
        }
        if number == SLOW {
            spec = spec.replace("600s", "200ms");
        }
        builder = builder
            .file(&format!("{name}.yaml"), text)
            .file(&format!("{name}-policy.yaml"), policy("TrafficPolicy", name, &spec));
    }
    let deny = format!(
        "  selector: {{app: store}}\n  action: deny\n  rules: [{{to: {{ports: [{}]}}}}]\n",
        9000 + DENIED
    );
    let mesh = builder.file("deny.yaml", policy("AuthorizationPolicy", "shut", &deny)).start(lab)?;
    let backend = lab.pod("backend")?;
    let collector = Collector::start(&backend, 4317, Mood::Good)?;
    let workload = |name: &str| {
        mesh.workload(name)
            .proxy_env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}:4317", backend.ipv4()))
            .proxy_env("OTEL_METRICS_EXPORTER", "otlp")
            .proxy_env("OTEL_METRIC_EXPORT_INTERVAL", "1000")
            .proxy_env("OTEL_TRACES_EXPORTER", "none")
            .proxy_env("OTEL_SERVICE_NAME", name)
            .start()
    };
    let store = workload("store")?;
    let plain = App::start(&store.pod, 9000 + PLAIN, |asked| {
        if let Some(code) = asked.path.strip_prefix("/test.Calls/").and_then(|code| code.parse().ok()) {
            return Say::grpc(code);
        }
        if let Some(status) = asked.path.strip_prefix("/status/").and_then(|status| status.parse().ok()) {
            return Say::status(status);
        }
        match asked.path.as_str() {
            "/reset" => Say::reset(),
            _ => Say::ok("fine"),
        }
    })?;
    let booth = Booth::start(&store.pod, 9000 + FULL, "full")?;
    let waiting = App::start(&store.pod, 9000 + LEFT, |_| Say::nothing())?;
    let mut apps = vec![plain, App::start(&store.pod, 9000 + SLOW, |_| Say::nothing())?];
    for number in [DENIED, LIMITED] {
        apps.push(App::start(&store.pod, 9000 + number, |_| Say::ok("fine"))?);
    }
    let web = workload("web")?;
    Ok(Scene { waiting, booth, _apps: apps, web, store, collector, mesh })
}

fn totals(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let mut told = Vec::new();
    wait_for(SOON, "an answer", || {
        let answer = Ask::new(target(PLAIN), "/ok").once(&scene.web.pod);
        let good = answer.as_ref().is_ok_and(Told::is_good);
        told.extend(answer);
        good
    })?;
    let number = many(20_000, 100_000);
    // One holds the place that there is, until all are through that want it.
    let holder = at_once(&scene.web.pod, vec![Ask::new(target(FULL), "/hold")])?;
    wait_for(SOON, "the holder of the place", || scene.booth.inside() == 1)?;
    let (full, others): (Vec<Wish>, Vec<Wish>) = WISHES.iter().partition(|wish| wish.service == FULL);
    for asks in full.into_iter().flat_map(|wish| parts(wish, number)) {
        told.extend(in_turn(&scene.web.pod, asks)?);
    }
    scene.booth.let_out(1);
    told.extend(holder.wait()?);
    let (answers, left) = thread::scope(|scope| {
        let asking: Vec<_> = others.into_iter().flat_map(|wish| parts(wish, number)).collect();
        let asking: Vec<_> =
            asking.into_iter().map(|asks| scope.spawn(|| in_turn(&scene.web.pod, asks))).collect();
        let leaving = scope.spawn(|| leave(&scene, number * CANCELLED / 1000));
        let mut answers = Vec::new();
        for one in asking {
            answers.extend(one.join().map_err(|_| anyhow!("asking panicked"))??);
        }
        Ok::<_, anyhow::Error>((answers, leaving.join().map_err(|_| anyhow!("leaving panicked"))??))
    })?;
    told.extend(answers);

    // What callers were told is what the proxy beside them says it told them.
    let mut wanted = Totals::new();
    for one in &told {
        let class = format!("{}xx", one.status / 100);
        let grpc = one.field("grpc-status").unwrap_or_default().to_owned();
        *wanted.entry((class, grpc, one.reason().to_owned())).or_default() += 1;
    }
    *wanted.entry(("none".to_owned(), String::new(), String::new())).or_default() += left as u64;
    let all: u64 = wanted.values().sum();
    figure(&format!("{all} requests: {wanted:?}"));
    for reason in
        ["no-endpoints", "denied", "rate-limited", "bulkhead-full", "upstream-reset", "request-timeout"]
    {
        ensure!(wanted.keys().any(|(.., known)| known == reason), "none was told {reason}: {wanted:?}");
    }
    let logged = until(&wanted, "the access log", || from_log(&scene.web, "outbound"))?;
    ensure!(logged == wanted, "the callers were told {wanted:?}, the log has {logged:?}");

    for (workload, side) in [(&scene.web, "outbound"), (&scene.store, "inbound")] {
        let reader = scene.mesh.control_plane_pod(0);
        let address = SocketAddr::from((workload.pod.ipv4(), 15020));
        let logged = if side == "outbound" {
            logged.clone()
        } else {
            settled(workload, side, || from_page(&Format::Text.page(reader, address)?, side))?
        };
        ensure!(logged.len() >= 5, "{side}: {logged:?}");
        for format in [Format::Text, Format::OpenMetrics] {
            same(&logged, &format!("{format:?}, {side}"), || {
                from_page(&format.page(reader, address)?, side)
            })?;
        }
        same(&logged, &format!("OTLP, {side}"), || from_collector(&scene.collector, workload.name(), side))?;
        same(&logged, &format!("/stat, {side}"), || from_stat(&stat(&scene.mesh, "service", side)?))?;
        same(&logged, &format!("/stat by edge, {side}"), || from_stat(&stat(&scene.mesh, "edge", side)?))?;
    }
    Ok(())
}

/// A wish as rows of requests, each for a connection.
fn parts(wish: Wish, number: usize) -> Vec<Vec<Ask>> {
    let ask = Ask::new(target(wish.service), wish.path);
    let ask = if wish.grpc { ask.grpc() } else { ask };
    let number = number * wish.share / 1000;
    // What takes its time, or is most of it, is asked for on more connections.
    let connections = if matches!(wish.path, "/never" | "/ok") { 8 } else { 2 };
    (0..connections)
        .map(|part| vec![ask.clone(); number / connections + usize::from(part < number % connections)])
        .collect()
}

/// Callers that leave once the application has their request.
fn leave(scene: &Scene, number: usize) -> Result<usize> {
    let arrived = || scene.waiting.count();
    for left in 0..number {
        let mut stream = raw::connect(&scene.web.pod, target(LEFT))?;
        stream.write_all(b"GET /leave HTTP/1.1\r\nhost: store.shop\r\n\r\n")?;
        wait_for(SOON, "the request to arrive", || arrived() > left as u64)?;
        // By a reset: one that has only finished sending may still wait for its answer.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
    }
    Ok(number)
}

// ---- who counts -----------------------------------------------------------------------------------------------------

fn class(status: u64) -> String {
    if status == 0 { "none".to_owned() } else { format!("{}xx", status / 100) }
}

fn from_log(workload: &Workload, side: &str) -> Result<Totals> {
    let mut totals = Totals::new();
    let lines = log::lines(workload)?;
    for line in log::requests(&lines, side) {
        let grpc = line["grpc_status"].as_u64().map_or_else(String::new, |code| code.to_string());
        let reason = line["reason"].as_str().unwrap_or_default().to_owned();
        *totals.entry((class(line["status"].as_u64().context("status")?), grpc, reason)).or_default() += 1;
    }
    Ok(totals)
}

fn from_page(page: &str, side: &str) -> Result<Totals> {
    let mut totals = Totals::new();
    for one in samples(page)? {
        let of = |label: &str| one.labels.get(label).cloned().unwrap_or_default();
        if one.name == "outrigger_requests_total" && of("direction") == side {
            *totals.entry((of("status"), of("grpc_status"), of("reason"))).or_default() += one.value as u64;
        }
    }
    Ok(totals)
}

fn from_collector(collector: &Collector, whose: &str, side: &str) -> Result<Totals> {
    let mut totals = Totals::new();
    for ((resource, labels), value) in collector.counters("service.name", "outrigger_requests_total")? {
        let of = |label: &str| labels.get(label).cloned().unwrap_or_default();
        if resource == whose && of("direction") == side {
            *totals.entry((of("status"), of("grpc_status"), of("reason"))).or_default() += value;
        }
    }
    Ok(totals)
}

fn from_stat(told: &Value) -> Result<Totals> {
    let mut totals = Totals::new();
    for row in told["rows"].as_array().context("rows")? {
        let mut sum = 0;
        for outcome in row["outcomes"].as_array().context("outcomes")? {
            let text = |key: &str| match &outcome[key] {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => String::new(),
            };
            let status = if text("status").is_empty() { "none".to_owned() } else { text("status") };
            let count = outcome["count"].as_u64().context("count")?;
            sum += count;
            *totals.entry((status, text("grpc_status"), text("reason"))).or_default() += count;
        }
        ensure!(row["requests"] == sum, "{sum} outcomes in {row}");
    }
    Ok(totals)
}

/// Waits until a source has as many as are wanted.
fn until(wanted: &Totals, who: &str, source: impl Fn() -> Result<Totals>) -> Result<Totals> {
    let all: u64 = wanted.values().sum();
    let mut last = Ok(Totals::new());
    wait_for(SOON, &format!("{all} requests in {who}"), || {
        last = source();
        last.as_ref().is_ok_and(|last| last.values().sum::<u64>() >= all)
    })
    .with_context(|| format!("wanted {wanted:?}, last {last:?}"))?;
    last
}

/// Waits for a source to say the same.
fn same(wanted: &Totals, who: &str, source: impl Fn() -> Result<Totals>) -> Result<()> {
    let found = until(wanted, who, source)?;
    ensure!(found == *wanted, "{who}: the access log has {wanted:?}, this has {found:?}");
    Ok(())
}

/// The log of a side, once nothing is added any more and it has as many as the proxy's counters.
fn settled(workload: &Workload, side: &str, counters: impl Fn() -> Result<Totals>) -> Result<Totals> {
    let sum = |totals: &Totals| totals.values().sum::<u64>();
    let (mut last, mut counted) = (Totals::new(), Totals::new());
    wait_for(SOON, "a log that stands still", || {
        thread::sleep(Duration::from_secs(1));
        let now = from_log(workload, side).unwrap_or_default();
        counted = counters().unwrap_or_default();
        let still = now == last && !now.is_empty() && sum(&now) == sum(&counted);
        last = now;
        still
    })
    .with_context(|| format!("{side}: the log has {last:?}, the counters {counted:?}"))?;
    Ok(last)
}
