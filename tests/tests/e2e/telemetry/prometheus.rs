//! A real Prometheus: it scrapes four proxies and the control plane, and judges a scripted outage by the rules that the
//! project ships, with their times made short.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Mesh, Workload, wait_for};

use super::wait_captured;
use crate::support::{
    Need, SOON, Test,
    app::{App, Say},
    ask::{Ask, Loops},
    collector::{Collector, Mood},
    prometheus::{Format, Job, Prometheus, as_text, lint, samples},
    yaml::{Service, policy},
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_real_prometheus_scrapes_everything_and_sees_an_outage_as_the_rules_say", outage)
            .needs(&[Need::Program("prometheus"), Need::Program("promtool")]),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);

struct Scene {
    apps: [App; 2],
    _backend: Collector,
    workloads: Vec<Workload>,
    mesh: Mesh,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http");
    // A failure of the application is one of the caller's.
    let plain = "  targetRef: {kind: Service, name: store}\n  retries: {attempts: 0}\n  \
                 outlierEjection: {enabled: false}\n";
    let mesh = Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("plain.yaml", policy("TrafficPolicy", "store", plain))
        .start(lab)?;
    let backend_pod = lab.pod("backend")?;
    let backend = Collector::start(&backend_pod, 4317, Mood::Good)?;
    let mut workloads = Vec::new();
    for (name, account) in [("web", "web"), ("app", "app"), ("store-a", "store"), ("store-b", "store")] {
        workloads.push(
            mesh.workload(name)
                .service_account(account)
                .label("app", account)
                .proxy_env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}:4317", backend_pod.ipv4()))
                .proxy_env("OTEL_TRACES_SAMPLER", "always_on")
                .start()?,
        );
    }
    let app = |number: usize| {
        App::start(&workloads[number].pod, 8080, |asked| match asked.path.as_str() {
            "/bad" if asked.number % 2 == 0 => Say::status(500),
            "/slow" => Say::ok("").after(Duration::from_millis(700)),
            _ => Say::ok("good"),
        })
    };
    let scene = Scene { apps: [app(2)?, app(3)?], _backend: backend, workloads, mesh };
    for caller in &scene.workloads[..2] {
        wait_for(SOON, "an answer", || {
            Ask::new(SocketAddr::from(STORE), "/").once(&caller.pod).is_ok_and(|told| told.is_good())
        })?;
    }
    Ok(scene)
}

/// The rules of k8s/alerts for whoever cannot wait: windows of minutes and every `for` are some seconds long.
fn short_rules(lab: &Lab) -> Result<Vec<PathBuf>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../k8s/alerts");
    let mut files = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_rules = name.ends_with(".yaml") || name.ends_with(".yml");
        if !is_rules || name.contains("test") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let mut short = String::new();
        for line in text.lines() {
            let indent = &line[..line.len() - line.trim_start().len()];
            if line.trim_start().starts_with("for:") {
                short.push_str(&format!("{indent}for: 1s\n"));
            } else if line.trim_start().starts_with("interval:") {
                short.push_str(&format!("{indent}interval: 1s\n"));
            } else {
                short.push_str(&shorten(line));
                short.push('\n');
            }
        }
        let file = lab.directory().join(name);
        fs::write(&file, short)?;
        files.push(file);
    }
    ensure!(!files.is_empty(), "no rules in {}", directory.display());
    Ok(files)
}

/// A line in which every range of minutes or hours (`[5m]`) is one of ten seconds.
fn shorten(line: &str) -> String {
    let mut short = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('[') {
        short.push_str(before);
        match after.split_once(']') {
            Some((range, tail)) if ["m", "h"].iter().any(|unit| is_range(range, unit)) => {
                short.push_str("[10s]");
                rest = tail;
            }
            _ => {
                short.push('[');
                rest = after;
            }
        }
    }
    short + rest
}

const LATENCY: &str = "OutriggerLatency";

/// But for those about latency: a machine may be so busy that they are right.
fn without_latency(alerts: &BTreeSet<String>) -> BTreeSet<String> {
    alerts.iter().filter(|name| !name.contains(LATENCY)).cloned().collect()
}

fn is_range(text: &str, unit: &str) -> bool {
    text.strip_suffix(unit).is_some_and(|number| number.parse::<u32>().is_ok())
}

