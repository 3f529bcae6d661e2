use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Instant,
};

use super::*;
use crate::{
    raw::{RawServer, Step},
    wait,
};

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const PATIENCE: Duration = Duration::from_secs(10);

/// A server that answers four bytes with ten, and a client at the other end of a relay.
fn joined() -> (RawServer, Relay, TcpStream) {
    let script = vec![Step::Read(4), Step::Write(b"0123456789".to_vec()), Step::Hold];
    let server = RawServer::start(ANY, vec![script]).unwrap();
    let relay = Relay::start(ANY, server.address()).unwrap();
    let client = TcpStream::connect(relay.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    (server, relay, client)
}

fn read(client: &mut TcpStream, bytes: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    client.read_exact(&mut buffer)?;
    Ok(buffer)
}

#[test]
fn without_a_fault_bytes_and_ends_pass_both_ways() {
    let (server, relay, mut client) = joined();
    client.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 10).unwrap(), b"0123456789");
    client.write_all(b"more").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "the server ends when the client has");
    assert_eq!(server.received(), [b"pingmore"]);
    assert_eq!((relay.passed(Direction::ToServer), relay.passed(Direction::ToClient)), (8, 10));
    assert_eq!(relay.connections(), 1);
}

#[test]
fn a_delay_delays_and_a_stall_ends_when_it_is_lifted() {
    let (server, relay, mut client) = joined();
    relay.set(Direction::ToServer, Fault::Delay(Duration::from_millis(200)));
    relay.set(Direction::ToClient, Fault::StallAfter(3));
    let begin = Instant::now();
    client.write_all(b"ping").unwrap();
    assert_eq!(read(&mut client, 3).unwrap(), b"012");
    assert!(begin.elapsed() >= Duration::from_millis(200));
    client.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    relay.set(Direction::ToClient, Fault::None);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(read(&mut client, 7).unwrap(), b"3456789");
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_reset_reaches_both_sides() {
    let (server, relay, mut client) = joined();
    relay.set(Direction::ToServer, Fault::ResetAfter(2));
    client.write_all(b"ping").unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(server.received().iter().all(|bytes| bytes.len() <= 2), "a reset may overtake what came before");
    assert_eq!(relay.passed(Direction::ToServer), 2);
}

#[test]
fn a_half_close_ends_one_direction_only() {
    let (server, relay, mut client) = joined();
    relay.set(Direction::ToClient, Fault::HalfCloseAfter(3));
    client.write_all(b"ping").unwrap();
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"012");
    client.write_all(b"more").unwrap();
    wait::until(PATIENCE, "the bytes after the half-close", || server.received()[0] == b"pingmore").unwrap();
}

#[test]
fn no_upstream_is_a_reset() {
    let unused = std::net::TcpListener::bind(ANY).unwrap().local_addr().unwrap(); // closed again at once
    let relay = Relay::start(ANY, unused).unwrap();
    let mut client = TcpStream::connect(relay.address()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}
