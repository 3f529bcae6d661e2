//! The limits that a backend's policy sets, found once and kept for as long as the policy is the same.

use std::{cell::RefCell, num::NonZeroU32, sync::Arc};

use hashbrown::HashMap;
use outrigger_core::bulkhead::Config;
use outrigger_proto::spec::{Backend, BackendKey};

use crate::{
    shared_limits::{Hall, Name, Rules},
    worker::Worker,
};

/// All workers share what is in here. A workload that is dialled by its own address has none.
#[derive(Default)]
pub struct Limits {
    /// Requests in flight to the backend.
    pub upstream: Option<Arc<Hall>>,
    /// As many as its endpoints take together, where each has a limit: whoever finds all of them full waits here.
    pub endpoints: Option<Arc<Hall>>,
    /// Opaque connections to it.
    pub connections: Option<Arc<Hall>>,
    pub rates: Rules,
    /// Of each route that was seen.
    routes: RefCell<HashMap<Arc<str>, Arc<Hall>>>,
    route: Option<Config>,
}

impl Limits {
    pub(super) fn of(worker: &Worker, key: Option<&BackendKey>, backend: &Backend) -> Self {
        let Some(key) = key else { return Self::default() };
        let traffic = &backend.traffic;
        let shared = &worker.ctx.limits;
        let bulkhead = &traffic.bulkhead;
        let config = |total| Config { total, queue: bulkhead.queue, ..Config::default() };
        let limited = bulkhead.upstream.requests.is_some() || bulkhead.adaptive.is_some();
        let requests = Config { adaptive: bulkhead.adaptive, ..config(bulkhead.upstream.requests) };
        let connections = bulkhead.upstream.connections;
        let endpoints = u32::try_from(backend.endpoints.len()).ok().and_then(NonZeroU32::new);
        let places = bulkhead.endpoint.requests.zip(endpoints).filter(|_| bulkhead.queue.is_some());
        let all = places.map(|(each, endpoints)| each.saturating_mul(endpoints));
        Self {
            upstream: limited.then(|| shared.hall(Name::Upstream(key.clone()), requests)),
            endpoints: all.map(|all| shared.hall(Name::Endpoints(key.clone()), config(Some(all)))),
            connections: connections
                .map(|most| shared.hall(Name::UpstreamConnections(key.clone()), config(Some(most)))),
            rates: shared.rules(&traffic.rate_limits),
            routes: RefCell::default(),
            route: bulkhead.route_requests.map(|most| config(Some(most))),
        }
    }

    /// Requests in flight of a route.
    pub fn route(&self, worker: &Worker, route: &Arc<str>) -> Option<Arc<Hall>> {
        let config = self.route?;
        let mut routes = self.routes.borrow_mut();
        let made = || worker.ctx.limits.hall(Name::Route(Arc::clone(route)), config);
        if let Some(hall) = routes.get(&**route) {
            return Some(Arc::clone(hall));
        }
        let hall = made();
        routes.insert(Arc::clone(route), Arc::clone(&hall));
        Some(hall)
    }
}
