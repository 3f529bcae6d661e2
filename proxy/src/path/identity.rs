//! Inbound step: who calls, in the form that policies and the application want it.

use std::{net::SocketAddr, sync::Arc};

use http::HeaderValue;
use outrigger_certs::{Credentials, SpiffeId, tls};
use outrigger_core::{headers, identity::Peer};

/// The caller of an inbound connection.
pub struct Identity {
    pub peer: Peer,
    pub address: SocketAddr,
    /// How its connection is secured; `None`: not at all.
    pub security: Option<Arc<str>>,
    /// `x-forwarded-client-cert` of every request on the connection; none for a caller without identity.
    pub forwarded: Option<HeaderValue>,
}

impl Identity {
    /// Proved by mutual TLS.
    pub fn mutual(
        credentials: &Credentials,
        peer: tls::Peer,
        security: Option<Arc<str>>,
        address: SocketAddr,
    ) -> Self {
        let own = credentials.current();
        let forwarded =
            own.map(|own| headers::forwarded_client_cert(own.identity(), &peer.leaf_sha256, &peer.identity));
        Self { peer: Peer::Mutual(peer.identity), address, security, forwarded }
    }

    pub fn plain(address: SocketAddr) -> Self {
        Self { peer: Peer::Plain, address, security: None, forwarded: None }
    }

    pub fn id(&self) -> Option<&SpiffeId> {
        self.peer.identity()
    }
}
