//! Outrigger's control plane: certificate authority, discovery and policy.
//!
//! # Layout
//!
//! What is known and decided, without IO:
//! - [`kinds`]: the configuration kinds as written; [`yaml`]: documents that remember where everything stands;
//! - [`config`]: a whole configuration, validated, or everything that is wrong with it;
//! - [`workloads`]: who is there; [`index`]: configuration and workloads, arranged for looking up;
//! - [`shares`]: who gets how much of a shared rate limit;
//! - [`history`]: what traffic there was; [`names`]: what a port of a workload is called;
//! - [`compile`]: what a key means to a caller; [`subscription`]: what one proxy is sent, and when.
//!
//! The shell around it:
//! - [`config_dir`] and [`watch`] read and follow files; [`ca`] keeps the authority; [`used_tokens`] remembers;
//! - [`hub`] puts one lock around what is shared and wakes who must be told;
//! - [`recorder`] gives the history a clock and a disk; [`events`] keeps what happened;
//! - [`server`] speaks gRPC with proxies, [`status`] HTTP with operators; [`metrics`] counts;
//! - [`app`] puts it together; [`args`] is the command line.
//!
//! # The way of an edit
//!
//! ```text
//!  file ─▶ watch ─▶ config_dir ─▶ config ─▶ hub: index ─topics─▶ streams ─▶ subscription.poll ─▶ compile ─▶ proxy
//!                                   │                                             ▲
//!                                   └─ errors ─▶ status, log                      └── ack / nack
//! ```
//!
//! It knows nothing of the data plane's code (`outrigger-core`, `outrigger-proxy`): the contract is
//! `outrigger-proto`.

pub mod app;
pub mod args;
pub mod ca;
pub mod compile;
pub mod config;
pub mod config_dir;
mod duration;
pub mod events;
mod files;
pub mod fleet;
pub mod history;
pub mod hub;
pub mod index;
pub mod kinds;
pub mod metrics;
pub mod names;
pub mod observatory;
pub mod recorder;
pub mod server;
pub mod shares;
pub mod status;
pub mod subscription;
pub mod used_tokens;
pub mod watch;
pub mod workloads;
pub mod yaml;
