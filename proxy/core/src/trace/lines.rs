//! The fields that are about traces, found in one pass.
//!
//! A look-up hashes its name anew each time; looking at the lengths of the names that are there costs less, up to about
//! thirty of them, and nearly no request has more.

use http::HeaderMap;

#[derive(Default)]
pub(super) struct Lines<'a> {
    pub(super) traceparent: Once<'a>,
    pub(super) b3: Once<'a>,
    pub(super) multi: Multi<'a>,
    pub(super) tracestate: List,
    pub(super) baggage: List,
}

/// A field that may be there once.
#[derive(Clone, Copy, Default)]
pub(super) enum Once<'a> {
    #[default]
    Absent,
    Value(&'a [u8]),
    Repeated,
}

/// `x-b3-…`. Of a field that is there twice the first value counts, as is specified.
#[derive(Clone, Copy, Default)]
pub(super) struct Multi<'a> {
    pub(super) trace: Option<&'a [u8]>,
    pub(super) span: Option<&'a [u8]>,
    pub(super) sampled: Option<&'a [u8]>,
    pub(super) flags: Option<&'a [u8]>,
}

/// A field whose lines are one list.
#[derive(Clone, Copy, Default)]
pub(super) struct List {
    pub(super) lines: usize,
    /// With the commas that would stand between the lines.
    pub(super) bytes: usize,
    /// Within the lines.
    pub(super) commas: usize,
}

impl<'a> Lines<'a> {
    pub(super) fn of(fields: &'a HeaderMap) -> Self {
        let mut lines = Self::default();
        for (name, value) in fields {
            let name = name.as_str();
            match name.len() {
                2 if name == "b3" => lines.b3.add(value.as_bytes()),
                7 if name == "baggage" => lines.baggage.add(value.as_bytes()),
                10 if name == "tracestate" => lines.tracestate.add(value.as_bytes()),
                10 if name == "x-b3-flags" => first(&mut lines.multi.flags, value.as_bytes()),
                11 if name == "traceparent" => lines.traceparent.add(value.as_bytes()),
                11 if name == "x-b3-spanid" => first(&mut lines.multi.span, value.as_bytes()),
                12 if name == "x-b3-traceid" => first(&mut lines.multi.trace, value.as_bytes()),
                12 if name == "x-b3-sampled" => first(&mut lines.multi.sampled, value.as_bytes()),
                _ => {}
            }
        }
        lines
    }
}

impl<'a> Once<'a> {
    fn add(&mut self, value: &'a [u8]) {
        *self = match self {
            Self::Absent => Self::Value(ows(value)),
            Self::Value(_) | Self::Repeated => Self::Repeated,
        };
    }
}

impl List {
    fn add(&mut self, line: &[u8]) {
        self.bytes += line.len() + usize::from(self.lines > 0);
        self.lines += 1;
        self.commas += memchr::memchr_iter(b',', line).count();
    }
}

fn first<'a>(kept: &mut Option<&'a [u8]>, value: &'a [u8]) {
    kept.get_or_insert(ows(value));
}

/// Without the white space that HTTP allows around values and members.
pub(super) fn ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}
