//! Configuration that is pushed: followed at once, with connections open across it, and refused as a whole when wrong.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Process, Workload, wait_for};

use crate::support::{
    Need, SOON, Test,
    load::{Kind, Plan},
    origin::Origin,
    peers, raw,
    yaml::{Service, document, policy, split},
};

const STORE: &str = "10.96.0.10";

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("a_weight_change_is_followed_within_a_second_with_streams_open_across_it", weight_change)
            .needs(&[Need::Python]),
        Test::new("requests_are_split_by_weight_and_balanced_over_ready_endpoints", split_and_balance),
        Test::new("a_broken_file_changes_nothing_and_is_reported_with_file_line_and_field", broken_file),
        Test::new("routes_match_path_prefix_and_header", routes),
        Test::new("a_denied_caller_is_told_which_policy_and_open_connections_close", denied),
        Test::new("timeouts_and_missing_endpoints_are_answered_with_a_reason", own_answers)
            .needs(&[Need::Python]),
    ]
}

fn target(port: u16) -> SocketAddr {
    SocketAddr::new(STORE.parse().expect("literal"), port)
}

fn get(pod: &Pod, port: u16, path: &str, fields: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n{fields}\r\n");
    raw::exchange(pod, target(port), request.as_bytes())
}

/// `store` and its versions `v1` and `v2`, each a service of its own too; what the files of the mesh say of them.
fn versions(builder: outrigger_lab::MeshBuilder) -> outrigger_lab::MeshBuilder {
    let store = Service::new("store")
        .address(STORE)
        .port(80, 8080, "http")
        .port(84, 8084, "http")
        .port(85, 8085, "grpc")
        .port(86, 8086, "tcp");
    let version = |name: &str| {
        Service::new(name).select("app", "store").select("version", name).port(80, 8080, "http").yaml()
    };
    builder.file("store.yaml", store.yaml()).file("v1.yaml", version("v1")).file("v2.yaml", version("v2"))
}

fn instance(mesh: &Mesh, name: &str, version: &str) -> Result<(Workload, Origin)> {
    let workload = mesh
        .workload(name)
        .service_account("store")
        .label("app", "store")
        .label("version", version)
        .start()?;
    let origin = Origin::start(&workload.pod, 8080, version)?;
    Ok((workload, origin))
}

fn weight_change(lab: &Lab) -> Result<()> {
    let mesh = versions(Mesh::builder()).file("canary.yaml", canary(100, 0)).start(lab)?;
    let (mut one, _origin_one) = instance(&mesh, "one", "v1")?;
    let (mut two, _origin_two) = instance(&mesh, "two", "v2")?;
    for workload in [&mut one, &mut two] {
        let pod = workload.pod.clone();
        workload.run_app(peers::script(&pod, "websocket_peer.py").args(["serve", "0.0.0.0", "8084"]))?;
        workload.run_app(peers::script(&pod, "grpc_peer.py").args(["serve", "0.0.0.0:8085", "store"]))?;
        workload.run_app(pod.command(peers::python().context("python")?).args(["-c", TCP_ECHO]))?;
    }
    for workload in [&one, &two] {
        [8084, 8085, 8086].into_iter().try_for_each(|port| workload.pod.wait_listening(port))?;
    }
    let web = mesh.workload("web").start()?;
    let pod = &web.pod;

    let mut tcp = raw::connect(pod, target(86))?;
    let mut websocket = pod
        .spawn(peers::script(pod, "websocket_peer.py").args(["hold", "ws://10.96.0.10:84/"]), "websocket")?;
    let mut grpc = pod.spawn(peers::script(pod, "grpc_peer.py").args(["hold", "10.96.0.10:85"]), "grpc")?;
    for stream in [&mut websocket, &mut grpc] {
        wait_for_more_lines(stream, 5)?;
    }
    say(&mut tcp, b"before")?;
    wait_for(SOON, "requests to go to v1", || {
        get(pod, 80, "/id", "").is_ok_and(|answer| answer.ends_with("v1"))
    })?;
    for _ in 0..50 {
        let answer = get(pod, 80, "/id", "")?;
        ensure!(answer.ends_with("v1"), "{answer}");
    }

    // Opened before the change, used after it.
    let mut early = raw::connect(pod, target(80))?;
    let mut took = follow(&mesh, pod, "v2")?;
    early.write_all(b"GET /id HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n")?;
    let answer = raw::read_to_end(&mut early)?;
    ensure!(answer.ends_with("v2"), "on a connection from before the change: {answer}");
    // Tried again where it took long, because others use the machine too.
    for to in ["v1", "v2", "v1", "v2"] {
        if took < Duration::from_secs(1) {
            break;
        }
        took = follow(&mesh, pod, to)?;
    }
    ensure!(took < Duration::from_secs(1), "followed only after {took:?}");

    for stream in [&mut websocket, &mut grpc] {
        wait_for_more_lines(stream, 5)?;
        stream.terminate()?;
        stream.wait_deadline(SOON)?;
    }
    ensure!(websocket.log().trim_end().ends_with("closed 1000"), "{}", websocket.log());
    ensure!(grpc.log().trim_end().ends_with("closed OK"), "{}", grpc.log());
    say(&mut tcp, b"after")
}

