//! What every part of the process shares: made once in `app.rs`, handed down as one `Arc`.
//!
//! Nothing in here is worker-local (that is [`crate::worker::Worker`]) and nothing is found by looking it up in a global.

use std::sync::Arc;

use outrigger_certs::Credentials;
use outrigger_core::snapshot::Snapshot;

use crate::{
    config::Config, drain::Drain, path::accept::Cap, readiness::Readiness, shared::Shared, sync::Discovery,
    telemetry::Telemetry,
};

pub struct Ctx {
    pub config: Config,
    /// Routes, authorization and backends, published by `sync.rs`.
    pub snapshot: Shared<Snapshot>,
    /// Own certificate and trusted roots, rotated live.
    pub credentials: Arc<Credentials>,
    /// Asks the control plane about destinations that the snapshot does not know.
    pub discovery: Discovery,
    pub telemetry: Telemetry,
    pub readiness: Readiness,
    pub drain: Drain,
    /// Connections that may be open at once.
    pub cap: Cap,
}
