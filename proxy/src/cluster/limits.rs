//! The limits that a backend's policy sets, found once and kept for as long as the policy is the same.

use std::{cell::RefCell, sync::Arc};

use hashbrown::HashMap;
use outrigger_core::bulkhead::Config;
use outrigger_proto::spec::{Backend, BackendKey};

use crate::{
    shared_limits::{Hall, Name, Rules, configured},
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
        let shared = &worker.ctx.limits;
        let hall = |name: fn(BackendKey) -> Name, config: Option<Config>| {
            config.map(|config| shared.hall(name(key.clone()), config))
        };
        Self {
            upstream: hall(Name::Upstream, configured::requests(backend)),
            endpoints: hall(Name::Endpoints, configured::requests_of_endpoints(backend)),
            connections: hall(Name::UpstreamConnections, configured::connections(backend)),
            rates: shared.rules(&backend.traffic.rate_limits),
            routes: RefCell::default(),
            route: configured::requests_of_route(backend),
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
