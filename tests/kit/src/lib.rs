//! What end-to-end tests need besides the mesh itself: bad certificates, peers that misbehave to order, broken networks.
//!
//! ```text
//!   pki      an authority that makes every certificate a mesh must refuse; also from a running mesh's own CA
//!   tls      mesh clients and servers that skip every check, and a TLS 1.2 client
//!   origin   an application: HTTP/1.1 and HTTP/2 on one port, says what reached it
//!   raw      a TCP server that follows a script, byte for byte: resets, half answers, garbage
//!   relay    a TCP relay that delays, stalls, resets and half-closes
//!   sim      a whole fleet in virtual time, with the core's own machines and scripted endpoints
//!   wait     until a condition holds, or a deadline passes
//! ```
//!
//! Everything is blocking: a server runs on a thread of its own and ends, connections and all, when its handle is dropped.
//! That thread belongs to the network namespace of whoever starts it, so inside a lab it is
//! `pod.enter(|| Origin::start(address))`. Namespaces, pods and processes are `outrigger-lab`'s.
//!
//! Nothing here judges: a helper reports what it saw, a test decides whether that is right. Tests may `unwrap`; this
//! crate returns errors that name what failed.

pub mod origin;
pub mod pki;
pub mod raw;
pub mod relay;
mod server;
pub mod sim;
pub mod tls;

/// Waiting for a condition with a deadline, as the lab does it.
pub mod wait {
    pub use outrigger_lab::{wait_for as until, wait_for_some as until_some};
}
