//! What is promised about the rules, each as a function of a fresh namespace.

use std::{
    io::{Read as _, Write as _},
    net::UdpSocket,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use libtest_mimic::Failed;
use outrigger_certs::{Authority, JoinToken, SpiffeId, TrustDomain, token::Labels};

use crate::space::{OWN4, OWN6, Space, accept, connect, listen, wait_for, wait_long};

const MARK: u32 = 28530;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Backend {
    Nft,
    Iptables,
}

impl Backend {
    pub(crate) fn tools(self) -> &'static [&'static str] {
        match self {
            Self::Nft => &["ip", "nft"],
            // nft also reads what iptables (its nf_tables variant) has written.
            Self::Iptables => &["ip", "nft", "iptables-restore", "ip6tables-restore", "iptables-save"],
        }
    }

    fn flag(self) -> &'static str {
        match self {
            Self::Nft => "--backend nft",
            Self::Iptables => "--backend iptables",
        }
    }
}

fn ensure(holds: bool, otherwise: impl Into<Failed>) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

pub(crate) fn captured(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    space.installed(backend.flag())?;
    // The check proves both directions by connections of its own, the incoming one from another namespace.
    let report = space.installed("--check")?;
    for line in [
        "outgoing IPv4: captured",
        "incoming IPv4: captured",
        "outgoing IPv6: captured",
        "incoming IPv6: captured",
    ] {
        ensure(report.contains(line), format!("no {line:?} in\n{report}"))?;
    }
    // And by ours: to an address that is nobody's, where there is a way to it.
    space.run("ip", &["route", "add", "default", "via", "10.9.0.2"])?;
    let proxy = listen("127.0.0.1:15001")?;
    let client = connect("203.0.113.7:443", None)?;
    let (_, dialled) = accept(&proxy, &client)?;
    ensure(dialled == Some("203.0.113.7:443".parse()?), format!("dialled {dialled:?}"))
}

pub(crate) fn idempotent(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    let install = format!("{} --skip-outbound-ports 3306,3307 --skip-uids 0", backend.flag());
    // Other options first, so that nothing of them may stay.
    space.installed(&format!("{} --inbound-port 7006 --skip-inbound-ports 1-99", backend.flag()))?;
    space.installed(&install)?;
    let once = space.rules()?;
    space.installed(&install)?;
    let twice = space.rules()?;
    ensure(once == twice, format!("once:\n{once}\ntwice:\n{twice}"))?;
    ensure(!once.contains("7006"), format!("of the first installation:\n{once}"))
}

pub(crate) fn removed(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    ensure(space.installed("--remove")?.is_empty(), "nothing to remove, and nothing said")?;
    space.run("nft", &["add", "table", "ip", "others"])?;
    space.run("nft", &["add", "chain", "ip", "others", "c", "{ type nat hook output priority -90; }"])?;
    space.run("nft", &["add", "rule", "ip", "others", "c", "tcp", "dport", "81", "redirect", "to", ":82"])?;
    if matches!(backend, Backend::Iptables) {
        space.run(
            "iptables",
            &[
                "-t",
                "nat",
                "-A",
                "OUTPUT",
                "-p",
                "tcp",
                "--dport",
                "83",
                "-j",
                "REDIRECT",
                "--to-ports",
                "84",
            ],
        )?;
    }
    // An installation makes the built-in chains of iptables; those are not ours to remove.
    space.installed(backend.flag())?;
    space.installed("--remove")?;
    let before = space.rules()?;
    space.installed(backend.flag())?;
    ensure(space.rules()? != before, "nothing was installed")?;
    let report = space.installed("--remove")?;
    ensure(report.starts_with("Removed:"), report)?;
    let after = space.rules()?;
    ensure(before == after, format!("before:\n{before}\nafter:\n{after}"))?;
    ensure(after.contains("dport 81"), after.clone())?;
    ensure(!after.to_lowercase().contains("outrigger"), after)
}

