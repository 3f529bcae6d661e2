//! The fields that a format string can name, and where their values are.
//!
//! Names and meanings are those of the JSON lines; `docs/access-log.md` lists them. Tests hold the three together.

use std::{net::SocketAddr, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_core::verdict::Reason;

use super::{encode, json};
use crate::{
    config::variables::edits,
    telemetry::{ConnectionRecord, RequestRecord, Traced, Try},
};

pub(super) struct Field {
    pub name: &'static str,
    pub request: for<'a> fn(&'a RequestRecord<'a>) -> Value<'a>,
    pub connection: for<'a> fn(&'a ConnectionRecord<'a>) -> Value<'a>,
}

#[derive(Clone, Copy)]
pub(super) enum Value<'a> {
    Nothing,
    /// When the line is written.
    Time,
    /// Never empty.
    Text(&'a str),
    Number(u64),
    Address(SocketAddr),
    /// In 16 digits.
    Id(u64),
    /// In 32 digits.
    LongId(u128),
    Tries(&'a [Try]),
}

macro_rules! fields {
    ($($name:ident: $request:expr, $connection:expr;)*) => {
        pub(super) static ALL: &[Field] =
            &[$(Field { name: stringify!($name), request: $request, connection: $connection }),*];
    };
}

// The name; of a request; of a connection.
fields! {
    time: |_| Value::Time, |_| Value::Time;
    kind: |_| Value::Text("request"), |_| Value::Text("connection");
    direction: |r| Value::Text(r.direction.name()), |c| Value::Text(c.direction.name());
    protocol: |r| Value::Text(r.protocol.name()), |c| Value::Text(c.protocol.name());
    method: |r| text(r.method), |_| Value::Nothing;
    authority: |r| text(r.authority), |c| text(c.authority);
    path: |r| text(json::without_query(r.path)), |_| Value::Nothing;
    status: |r| Value::Number(r.status.into()), |_| Value::Nothing;
    grpc_status: |r| number(r.grpc_status), |_| Value::Nothing;
    reason: |r| word(r.reason.map(Reason::as_str)), |c| word(c.reason.map(Reason::as_str));
    detail: |r| text(r.detail), |c| text(c.detail);
    peer: |r| word(r.peer.map(SpiffeId::as_str)), |c| word(c.peer.map(SpiffeId::as_str));
    security: |r| text(r.security), |c| text(c.security);
    caller: |r| Value::Address(r.caller), |c| Value::Address(c.caller);
    service: |r| text(r.service), |c| text(c.service);
    route: |r| text(r.route), |_| Value::Nothing;
    endpoint: |r| address(r.endpoint), |c| address(c.endpoint);
    received: |r| Value::Number(r.received), |c| Value::Number(c.received);
    sent: |r| Value::Number(r.sent), |c| Value::Number(c.sent);
    connect_us: |r| json::connect(r.tries).map_or(Value::Nothing, micros), |_| Value::Nothing;
    connected_us: |_| Value::Nothing, |c| micros(c.connected);
    first_byte_us: |r| micros(r.first_byte), |_| Value::Nothing;
    duration_us: |r| micros(r.duration), |c| micros(c.duration);
    attempts: |r| Value::Number(r.attempts.into()), |c| Value::Number(c.attempts.into());
    tries: |r| tries(r.tries), |_| Value::Nothing;
    queued_us: |r| unless_zero(r.handled.queued), |_| Value::Nothing;
    gave_up: |r| word(r.handled.gave_up), |_| Value::Nothing;
    hedged: |r| word(r.handled.hedged), |_| Value::Nothing;
    fallback: |r| word(r.handled.fallback), |_| Value::Nothing;
    cache: |r| word(r.handled.cache), |_| Value::Nothing;
    limit: |r| text(r.handled.limit), |_| Value::Nothing;
    trace: |r| trace(r.trace), |c| trace(c.trace);
    span: |r| span(r.trace), |c| span(c.trace);
    sampled: |r| sampled(r.trace), |c| sampled(c.trace);
    id: |r| Value::Id(r.id), |c| Value::Id(c.id);
}

/// The field of that name, or what to tell the user.
pub(super) fn named(name: &str) -> Result<&'static Field, String> {
    if let Some(field) = ALL.iter().find(|field| field.name == name) {
        return Ok(field);
    }
    let near = match nearest(name) {
        Some(near) => format!("did you mean {near}? "),
        None => String::new(),
    };
    let known: Vec<&str> = ALL.iter().map(|field| field.name).collect();
    Err(format!("there is no field {name:?}; {near}the fields are {}", known.join(" ")))
}

/// The known name that begins like it, or the one with the fewest edits, if at least half of what was typed is right.
fn nearest(name: &str) -> Option<&'static str> {
    let begins = |known: &&str| name.len() > 2 && known.starts_with(name);
    if let Some(longer) = ALL.iter().map(|field| field.name).find(begins) {
        return Some(longer);
    }
    let (edits, near) = ALL.iter().map(|field| (edits(name, field.name), field.name)).min()?;
    (edits * 2 <= name.len()).then_some(near)
}

// ---- values ---------------------------------------------------------------------------------------------------------

fn text(text: &str) -> Value<'_> {
    if text.is_empty() { Value::Nothing } else { Value::Text(text) }
}

fn word(word: Option<&str>) -> Value<'_> {
    word.map_or(Value::Nothing, text)
}

fn number<'a>(number: Option<u16>) -> Value<'a> {
    number.map_or(Value::Nothing, |number| Value::Number(number.into()))
}

fn address<'a>(address: Option<SocketAddr>) -> Value<'a> {
    address.map_or(Value::Nothing, Value::Address)
}

fn micros<'a>(time: Duration) -> Value<'a> {
    Value::Number(encode::micros(time))
}

fn unless_zero<'a>(time: Duration) -> Value<'a> {
    if time.is_zero() { Value::Nothing } else { micros(time) }
}

fn tries(tries: &[Try]) -> Value<'_> {
    if tries.is_empty() { Value::Nothing } else { Value::Tries(tries) }
}

fn trace<'a>(trace: Option<Traced>) -> Value<'a> {
    trace.map_or(Value::Nothing, |traced| Value::LongId(traced.trace.0.get()))
}

fn span<'a>(trace: Option<Traced>) -> Value<'a> {
    trace.map_or(Value::Nothing, |traced| Value::Id(traced.span.0.get()))
}

fn sampled<'a>(trace: Option<Traced>) -> Value<'a> {
    trace.filter(|traced| traced.sampled).map_or(Value::Nothing, |_| Value::Text("true"))
}
