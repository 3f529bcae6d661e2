//! Active health checks of the endpoints that this proxy calls, where a policy asks for them.
//!
//! One task of worker 0 has the schedule (`core::health`), makes the checks ([`probe`]) and tells all workers what came of
//! them; they decide what it means for their circuits. A check goes over the mesh hop, with TLS and the one identity that
//! is accepted there, like a request would.
//!
//! It checks nothing that is not called, and what a proxy on the way refuses by policy is no result at all.

use std::{rc::Rc, sync::Arc, time::Instant};

use hashbrown::HashMap;
use outrigger_core::{
    health::{Check, Checker},
    snapshot::{Snapshot, Target},
};
use outrigger_proto::spec::{Backend, BackendKey, Endpoint, HealthCheck, Protocol};
use tokio::{
    sync::{broadcast::error::RecvError, mpsc},
    task,
    time::sleep_until,
};

use crate::{
    observe::bulletin::{Bulletin, Checked, Heard},
    worker::{Worker, now},
};

mod probe;

#[cfg(test)]
mod tests;

use probe::{Probe, Result};

/// Results that wait to be taken; checks wait beyond.
const RESULTS: usize = 256;

/// A backend whose endpoints are checked.
struct Watched {
    backend: Arc<Backend>,
    policy: HealthCheck,
    /// What is checked by HTTP speaks HTTP/2.
    http2: bool,
    checker: Checker,
}

struct Ended {
    key: BackendKey,
    check: Check,
    endpoint: Endpoint,
    result: Result,
}

struct Checks {
    worker: Rc<Worker>,
    watched: HashMap<BackendKey, Watched>,
    ended: mpsc::Sender<Ended>,
}

/// Runs for as long as the worker lives.
pub async fn run(worker: Rc<Worker>) {
    let (ended_in, mut ended) = mpsc::channel(RESULTS);
    let mut calling = worker.ctx.bulletin.calling();
    let mut snapshots = worker.ctx.snapshot.changes();
    let mut heard = worker.ctx.bulletin.listen();
    let mut checks = Checks { worker, watched: HashMap::new(), ended: ended_in };
    checks.link(&calling.current());
    loop {
        let due = checks.poll_timeout();
        tokio::select! {
            () = calling.changed() => checks.link(&calling.current()),
            () = snapshots.changed() => checks.link(&calling.current()),
            heard = heard.recv() => match heard {
                Ok(Heard::Fleet(fleet)) => checks.set_callers(&fleet.backend, fleet.callers),
                // Those behind hear it again.
                Ok(Heard::Checked(_)) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            },
            Some(ended) = ended.recv() => checks.on_result(&ended),
            () = wait(due) => checks.handle_timeout(),
        }
    }
}

