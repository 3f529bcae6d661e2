//! Writes a context into the fields of a request, in values carved out of one chunk of memory.
//!
//! A value of its own would be an allocation per request. So all values of a worker are slices of a chunk, and when it is
//! used up and nobody holds a slice of it any more it is filled anew; otherwise there is a new one, and the old one goes
//! with its last slice. A request that lasts keeps at most one chunk alive.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{Context, Extracted, Format, Passage, b3, w3c};

/// 74 times a `traceparent`.
const CHUNK_BYTES: usize = 4096;

/// Of one worker.
#[derive(Debug)]
pub struct Mint {
    chunk: BytesMut,
}

/// What is about to become a value: no format is longer than W3C's.
pub(super) struct Text {
    bytes: [u8; 55],
    length: usize,
}

impl Mint {
    pub fn new() -> Self {
        Self { chunk: BytesMut::with_capacity(CHUNK_BYTES) }
    }

    /// Makes the fields say `context`, in the formats of `extracted`, and drops what must not go on. A `tracestate` goes
    /// on in its own trace only.
    pub fn inject(&mut self, context: &Context, extracted: &Extracted, fields: &mut HeaderMap) {
        if extracted.formats.has(Format::W3c) {
            self.write(fields, w3c::TRACEPARENT, &w3c::write(context));
        }
        if extracted.formats.has(Format::B3) {
            self.write(fields, b3::B3, &b3::write_single(context));
        }
        if extracted.formats.has(Format::B3Multi) {
            b3::write_multi(context, self, fields);
        }
        let goes_on = extracted.context.is_some_and(|from| from.trace == context.trace);
        match extracted.tracestate {
            Passage::Kept if goes_on => {}
            Passage::Kept | Passage::Dropped(_) => drop(fields.remove(w3c::TRACESTATE)),
            Passage::Absent => {}
        }
        if let Passage::Dropped(_) = extracted.baggage {
            fields.remove(w3c::BAGGAGE);
        }
    }

    pub(super) fn write(&mut self, fields: &mut HeaderMap, name: HeaderName, text: &Text) {
        let text = &text.bytes[..text.length];
        if self.chunk.capacity() < text.len() {
            self.chunk.reserve(CHUNK_BYTES);
        }
        self.chunk.extend_from_slice(text);
        // Digits and dashes are always legal in a value.
        if let Ok(value) = HeaderValue::from_maybe_shared(self.chunk.split().freeze()) {
            fields.insert(name, value);
        }
    }
}

impl Default for Mint {
    fn default() -> Self {
        Self::new()
    }
}

impl Default for Text {
    fn default() -> Self {
        Self { bytes: [0; 55], length: 0 }
    }
}

impl Text {
    pub(super) fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        self.bytes[self.length..end].copy_from_slice(part);
        self.length = end;
    }
}
