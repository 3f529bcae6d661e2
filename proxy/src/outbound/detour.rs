//! The way of a request whose backend has a cache, joins equal requests, or has something to fall back on.
//!
//! ```text
//!  cache ─┬─ fresh ──────────────────────────────────────────────────────▶ answer
//!         └─ else ─▶ equal one under way? ─┬─ its answer ────────────────▶ answer
//!                                          └─▶ send ─┬─ still holds ─────▶ answer from memory
//!                                                    ├─ good ────────────▶ answer, taken down on its way
//!                                                    └─ bad ─▶ stale? backup? static answer? ─▶ answer
//! ```

use std::rc::Rc;

use http::{HeaderMap, Response, StatusCode};
use outrigger_core::{
    coalesce::Key,
    fallback::{Step, steps},
};
use outrigger_proto::spec::BackendKey;

use super::requests::{self, Departing, Pass, send};
use crate::{
    cluster::Cluster,
    error::Error,
    http::{body::ResponseBody, exchange::Exchange},
    path::{
        attempt::Answered,
        bulkhead::{self, Permits},
        cache::{self, Found, Memory, Served, Tap, View},
        coalesce::{Joined, Leader},
        deadline::Due,
        fallback::{self, Kind},
        retry::{self, Plan, Spare},
    },
    worker::now,
};

type Sent = Result<(Answered, Permits), Error>;

/// What is to become of an answer that goes to the caller.
pub(super) struct Taps {
    /// `None`: the answer is nothing to remember.
    view: Option<View>,
    memory: Memory,
    leader: Option<Leader>,
}

pub(super) async fn forward(
    exchange: &Rc<Exchange>,
    departing: &mut Departing,
) -> Result<Response<ResponseBody>, Error> {
    let Departing { cluster, plan, asked, halls, caller_half } = departing;
    let Some(mut plan) = plan.take() else { return Err(Error::Internal("a request was sent twice")) };
    let due = plan.due;
    let traffic = &cluster.backend.traffic;
    let notes = &exchange.notes;
    // Somebody who only has something to fall back on does not need it.
    let remembers = cluster.cache.is_some() || traffic.coalesce;
    let view = remembers.then(|| View::of(&plan.request, !exchange.is_request_over()));
    let mut memory = match cluster.cache.as_ref().zip(view.as_ref()) {
        None => Memory::Bypass,
        Some((shared, view)) => match cache::look(shared, &view.with(plan.request.headers())) {
            Found::Answer(hit) => {
                return Ok(cache::answer(exchange, Served::of(&hit), &hit));
            }
            Found::Nothing => return Err(Error::NotCached),
            Found::Ask(memory) => memory,
        },
    };
    if !matches!(memory, Memory::Bypass) {
        notes.cache.set(Some("miss"));
    }
    let mut leader = None;
    if traffic.coalesce
        && caller_half.is_none()
        && let Some(key) = view.as_ref().and_then(|view| Key::of(&view.with(plan.request.headers())))
    {
        match due.wait(cluster.live.flights.join(key)).await? {
            Joined::Leader(leads) => leader = Some(leads),
            Joined::Alone => {}
            Joined::Answered(answer) => {
                let (status, fields) = (answer.status, answer.headers.clone());
                let body = answer.body.chunks().to_vec();
                return Ok(cache::recall(exchange, Served::Coalesced, status, fields, body));
            }
        }
        due.check(now())?;
    }
    plan.began = None;
    let spare = plan.again();
    if let Memory::Stale { stale, conditional } = &mut memory {
        *conditional = stale.set_conditions(plan.request.headers_mut());
    }
    let mut sent = send(exchange, cluster, asked, halls.take(), Some(plan)).await;
    if let Some(shared) = &cluster.cache
        && let Ok((answered, _)) = &sent
        && answered.response.status() == StatusCode::NOT_MODIFIED
        && let Some(stale) = memory.take_asked()
    {
        match cache::confirm(shared, stale, answered.response.headers()) {
            Ok(hit) => {
                let answer = cache::answer(exchange, Served::Revalidated, &hit);
                give_up(sent, leader);
                return Ok(answer);
            }
            // It was about another one: asked once more, without conditions.
            Err(pending) => {
                memory = Memory::Pending(pending);
                if let Some(plan) = spare.as_ref().and_then(|spare| spare.plan(exchange, due)) {
                    give_up(sent, None);
                    sent = send(exchange, cluster, asked, None, Some(plan)).await;
                }
            }
        }
    }
    let cause = fallback::cause(sent.as_ref().map(|(answered, _)| answered));
    for step in steps(traffic.fallback.as_ref(), cause) {
        match step {
            Step::Stale => {
                let Some(hit) = memory.for_error() else { continue };
                give_up(sent, leader);
                let answer = cache::answer(exchange, Served::Stale, &hit);
                return Ok(fallback::say(exchange, Kind::Stale, cause, answer));
            }
            Step::Answer(answer) => {
                give_up(sent, leader);
                let answer = fallback::answer(exchange, answer);
                return Ok(fallback::say(exchange, Kind::Answer, cause, answer));
            }
            Step::Backend(key) => {
                let safe = |spare: &Spare| {
                    fallback::is_untouched(cause) || spare.is_repeatable(exchange, &traffic.retries)
                };
                let spare = spare.as_ref().filter(|spare| safe(spare));
                let Some((backup, plan)) = spare.and_then(|spare| to_backup(exchange, key, spare, due))
                else {
                    continue;
                };
                // Also if nothing good comes of it.
                notes.fallback.set(Some(Kind::Backend.label()));
                give_up(sent, leader);
                plan.due.check(now())?;
                exchange.routed.borrow_mut().service = Some(Rc::clone(&backup.label));
                let halls = bulkhead::of(&backup, &exchange.caller.worker, None);
                let (answered, permits) = send(exchange, &backup, asked, halls, Some(plan)).await?;
                let pass = Pass { cookie: None, caller_half: caller_half.take(), taps: None };
                let answer = requests::pass_on(exchange, &backup, answered, permits, pass)?;
                return Ok(fallback::say(exchange, Kind::Backend, cause, answer));
            }
        }
    }
    let (answered, permits) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            give_up(Err(error.clone()), leader);
            return Err(error);
        }
    };
    let taps = Some(Taps { view, memory, leader });
    let pass = Pass { cookie: asked.cookie.take(), caller_half: caller_half.take(), taps };
    requests::pass_on(exchange, cluster, answered, permits, pass)
}

