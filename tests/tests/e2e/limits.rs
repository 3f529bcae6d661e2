//! Bad input: every case gets a clear answer or log line, and nothing else is disturbed.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use outrigger_lab::{Binaries, Lab, Mesh, Workload, wait_for};
use outrigger_testkit::raw::{RawServer, Script, Stage, Step};

use crate::support::{
    SOON, Test, bind_again,
    load::{Kind, Plan},
    origin::Origin,
    raw,
    yaml::Service,
};

pub(crate) fn tests() -> Vec<Test> {
    vec![
        Test::new("ambiguous_or_oversized_requests_are_refused_and_never_forwarded", bad_requests),
        Test::new("broken_answers_become_502_or_a_visible_truncation", bad_answers),
        Test::new("garbage_silence_and_half_handshakes_are_closed_and_disturb_nobody", garbage),
        Test::new("connections_reset_at_every_stage_disturb_nobody", resets),
        Test::new("wrong_flags_and_variables_are_all_named_at_once", wrong_flags),
        Test::new("a_port_in_use_is_named_and_ends_the_proxy", port_in_use),
        Test::new("spoofed_identity_headers_are_replaced", spoofed_identity),
    ]
}

const STORE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);

struct Scene {
    origin: Origin,
    store: Workload,
    web: Workload,
    mesh: Mesh,
}

