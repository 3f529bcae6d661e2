//! Inbound step: terminate the mesh's mutual TLS.
//!
//! A handshake is CPU, so only a few run at once in a worker and only so many may wait; a flood of them costs its senders
//! their connections and leaves established ones alone. Each has a time limit from its turn on, and half a handshake is
//! not held any longer.

use std::rc::Rc;

use outrigger_certs::{HandshakeError, alpn, tls};
use outrigger_core::limits;
use tokio::time::timeout;
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
    let clusters = &worker.clusters;
    let _turn = match clusters.handshakes.try_acquire() {
        Ok(turn) => turn,
        Err(_) if clusters.handshakes_waiting.get() >= limits::MAX_QUEUED_HANDSHAKES => {
            return Err(Error::Overloaded("too many TLS handshakes wait"));
        }
        Err(_) => {
            let _place = Queued::new(worker);
            match clusters.handshakes.acquire().await {
                Ok(turn) => turn,
                Err(_) => return Err(Error::Internal("the queue of handshakes is closed")),
            }
        }
    };
    let accepting = Box::pin(TlsAcceptor::from(clusters.server_tls.clone()).accept(io));
    let stream = match timeout(limits::HANDSHAKE_TIMEOUT, accepting).await {
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

/// A place in the queue of handshakes.
struct Queued<'a>(&'a Worker);

impl<'a> Queued<'a> {
    fn new(worker: &'a Worker) -> Self {
        let waiting = &worker.clusters.handshakes_waiting;
        waiting.set(waiting.get() + 1);
        Self(worker)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        let waiting = &self.0.clusters.handshakes_waiting;
        waiting.set(waiting.get().saturating_sub(1));
    }
}
