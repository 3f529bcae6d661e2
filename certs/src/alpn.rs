//! What travels inside a TLS connection of the mesh, as negotiated by ALPN.
//!
//! A connection on which none of these was agreed is refused: without it the two sides might read the same bytes as
//! different protocols.

/// HTTP/1.1 between two proxies.
pub const H1: &[u8] = b"or-h1";
/// HTTP/2 between two proxies.
pub const H2: &[u8] = b"or-h2";
/// Bytes of the application, unread.
pub const TCP: &[u8] = b"or-tcp";
/// Everything a mesh listener accepts.
pub const MESH: &[&[u8]] = &[H2, H1, TCP];
/// gRPC to the control plane.
pub const GRPC: &[u8] = b"h2";
