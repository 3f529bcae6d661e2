//! The wire types, generated from `proto/outrigger/v1/mesh.proto`, and nothing else.
#![allow(unused_qualifications, clippy::all, clippy::pedantic, clippy::or_fun_call, clippy::use_self)]
#![allow(clippy::wildcard_enum_match_arm, reason = "generated: its style is its generator's business")]

tonic::include_proto!("outrigger.v1");

/// The compiled `.proto` files, for the reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
