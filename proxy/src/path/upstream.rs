//! A connection to whoever serves: dial, mutual TLS with the one identity expected there, and the HTTP handshake on top.
//!
//! The mesh hop's ALPN says what is inside: `or-h1`, `or-h2` or `or-tcp`. A peer that proves another identity, or agrees
//! to another protocol, is not spoken to. The hop to this proxy's own application is plaintext. An endpoint that is this
//! very workload is not dialled at all: the inbound side gets the other end of a pipe, and everything else is the same.

use std::{
    io::IoSlice,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_certs::{HandshakeError, SpiffeId, VerifyError, tls};
use outrigger_core::{
    framing::{Asked, Guard, Side},
    limits,
};
use outrigger_proto::spec::{Endpoint, Timeouts};
use rustls::ClientConfig;
use tokio::{
    io::{self, AsyncRead, AsyncWrite, ReadBuf, duplex},
    task,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{accept::Target, dial, outlier::Trial};
use crate::{
    error::Error,
    http::{Tasks, body::RequestBody},
    inbound,
    shared_limits::Permit,
    tcp::{Io, Sniffed, Stream},
    telemetry::Direction,
    worker::{Worker, now},
};

/// Bytes that a pipe to ourselves holds in each direction.
const PIPE_BYTES: usize = 64 << 10;

/// Who serves, and how to prove it.
#[derive(Clone)]
pub enum Remote {
    /// Another workload's proxy.
    Mesh { endpoint: Endpoint, tls: Arc<ClientConfig>, alpn: &'static [u8] },
    /// This workload's own application, or a destination outside the mesh.
    Plain(SocketAddr),
}

/// The sending half of an HTTP connection.
pub enum Sender {
    Http1 { sender: http1::SendRequest<RequestBody>, asked: Arc<AtomicU8> },
    Http2(http2::SendRequest<RequestBody>),
}

/// An upstream connection for opaque bytes.
pub struct Opaque {
    pub io: Sniffed<Io>,
    pub address: SocketAddr,
    pub peer: Option<SpiffeId>,
    /// How it is secured; `None`: not at all.
    pub security: Option<Arc<str>>,
    pub service: Option<Rc<str>>,
    pub attempts: u32,
    pub idle: Option<Duration>,
    /// What its endpoint is judged by, and its share in that one's load.
    pub trial: Option<Trial>,
    /// Its place among the connections to the upstream.
    pub permit: Option<Permit>,
    pub since: Instant,
}

pub type Http1Driver = http1::Connection<TokioIo<Guarded>, RequestBody>;
pub type Http2Driver = http2::Connection<TokioIo<Io>, RequestBody, Tasks>;

/// Tells the guard what the next answer is to: 0 nothing, 1 HEAD, 2 CONNECT, 3 anything else.
pub const ASKED_HEAD: u8 = 1;
pub const ASKED_CONNECT: u8 = 2;
pub const ASKED_OTHER: u8 = 3;

/// An upstream's bytes, checked before hyper parses them.
pub struct Guarded {
    io: Io,
    guard: Guard,
    asked: Arc<AtomicU8>,
}

/// Connects within `within`, TLS included.
pub async fn connect(worker: &Rc<Worker>, remote: &Remote, within: Duration) -> Result<Io, Error> {
    let address = remote.address();
    match timeout(within, establish(worker, remote)).await {
        Ok(result) => result,
        Err(_) => Err(Error::ConnectTimeout { address, within }),
    }
}

/// A plaintext connection for opaque bytes, to the own application or out of the mesh.
pub async fn plain(worker: &Rc<Worker>, address: SocketAddr) -> Result<Opaque, Error> {
    let timeouts = Timeouts::default();
    let io = connect(worker, &Remote::Plain(address), timeouts.connect).await?;
    Ok(Opaque {
        io: Sniffed::new(io),
        address,
        peer: None,
        security: None,
        service: None,
        attempts: 1,
        idle: timeouts.idle,
        trial: None,
        permit: None,
        since: now(),
    })
}

async fn establish(worker: &Rc<Worker>, remote: &Remote) -> Result<Io, Error> {
    let address = remote.address();
    match remote {
        Remote::Plain(_) => Ok(Io::Plain(Sniffed::new(dial(worker, address).await?))),
        Remote::Mesh { endpoint, tls: config, alpn } => {
            let stream = match own_target(worker, address) {
                Some(target) => Stream::Pipe(call_self(worker, address, target)),
                None => dial(worker, address).await?,
            };
            let connector = TlsConnector::from(Arc::clone(config));
            let stream = connector.connect(tls::server_name(), stream).await.map_err(|error| {
                let error = HandshakeError::explain_io(&error, Some(&worker.ctx.credentials));
                handshake_failed(worker, address, error)
            })?;
            let connection = stream.get_ref().1;
            let peer = tls::peer(connection).map_err(|error| handshake_failed(worker, address, error))?;
            if connection.alpn_protocol() != Some(*alpn) || peer.identity != endpoint.identity {
                return Err(handshake_failed(worker, address, HandshakeError::NoProtocol));
            }
            Ok(Io::Dialled(Box::new(stream)))
        }
    }
}

async fn dial(worker: &Worker, address: SocketAddr) -> Result<Stream, Error> {
    match dial::dial(address, worker.ctx.config.mark).await {
        Ok(socket) => Ok(Stream::Tcp(socket)),
        Err(error) => Err(Error::Connect { address, error: error.to_string().into() }),
    }
}

fn handshake_failed(worker: &Worker, address: SocketAddr, error: HandshakeError) -> Error {
    worker.telemetry.handshake_failed(Direction::Outbound, error.reason());
    if matches!(error, HandshakeError::Peer(VerifyError::Identity { .. })) {
        Error::Identity { address, error }
    } else {
        Error::Upstream { address, error }
    }
}

/// What our own inbound side would make of a connection to this address, if it is ours.
fn own_target(worker: &Worker, address: SocketAddr) -> Option<Target> {
    let config = &worker.ctx.config;
    if !config.addresses.contains(&address.ip()) {
        return None;
    }
    let served = config.serves.iter().find(|serve| serve.mesh.port() == address.port());
    match served {
        Some(serve) => Some(Target::Serve { application: serve.application }),
        None => config.capture.map(|_| Target::Original(address)),
    }
}

fn call_self(worker: &Rc<Worker>, address: SocketAddr, target: Target) -> io::DuplexStream {
    let (ours, theirs) = duplex(PIPE_BYTES);
    let caller = SocketAddr::new(address.ip(), 0);
    task::spawn_local(inbound::connection(Rc::clone(worker), Stream::Pipe(theirs), caller, target, None));
    ours
}

pub async fn http1(io: Io, remote: &Remote) -> Result<(Sender, Http1Driver), Error> {
    let address = remote.address();
    let room = remote.sender().http1_answer();
    let asked = Arc::new(AtomicU8::new(0));
    let guarded = Guarded { io, guard: Guard::new(Side::Responses, room), asked: Arc::clone(&asked) };
    let (sender, driver) = http1::Builder::new()
        .writev(true)
        .max_header_size(room.bytes)
        .max_buf_size(limits::HTTP1_BUFFER_BYTES)
        .handshake(TokioIo::new(guarded))
        .await
        .map_err(|error| Error::Reset { address, error: error.to_string().into() })?;
    Ok((Sender::Http1 { sender, asked }, driver))
}

/// `streams`: at most so many are opened before the peer has said how many it takes.
pub async fn http2(io: Io, remote: &Remote, streams: u32) -> Result<(Sender, Http2Driver), Error> {
    let address = remote.address();
    let (sender, driver) = http2::Builder::new(Tasks)
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::MAX_FRAME_BYTES)
        .max_header_list_size(remote.sender().http2().bytes as u32)
        .header_table_size(limits::HPACK_TABLE_BYTES)
        .max_send_buf_size(limits::STREAM_SEND_BUFFER_BYTES)
        .max_concurrent_streams(0)
        .initial_max_send_streams(streams as usize)
        .keep_alive_interval(limits::PING_INTERVAL)
        .keep_alive_timeout(limits::PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| Error::Reset { address, error: error.to_string().into() })?;
    Ok((Sender::Http2(sender), driver))
}

// === impl Remote ===

impl Remote {
    pub fn address(&self) -> SocketAddr {
        match self {
            Self::Mesh { endpoint, .. } => endpoint.address,
            Self::Plain(address) => *address,
        }
    }

    pub fn is_mesh(&self) -> bool {
        matches!(self, Self::Mesh { .. })
    }

    /// Of answers.
    pub fn sender(&self) -> limits::Sender {
        if self.is_mesh() { limits::Sender::Proxy } else { limits::Sender::Program }
    }
}

// === impl Guarded ===

impl Guarded {
    /// The stream without its guard, for what is no longer HTTP.
    pub fn into_io(self) -> Io {
        self.io
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        match this.asked.swap(0, Relaxed) {
            0 => {}
            ASKED_HEAD => this.guard.on_request(Asked::Head),
            ASKED_CONNECT => this.guard.on_request(Asked::Connect),
            _ => this.guard.on_request(Asked::Other),
        }
        if let Err(error) = this.guard.on_bytes(&buf.filled()[start..]) {
            buf.set_filled(start);
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
