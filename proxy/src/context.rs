//! What every part of the process shares: made once in `app.rs`, handed down as one `Arc`.
//!
//! Nothing in here is worker-local (that is [`crate::worker::Worker`]) and nothing is found by looking it up in a global.

use std::sync::Arc;

use outrigger_certs::Credentials;
use outrigger_core::snapshot::Snapshot;

use crate::{
    capture_check::CaptureCheck,
    config::Config,
    drain::Drain,
    metrics::merge::Merges,
    observe::{Bulletin, Events},
    path::{accept::Cap, cache::Caches},
    readiness::Readiness,
    shared::Shared,
    shared_limits::SharedLimits,
    sync::Discovery,
    telemetry::Telemetry,
    trace::Tracing,
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
    /// The application's own metrics.
    pub merges: Arc<Merges>,
    /// Spans on their way to a backend.
    pub tracing: Arc<Tracing>,
    pub readiness: Readiness,
    pub drain: Drain,
    /// Connections that may be open at once.
    pub cap: Cap,
    /// Where workers tell that a circuit has changed.
    pub events: Events,
    /// What workers are told about backends, and which they call.
    pub bulletin: Bulletin,
    /// Limits that hold for the proxy and not for each worker.
    pub limits: SharedLimits,
    /// Answers kept in memory.
    pub caches: Caches,
    /// Whether the redirect rules hold.
    pub capture_check: CaptureCheck,
}

/// A context as `app.rs` would make it, of a proxy that has heard of nobody yet.
#[cfg(test)]
pub(crate) mod testing {
    use std::{
        sync::Arc,
        time::{Duration, SystemTime},
    };

    use outrigger_certs::{Authority, JoinToken, SpiffeId, TrustDomain};
    use outrigger_core::snapshot::Snapshot;

    use super::Ctx;
    use crate::{
        access_log::AccessLog,
        capture_check::CaptureCheck,
        config::cli::{Wanted, read},
        credentials::Certificates,
        drain::Drain,
        metrics::merge::Merges,
        observe::{Bulletin, Events},
        path::{accept::Cap, cache::Caches},
        readiness::Readiness,
        shared_limits::SharedLimits,
        sync::Sync,
        telemetry::Telemetry,
        trace::Tracing,
    };

    pub(crate) struct Made {
        pub(crate) ctx: Arc<Ctx>,
        pub(crate) authority: Authority,
        pub(crate) identity: SpiffeId,
        /// The token in its settings.
        pub(crate) token: String,
    }

    /// `more` are further flags of `run`.
    pub(crate) fn context(more: &str) -> Made {
        context_with(more, &[])
    }

    /// With variables, too.
    pub(crate) fn context_with(more: &str, variables: &[(&str, &str)]) -> Made {
        let now = SystemTime::now();
        let trust_domain = TrustDomain::parse("mesh.local").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path(), &trust_domain, now).unwrap();
        let identity = SpiffeId::new(&trust_domain, "shop", "orders").unwrap();
        let token = JoinToken::new(
            &authority,
            identity.clone(),
            outrigger_certs::token::Labels::default(),
            Duration::from_secs(3600),
            false,
            now,
        );
        let token = token.unwrap().sign(&authority).unwrap();
        let line = format!(
            "outrigger-proxy run --control-plane 127.0.0.1:1 --token {token} --address 10.0.0.5 {more}"
        );
        let arguments = line.split_ascii_whitespace().map(Into::into).collect();
        let variables =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let config = match read(arguments, variables, 1) {
            Ok(Wanted::Run(config)) => config,
            other => panic!("{line}: {other:?}"),
        };
        let certificates = Certificates::new(&config).unwrap();
        let sync = Sync::new(&config, &identity, certificates.handle(), Snapshot::default());
        let ctx = Arc::new(Ctx {
            snapshot: sync.snapshot(),
            credentials: certificates.handle().credentials(),
            discovery: sync.discovery(),
            telemetry: Telemetry::new(AccessLog::off()),
            merges: Arc::new(Merges::new(&config.merge_metrics, config.mark)),
            tracing: Tracing::new(&config),
            readiness: Readiness::new(),
            drain: Drain::new(),
            cap: Cap::from_descriptor_limit(1024),
            events: Events::default(),
            bulletin: Bulletin::default(),
            limits: SharedLimits::default(),
            caches: Caches::default(),
            capture_check: CaptureCheck::default(),
            config: *config,
        });
        Made { ctx, authority, identity, token }
    }
}
