//! Which requests are recorded.
//!
//! ```text
//!   decided upstream?  ──yes, and parent-based──▶ the same
//!        │ no                                       │ no
//!        ▼                                          │
//!   always_on, always_off, or the low 56 bits       │
//!   of the trace id against the ratio ──no──────────┤
//!        │ yes                                      ▼
//!        ▼                                     anything to be kept for its end? ──yes──▶ Candidate
//!   within the cap? ──no──────────────────────▶     │ no
//!        │ yes                                      ▼
//!        ▼                                        Drop
//!      Record
//! ```
//!
//! The ratio looks at the trace id alone, as OpenTelemetry's consistent probability sampling does, so that all proxies
//! agree on a trace, and one with a lower ratio records nothing that one with a higher ratio does not.
//!
//! The cap is on what this proxy decides itself: traces that begin here, and those that came undecided. What was decided
//! elsewhere was counted there. Candidates that are kept have a cap of the same size of their own, so that an outage
//! neither floods the backend nor keeps everything else from it.
//!
//! It does not write OpenTelemetry's `ot=th:…` into `tracestate`.

use std::{
    fmt,
    num::NonZeroU32,
    str::FromStr,
    time::{Duration, Instant},
};

use super::{Keep, Origin, TraceId};

/// What OpenTelemetry calls a sampler, by its name in `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    AlwaysOn,
    AlwaysOff,
    TraceIdRatio,
    ParentBasedAlwaysOn,
    ParentBasedAlwaysOff,
    ParentBasedTraceIdRatio,
}

/// The share of traces that is recorded, in parts of 2^56.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ratio(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What was decided upstream is kept to.
    pub parent_based: bool,
    pub root: Root,
}

/// What decides where nobody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    AlwaysOn,
    AlwaysOff,
    Ratio(Ratio),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub policy: Policy,
    pub keep: Keep,
    /// Of all workers together.
    pub max_per_second: NonZeroU32,
    /// How many samplers share that, each by an equal part.
    pub workers: NonZeroU32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Record,
    /// Not recorded, unless it ends in a way that is kept: ask [`Sampler::keeps`] then.
    Candidate,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is none of {names}", names = Name::list())]
