//! What the fields of a request say of a trace, and what of it counts.

use http::HeaderMap;

use super::{Decision, Format, Formats, Propagators, SpanId, TraceId, b3, lines::Lines, w3c};

/// A place in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: SpanId,
    /// `None`: whoever sent it leaves that to whoever receives it (B3 only).
    pub sampled: Option<bool>,
    /// Recorded whatever a ratio says, for somebody who is looking for a fault (B3 only).
    pub debug: bool,
    /// The low 56 bits of the trace id are random (W3C level 2). The other bits of its flags are sent as 0, as it wants.
    pub random: bool,
}

/// All that the fields of a request say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Of the first format that has a good one.
    pub context: Option<Context>,
    /// Why the first one that has a bad one has not.
    pub malformed: Option<Malformed>,
    pub tracestate: Passage,
    pub baggage: Passage,
    /// In which it goes on: those that came, or else those that are configured.
    pub formats: Formats,
    /// B3's decision about a trace whose ids are yet to be made.
    decided: Decided,
}

/// What of it counts here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The request is this one's child.
    pub parent: Option<Context>,
    /// The request begins a trace of its own and names this one, which it came from.
    pub link: Option<Context>,
    /// Decided upstream, by somebody who may.
    pub sampled: Option<bool>,
    pub debug: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Decided {
    pub(super) sampled: Option<bool>,
    pub(super) debug: bool,
}

/// What becomes of a field that is passed on as a whole or not at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passage {
    #[default]
    Absent,
    Kept,
    Dropped(Dropped),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    #[error("too long")]
    TooLong,
    #[error("too many members")]
    TooMany,
    #[error("without a good traceparent")]
    Orphaned,
}

/// What came and is replaced or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discarded {
    Malformed(Malformed),
    Tracestate(Dropped),
    Baggage(Dropped),
}

/// Why the fields of a format are not a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{format}: {cause}")]
pub struct Malformed {
    pub format: Format,
    pub cause: Cause,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("there more than once")]
    Repeated,
    #[error("of another length or shape")]
    Shape,
    #[error("a version that there cannot be")]
    Version,
    #[error("the trace id is not lower-case hex digits, or all zero")]
    TraceId,
    #[error("the span id is not lower-case hex digits, or all zero")]
    SpanId,
    #[error("the flags are not lower-case hex digits")]
    Flags,
    #[error("neither 0, 1 nor d as the decision")]
    Sampled,
    #[error("one id without the other")]
    Incomplete,
}

/// What the fields of one format say.
pub(super) enum Told {
    Nothing,
    Context(Context),
    Decided(Decided),
    Malformed(Cause),
}

impl Extracted {
    /// Formats that are not among the `propagators` are fields like any other: neither read nor replaced.
    pub fn of(fields: &HeaderMap, propagators: Propagators) -> Self {
        let lines = Lines::of(fields);
        let mut extracted = Self { baggage: w3c::baggage(lines.baggage, fields), ..Self::default() };
        let mut traceparent = None;
        for format in propagators.iter() {
            let told = match format {
                Format::W3c => w3c::read(lines.traceparent),
                Format::B3 => b3::read_single(lines.b3),
                Format::B3Multi => b3::read_multi(lines.multi),
            };
            match told {
                Told::Nothing => continue,
                Told::Context(context) => {
                    if format == Format::W3c {
                        traceparent = Some(context.trace);
                    }
                    extracted.context = extracted.context.or(Some(context));
                }
                Told::Decided(decided) => {
                    if extracted.decided == Decided::default() {
                        extracted.decided = decided;
                    }
                }
                Told::Malformed(cause) => {
                    extracted.malformed = extracted.malformed.or(Some(Malformed { format, cause }));
                }
            }
            extracted.formats.insert(format);
        }
        if extracted.formats.is_empty() {
            extracted.formats = propagators.formats();
        }
        if propagators.formats().has(Format::W3c) {
            extracted.tracestate = match w3c::tracestate(lines.tracestate, fields) {
                // It belongs to the trace of the `traceparent`, which may be bad or not be the one that counts.
                Passage::Kept if traceparent.is_none() || traceparent != extracted.trace() => {
                    Passage::Dropped(Dropped::Orphaned)
                }
                passage @ (Passage::Absent | Passage::Kept | Passage::Dropped(_)) => passage,
            };
        }
        extracted
    }

    /// `trusted`: it came from inside the mesh, or from an edge that is to be believed. Anybody else's trace is linked to,
    /// and what they decided is not asked for: they could make us record everything.
    pub fn origin(&self, trusted: bool) -> Origin {
        match self.context {
            Some(context) if trusted => {
                let Context { sampled, debug, .. } = context;
                Origin { parent: Some(context), link: None, sampled, debug }
            }
            link @ Some(_) => Origin { link, ..Origin::default() },
            None if trusted => {
                let Decided { sampled, debug } = self.decided;
                Origin { parent: None, link: None, sampled, debug }
            }
            None => Origin::default(),
        }
    }

    /// For whoever counts it. A `tracestate` that ends with its trace is none of it.
    pub fn discarded(&self) -> impl Iterator<Item = Discarded> {
        let malformed = self.malformed.map(Discarded::Malformed);
        let tracestate = self.tracestate.dropped().map(Discarded::Tracestate);
        let baggage = self.baggage.dropped().map(Discarded::Baggage);
        [malformed, tracestate, baggage].into_iter().flatten()
    }

    fn trace(&self) -> Option<TraceId> {
        self.context.map(|context| context.trace)
    }
}

impl Passage {
    fn dropped(self) -> Option<Dropped> {
        match self {
            Self::Absent | Self::Kept => None,
            Self::Dropped(why) => Some(why),
        }
    }
}

impl Origin {
    /// This proxy's own place in the trace: `trace` is the parent's, or one from random numbers that begins here.
    pub fn child(&self, trace: TraceId, span: SpanId, decision: Decision) -> Context {
        let sampled = decision == Decision::Record;
        let parent = self.parent.filter(|parent| parent.trace == trace);
        // Whoever made the id knows what it is made of; nobody after may change that.
        let random = parent.is_none_or(|parent| parent.random);
        Context { trace, span, sampled: Some(sampled), debug: sampled && self.debug, random }
    }
}
