//! Own connections: every socket that the proxy dials is made here, so that none is caught by the proxy's own rules.

use std::{io, net::SocketAddr, num::NonZeroU32, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};

/// Dials `address`. `mark` exempts the connection from the redirect rules.
///
/// It has no timeout of its own: callers have a deadline for the whole of dial and handshake.
pub async fn dial(address: SocketAddr, mark: Option<NonZeroU32>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark.get())?;
    }
    prepare(SockRef::from(&socket))?;
    socket.connect(address).await
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
