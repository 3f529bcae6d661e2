//! Inbound step: is there room at the application for this caller, and may it ask this often?
//!
//! A connection has a [`Door`], which remembers what the policy of its port limits; that is looked up when the policy
//! changes and not for each request. Without limits it costs one comparison.
//!
//! Requests wait for their place, connections do not: one above the limit is kept, but its requests are refused until
//! another has gone, because a caller's proxy keeps connections in a pool. A connection carried as bytes counts as one
//! request of the rate limits, and as none of the bulkhead's.

use std::{cell::RefCell, net::SocketAddr, rc::Rc, sync::Arc};

use http::request::Parts;
use outrigger_core::bulkhead::Config;
use outrigger_proto::spec::PortLimits;

use super::{
    authorize,
    rate_limit::{self, Asking},
};
use crate::{
    error::Error,
    http::exchange::Exchange,
    shared_limits::{Hall, Name, Permit, Rules, Who, configured},
    worker::Worker,
};

/// One connection to the application behind a port.
pub struct Door {
    port: u16,
    who: Who,
    caller: SocketAddr,
    limits: RefCell<Option<Rc<Limits>>>,
    /// The connection's place, while there is a limit.
    connection: RefCell<Option<Permit>>,
}

/// What the policy of a port limits.
struct Limits {
    policy: Arc<PortLimits>,
    requests: Option<Arc<Hall>>,
    connections: Option<Arc<Hall>>,
    rules: Rules,
}

impl Door {
    pub fn new(port: u16, who: Who, caller: SocketAddr) -> Self {
        Self { port, who, caller, limits: RefCell::default(), connection: RefCell::default() }
    }

    /// Lets a request in, maybe after a wait. The place, if there is a limit, is the request's until its answer ends.
    pub async fn request(
        &self,
        worker: &Worker,
        exchange: &Exchange,
        head: &Parts,
    ) -> Result<Option<Permit>, Error> {
        let Some(limits) = self.limits(worker)? else { return Ok(None) };
        self.connect(worker, &limits)?;
        let asking = Asking::request(self.who.as_ref(), self.caller.ip(), head);
        rate_limit::check(&limits.rules, &asking, &worker.telemetry, Some(&exchange.notes))?;
        let Some(hall) = &limits.requests else { return Ok(None) };
        let permit = hall.admit(&self.who, &worker.telemetry).await?;
        exchange.notes.queued.set(exchange.notes.queued.get() + permit.queued);
        Ok(Some(permit))
    }

    /// Takes the connection's place before the first request does.
    pub fn connection(&self, worker: &Worker) -> Result<(), Error> {
        match self.limits(worker)? {
            Some(limits) => self.connect(worker, &limits),
            None => Ok(()),
        }
    }

    /// What [`Self::request`] is, for a connection that is carried as bytes.
    pub fn opaque(&self, worker: &Worker) -> Result<(), Error> {
        let Some(limits) = self.limits(worker)? else { return Ok(()) };
        self.connect(worker, &limits)?;
        let asking = Asking::connection(self.who.as_ref(), self.caller.ip());
        rate_limit::check(&limits.rules, &asking, &worker.telemetry, None)
    }

    fn connect(&self, worker: &Worker, limits: &Limits) -> Result<(), Error> {
        let mut connection = self.connection.borrow_mut();
        match &limits.connections {
            None => *connection = None,
            Some(hall) if connection.is_none() => match hall.try_admit(&self.who) {
                Some(permit) => *connection = Some(permit),
                None => return Err(hall.full(&worker.telemetry)),
            },
            Some(_) => {}
        }
        Ok(())
    }

    /// What is limited by the policy of now.
    fn limits(&self, worker: &Worker) -> Result<Option<Rc<Limits>>, Error> {
        let snapshot = worker.snapshot();
        let policy = authorize::inbound(&snapshot)?.limits(self.port);
        let mut limits = self.limits.borrow_mut();
        let is_current = match (&*limits, policy) {
            (None, None) => true,
            (Some(limits), Some(policy)) => Arc::ptr_eq(&limits.policy, policy),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !is_current {
            *limits = policy.map(|policy| Rc::new(Limits::new(worker, self.port, policy)));
        }
        Ok(limits.clone())
    }
}

impl Limits {
    fn new(worker: &Worker, port: u16, policy: &Arc<PortLimits>) -> Self {
        let all = &worker.ctx.limits;
        let hall = |name, config: Option<Config>| config.map(|config| all.hall(name, config));
        Self {
            requests: hall(Name::Port(port), configured::requests_to_port(policy)),
            connections: hall(Name::PortConnections(port), configured::connections_to_port(policy)),
            rules: all.rules(&policy.rate_limits),
            policy: Arc::clone(policy),
        }
    }
}
