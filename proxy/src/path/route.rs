//! Outbound step: what a destination is, and which backend a request to it goes to.

use std::{rc::Rc, sync::Arc, time::Duration};

use http::request::Parts;
use outrigger_core::{
    limits,
    route::{self, RequestView},
    snapshot::{CompiledDestination, ServiceTarget, Snapshot, Target},
};
use outrigger_proto::spec::{Backend, BackendKey, DestinationKey, EgressPolicy, Protocol, Route};
use rand::Rng as _;
use tokio::time::timeout;

use crate::{cluster::Cluster, error::Error, shared::Held, worker::Worker};

/// What is known about where a connection wants to go.
pub enum Known {
    /// In the mesh.
    Mesh(Arc<CompiledDestination>),
    /// Outside, and the egress policy lets it go there.
    External,
}

/// Where one request goes.
pub struct Chosen {
    pub cluster: Rc<Cluster>,
    pub route: Option<Arc<Route>>,
    pub timeout: Option<Duration>,
}

/// Finds out what a destination is, with the control plane's help if need be.
pub async fn resolve(worker: &Worker, key: &DestinationKey) -> Result<Known, Error> {
    let snapshot = worker.snapshot();
    if let Some(destination) = snapshot.destination(key) {
        worker.ctx.discovery.touch(key);
        return judge(&snapshot, key, destination);
    }
    drop(snapshot);
    // Listening before asking, so that no answer is missed.
    let mut changes = worker.ctx.snapshot.changes();
    worker.ctx.discovery.want(key);
    if !worker.ctx.discovery.may_answer() {
        // It is asked for as soon as there is somebody to ask.
        return Err(unknown(key));
    }
    let answered = async {
        loop {
            let snapshot = worker.snapshot();
            if let Some(destination) = snapshot.destination(key) {
                return judge(&snapshot, key, destination);
            }
            drop(snapshot);
            changes.changed().await;
        }
    };
    match timeout(limits::RESOLVE_TIMEOUT, answered).await {
        Ok(known) => known,
        Err(_) => Err(unknown(key)),
    }
}

fn judge(
    snapshot: &Snapshot,
    key: &DestinationKey,
    destination: &Arc<CompiledDestination>,
) -> Result<Known, Error> {
    match destination.target {
        Target::Service(_) | Target::Workload { .. } => Ok(Known::Mesh(Arc::clone(destination))),
        Target::External => egress(snapshot, key),
    }
}

/// Nobody has said what it is. It may be in the mesh, and dialling it as if it were outside would bring its traffic to
/// plaintext, so it is not dialled at all, whatever the egress policy lets out.
fn unknown(key: &DestinationKey) -> Error {
    Error::Unresolved(key.to_string().into())
}

fn egress(snapshot: &Snapshot, key: &DestinationKey) -> Result<Known, Error> {
    let DestinationKey::Address(address) = key else {
        // A name outside the mesh has no address that anybody vouches for.
        return Err(Error::Unresolved(key.to_string().into()));
    };
    match snapshot.inbound().map(|inbound| inbound.spec.egress) {
        Some(EgressPolicy::Allow) => Ok(Known::External),
        Some(EgressPolicy::RegisteredOnly) => Err(Error::EgressDenied(*address)),
        None => Err(Error::NotReady("no configuration has arrived yet")),
    }
}

/// What the destination is declared to speak.
pub fn protocol(destination: &CompiledDestination) -> Protocol {
    match &destination.target {
        Target::Service(service) => service.protocol,
        Target::Workload { protocol, .. } => *protocol,
        Target::External => Protocol::Tcp,
    }
}

/// The backend for one request, by the destination's routes.
pub fn request(
    worker: &Rc<Worker>,
    snapshot: &Held<Snapshot>,
    key: &DestinationKey,
    destination: &CompiledDestination,
    head: &Parts,
) -> Result<Chosen, Error> {
    if let Target::Service(service) = &destination.target
        && !service.routes.is_empty()
    {
        let view = RequestView { method: &head.method, path: head.uri.path(), headers: &head.headers };
        let route = route::find(&service.routes, &view).ok_or(Error::NoRoute)?;
        let backend = route.choose(worker.rng().next_u64());
        let cluster = backend_cluster(worker, snapshot, backend)?;
        let timeout = route.spec().request_timeout.or(cluster.backend.traffic.timeouts.request);
        return Ok(Chosen { timeout, route: Some(Arc::clone(route.spec())), cluster });
    }
    connection(worker, snapshot, key, destination)
}

/// The backend for a connection that is carried as bytes: routes do not apply.
pub fn connection(
    worker: &Rc<Worker>,
    snapshot: &Held<Snapshot>,
    key: &DestinationKey,
    destination: &CompiledDestination,
) -> Result<Chosen, Error> {
    let cluster = match &destination.target {
        Target::Service(ServiceTarget { backend, .. }) => backend_cluster(worker, snapshot, backend)?,
        Target::Workload { backend, .. } => workload_cluster(worker, key, backend)?,
        Target::External => return Err(Error::Internal("a destination outside the mesh has no backend")),
    };
    Ok(Chosen { timeout: cluster.backend.traffic.timeouts.request, route: None, cluster })
}

fn backend_cluster(
    worker: &Rc<Worker>,
    snapshot: &Held<Snapshot>,
    key: &BackendKey,
) -> Result<Rc<Cluster>, Error> {
    // A backend is always sent with what refers to it; without it there is nothing to pick from.
    let backend = snapshot.backend(key).ok_or_else(|| Error::NoEndpoints(key.to_string().into()))?;
    Ok(worker.clusters.backend(worker, key, backend))
}

fn workload_cluster(
    worker: &Rc<Worker>,
    key: &DestinationKey,
    backend: &Arc<Backend>,
) -> Result<Rc<Cluster>, Error> {
    let DestinationKey::Address(address) = key else {
        return Err(Error::Internal("a workload is known by its address only"));
    };
    Ok(worker.clusters.workload(worker, *address, backend))
}
