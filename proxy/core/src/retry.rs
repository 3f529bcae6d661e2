//! What may be sent again, how often, after which wait, and the budget that keeps retries from becoming the outage.
//!
//! ```text
//!  what happened                                  asked, in this order                              otherwise
//!  ─────────────                                  ────────────────────                              ─────────
//!  nothing was sent ─────────────────────────────▶ fewer than MAX_ATTEMPTS of these? time left?      GiveUp
//!  sent, and known to be untouched ──────────────▶ the same, and: is the body kept?                  GiveUp
//!  sent: reset, timed out, or a listed answer ───▶ does the policy want it? is no outer layer in
//!                                                  charge? harmless to repeat? is the body kept?
//!                                                  attempts left? breaker closed? Retry-After short
//!                                                  enough? time left? budget?                        GiveUp(the first no)
//! ```
//!
//! The first two cost the upstream nothing, so they are outside the policy and outside the budget, and the first of them
//! goes elsewhere without a wait. All others wait `min(base * 2^n + rand(0, 0.3 * base), max)`, or as long as
//! `Retry-After` says if that is longer.
//!
//! It does not choose the endpoint (the caller leaves out those tried already), keeps no bodies and does not wait.

use std::time::{Duration, Instant};

use http::Method;
use outrigger_proto::spec::Retries;
use rand_core::Rng;

use crate::{backoff, limits::MAX_ATTEMPTS, verdict};

mod budget;
pub mod field;

pub use budget::Budget;

#[cfg(test)]
mod tests;

/// The attempts of one request, under the policy that it began with.
#[derive(Clone, Debug)]
pub struct Attempts<'a> {
    policy: &'a Retries,
    idempotent: bool,
    replayable: bool,
    outer_layer: bool,
    failed: u32,
    unsent: u32,
    resends: u32,
    waits: u32,
}

/// What a request brings along, apart from its method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// It has no body, or one that is (or still can be) kept: see [`Attempts::on_body_too_large`].
    pub replayable: bool,
    /// See [`field::has_idempotency_key`].
    pub idempotency_key: bool,
    /// Another layer is in charge of retries: see [`field::Received::is_outer_layer`].
    pub outer_layer: bool,
}

/// How an attempt ended before an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nothing of the request went out, and the caller still has it whole: no connection, or a kept one that turned out
    /// to be closed before a byte was written.
    Unsent,
    /// It went out and the peer promises that nobody has looked at it: a refused stream, one beyond a GOAWAY.
    Refused,
    /// Sent, then reset or closed.
    Sent,
    /// Sent, and the time of the attempt (`per_try`, `response_header`) ran out.
    TimedOut,
}

/// An answer's head, as far as retries look at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of an answer that is trailers only; in trailers after a body it comes too late.
    pub grpc: Option<u16>,
    /// The other side's proxy made the answer.
    pub reason: Option<verdict::Reason>,
    /// See [`field::retry_after`].
    pub retry_after: Option<Duration>,
}

/// The rest of what a decision depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// No endpoint of the upstream is admitted.
    pub breaker_open: bool,
    /// Until the request's deadline; see [`crate::deadline::Deadline::remaining`].
    pub left: Option<Duration>,
    pub now: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// After this wait, elsewhere if there is somewhere else.
    Again { after: Duration },
    /// What there is, is the caller's.
    GiveUp(GiveUp),
}

/// Why a request that failed is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GiveUp {
    /// The policy does not want this kind of failure retried, or none.
    Disabled,
    /// A layer before this one retries; two would multiply.
    OuterLayer,
    /// The upstream may have acted on it, and twice is not as good as once.
    NotRepeatable,
    /// The body is larger than what is kept for another attempt.
    BodyTooLarge,
    /// No attempts are left.
    Exhausted,
    /// Every endpoint is ejected.
    BreakerOpen,
    /// The upstream wants more time than the policy waits.
    RetryAfterTooLong,
    /// The deadline would pass during the wait.
    NoTime,
    /// The budget is spent.
    Budget,
}

impl<'a> Attempts<'a> {
    pub fn new(policy: &'a Retries, method: &Method, traits: Traits) -> Self {
        Self {
            policy,
            idempotent: traits.idempotency_key || method.is_idempotent(),
            replayable: traits.replayable,
            outer_layer: traits.outer_layer,
            failed: 0,
            unsent: 0,
            resends: 0,
            waits: 0,
        }
    }

    /// More of the body went by than is kept, so it cannot be sent a second time.
    pub fn on_body_too_large(&mut self) {
        self.replayable = false;
    }

    /// What comes after an attempt that brought no answer. A retry of a sent request is taken out of the budget here.
    pub fn on_failure(
        &mut self,
        failure: Failure,
        moment: &Moment,
        budget: &mut Budget,
        rng: &mut impl Rng,
    ) -> Next {
        self.failed += 1;
        let on = &self.policy.on;
        let next = match failure {
            Failure::Refused if !self.replayable => Err(GiveUp::BodyTooLarge),
            Failure::Unsent | Failure::Refused => self.untouched(moment, rng),
            Failure::Sent => self.resend(on.reset, None, moment, budget, rng),
            Failure::TimedOut => self.resend(on.timeout, None, moment, budget, rng),
        };
        next.into()
    }

