//! Outbound step: attempt after attempt until there is an answer to pass on, or no right to go on.

use std::{
    cell::{Cell, RefCell},
    pin::pin,
    rc::Rc,
    time::{Duration, Instant},
};

use http::{Request, header, request::Parts};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use outrigger_core::{
    limits,
    retry::{Attempts, Failure, Moment, Next, Traits, field},
    verdict::Retry,
};
use outrigger_proto::spec::{FallbackTo, Retries};
use tokio::task;

use super::{
    attempt::{self, Answered, Sending, Unanswered},
    balance::{self, Asked},
    deadline::Due,
    hedge,
};
use crate::{
    cluster::Cluster,
    error::Error,
    http::{body::RequestBody, exchange::Exchange, replay::Replay, request},
    worker::now,
};

/// How long what is left of an answer that nobody gets is read, so that its connection can be used again.
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// A request ready to be sent.
pub struct Plan {
    pub request: Box<Request<RequestBody>>,
    /// Enough of it to send it again; `None`: it is never sent twice.
    pub copy: Option<Rc<request::Copy>>,
    received: field::Received,
    traits: Traits,
    pub due: Due,
    /// When it came, if nothing was waited for since.
    pub began: Option<Instant>,
}

/// What is kept of a request beyond its plan.
#[derive(Clone)]
pub struct Spare {
    copy: Rc<request::Copy>,
    received: field::Received,
    traits: Traits,
}

impl Plan {
    /// `upgrade`: it asks for its connection to become something else.
    pub fn new(
        exchange: &Rc<Exchange>,
        cluster: &Cluster,
        mut head: Parts,
        body: Incoming,
        due: Due,
        upgrade: bool,
    ) -> Self {
        let began = Some(exchange.started);
        let traffic = &cluster.backend.traffic;
        // A backup may want it too.
        let spare =
            traffic.fallback.as_ref().is_some_and(|policy| matches!(policy.to, FallbackTo::Backend(_)));
        let received = field::Received::of(&head.headers);
        let bodyless = exchange.is_request_over();
        let room = u64::from(traffic.retries.buffer_bytes);
        // A body that waits for the upstream's word is not there to be sent again.
        let replayable = !upgrade
            && (bodyless || (body.size_hint().lower() <= room && !head.headers.contains_key(header::EXPECT)));
        let mut traits = Traits {
            replayable,
            idempotency_key: field::has_idempotency_key(&head.headers),
            outer_layer: received.is_outer_layer(),
        };
        let attempts = Attempts::new(&traffic.retries, &exchange.method, traits);
        // Others are kept only to be sent elsewhere when they were refused unread, and only if that is known to cost little.
        let small = bodyless || body.size_hint().upper().is_some_and(|most| most <= room);
        let keep = replayable
            && (small
                || spare
                || attempts.may_resend()
                || (traffic.hedging.is_some() && attempts.may_hedge()));
        if !keep {
            traits.replayable = replayable && attempts.may_resend();
            let body = request::body(&mut head, body, exchange);
            return Self { request: request::assemble(head, body), copy: None, received, traits, due, began };
        }
        let replay = (!bodyless).then(|| Replay::new(body, exchange, room));
        let copy = request::Copy::new(&head, replay.clone());
        let body = match replay {
            Some(replay) => RequestBody::kept(replay.cursor(), Rc::clone(exchange)),
            None => RequestBody::empty(Rc::clone(exchange)),
        };
        let copy = Some(Rc::new(copy));
        Self { request: request::assemble(head, body), copy, received, traits, due, began }
    }

    /// The same request once more, for another upstream or in another way. `None`: it is not here any more.
    pub fn again(&self) -> Option<Spare> {
        let copy = Rc::clone(self.copy.as_ref()?);
        Some(Spare { copy, received: self.received, traits: self.traits })
    }
}

impl Spare {
    /// Whether it does no harm that somebody may have acted on it already.
    pub fn is_repeatable(&self, exchange: &Exchange, policy: &Retries) -> bool {
        exchange.method.is_idempotent() || self.traits.idempotency_key || policy.unsafe_methods
    }

    /// `None`: there was more of it than is kept.
    pub fn plan(&self, exchange: &Rc<Exchange>, due: Due) -> Option<Plan> {
        let Self { copy, received, traits } = self.clone();
        copy.is_whole().then(|| Plan {
            request: copy.request(exchange),
            copy: Some(copy),
            received,
            traits,
            due,
            began: None,
        })
    }
}

