//! One endpoint as one worker sees it: its load, and its connections by protocol.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use outrigger_certs::{Credentials, alpn, tls};
use outrigger_core::{balance::Load, limits};
use outrigger_proto::spec;

use crate::{
    path::{
        pool::{Connections, Numbers},
        upstream::Remote,
    },
    worker::Worker,
};

pub struct Endpoint {
    pub spec: spec::Endpoint,
    pub load: RefCell<Load>,
    /// Clusters that have it.
    pub(super) users: Cell<usize>,
    credentials: Arc<Credentials>,
    http1: OnceCell<Rc<Connections>>,
    http2: OnceCell<Rc<Connections>>,
    opaque: OnceCell<Remote>,
}

impl Endpoint {
    pub(super) fn new(spec: spec::Endpoint, credentials: Arc<Credentials>, now: Instant) -> Self {
        Self {
            spec,
            load: RefCell::new(Load::new(now)),
            users: Cell::new(0),
            credentials,
            http1: OnceCell::new(),
            http2: OnceCell::new(),
            opaque: OnceCell::new(),
        }
    }

    /// The connections that carry HTTP of this version.
    pub fn connections(&self, http2: bool) -> &Rc<Connections> {
        let (cell, alpn) = if http2 { (&self.http2, alpn::H2) } else { (&self.http1, alpn::H1) };
        cell.get_or_init(|| Connections::new(self.remote(alpn), http2, limits::MESH_IDLE_TIMEOUT))
    }

    /// Where to dial for an opaque connection.
    pub fn opaque(&self) -> &Remote {
        self.opaque.get_or_init(|| self.remote(alpn::TCP))
    }

    fn remote(&self, alpn: &'static [u8]) -> Remote {
        let tls = tls::client_config(&self.credentials, self.spec.identity.clone(), &[alpn]);
        Remote::Mesh { endpoint: self.spec.clone(), tls, alpn }
    }

    pub(super) fn retire(&self, worker: &Rc<Worker>) {
        self.each(|connections| connections.retire(worker));
    }

    pub(super) fn sweep(&self, worker: &Rc<Worker>) {
        self.each(|connections| connections.sweep(worker));
    }

    pub(super) fn close_idle(&self, worker: &Rc<Worker>) -> bool {
        [&self.http1, &self.http2].into_iter().filter_map(OnceCell::get).any(|one| one.close_idle(worker))
    }

    pub(super) fn numbers(&self) -> Numbers {
        let mut sum = Numbers::default();
        self.each(|connections| {
            let numbers = connections.numbers();
            sum.open += numbers.open;
            sum.idle += numbers.idle;
            sum.connecting += numbers.connecting;
            sum.waiting += numbers.waiting;
        });
        sum
    }

    fn each(&self, mut f: impl FnMut(&Rc<Connections>)) {
        for connections in [&self.http1, &self.http2].into_iter().filter_map(OnceCell::get) {
            f(connections);
        }
    }
}
