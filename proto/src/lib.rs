//! The contract between proxy and control plane.
//!
//! - [`spec`]: what is meant, as validated domain types; all that the core may see.
//! - [`limits`]: how much of anything one side takes from the other.
//! - `pb` (feature `grpc`): what travels, generated from `proto/` at build time without `protoc`.
//! - `convert` (feature `grpc`): the one place where the two meet; every refusal names the field.
//!
//! It holds no policy and no IO: who sends what when is the business of `proxy/src/sync.rs` and of the control plane.

#[cfg(feature = "grpc")]
pub mod convert;
pub mod limits;
#[cfg(feature = "grpc")]
pub mod pb;
pub mod spec;