pub struct NameError(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number from 0 to 1")]
pub struct RatioError(String);

/// Of one worker.
#[derive(Debug)]
pub struct Sampler {
    policy: Policy,
    keep: Keep,
    roots: Cap,
    kept: Cap,
    capped: u64,
}

/// A token bucket with room for one second, as the moment at which it will be full again.
#[derive(Debug)]
struct Cap {
    per_token: Duration,
    size: Duration,
    full: Instant,
}

impl Sampler {
    pub fn new(config: Config, now: Instant) -> Self {
        let cap = || Cap::new(config.max_per_second, config.workers, now);
        Self { policy: config.policy, keep: config.keep, roots: cap(), kept: cap(), capped: 0 }
    }

    /// `trace`: the parent's, or the one that begins here.
    pub fn decide(&mut self, origin: &Origin, trace: TraceId, now: Instant) -> Decision {
        let record = match (origin.sampled, self.policy.root) {
            (Some(sampled), _) if self.policy.parent_based => sampled,
            (_, Root::AlwaysOff) => false,
            (_, Root::Ratio(ratio)) if !ratio.takes(trace) => false,
            (Some(true), Root::AlwaysOn | Root::Ratio(_)) => true,
            (_, Root::AlwaysOn | Root::Ratio(_)) => self.roots.take(now) || self.over(),
        };
        match record {
            true => Decision::Record,
            false if self.keep.is_nothing() => Decision::Drop,
            false => Decision::Candidate,
        }
    }

    /// Whether a [`Decision::Candidate`] that has ended is recorded after all.
    pub fn keeps(&mut self, failed: bool, duration: Duration, now: Instant) -> bool {
        self.keep.keeps(failed, duration) && (self.kept.take(now) || self.over())
    }

    /// How many would have been recorded, but for the cap.
    pub fn capped(&self) -> u64 {
        self.capped
    }

    fn over(&mut self) -> bool {
        self.capped += 1;
        false
    }
}

impl Cap {
    fn new(per_second: NonZeroU32, parts: NonZeroU32, now: Instant) -> Self {
        let per_token = Duration::from_secs(1) * parts.get() / per_second.get();
        Self { per_token, size: per_token.max(Duration::from_secs(1)), full: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + self.per_token;
        let taken = full.saturating_duration_since(now) <= self.size;
        if taken {
            self.full = full;
        }
        taken
    }
}

impl Policy {
    /// Of what was configured. A name without a ratio means 1, as in the SDKs; no name means ours, which is 1 % of what
    /// nobody has decided on.
    pub fn new(name: Option<Name>, ratio: Option<Ratio>) -> Self {
        let told = Root::Ratio(ratio.unwrap_or(Ratio::ALL));
        let (parent_based, root) = match name {
            None => (true, Root::Ratio(ratio.unwrap_or(Ratio::PERCENT))),
            Some(Name::AlwaysOn) => (false, Root::AlwaysOn),
            Some(Name::AlwaysOff) => (false, Root::AlwaysOff),
            Some(Name::TraceIdRatio) => (false, told),
            Some(Name::ParentBasedAlwaysOn) => (true, Root::AlwaysOn),
            Some(Name::ParentBasedAlwaysOff) => (true, Root::AlwaysOff),
            Some(Name::ParentBasedTraceIdRatio) => (true, told),
        };
        Self { parent_based, root }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::new(None, None)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.parent_based { "parentbased_" } else { "" })?;
        match self.root {
            Root::AlwaysOn => f.write_str("always_on"),
            Root::AlwaysOff => f.write_str("always_off"),
            Root::Ratio(ratio) => write!(f, "traceidratio {ratio}"),
        }
    }
}

impl Name {
    const ALL: [(Self, &'static str); 6] = [
        (Self::AlwaysOn, "always_on"),
        (Self::AlwaysOff, "always_off"),
        (Self::TraceIdRatio, "traceidratio"),
        (Self::ParentBasedAlwaysOn, "parentbased_always_on"),
        (Self::ParentBasedAlwaysOff, "parentbased_always_off"),
        (Self::ParentBasedTraceIdRatio, "parentbased_traceidratio"),
    ];

    fn list() -> String {
        Self::ALL.map(|(_, name)| name).join(", ")
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let known = Self::ALL.into_iter().find(|(_, name)| *name == text.trim());
        known.map(|(name, _)| name).ok_or_else(|| NameError(text.into()))
    }
}

impl Ratio {
    /// The bits of a trace id that are random, by the W3C's recommendation, level 2.
    const BITS: u32 = 56;
    const ALL: Self = Self(1 << Self::BITS);
    const PERCENT: Self = Self(((1 << Self::BITS) + 50) / 100);

    fn takes(self, trace: TraceId) -> bool {
        let random = trace.halves().1 & (Self::ALL.0 - 1);
        random >= Self::ALL.0 - self.0
    }
}

impl FromStr for Ratio {
    type Err = RatioError;

    fn from_str(text: &str) -> Result<Self, RatioError> {
        let share: Option<f64> = text.trim().parse().ok();
        let share =
            share.filter(|share| (0.0..=1.0).contains(share)).ok_or_else(|| RatioError(text.into()))?;
        let parts = (share * Self::ALL.0 as f64).round() as u64;
        // So little that it rounds to nothing is not nothing.
        Ok(Self(if share > 0.0 { parts.max(1) } else { 0 }))
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As it was written, not as what 56 bits made of it.
        let share = self.0 as f64 / Self::ALL.0 as f64;
        write!(f, "{}", (share * 1e12).round() / 1e12)
    }
}
