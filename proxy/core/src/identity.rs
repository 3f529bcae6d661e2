//! Who is at the other end of a connection, as far as a decision may know.
//!
//! It verifies nothing: a [`Peer::Mutual`] is made by the shell from a chain that `outrigger-certs` has verified, so
//! holding one means the certificate was valid, of this trust domain, and its key was proven.

use outrigger_certs::SpiffeId;

/// The caller of an inbound connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Proved this identity in the TLS handshake.
    Mutual(SpiffeId),
    /// Came in plaintext, or with TLS meant for the application: nobody in particular.
    Plain,
}

impl Peer {
    pub fn identity(&self) -> Option<&SpiffeId> {
        match self {
            Self::Mutual(identity) => Some(identity),
            Self::Plain => None,
        }
    }
}
