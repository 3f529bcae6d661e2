//! The steps of a request, one file each. `inbound.rs` and `outbound.rs` are the recipes that call them in order.

pub mod accept;
pub mod dial;
pub mod original_dst;