/// The backup, and the request as it goes there: with a request timeout of its own, and what is left of the caller's.
fn to_backup(
    exchange: &Rc<Exchange>,
    key: &BackendKey,
    spare: &Spare,
    due: Due,
) -> Option<(Rc<Cluster>, Plan)> {
    let worker = &exchange.caller.worker;
    let snapshot = worker.snapshot();
    let backup = worker.clusters.backend(worker, key, snapshot.backend(key)?);
    let due = due.with_limit(backup.backend.traffic.timeouts.request, exchange.started, now());
    let plan = spare.plan(exchange, due)?;
    Some((backup, plan))
}

/// The caller gets something else, and whoever waited for this goes its own way.
fn give_up(sent: Sent, leader: Option<Leader>) {
    if let Ok((answered, _)) = sent {
        retry::discard(answered);
    }
    if let Some(leader) = leader {
        leader.failed();
    }
}

impl Taps {
    /// At the head of the answer, as the caller gets it.
    pub(super) fn begin(self, cluster: &Cluster, status: StatusCode, headers: &HeaderMap) -> Tap {
        let Self { view, memory, leader } = self;
        let leader = leader.and_then(|leader| leader.begin(status, headers));
        let Some(view) = view else { return Tap { recorder: None, leader } };
        if view.changes(status) {
            cluster.live.flights.seal(&view.authority, &view.path);
        }
        let recorder = cluster.cache.as_ref().and_then(|shared| {
            cache::invalidate(shared, &view, status, headers);
            let recorder = cache::record(shared, memory, status, headers)?;
            Some((recorder, shared.clone()))
        });
        Tap { recorder, leader }
    }
}