pub(crate) fn exempt(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    let skip = "--skip-outbound-ports 3306 --skip-outbound-networks 10.9.0.0/24,fd00:9::/64";
    space.installed(&format!("{} {skip}", backend.flag()))?;
    // Loopback, a skipped network.
    for (listening, to) in [
        ("127.0.0.1:8080", "127.0.0.1:8080"),
        ("[::1]:8080", "[::1]:8080"),
        (&*format!("{OWN4}:8081"), &*format!("{OWN4}:8081")),
        (&*format!("[{OWN6}]:8081"), &*format!("[{OWN6}]:8081")),
    ] {
        let application = listen(listening)?;
        accept(&application, &connect(to, None)?)?;
    }
    // The mark, a skipped port; without either, the proxy has it.
    space.installed(&format!("{} --skip-outbound-ports 3306", backend.flag()))?;
    let (proxy4, proxy6) = (listen("127.0.0.1:15001")?, listen("[::1]:15001")?);
    for (proxy, own) in [(&proxy4, OWN4.to_owned()), (&proxy6, format!("[{OWN6}]"))] {
        let application = listen(&format!("{own}:8082"))?;
        accept(&application, &connect(&format!("{own}:8082"), Some(MARK))?)?;
        let (_, dialled) = accept(proxy, &connect(&format!("{own}:8082"), None)?)?;
        ensure(dialled == Some(format!("{own}:8082").parse()?), format!("dialled {dialled:?}"))?;
        let database = listen(&format!("{own}:3306"))?;
        accept(&database, &connect(&format!("{own}:3306"), None)?)?;
    }
    // UDP.
    let server = UdpSocket::bind(format!("{OWN4}:53"))?;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    UdpSocket::bind(format!("{OWN4}:0"))?.send_to(b"query", format!("{OWN4}:53"))?;
    let mut query = [0; 16];
    ensure(server.recv(&mut query)? == 5, "the query arrives")
}

pub(crate) fn established(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    let application = listen(&format!("{OWN4}:8080"))?;
    let mut client = connect(&format!("{OWN4}:8080"), None)?;
    let (mut server, _) = accept(&application, &client)?;
    server.set_nonblocking(false)?;
    space.installed(backend.flag())?;
    for round in 0..3 {
        client.write_all(&[round])?;
        let mut byte = [0];
        server.read_exact(&mut byte)?;
        server.write_all(&byte)?;
        client.read_exact(&mut byte)?;
        ensure(byte == [round], "the byte comes back")?;
    }
    Ok(())
}

pub(crate) fn dry_run(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    let before = space.rules()?;
    let script = space.installed(&format!("{} --dry-run", backend.flag()))?;
    ensure(space.rules()? == before, "rules have changed")?;
    let expected = match backend {
        Backend::Nft => "redirect to :15006",
        Backend::Iptables => "REDIRECT --to-ports 15006",
    };
    ensure(script.contains(expected), script)
}

