//! A body that is kept: gathered while it passes by, whole or not at all.
//!
//! A piece of [`KEPT_BYTES`] or more is kept as it came, without a copy. A smaller one is copied together
//! with its neighbours, because a slice holds on to the whole buffer it was read into: kept as it is, an
//! answer of 300 bytes would cost as much memory as the read buffer of a connection, and nobody would count
//! it.

use std::sync::Arc;

use bytes::Bytes;

/// The largest HTTP/2 frame; a read buffer is at most four times that.
const KEPT_BYTES: usize = 16 * 1024;

/// A whole body. Clones share it.
#[derive(Clone, Debug)]
pub struct Body {
    chunks: Arc<[Bytes]>,
    length: u64,
}

#[derive(Debug)]
pub(crate) struct Gatherer {
    chunks: Vec<Bytes>,
    /// Small pieces, not yet a chunk.
    small: Vec<u8>,
    length: u64,
    promised: Option<u64>,
    limit: u64,
}

impl Body {
    pub fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    pub fn len(&self) -> u64 {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

impl Gatherer {
    /// Nothing if the promised length is over the limit already.
    pub(crate) fn new(promised: Option<u64>, limit: u64) -> Option<Self> {
        let fits = promised.is_none_or(|length| length <= limit);
        fits.then(|| Self { chunks: Vec::new(), small: Vec::new(), length: 0, promised, limit })
    }

    /// False: it is over the limit or longer than promised, and comes to nothing.
    #[must_use]
    pub(crate) fn push(&mut self, data: &Bytes) -> bool {
        self.length = self.length.saturating_add(data.len() as u64);
        if self.length > self.promised.unwrap_or(u64::MAX).min(self.limit) {
            self.chunks = Vec::new();
            self.small = Vec::new();
            return false;
        }
        if data.len() < KEPT_BYTES {
            self.small.extend_from_slice(data);
            if self.small.len() >= 4 * KEPT_BYTES {
                self.close_small();
            }
        } else {
            self.close_small();
            self.chunks.push(data.clone());
        }
        true
    }

    /// At the clean end of the body. Nothing unless all of it is here.
    pub(crate) fn finish(mut self) -> Option<Body> {
        let whole = self.length <= self.limit && self.promised.is_none_or(|length| length == self.length);
        if !whole {
            return None;
        }
        self.close_small();
        Some(Body { chunks: self.chunks.into(), length: self.length })
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            // Boxed, so that it takes what it holds and no more.
            self.chunks.push(Bytes::from(std::mem::take(&mut self.small).into_boxed_slice()));
        }
    }
}
