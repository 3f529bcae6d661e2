//! W3C Trace Context, level 2, and the limits of what travels beside it.
//!
//! ```text
//!   traceparent: 00-{32 hex digits}-{16 hex digits}-{2 hex digits}
//!                version  trace          span          flags
//! ```
//!
//! A later version may have more behind that, after a dash; it is answered with version 00, as is specified. The members
//! of `tracestate` and `baggage` are only counted: several lines are passed on as the lines they are.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    Cause, Context, Dropped, Passage, SpanId, TraceId,
    context::Told,
    hex,
    lines::{List, Once, ows},
    mint::Text,
};

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(super) const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// What everybody has to carry of a `tracestate`, and the most that a list may have.
const TRACESTATE_BYTES: usize = 512;
const TRACESTATE_MEMBERS: usize = 32;
/// Likewise of a `baggage`. OpenTelemetry's SDKs have the same limit of bytes, and of members 64 or 180.
const BAGGAGE_BYTES: usize = 8192;
const BAGGAGE_MEMBERS: usize = 64;

const SAMPLED: u8 = 1;
const RANDOM: u8 = 2;

/// `00-`, ids and flags.
const LENGTH: usize = 55;

pub(super) fn read(traceparent: Once<'_>) -> Told {
    match traceparent {
        Once::Absent => Told::Nothing,
        Once::Value(text) => parse(text).map_or_else(Told::Malformed, Told::Context),
        Once::Repeated => Told::Malformed(Cause::Repeated),
    }
}

fn parse(text: &[u8]) -> Result<Context, Cause> {
    let (known, later) = text.split_at_checked(LENGTH).ok_or(Cause::Shape)?;
    let version = hex::parse_byte(&known[..2]).filter(|version| *version != 0xff).ok_or(Cause::Version)?;
    let more = if version == 0 { later.is_empty() } else { matches!(later, [] | [b'-', ..]) };
    if !more || [2, 35, 52].iter().any(|at| known[*at] != b'-') {
        return Err(Cause::Shape);
    }
    let trace = TraceId::parse(&known[3..35]).ok_or(Cause::TraceId)?;
    let span = SpanId::parse(&known[36..52]).ok_or(Cause::SpanId)?;
    let flags = hex::parse_byte(&known[53..]).ok_or(Cause::Flags)?;
    let sampled = Some(flags & SAMPLED != 0);
    Ok(Context { trace, span, sampled, debug: false, random: flags & RANDOM != 0 })
}

pub(super) fn write(context: &Context) -> Text {
    let mut flags = 0;
    if context.sampled == Some(true) {
        flags |= SAMPLED;
    }
    if context.random {
        flags |= RANDOM;
    }
    let (high, low) = context.trace.halves();
    let mut text = Text::default();
    text.push(b"00-");
    text.push(&hex::format(high));
    text.push(&hex::format(low));
    text.push(b"-");
    text.push(&hex::format(context.span.0.get()));
    text.push(&[b'-', b'0', b'0' + flags]);
    text
}

pub(super) fn tracestate(list: List, fields: &HeaderMap) -> Passage {
    measure(list, fields, &TRACESTATE, TRACESTATE_BYTES, TRACESTATE_MEMBERS)
}

pub(super) fn baggage(list: List, fields: &HeaderMap) -> Passage {
    measure(list, fields, &BAGGAGE, BAGGAGE_BYTES, BAGGAGE_MEMBERS)
}

fn measure(
    list: List,
    fields: &HeaderMap,
    name: &HeaderName,
    most_bytes: usize,
    most_members: usize,
) -> Passage {
    if list.lines == 0 {
        return Passage::Absent;
    }
    if list.bytes > most_bytes {
        return Passage::Dropped(Dropped::TooLong);
    }
    // Members may be empty, and then they are none; that is looked at only where it matters.
    if list.lines + list.commas > most_members {
        let lines = fields.get_all(name).iter().map(HeaderValue::as_bytes);
        let members = lines.flat_map(|line| line.split(|byte| *byte == b','));
        if members.filter(|member| !ows(member).is_empty()).count() > most_members {
            return Passage::Dropped(Dropped::TooMany);
        }
    }
    Passage::Kept
}
