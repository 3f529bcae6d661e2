//! The binary as a process: how it starts, what it says of itself, how it ends. No control plane answers here; what it
//! does with one is tested in `tests/e2e`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests: what fails here should panic")]

mod running;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt as _,
    time::Duration,
};

use nix::sys::signal::Signal;
use running::{Proxy, ask, free_port, token, wait_for};

/// Listeners that no other test uses.
fn with_forward() -> (Proxy, u16) {
    let port = free_port();
    (Proxy::start(&["--no-capture", "--forward", &format!("127.0.0.1:{port}=orders.shop:80")]), port)
}

#[test]
fn whatever_keeps_it_from_starting_is_said_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    let taken = [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
    let [status, forward] = taken.each_ref().map(|listener| listener.local_addr().unwrap());
    let output = running::command()
        .args(["run", "--control-plane", "127.0.0.1:1", "--token", "or1.bad", "--no-capture"])
        .args(["--status-address", &status.to_string(), "--admin-port", &free_port().to_string()])
        .args(["--forward", &format!("{forward}=orders.shop:80"), "--state-dir", file.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in [
        format!("--status-address {status}: port {} is in use", status.port()),
        format!("--forward {forward}: port {} is in use", forward.port()),
        format!("--state-dir {}", file.display()),
        "--token".to_owned(),
    ] {
        assert!(said.contains(&part), "{part:?} is not in\n{said}");
    }
    assert!(!said.contains("or1.bad"), "{said}");
}

#[test]
fn two_proxies_do_not_share_a_port_or_a_directory() {
    let (first, _) = with_forward();
    let output = running::command()
        .args(["run", "--control-plane", "127.0.0.1:1", "--no-capture", "--token", &token()])
        .args(["--forward", &first.forward(), "--status-address", &format!("127.0.0.1:{}", free_port())])
        .args(["--admin-port", &free_port().to_string(), "--state-dir", first.state_dir().to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("--forward") && said.contains("is in use"), "{said}");
    assert!(said.contains("--state-dir") && said.contains("another proxy is using this directory"), "{said}");
}

#[test]
fn it_lives_is_not_ready_and_says_why() {
    let (proxy, _) = with_forward();
    assert_eq!(proxy.status("GET", "/live").0, 200);
    wait_for("the reason is known", || proxy.status("GET", "/ready").1.contains("refused"));
    let (status, said) = proxy.status("GET", "/ready");
    assert_eq!(status, 503);
    assert!(said.contains("certificate: ") && said.contains("127.0.0.1:1"), "{said}");
    assert!(!said.contains("listeners"), "they are open: {said}");
    let (status, page) = proxy.status("GET", "/metrics");
    assert_eq!(status, 200);
    assert!(page.contains("outrigger_ready 0") && page.contains("outrigger_build_info"), "{page}");
    for (method, path) in [("GET", "/config_dump"), ("POST", "/drain"), ("POST", "/log?level=debug")] {
        assert_eq!(proxy.status(method, path).0, 404, "{path} on the status port");
    }
}

#[test]
fn the_admin_port_reads_and_the_socket_changes() {
    let (mut proxy, _) = with_forward();
    for path in ["/config_dump", "/stats", "/clusters", "/certs", "/help"] {
        assert_eq!(proxy.admin("GET", path).0, 200, "{path}");
    }
    let (_, dump) = proxy.admin("GET", "/config_dump");
    let dump: serde_json::Value = serde_json::from_str(&dump).unwrap();
    assert_eq!(dump["control_planes"][0]["address"], "127.0.0.1:1");
    assert_eq!(proxy.admin("POST", "/drain").0, 404);
    let mode = fs::metadata(proxy.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(proxy.on_socket("POST", "/log?level=debug").0, 200);
    assert_eq!(proxy.on_socket("POST", "/log?level=loud").0, 400);
    assert_eq!(proxy.on_socket("POST", "/drain").0, 202);
    assert_eq!(proxy.ended(), Some(0));
    assert!(!proxy.socket().exists(), "the socket goes with the process");
}

#[test]
fn sigterm_ends_it_with_0() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut proxy, _) = with_forward();
        proxy.send(signal);
        assert_eq!(proxy.ended(), Some(0), "{signal}");
    }
}

#[test]
fn a_second_signal_does_not_wait_for_connections() {
    let port = free_port();
    let forward = format!("127.0.0.1:{port}=orders.shop:80");
    let mut proxy = Proxy::start(&["--no-capture", "--forward", &forward, "--drain-grace", "1h"]);
    // Half a request head: work in flight.
    let mut caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nhost: ord").unwrap();
    wait_for("the connection is open", || {
        proxy.status("GET", "/metrics").1.contains("open{direction=\"outbound\"} 1")
    });
    proxy.send(Signal::SIGTERM);
    wait_for("it drains", || proxy.status("GET", "/metrics").1.contains("outrigger_draining 1"));
    proxy.send(Signal::SIGTERM);
    assert_eq!(proxy.ended(), Some(0));
}

#[test]
fn out_of_descriptors_it_still_answers_and_does_not_spin() {
    let port = free_port();
    let forward = format!("127.0.0.1:{port}=orders.shop:80");
    // It needs about thirty for itself and keeps some in reserve: room for a few connections, fewer than its cap.
    let proxy = Proxy::start_with_descriptors(46, &["--no-capture", "--forward", &forward]);
    let open = || {
        let page = proxy.status("GET", "/metrics").1;
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix("outrigger_connections_open{direction=\"outbound\"} "));
        line.and_then(|number| number.parse::<u32>().ok())
    };
    let callers: Vec<TcpStream> = (0..24).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    wait_for("accepting fails", || proxy.log().contains("cannot accept connections"));
    assert!(open().is_some_and(|open| (1..8).contains(&open)), "{:?}", open());
    let before = proxy.cpu();
    for _ in 0..10 {
        assert_eq!(proxy.status("GET", "/live").0, 200);
        std::thread::sleep(Duration::from_millis(100));
    }
    let spent = proxy.cpu() - before;
    assert!(spent < Duration::from_millis(500), "{spent:?} of CPU in a second of waiting");
    assert!(proxy.log().matches("cannot accept").count() < 10, "it says so now and then only");
    drop(callers);
    wait_for("it recovers", || open() == Some(0));
    let _caller = TcpStream::connect(("127.0.0.1", port)).unwrap();
    wait_for("a new one is taken", || open() == Some(1));
    assert_eq!(proxy.admin("GET", "/help").0, 200);
}

#[test]
fn connections_that_say_nothing_do_not_hold_a_door_shut() {
    let (proxy, _) = with_forward();
    let idle: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(proxy.status_address()).unwrap()).collect();
    for _ in 0..3 {
        assert_eq!(proxy.status("GET", "/live").0, 200);
    }
    drop(idle);
}

#[test]
fn oversized_and_broken_requests_to_the_doors_are_refused() {
    let (proxy, _) = with_forward();
    let long = format!("GET /live HTTP/1.1\r\nhost: x\r\nbig: {}\r\n\r\n", "x".repeat(64 * 1024));
    let many = format!("GET /live HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(200));
    for request in [long.as_str(), many.as_str(), "\x16\x03\x01\x02\x00\x01\x00\x01\u{1}\u{3}", "GET\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(proxy.status_address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The far end may have refused before it has read everything.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(ask(proxy.status_address(), "GET", "/live", "x").0, 200);
}
