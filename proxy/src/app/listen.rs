//! Opens every TCP listener before anything runs, so that a port in use is one clear line and not a half-started proxy.
//!
//! Workers share a port through `SO_REUSEPORT`, which would also let two proxies of the same user share one without a
//! word. So each address is first bound without it: that fails if anybody else has it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use nix::libc;
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    config::{Config, settings::Problem},
    path::{accept::Duty, dial},
};

/// Connections that may wait in the kernel for a worker; the kernel's own limit (`somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// What one worker listens on.
pub(super) type Share = Vec<(TcpListener, Duty)>;

/// The listeners of the data path, one share per worker; `status` and `admin` of the control runtime.
pub(super) struct Listeners {
    pub(super) shares: Vec<Share>,
    pub(super) status: Option<TcpListener>,
    pub(super) admin: Vec<TcpListener>,
}

/// Opens all of them and notes what cannot be opened, under the name of its flag.
pub(super) fn open(config: &Config, problems: &mut Vec<Problem>) -> Listeners {
    let mut note = |flag: &str, address: SocketAddr, error: &io::Error| {
        problems.push(Problem(format!("{flag} {address}: {}", advice(address, error))));
    };
    // The control runtime's first: they are what is needed to find out what else is wrong.
    let status = bind(config.status_address, Sharing::Alone)
        .inspect_err(|error| note("--status-address", config.status_address, error))
        .ok();
    let admin = loopback(config.admin_port.get())
        .filter_map(|address| match bind(address, Sharing::Alone) {
            Ok(listener) => Some(listener),
            Err(error) if address.is_ipv6() && is_unsupported(&error) => None,
            Err(error) => {
                note("--admin-port", address, &error);
                None
            }
        })
        .collect();
    let mut shares: Vec<Share> = (0..config.workers.get()).map(|_| Share::new()).collect();
    for (flag, address, duty) in wanted(config) {
        let opened = bind(address, Sharing::Alone).and_then(|probe| {
            drop(probe);
            shares.iter().map(|_| bind(address, Sharing::AmongWorkers)).collect::<io::Result<Vec<_>>>()
        });
        match opened {
            Ok(listeners) => {
                for (share, listener) in shares.iter_mut().zip(listeners) {
                    share.push((listener, duty.clone()));
                }
            }
            Err(error) if is_optional(&duty, address) && is_unsupported(&error) => {}
            Err(error) => note(flag, address, &error),
        }
    }
    Listeners { shares, status, admin }
}

fn wanted(config: &Config) -> Vec<(&'static str, SocketAddr, Duty)> {
    let mut wanted = Vec::new();
    if let Some(capture) = config.capture {
        // The redirect of outgoing connections leads to loopback, so nobody outside can dial that port.
        for address in loopback(capture.outbound_port.get()) {
            wanted.push(("--outbound-port", address, Duty::CaptureOutbound));
        }
        let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), capture.inbound_port.get());
        wanted.push(("--inbound-port", everywhere, Duty::CaptureInbound));
    }
    for forward in &config.forwards {
        wanted.push(("--forward", forward.local, Duty::Forward(forward.destination.clone())));
    }
    for serve in &config.serves {
        wanted.push(("--serve", serve.mesh, Duty::Serve { application: serve.application }));
    }
    wanted
}

fn loopback(port: u16) -> impl Iterator<Item = SocketAddr> {
    let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    both.into_iter().map(move |ip| SocketAddr::new(ip, port))
}

/// IPv6 loopback is wanted where it exists.
fn is_optional(duty: &Duty, address: SocketAddr) -> bool {
    *duty == Duty::CaptureOutbound && address.is_ipv6()
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sharing {
    Alone,
    AmongWorkers,
}

/// `[::]` means IPv4 too, and IPv4 alone where there is no IPv6.
fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<TcpListener> {
    match bind_exactly(address, sharing) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_unsupported(&error) => {
            bind_exactly(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port()), sharing)
        }
        bound => bound,
    }
}

fn bind_exactly(address: SocketAddr, sharing: Sharing) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(sharing == Sharing::AmongWorkers)?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    dial::prepare(SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn advice(address: SocketAddr, error: &io::Error) -> String {
    let port = address.port();
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            format!(
                "port {port} is in use by another program (`ss -ltnp 'sport = :{port}'` shows which): want a free port"
            )
        }
        Some(libc::EACCES) => {
            format!("port {port} may not be used: ports below 1024 need CAP_NET_BIND_SERVICE")
        }
        Some(libc::EADDRNOTAVAIL) => "this machine does not have that address".to_owned(),
        Some(libc::EAFNOSUPPORT) => "this machine does not have IPv6".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_found_although_workers_share_theirs() {
        let taken = bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), Sharing::AmongWorkers).unwrap();
        let address = taken.local_addr().unwrap();
        assert!(bind(address, Sharing::AmongWorkers).is_ok(), "workers of one proxy share");
        let error = bind(address, Sharing::Alone).unwrap_err();
        assert!(advice(address, &error).contains("in use"), "{error}");
    }

    #[test]
    fn the_unspecified_ipv6_address_answers_ipv4_too() {
        let listener = bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0), Sharing::Alone).unwrap();
        let port = listener.local_addr().unwrap().port();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    }
}
