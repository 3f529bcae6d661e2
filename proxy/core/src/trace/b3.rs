//! B3, Zipkin's formats.
//!
//! ```text
//!   b3: {32 or 16 hex digits}-{16 hex digits}[-{1, 0 or d}[-{16 hex digits}]]    or just    b3: {1, 0 or d}
//!       trace                  span            decision     the span's parent
//!
//!   x-b3-traceid, x-b3-spanid, x-b3-parentspanid, x-b3-sampled: 1 or 0, x-b3-flags: 1    the same, d being the last
//! ```
//!
//! Without a decision, the receiver decides. A decision may come without ids: whoever receives it makes them.
//!
//! The parent of the caller's span is read to see that it is one, and not sent on: what was a parent to the caller's span
//! is none to ours, and the backend knows of it from the span itself. A trace id that fits into 16 digits is written in
//! 16, so that a program which knows no longer ones gets back what it sent.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    Cause, Context, Mint, SpanId, TraceId,
    context::{Decided, Told},
    hex,
    lines::{Multi, Once},
    mint::Text,
};

pub(super) const B3: HeaderName = HeaderName::from_static("b3");
const TRACE: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

const YES: HeaderValue = HeaderValue::from_static("1");
const NO: HeaderValue = HeaderValue::from_static("0");

/// With all four parts.
const LONGEST: usize = 68;

const DEBUG: Decided = Decided { sampled: Some(true), debug: true };

pub(super) fn read_single(b3: Once<'_>) -> Told {
    match b3 {
        Once::Absent => Told::Nothing,
        Once::Value(text) => match decision(text) {
            Some(decided) => Told::Decided(decided),
            None => parse_single(text).map_or_else(Told::Malformed, Told::Context),
        },
        Once::Repeated => Told::Malformed(Cause::Repeated),
    }
}

fn parse_single(text: &[u8]) -> Result<Context, Cause> {
    if text.len() > LONGEST {
        return Err(Cause::Shape);
    }
    let mut parts = text.split(|byte| *byte == b'-');
    let mut part = || parts.next();
    let trace = part().and_then(trace_id).ok_or(Cause::TraceId)?;
    let span = part().ok_or(Cause::Incomplete)?;
    let span = SpanId::parse(span).ok_or(Cause::SpanId)?;
    let decided = match part() {
        Some(text) => decision(text).ok_or(Cause::Sampled)?,
        None => Decided::default(),
    };
    if part().is_some_and(|parent| SpanId::parse(parent).is_none()) || part().is_some() {
        return Err(Cause::Shape);
    }
    Ok(context(trace, span, decided))
}

pub(super) fn read_multi(fields: Multi<'_>) -> Told {
    let sampled = match fields.sampled {
        None => None,
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        Some(_) => return Told::Malformed(Cause::Sampled),
    };
    let decided = match fields.flags {
        Some(b"1") => DEBUG,
        _ => Decided { sampled, debug: false },
    };
    match (fields.trace, fields.span) {
        (None, None) if decided == Decided::default() => Told::Nothing,
        (None, None) => Told::Decided(decided),
        (Some(trace), Some(span)) => match (trace_id(trace), SpanId::parse(span)) {
            (Some(trace), Some(span)) => Told::Context(context(trace, span, decided)),
            (None, _) => Told::Malformed(Cause::TraceId),
            (_, None) => Told::Malformed(Cause::SpanId),
        },
        _ => Told::Malformed(Cause::Incomplete),
    }
}

pub(super) fn write_single(context: &Context) -> Text {
    let mut text = trace_text(context.trace);
    text.push(b"-");
    text.push(&hex::format(context.span.0.get()));
    match context.sampled {
        Some(true) if context.debug => text.push(b"-d"),
        Some(true) => text.push(b"-1"),
        Some(false) => text.push(b"-0"),
        None => {}
    }
    text
}

pub(super) fn write_multi(context: &Context, mint: &mut Mint, fields: &mut HeaderMap) {
    mint.write(fields, TRACE, &trace_text(context.trace));
    let mut span = Text::default();
    span.push(&hex::format(context.span.0.get()));
    mint.write(fields, SPAN, &span);
    fields.remove(PARENT);
    // Debug implies the decision, which is then not to be sent.
    let debug = context.debug && context.sampled == Some(true);
    let sampled = context.sampled.filter(|_| !debug).map(|sampled| if sampled { YES } else { NO });
    set(fields, SAMPLED, sampled);
    set(fields, FLAGS, debug.then_some(YES));
}

fn set(fields: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>) {
    match value {
        Some(value) => fields.insert(name, value),
        None => fields.remove(name),
    };
}

fn decision(text: &[u8]) -> Option<Decided> {
    match text {
        b"1" => Some(Decided { sampled: Some(true), debug: false }),
        b"0" => Some(Decided { sampled: Some(false), debug: false }),
        b"d" => Some(DEBUG),
        _ => None,
    }
}

fn trace_id(digits: &[u8]) -> Option<TraceId> {
    match digits.len() {
        16 => TraceId::from_low(hex::parse(digits)?),
        _ => TraceId::parse(digits),
    }
}

fn trace_text(trace: TraceId) -> Text {
    let (high, low) = trace.halves();
    let mut text = Text::default();
    if high != 0 {
        text.push(&hex::format(high));
    }
    text.push(&hex::format(low));
    text
}

fn context(trace: TraceId, span: SpanId, decided: Decided) -> Context {
    Context { trace, span, sampled: decided.sampled, debug: decided.debug, random: false }
}
