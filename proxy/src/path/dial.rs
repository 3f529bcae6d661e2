//! Own connections: every socket that the proxy dials is made here, so that none is caught by the proxy's own rules.

use std::{io, net::SocketAddr, num::NonZeroU32, os::fd::AsRawFd, time::Duration};

use nix::{
    libc,
    sys::resource::{Resource, getrlimit},
};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Descriptors that traffic never takes: health, admin, the control plane and files go on working without them.
const RESERVED: u64 = 12;

/// Dials `address` for traffic. `mark` exempts the connection from the redirect rules.
///
/// It has no timeout of its own: callers have a deadline for the whole of dial and handshake.
pub async fn dial(address: SocketAddr, mark: Option<NonZeroU32>) -> io::Result<TcpStream> {
    connect(address, mark, leaves_reserve).await
}

/// The same for the control side, which may use what traffic leaves to it.
pub async fn dial_from_reserve(address: SocketAddr, mark: Option<NonZeroU32>) -> io::Result<TcpStream> {
    connect(address, mark, |_| Ok(())).await
}

async fn connect(
    address: SocketAddr,
    mark: Option<NonZeroU32>,
    check: fn(&TcpSocket) -> io::Result<()>,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    check(&socket)?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark.get())?;
    }
    prepare(SockRef::from(&socket))?;
    socket.connect(address).await
}

/// Whether a new socket of traffic leaves the reserve alone; fails like the kernel would without one.
///
/// Descriptors are given out from the lowest that is free, so a high number means that those below are taken.
pub(super) fn leaves_reserve(socket: &impl AsRawFd) -> io::Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    match u64::try_from(socket.as_raw_fd()) {
        Ok(descriptor) if descriptor + RESERVED >= limit => Err(io::Error::from_raw_os_error(libc::EMFILE)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Whether this process may mark sockets.
pub fn can_mark(mark: NonZeroU32) -> io::Result<()> {
    let socket = TcpSocket::new_v4().or_else(|_| TcpSocket::new_v6())?;
    SockRef::from(&socket).set_mark(mark.get())
}

/// What every connection of the proxy has. On a listener, accepted connections inherit it.
///
/// Keep-alive finds a peer that vanished without a word (power, network) in 30 s.
pub(crate) fn prepare(socket: SockRef<'_>) -> io::Result<()> {
    const PROBES: TcpKeepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&PROBES)
}
