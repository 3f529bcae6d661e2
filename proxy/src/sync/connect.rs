//! A connection to a control plane: dialled past our own redirect rules, TLS with the one identity accepted there, gRPC.
//!
//! Each step fails with its own reason, because "cannot reach the control plane" is what an operator reads at 3 am. The
//! connection is not remade when it breaks: those who hold it decide about that.

use std::{error::Error as _, io, net::SocketAddr, num::NonZeroU32, sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use outrigger_certs::{Credentials, HandshakeError, SpiffeId, TrustDomain, tls};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use crate::{config::HostPort, path::dial::dial_from_reserve};

/// Of one address of a control plane.
const DIAL: Duration = Duration::from_secs(2);
const RESOLVE: Duration = Duration::from_secs(3);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A control plane that does not answer a ping is lost after the two of them.
const PING_EVERY: Duration = Duration::from_secs(5);
const PING_ANSWER: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the name {host} cannot be resolved: {error}")]
    Resolve { host: Arc<str>, error: io::Error },
    #[error("{address}: {error}")]
    Dial { address: SocketAddr, error: io::Error },
    #[error("TLS: {0}")]
    Tls(#[from] HandshakeError),
    #[error("gRPC: {0}")]
    Grpc(String),
}

/// Who a control plane has to be.
pub(crate) fn control_plane_identity(trust_domain: &TrustDomain) -> SpiffeId {
    SpiffeId::new(trust_domain, "outrigger", "control-plane").expect("the names are legal")
}

/// `credentials` are those that `tls` was made with, if any: they make errors clearer.
pub(crate) async fn connect(
    target: &HostPort,
    tls: Arc<rustls::ClientConfig>,
    credentials: Option<&Credentials>,
    mark: Option<NonZeroU32>,
) -> Result<Channel, ConnectError> {
    let tcp = dial_any(target, mark).await?;
    let tls = handshake(tcp, tls, credentials).await?;
    // The name is only what requests carry as their authority; the peer was told by its identity.
    let endpoint = Endpoint::from_shared(format!("http://{target}"))
        .map_err(|error| ConnectError::Grpc(error.to_string()))?
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024);
    let mut once = Some(tls);
    let connector = tower::service_fn(move |_| {
        let io = once.take().map(TokioIo::new).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(io)
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| ConnectError::Grpc(chain(&error)))
}

/// Every address of the name in turn.
async fn dial_any(target: &HostPort, mark: Option<NonZeroU32>) -> Result<TcpStream, ConnectError> {
    let unresolved = |error| ConnectError::Resolve { host: Arc::clone(&target.host), error };
    let found = timeout(RESOLVE, tokio::net::lookup_host((&*target.host, target.port.get())))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(unresolved)?;
    let mut last = unresolved(io::ErrorKind::NotFound.into());
    for address in found {
        match timeout(DIAL, dial_from_reserve(address, mark))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = ConnectError::Dial { address, error },
        }
    }
    Err(last)
}

async fn handshake(
    tcp: TcpStream,
    config: Arc<rustls::ClientConfig>,
    credentials: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let connector = TlsConnector::from(config);
    let stream = timeout(HANDSHAKE, connector.connect(tls::server_name(), tcp))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| HandshakeError::explain_io(&error, credentials))?;
    tls::peer(stream.get_ref().1)?;
    Ok(stream)
}

/// What a failed call says, in words: the code, and the reason at the bottom of it.
pub(crate) fn explain(status: &tonic::Status) -> String {
    let mut text = format!("{:?}", status.code());
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    match status.source() {
        Some(source) => format!("{text} ({})", chain(source)),
        None => text,
    }
}

/// An error with its causes. tonic's own texts say "transport error" and keep what happened below.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // A TLS alert after the handshake: TLS 1.3 servers refuse a client's certificate that late.
        let words = match cause.downcast_ref::<io::Error>() {
            Some(error)
                if error.get_ref().is_some_and(|inner| inner.downcast_ref::<rustls::Error>().is_some()) =>
            {
                HandshakeError::explain_io(error, None).to_string()
            }
            Some(_) | None => cause.to_string(),
        };
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}
