//! Outbound step: what a caller gets in place of a failure. The order is decided in `core::fallback`.

use std::rc::Rc;

use http::{HeaderMap, HeaderValue, Method, Response, header};
use outrigger_core::{
    fallback::Cause,
    headers,
    verdict::{Reason, Retry},
};
use outrigger_proto::spec;

use super::{attempt::Answered, cache};
use crate::{
    error::Error,
    http::{body::ResponseBody, exchange::Exchange},
};

/// What the caller gets in place of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Stale,
    Backend,
    Answer,
}

/// What there was, as fallbacks look at it.
pub fn cause(result: Result<&Answered, &Error>) -> Cause {
    match result {
        Err(error) => Cause::Verdict(error.reason()),
        Ok(answered) => match answered.answer.reason {
            Some(reason) => Cause::Verdict(reason),
            None => Cause::Status(answered.response.status()),
        },
    }
}

/// Whether nobody can have acted on the request.
pub fn is_untouched(cause: Cause) -> bool {
    let Cause::Verdict(reason) = cause else { return false };
    let shed = matches!(
        reason,
        Reason::AllEjected | Reason::BulkheadFull | Reason::QueueTimeout | Reason::NoEndpoints
    );
    shed || reason.retry() == Retry::IfUnsent
}

/// The same answer, which says what it is and in place of what: to its caller it looks like a success.
pub fn say(
    exchange: &Exchange,
    kind: Kind,
    cause: Cause,
    mut answer: Response<ResponseBody>,
) -> Response<ResponseBody> {
    exchange.notes.fallback.set(Some(kind.label()));
    let told = match cause {
        Cause::Verdict(reason) => format!("{};cause={reason}", kind.label()),
        Cause::Status(status) => format!("{};cause={}", kind.label(), status.as_str()),
    };
    if let Ok(told) = HeaderValue::try_from(told) {
        answer.headers_mut().insert(headers::FALLBACK, told);
    }
    answer
}

/// The answer that the policy has ready.
pub fn answer(exchange: &Rc<Exchange>, answer: &spec::Answer) -> Response<ResponseBody> {
    let mut fields = HeaderMap::with_capacity(answer.headers.len() + 1);
    for (name, value) in &answer.headers {
        fields.append(name.clone(), value.clone());
    }
    fields.insert(header::CONTENT_LENGTH, answer.body.len().into());
    let body = if exchange.method == Method::HEAD { Vec::new() } else { vec![answer.body.clone()] };
    cache::respond(exchange, answer.status, fields, body)
}

impl Kind {
    /// In the header, the access log and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Backend => "backend",
            Self::Answer => "answer",
        }
    }
}
