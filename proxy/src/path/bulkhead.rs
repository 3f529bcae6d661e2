//! Outbound step: a place among the requests of the route and of the upstream, maybe after a wait.
//!
//! The places ride the answer to its end. Who waits and goes away gives up its place in the queue; what it had already is
//! given back. All workers share the bulkheads ([`crate::shared_limits`]).

use std::sync::Arc;

use outrigger_proto::spec::Route;
use smallvec::SmallVec;

use crate::{
    cluster::Cluster,
    error::Error,
    http::exchange::Exchange,
    shared_limits::{Hall, Permit},
    worker::Worker,
};

/// Most requests have none, so none are kept in place.
pub type Permits = Vec<Permit>;

/// The bulkheads that a request has to pass.
pub struct Halls(SmallVec<[Arc<Hall>; 3]>);

/// `None`: no policy limits it.
pub fn of(cluster: &Cluster, worker: &Worker, route: Option<&Route>) -> Option<Halls> {
    let limits = &cluster.limits;
    let route = route.and_then(|route| limits.route(worker, &route.name));
    // The narrower one first, so that nobody who waits there has a place in the wider one.
    let halls: SmallVec<_> =
        route.into_iter().chain(limits.upstream.clone()).chain(limits.endpoints.clone()).collect();
    (!halls.is_empty()).then_some(Halls(halls))
}

impl Halls {
    /// All places, if nobody has to wait for one. Without a future, which would be too large for what it does.
    pub fn try_admit(&self) -> Option<Permits> {
        self.0.iter().map(|hall| hall.try_admit(&None)).collect()
    }

    pub async fn admit(&self, exchange: &Exchange) -> Result<Permits, Error> {
        let mut permits = Permits::new();
        for hall in &self.0 {
            let permit = hall.admit(&None, &exchange.caller.worker.telemetry).await?;
            exchange.notes.queued.set(exchange.notes.queued.get() + permit.queued);
            permits.push(permit);
        }
        Ok(permits)
    }
}
