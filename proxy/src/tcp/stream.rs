//! What a connection is made of.
//!
//! [`Stream`] is the raw transport, [`Sniffed`] gives back bytes that detection has read, [`Io`] adds TLS on either side.
//! They are enums instead of boxed traits because the set is closed and reads are hot. All are `Send`, which hyper's
//! upgrades ask for.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use rustls::CommonState;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{client, server};

/// Room for one look: a ClientHello with a post-quantum key share.
const LOOK_BYTES: usize = 2048;

/// A transport: a socket, or an in-process pipe to this proxy's other side (a workload calling itself).
pub enum Stream {
    Tcp(TcpStream),
    Pipe(DuplexStream),
}

/// A stream of which some first bytes have been looked at; they are read again, first.
pub struct Sniffed<S = Stream> {
    seen: BytesMut,
    stream: S,
}

/// A stream ready to carry a protocol.
pub enum Io {
    Plain(Sniffed),
    Accepted(Box<server::TlsStream<Sniffed>>),
    Dialled(Box<client::TlsStream<Stream>>),
}

// === impl Stream ===

impl Stream {
    /// Makes the end of this connection visible as a reset instead of an orderly close, so that a peer cannot take a
    /// cut stream for a whole one. Best effort: a socket that is gone already needs no reset.
    pub fn reset_on_drop(&self) {
        match self {
            Self::Tcp(socket) => {
                let _ = socket.set_zero_linger();
            }
            // Dropping a pipe looks like an end; what runs over it is TLS, which tells an end from a cut.
            Self::Pipe(_) => {}
        }
    }
}

macro_rules! each {
    ($this:expr, $variant:ident($inner:ident) => $call:expr) => {
        match $this {
            Stream::Tcp($inner) => $call,
            Stream::Pipe($inner) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Stream(inner) => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Stream(inner) => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Stream(inner) => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, Stream(inner) => inner.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Stream(inner) => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Stream(inner) => Pin::new(inner).poll_shutdown(cx))
    }
}

// === impl Sniffed ===

impl<S> Sniffed<S> {
    pub fn new(stream: S) -> Self {
        Self { seen: BytesMut::new(), stream }
    }

    /// All bytes read so far and not taken.
    pub fn seen(&self) -> &[u8] {
        &self.seen
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> Sniffed<S> {
    /// Reads more bytes to look at; 0 is the end of the stream. Cancel safe.
    pub async fn look_further(&mut self) -> io::Result<usize> {
        self.seen.reserve(LOOK_BYTES);
        self.stream.read_buf(&mut self.seen).await
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sniffed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.seen.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let n = this.seen.len().min(buf.remaining());
        buf.put_slice(&this.seen[..n]);
        this.seen.advance(n);
        if this.seen.is_empty() {
            // An idle connection must not keep a detection buffer alive.
            this.seen = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sniffed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

// === impl Io ===

impl Io {
    /// `VERSION CIPHER GROUP` of its TLS; `None`: it is plaintext. For once per connection: it makes a text.
    pub fn security(&self) -> Option<Arc<str>> {
        match self {
            Self::Plain(_) => None,
            Self::Accepted(tls) => Some(security(tls.get_ref().1)),
            Self::Dialled(tls) => Some(security(tls.get_ref().1)),
        }
    }

    /// See [`Stream::reset_on_drop`].
    pub fn reset_on_drop(&self) {
        match self {
            Self::Plain(io) => io.stream.reset_on_drop(),
            Self::Accepted(tls) => tls.get_ref().0.stream.reset_on_drop(),
            Self::Dialled(tls) => tls.get_ref().0.reset_on_drop(),
        }
    }
}

fn security(tls: &CommonState) -> Arc<str> {
    let version = tls.protocol_version().and_then(|version| version.as_str());
    let cipher = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let group = tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str());
    // After the handshake all of them are there.
    let [version, cipher, group] = [version, cipher, group].map(|word| word.unwrap_or("-"));
    format!("{version} {cipher} {group}").into()
}

macro_rules! each_io {
    ($this:expr, $inner:ident => $call:expr) => {
        match $this {
            Io::Plain($inner) => $call,
            Io::Accepted($inner) => {
                let $inner = &mut **$inner;
                $call
            }
            Io::Dialled($inner) => {
                let $inner = &mut **$inner;
                $call
            }
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each_io!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each_io!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each_io!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Accepted(tls) => tls.is_write_vectored(),
            Self::Dialled(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each_io!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TLS shutdown sends close_notify and then closes the writing half beneath it.
        each_io!(self.get_mut(), inner => ready!(Pin::new(inner).poll_shutdown(cx)))?;
        Poll::Ready(Ok(()))
    }
}