fn canary(v1: u32, v2: u32) -> String {
    split("canary", "store", 80, &[("v1", v1), ("v2", v2)])
}

/// Moves all requests from one version to the other; how long until the first one followed. Those after it all do.
fn follow(mesh: &Mesh, pod: &Pod, to: &str) -> Result<Duration> {
    let (from, file) = if to == "v1" { ("v2", canary(100, 0)) } else { ("v1", canary(0, 100)) };
    let start = Instant::now();
    mesh.write("canary.yaml", &file)?;
    let took = loop {
        let answer = get(pod, 80, "/id", "")?;
        if answer.ends_with(to) {
            break start.elapsed();
        }
        ensure!(answer.ends_with(from), "{answer}");
        ensure!(start.elapsed() < SOON, "never followed");
    };
    for _ in 0..50 {
        let answer = get(pod, 80, "/id", "")?;
        ensure!(answer.ends_with(to), "after the change: {answer}");
    }
    Ok(took)
}

const TCP_ECHO: &str = "import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
Server(('0.0.0.0', 8086), Echo).serve_forever()";

fn wait_for_more_lines(process: &mut Process, more: usize) -> Result<()> {
    let goal = process.log().lines().count() + more;
    let name = process.name().to_owned();
    wait_for(SOON, &format!("{name} to get {more} more answers"), || {
        process.log().lines().count() >= goal || !process.is_running()
    })?;
    if !process.is_running() {
        bail!("{name} ended: {}", process.log());
    }
    Ok(())
}

fn say(tcp: &mut std::net::TcpStream, words: &[u8]) -> Result<()> {
    tcp.write_all(words)?;
    let mut echo = vec![0; words.len()];
    tcp.read_exact(&mut echo).context("echo of the open TCP connection")?;
    ensure!(echo == words);
    Ok(())
}

fn split_and_balance(lab: &Lab) -> Result<()> {
    let route = split("canary", "store", 80, &[("v1", 80), ("v2", 20)]);
    let mesh = versions(Mesh::builder()).file("canary.yaml", route).start(lab)?;
    let (_one, one) = instance(&mesh, "one", "v1")?;
    let (_two, two) = instance(&mesh, "two", "v1")?;
    let (_three, three) = instance(&mesh, "three", "v2")?;
    let web = mesh.workload("web").start()?;
    wait_for(SOON, "an answer", || {
        get(&web.pod, 80, "/id", "").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })?;
    let load = Plan::new(Kind::Http2, target(80), "store.shop").start(&web.pod)?;
    load.wait_for_more(2000, SOON)?;
    let report = load.stop()?;
    report.expect_none_failed(2000)?;
    let share = |count: u64| count as f64 / report.answered as f64;
    // Seven standard deviations of 20 % of 2,000 are 6.3 %.
    let v2 = share(report.instances.get("v2").copied().unwrap_or(0));
    ensure!((v2 - 0.2).abs() < 0.065, "{v2} of the requests instead of 0.2: {report}");
    let counts = [one.requests(), two.requests(), three.requests()];
    // One after the other on 8 loops: equal endpoints get about the same.
    let (few, many) = (counts[0].min(counts[1]), counts[0].max(counts[1]));
    ensure!(few * 3 > many, "{counts:?}");
    Ok(())
}

