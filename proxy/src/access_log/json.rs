//! Lines of JSON, by hand, because a line is written for every request.
//!
//! Fields without a value are left out. Times are microseconds. The list of fields is in `docs/access-log.md`; a test
//! holds it against the fields of a format string (`field.rs`), so that both have the same.

use std::{
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use outrigger_core::verdict::Reason;

use super::encode::{self, CUT, Clock, MAX_FIELD_BYTES};
use crate::telemetry::{ConnectionRecord, Direction, RequestRecord, Traced, Try};

/// A field's name with all that surrounds it: one copy of a known length.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// What is the same in many lines, in one copy.
macro_rules! begin {
    ($direction:expr, $kind:literal) => {
        match $direction {
            Direction::Inbound => concat!(key!("kind"), "\"", $kind, "\"", key!("direction"), "\"inbound\""),
            Direction::Outbound => {
                concat!(key!("kind"), "\"", $kind, "\"", key!("direction"), "\"outbound\"")
            }
        }
    };
}

pub(super) fn request(line: &mut Vec<u8>, clock: &mut Clock, now: SystemTime, record: &RequestRecord<'_>) {
    let mut line = Line::begin(line, clock, now);
    line.key(begin!(record.direction, "request"));
    line.plain(key!("protocol"), record.protocol.name());
    line.text(key!("method"), record.method);
    line.text(key!("authority"), record.authority);
    line.text(key!("path"), without_query(record.path));
    line.number(key!("status"), record.status.into());
    if let Some(status) = record.grpc_status {
        line.number(key!("grpc_status"), status.into());
    }
    line.why(record.reason, record.detail);
    if let Some(peer) = record.peer {
        // Of letters, digits and a few marks, and shorter than a field may be.
        line.plain(key!("peer"), peer.as_str());
    }
    line.text(key!("security"), record.security);
    line.address(key!("caller"), record.caller);
    line.text(key!("service"), record.service);
    line.text(key!("route"), record.route);
    if let Some(endpoint) = record.endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    line.number(key!("received"), record.received);
    line.number(key!("sent"), record.sent);
    if let Some(connect) = connect(record.tries) {
        line.micros(key!("connect_us"), connect);
    }
    line.micros(key!("first_byte_us"), record.first_byte);
    line.micros(key!("duration_us"), record.duration);
    line.number(key!("attempts"), record.attempts.into());
    // A single one has nothing to say that the line does not have already.
    if record.tries.len() > 1 || record.attempts > 1 {
        line.tries(record.tries);
    }
    let handled = &record.handled;
    if !handled.queued.is_zero() {
        line.micros(key!("queued_us"), handled.queued);
    }
    let words = [
        (key!("gave_up"), handled.gave_up),
        (key!("hedged"), handled.hedged),
        (key!("fallback"), handled.fallback),
        (key!("cache"), handled.cache),
    ];
    for (key, word) in words {
        if let Some(word) = word {
            line.plain(key, word);
        }
    }
    line.text(key!("limit"), handled.limit);
    line.end(record.trace, record.id);
}

pub(super) fn connection(
    line: &mut Vec<u8>,
    clock: &mut Clock,
    now: SystemTime,
    record: &ConnectionRecord<'_>,
) {
    let mut line = Line::begin(line, clock, now);
    line.key(begin!(record.direction, "connection"));
    line.plain(key!("protocol"), record.protocol.name());
    line.text(key!("authority"), record.authority);
    line.why(record.reason, record.detail);
    if let Some(peer) = record.peer {
        line.plain(key!("peer"), peer.as_str());
    }
    line.text(key!("security"), record.security);
    line.address(key!("caller"), record.caller);
    line.text(key!("service"), record.service);
    if let Some(endpoint) = record.endpoint {
        line.address(key!("endpoint"), endpoint);
    }
    line.number(key!("received"), record.received);
    line.number(key!("sent"), record.sent);
    line.micros(key!("connected_us"), record.connected);
    line.micros(key!("duration_us"), record.duration);
    line.number(key!("attempts"), record.attempts.into());
    line.end(record.trace, record.id);
}

/// Queries hold what is meant for the application alone, such as passwords and tokens.
pub(super) fn without_query(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// How long the last try waited for its connection; `None`: one was there, or none was needed.
pub(super) fn connect(tries: &[Try]) -> Option<Duration> {
    tries.last().map(|last| last.connect).filter(|connect| !connect.is_zero())
}

struct Line<'a>(&'a mut Vec<u8>);

impl<'a> Line<'a> {
    fn begin(line: &'a mut Vec<u8>, clock: &mut Clock, now: SystemTime) -> Self {
        line.extend_from_slice(b"{\"time\":\"");
        clock.write(line, now);
        line.push(b'"');
        Self(line)
    }

    // What is inlined is the copy of a key, whose length the compiler then knows.

    #[inline(always)]
    fn key(&mut self, key: &'static str) {
        self.0.extend_from_slice(key.as_bytes());
    }

    /// A text that needs no escape, whoever sent what.
    #[inline(always)]
    fn plain(&mut self, key: &'static str, value: &str) {
        self.key(key);
        self.quoted(value);
    }

    /// A text from outside.
    #[inline(always)]
    fn text(&mut self, key: &'static str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            self.string(value);
        }
    }

    #[inline(always)]
    fn number(&mut self, key: &'static str, value: u64) {
        self.key(key);
        encode::number(self.0, value);
    }

    #[inline(always)]
    fn micros(&mut self, key: &'static str, value: Duration) {
        self.number(key, encode::micros(value));
    }

    #[inline(always)]
    fn address(&mut self, key: &'static str, address: SocketAddr) {
        self.key(key);
        encode::quoted_address(self.0, address);
    }

    fn why(&mut self, reason: Option<Reason>, detail: &str) {
        if let Some(reason) = reason {
            self.plain(key!("reason"), reason.as_str());
        }
        self.text(key!("detail"), detail);
    }

    #[cold]
    fn tries(&mut self, tries: &[Try]) {
        if tries.is_empty() {
            return;
        }
        self.key(key!("tries"));
        for (index, one) in tries.iter().enumerate() {
            self.key(if index == 0 { "[{\"endpoint\":" } else { ",{\"endpoint\":" });
            encode::quoted_address(self.0, one.endpoint);
            self.micros(key!("began_us"), one.began);
            if !one.connect.is_zero() {
                self.micros(key!("connect_us"), one.connect);
            }
            self.micros(key!("lasted_us"), one.lasted);
            if one.hedge {
                self.key(concat!(key!("hedge"), "true"));
            }
            self.key(concat!(key!("ended"), "\""));
            encode::ended(self.0, one.ended);
            self.key("\"}");
        }
        self.0.push(b']');
    }

    fn string(&mut self, value: &str) {
        if value.len() <= MAX_FIELD_BYTES && encode::is_plain(value.as_bytes()) {
            return self.quoted(value);
        }
        let (value, is_cut) = encode::cut(value);
        self.0.push(b'"');
        encode::escape(self.0, value, None);
        if is_cut {
            self.0.extend_from_slice(CUT.as_bytes());
        }
        self.0.push(b'"');
    }

    fn quoted(&mut self, value: &str) {
        self.0.reserve(value.len() + 2);
        self.0.push(b'"');
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(b'"');
    }

    fn end(&mut self, trace: Option<Traced>, id: u64) {
        if let Some(traced) = trace {
            self.key(concat!(key!("trace"), "\""));
            encode::hex_u128(self.0, traced.trace.0.get());
            self.key(concat!("\"", key!("span"), "\""));
            encode::hex_u64(self.0, traced.span.0.get());
            self.0.push(b'"');
            if traced.sampled {
                self.key(concat!(key!("sampled"), "true"));
            }
        }
        self.key(concat!(key!("id"), "\""));
        encode::hex_u64(self.0, id);
        self.0.extend_from_slice(b"\"}\n");
    }
}