pub(crate) fn check_can_fail(space: &mut Space, backend: Backend) -> Result<(), Failed> {
    let check = |space: &Space, arguments: &str| -> Result<String, Failed> {
        let output = space.init(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(output.status.code() == Some(1), format!("{}: {said}", output.status))?;
        Ok(said)
    };
    let said = check(space, "--check")?;
    for line in [
        "outgoing IPv4: NOT",
        "incoming IPv4: NOT",
        "outgoing IPv6: NOT",
        "incoming IPv6: NOT",
        "run `outrigger-proxy init` first",
    ] {
        ensure(said.contains(line), format!("no {line:?} in\n{said}"))?;
    }
    // Rules for another port than the proxy's.
    space.installed(&format!("{} --outbound-port 7001", backend.flag()))?;
    let said = check(space, "--check")?;
    ensure(
        said.contains("outgoing IPv4: NOT") && said.contains("they point to another port than 15001"),
        said,
    )
}

pub(crate) fn replaced(space: &mut Space) -> Result<(), Failed> {
    space.installed("--backend iptables --inbound-port 7006")?;
    space.installed("--backend nft")?;
    let rules = space.rules()?;
    ensure(rules.contains("table ip outrigger") && !rules.contains("7006"), rules)?;
    space.installed("--backend iptables")?;
    let rules = space.rules()?;
    ensure(rules.contains("OUTRIGGER_INBOUND") && !rules.contains("table ip outrigger"), rules)?;
    let report = space.installed("--check")?;
    ensure(!report.contains("not checked"), report)
}

pub(crate) fn no_capability(space: &mut Space) -> Result<(), Failed> {
    // A user namespace below ours has no say about our network.
    let mut inside = Command::new("unshare");
    inside.args(["--user", "--map-root-user", env!("CARGO_BIN_EXE_outrigger-proxy"), "init"]);
    for backend in ["auto", "nft", "iptables"] {
        let output = inside.args(["--backend", backend]).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure(
            output.status.code() == Some(1) && said.contains("CAP_NET_ADMIN"),
            format!("{backend}: {said}"),
        )?;
        inside = Command::new("unshare");
        inside.args(["--user", "--map-root-user", env!("CARGO_BIN_EXE_outrigger-proxy"), "init"]);
    }
    ensure(space.rules()?.is_empty(), "rules were installed")
}

pub(crate) fn without_ipv6(space: &mut Space) -> Result<(), Failed> {
    space.installed("--ipv6 off")?;
    let rules = space.rules()?;
    ensure(rules.contains("table ip outrigger") && !rules.contains("ip6"), rules)
}

/// Ends its process when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A proxy in this namespace that has heard of nobody yet, and where what it says goes.
fn start(space: &Space) -> Result<(Running, tempfile::NamedTempFile), Failed> {
    let directory = tempfile::tempdir()?;
    let now = SystemTime::now();
    let authority = Authority::load_or_create(directory.path(), &TrustDomain::parse("mesh.local")?, now)?;
    let identity = SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders")?;
    let token = JoinToken::new(&authority, identity, Labels::default(), Duration::from_secs(60), false, now)?;
    let mut proxy = space.proxy();
    proxy.args([
        "run",
        "--control-plane",
        "127.0.0.1:1",
        "--workers",
        "1",
        "--token",
        &token.sign(&authority)?,
    ]);
    let said = tempfile::NamedTempFile::new()?;
    let proxy = Running(proxy.stdout(Stdio::null()).stderr(said.reopen()?).spawn()?);
    wait_for("the proxy answers on its status port", || status("/live").starts_with("HTTP/1.1 200"))?;
    Ok((proxy, said))
}

/// What the status port answers; nothing if it does not.
fn status(path: &str) -> String {
    let mut answer = String::new();
    if let Ok(mut stream) = connect("127.0.0.1:15020", None) {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
    }
    answer
}

/// The rules are lost under a running proxy and come back; it notices the loss within half a minute.
pub(crate) fn capture_is_watched(space: &mut Space) -> Result<(), Failed> {
    let shows = |ok: u8| {
        let line = format!("outrigger_capture_ok {ok}");
        let shown = || status("/metrics").lines().any(|metric| metric == line);
        wait_long(&line, Duration::from_secs(60), Duration::from_millis(250), shown)
    };
    space.installed("")?;
    let (_proxy, said) = start(space)?;
    shows(1)?;
    space.run("nft", &["flush", "ruleset"])?;
    shows(0)?;
    space.installed("")?;
    shows(1)?;
    let log = std::fs::read_to_string(said.path())?;
    for family in ["IPv4", "IPv6"] {
        for words in
            ["connections do not come to port 15001 any more", "connections come to port 15001 again"]
        {
            let times = log.matches(&format!("outgoing {family} {words}")).count();
            ensure(times == 1, format!("{family} {words}: {times} times in\n{log}"))?;
        }
    }
    ensure(log.contains("Connection refused"), log)
}

pub(crate) fn running_proxy(space: &mut Space) -> Result<(), Failed> {
    space.installed("")?;
    let (_proxy, _) = start(space)?;
    let report = space.installed("--check")?;
    for line in [
        "outgoing IPv4: captured",
        "incoming IPv4: captured",
        "outgoing IPv6: captured",
        "incoming IPv6: captured",
    ] {
        ensure(
            report.contains(line) && report.contains("what listens on port"),
            format!("no {line:?} in\n{report}"),
        )?;
    }
    Ok(())
}
