//! What happens to one request, from its head to the application's answer.
//!
//! ```text
//!  prepare ─▶ authorize ─▶ time left? ─▶ rate limits ─▶ bulkhead, maybe a wait ─▶ time left? ─▶ application ─▶ answer
//! ```
//!
//! The caller's deadline ends all of it, the waiting too: work that nobody waits for does not reach the application. What
//! is left of the time goes on with the request.

use std::{future::Future, pin::pin, rc::Rc, sync::LazyLock, time::Duration};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use outrigger_core::{
    headers,
    retry::{Attempts, Moment, Next, Traits, field},
    verdict::Retry,
};
use outrigger_proto::spec::{Retries, Timeouts};
use tokio::time::timeout_at;

use super::Place;
use crate::{
    error::Error,
    http::{
        body::{RequestBody, ResponseBody, grpc_status},
        exchange::{Caller, Exchange, Hold},
        request, upgrade,
    },
    path::{
        authorize,
        deadline::Due,
        identity::Identity,
        pool::{Connections, Lease, Terms},
        respond,
        server_bulkhead::Door,
    },
    telemetry::Ended,
    trace,
    worker::now,
};

/// Towards the application there is no policy of retries, only the defaults.
static RETRIES: LazyLock<Retries> = LazyLock::new(Retries::default);

/// Beyond what is lost by telling a deadline in whole milliseconds, the timers' own, and a busy machine.
const GRACE: Duration = Duration::from_millis(50);

/// An HTTP connection to one application.
pub(crate) struct Served {
    pub(super) caller: Rc<Caller>,
    pub(super) identity: Identity,
    pub(super) door: Door,
    pub(super) place: Place,
    pub(super) connections: Rc<Connections>,
    pub(super) terms: Terms,
}

pub(crate) async fn handle(served: Rc<Served>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let has_body = !http_body::Body::is_end_stream(&body);
    let exchange = Exchange::new(&served.caller, &head, has_body, now());
    match forward(&served, &exchange, head, body).await {
        Ok(response) => response,
        Err(error) => respond::refuse(&exchange, &error),
    }
}

