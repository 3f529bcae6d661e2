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

use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body::Body as _;
use hyper::{body::Incoming, upgrade::OnUpgrade};
use outrigger_core::{
    outlier::What,
    snapshot::{CompiledDestination, Snapshot},
};
use outrigger_proto::spec::DestinationKey;

use super::detour::{self, Taps};
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
        bulkhead::{self, Halls, Permits},
        deadline::Due,
        rate_limit::{self, Asking},
        respond,
        retry::{self, Plan},
        route::{self, Chosen},
    },
    shared::Held,
    trace,
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
    let (exchange, mut departing) = set_out(&serving, request);
    let answered = match &mut departing {
        // Boxed, because few requests need it and all would be larger by it.
        Ok(departing) if departing.cluster.has_detour() => {
            Box::pin(detour::forward(&exchange, departing)).await
        }
        Ok(departing) => straight(&exchange, departing).await,
        Err(error) => Err(error.clone()),
    };
    match answered {
        Ok(response) => response,
        Err(error) => respond::refuse(&exchange, &error),
    }
}

/// A request that knows where it goes.
pub(super) struct Departing {
    pub(super) cluster: Rc<Cluster>,
    /// Taken when it goes.
    pub(super) plan: Option<Plan>,
    pub(super) asked: Asked,
    pub(super) halls: Option<Halls>,
    pub(super) caller_half: Option<OnUpgrade>,
}

/// Everything that needs no wait. No `async fn`, because whatever is alive in one makes every request's future larger.
fn set_out(serving: &Serving, request: Request<Incoming>) -> (Rc<Exchange>, Result<Departing, Error>) {
    let (head, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let exchange = Exchange::new(&serving.caller, &head, has_body, now());
    let departing = depart(serving, &exchange, head, body);
    (exchange, departing)
}

fn depart(
    serving: &Serving,
    exchange: &Rc<Exchange>,
    mut head: Parts,
    body: Incoming,
) -> Result<Departing, Error> {
    let caller = &serving.caller;
    let prepared = request::prepare(&mut head, caller);
    // What is refused is in a trace, too.
    trace::begin(exchange, &mut head.headers);
    let caller_half = prepared?;
    let (snapshot, destination) = serving.current();
    let Chosen { cluster, route, timeout } =
        route::request(&caller.worker, &snapshot, &serving.key, &destination, &head)?;
    drop((snapshot, destination));
    let halls = bulkhead::of(&cluster, &caller.worker, route.as_deref());
    exchange.routed.replace(Routed { service: Some(Rc::clone(&cluster.label)), route, ..Routed::default() });
    let due = Due::new(exchange, &head.headers, timeout)?;
    limit(exchange, &cluster, &head)?;
    let asked = Asked::of(&caller.worker, &cluster.backend.traffic, &head, caller.address);
    let plan = Some(Plan::new(exchange, &cluster, head, body, due, caller_half.is_some()));
    Ok(Departing { cluster, plan, asked, halls, caller_half })
}

async fn straight(
    exchange: &Rc<Exchange>,
    departing: &mut Departing,
) -> Result<Response<ResponseBody>, Error> {
    let Departing { cluster, plan, asked, halls, caller_half } = departing;
    let (answered, permits) = send(exchange, cluster, asked, halls.take(), plan.take()).await?;
    let pass = Pass { cookie: asked.cookie.take(), caller_half: caller_half.take(), taps: None };
    pass_on(exchange, cluster, answered, permits, pass)
}

/// Through the bulkheads, and from attempt to attempt.
pub(super) async fn send(
    exchange: &Rc<Exchange>,
    cluster: &Rc<Cluster>,
    asked: &Asked,
    halls: Option<Halls>,
    plan: Option<Plan>,
) -> Result<(Answered, Permits), Error> {
    let Some(mut plan) = plan else { return Err(Error::Internal("a request was sent twice")) };
    let mut permits = Permits::new();
    if let Some(halls) = halls {
        permits = match halls.try_admit() {
            Some(permits) => permits,
            None => {
                plan.began = None;
                let permits = Box::pin(plan.due.wait(halls.admit(exchange))).await??;
                plan.due.check(now())?;
                permits
            }
        };
    }
    Ok((retry::send(exchange, cluster, asked, plan).await?, permits))
}

/// What an answer needs besides itself.
pub(super) struct Pass {
    pub(super) cookie: Option<HeaderValue>,
    /// The caller's side of an upgrade.
    pub(super) caller_half: Option<OnUpgrade>,
    pub(super) taps: Option<Taps>,
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
pub(super) fn pass_on(
    exchange: &Rc<Exchange>,
    cluster: &Cluster,
    answered: Answered,
    mut permits: Permits,
    pass: Pass,
) -> Result<Response<ResponseBody>, Error> {
    let Pass { cookie, caller_half, taps } = pass;
    let Answered { mut response, lease, trial, .. } = answered;
    let address = lease.address();
    let switched = caller_half.is_some() && request::switches(&response, exchange);
    let upstream_half = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    let refused = |error: String| {
        trial.broke(What::Invalid);
        Error::Protocol { address, error: error.into() }
    };
    if let Err(error) = request::prepare_answer(&mut head, exchange, lease.sender(), switched) {
        return Err(refused(error.to_string()));
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !switched {
        return Err(refused("an upgrade that nobody asked for".to_owned()));
    }
    if let Some(reason) = request::told_reason(&head.headers) {
        exchange.blame(reason, "said the other side's proxy");
    }
    let tap = taps.map(|taps| taps.begin(cluster, head.status, &head.headers));
    if let Some(cookie) = cookie {
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
    let mut body = ResponseBody::upstream(body, Rc::clone(exchange), timeouts.stream_idle);
    if let Some(tap) = tap {
        body.tap(tap);
    }
    Ok(Response::from_parts(head, body))
}
