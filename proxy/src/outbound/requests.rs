//! What happens to one request, from its head to the answer that its caller gets.
//!
//! ```text
//!  prepare ─▶ route ─▶ time left? ─▶ rate limits ─▶ bulkheads, maybe a wait ─┐
//!      ┌─────────────────────────────────────────────────────────────────────┘
//!      └▶ attempt: pick ─▶ lease ─▶ send ─▶ judge ─┬─▶ answer
//!            ▲            again, elsewhere         │
//!            └─────────────────────────────────────┘
//! ```

use std::{cell::RefCell, rc::Rc, sync::Arc};

use http::{Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use outrigger_core::{
    outlier::What,
    snapshot::{CompiledDestination, Snapshot},
};
use outrigger_proto::spec::DestinationKey;

use crate::{
    cluster::Cluster,
    error::Error,
    http::{
        body::ResponseBody,
        exchange::{Caller, Exchange, Hold, Routed},
        request, upgrade,
    },
    path::{
        attempt::Answered,
        balance::Asked,
        bulkhead::{self, Permits},
        deadline::Due,
        rate_limit::{self, Asking},
        respond, retry,
        route::{self, Chosen},
    },
    shared::Held,
    worker::now,
};

/// An HTTP connection to one destination.
pub(crate) struct Serving {
    pub(super) caller: Rc<Caller>,
    pub(super) key: DestinationKey,
    /// What the destination is, by which snapshot.
    pub(super) known: RefCell<(Held<Snapshot>, Arc<CompiledDestination>)>,
}

impl Serving {
    /// The newest snapshot, and what the destination is by it.
    fn current(&self) -> (Held<Snapshot>, Arc<CompiledDestination>) {
        let snapshot = self.caller.worker.snapshot();
        self.caller.worker.ctx.discovery.touch(&self.key);
        let mut known = self.known.borrow_mut();
        if !known.0.same(&snapshot) {
            if let Some(destination) = snapshot.destination(&self.key) {
                known.1 = Arc::clone(destination);
            }
            known.0 = snapshot.clone();
        }
        (snapshot, Arc::clone(&known.1))
    }
}

pub(crate) async fn handle(serving: Rc<Serving>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let exchange = Exchange::new(&serving.caller, &head, has_body, now());
    match forward(&serving, &exchange, head, body).await {
        Ok(response) => response,
        Err(error) => respond::refuse(&exchange, &error),
    }
}

async fn forward(
    serving: &Serving,
    exchange: &Rc<Exchange>,
    mut head: Parts,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let caller = &serving.caller;
    let caller_half = request::prepare(&mut head, caller)?;
    let (snapshot, destination) = serving.current();
    let Chosen { cluster, route, timeout } =
        route::request(&caller.worker, &snapshot, &serving.key, &destination, &head)?;
    drop((snapshot, destination));
    let halls = bulkhead::of(&cluster, &caller.worker, route.as_deref());
    exchange.routed.replace(Routed { service: Some(Rc::clone(&cluster.label)), route, peer: None });
    let due = Due::new(exchange, &head.headers, timeout)?;
    limit(exchange, &cluster, &head)?;
    let asked = Asked::of(&caller.worker, &cluster.backend.traffic, &head, caller.address);
    let mut plan = retry::Plan::new(exchange, &cluster, head, body, due, caller_half.is_some());
    let permits = match halls {
        None => Permits::new(),
        Some(halls) => {
            plan.began = None;
            // Boxed, because few requests need it and all would be larger by it.
            let permits = Box::pin(due.wait(halls.admit(exchange))).await??;
            due.check(now())?;
            permits
        }
    };
    let answered = retry::send(exchange, &cluster, &asked, plan).await?;
    pass_on(exchange, &cluster, answered, permits, asked, caller_half)
}

/// The rate limits of the backend's policy.
fn limit(exchange: &Exchange, cluster: &Cluster, head: &Parts) -> Result<(), Error> {
    if cluster.limits.rates.is_empty() {
        return Ok(());
    }
    let Caller { worker, address, .. } = &*exchange.caller;
    let own = worker.ctx.credentials.current();
    let asking = Asking::request(own.as_ref().map(|own| own.identity()), address.ip(), head);
    rate_limit::check(&cluster.limits.rates, &asking, &worker.telemetry, Some(&exchange.notes))
}

/// The upstream's answer, checked and made what the caller gets.
fn pass_on(
    exchange: &Rc<Exchange>,
    cluster: &Cluster,
    answered: Answered,
    mut permits: Permits,
    asked: Asked,
    caller_half: Option<OnUpgrade>,
) -> Result<Response<ResponseBody>, Error> {
    let Answered { mut response, lease, trial, .. } = answered;
    let address = lease.address();
    let switched = caller_half.is_some() && request::switches(&response, exchange);
    let upstream_half = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    let refused = |error: String| {
        trial.broke(What::Invalid);
        Error::Protocol { address, error: error.into() }
    };
    if let Err(error) = request::prepare_answer(&mut head, exchange, switched) {
        return Err(refused(error.to_string()));
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !switched {
        return Err(refused("an upgrade that nobody asked for".to_owned()));
    }
    if let Some(reason) = request::told_reason(&head.headers) {
        exchange.blame(reason, "said the other side's proxy");
    }
    if let Some(cookie) = asked.cookie {
        head.headers.append(header::SET_COOKIE, cookie);
    }
    let now = now();
    for permit in &mut permits {
        permit.answered(now);
    }
    let hold = Hold { lease: Some(lease), trial: Some(trial), permits };
    exchange.answer_begins(head.status.as_u16(), hold, now);
    let timeouts = &cluster.backend.traffic.timeouts;
    if let (Some(caller_half), Some(upstream_half)) = (caller_half, upstream_half) {
        let until = std::future::pending();
        upgrade::join(Rc::clone(exchange), caller_half, upstream_half, timeouts.idle, until);
        return Ok(Response::from_parts(head, ResponseBody::none()));
    }
    let body = ResponseBody::upstream(body, Rc::clone(exchange), timeouts.stream_idle);
    Ok(Response::from_parts(head, body))
}