async fn wait(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

impl Checks {
    /// Makes what is checked what is called and has a policy. Who stays keeps its results.
    fn link(&mut self, calling: &[BackendKey]) {
        let now = now();
        let snapshot = self.worker.snapshot();
        let wanted = |key: &BackendKey| {
            let backend = snapshot.backend(key)?;
            Some((backend, backend.traffic.health_check.as_ref()?))
        };
        let bulletin = &self.worker.ctx.bulletin;
        self.watched.retain(|key, watched| {
            let stays = calling.binary_search(key).is_ok() && wanted(key).is_some();
            if !stays {
                watched.let_go(bulletin, key, |_| true);
            }
            stays
        });
        for key in calling {
            let Some((backend, policy)) = wanted(key) else { continue };
            let mut rng = self.worker.rng();
            let http2 = is_http2(&snapshot, key);
            match self.watched.get_mut(key) {
                Some(watched) => {
                    watched.http2 = http2;
                    if Arc::ptr_eq(&watched.backend, backend) {
                        continue;
                    }
                    let stays = |one: &Endpoint| {
                        let same =
                            |new: &Endpoint| (new.address, &new.identity) == (one.address, &one.identity);
                        backend.endpoints.iter().any(same)
                    };
                    watched.let_go(bulletin, key, |endpoint| !stays(endpoint));
                    watched.checker.relink(&links(&watched.backend, backend), now, &mut *rng);
                    if watched.policy != *policy {
                        watched.checker.set_policy(policy, now);
                        watched.policy = policy.clone();
                    }
                    watched.backend = Arc::clone(backend);
                }
                None => {
                    let checker = Checker::new(policy, backend.endpoints.len(), now, &mut *rng);
                    let (backend, policy) = (Arc::clone(backend), policy.clone());
                    self.watched.insert(key.clone(), Watched { backend, policy, http2, checker });
                }
            }
        }
    }

    fn set_callers(&mut self, key: &BackendKey, callers: u32) {
        if let Some(watched) = self.watched.get_mut(key) {
            watched.checker.set_callers(callers, now());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.watched.values().filter_map(|watched| watched.checker.poll_timeout()).min()
    }

    fn handle_timeout(&mut self) {
        let now = now();
        for (key, watched) in &mut self.watched {
            if watched.checker.poll_timeout().is_none_or(|due| due > now) {
                continue;
            }
            watched.checker.handle_timeout(now, &mut *self.worker.rng());
            while let Some(check) = watched.checker.poll_check() {
                let Some(endpoint) = watched.backend.endpoints.get(check.index).cloned() else { continue };
                let probe = Probe {
                    worker: Rc::clone(&self.worker),
                    kind: watched.policy.kind.clone(),
                    http2: watched.http2,
                    host: format!("{}.{}", key.name, key.namespace),
                };
                let (key, ended) = (key.clone(), self.ended.clone());
                task::spawn_local(async move {
                    let result = probe.run(&endpoint, check.timeout).await;
                    // The schedule ends with the worker.
                    let _ = ended.send(Ended { key, check, endpoint, result }).await;
                });
            }
        }
    }

    fn on_result(&mut self, ended: &Ended) {
        let Ended { key, check, endpoint, result } = ended;
        let good = match result {
            Result::Good => true,
            Result::Bad(_) => false,
            Result::Nothing(why) => {
                tracing::warn!(backend = %key, endpoint = %endpoint.address, "health check without a result: {why}");
                return;
            }
        };
        let Some(watched) = self.watched.get_mut(key) else { return };
        let Some(checked) = watched.checker.on_result(check, good, now()) else { return };
        if let (Some(healthy), address) = (checked.healthy, endpoint.address) {
            let why = if let Result::Bad(why) = result { why } else { "good again" };
            tracing::info!(backend = %key, endpoint = %address, healthy, "health checks: {why}");
        }
        let healthy = watched.checker.is_healthy(checked.index);
        let (backend, endpoint) = (key.clone(), endpoint.address);
        self.worker.ctx.bulletin.tell(Heard::Checked(Checked { backend, endpoint, good, healthy }));
    }
}

impl Watched {
    /// Nobody looks after these endpoints any more: who took one for unhealthy must not do so for ever.
    fn let_go(&self, bulletin: &Bulletin, key: &BackendKey, which: impl Fn(&Endpoint) -> bool) {
        for (index, endpoint) in self.backend.endpoints.iter().enumerate() {
            if !self.checker.is_healthy(index) && which(endpoint) {
                let (backend, endpoint) = (key.clone(), endpoint.address);
                bulletin.tell(Heard::Checked(Checked { backend, endpoint, good: false, healthy: true }));
            }
        }
    }
}

/// Of each new endpoint, which it was before.
fn links(old: &Backend, new: &Backend) -> Vec<Option<usize>> {
    let index: HashMap<_, _> = old
        .endpoints
        .iter()
        .enumerate()
        .map(|(index, endpoint)| ((endpoint.address, &endpoint.identity), index))
        .collect();
    new.endpoints.iter().map(|endpoint| index.get(&(endpoint.address, &endpoint.identity)).copied()).collect()
}

/// Whether any service in front of this backend says so.
fn is_http2(snapshot: &Snapshot, key: &BackendKey) -> bool {
    snapshot.destinations().any(|(_, destination)| match &destination.target {
        Target::Service(service) => {
            service.backend == *key && matches!(service.protocol, Protocol::Http2 | Protocol::Grpc)
        }
        Target::Workload { .. } | Target::External => false,
    })
}
