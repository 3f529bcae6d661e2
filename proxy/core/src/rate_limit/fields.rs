//! What a limit says about itself in an answer: `RateLimit-Policy` and `RateLimit` of draft-ietf-httpapi-ratelimit-headers
//! (revision 8 and later, where both are lists of named items), and `Retry-After`.
//!
//! ```text
//! RateLimit-Policy: "TrafficPolicy/shop/orders/per-user";q=100;w=1
//! RateLimit: "TrafficPolicy/shop/orders/per-user";r=0;t=1
//! ```
//!
//! Structured fields (RFC 9651): the name is a string, numbers are whole. Times are rounded up, so that whoever waits
//! so long has waited long enough. What is not printable ASCII in a name becomes `?`.

use std::{fmt::Write, time::Duration};

use http::{HeaderName, HeaderValue};
use outrigger_proto::spec::RateLimit;

use super::Verdict;

pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The largest integer of a structured field.
const LARGEST: u64 = 999_999_999_999_999;

/// `None` without limits.
pub fn policy<'a>(limits: impl IntoIterator<Item = &'a RateLimit>) -> Option<HeaderValue> {
    list(limits, |text, limit| {
        name(text, &limit.name);
        parameter(text, 'q', limit.requests.get());
        // It has whole seconds only; a window that is not says nothing rather than something wrong.
        if limit.per.subsec_nanos() == 0 {
            parameter(text, 'w', limit.per.as_secs());
        }
    })
}

/// Of the limits that were asked, by their names. `None` without any.
pub fn state<'a>(verdicts: impl IntoIterator<Item = (&'a str, &'a Verdict)>) -> Option<HeaderValue> {
    list(verdicts, |text, (of, verdict)| {
        name(text, of);
        parameter(text, 'r', verdict.remaining);
        parameter(text, 't', seconds(verdict.retry_after.unwrap_or(verdict.reset)));
    })
}

/// At least a second: 0 would mean at once.
pub fn retry_after(wait: Duration) -> HeaderValue {
    HeaderValue::from(seconds(wait).max(1))
}

fn list<T>(items: impl IntoIterator<Item = T>, write: impl Fn(&mut String, T)) -> Option<HeaderValue> {
    let mut text = String::new();
    for item in items {
        if !text.is_empty() {
            text.push_str(", ");
        }
        write(&mut text, item);
    }
    if text.is_empty() { None } else { HeaderValue::try_from(text).ok() }
}

fn name(text: &mut String, name: &str) {
    text.push('"');
    for character in name.chars() {
        match character {
            '"' | '\\' => text.extend(['\\', character]),
            ' '..='~' => text.push(character),
            _ => text.push('?'),
        }
    }
    text.push('"');
}

fn parameter(text: &mut String, key: char, value: u64) {
    // Writing to a string does not fail.
    let _ = write!(text, ";{key}={}", value.min(LARGEST));
}

fn seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use outrigger_proto::spec::{RateAlgorithm, Scope};

    use super::*;

    fn limit(name: &str, requests: u64, per: Duration) -> RateLimit {
        RateLimit {
            name: name.into(),
            algorithm: RateAlgorithm::TokenBucket,
            requests: NonZeroU64::new(requests).unwrap(),
            per,
            burst: NonZeroU64::MIN,
            key: vec![],
            scope: Scope::Local,
            dry_run: false,
            max_keys: NonZeroU32::MIN,
        }
    }

    #[test]
    fn policies() {
        let minute = limit("TrafficPolicy/shop/orders/per-user", 100, Duration::from_secs(60));
        let odd = limit("a \"b\" \\ ü\r\n", u64::MAX, Duration::from_millis(1500));
        assert_eq!(policy([&minute]).unwrap(), r#""TrafficPolicy/shop/orders/per-user";q=100;w=60"#);
        let both = r#""TrafficPolicy/shop/orders/per-user";q=100;w=60, "a \"b\" \\ ???";q=999999999999999"#;
        assert_eq!(policy([&minute, &odd]).unwrap(), both);
        assert_eq!(policy([]), None);
    }

    #[test]
    fn states() {
        let admitted = Verdict {
            admitted: true,
            limit: 10,
            remaining: 9,
            reset: Duration::from_millis(100),
            retry_after: None,
        };
        let refused = Verdict {
            admitted: false,
            remaining: 0,
            reset: Duration::from_secs(10),
            retry_after: Some(Duration::from_millis(2001)),
            ..admitted
        };
        assert_eq!(state([("a", &admitted), ("b", &refused)]).unwrap(), r#""a";r=9;t=1, "b";r=0;t=3"#);
        assert_eq!(state([]), None);
    }

    #[test]
    fn nobody_is_told_to_retry_at_once() {
        assert_eq!(retry_after(Duration::ZERO), "1");
        assert_eq!(retry_after(Duration::from_millis(1200)), "2");
    }
}
