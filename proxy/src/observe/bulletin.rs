//! What concerns all workers and comes from outside their traffic: what a fleet thinks, what active checks have found.
//! And the other way: which backends this proxy calls.
//!
//! Both are hints. A worker that is too busy to hear all of it misses the oldest; checks repeat what they know, and so
//! does the control plane.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hashbrown::HashSet;
use outrigger_proto::spec::{BackendKey, Fleet};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        watch,
    },
    time::{MissedTickBehavior, interval},
};

use crate::worker::Worker;

/// What a worker may be behind by.
const CAPACITY: usize = 1_024;
/// How often workers say whom they call.
const LOOK: Duration = Duration::from_secs(1);

/// Process-wide.
pub struct Bulletin {
    heard: broadcast::Sender<Heard>,
    calling: watch::Sender<Calling>,
    /// Endpoints that checks find unhealthy, for a worker that begins to call their backend.
    sick: Mutex<HashSet<(BackendKey, SocketAddr)>>,
}

#[derive(Clone, Debug)]
pub enum Heard {
    Fleet(Arc<Fleet>),
    Checked(Checked),
}

/// The result of one active check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    pub backend: BackendKey,
    pub endpoint: SocketAddr,
    pub good: bool,
    /// What all checks so far say.
    pub healthy: bool,
}

#[derive(Default)]
struct Calling {
    by_worker: BTreeMap<usize, Vec<BackendKey>>,
    /// Of all workers: sorted, each once.
    all: Arc<[BackendKey]>,
}

/// Wakes when other backends are called than before.
pub struct Changes(watch::Receiver<Calling>);

impl Default for Bulletin {
    fn default() -> Self {
        Self {
            heard: broadcast::channel(CAPACITY).0,
            calling: watch::Sender::default(),
            sick: Mutex::default(),
        }
    }
}

impl Bulletin {
    pub fn tell(&self, heard: Heard) {
        if let Heard::Checked(Checked { backend, endpoint, healthy, .. }) = &heard {
            let mut sick = self.sick();
            if *healthy {
                sick.remove(&(backend.clone(), *endpoint));
            } else {
                sick.insert((backend.clone(), *endpoint));
            }
        }
        // Without workers there is nobody to hear it.
        let _ = self.heard.send(heard);
    }

    /// The endpoints of a backend that checks find unhealthy now.
    pub fn unhealthy(&self, backend: &BackendKey) -> Vec<SocketAddr> {
        let sick = self.sick();
        sick.iter().filter(|(of, _)| of == backend).map(|(_, endpoint)| *endpoint).collect()
    }

    fn sick(&self) -> MutexGuard<'_, HashSet<(BackendKey, SocketAddr)>> {
        self.sick.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn listen(&self) -> broadcast::Receiver<Heard> {
        self.heard.subscribe()
    }

    pub fn calling(&self) -> Changes {
        Changes(self.calling.subscribe())
    }

    /// One more that a worker calls, before it comes to say so itself: what it tells of that backend counts for nothing with
    /// the control plane until then.
    pub(crate) fn add_calling(&self, worker: usize, backend: &BackendKey) {
        let mut backends = self.calling.borrow().by_worker.get(&worker).cloned().unwrap_or_default();
        if !backends.contains(backend) {
            backends.push(backend.clone());
            self.set_calling(worker, backends);
        }
    }

    pub(crate) fn set_calling(&self, worker: usize, mut backends: Vec<BackendKey>) {
        backends.sort_unstable();
        self.calling.send_if_modified(|calling| {
            if calling.by_worker.get(&worker) == Some(&backends) {
                return false;
            }
            calling.by_worker.insert(worker, backends);
            let mut all: Vec<_> = calling.by_worker.values().flatten().cloned().collect();
            all.sort_unstable();
            all.dedup();
            let changed = *calling.all != *all;
            calling.all = all.into();
            changed
        });
    }
}

impl Changes {
    /// Sorted.
    pub fn current(&mut self) -> Arc<[BackendKey]> {
        Arc::clone(&self.0.borrow_and_update().all)
    }