pub async fn send(
    exchange: &Rc<Exchange>,
    cluster: &Rc<Cluster>,
    asked: &Asked,
    plan: Plan,
) -> Result<Answered, Error> {
    let worker = &exchange.caller.worker;
    let Plan { mut request, copy, received, traits, due, began } = plan;
    let live = &cluster.live;
    let mut attempts = Attempts::new(&cluster.backend.traffic.retries, &exchange.method, traits);
    let names_attempts = copy.is_some() && attempts.may_resend();
    let began = began.unwrap_or_else(now);
    live.budget.borrow_mut().on_request(began);
    let sending = Sending {
        exchange,
        cluster,
        due,
        asked,
        tried: RefCell::default(),
        received,
        names_attempts,
        began: Cell::new(Some(began)),
    };
    let mut hedge = match &copy {
        Some(copy) if attempts.may_hedge() => hedge::plan(cluster, copy, began),
        _ => None,
    };
    let mut last = None;
    loop {
        let result = {
            let first = pin!(attempt::once(&sending, request, false));
            match (hedge.take(), &copy) {
                // Boxed, because most requests have none; the first attempt is not in it, so it is small.
                (Some(hedge), Some(copy)) => Box::pin(hedge::race(&sending, first, copy, hedge)).await,
                _ => first.await,
            }
        };
        if copy.as_ref().is_some_and(|copy| !copy.is_whole()) {
            attempts.on_body_too_large();
        }
        let moment = || {
            let now = now();
            Moment { breaker_open: live.is_open(now), left: sending.due.deadline.remaining(now), now }
        };
        let budget = || live.budget.borrow_mut();
        let (next, unsent, error) = match result {
            Ok(answered) => {
                // Nothing is asked about the answers that are good.
                let good = answered.response.status().is_success()
                    && answered.answer.grpc.is_none_or(|code| code == 0);
                let next = if good {
                    None
                } else {
                    attempts.on_answer(&answered.answer, &moment(), &mut budget(), &mut *worker.rng())
                };
                let next = match next {
                    None => return Ok(answered),
                    Some(Next::GiveUp(why)) => {
                        exchange.notes.gave_up.set(Some(why.as_str()));
                        return Ok(answered);
                    }
                    Some(next) => next,
                };
                (next, None, discard(answered))
            }
            Err(Unanswered::Nobody(nobody)) => return Err(balance::nobody(cluster, nobody, last)),
            Err(Unanswered::Failed { failure, error, request }) => {
                let next = match (error.reason().retry(), failure) {
                    // A time that was over may have been this attempt's only.
                    (Retry::Never, Failure::TimedOut | Failure::Unsent)
                        if matches!(error, Error::ResponseTimeout(_)) =>
                    {
                        attempts.on_failure(failure, &moment(), &mut budget(), &mut *worker.rng())
                    }
                    (Retry::Never, _) => return Err(error),
                    (Retry::IfUnsent | Retry::IfIdempotent, _) => {
                        attempts.on_failure(failure, &moment(), &mut budget(), &mut *worker.rng())
                    }
                };
                (next, request, Some(error))
            }
        };
        let after = match next {
            Next::Again { after } => after,
            Next::GiveUp(why) => {
                exchange.notes.gave_up.set(Some(why.as_str()));
                return Err(error.unwrap_or(Error::Internal("gave up without a cause")));
            }
        };
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        request = match (unsent, &copy) {
            (Some(unsent), _) => unsent,
            (None, Some(copy)) => copy.request(exchange),
            (None, None) => return Err(error.unwrap_or(Error::Internal("nothing is left of a request"))),
        };
        last = error;
    }
}

/// Lets go of an answer that another attempt takes the place of. What is left of it is read for a moment if it is short, or
/// its connection would have to be closed. An answer that a proxy made is what there was, if no other comes.
pub fn discard(answered: Answered) -> Option<Error> {
    let Answered { response, lease, trial, answer } = answered;
    let address = lease.address();
    let error = answer.reason.map(|reason| Error::Elsewhere { address, reason });
    let mut body = response.into_body();
    let short = body.size_hint().upper().is_some_and(|upper| upper <= limits::MAX_DRAIN_BYTES);
    if body.is_end_stream() {
        lease.release(true);
    } else if short {
        task::spawn_local(async move {
            let read = async {
                while let Some(frame) = body.frame().await {
                    if frame.is_err() {
                        return false;
                    }
                }
                true
            };
            let whole = tokio::time::timeout(DRAIN_TIME, read).await.unwrap_or(false);
            lease.release(whole);
        });
    }
    drop(trial);
    error
}
