//! Opaque bytes: the streams that carry them, and the copy between two of them.
//!
//! [`stream`] has the few kinds of stream a connection can be made of, [`copy`] moves bytes both ways with half-close
//! and counts them, [`passage`] is the record of such a connection. Nothing here looks into the bytes.

pub mod copy;
pub mod passage;
pub mod stream;

pub use copy::{Counts, CutShort, copy};
pub use passage::{Passage, carry};
pub use stream::{Io, Sniffed, Stream};

#[cfg(test)]
mod tests;
