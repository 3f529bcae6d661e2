//! Inbound step: terminate the mesh's mutual TLS.
//!
//! Each handshake has a time limit, and only so many may be under way in a worker; more are refused. The costly part, which
//! answers a ClientHello, is dealt out a few at a time with room for other work in between, so a flood of handshakes leaves
//! established connections alone.

use std::{
    future::{Future as _, poll_fn},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use outrigger_certs::{HandshakeError, alpn, tls};
use outrigger_core::limits;
use tokio::{task, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{error::Error, tcp::Sniffed, telemetry::Direction, worker::Worker};

/// What a mesh connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    Http1,
    Http2,
    Opaque,
}

/// A connection from another proxy, its peer verified.
pub struct Terminated {
    pub stream: Box<TlsStream<Sniffed>>,
    pub peer: tls::Peer,
    pub inside: Inside,
}

pub async fn terminate(worker: &Rc<Worker>, io: Sniffed) -> Result<Terminated, Error> {
    let result = handshake(worker, io).await;
    if let Err(error) = &result {
        let cause =
            if let Error::Handshake(error) = error { error.reason() } else { error.reason().as_str() };
        worker.telemetry.handshake_failed(Direction::Inbound, cause);
    }
    result
}

async fn handshake(worker: &Rc<Worker>, io: Sniffed) -> Result<Terminated, Error> {
    let credentials = &worker.ctx.credentials;
    let _place = Place::take(worker).ok_or(Error::Overloaded("too many TLS handshakes are under way"))?;
    let mut accepting = Box::pin(TlsAcceptor::from(Arc::clone(&worker.clusters.server_tls)).accept(io));
    let accepted = async {
        let first = {
            let turn = worker.clusters.handshakes.acquire().await;
            let first = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
            task::yield_now().await;
            drop(turn);
            first
        };
        match first {
            Poll::Ready(done) => done,
            Poll::Pending => accepting.await,
        }
    };
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, accepted).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            return Err(Error::Handshake(HandshakeError::explain_io(&error, Some(credentials))));
        }
        Err(_) => return Err(Error::HandshakeTimeout(limits::HANDSHAKE_TIMEOUT)),
    };
    let connection = stream.get_ref().1;
    let peer = tls::peer(connection).map_err(Error::Handshake)?;
    let inside = match connection.alpn_protocol() {
        Some(alpn::H1) => Inside::Http1,
        Some(alpn::H2) => Inside::Http2,
        Some(alpn::TCP) => Inside::Opaque,
        Some(_) | None => return Err(Error::Handshake(HandshakeError::NoProtocol)),
    };
    Ok(Terminated { stream: Box::new(stream), peer, inside })
}

/// A place among the handshakes under way.
struct Place<'a>(&'a Worker);

impl<'a> Place<'a> {
    fn take(worker: &'a Worker) -> Option<Self> {
        let taken = &worker.clusters.handshakes_under_way;
        if taken.get() >= limits::MAX_QUEUED_HANDSHAKES {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self(worker))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let taken = &self.0.clusters.handshakes_under_way;
        taken.set(taken.get().saturating_sub(1));
    }
}
