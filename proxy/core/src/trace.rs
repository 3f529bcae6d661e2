//! Which trace a request belongs to, and whether it is recorded.
//!
//! | step | |
//! |---|---|
//! | [`Extracted::of`] | what the fields of a request say of a trace, in any of the formats that are read |
//! | [`Extracted::origin`] | what of it counts: a parent from inside the mesh, a link from outside |
//! | [`Sampler::decide`] | whether this proxy records its part, at once or depending on how it ends |
//! | [`Origin::child`] | this proxy's own place in the trace |
//! | [`Mint::inject`] | that place, told to whoever is called |
//!
//! Nobody decides twice: what has been decided travels along, also if it was "no". Nothing is allocated on the way, but
//! for a chunk of memory once in dozens of requests.
//!
//! Ids come from random numbers that are given. Nothing here makes spans (that is the proxy's `trace/`), and nothing
//! looks at the members of `tracestate` and `baggage`: they are counted, and passed on or dropped as a whole.

use std::{
    fmt,
    num::{NonZeroU64, NonZeroU128},
};

mod b3;
mod context;
mod hex;
mod keep;
mod lines;
mod mint;
mod propagators;
mod sampler;
mod w3c;

pub use context::{Cause, Context, Discarded, Dropped, Extracted, Malformed, Origin, Passage};
pub use keep::{Keep, KeepError};
pub use mint::Mint;
pub use propagators::{Format, Formats, Propagators, PropagatorsError};
pub use sampler::{Config, Decision, Name, NameError, Policy, Ratio, RatioError, Root, Sampler};

/// 32 hex digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId(pub NonZeroU128);

/// 16 hex digits on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId(pub NonZeroU64);

impl TraceId {
    pub fn from_random(high: u64, low: u64) -> Self {
        let random = u128::from(high) << 64 | u128::from(low);
        Self(NonZeroU128::new(random).unwrap_or(NonZeroU128::MIN))
    }

    /// B3 knows ids of 64 bits.
    fn from_low(low: u64) -> Option<Self> {
        NonZeroU128::new(low.into()).map(Self)
    }

    /// 32 hex digits in lower case, not all of them 0.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        let (high, low) = digits.split_at_checked(16)?;
        let number = u128::from(hex::parse(high)?) << 64 | u128::from(hex::parse(low)?);
        NonZeroU128::new(number).map(Self)
    }

    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }

    fn halves(self) -> (u64, u64) {
        ((self.0.get() >> 64) as u64, self.0.get() as u64)
    }
}

impl SpanId {
    pub fn from_random(random: u64) -> Self {
        Self(NonZeroU64::new(random).unwrap_or(NonZeroU64::MIN))
    }

    /// 16 hex digits in lower case, not all of them 0.
    pub fn parse(digits: &[u8]) -> Option<Self> {
        NonZeroU64::new(hex::parse(digits)?).map(Self)
    }

    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