fn outage(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let metrics = |workload: &Workload| SocketAddr::from((workload.pod.ipv4(), 15020));
    let control_plane = SocketAddr::from((scene.mesh.control_plane_pod(0).ipv4(), 15014));
    let jobs = [
        Job {
            name: "outrigger-proxy",
            targets: scene.workloads.iter().map(|one| (one.name().to_owned(), metrics(one))).collect(),
        },
        Job { name: "outrigger-control-plane", targets: vec![("control-plane".to_owned(), control_plane)] },
    ];
    let rules = short_rules(lab)?;
    let rules: Vec<_> = rules.iter().map(PathBuf::as_path).collect();
    let prometheus = Prometheus::start(lab, &jobs, &rules)?;
    wait_for(SOON, "five targets that are scraped", || {
        prometheus.number("sum(up)").is_ok_and(|up| up >= 5.0)
    })?;
    for (name, error) in prometheus.rules()? {
        ensure!(error.is_empty(), "rule {name}: {error}");
    }

    // While all is well, nothing fires.
    let web = &scene.workloads[0].pod;
    let target = SocketAddr::from(STORE);
    let calm = Loops::new(Ask::new(target, "/"), 2).at_rate(40).start(web)?;
    calm.wait_for_more(400)?;
    let firing = || -> Result<BTreeSet<String>> {
        let alerts = prometheus.alerts()?.into_iter().filter(|alert| alert.firing);
        Ok(alerts.map(|alert| format!("{} {}", alert.name, alert.severity)).collect())
    };
    let quiet = without_latency(&firing()?);
    ensure!(quiet.is_empty(), "all is well, and yet {quiet:?}");
    // The same number of requests as the callers counted, to the request.
    let answered = calm.stop()?.told.len() as f64;
    let asked: u64 = scene.apps.iter().map(App::count).sum();
    wait_for(SOON, "all requests in Prometheus", || {
        let query =
            "sum(outrigger_requests_total{direction=\"outbound\",service=\"shop/store:80\",pod=\"web\"})";
        prometheus.number(query).is_ok_and(|number| number >= answered)
    })?;
    ensure!(asked as f64 >= answered, "{asked} arrived of {answered}");
    // Exemplars lead from a histogram to a trace.
    wait_for(SOON, "exemplars", || {
        let found = prometheus.exemplars("outrigger_request_duration_seconds_bucket");
        found.is_ok_and(|found| {
            found.iter().any(|labels| labels.get("trace_id").is_some_and(|id| id.len() == 32))
        })
    })?;

    pages(lab, &scene)?;

    // An outage, one thing after the other: what has to fire does, and nothing else.
    let expect = |what: &str, wanted: &[&str]| {
        let wanted: BTreeSet<_> = wanted.iter().map(|name| format!("Outrigger{name}")).collect();
        let mut last = BTreeSet::new();
        wait_for(SOON, &format!("the alerts about {what}"), || {
            last = firing().unwrap_or_default();
            let is_slow = wanted.iter().any(|name| name.contains(LATENCY));
            if is_slow { last == wanted } else { without_latency(&last) == wanted }
        })
        .with_context(|| format!("wanted {wanted:?}, firing are {last:?}"))
    };
    let bad = Loops::new(Ask::new(target, "/bad"), 2).at_rate(40).start(web)?;
    expect("failures", &["ErrorRate warning", "ErrorRate critical"])?;
    bad.stop()?;
    expect("failures that are over", &[])?;
    let slow = Loops::new(Ask::new(target, "/slow"), 8).start(web)?;
    expect("slow answers", &["Latency warning", "Latency critical"])?;
    slow.stop()?;
    scene.mesh.write("broken.yaml", "kind: nonsense\n")?;
    expect("a configuration that cannot be", &["ConfigurationInvalid warning"])?;
    scene.mesh.remove("broken.yaml")?;
    wait_captured(&scene.workloads[2])?;
    let store = &scene.workloads[2].pod;
    store.run(store.command("nft").args(["flush", "ruleset"]))?.success()?;
    expect("redirect rules that are gone", &["CaptureBroken critical"])?;
    store.run(store.command(scene.mesh.binaries().proxy()).arg("init"))?.success()?;
    expect("rules that are back", &[])?;
    scene.mesh.kill_control_plane(0);
    let away = ["ControlPlaneUnreachable warning", "ControlPlaneUnreachable critical", "TargetDown critical"];
    expect("the control plane", &away)?;
    scene.mesh.start_control_plane(0)?;
    expect("all that is over", &[])
}

/// Both formats of all programs, by promtool and against each other.
fn pages(lab: &Lab, scene: &Scene) -> Result<()> {
    let reader = scene.mesh.control_plane_pod(0);
    let mut pages: Vec<(String, SocketAddr)> = scene
        .workloads
        .iter()
        .map(|one| (one.name().to_owned(), SocketAddr::from((one.pod.ipv4(), 15020))))
        .collect();
    pages.push(("control plane".to_owned(), SocketAddr::from((reader.ipv4(), 15014))));
    for (name, target) in pages {
        let text = Format::Text.page(reader, target)?;
        let found = lint(lab, reader, &text)?;
        ensure!(found.is_empty(), "promtool about {name}: {found}");
        if name == "control plane" {
            continue;
        }
        let open = Format::OpenMetrics.page(reader, target)?;
        let found = lint(lab, reader, &as_text(&open))?;
        ensure!(found.is_empty(), "promtool about {name}'s OpenMetrics: {found}");
        // The same families, and of requests that have ended the same numbers.
        let requests = |page: &str| -> Result<Vec<_>> {
            let all = samples(page)?.into_iter();
            Ok(all
                .filter(|one| one.name == "outrigger_requests_total")
                .map(|one| (one.labels, one.value as u64))
                .collect())
        };
        ensure!(requests(&text)? == requests(&open)?, "{name} tells other numbers in OpenMetrics");
    }
    Ok(())
}