fn scene(lab: &Lab) -> Result<Scene> {
    let service = Service::new("store").address("10.96.0.10").port(80, 8080, "http").port(81, 8081, "http");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let store = mesh.workload("store").start()?;
    let origin = Origin::start(&store.pod, 8080, "store")?;
    let web = mesh.workload("web").start()?;
    let scene = Scene { origin, store, web, mesh };
    wait_for(SOON, "an answer", || {
        scene
            .ask("GET /id HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .is_ok_and(|answer| answer.ends_with("store"))
    })?;
    Ok(scene)
}

impl Scene {
    fn ask(&self, request: &str) -> Result<String> {
        raw::exchange(&self.web.pod, SocketAddr::from(STORE), request.as_bytes())
    }
}

fn bad_requests(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let before = scene.origin.requests();
    let fields = |count: usize, length: usize| {
        (0..count).map(|n| format!("x-{n}: {}\r\n", "v".repeat(length))).collect::<String>()
    };
    let get = |fields: &str| format!("GET /id HTTP/1.1\r\nhost: store.shop\r\n{fields}\r\n");
    let post =
        |fields: &str, body: &str| format!("POST /id HTTP/1.1\r\nhost: store.shop\r\n{fields}\r\n{body}");
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("oversized headers", get(&fields(60, 1000)), &["431"]),
        ("one oversized header", get(&fields(1, 60_000)), &["431"]),
        ("too many headers", get(&fields(200, 1)), &["431"]),
        (
            "a long target",
            format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70_000)),
            &["414", "431"],
        ),
        (
            "length and chunked",
            post("content-length: 5\r\ntransfer-encoding: chunked\r\n", "0\r\n\r\n"),
            &["400"],
        ),
        ("two lengths", post("content-length: 5\r\ncontent-length: 6\r\n", "hello"), &["400"]),
        ("a signed length", post("content-length: +5\r\n", "hello"), &["400"]),
        ("an unknown coding", post("transfer-encoding: xchunked\r\n", "0\r\n\r\n"), &["400", "501"]),
        ("a bare LF", "GET /id HTTP/1.1\nhost: store.shop\n\n".into(), &["400"]),
        ("a bare LF after a field", "GET /id HTTP/1.1\r\nhost: store.shop\nx: y\r\n\r\n".into(), &["400"]),
        ("a folded field", get("x-a: b\r\n c\r\n"), &["400"]),
        ("a space before the colon", get("x-a : b\r\n"), &["400"]),
        ("a NUL", get("x-a: b\0c\r\n"), &["400"]),
        ("no host", "GET /id HTTP/1.1\r\n\r\n".into(), &["400"]),
        ("two hosts", "GET /id HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".into(), &["400"]),
        ("a host with userinfo", "GET /id HTTP/1.1\r\nhost: a@b\r\n\r\n".into(), &["400"]),
        ("connection names host", get("connection: host\r\n"), &["400"]),
        (
            "upgrade with a body",
            post("connection: upgrade\r\nupgrade: x\r\ncontent-length: 5\r\n", "hello"),
            &["400"],
        ),
        (
            "connect",
            "CONNECT store.shop:80 HTTP/1.1\r\nhost: store.shop:80\r\nconnection: close\r\n\r\n".into(),
            &["501"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, request, statuses) in cases {
        let answer = scene.ask(&request).with_context(|| name.to_owned())?;
        let head = answer.lines().next().unwrap_or_default();
        if !statuses.iter().any(|status| head.starts_with(&format!("HTTP/1.1 {status}"))) {
            wrong.push(format!("{name}: wanted {statuses:?}, got {answer:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(
        scene.origin.requests() == before,
        "{} bad requests were forwarded",
        scene.origin.requests() - before
    );
    // Just under the limits all is well.
    let answer = scene.ask(&get(&format!("connection: close\r\n{}", fields(80, 200))))?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(())
}

/// Whether what the caller was told is right.
type Judge = fn(&str) -> bool;

fn bad_answers(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let address = SocketAddr::from(([0, 0, 0, 0], 8081));
    // Also to the retries that a request without a body may have.
    let serve = |script: Script| {
        bind_again(|| scene.store.pod.enter(|| RawServer::start(address, vec![script.clone()]))?)
    };
    let ask = || {
        let request = b"GET /x HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\r\n";
        raw::exchange(&scene.web.pod, SocketAddr::from(([10, 96, 0, 10], 81)), request)
    };
    let refused: Judge = |told| {
        // 503 where nothing was sent that the server could have acted on.
        let status = told.starts_with("HTTP/1.1 502") || told.starts_with("HTTP/1.1 503");
        status && told.contains("outrigger-reason: ")
    };
    // The head may be on its way already when the body breaks off: then the missing bytes have to be missed.
    let cut: Judge = |told| told.starts_with("HTTP/1.1 502") || !told.ends_with("0123456789");

    let cases: [(&str, &[u8], Judge); 7] = [
        ("nothing", b"", refused),
        ("garbage", b"\x00\x01garbage\r\n\r\n", refused),
        ("half a head", b"HTTP/1.1 200 OK\r\nx-a: ", refused),
        (
            "length and chunked",
            b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            refused,
        ),
        ("two lengths", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", refused),
        ("a short body", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello", |told| {
            told.starts_with("HTTP/1.1 502")
                || (told.contains("content-length: 100") && told.ends_with("hello"))
        }),
        (
            "half a chunk",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nwo",
            |told| told.starts_with("HTTP/1.1 502") || !told.ends_with("0\r\n\r\n"),
        ),
    ];
    for (name, answer, good) in cases {
        let _server = serve(vec![Step::ReadUntil(b"\r\n\r\n"), Step::Write(answer.to_vec())])?;
        let told = ask().with_context(|| name.to_owned())?;
        ensure!(good(&told), "{name}: {told:?}");
    }
    for stage in Stage::ALL {
        let _server = serve(stage.reset())?;
        let told = ask().with_context(|| format!("{stage:?}"))?;
        let good = match stage {
            Stage::AfterResponse => told.starts_with("HTTP/1.1 200") && told.ends_with("0123456789"),
            Stage::AfterResponseHead | Stage::MidResponseBody => cut(&told),
            Stage::Accepted | Stage::MidRequestHead | Stage::AfterRequestHead | Stage::MidResponseHead => {
                refused(&told)
            }
        };
        ensure!(good, "reset {stage:?}: {told:?}");
    }
    Ok(())
}

fn garbage(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let stranger = lab.pod("stranger")?;
    let direct = SocketAddr::new(scene.store.pod.ipv4().into(), 8080);
    let before = scene.origin.requests();
    let load = Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
        .loops(2, Duration::from_millis(5))
        .start(&scene.web.pod)?;

    // Words to the inbound side of a strict port, and whether the connection is then left alone.
    let hello = client_hello_start();
    let cases: [(&str, &[u8]); 6] = [
        ("silence", b""),
        ("half a ClientHello", &hello[..hello.len() / 2]),
        ("a ClientHello and then silence", &hello),
        ("garbage", &[0x99; 2000]),
        ("a record of impossible length", b"\x16\x03\x01\xff\xff\x01"),
        (
            "an HTTP/2 preface in plaintext",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
        ),
    ];
    let start = Instant::now();
    let mut open = Vec::new();
    for (name, bytes) in cases {
        let mut stream = raw::connect(&stranger, direct)?;
        drop(stream.write_all(bytes));
        open.push((name, stream));
    }
    let plain = raw::exchange(&stranger, direct, b"GET /id HTTP/1.1\r\nhost: a\r\n\r\n")?;
    ensure!(
        plain.starts_with("HTTP/1.1 403") && plain.contains("outrigger-reason: mtls-required"),
        "{plain}"
    );
    for (name, mut stream) in open {
        // Handshake and detection have 5 s each; more is allowed for, because the machine is shared.
        let answer = raw::read_to_end(&mut stream).with_context(|| format!("{name} is still open"))?;
        ensure!(!answer.contains("HTTP/1.1 200"), "{name}: {answer}");
    }
    ensure!(start.elapsed() < raw::PATIENCE, "closed only after {:?}", start.elapsed());
    let report = load.stop()?;
    report.expect_none_failed(10)?;
    ensure!(scene.origin.requests() - before == report.answered, "something of it reached the program");
    Ok(())
}

/// The first record of a real TLS handshake that offers our ALPN, so that it is taken for a mesh connection.
fn client_hello_start() -> Vec<u8> {
    let mut config =
        rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    config.alpn_protocols = vec![b"or-h1".to_vec()];
    let name = "store.shop".try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a connection");
    let mut hello = Vec::new();
    client.write_tls(&mut hello).expect("in memory");
    hello
}

fn resets(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let stranger = lab.pod("stranger")?;
    let load = Plan::new(Kind::Http1, SocketAddr::from(STORE), "store.shop")
        .loops(2, Duration::from_millis(5))
        .start(&scene.web.pod)?;
    let hello = client_hello_start();
    let whole = b"GET /slow/300 HTTP/1.1\r\nhost: store.shop\r\n\r\n";
    let upload = b"POST /echo HTTP/1.1\r\nhost: store.shop\r\ncontent-length: 1000\r\n\r\nhalf of it";
    let direct = SocketAddr::new(scene.store.pod.ipv4().into(), 8080);
    for _ in 0..20 {
        let stages: [(&outrigger_lab::Pod, SocketAddr, &[u8]); 7] = [
            (&scene.web.pod, SocketAddr::from(STORE), b""),
            (&scene.web.pod, SocketAddr::from(STORE), &whole[..20]),
            (&scene.web.pod, SocketAddr::from(STORE), whole),
            (&scene.web.pod, SocketAddr::from(STORE), upload),
            (&stranger, direct, b""),
            (&stranger, direct, &hello[..100]),
            (&stranger, direct, &hello),
        ];
        for (pod, target, bytes) in stages {
            let mut stream = raw::connect(pod, target)?;
            stream.write_all(bytes)?;
            // Unread or unsent, it does not matter: closing with a linger of zero is a reset.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            drop(stream);
        }
    }
    load.wait_for_more(200, SOON)?;
    load.stop()?.expect_none_failed(200)?;
    for workload in [&scene.web, &scene.store] {
        let panics: Vec<_> =
            workload.proxy.log().lines().filter(|l| l.contains("panicked")).map(str::to_owned).collect();
        ensure!(panics.is_empty(), "{panics:?}");
        // Nothing is left of the connections.
        wait_for(SOON, "file descriptors to be given back", || {
            std::fs::read_dir(format!("/proc/{}/fd", workload.proxy.id())).is_ok_and(|fds| fds.count() < 80)
        })?;
    }
    Ok(())
}

type Refused<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);

fn wrong_flags(lab: &Lab) -> Result<()> {
    let binaries = Binaries::find()?;
    let pod = lab.pod("bare")?;
    let proxy = |arguments: &[&str], variables: &[(&str, &str)]| {
        pod.run_within(
            Duration::from_secs(10),
            pod.command(binaries.proxy()).args(arguments).envs(variables.iter().copied()),
        )
    };
    // Arguments, variables, and what the message has to name.
    let cases: [Refused<'_>; 4] = [
        (&["run", "--contol-plane", "10.0.0.1:15012"], &[], &["--contol-plane", "--control-plane"]),
        (
            &[
                "run",
                "--control-plane",
                "nowhere",
                "--token",
                "or1.x.y",
                "--workers",
                "none",
                "--inbound-port",
                "99999",
            ],
            &[],
            &["--control-plane", "--workers", "--inbound-port"],
        ),
        (
            &["run", "--control-plane", "10.0.0.1:15012", "--token", "or1.x.y"],
            &[("OUTRIGGER_WORKERS", "many"), ("OUTRIGGER_DRAIN_GRACE", "soon")],
            &["OUTRIGGER_WORKERS", "OUTRIGGER_DRAIN_GRACE"],
        ),
        (&["run"], &[], &["--control-plane", "--token"]),
    ];
    for (arguments, variables, named) in cases {
        let told = proxy(arguments, variables)?;
        ensure!(!told.status.success(), "{arguments:?} {variables:?}: {told}");
        for name in named {
            ensure!(told.stderr.contains(name), "{arguments:?} {variables:?}: no {name} in {told}");
        }
    }
    let told = pod.run(pod.command(binaries.control_plane()).args(["--leaf-life", "never"]))?;
    ensure!(!told.status.success() && told.stderr.contains("--leaf-life"), "{told}");
    ensure!(told.stderr.contains("--config-dir") && told.stderr.contains("--state-dir"), "{told}");
    Ok(())
}

fn port_in_use(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let pod = &scene.web.pod;
    let taken = pod.enter(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 15999))))??;
    let token = scene.mesh.token("shop", "web", &[])?;
    let told = pod.run_within(
        Duration::from_secs(20),
        pod.command(scene.mesh.binaries().proxy())
            .args([
                "run",
                "--no-capture",
                "--control-plane",
                &scene.mesh.control_plane_list(),
                "--token",
                &token,
            ])
            .args([
                "--forward",
                "127.0.0.1:15997=store.shop:80",
                "--admin-port",
                "15998",
                "--status-address",
                "0.0.0.0:15999",
            ])
            .arg("--state-dir")
            .arg(lab.directory().join("second")),
    )?;
    ensure!(!told.status.success(), "{told}");
    let all = told.to_string();
    ensure!(all.contains("15999") && all.to_lowercase().contains("in use"), "{all}");
    ensure!(all.contains("--status-address"), "which flag changes it? {all}");
    drop(taken);
    if !scene.ask("GET /id HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?.ends_with("store") {
        bail!("the first proxy was disturbed");
    }
    Ok(())
}

fn spoofed_identity(lab: &Lab) -> Result<()> {
    let scene = scene(lab)?;
    let answer = scene.ask(
        "GET /headers HTTP/1.1\r\nhost: store.shop\r\nconnection: close\r\n\
         x-forwarded-client-cert: URI=spiffe://mesh.local/ns/shop/sa/admin\r\n\
         X-Forwarded-Client-Cert: URI=spiffe://mesh.local/ns/shop/sa/root\r\n\r\n",
    )?;
    ensure!(answer.contains("URI=spiffe://mesh.local/ns/shop/sa/web"), "{answer}");
    ensure!(answer.matches("URI=").count() == 1, "{answer}");
    let nominated = scene.ask(
        "GET /headers HTTP/1.1\r\nhost: store.shop\r\nconnection: close, x-forwarded-client-cert\r\n\r\n",
    )?;
    ensure!(nominated.starts_with("HTTP/1.1 400"), "{nominated}");
    Ok(())
}
