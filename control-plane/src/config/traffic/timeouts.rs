//! How long, field by field.

use std::time::Duration;

use outrigger_proto::spec::Timeouts;

use super::super::notes::Notes;
use crate::{kinds, yaml::Path};

/// `None`: not said. `Some(None)`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TimeoutsWritten {
    pub connect: Option<Duration>,
    pub request: Option<Option<Duration>>,
    pub per_try: Option<Option<Duration>>,
    pub response_header: Option<Option<Duration>>,
    pub stream_idle: Option<Option<Duration>>,
    pub idle: Option<Option<Duration>>,
    pub max_connection_age: Option<Option<Duration>>,
}

impl TimeoutsWritten {
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            connect: self.connect.or(other.connect),
            request: self.request.or(other.request),
            per_try: self.per_try.or(other.per_try),
            response_header: self.response_header.or(other.response_header),
            stream_idle: self.stream_idle.or(other.stream_idle),
            idle: self.idle.or(other.idle),
            max_connection_age: self.max_connection_age.or(other.max_connection_age),
        }
    }

    pub(super) fn filled(self) -> Timeouts {
        let default = Timeouts::default();
        Timeouts {
            connect: self.connect.unwrap_or(default.connect),
            request: self.request.unwrap_or(default.request),
            per_try: self.per_try.unwrap_or(default.per_try),
            response_header: self.response_header.unwrap_or(default.response_header),
            stream_idle: self.stream_idle.unwrap_or(default.stream_idle),
            idle: self.idle.unwrap_or(default.idle),
            max_connection_age: self.max_connection_age.unwrap_or(default.max_connection_age),
        }
    }
}

pub(super) fn from_kind(path: &Path, written: &kinds::Timeouts, notes: &mut Notes<'_>) -> TimeoutsWritten {
    let connect = written.connect.as_ref().and_then(|text| {
        let path = path.key("connect");
        let connect = notes.duration(&path, text)?;
        if connect.is_zero() {
            notes.note(&path, "cannot be 0s: a connection attempt needs an end");
        }
        Some(connect)
    });
    let mut limit = |field: &str, text: &Option<String>| {
        let duration = notes.duration(&path.key(field), text.as_deref()?)?;
        Some((!duration.is_zero()).then_some(duration))
    };
    let timeouts = TimeoutsWritten {
        connect,
        request: limit("request", &written.request),
        per_try: limit("perTry", &written.per_try),
        response_header: limit("responseHeader", &written.response_header),
        stream_idle: limit("streamIdle", &written.stream_idle),
        idle: limit("idle", &written.idle),
        max_connection_age: limit("maxConnectionAge", &written.max_connection_age),
    };
    if timeouts == TimeoutsWritten::default() && !notes.any() {
        notes.note(path, "says nothing: want one of its fields");
    }
    // With the defaults, against which a lone value is held too. Where a less specific policy says more, `check` looks
    // at the two together.
    if let Some((field, reason)) = contradiction(&timeouts, &timeouts.filled()) {
        notes.note(&path.key(field), reason);
    }
    timeouts
}

/// What can never run out because something else always runs out before. `said`: whose field is to be blamed; `all`:
/// what is in force.
pub(in super::super) fn contradiction(
    said: &TimeoutsWritten,
    all: &Timeouts,
) -> Option<(&'static str, String)> {
    let pairs = [
        ("perTry", said.per_try, all.per_try, "request", said.request, all.request),
        ("responseHeader", said.response_header, all.response_header, "request", said.request, all.request),
        ("responseHeader", said.response_header, all.response_header, "perTry", said.per_try, all.per_try),
    ];
    pairs.into_iter().find_map(|(inner, said_inner, less, outer, said_outer, more)| {
        let (less, more) = less.zip(more)?;
        let reason = |a: Duration, how: &str, other: &str, b: Duration| {
            format!("{}ms is {how} {other}, {}ms: {inner} could never run out", a.as_millis(), b.as_millis())
        };
        if less <= more {
            None
        } else if said_inner.is_some() {
            Some((inner, reason(less, "above", outer, more)))
        } else {
            said_outer.map(|_| (outer, reason(more, "below", inner, less)))
        }
    })
}