fn broken_file(lab: &Lab) -> Result<()> {
    let mesh = versions(Mesh::builder())
        .file("canary.yaml", split("canary", "store", 80, &[("v1", 1)]))
        .start(lab)?;
    let (_one, _origin) = instance(&mesh, "one", "v1")?;
    let web = mesh.workload("web").start()?;
    wait_for(SOON, "an answer", || get(&web.pod, 80, "/id", "").is_ok_and(|answer| answer.ends_with("v1")))?;
    let healthy = mesh.status(&[])?;
    ensure!(healthy.status.success(), "{healthy}");
    let load = Plan::new(Kind::Http1, target(80), "store.shop")
        .loops(2, Duration::from_millis(5))
        .start(&web.pod)?;

    let broken: [(&str, String, &[&str]); 5] = [
        ("no-yaml.yaml", "apiVersion: outrigger.dev/v1alpha1\nkind: [\n".into(), &["no-yaml.yaml:"]),
        (
            "unknown.yaml",
            Service::new("other").port(80, 80, "http").yaml().replace("  selector:", "  selektor:"),
            &["unknown.yaml:8", "selektor"],
        ),
        (
            "dangling.yaml",
            split("dangling", "store", 80, &[("nowhere", 1)]),
            &["dangling.yaml:8", "backendRefs[0]", "nowhere"],
        ),
        (
            "conflict.yaml",
            Service::new("thief").address(STORE).port(80, 80, "http").yaml(),
            &["conflict.yaml:6", "addresses[0]", "store"],
        ),
        (
            "range.yaml",
            Service::new("other").port(80, 80, "http").yaml().replace("port: 80,", "port: 70000,"),
            &["range.yaml:7", "spec.ports[0].port"],
        ),
    ];
    for (name, text, wanted) in broken {
        mesh.write(name, &text)?;
        let mut told = String::new();
        wait_for(SOON, &format!("{name} in `outrigger status`"), || {
            told = mesh.status(&[]).map_or_else(|error| error.to_string(), |output| output.to_string());
            wanted.iter().all(|part| told.contains(part))
        })
        .with_context(|| format!("wanted {wanted:?}: {told}"))?;
        let json = mesh.status(&["-o", "json"])?;
        let parsed: serde_json::Value =
            serde_json::from_str(&json.stdout).with_context(|| json.to_string())?;
        ensure!(parsed.to_string().contains(name), "{parsed}");
        // Nothing of the directory is taken now, not even a change that is right by itself: it would fail requests.
        mesh.write("canary.yaml", &split("canary", "store", 80, &[("v2", 1)]))?;
        load.wait_for_more(50, SOON)?;
        mesh.write("canary.yaml", &split("canary", "store", 80, &[("v1", 1)]))?;
        mesh.remove(name)?;
        wait_for(SOON, "a clean status", || {
            mesh.status(&[]).is_ok_and(|output| !output.to_string().contains(name))
        })?;
    }
    let report = load.stop()?;
    report.expect_none_failed(1)
}

fn routes(lab: &Lab) -> Result<()> {
    let mut route = document("gateway.networking.k8s.io/v1", "HTTPRoute", "paths");
    route.push_str(
        "  parentRefs: [{kind: Service, group: \"\", name: store, port: 80}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /id/new}}]
    backendRefs: [{name: v2, port: 80}]
  - matches: [{headers: [{name: x-version, value: two}]}]
    backendRefs: [{name: v2, port: 80}]
  - backendRefs: [{name: v1, port: 80}]
",
    );
    let mesh = versions(Mesh::builder()).file("paths.yaml", route).start(lab)?;
    let (_one, _origin_one) = instance(&mesh, "one", "v1")?;
    let (_two, _origin_two) = instance(&mesh, "two", "v2")?;
    let web = mesh.workload("web").start()?;
    wait_for(SOON, "an answer", || get(&web.pod, 80, "/id", "").is_ok_and(|answer| answer.ends_with("v1")))?;
    for (path, field, wanted) in [
        ("/id", "", "v1"),
        ("/id/new", "", "v2"),
        ("/id/new/er", "", "v2"),
        ("/id/new?a=b", "", "v2"),
        ("/id/newer", "", "v1"),
        ("/id/./new", "", "v2"),
        ("/id/x/../new", "", "v2"),
        ("/id//new", "", "v2"),
        ("/id/%6eew", "", "v2"),
        ("/id", "X-Version: two\r\n", "v2"),
        ("/id", "X-Version: three\r\n", "v1"),
    ] {
        let answer = get(&web.pod, 80, path, field)?;
        ensure!(answer.ends_with(wanted), "{path} {field} did not go to {wanted}: {answer}");
    }
    Ok(())
}

