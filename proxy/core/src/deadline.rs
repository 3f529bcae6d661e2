//! How long a request may still take, from hop to hop.
//!
//! Two fields tell it. `x-outrigger-deadline` is the time left until the answer's head, in milliseconds; each proxy sets
//! it. `grpc-timeout` is the time left for the whole call, its stream included; only the caller sets it. So:
//!
//! ```text
//!   until the head = the least of  x-outrigger-deadline, grpc-timeout, the request timeout   ─▶ x-outrigger-deadline
//!   for the call   = grpc-timeout                                                            ─▶ grpc-timeout
//! ```
//!
//! A request timeout must not end up in `grpc-timeout`: it would cut long streams whose head came in time. What is passed
//! on is what is left, rounded down, so no chain of hops ever has more than its first one gave. A value that is
//! malformed, or there twice, counts as absent: `x-outrigger-deadline` is then replaced, while `grpc-timeout` goes on as
//! it is, for its server to refuse.
//!
//! It knows durations only, never the time of day, so clocks need not agree; what a message spends on the wire is not
//! seen. It cancels nothing.

use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::verdict::Reason;

#[cfg(test)]
mod tests;

/// Milliseconds left until the answer's head, decimal.
pub const DEADLINE: HeaderName = HeaderName::from_static("x-outrigger-deadline");
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The least that `x-outrigger-deadline` can tell; with less left, there is nothing left.
const RESOLUTION: Duration = Duration::from_millis(1);
/// The most that it can tell: ten digits, 115 days. Longer times are as good as that, and no sum of them overflows.
const MOST: Duration = Duration::from_millis(9_999_999_999);

/// What a request says about its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// `x-outrigger-deadline`.
    pub mesh: Option<Duration>,
    /// `grpc-timeout`.
    pub grpc: Option<Duration>,
}

/// Of one request, at one hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The answer's head must be there by then.
    head: Option<Instant>,
    /// The whole call must be over by then, if that was told.
    call: Option<Instant>,
    /// The head's is the one that came with the request.
    callers: bool,
}

impl Told {
    pub fn of(fields: &HeaderMap) -> Self {
        Self {
            mesh: single(fields, &DEADLINE).and_then(parse_millis),
            grpc: single(fields, &GRPC_TIMEOUT).and_then(parse_grpc_timeout),
        }
    }
}

impl Deadline {
    /// `limit`: the request timeout of this hop, if it has one.
    pub fn new(told: Told, limit: Option<Duration>, now: Instant) -> Self {
        let at = |left: Duration| now.checked_add(left.min(MOST));
        let callers = lesser(told.mesh, told.grpc);
        let earlier = limit.is_none_or(|limit| callers.is_some_and(|callers| callers <= limit));
        Self {
            head: lesser(callers, limit).and_then(at),
            call: told.grpc.and_then(at),
            callers: callers.is_some() && earlier,
        }
    }

    /// Until the answer's head must be there. `None`: no limit.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        self.head.map(|at| at.saturating_duration_since(now))
    }

    /// Until the end of the whole call. `None`: no limit.
    pub fn call_remaining(&self, now: Instant) -> Option<Duration> {
        self.call.map(|at| at.saturating_duration_since(now))
    }

    /// For timers: when [`Self::is_expired`] becomes true at the latest.
    pub fn at(&self) -> Option<Instant> {
        self.head
    }

    /// Less than a millisecond is left for the answer's head. That cannot be told to the next hop, so it is nothing.
    pub fn is_expired(&self, now: Instant) -> bool {
        self.remaining(now).is_some_and(|left| left < RESOLUTION)
    }

    /// What the caller is told when it has expired.
    pub fn reason(&self) -> Reason {
        if self.callers { Reason::DeadlineExceeded } else { Reason::RequestTimeout }
    }

    /// Makes the fields of a request say what is left. `limit`: of this attempt alone, such as `per_try`.
    pub fn pass_on(&self, limit: Option<Duration>, fields: &mut HeaderMap, now: Instant) {
        match lesser(self.remaining(now), limit) {
            Some(left) => {
                fields.insert(DEADLINE, format_millis(left));
            }
            None => {
                fields.remove(DEADLINE);
            }
        }
        if let Some(left) = self.call_remaining(now) {
            fields.insert(GRPC_TIMEOUT, format_grpc_timeout(left));
        }
    }
}

/// At most ten decimal digits.
pub fn parse_millis(value: &[u8]) -> Option<Duration> {
    decimal(value, 10).map(Duration::from_millis)
}

/// At most eight decimal digits and a unit: hours, minutes, seconds, milli-, micro- or nanoseconds.
pub fn parse_grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let amount = decimal(digits, 8)?;
    Some(match unit {
        b'H' => Duration::from_secs(amount * 3600),
        b'M' => Duration::from_secs(amount * 60),
        b'S' => Duration::from_secs(amount),
        b'm' => Duration::from_millis(amount),
        b'u' => Duration::from_micros(amount),
        b'n' => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// Rounded down, so it is 0 exactly when the deadline [is expired](Deadline::is_expired).
pub fn format_millis(left: Duration) -> HeaderValue {
    // In range, and 0 otherwise would still shrink.
    HeaderValue::from(u64::try_from(left.min(MOST).as_millis()).unwrap_or_default())
}

/// Rounded down in the finest unit that eight digits suffice for, and 0 only when nothing is left.
pub fn format_grpc_timeout(left: Duration) -> HeaderValue {
    const DIGITS: u128 = 100_000_000;
    let (amount, unit) = match left {
        left if left.as_nanos() < DIGITS => (left.as_nanos(), 'n'),
        left if left.as_micros() < DIGITS => (left.as_micros(), 'u'),
        left if left.as_millis() < DIGITS => (left.as_millis(), 'm'),
        left => (u128::from(left.as_secs()).min(DIGITS - 1), 'S'),
    };
    // Eight digits fit, and with a letter they are a legal value. Numbers of 128 bits are slow to write.
    let amount = u64::try_from(amount).unwrap_or_default();
    HeaderValue::try_from(format!("{amount}{unit}")).unwrap_or(HeaderValue::from_static("0n"))
}

fn single<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    let mut values = fields.get_all(name).iter();
    let first = values.next()?;
    values.next().is_none().then(|| first.as_bytes())
}

fn lesser(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

fn decimal(digits: &[u8], most: usize) -> Option<u64> {
    if digits.is_empty() || digits.len() > most || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
