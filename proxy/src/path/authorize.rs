//! Inbound step: may this caller in? Asked on connect, for each request, and again when the configuration has changed.

use std::{future::Future, sync::Arc};

use outrigger_core::{
    authorize::{Denial, Verdict},
    identity::Peer,
    snapshot::{CompiledInbound, Snapshot},
};

use crate::{
    error::Error,
    http::exchange::{Exchange, Ruling},
    worker::Worker,
};

/// Whether a caller may connect to a port.
pub fn connection(snapshot: &Snapshot, peer: &Peer, port: u16) -> Result<(), Error> {
    let inbound = inbound(snapshot)?;
    audit(inbound, peer, port);
    judge(inbound.policies.connection(peer, port, inbound.port(port).mtls))
}

/// Whether a caller may make a request.
pub fn request(exchange: &Exchange, peer: &Peer, port: u16) -> Result<(), Error> {
    let snapshot = exchange.caller.worker.snapshot();
    let inbound = inbound(&snapshot)?;
    let verdict = inbound.policies.request(peer, port, inbound.port(port).mtls);
    if exchange.is_recorded() {
        let policy = match &verdict {
            Verdict::Allow { policy: Some(policy) } => Ruling::Policy(Arc::clone(policy)),
            Verdict::Allow { policy: None } => Ruling::Default,
            Verdict::Deny(denial) => Ruling::Policy(denial.policy().into()),
        };
        exchange.notes.policy.replace(Some(policy));
    }
    judge(verdict)
}

/// Waits until a caller that is connected may not be any more.
pub fn withdrawn<'a>(worker: &'a Worker, peer: &'a Peer, port: u16) -> impl Future<Output = Error> + 'a {
    let mut changes = worker.ctx.snapshot.changes();
    async move {
        loop {
            // Looked at before waiting: something may have changed since the connection was let in.
            let snapshot = worker.snapshot();
            let verdict = inbound(&snapshot)
                .and_then(|inbound| judge(inbound.policies.connection(peer, port, inbound.port(port).mtls)));
            drop(snapshot);
            if let Err(error) = verdict {
                return error;
            }
            changes.changed().await;
        }
    }
}

/// The policy in force, without which nobody is let in.
pub fn inbound(snapshot: &Snapshot) -> Result<&CompiledInbound, Error> {
    snapshot.inbound().map(|inbound| &**inbound).ok_or(Error::NotReady("no configuration has arrived yet"))
}

fn judge(verdict: Verdict<'_>) -> Result<(), Error> {
    match verdict {
        Verdict::Allow { .. } => Ok(()),
        Verdict::Deny(denial) => Err(denied(&denial)),
    }
}

fn denied(denial: &Denial<'_>) -> Error {
    Error::Denied { reason: denial.reason(), policy: denial.policy().into() }
}

fn audit(inbound: &CompiledInbound, peer: &Peer, port: u16) {
    for policy in inbound.policies.audits(peer, port) {
        let caller = peer.identity().map_or("plaintext", |identity| identity.as_str());
        tracing::info!(%policy, caller, port, "audit policy matches a connection");
    }
}
