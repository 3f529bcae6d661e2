//! The control side over real loopback sockets, against a scripted control plane: stream, failover, certificates, disk.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod certificate;
mod control_plane;
mod harness;
mod stream;
