//! Instead, and from memory.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use outrigger_proto::{
    limits::{MAX_ANSWER_BYTES, MAX_ANSWER_HEADERS, MAX_CACHE_BYTES, MAX_STATUS_RANGES},
    spec::{Answer, Cache, FallbackOn},
};

use super::super::{BackendRef, ObjectName, notes::Notes, values::status_range};
use crate::{kinds, yaml::Path};

#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub on: FallbackOn,
    pub to: Instead,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Instead {
    /// A port is not resolved yet where the service has only one.
    Backend(BackendRef),
    Answer(Answer),
}

pub(super) fn from_kind(
    path: &Path,
    policy: &ObjectName,
    written: kinds::Fallback,
    notes: &mut Notes<'_>,
) -> Option<Fallback> {
    let kinds::Fallback { on, backend, answer } = written;
    let on = on.map(|on| fallback_on(&path.key("on"), &on, notes)).unwrap_or_default();
    let one = notes.exactly_one(path, &[("backend", backend.is_some()), ("answer", answer.is_some())]);
    let answer = answer.map(|written| static_answer(&path.key("answer"), written, notes));
    let backend = backend.map(|written| {
        let path = path.key("backend");
        let kinds::FallbackBackend { name, namespace, port } = written;
        let namespace = match namespace {
            Some(namespace) => notes.name(&path.key("namespace"), &namespace),
            None => Some(policy.namespace.clone()),
        };
        let name = notes.name(&path.key("name"), &name);
        let port = port.and_then(|port| notes.port(&path.key("port"), port));
        Some(BackendRef { service: ObjectName { namespace: namespace?, name: name? }, port, weight: 1 })
    });
    if !one {
        return None;
    }
    let to = match backend {
        Some(backend) => Instead::Backend(backend?),
        None => Instead::Answer(answer??),
    };
    Some(Fallback { on, to })
}

fn fallback_on(path: &Path, written: &[String], notes: &mut Notes<'_>) -> FallbackOn {
    let mut on = FallbackOn {
        breaker: false,
        no_endpoints: false,
        timeout: false,
        failure: false,
        statuses: Vec::new(),
    };
    if written.is_empty() {
        notes.note(path, "is empty: it would never be used");
    }
    for (index, text) in written.iter().enumerate() {
        let path = path.index(index);
        let word = match text.as_str() {
            "breaker" => &mut on.breaker,
            "no-endpoints" => &mut on.no_endpoints,
            "timeout" => &mut on.timeout,
            "failure" => &mut on.failure,
            text if text.starts_with(|first: char| first.is_ascii_digit()) => {
                match status_range(text) {
                    Ok(range) => on.statuses.push(range),
                    Err(reason) => notes.note(&path, reason),
                }
                continue;
            }
            text => {
                let words = ["breaker", "no-endpoints", "timeout", "failure", "500-599"];
                notes.note(&path, crate::yaml::unknown(text, &words));
                continue;
            }
        };
        if std::mem::replace(word, true) {
            notes.note(&path, format!("{text} is listed twice"));
        }
    }
    notes.at_most(path, on.statuses.len(), MAX_STATUS_RANGES);
    on
}

fn static_answer(path: &Path, written: kinds::Answer, notes: &mut Notes<'_>) -> Option<Answer> {
    let kinds::Answer { status, headers, body } = written;
    let number: u16 = notes.number(&path.key("status"), Some(status), 200, (200, 599));
    let status = StatusCode::from_u16(number).ok()?;
    let at = path.key("headers");
    notes.at_most(&at, headers.len(), MAX_ANSWER_HEADERS);
    let mut fields: Vec<(HeaderName, HeaderValue)> = Vec::new();
    for (name, value) in &headers {
        let path = at.key(name);
        let Some(name) = notes.header(&path, name) else { continue };
        if !Answer::may_have(&name) {
            notes.note(&path, format!("{name} is for the proxy to set"));
        } else if fields.iter().any(|(known, _)| *known == name) {
            notes.note(&path, format!("{name} is set twice"));
        }
        match HeaderValue::from_str(value) {
            Ok(value) => fields.push((name, value)),
            Err(_) => notes.note(&path, format!("{value:?} has a character that no header value has")),
        }
    }
    let body = Bytes::from(body.unwrap_or_default());
    let at = path.key("body");
    if body.len() > MAX_ANSWER_BYTES {
        notes.note(&at, format!("has {} bytes; at most {MAX_ANSWER_BYTES} are taken", body.len()));
    }
    if !body.is_empty() && !Answer::may_have_body(status) {
        notes.note(&at, format!("cannot be there: an answer {number} has no body"));
    }
    Some(Answer { status, headers: fields, body })
}

pub(super) fn cache(path: &Path, written: &kinds::Cache, notes: &mut Notes<'_>) -> Cache {
    let default = Cache::default();
    let most = i64::try_from(MAX_CACHE_BYTES).unwrap_or(i64::MAX);
    let max_bytes = notes.number(&path.key("maxBytes"), written.max_bytes, default.max_bytes, (1, most));
    let object = path.key("maxObjectBytes");
    let of_object = default.max_object_bytes.min(max_bytes);
    let max_object_bytes = notes.number(&object, written.max_object_bytes, of_object, (1, most));
    if max_object_bytes > max_bytes {
        notes.note(&object, format!("{max_object_bytes} is above maxBytes, {max_bytes}"));
    }
    let stale_if_error = notes.optional_time(&path.key("staleIfError"), written.stale_if_error.as_deref());
    Cache { max_bytes, max_object_bytes, stale_if_error }
}
