//! Instead, and from memory.

use http::{HeaderName, HeaderValue, StatusCode};

use super::super::{
    backend_key,
    fields::{Fields, milliseconds},
    status,
};
use crate::{
    limits::{MAX_ANSWER_BYTES, MAX_ANSWER_HEADERS, MAX_CACHE_BYTES},
    pb,
    spec::{Answer, Cache, Fallback, FallbackOn, FallbackTo, Key},
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::Fallback) -> Option<Fallback> {
    use pb::fallback::To;

    let on = from.on.map(|from| {
        fields.at("on", |fields| FallbackOn {
            breaker: from.breaker,
            no_endpoints: from.no_endpoints,
            timeout: from.timeout,
            failure: from.failure,
            statuses: status::ranges(fields, "statuses", from.statuses),
        })
    });
    let to = match from.to {
        Some(To::Backend(key)) => {
            fields.at("backend", |fields| backend_key(fields, &key)).map(FallbackTo::Backend)
        }
        Some(To::Answer(answer)) => {
            fields.at("answer", |fields| answer_from_pb(fields, answer)).map(FallbackTo::Answer)
        }
        None => {
            fields.refuse_at("to", "is missing, or unknown to this build");
            None
        }
    };
    Some(Fallback { on: on.unwrap_or_default(), to: to? })
}

fn answer_from_pb(fields: &mut Fields, from: pb::Answer) -> Option<Answer> {
    let status = fields.at("status", |fields| {
        let status = u16::try_from(fields.within(from.status, 200..=599)).ok()?;
        StatusCode::from_u16(status).ok().filter(|status| !status.is_informational())
    });
    let headers = fields.list("headers", from.headers, MAX_ANSWER_HEADERS, |fields, from| {
        let name = fields.at("name", |fields| {
            let name = fields.parse::<HeaderName>(&from.name)?;
            if !Answer::may_have(&name) {
                fields.refuse(format!("{name} is for the proxy to set"));
            }
            Some(name)
        });
        let value = fields.at("value", |fields| {
            let value = HeaderValue::from_bytes(&from.value);
            value.map_err(|_| fields.refuse("has a character that no header value has")).ok()
        });
        Some((name?, value?))
    });
    fields.at("body", |fields| {
        if from.body.len() > MAX_ANSWER_BYTES {
            fields.refuse(format!("has {} bytes, at most {MAX_ANSWER_BYTES} are taken", from.body.len()));
        }
        if !from.body.is_empty() && status.is_some_and(|status| !Answer::may_have_body(status)) {
            fields.refuse(format!("is there: an answer {} has none", from.status));
        }
    });
    Some(Answer { status: status?, headers, body: from.body.into() })
}

pub(super) fn cache_from_pb(fields: &mut Fields, from: pb::Cache) -> Cache {
    let max_bytes = fields.at("max_bytes", |fields| fields.within(from.max_bytes, 1..=MAX_CACHE_BYTES));
    let max_object_bytes = fields.at("max_object_bytes", |fields| {
        if from.max_object_bytes == 0 {
            fields.refuse("is 0");
        } else if from.max_object_bytes > from.max_bytes {
            fields.refuse("is above max_bytes");
        }
        from.max_object_bytes
    });
    let stale_if_error = fields.at("stale_if_error_ms", |fields| fields.timeout(from.stale_if_error_ms));
    Cache { max_bytes, max_object_bytes, stale_if_error }
}

// === to the wire ===

pub(super) fn to_pb(from: &Fallback) -> pb::Fallback {
    use pb::fallback::To;

    let to = match &from.to {
        FallbackTo::Backend(key) => To::Backend(Key::Backend(key.clone()).to_string()),
        FallbackTo::Answer(answer) => To::Answer(pb::Answer {
            status: answer.status.as_u16().into(),
            headers: answer
                .headers
                .iter()
                .map(|(name, value)| pb::HeaderField {
                    name: name.to_string(),
                    value: value.as_bytes().to_vec(),
                })
                .collect(),
            body: answer.body.to_vec(),
        }),
    };
    pb::Fallback {
        on: Some(pb::FallbackOn {
            breaker: from.on.breaker,
            no_endpoints: from.on.no_endpoints,
            timeout: from.on.timeout,
            failure: from.on.failure,
            statuses: status::ranges_to_pb(&from.on.statuses),
        }),
        to: Some(to),
    }
}

pub(super) fn cache_to_pb(from: Cache) -> pb::Cache {
    pb::Cache {
        max_bytes: from.max_bytes,
        max_object_bytes: from.max_object_bytes,
        stale_if_error_ms: milliseconds(from.stale_if_error),
    }
}
