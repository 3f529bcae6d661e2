//! What a configuration says of each bulkhead: one place for those who come and find it by its name, and for those who
//! are inside or wait already.

use std::num::NonZeroU32;

use outrigger_core::{bulkhead::Config, snapshot::Snapshot};
use outrigger_proto::spec::{Backend, PortLimits};

use super::{Name, SharedLimits, lock};

impl SharedLimits {
    /// Puts the numbers of a new configuration in force for whoever waits: nobody else may come who would find them.
    pub(super) fn adjust(&self, snapshot: &Snapshot) {
        let halls: Vec<_> = lock(&self.halls).values().cloned().collect();
        for hall in halls {
            match hall.name.config(snapshot) {
                Some(config) => hall.set_config(config),
                // Found with its route's next request.
                None if matches!(hall.name, Name::Route(_)) => {}
                // Without a limit nobody has to wait. The queue stays, because without one they would be refused.
                None => hall.lift(),
            }
        }
    }
}

impl Name {
    /// `None`: there is no such limit.
    fn config(&self, snapshot: &Snapshot) -> Option<Config> {
        let port = |port: &u16| snapshot.inbound()?.limits(*port);
        match self {
            Self::Port(number) => requests_to_port(port(number)?),
            Self::PortConnections(number) => connections_to_port(port(number)?),
            Self::Upstream(key) => requests(snapshot.backend(key)?),
            Self::Endpoints(key) => requests_of_endpoints(snapshot.backend(key)?),
            Self::UpstreamConnections(key) => connections(snapshot.backend(key)?),
            Self::Route(_) => None,
        }
    }
}

// ---- of a port of the server ----------------------------------------------------------------------------------------

pub fn requests_to_port(limits: &PortLimits) -> Option<Config> {
    let bulkhead = limits.bulkhead.as_ref()?;
    some(Config {
        total: bulkhead.total.requests,
        per_key: bulkhead.per_caller.requests,
        queue: bulkhead.queue,
        adaptive: bulkhead.adaptive,
    })
}

pub fn connections_to_port(limits: &PortLimits) -> Option<Config> {
    let bulkhead = limits.bulkhead.as_ref()?;
    let (total, per_key) = (bulkhead.total.connections, bulkhead.per_caller.connections);
    some(Config { total, per_key, ..Config::default() })
}

// ---- of a backend ---------------------------------------------------------------------------------------------------

/// Requests in flight to it.
pub fn requests(backend: &Backend) -> Option<Config> {
    let bulkhead = &backend.traffic.bulkhead;
    some(Config { adaptive: bulkhead.adaptive, ..queued(backend, bulkhead.upstream.requests) })
}

/// As many as its endpoints take together, where each has a limit and there is a queue.
pub fn requests_of_endpoints(backend: &Backend) -> Option<Config> {
    let bulkhead = &backend.traffic.bulkhead;
    let endpoints = u32::try_from(backend.endpoints.len()).ok().and_then(NonZeroU32::new);
    let (each, endpoints) = bulkhead.endpoint.requests.zip(endpoints).filter(|_| bulkhead.queue.is_some())?;
    Some(queued(backend, Some(each.saturating_mul(endpoints))))
}

/// Opaque connections to it.
pub fn connections(backend: &Backend) -> Option<Config> {
    some(queued(backend, backend.traffic.bulkhead.upstream.connections))
}

/// Requests of each of its routes.
pub fn requests_of_route(backend: &Backend) -> Option<Config> {
    some(queued(backend, backend.traffic.bulkhead.route_requests))
}

fn queued(backend: &Backend, total: Option<NonZeroU32>) -> Config {
    Config { total, queue: backend.traffic.bulkhead.queue, ..Config::default() }
}

/// Only what limits something is a bulkhead.
fn some(config: Config) -> Option<Config> {
    let Config { total, per_key, adaptive, queue: _ } = &config;
    (total.is_some() || per_key.is_some() || adaptive.is_some()).then_some(config)
}