async fn forward(
    served: &Rc<Served>,
    exchange: &Rc<Exchange>,
    mut head: http::request::Parts,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let caller = &served.caller;
    let upgrade = {
        let prepared = request::prepare(&mut head, caller);
        // What is refused is in a trace, too.
        trace::begin(exchange, &mut head.headers);
        prepared?
    };
    authorize::request(exchange, &served.identity.peer, served.place.port)?;
    let due = Due::new(exchange, &head.headers, None)?;
    // Pinned here and in `send` below: what is handed over by value is in the future of the wait once more.
    let permit = {
        let admitted = pin!(served.door.request(&caller.worker, exchange, &head));
        wait(&due, admitted).await??
    };
    due.check(now())?;
    due.deadline.pass_on(None, &mut head.headers, now());
    if let Some(forwarded) = &served.identity.forwarded {
        head.headers.insert(headers::XFCC, forwarded.clone());
    }
    // A caller's proxy that may send it again is in charge of that: two layers would multiply.
    let outer_layer = field::Received::of(&head.headers).is_outer_layer();
    let copy = request::Copy::of(&head, exchange.is_request_over());
    let body = request::body(&mut head, body, exchange);
    let (lease, mut response) = {
        // Dropped at the deadline, and with it the application's connection or stream.
        let sending = pin!(send(served, exchange, &due, request::assemble(head, body), copy, outer_layer));
        wait(&due, sending).await??
    };
    let mut permits = Vec::new();
    if let Some(mut permit) = permit {
        permit.answered(now());
        permits.push(permit);
    }
    let address = served.place.application;
    let switched = upgrade.is_some() && request::switches(&response, exchange);
    let upstream_half = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    request::prepare_answer(&mut head, exchange, lease.sender(), switched)
        .map_err(|error| Error::Protocol { address, error: error.to_string().into() })?;
    // Only proxies say these; an application's own would mislead the caller's.
    for ours in [headers::REASON, headers::ID, headers::FALLBACK] {
        head.headers.remove(ours);
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !switched {
        return Err(Error::Protocol { address, error: "an upgrade that nobody asked for".into() });
    }
    let hold = Hold { lease: Some(lease), permits, ..Hold::default() };
    exchange.answer_begins(head.status.as_u16(), hold, now());
    if let (Some(caller_half), Some(upstream_half)) = (upgrade, upstream_half) {
        let served = Rc::clone(served);
        let until = async move {
            let worker = &served.caller.worker;
            authorize::withdrawn(worker, &served.identity.peer, served.place.port).await
        };
        upgrade::join(Rc::clone(exchange), caller_half, upstream_half, Timeouts::default().idle, until);
        return Ok(Response::from_parts(head, ResponseBody::none()));
    }
    Ok(Response::from_parts(head, ResponseBody::upstream(body, Rc::clone(exchange), None)))
}

/// Lets something run until the deadline, and a moment longer: a caller's proxy ends the wait itself, which drops this,
/// and only it knows whether the time was its caller's, its policy's, or that of one attempt.
async fn wait<F: Future>(due: &Due, future: F) -> Result<F::Output, Error> {
    match due.deadline.at() {
        None => Ok(future.await),
        Some(at) => timeout_at((at + GRACE).into(), future).await.map_err(|_| Error::DeadlineExceeded),
    }
}

/// Sends a request to the application. A connection that it closed while it was idle is no fault of the request's, so
/// another is taken then; what fails on a new connection has failed.
async fn send(
    served: &Served,
    exchange: &Rc<Exchange>,
    due: &Due,
    mut request: Box<Request<RequestBody>>,
    copy: Option<request::Copy>,
    outer_layer: bool,
) -> Result<(Lease, Response<Incoming>), Error> {
    let worker = &served.caller.worker;
    let traits = Traits { replayable: copy.is_some(), idempotency_key: false, outer_layer };
    let mut attempts = Attempts::new(&RETRIES, &exchange.method, traits);
    worker.clusters.application_budget.borrow_mut().on_request(exchange.started);
    exchange.endpoint.set(Some(served.place.application));
    loop {
        exchange.attempts.set(exchange.attempts.get() + 1);
        let trying = exchange.tries.begin(served.place.application, false, now());
        let lease = trying.leased(served.connections.lease(worker, &served.terms).await)?;
        let unanswered = match lease.send(request).await {
            Ok(response) => {
                let grpc = exchange.grpc.then(|| grpc_status(response.headers())).flatten();
                let status = Ended::Status(response.status().as_u16());
                trying.ends(grpc.map_or(status, Ended::Grpc), now());
                return Ok((lease, response));
            }
            Err(unanswered) => unanswered,
        };
        let (failure, error) = unanswered.explain(&lease);
        trying.ends(Ended::Failed(error.reason()), now());
        let next = match error.reason().retry() {
            _ if lease.fresh => return Err(error),
            Retry::Never => return Err(error),
            Retry::IfUnsent | Retry::IfIdempotent => {
                let now = now();
                let moment = Moment { breaker_open: false, left: due.deadline.remaining(now), now };
                let budget = &mut worker.clusters.application_budget.borrow_mut();
                attempts.on_failure(failure, &moment, budget, &mut *worker.rng())
            }
        };
        request = match (next, unanswered.request, &copy) {
            (Next::Again { .. }, Some(unsent), _) => unsent,
            (Next::Again { .. }, None, Some(copy)) => copy.request(exchange),
            (Next::Again { .. }, None, None) | (Next::GiveUp(_), _, _) => return Err(error),
        };
        if let Next::Again { after } = next
            && !after.is_zero()
        {
            tokio::time::sleep(after).await;
        }
    }
}
