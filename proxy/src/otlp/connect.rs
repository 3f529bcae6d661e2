//! A connection to a telemetry backend: past our own redirect rules, out of the descriptors that traffic leaves.

use std::{io, net::SocketAddr, num::NonZeroU32, sync::Arc};

use bytes::Bytes;
use http::{Request, Response, Uri, Version, uri::Scheme};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    task::{self, AbortHandle},
};
use tokio_rustls::TlsConnector;

use super::tls;
use crate::{
    config::{
        HostPort,
        otel::{Export, Protocol},
    },
    http::Tasks,
    path::dial::dial_from_reserve,
};

/// Ends with its owner.
pub(super) struct Connection {
    requests: Requests,
    driver: AbortHandle,
}

enum Requests {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// It has no time of its own: callers have one for the whole call.
pub(super) async fn connect(export: &Export, mark: Option<NonZeroU32>) -> Result<Connection, String> {
    let at = &export.endpoint.at;
    let tcp = dial_any(at, mark).await?;
    if !export.endpoint.tls {
        return shake_hands(tcp, export.protocol).await;
    }
    let connector = TlsConnector::from(Arc::new(tls::config(export)?));
    let name = ServerName::try_from(at.host.to_string()).map_err(|error| format!("{}: {error}", at.host))?;
    let stream = connector.connect(name, tcp).await.map_err(|error| format!("TLS: {error}"))?;
    shake_hands(stream, export.protocol).await
}

/// Every address of the name in turn.
async fn dial_any(at: &HostPort, mark: Option<NonZeroU32>) -> Result<TcpStream, String> {
    let unresolved = |error: io::Error| format!("the name {} cannot be resolved: {error}", at.host);
    let found = lookup_host((&*at.host, at.port.get())).await.map_err(unresolved)?;
    let mut last = unresolved(io::ErrorKind::NotFound.into());
    for address in found {
        match dial_from_reserve(address, mark).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => last = told(address, &error),
        }
    }
    Err(last)
}

fn told(address: SocketAddr, error: &io::Error) -> String {
    format!("{address}: {error}")
}

async fn shake_hands(
    io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    protocol: Protocol,
) -> Result<Connection, String> {
    let io = TokioIo::new(io);
    // How a connection ends is told to whoever waits for an answer on it.
    let (requests, driver) = match protocol {
        Protocol::Http => {
            let (requests, driver) = http1::handshake(io).await.map_err(|error| error.to_string())?;
            (Requests::Http1(requests), task::spawn_local(async move { drop(driver.await) }))
        }
        Protocol::Grpc => {
            let (requests, driver) = http2::handshake(Tasks, io).await.map_err(|error| error.to_string())?;
            (Requests::Http2(requests), task::spawn_local(async move { drop(driver.await) }))
        }
    };
    Ok(Connection { requests, driver: driver.abort_handle() })
}

impl Connection {
    /// Whether it takes another request.
    pub(super) fn is_open(&self) -> bool {
        match &self.requests {
            Requests::Http1(requests) => !requests.is_closed(),
            Requests::Http2(requests) => !requests.is_closed(),
        }
    }

    /// `request`: with the path of the endpoint.
    pub(super) async fn send(
        &mut self,
        mut request: Request<Full<Bytes>>,
        export: &Export,
    ) -> hyper::Result<Response<Incoming>> {
        match &mut self.requests {
            Requests::Http1(requests) => {
                requests.ready().await?;
                requests.send_request(request).await
            }
            Requests::Http2(requests) => {
                *request.version_mut() = Version::HTTP_2;
                *request.uri_mut() = absolute(request.uri(), export);
                requests.ready().await?;
                requests.send_request(request).await
            }
        }
    }
}

/// What HTTP/2 has in place of a Host field.
fn absolute(uri: &Uri, export: &Export) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(if export.endpoint.tls { Scheme::HTTPS } else { Scheme::HTTP });
    parts.authority = export.endpoint.at.to_string().parse().ok();
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}
