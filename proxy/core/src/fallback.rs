//! What a caller gets when the upstream has nothing good to say, and in which order: a stale answer, then the
//! backup or the static answer.
//!
//! A stale answer is asked for whenever the upstream failed, with or without a [`Fallback`]: whether there is
//! one that may be used, its `stale-if-error` and the cache's policy decide
//! ([`crate::cache::Stale::for_error`]). The rest needs a policy that names the cause. What comes of the
//! backup is final: a backup's own fallback is not followed, so that two services that back each other up do
//! not send a request in circles.
//!
//! It says nothing about retries, which come before, and nothing about answers that have begun: those are
//! passed on.

use http::StatusCode;
use outrigger_proto::spec::{Answer, BackendKey, Fallback, FallbackOn, FallbackTo};

use crate::verdict::Reason;

/// Why there is nothing good, when all attempts are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// This proxy's verdict, or that of the endpoint's own proxy (`outrigger-reason`).
    Verdict(Reason),
    /// What the application answered.
    Status(StatusCode),
}

/// What to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// The cache, if it has something for this request.
    Stale,
    Backend(&'a BackendKey),
    Answer(&'a Answer),
}

/// The fields of [`FallbackOn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Breaker,
    NoEndpoints,
    Timeout,
    Failure,
}

/// What to try in turn until something answers; then, or if it is empty, the caller gets what there was.
pub fn steps<'a>(fallback: Option<&'a Fallback>, cause: Cause) -> impl Iterator<Item = Step<'a>> + use<'a> {
    let triggered = fallback.filter(|fallback| triggers(&fallback.on, cause));
    let stale = (triggered.is_some() || is_error(cause)).then_some(Step::Stale);
    let to = triggered.map(|fallback| match &fallback.to {
        FallbackTo::Backend(backend) => Step::Backend(backend),
        FallbackTo::Answer(answer) => Step::Answer(answer),
    });
    stale.into_iter().chain(to)
}

/// Whether a policy asks for something else on this.
pub fn triggers(on: &FallbackOn, cause: Cause) -> bool {
    match cause {
        Cause::Status(status) => on.statuses.iter().any(|range| range.contains(status.as_u16())),
        Cause::Verdict(reason) => match kind(reason) {
            Some(Kind::Breaker) => on.breaker,
            Some(Kind::NoEndpoints) => on.no_endpoints,
            Some(Kind::Timeout) => on.timeout,
            Some(Kind::Failure) => on.failure,
            None => false,
        },
    }
}

/// RFC 5861 section 4: no answer, or one of these.
fn is_error(cause: Cause) -> bool {
    match cause {
        Cause::Status(status) => matches!(status.as_u16(), 500 | 502 | 503 | 504),
        Cause::Verdict(reason) => kind(reason).is_some(),
    }
}

/// Nothing for what says that the request is not to be answered, or that nobody waits for an answer.
const fn kind(reason: Reason) -> Option<Kind> {
    match reason {
        Reason::AllEjected | Reason::BulkheadFull | Reason::QueueTimeout | Reason::Overloaded => {
            Some(Kind::Breaker)
        }
        Reason::NoEndpoints => Some(Kind::NoEndpoints),
        Reason::ConnectTimeout
        | Reason::RequestTimeout
        | Reason::ResponseTimeout
        | Reason::StreamIdle => Some(Kind::Timeout),
        Reason::ConnectFailed
        | Reason::IdentityMismatch
        | Reason::UpstreamHandshake
        | Reason::UpstreamReset
        | Reason::UpstreamProtocol
        // Said by the endpoint's proxy: it has no connection to offer.
        | Reason::NotReady
        | Reason::Draining => Some(Kind::Failure),
        Reason::Denied
        | Reason::MtlsRequired
        | Reason::HandshakeFailed
        | Reason::BadRequest
        | Reason::HeadersTooLarge
        | Reason::UriTooLong
        | Reason::CallerTimeout
        | Reason::Unsupported
        | Reason::Loop
        | Reason::NoRoute
        | Reason::EgressDenied
        | Reason::Unresolved
        | Reason::RateLimited
        | Reason::DeadlineExceeded
        | Reason::NotCached
        | Reason::Internal => None,
    }
}

#[cfg(test)]
mod tests;
