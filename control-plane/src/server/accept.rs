//! From listening socket to verified connection.
//!
//! Handshakes run beside the loop, bounded in number and time. At the limit of open files the loop backs off
//! instead of spinning; above our own limit of connections, which lies below that of files, a newcomer is
//! closed at once. What has no certificate may stay just long enough to ask for one.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use outrigger_certs::{alpn, tls};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::transport::server::Connected;

use super::{Peer, Shared};

const HANDSHAKE: Duration = Duration::from_secs(5);
const MAX_HANDSHAKES: usize = 256;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LAST_BACKOFF: Duration = Duration::from_secs(1);
/// Life of a connection without a client certificate.
const ANONYMOUS: Duration = Duration::from_secs(30);

/// A connection with its handshake done.
pub(super) struct Connection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    leave: Option<Pin<Box<Sleep>>>,
    _permit: OwnedSemaphorePermit,
}

struct Gate {
    shared: Arc<Shared>,
    acceptor: TlsAcceptor,
    connections: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    ready: mpsc::Sender<io::Result<Connection>>,
}

/// Accepts until told to stop.
pub(super) fn connections(
    listener: TcpListener,
    shared: Arc<Shared>,
    max_connections: usize,
    stop: watch::Receiver<bool>,
) -> impl Stream<Item = io::Result<Connection>> {
    let (ready, connections) = mpsc::channel(16);
    let config = tls::server_config_optional(shared.ca.credentials(), &[alpn::GRPC]);
    let gate = Arc::new(Gate {
        shared,
        acceptor: TlsAcceptor::from(config),
        connections: Arc::new(Semaphore::new(max_connections)),
        handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
        ready,
    });
    tokio::spawn(run(listener, gate, stop));
    ReceiverStream::new(connections)
}

async fn run(listener: TcpListener, gate: Arc<Gate>, mut stop: watch::Receiver<bool>) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let accepted = tokio::select! {
            () = super::stopped(&mut stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, address)) => {
                backoff = FIRST_BACKOFF;
                let Ok(permit) = gate.connections.clone().try_acquire_owned() else {
                    gate.shared.metrics.connections_shed.add_one();
                    continue;
                };
                tokio::spawn(gate.clone().admit(socket, address, permit));
            }
            Err(error) => {
                gate.shared.metrics.accept_errors.add_one();
                tracing::warn!(%error, ?backoff, "cannot accept connections");
                sleep(backoff).await;
                backoff = (backoff * 2).min(LAST_BACKOFF);
            }
        }
    }
}

impl Gate {
    async fn admit(self: Arc<Self>, socket: TcpStream, address: SocketAddr, permit: OwnedSemaphorePermit) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        match timeout(HANDSHAKE, self.handshake(socket, address)).await {
            Ok(Ok((io, peer))) => {
                self.shared.metrics.connections.add_one();
                let leave = peer.identity.is_none().then(|| Box::pin(sleep(ANONYMOUS)));
                // Nobody takes connections any more when we stop.
                let _ = self.ready.send(Ok(Connection { io, peer, leave, _permit: permit })).await;
            }
            Ok(Err(reason)) => self.failed(address, &reason),
            Err(_) => self.failed(address, "the handshake took too long"),
        }
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        address: SocketAddr,
    ) -> Result<(TlsStream<TcpStream>, Peer), String> {
        let _turn = self.handshakes.acquire().await.map_err(|error| error.to_string())?;
        // Updates are small and wanted at once.
        socket.set_nodelay(true).map_err(|error| error.to_string())?;
        let credentials = self.shared.ca.credentials();
        let explain =
            |error: &io::Error| tls::HandshakeError::explain_io(error, Some(credentials)).to_string();
        let io = self.acceptor.accept(socket).await.map_err(|error| explain(&error))?;
        let peer = tls::peer_if_any(io.get_ref().1).map_err(|error| error.to_string())?;
        Ok((io, Peer { identity: peer.map(|peer| peer.identity), address }))
    }

    fn failed(&self, address: SocketAddr, reason: &str) {
        self.shared.metrics.handshakes_failed.add_one();
        tracing::debug!(%address, reason, "no connection");
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(leave) = &mut this.leave
            && leave.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
