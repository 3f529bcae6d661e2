//! The header fields that retries read and write.
//!
//! **`x-outrigger-attempt`** keeps one layer of a call graph in charge of retries. The outermost proxy whose policy may
//! send the request again sets it to the number of the attempt, 1 for the first. It goes through to the application,
//! which passes it on like a trace header; a proxy that receives it sends nothing again that was sent, and passes it on
//! as it is. What is no number of an attempt counts as absent and is removed. A stranger who sets it gives up retries of
//! its own requests and gains nothing.
//!
//! It has no opinion on which requests are retried.

use std::{
    num::NonZeroU32,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// The number of this attempt, decimal.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-outrigger-attempt");
/// The caller promises that twice is as good as once (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Numbers that need no allocation.
const FEW: [&str; 5] = ["1", "2", "3", "4", "5"];

/// What came in `x-outrigger-attempt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Absent,
    Garbage,
    /// A layer before this one is in charge, and this is its attempt.
    Outer(NonZeroU32),
}

impl Received {
    pub fn of(fields: &HeaderMap) -> Self {
        let mut values = fields.get_all(ATTEMPT).iter();
        match (values.next(), values.next()) {
            (None, _) => Self::Absent,
            (Some(value), None) => parse_attempt(value.as_bytes()).map_or(Self::Garbage, Self::Outer),
            (Some(_), Some(_)) => Self::Garbage,
        }
    }

    pub fn is_outer_layer(self) -> bool {
        matches!(self, Self::Outer(_))
    }

    /// Makes the field of a request what the next hop should see. `own`: the number of this attempt, if this layer may
    /// send the request again ([`super::Attempts::may_resend`]).
    pub fn pass_on(self, own: Option<NonZeroU32>, fields: &mut HeaderMap) {
        match (self, own) {
            (Self::Outer(_), _) | (Self::Absent, None) => {}
            (Self::Garbage, None) => {
                fields.remove(ATTEMPT);
            }
            (Self::Absent | Self::Garbage, Some(attempt)) => {
                fields.insert(ATTEMPT, attempt_value(attempt));
            }
        }
    }
}

/// Decimal digits, at most five, no sign, no leading zero.
pub fn parse_attempt(value: &[u8]) -> Option<NonZeroU32> {
    if value.is_empty() || value.len() > 5 || value[0] == b'0' {
        return None;
    }
    NonZeroU32::new(u32::try_from(decimal(value)?).ok()?)
}

pub fn attempt_value(attempt: NonZeroU32) -> HeaderValue {
    match FEW.get(attempt.get() as usize - 1) {
        Some(digits) => HeaderValue::from_static(digits),
        None => HeaderValue::from(attempt.get()),
    }
}

/// Whether a request carries an `Idempotency-Key` that says something.
pub fn has_idempotency_key(fields: &HeaderMap) -> bool {
    fields.get(IDEMPOTENCY_KEY).is_some_and(|key| !key.is_empty() && key != "\"\"")
}

/// How long an answer asks to be left alone (RFC 9110 section 10.2.3): seconds, or a date, which is compared with `now`
/// and means no wait when it has passed. Anything else counts as absent.
pub fn retry_after(fields: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = fields.get(header::RETRY_AFTER)?;
    if let Some(seconds) = decimal(value.as_bytes()) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value.to_str().ok()?).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

/// Digits and nothing else. What is too large for the type is the largest it has.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let next = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some(digits.iter().fold(0, next))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for value in values {
            fields.append(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    #[test]
    fn an_attempt_is_a_plain_number() {
        for (values, received) in [
            (vec![], Received::Absent),
            (vec!["1"], Received::Outer(NonZeroU32::MIN)),
            (vec!["99999"], Received::Outer(NonZeroU32::new(99_999).unwrap())),
            (vec!["100000"], Received::Garbage),
            (vec!["0"], Received::Garbage),
            (vec!["01"], Received::Garbage),
            (vec!["+1"], Received::Garbage),
            (vec!["-1"], Received::Garbage),
            (vec![" 1 x"], Received::Garbage),
            (vec!["1,2"], Received::Garbage),
            (vec!["one"], Received::Garbage),
            (vec![""], Received::Garbage),
            (vec!["1", "1"], Received::Garbage),
        ] {
            assert_eq!(Received::of(&fields(ATTEMPT, &values)), received, "{values:?}");
        }
    }

    #[test]
    fn the_outermost_layer_that_may_retry_names_the_attempt() {
        let third = NonZeroU32::new(3);
        for (values, own, passed_on) in [
            (vec![], None, vec![]),
            (vec![], third, vec!["3"]),
            (vec!["2"], None, vec!["2"]),
            (vec!["2"], third, vec!["2"]),
            (vec!["x"], None, vec![]),
            (vec!["x"], third, vec!["3"]),
            (vec!["1", "2"], third, vec!["3"]),
        ] {
            let mut fields = fields(ATTEMPT, &values);
            Received::of(&fields).pass_on(own, &mut fields);
            let now: Vec<_> = fields.get_all(ATTEMPT).iter().map(|value| value.to_str().unwrap()).collect();
            assert_eq!(now, passed_on, "{values:?} {own:?}");
        }
    }

    #[test]
    fn an_empty_key_promises_nothing() {
        for (value, has) in [("k", true), ("\"8e03978e\"", true), ("", false), ("\"\"", false)] {
            assert_eq!(has_idempotency_key(&fields(IDEMPOTENCY_KEY, &[value])), has, "{value}");
        }
        assert!(!has_idempotency_key(&HeaderMap::new()));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 in its three forms.
        let example = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = Duration::from_secs;
        for (value, after) in [
            ("0", Some(seconds(0))),
            ("120", Some(seconds(120))),
            ("99999999999999999999999", Some(seconds(u64::MAX))),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(seconds(10))),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(seconds(10))),
            ("Sun Nov  6 08:49:47 1994", Some(seconds(10))),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(seconds(0))),
            ("-1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
            ("Sun, 06 Nov 1994 25:49:37 GMT", None),
        ] {
            assert_eq!(retry_after(&fields(header::RETRY_AFTER, &[value]), example), after, "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), example), None);
    }

    proptest! {
        #[test]
        fn numbers_read_back(attempt in 1..100_000_u32) {
            let attempt = NonZeroU32::new(attempt).unwrap();
            prop_assert_eq!(parse_attempt(attempt_value(attempt).as_bytes()), Some(attempt));
        }

        #[test]
        fn no_value_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut fields = HeaderMap::new();
                fields.insert(ATTEMPT, value.clone());
                fields.insert(header::RETRY_AFTER, value);
                let _ = Received::of(&fields);
                let _ = retry_after(&fields, SystemTime::UNIX_EPOCH);
            }
        }
    }
}
