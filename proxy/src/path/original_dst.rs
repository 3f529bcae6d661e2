//! Second step: where a captured connection was going before the redirect. The only file with `SO_ORIGINAL_DST`.
//!
//! The destination is always what conntrack says, never what the peer says. It does not judge it (that is [`target`],
//! which only refuses our own capture ports, so that nobody can send the proxy to itself).

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use nix::libc;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::accept::Target;
use crate::{config::Capture, telemetry::Direction};

/// The address that was dialled before the redirect; `None` if nothing redirected.
fn original_dst(stream: &TcpStream, peer: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let socket = SockRef::from(stream);
    // On a dual-stack listener the socket is IPv6 for either family: the caller's canonical address tells which
    // translation table knows the connection.
    let looked_up = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match looked_up {
        Ok(address) => Ok(address.as_socket().map(canonical)),
        Err(error) => match error.raw_os_error() {
            // No translated connection, or no translation in this kernel at all.
            Some(libc::ENOENT | libc::ENOPROTOOPT) => Ok(None),
            _ => Err(error),
        },
    }
}

/// What a connection at a capture port wants. Fails only if the socket is already dead.
pub(super) fn target(
    stream: &TcpStream,
    peer: SocketAddr,
    direction: Direction,
    capture: Capture,
    own: &[IpAddr],
) -> io::Result<Target> {
    let listener = canonical(stream.local_addr()?);
    let dialled = original_dst(stream, peer)?.unwrap_or(listener);
    Ok(if is_itself(dialled, direction, capture, own) {
        Target::Itself(dialled)
    } else {
        Target::Original(dialled)
    })
}

/// Whether an address is one of our own capture listeners. Inbound, every address is ours by arriving here.
fn is_itself(dialled: SocketAddr, direction: Direction, capture: Capture, own: &[IpAddr]) -> bool {
    let port = [capture.inbound_port.get(), capture.outbound_port.get()].contains(&dialled.port());
    let here = || dialled.ip().is_loopback() || dialled.ip().is_unspecified() || own.contains(&dialled.ip());
    port && (direction == Direction::Inbound || here())
}

/// An IPv4 address as IPv4, whatever the socket's family.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;

    const CAPTURE: Capture = Capture {
        outbound_port: NonZeroU16::new(15001).unwrap(),
        inbound_port: NonZeroU16::new(15006).unwrap(),
    };

    #[test]
    fn only_our_own_capture_ports_are_ourselves() {
        let own: Vec<IpAddr> = vec!["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        for (dialled, direction, itself) in [
            ("10.0.0.5:15006", Direction::Inbound, true),
            ("10.0.0.5:15001", Direction::Inbound, true),
            ("10.0.0.9:15006", Direction::Inbound, true),
            ("10.0.0.5:8080", Direction::Inbound, false),
            ("10.0.0.5:15006", Direction::Outbound, true),
            ("[fd00::5]:15001", Direction::Outbound, true),
            ("127.0.0.1:15001", Direction::Outbound, true),
            ("[::1]:15001", Direction::Outbound, true),
            // Another pod's port: its own proxy refuses that.
            ("10.0.0.9:15006", Direction::Outbound, false),
            ("10.0.0.5:8080", Direction::Outbound, false),
        ] {
            assert_eq!(is_itself(dialled.parse().unwrap(), direction, CAPTURE, &own), itself, "{dialled}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_nothing_redirected_was_dialled_directly() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let capture = Capture { inbound_port: NonZeroU16::new(address.port()).unwrap(), ..CAPTURE };
        let _client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        let found = target(&stream, peer, Direction::Inbound, capture, &[]).unwrap();
        assert_eq!(found, Target::Itself(address));
    }
}
