//! Identity: SPIFFE ids, the certificates that carry them, and the TLS configurations that insist on them.
//!
//! Features decide what a dependant may know. Without any: [`spiffe`] and [`rotation`], plain data and arithmetic, which
//! is all the core may see. `tls`: verification, TLS configurations, CSRs. `issue`: the certificate authority and
//! tokens, for the control plane alone; a sidecar is built without it, so no bug in one can sign anything.

pub mod spiffe;

pub use spiffe::{SpiffeError, SpiffeId, TrustDomain};
