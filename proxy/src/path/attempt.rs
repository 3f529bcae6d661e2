//! Outbound step: one attempt at one endpoint. Pick, lease a connection, send, and judge what came of it.

use std::{
    cell::{Cell, RefCell},
    num::NonZeroU32,
    pin::pin,
    rc::Rc,
    time::{Instant, SystemTime},
};

use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_core::retry::{Answer, Failure, field};

use super::{
    balance::{Asked, Tried},
    deadline::{Clock, Due},
    outlier::{self, Trial},
    pool::{Lease, Terms},
};
use crate::{
    cluster::{Cluster, Nobody, Picked},
    error::Error,
    http::{
        body::{RequestBody, grpc_status},
        exchange::Exchange,
        request,
    },
    shared_limits::Kind,
    telemetry::Ended,
    worker::now,
};

/// What all attempts of one request have in common.
pub struct Sending<'a> {
    pub exchange: &'a Rc<Exchange>,
    pub cluster: &'a Rc<Cluster>,
    pub due: Due,
    pub asked: &'a Asked,
    pub tried: RefCell<Tried>,
    /// What came in `x-outrigger-attempt`, and whether this layer is the one that names attempts.
    pub received: field::Received,
    pub names_attempts: bool,
    /// When the first attempt begins, if that is known.
    pub began: Cell<Option<Instant>>,
}

/// An answer's head, with what it holds on to.
pub struct Answered {
    pub response: Response<Incoming>,
    pub lease: Lease,
    pub trial: Trial,
    /// As retries look at it.
    pub answer: Answer,
}

pub enum Unanswered {
    Nobody(Nobody),
    Failed {
        failure: Failure,
        error: Error,
        /// Nothing of it was sent.
        request: Option<Box<Request<RequestBody>>>,
    },
}

/// Sends the request to one endpoint that was not tried yet, if there is one. `hedge`: beside another attempt.
pub async fn once(
    sending: &Sending<'_>,
    mut request: Box<Request<RequestBody>>,
    hedge: bool,
) -> Result<Answered, Unanswered> {
    let Sending { exchange, cluster, due, .. } = sending;
    let worker = &exchange.caller.worker;
    let timeouts = &cluster.backend.traffic.timeouts;
    let number = exchange.attempts.get() + 1;
    let dispatched = sending.began.take().unwrap_or_else(now);
    let picked = cluster.live.pick(
        worker,
        &sending.asked.wanted(),
        &sending.tried.borrow(),
        Kind::Request,
        dispatched,
    );
    let Picked { endpoint, trial, place } = picked.map_err(Unanswered::Nobody)?;
    exchange.attempts.set(number);
    if exchange.is_recorded() {
        exchange.notes.ejected.set(cluster.live.ejected());
    }
    exchange.goes_to(&endpoint.spec);
    sending.tried.borrow_mut().add(&endpoint);
    let trying = exchange.tries.begin(endpoint.spec.address, hedge, dispatched);
    let trial = Trial::new(worker, cluster, Rc::clone(&endpoint), trial, place, dispatched);
    due.deadline.pass_on(timeouts.per_try, request.headers_mut(), dispatched);
    let own = NonZeroU32::new(number).filter(|_| sending.names_attempts);
    sending.received.pass_on(own, request.headers_mut());

    let connections = endpoint.connections(exchange.caller.http2);
    let terms = Terms::of(cluster, worker.ctx.config.workers.get());
    let mut leased = None;
    let mut unsent = Some(request);
    let result = {
        let attempt = pin!(async {
            let lease = leased.insert(connections.lease(worker, &terms).await?);
            if lease.waited {
                trying.waited(now());
            }
            match unsent.take() {
                Some(request) => Ok(lease.send(request).await),
                None => Err(Error::Internal("a request was sent twice")),
            }
        });
        Clock::new(exchange, due, timeouts, dispatched).run(attempt).await
    };
    let connected = leased.is_some();
    let (failure, error, request) = match (result, leased) {
        (Ok(Ok(Ok(response))), Some(lease)) => {
            let answer = read(exchange, &response);
            let now = now();
            trying.ends(answer.grpc.map_or(Ended::Status(answer.status), Ended::Grpc), now);
            trial.answered(&answer, exchange.grpc, now);
            return Ok(Answered { response, lease, trial, answer });
        }
        (Ok(Ok(Err(unanswered))), Some(lease)) => {
            // An idle connection that was closed says nothing about its endpoint.
            if !lease.fresh {
                sending.tried.borrow_mut().forgive(&endpoint);
            }
            let (failure, error) = unanswered.explain(&lease);
            let now = now();
            trying.ends(Ended::Failed(error.reason()), now);
            trial.failed(outlier::judge(failure, &error, lease.fresh), now);
            return Err(Unanswered::Failed { failure, error, request: unanswered.request });
        }
        // No connection: the request is still here.
        (Ok(Err(error)), _) | (Err(error), None) => (Failure::Unsent, error, unsent),
        (Err(error), Some(_)) => (Failure::TimedOut, error, None),
        (Ok(Ok(_)), None) => (Failure::Sent, Error::Internal("an answer without a connection"), None),
    };
    if failure == Failure::Unsent {
        sending.tried.borrow_mut().lose(&endpoint);
    }
    let now = now();
    if !connected {
        trying.waited(now);
    }
    trying.ends(Ended::Failed(error.reason()), now);
    trial.failed(outlier::judge(failure, &error, true), now);
    Err(Unanswered::Failed { failure, error, request })
}

fn read(exchange: &Exchange, response: &Response<Incoming>) -> Answer {
    let status = response.status();
    let mut answer = Answer { status: status.as_u16(), ..Answer::default() };
    if exchange.grpc {
        answer.grpc = grpc_status(response.headers());
    }
    if !status.is_success() || answer.grpc.is_some_and(|code| code != 0) {
        answer.reason = request::told_reason(response.headers());
        answer.retry_after = field::retry_after(response.headers(), SystemTime::now());
    }
    answer
}
