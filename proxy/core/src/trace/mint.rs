//! Writes a context into the fields of a request, in values carved out of one chunk of memory.

use bytes::BytesMut;
use http::HeaderMap;

use super::{Context, Extracted};

/// Of one worker.
#[derive(Debug)]
pub struct Mint {
    chunk: BytesMut,
}

impl Mint {
    pub fn new() -> Self {
        todo!()
    }

    /// Makes the fields say `context`, in the formats of `extracted`, and nothing else about a trace.
    pub fn inject(&mut self, context: &Context, extracted: &Extracted, fields: &mut HeaderMap) {
        todo!()
    }
}
