//! The laboratory against the kernel: what demo, end-to-end tests and bench take for granted.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Completion, Trial};
use outrigger_lab::{Entered, Lab, Pod, enter, wait_for};

type Test = (&'static str, fn() -> Result<()>);

const TESTS: [Test; 9] = [
    ("pods_reach_each_other_by_ipv4_and_ipv6", pods_reach_each_other),
    ("labs_are_isolated", labs_are_isolated),
    ("unknown_addresses_are_unreachable_at_once", unknown_addresses_are_unreachable),
    ("an_added_address_is_reachable", an_added_address_is_reachable),
    ("capture_sees_payload_and_nothing_else", capture_sees_payload),
    ("a_process_ends_with_its_handle", a_process_ends_with_its_handle),
    ("a_process_obeys_sigterm_and_leaves_a_log", a_process_obeys_sigterm),
    ("a_command_that_hangs_is_killed_and_reported", a_hanging_command_is_reported),
    ("redirect_rules_install_in_a_pod", redirect_rules_install),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let refusal = match enter::reexec_or_enter() {
        Ok(Entered::Finished(code)) => return code,
        Ok(Entered::Inside(_)) => None,
        Err(refusal) => Some(refusal.to_string()),
    };
    let trial = |(name, test): Test| {
        let refusal = refusal.clone();
        Trial::ignorable_test(name, move || match refusal {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => test().map(|()| Completion::Completed).map_err(|error| format!("{error:#}").into()),
        })
    };
    libtest_mimic::run(&arguments, TESTS.map(trial).into()).exit_code()
}

/// Sends `message` from one pod to another and returns what arrived.
fn send(from: &Pod, to: &Pod, address: IpAddr, message: &[u8]) -> Result<Vec<u8>> {
    let listener = to.enter(|| TcpListener::bind(SocketAddr::new(address, 0)))??;
    let target = listener.local_addr()?;
    from.enter(|| -> Result<()> {
        Ok(TcpStream::connect_timeout(&target, Duration::from_secs(2))?.write_all(message)?)
    })??;
    let mut received = Vec::new();
    listener.accept()?.0.read_to_end(&mut received)?;
    Ok(received)
}

fn pods_reach_each_other() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.pod("a")?, lab.pod("b")?);
    ensure!(send(&a, &b, b.ipv4().into(), b"four")? == b"four");
    if lab.has_ipv6() {
        ensure!(send(&b, &a, a.ipv6().into(), b"six")? == b"six");
    }
    Ok(())
}

fn labs_are_isolated() -> Result<()> {
    let (one, two) = (Lab::new()?, Lab::new()?);
    let (a, b) = (one.pod("a")?, two.pod("a")?);
    ensure!(a.ipv4() == b.ipv4(), "same addresses in every lab");
    let listener = a.enter(|| TcpListener::bind((a.ipv4(), 80)))??;
    let other = two.pod("other")?;
    let refused =
        other.enter(|| TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(2)))?;
    ensure!(refused.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused), "reached another lab");
    Ok(())
}

fn unknown_addresses_are_unreachable() -> Result<()> {
    let lab = Lab::new()?;
    let a = lab.pod("a")?;
    for _ in 0..3 {
        let target = SocketAddr::from((Ipv4Addr::new(10, 96, 0, 1), 80));
        let error = a
            .enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(10)))?
            .expect_err("nobody is there");
        ensure!(error.kind() == ErrorKind::NetworkUnreachable, "{error}");
    }
    Ok(())
}

fn an_added_address_is_reachable() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.pod("a")?, lab.pod("b")?);
    let address = IpAddr::from([192, 0, 2, 7]);
    b.add_address(address)?;
    ensure!(send(&a, &b, address, b"far")? == b"far");
    Ok(())
}

fn capture_sees_payload() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.pod("a")?, lab.pod("b")?);
    let capture = lab.capture()?;
    send(&a, &b, b.ipv4().into(), b"a needle in the hay")?;
    let captured = capture.stop()?;
    ensure!(captured.count(b"needle") > 0, "{} packets without it", captured.packets);
    ensure!(captured.count(b"noodle") == 0);
    ensure!(captured.unsearched() == 0);
    Ok(())
}

fn a_process_ends_with_its_handle() -> Result<()> {
    let lab = Lab::new()?;
    let a = lab.pod("a")?;
    let process = a.spawn(a.command("sleep").arg("1000"), "sleep")?;
    let alive = format!("/proc/{}", process.id());
    ensure!(std::path::Path::new(&alive).exists());
    drop(process);
    ensure!(!std::path::Path::new(&alive).exists());
    Ok(())
}

fn a_process_obeys_sigterm() -> Result<()> {
    let lab = Lab::new()?;
    let a = lab.pod("a")?;
    let script = "trap 'echo bye; exit 7' TERM; echo hello; while :; do sleep 0.05; done";
    let mut process = a.spawn(a.command("sh").args(["-c", script]), "sh")?;
    wait_for(Duration::from_secs(5), "a trap", || process.log().contains("hello"))?;
    process.terminate()?;
    let status = process.wait_deadline(Duration::from_secs(5))?;
    ensure!(status.code() == Some(7), "{status}");
    ensure!(process.log() == "hello\nbye\n", "{}", process.log());
    ensure!(lab.log_tails(1).ends_with("bye\n"), "{}", lab.log_tails(1));
    Ok(())
}

fn a_hanging_command_is_reported() -> Result<()> {
    let lab = Lab::new()?;
    let a = lab.pod("a")?;
    let start = Instant::now();
    let hanging = a.run_within(
        Duration::from_millis(100),
        a.command("sh").args(["-c", "echo halfway; exec sleep 1000"]),
    );
    let message = format!("{:#}", hanging.expect_err("it sleeps"));
    ensure!(message.contains("did not end") && message.contains("halfway"), "{message}");
    ensure!(start.elapsed() < Duration::from_secs(100));
    let failing = a.run(a.command("sh").args(["-c", "echo why >&2; exit 3"]))?.success().expect_err("exit 3");
    ensure!(failing.to_string().contains("why"), "{failing}");
    Ok(())
}

fn redirect_rules_install() -> Result<()> {
    let lab = Lab::new()?;
    let (a, b) = (lab.pod("a")?, lab.pod("b")?);
    let rules = "add table ip t; add chain ip t out { type nat hook output priority -100; }; \
                 add rule ip t out tcp dport 81 redirect to :82";
    a.run(a.command("nft").arg(rules))?.success()?;
    let listener = a.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 82)))??;
    let target = SocketAddr::from((b.ipv4(), 81));
    a.enter(|| TcpStream::connect_timeout(&target, Duration::from_secs(2)))??;
    ensure!(listener.accept().is_ok());
    Ok(())
}