fn denied(lab: &Lab) -> Result<()> {
    let mesh = versions(Mesh::builder()).start(lab)?;
    let (one, origin) = instance(&mesh, "one", "v1")?;
    let echo = raw::Sink::start(&one.pod, 8086)?;
    let web = mesh.workload("web").start()?;
    let admin = mesh.workload("admin").start()?;
    wait_for(SOON, "an answer", || get(&web.pod, 80, "/id", "").is_ok_and(|answer| answer.ends_with("v1")))?;
    let mut open = raw::connect(&web.pod, target(86))?;
    open.write_all(b"hello")?;
    let mut byte = [0];
    open.read_exact(&mut byte)?;

    let only_admin = "  selector: {app: store}\n  action: allow\n  rules:\n  \
                      - from: {identities: [\"spiffe://mesh.local/ns/shop/sa/admin\"]}\n";
    mesh.write("only-admin.yaml", &policy("AuthorizationPolicy", "only-admin", only_admin))?;
    let mut answer = String::new();
    wait_for(SOON, "web to be denied", || {
        answer = get(&web.pod, 80, "/id", "").unwrap_or_default();
        answer.starts_with("HTTP/1.1 403")
    })
    .with_context(|| answer.clone())?;
    ensure!(answer.contains("outrigger-reason: denied") && answer.contains("outrigger-id: "), "{answer}");
    let allowed = get(&admin.pod, 80, "/id", "")?;
    ensure!(allowed.starts_with("HTTP/1.1 200"), "{allowed}");
    // The connection that was open is closed, and a new one brings no byte to the program.
    drop(raw::read_to_end(&mut open).context("the open TCP connection")?);
    let (bytes, requests) = (echo.bytes(), origin.requests());
    let refused = raw::exchange(&web.pod, target(86), b"hello")?;
    ensure!(refused.is_empty(), "{refused}");
    ensure!(get(&web.pod, 80, "/id", "")?.starts_with("HTTP/1.1 403"));
    ensure!(echo.bytes() == bytes && origin.requests() == requests, "denied bytes reached the program");

    // A deny policy wins over the allow policy, and says its name.
    let deny = "  selector: {app: store}\n  action: deny\n  rules:\n  - from: {namespaces: [shop]}\n";
    mesh.write("nobody.yaml", &policy("AuthorizationPolicy", "nobody", deny))?;
    wait_for(SOON, "admin to be denied", || {
        answer = get(&admin.pod, 80, "/id", "").unwrap_or_default();
        answer.starts_with("HTTP/1.1 403")
    })
    .with_context(|| answer.clone())?;
    // Which policy it was is not the caller's business: the callee's log tells it, under the same id.
    let id = answer.lines().find_map(|line| line.strip_prefix("outrigger-id: ")).context("no id")?.to_owned();
    wait_for(SOON, "the policy's name in the callee's access log", || {
        one.access_log().lines().any(|line| line.contains(&id) && line.contains("shop/nobody"))
    })?;
    mesh.remove("nobody.yaml")?;
    mesh.remove("only-admin.yaml")?;
    wait_for(SOON, "web to be allowed again", || {
        get(&web.pod, 80, "/id", "").is_ok_and(|a| a.ends_with("v1"))
    })
}

fn own_answers(lab: &Lab) -> Result<()> {
    let timeouts = "  targetRef: {kind: MeshService, name: store}\n  timeouts: {request: 2s, connect: 2s}\n";
    let mut nowhere = document("outrigger.dev/v1alpha1", "MeshService", "nowhere");
    nowhere.push_str(
        "  addresses: [\"10.96.0.30\"]\n  ports: [{port: 80, appProtocol: http}]\n  endpoints:\n  \
         - {address: 10.77.250.250, identity: \"spiffe://mesh.local/ns/shop/sa/nowhere\"}\n",
    );
    let mesh = versions(Mesh::builder())
        .file("timeouts.yaml", policy("TrafficPolicy", "store", timeouts))
        .file(
            "empty.yaml",
            Service::new("empty").address("10.96.0.20").port(80, 80, "http").port(81, 81, "grpc").yaml(),
        )
        .file("nowhere.yaml", nowhere)
        .start(lab)?;
    let (_one, _origin) = instance(&mesh, "one", "v1")?;
    let web = mesh.workload("web").start()?;
    wait_for(SOON, "an answer", || get(&web.pod, 80, "/id", "").is_ok_and(|answer| answer.ends_with("v1")))?;

    let slow = get(&web.pod, 80, "/slow/10000", "")?;
    ensure!(slow.starts_with("HTTP/1.1 504") && slow.contains("outrigger-reason: request-timeout"), "{slow}");
    let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let empty = raw::exchange(&web.pod, "10.96.0.20:80".parse()?, request)?;
    ensure!(empty.starts_with("HTTP/1.1 503") && empty.contains("outrigger-reason: no-endpoints"), "{empty}");
    let nowhere = raw::exchange(&web.pod, "10.96.0.30:80".parse()?, request)?;
    ensure!(
        nowhere.starts_with("HTTP/1.1 50") && nowhere.contains("outrigger-reason: connect-"),
        "{nowhere}"
    );
    // A gRPC caller gets the status of its own protocol.
    let grpc = web.pod.run(peers::script(&web.pod, "grpc_peer.py").args(["check", "10.96.0.20:81"]))?;
    ensure!(grpc.to_string().contains("StatusCode.UNAVAILABLE"), "{grpc}");
    ensure!(grpc.to_string().contains("no-endpoints") || grpc.to_string().contains("endpoint"), "{grpc}");
    // And the application's own errors are left alone.
    let own = get(&web.pod, 80, "/status/503", "")?;
    ensure!(own.starts_with("HTTP/1.1 503") && !own.contains("outrigger-reason"), "{own}");
    Ok(())
}