    /// Pending for ever once the bulletin is gone.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A worker's ear and mouth: for as long as it lives.
pub async fn follow(worker: Rc<Worker>) {
    let bulletin = &worker.ctx.bulletin;
    let mut heard = bulletin.listen();
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => bulletin.set_calling(worker.id, worker.clusters.calling()),
            heard = heard.recv() => match heard {
                Ok(Heard::Fleet(fleet)) => worker.clusters.on_fleet(&fleet),
                Ok(Heard::Checked(checked)) => worker.clusters.on_check(&worker, &checked),
                Err(RecvError::Lagged(missed)) => tracing::debug!(worker = worker.id, missed, "behind with news"),
                Err(RecvError::Closed) => return,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use outrigger_proto::spec::{Cause, Circuit, Protocol};
    use tokio::{task, time::timeout};

    use super::*;
    use crate::rig::{PATIENCE, Reply, Rig, read_head, run, write};

    #[tokio::test]
    async fn the_proxy_calls_what_any_worker_calls() {
        let key = |name: &str| -> BackendKey { format!("shop/{name}:80").parse().unwrap() };
        let bulletin = Bulletin::default();
        let mut changes = bulletin.calling();
        bulletin.set_calling(0, vec![key("b"), key("a")]);
        changes.changed().await;
        assert_eq!(*changes.current(), [key("a"), key("b")]);
        bulletin.set_calling(1, vec![key("b")]);
        assert!(changes.changed().now_or_never().is_none(), "nothing new in all");
        bulletin.set_calling(0, vec![]);
        changes.changed().await;
        assert_eq!(*changes.current(), [key("b")]);
        bulletin.add_calling(1, &key("a"));
        changes.changed().await;
        assert_eq!(*changes.current(), [key("a"), key("b")]);
        bulletin.add_calling(1, &key("b"));
        assert!(changes.changed().now_or_never().is_none(), "nothing new in all");
    }

    #[test]
    fn workers_act_on_what_checks_have_found() {
        run(|| async {
            let rig = Rig::new(Protocol::Http, 2).await;
            for server in &rig.servers {
                server.serve(|_, _| Reply::Answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".to_owned()));
            }
            task::spawn_local(follow(Rc::clone(&rig.client)));
            let ctx = &rig.client.ctx;
            // Who calls it follows from a request.
            let mut program = rig.dial();
            write(&mut program, "GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
            read_head(&mut program).await;
            let mut calling = ctx.bulletin.calling();
            let backend: BackendKey = "shop/orders:80".parse().unwrap();
            while *calling.current() != [backend.clone()] {
                timeout(PATIENCE, calling.changed()).await.expect("nobody says whom it calls");
            }
            let endpoint = rig.backend.endpoints[0].address;
            let told = |healthy| {
                Heard::Checked(Checked { backend: backend.clone(), endpoint, good: healthy, healthy })
            };
            for (healthy, to) in [(false, Circuit::Open), (true, Circuit::Closed)] {
                ctx.bulletin.tell(told(healthy));
                timeout(PATIENCE, ctx.events.has_news()).await.expect("no worker has heard it");
                let changes = ctx.events.take();
                assert_eq!((changes[0].to, changes[0].endpoint), (to, endpoint));
                assert_eq!(changes[0].cause, Cause::HealthCheck);
            }
            // A worker that calls it only now knows, too.
            ctx.bulletin.tell(told(false));
            assert_eq!(ctx.bulletin.unhealthy(&backend), [endpoint]);
            timeout(PATIENCE, ctx.events.has_news()).await.expect("no worker has heard it");
            let recent = ctx.events.recent().len();
            let late = Worker::new(Arc::clone(ctx), 1);
            let snapshot = late.snapshot();
            let cluster = late.clusters.backend(&late, &backend, snapshot.backend(&backend).unwrap());
            let circuits = cluster.live.endpoints();
            let of = |address| circuits.iter().find(|(one, _)| one.spec.address == address).unwrap().1;
            assert_eq!(of(endpoint), (Circuit::Open, false));
            assert_eq!(of(rig.backend.endpoints[1].address), (Circuit::Closed, true));
            assert_eq!(ctx.events.recent().len(), recent + 1);
        });
    }
}
