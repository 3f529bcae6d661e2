//! The whole control plane on loopback sockets, with a real gRPC client at the other end.

mod configure;
mod operate;
mod reports;
mod rig;
mod sign;
