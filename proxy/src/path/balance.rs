//! Outbound step: which endpoint gets the request.

use std::{net::SocketAddr, rc::Rc};

use http::{HeaderValue, request::Parts};
use outrigger_core::balance::{Cookie, Facts, Key, Wanted, key};
use outrigger_proto::spec::{Algorithm, Traffic};
use smallvec::SmallVec;

use crate::{
    cluster::{Cluster, Endpoint, Nobody},
    error::Error,
    worker::Worker,
};

/// Endpoints that were tried for one request.
#[derive(Default)]
pub struct Tried {
    tried: SmallVec<[Rc<Endpoint>; 2]>,
    /// Of these, those to which there was no connection: not even a second choice.
    lost: SmallVec<[Rc<Endpoint>; 2]>,
}

/// What a request asks of the choice.
#[derive(Default)]
pub struct Asked {
    hash: Option<u64>,
    subset: Option<HeaderValue>,
    /// To be set in the answer, so that the next request finds the same endpoint.
    pub cookie: Option<HeaderValue>,
}

// === impl Tried ===

impl Tried {
    pub fn add(&mut self, endpoint: &Rc<Endpoint>) {
        self.tried.push(Rc::clone(endpoint));
    }

    /// It can be tried again: what failed was no fault of its.
    pub fn forgive(&mut self, endpoint: &Rc<Endpoint>) {
        self.tried.retain(|tried| !Rc::ptr_eq(tried, endpoint));
    }

    pub fn lose(&mut self, endpoint: &Rc<Endpoint>) {
        self.lost.push(Rc::clone(endpoint));
    }

    pub fn contains(&self, endpoint: &Rc<Endpoint>) -> bool {
        self.tried.iter().any(|tried| Rc::ptr_eq(tried, endpoint))
    }

    pub fn is_lost(&self, endpoint: &Rc<Endpoint>) -> bool {
        self.lost.iter().any(|lost| Rc::ptr_eq(lost, endpoint))
    }

    pub fn is_empty(&self) -> bool {
        self.tried.is_empty()
    }
}

// === impl Asked ===

impl Asked {
    pub fn of(worker: &Worker, traffic: &Traffic, head: &Parts, caller: SocketAddr) -> Self {
        let policy = &traffic.load_balancer;
        let mut this = Self::default();
        if let Some(subset) = &policy.subset {
            this.subset = head.headers.get(&subset.header).cloned();
        }
        if let Algorithm::Consistent(_, on) = &policy.algorithm {
            // Who calls from here has this proxy's own identity.
            let own = worker.ctx.credentials.current();
            let facts = Facts {
                headers: Some(&head.headers),
                path: Some(head.uri.path()),
                query: head.uri.query(),
                identity: own.as_ref().map(|own| own.identity().as_str()),
                address: Some(caller.ip()),
            };
            match key(on, &facts) {
                Key::Hash(hash) => this.hash = Some(hash),
                Key::NewCookie { name, ttl } => {
                    if let Some(cookie) = Cookie::new(name, ttl, &mut *worker.rng()) {
                        this.hash = Some(cookie.hash);
                        this.cookie = Some(cookie.set);
                    }
                }
                Key::Nothing => {}
            }
        }
        this
    }

    /// The same for an opaque connection, which has no fields.
    pub fn of_connection(worker: &Worker, traffic: &Traffic, caller: SocketAddr) -> Self {
        let Algorithm::Consistent(_, on) = &traffic.load_balancer.algorithm else { return Self::default() };
        let own = worker.ctx.credentials.current();
        let identity = own.as_ref().map(|own| own.identity().as_str());
        let facts = Facts { identity, address: Some(caller.ip()), ..Facts::default() };
        match key(on, &facts) {
            Key::Hash(hash) => Self { hash: Some(hash), ..Self::default() },
            Key::NewCookie { .. } | Key::Nothing => Self::default(),
        }
    }

    pub fn wanted(&self) -> Wanted<'_> {
        let subset = self.subset.as_ref().map(|subset| subset.to_str().unwrap_or("\u{0}"));
        Wanted { hash: self.hash, subset }
    }
}

/// What to say when nobody could be picked: the last failure, or what stands in the way.
pub fn nobody(cluster: &Cluster, nobody: Nobody, last: Option<Error>) -> Error {
    let service = || (&*cluster.label).into();
    match (last, nobody) {
        (Some(last), _) => last,
        (None, Nobody::Ejected { retry_after }) => {
            Error::AllEjected { service: service(), retry_after: Some(retry_after) }
        }
        (None, Nobody::Full) => Error::BulkheadFull { name: format!("endpoint/{}", cluster.label).into() },
        (None, Nobody::NoEndpoints | Nobody::Tried) => Error::NoEndpoints(service()),
    }
}
