//! Proves by real connections that the capture works, in either direction and for each family, and says what to do when
//! it does not.
//!
//! A connection goes to a port of our own on which nobody listens. Without capture it is refused. With capture it reaches
//! the proxy; where no proxy runs yet, a stand-in listens in its place and also looks whether the original destination
//! arrives. Outgoing connections can be made from here. Incoming ones must come from outside: for a moment there is
//! another network namespace with a veth pair in between ([`outside`]), where that is allowed.
//!
//! Findings are of three kinds: it works, it does not (with advice), it cannot be told from here (with the reason).

use std::{
    fmt::Write as _,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nix::{ifaddrs::getifaddrs, libc, net::if_::InterfaceFlags, unistd::geteuid};
use socket2::{SockRef, Socket, Type};

use super::{
    apply,
    options::{InitOptions, Ports},
    rules::Family,
};

mod outside;

/// A captured connection takes microseconds, a packet that is dropped takes for ever.
const PATIENCE: Duration = Duration::from_secs(2);

enum Finding {
    Works(String),
    Broken(String),
    Unknown(String),
}

/// Outgoing connections: changes nothing. An error if a family is not captured.
pub fn outbound(options: &InitOptions) -> Result<String, String> {
    report(
        apply::families(options)
            .into_iter()
            .map(|family| (Way::Out, family, outgoing(options, family)))
            .collect(),
    )
}

/// Both directions.
pub fn everything(options: &InitOptions) -> Result<String, String> {
    let mut findings = Vec::new();
    for family in apply::families(options) {
        findings.push((Way::Out, family, outgoing(options, family)));
        findings.push((Way::In, family, outside::incoming(options, family)));
    }
    report(findings)
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

fn report(findings: Vec<(Way, Family, Finding)>) -> Result<String, String> {
    let mut text = String::new();
    let mut broken = false;
    for (way, family, finding) in findings {
        let way = match way {
            Way::In => "incoming",
            Way::Out => "outgoing",
        };
        let (verdict, detail) = match finding {
            Finding::Works(detail) => ("captured", detail),
            Finding::Broken(detail) => {
                broken = true;
                ("NOT CAPTURED", detail)
            }
            Finding::Unknown(detail) => ("not checked", detail),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{way} {}: {verdict}: {detail}", family.name());
    }
    if broken { Err(format!("the capture does not work\n{text}")) } else { Ok(text) }
}

fn outgoing(options: &InitOptions, family: Family) -> Finding {
    let uid = geteuid().as_raw();
    if uid == options.proxy_uid || options.skip_uids.contains(&uid) {
        return Finding::Unknown(format!(
            "connections of uid {uid} are exempt: run the check as another user"
        ));
    }
    let Some(own) = own_address(family) else {
        return Finding::Unknown(format!("this namespace has no {} address besides loopback", family.name()));
    };
    if options.skip_outbound_networks.iter().any(|network| network.contains(&own)) {
        return Finding::Unknown(format!("the own address {own} is in --skip-outbound-networks"));
    }
    let loopback = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    let proxy = SocketAddr::new(loopback, options.outbound_port.get());
    match silent_port(own, &options.skip_outbound_ports) {
        Ok((silent, target)) => {
            let finding = probe(proxy, target, || TcpStream::connect_timeout(&target, PATIENCE));
            drop(silent);
            finding
        }
        Err(error) => Finding::Unknown(format!("no port of {own} could be reserved: {error}")),
    }
}

/// Connects (by `connect`) to `target`, where nobody listens, and finds out whether `proxy` gets the connection.
fn probe(proxy: SocketAddr, target: SocketAddr, connect: impl FnOnce() -> io::Result<TcpStream>) -> Finding {
    let stand_in = match listen(proxy) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
        Err(error) => return Finding::Unknown(format!("cannot listen on {proxy}: {error}")),
    };
    let connection = match connect() {
        Ok(connection) => connection,
        Err(error) => return Finding::Broken(not_captured(proxy, target, &error)),
    };
    let Some(listener) = stand_in else {
        return Finding::Works(format!(
            "a connection to {target} reached what listens on port {}",
            proxy.port()
        ));
    };
    let finding = match accept(&listener) {
        Ok((stream, peer)) => match original_dst(&stream, peer) {
            Ok(found) if found == target => Finding::Works(format!(
                "a connection to {target} reached port {} with its destination",
                proxy.port()
            )),
            Ok(found) => Finding::Broken(format!("a connection to {target} arrived as one to {found}")),
            Err(error) => Finding::Broken(format!(
                "a connection arrived without its original destination ({error}): the kernel needs nf_conntrack and nf_nat"
            )),
        },
        Err(error) => Finding::Broken(format!("a connection to {target} went somewhere else: {error}")),
    };
    drop(connection);
    finding
}

fn not_captured(proxy: SocketAddr, target: SocketAddr, error: &io::Error) -> String {
    let advice = match apply::installed() {
        false => "there are no rules in this namespace: run `outrigger-proxy init` first".to_owned(),
        true => format!(
            "rules are there, but something decides before them or they point to another port than {}: look at `nft \
             list ruleset` or `iptables-save`, and at firewalls that drop connections to that port",
            proxy.port()
        ),
    };
    format!("a connection to {target} failed ({error}); {advice}")
}

/// A port on which nobody listens and nobody can start to while the socket is held.
fn silent_port(own: IpAddr, skipped: &[Ports]) -> io::Result<(Socket, SocketAddr)> {
    for _ in 0..64 {
        let address = SocketAddr::new(own, 0);
        let socket = Socket::new(socket2::Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&address.into())?;
        let Some(bound) = socket.local_addr()?.as_socket() else { continue };
        if !skipped.iter().any(|ports| ports.contains(&bound.port())) {
            return Ok((socket, bound));
        }
    }
    Err(io::Error::other("nearly all ports are on the skip list"))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(socket2::Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(8)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(2));
            }
            accepted => return accepted,
        }
    }
}

fn original_dst(stream: &TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let address = if peer.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    address.as_socket().ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
}

/// An address of this namespace that is not loopback and needs no scope.
fn own_address(family: Family) -> Option<IpAddr> {
    let wanted = InterfaceFlags::IFF_UP;
    getifaddrs().ok()?.filter(|interface| interface.flags.contains(wanted)).find_map(|interface| {
        let address = interface.address?;
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) => IpAddr::V6(v6.ip()),
            (None, None) => return None,
        };
        let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
        (Family::of(ip) == family && !ip.is_loopback() && !link_local).then_some(ip)
    })
}
