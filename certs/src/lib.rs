//! Identity: SPIFFE ids, the certificates that carry them, and the TLS configurations that insist on them.
//!
//! Features decide what a dependant may know. Without any: [`spiffe`] and [`rotation`], plain data and arithmetic, which
//! is all the core may see. `tls`: verification, TLS configurations, CSRs. `issue`: the certificate authority and
//! tokens, for the control plane alone; a sidecar is built without it, so no bug in one can sign anything.

pub mod rotation;
pub mod spiffe;

#[cfg(feature = "tls")]
pub mod alpn;
#[cfg(feature = "issue")]
pub mod authority;
#[cfg(feature = "tls")]
pub mod credential;
#[cfg(feature = "tls")]
pub mod credentials;
#[cfg(feature = "tls")]
pub mod inspect;
#[cfg(feature = "tls")]
mod key;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "tls")]
pub mod token;
#[cfg(feature = "tls")]
pub mod trust;
#[cfg(feature = "tls")]
pub mod verify;

pub use rotation::Validity;
pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};

#[cfg(feature = "issue")]
pub use authority::{Authority, AuthorityError, SignError};
#[cfg(feature = "tls")]
pub use {
    credential::{Credential, CredentialError, KeyRequest},
    credentials::{Credentials, OwnError},
    tls::HandshakeError,
    token::{JoinToken, Registration, TokenError},
    trust::{TrustBundle, TrustError},
    verify::VerifyError,
};
