//! What a policy says about connections: how long one may take to make, how old it may get, and how many there may be.

use std::{num::NonZeroU32, rc::Rc, time::Duration};

use outrigger_proto::spec::Queue;

use crate::{cluster::Cluster, error::Error, worker::Worker};

/// On which terms a connection is had.
#[derive(Clone, Default)]
pub struct Terms {
    /// For a new one, from the dial to the end of the TLS handshake.
    pub connect: Duration,
    /// An older one takes no new requests.
    pub max_age: Option<Duration>,
    /// This worker's share of the connections to the endpoint.
    pub endpoint: Option<usize>,
    /// Its share of those to all endpoints together.
    pub upstream: Option<(Rc<Cluster>, u32)>,
    /// Where a request waits for a connection when there may be no more of them. `None`: it does not.
    pub queue: Option<Queue>,
    /// Who wants it, as metrics name it.
    pub service: Option<Rc<str>>,
}

/// A connection among those of an upstream.
pub(super) struct Counted(Rc<Cluster>);

// === impl Terms ===

impl Terms {
    pub fn plain(connect: Duration) -> Self {
        Self { connect, ..Self::default() }
    }

    /// As the backend's policy has them. Limits are divided among the workers, rounded up: a worker without a connection
    /// could not take one from another.
    pub fn of(cluster: &Rc<Cluster>, workers: usize) -> Self {
        let traffic = &cluster.backend.traffic;
        let share = |most: NonZeroU32| most.get().div_ceil(workers as u32);
        Self {
            connect: traffic.timeouts.connect,
            max_age: traffic.timeouts.max_connection_age,
            endpoint: traffic.bulkhead.endpoint.connections.map(|most| share(most) as usize),
            upstream: traffic.bulkhead.upstream.connections.map(|most| (Rc::clone(cluster), share(most))),
            queue: traffic.bulkhead.queue,
            service: Some(Rc::clone(&cluster.label)),
        }
    }

    /// Counts a new connection; if there are as many as there may be, one that is idle elsewhere makes room.
    pub(super) fn count(&self, worker: &Rc<Worker>) -> Result<Option<Counted>, Error> {
        let Some((cluster, most)) = &self.upstream else { return Ok(None) };
        if cluster.live.connections.get() >= *most
            && !(cluster.live.close_idle(worker) && cluster.live.connections.get() < *most)
        {
            return Err(Error::BulkheadFull {
                name: format!("upstream/{}/connections", cluster.label).into(),
            });
        }
        Ok(Some(Counted::new(cluster)))
    }
}

// === impl Counted ===

impl Counted {
    fn new(cluster: &Rc<Cluster>) -> Self {
        let connections = &cluster.live.connections;
        connections.set(connections.get() + 1);
        Self(Rc::clone(cluster))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let connections = &self.0.live.connections;
        connections.set(connections.get() - 1);
    }
}
