//! The steps of a request, one file each. `inbound.rs` and `outbound.rs` are the recipes that call them in order.

pub mod accept;
pub mod attempt;
pub mod authorize;
pub mod balance;
pub mod bulkhead;
pub mod cache;
pub mod coalesce;
pub mod deadline;
pub mod detect;
pub mod dial;
pub mod fallback;
pub mod hedge;
pub mod identity;
pub mod original_dst;
pub mod outlier;
pub mod pool;
pub mod rate_limit;
pub mod respond;
pub mod retry;
pub mod route;
pub mod server_bulkhead;
pub mod tls;
pub mod upstream;
