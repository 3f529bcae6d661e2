//! Which lines are written: `errors,slower=100ms,sample=0.01`. One of them suffices; without any, all lines are.
//!
//! Decided before anything is formatted, from the record alone.

use std::{fmt, time::Duration};

use outrigger_proto::spec;

use crate::{
    config::settings,
    telemetry::{ConnectionRecord, RequestRecord, Traced},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Only {
    errors: bool,
    slower: Option<Duration>,
    sample: Option<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    ratio: f64,
    /// The largest mixed id that is in the sample.
    highest: u64,
}

impl Only {
    /// `Err`: what is wrong, for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut only = Self::default();
        for part in text.split(',').map(str::trim) {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (part, None),
            };
            let is_new = match (name, value) {
                ("errors", None) => !std::mem::replace(&mut only.errors, true),
                ("slower", Some(value)) => {
                    let time = settings::duration(value).ok_or_else(|| {
                        format!("{part:?}: want a time with its unit, such as slower=100ms")
                    })?;
                    only.slower.replace(time).is_none()
                }
                ("sample", Some(value)) => {
                    let sample = Sample::parse(value).ok_or_else(|| {
                        format!("{part:?}: want a share above 0 and up to 1, such as sample=0.01")
                    })?;
                    only.sample.replace(sample).is_none()
                }
                _ => {
                    return Err(format!(
                        "{part:?}: want errors, slower=TIME or sample=SHARE, or several of them"
                    ));
                }
            };
            if !is_new {
                return Err(format!("{name} is there twice"));
            }
        }
        Ok(only)
    }

    pub(super) fn request(&self, record: &RequestRecord<'_>) -> bool {
        self.passes(
            || is_error(record),
            // The caller waits for the last byte.
            record.duration,
            record.trace,
            record.id,
        )
    }

    pub(super) fn connection(&self, record: &ConnectionRecord<'_>) -> bool {
        self.passes(
            || record.reason.is_some(),
            // That a connection is used for long does not make it slow.
            record.connected,
            record.trace,
            record.id,
        )
    }

    fn passes(
        &self,
        is_error: impl FnOnce() -> bool,
        took: Duration,
        trace: Option<Traced>,
        id: u64,
    ) -> bool {
        if !self.errors && self.slower.is_none() && self.sample.is_none() {
            return true;
        }
        self.errors && is_error()
            || self.slower.is_some_and(|limit| took > limit)
            || self.sample.is_some_and(|sample| sample.takes(trace, id))
    }
}

/// What counts as a failure, and besides whatever a proxy refused and callers that left.
fn is_error(record: &RequestRecord<'_>) -> bool {
    let class = (record.status / 100).min(5).try_into().unwrap_or(0);
    record.status == 0 || record.reason.is_some() || spec::is_failure(class, record.grpc_status, "")
}

impl fmt::Display for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            self.errors.then(|| "errors".to_owned()),
            self.slower.map(|time| format!("slower={}ms", time.as_millis())),
            self.sample.map(|sample| format!("sample={}", sample.ratio)),
        ];
        f.write_str(&parts.into_iter().flatten().collect::<Vec<_>>().join(","))
    }
}

// === impl Sample ===

impl Sample {
    fn parse(text: &str) -> Option<Self> {
        // `parse` would take signs, "inf" and "NaN".
        let legal = text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'-'));
        let ratio: f64 = legal.then(|| text.parse().ok()).flatten()?;
        // The conversion stops at the highest number there is.
        let highest = (ratio * 2_f64.powi(64)) as u64;
        (ratio > 0.0 && ratio <= 1.0).then_some(Self { ratio, highest })
    }

    /// The same for everybody who sees the trace; without a trace, by the id of the request.
    fn takes(self, trace: Option<Traced>, id: u64) -> bool {
        let id = match trace {
            Some(traced) => {
                let all = traced.trace.0.get();
                ((all >> 64) as u64) ^ (all as u64)
            }
            None => id,
        };
        mix(id) <= self.highest
    }
}

/// Spreads ids over all numbers, also those of whoever counts instead of drawing them: the last step of splitmix64
/// (Steele, Lea, Flood 2014).
fn mix(id: u64) -> u64 {
    let id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    id ^ (id >> 31)
}
