//! Outbound step: a second attempt beside the first one, at another endpoint, once the first is slower than it should be.
//!
//! The first good answer wins and the other attempt is dropped, which cancels it. An answer that is not good waits for
//! what the other one brings.

use std::{
    future::Future,
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use outrigger_core::hedge::Hedger;

use super::attempt::{self, Answered, Sending, Unanswered};
use crate::{cluster::Cluster, http::request, worker::now};

/// What to do for a request that may have a second attempt.
#[derive(Clone, Copy, Debug)]
pub enum Hedge {
    /// Begin it after so long.
    After(Duration),
    /// Only see how long the first one takes: too little is known to say what is late.
    Learn,
}

/// `None`: the policy has no hedges, or the request cannot be sent twice at a time.
pub fn plan(cluster: &Cluster, copy: &request::Copy, now: Instant) -> Option<Hedge> {
    let mut hedger = cluster.live.hedger.borrow_mut();
    let hedger = hedger.as_mut()?;
    hedger.on_request(now);
    // Two can only read a body that is there.
    let elsewhere = cluster.backend.endpoints.len() > 1;
    let delay =
        |hedger: &mut Hedger| hedger.delay(now).filter(|_| elsewhere).map_or(Hedge::Learn, Hedge::After);
    copy.is_complete().then(|| delay(hedger))
}

/// `first`: the attempt that is under way, or about to be.
pub async fn race<F: Future<Output = Result<Answered, Unanswered>>>(
    sending: &Sending<'_>,
    mut first: Pin<&mut F>,
    copy: &request::Copy,
    hedge: Hedge,
) -> Result<Answered, Unanswered> {
    let began = now();
    let hedger = || sending.cluster.live.hedger.borrow_mut();
    if let Hedge::After(delay) = hedge {
        let late = tokio::select! {
            biased;
            result = &mut first => {
                learn(sending, began);
                return result;
            }
            () = tokio::time::sleep(delay) => hedger().as_mut().is_some_and(|hedger| hedger.withdraw(now())),
        };
        if late {
            // Boxed, because few requests come so far and all would be larger by it.
            return Box::pin(both(sending, first, copy, began)).await;
        }
    }
    let result = first.await;
    learn(sending, began);
    result
}

async fn both<F: Future<Output = Result<Answered, Unanswered>>>(
    sending: &Sending<'_>,
    first: Pin<&mut F>,
    copy: &request::Copy,
    began: Instant,
) -> Result<Answered, Unanswered> {
    let exchange = sending.exchange;
    let second = pin!(attempt::once(sending, copy.request(exchange), true));
    let (result, won) = match select(first, second).await {
        Either::Left((result, second)) => {
            learn(sending, began);
            match result {
                Ok(answered) if is_good(&answered) => (Ok(answered), false),
                other => match second.await {
                    Ok(answered) => (better(other, answered), true),
                    Err(_) => (other, false),
                },
            }
        }
        Either::Right((result, first)) => {
            // It lost; how long it would have taken nobody knows, but so long at least.
            learn(sending, began);
            match result {
                Ok(answered) if is_good(&answered) => (Ok(answered), true),
                other => match (first.await, other) {
                    (Ok(answered), other) => (better(other, answered), false),
                    // The first one's failure decides what comes next.
                    (Err(failed), Err(_)) => (Err(failed), false),
                    (Err(_), other) => (other, true),
                },
            }
        }
    };
    exchange.notes.hedged.set(Some(if won { "won" } else { "lost" }));
    if let Ok(answered) = &result {
        exchange.goes_to(&answered.trial.endpoint().spec);
    }
    result
}

/// How long the first attempt took, or has taken so far.
fn learn(sending: &Sending<'_>, began: Instant) {
    let now = now();
    if let Some(hedger) = &mut *sending.cluster.live.hedger.borrow_mut() {
        hedger.on_answer(now.saturating_duration_since(began), now);
    }
}

/// Of an attempt that is not good, and an answer that came later.
fn better(earlier: Result<Answered, Unanswered>, later: Answered) -> Result<Answered, Unanswered> {
    match earlier {
        Ok(earlier) if !is_good(&later) => {
            super::retry::discard(later);
            Ok(earlier)
        }
        Ok(earlier) => {
            super::retry::discard(earlier);
            Ok(later)
        }
        Err(_) => Ok(later),
    }
}

fn is_good(answered: &Answered) -> bool {
    answered.answer.status < 500
        && answered.answer.status != 429
        && answered.answer.grpc.is_none_or(|code| code == 0)
}