    /// What comes after an answer's head. `None`: nothing is wrong with it as far as retries go.
    pub fn on_answer(
        &mut self,
        answer: &Answer,
        moment: &Moment,
        budget: &mut Budget,
        rng: &mut impl Rng,
    ) -> Option<Next> {
        let on = &self.policy.on;
        let listed = match answer.grpc {
            Some(code) => on.grpc.iter().any(|listed| u16::from(*listed) == code),
            None => on.statuses.iter().any(|range| range.contains(answer.status)),
        };
        // Whoever made the answer knows better than its status whether another attempt is of use.
        let retry = match answer.reason {
            Some(reason) => reason.retry(),
            None if listed => verdict::Retry::IfIdempotent,
            None => verdict::Retry::Never,
        };
        let next = match retry {
            verdict::Retry::Never => return None,
            verdict::Retry::IfUnsent if !self.replayable => Err(GiveUp::BodyTooLarge),
            verdict::Retry::IfUnsent => self.untouched(moment, rng),
            verdict::Retry::IfIdempotent => {
                let wanted = on.reset || answer.reason != Some(verdict::Reason::UpstreamReset);
                self.resend(wanted, answer.retry_after, moment, budget, rng)
            }
        };
        self.failed += 1;
        Some(next.into())
    }

    /// Attempts that failed so far.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// Whether this layer may send the request again after it was sent: then it is the one that names the attempt, and a
    /// copy of the request is worth keeping.
    pub fn may_resend(&self) -> bool {
        self.repeatable().is_ok()
    }

    /// Whether a second one may be under way beside it. `unsafe_methods` does not extend to this: it speaks of requests
    /// that failed, and this one has not.
    pub fn may_hedge(&self) -> bool {
        self.idempotent && self.replayable
    }

    fn untouched(&mut self, moment: &Moment, rng: &mut impl Rng) -> Result<Duration, GiveUp> {
        self.unsent += 1;
        if self.unsent >= MAX_ATTEMPTS {
            return Err(GiveUp::Exhausted);
        }
        let after = if self.unsent == 1 { Duration::ZERO } else { self.wait(rng) };
        in_time(after, moment)
    }

    fn resend(
        &mut self,
        wanted: bool,
        retry_after: Option<Duration>,
        moment: &Moment,
        budget: &mut Budget,
        rng: &mut impl Rng,
    ) -> Result<Duration, GiveUp> {
        if !wanted {
            return Err(GiveUp::Disabled);
        }
        self.repeatable()?;
        if self.resends >= self.policy.attempts {
            return Err(GiveUp::Exhausted);
        }
        if moment.breaker_open {
            return Err(GiveUp::BreakerOpen);
        }
        let told = retry_after.unwrap_or_default();
        if told > self.policy.max_retry_after {
            return Err(GiveUp::RetryAfterTooLong);
        }
        let after = in_time(self.wait(rng).max(told), moment)?;
        if !budget.withdraw(moment.now) {
            return Err(GiveUp::Budget);
        }
        self.resends += 1;
        Ok(after)
    }

    fn repeatable(&self) -> Result<(), GiveUp> {
        if self.policy.attempts == 0 {
            Err(GiveUp::Disabled)
        } else if self.outer_layer {
            Err(GiveUp::OuterLayer)
        } else if !(self.idempotent || self.policy.unsafe_methods) {
            Err(GiveUp::NotRepeatable)
        } else if !self.replayable {
            Err(GiveUp::BodyTooLarge)
        } else {
            Ok(())
        }
    }

    fn wait(&mut self, rng: &mut impl Rng) -> Duration {
        let backoff = &self.policy.backoff;
        let wait = backoff::wait(backoff.base, backoff.max, self.waits, rng);
        self.waits += 1;
        wait
    }
}

/// A wait to the deadline and beyond only makes a worse answer of the one there is.
fn in_time(after: Duration, moment: &Moment) -> Result<Duration, GiveUp> {
    match moment.left {
        Some(left) if after >= left => Err(GiveUp::NoTime),
        Some(_) | None => Ok(after),
    }
}

impl From<Result<Duration, GiveUp>> for Next {
    fn from(decided: Result<Duration, GiveUp>) -> Self {
        match decided {
            Ok(after) => Self::Again { after },
            Err(why) => Self::GiveUp(why),
        }
    }
}

impl GiveUp {
    pub const ALL: [Self; 9] = [
        Self::Disabled,
        Self::OuterLayer,
        Self::NotRepeatable,
        Self::BodyTooLarge,
        Self::Exhausted,
        Self::BreakerOpen,
        Self::RetryAfterTooLong,
        Self::NoTime,
        Self::Budget,
    ];

    /// As in the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::OuterLayer => "outer-layer",
            Self::NotRepeatable => "not-repeatable",
            Self::BodyTooLarge => "body-too-large",
            Self::Exhausted => "exhausted",
            Self::BreakerOpen => "breaker-open",
            Self::RetryAfterTooLong => "retry-after-too-long",
            Self::NoTime => "no-time",
            Self::Budget => "budget",
        }
    }
}
