//! The sidecar: a thin IO shell around `outrigger-core`, which takes every decision.
//!
//! Read [`inbound`] and [`outbound`] first: the two recipes of a connection, each line a step in [`path`]. The rest holds
//! them up.
//!
//! - Start and end: [`app`] (runtimes and order), [`config`], [`readiness`], [`drain`].
//! - Shared state: [`context`] (per process), [`worker`] (per thread), [`shared`] (how one reaches the other),
//!   [`shared_limits`] (bulkheads and rate limits).
//! - Of others: [`health`] (active checks), [`observe`] (what proxies tell each other).
//! - From outside: [`sync`] (configuration), [`credentials`] (certificates), [`store`] and [`identity_dir`] (disk).
//! - To outside: [`telemetry`] into [`metrics`], [`access_log`] and [`report`]; [`trace`], sent by [`otlp`]; [`admin`].
//! - [`init`]: the redirect rules, a program of its own that shares only the binary; [`capture_check`]: whether they hold.

pub mod access_log;
pub mod admin;
pub mod app;
pub mod capture_check;
pub mod cluster;
pub mod config;
pub mod context;
pub mod credentials;
mod disk;
pub mod drain;
pub mod error;
pub mod health;
pub mod http;
pub mod identity_dir;
pub mod inbound;
pub mod init;
pub mod metrics;
pub mod observe;
pub mod otlp;
pub mod outbound;
pub mod path;
pub mod readiness;
pub mod report;
#[cfg(test)]
mod rig;
pub mod shared;
pub mod shared_limits;
pub mod store;
pub mod sync;
pub mod tcp;
pub mod telemetry;
pub mod trace;
pub mod worker;
