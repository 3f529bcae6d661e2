//! The gRPC server that proxies talk to: `Identity.Sign`, `Mesh.Configure`, `Mesh.Observe`, `Mesh.Report`, health and
//! reflection.
//!
//! Connections come from our own accept loop (`accept.rs`) with the peer's identity already verified; the
//! services only ever see a [`Peer`]. TLS, limits and times are decided here and there, what is said on a
//! stream in `mesh.rs`, `observe.rs` and `report.rs`, who gets a certificate in `identity.rs`.

mod accept;
mod identity;
mod limit;
mod mesh;
mod observe;
mod report;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proto::{
    limits::{MAX_MESSAGE_BYTES, MAX_REQUEST_BYTES},
    pb::{self, identity_server::IdentityServer, mesh_server::MeshServer},
};
use tokio::{net::TcpListener, sync::watch};
use tonic::transport::Server;

use crate::{
    ca::Ca, hub::Hub, metrics::Metrics, observatory::Observatory, recorder::Recorder, used_tokens::UsedTokens,
};

/// A dead peer is found within the sum of these.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PATIENCE: Duration = Duration::from_secs(5);
/// Calls at once on one connection: a proxy needs one stream and now and then a certificate.
const MAX_CALLS: u32 = 16;
/// Room for a token of the largest size and the usual fields.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Room for a greeting that names 10,000 held keys.
/// A CSR and a registration.
const MAX_CSR_REQUEST_BYTES: usize = 64 * 1024;
/// How long streams have to take their leave when we stop.
const FAREWELL: Duration = Duration::from_secs(3);

/// Who is on the other end of a connection, as its certificate says.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `None`: came without a certificate, which is enough to ask for one.
    pub identity: Option<SpiffeId>,
    pub address: SocketAddr,
}

/// What the services share.
pub struct Shared {
    pub ca: Arc<Ca>,
    pub hub: Arc<Hub>,
    pub observatory: Arc<Observatory>,
    pub recorder: Arc<Recorder>,
    pub used_tokens: UsedTokens,
    pub metrics: Arc<Metrics>,
}

/// Serves until `stop` becomes true, then lets streams end.
pub async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    max_connections: usize,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<IdentityServer<identity::Service>>().await;
    health.set_serving::<MeshServer<mesh::Service>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let identity = IdentityServer::new(identity::Service::new(shared.clone()))
        .max_decoding_message_size(MAX_CSR_REQUEST_BYTES);
    let mesh = MeshServer::new(mesh::Service::new(shared.clone(), stop.clone()))
        .max_decoding_message_size(MAX_REQUEST_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);

    let connections = accept::connections(listener, shared, max_connections, stop.clone());
    let served = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_PATIENCE))
        .max_concurrent_streams(MAX_CALLS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(50))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(identity)
        .add_service(mesh)
        .serve_with_incoming_shutdown(connections, {
            let mut stop = stop.clone();
            async move { stopped(&mut stop).await }
        });
    tokio::pin!(served);
    tokio::select! {
        done = &mut served => return Ok(done?),
        () = stopped(&mut stop) => {}
    }
    // Streams say goodbye by themselves; a peer that does not listen is not waited for.
    match tokio::time::timeout(FAREWELL, served).await {
        Ok(done) => Ok(done?),
        Err(_) => Ok(()),
    }
}

/// Returns once we are to stop.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // Nobody left to say so means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn peer<T>(request: &tonic::Request<T>) -> Result<Peer, tonic::Status> {
    // Put there by the accept loop for every connection.
    request
        .extensions()
        .get::<Peer>()
        .cloned()
        .ok_or_else(|| tonic::Status::internal("a connection without a peer"))
}
