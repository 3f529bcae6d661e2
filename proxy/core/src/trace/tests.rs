use std::num::NonZeroU32;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::*;

mod b3;
mod hostile;
mod mint;
mod origin;
mod passage;
mod properties;
mod sampling;
mod w3c;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const OWN: &str = "b7ad6b7169203331";

fn fields<'a>(lines: impl IntoIterator<Item = (&'a str, &'a str)>) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    fields
}

fn all(fields: &HeaderMap, name: &str) -> Vec<String> {
    fields.get_all(name).iter().map(|value| value.to_str().unwrap().to_owned()).collect()
}

fn one<'a>(fields: &'a HeaderMap, name: &str) -> Option<&'a str> {
    assert!(fields.get_all(name).iter().count() < 2, "{name} is there twice");
    fields.get(name).map(|value| value.to_str().unwrap())
}

fn propagators(text: &str) -> Propagators {
    text.parse().unwrap()
}

fn trace(digits: &str) -> TraceId {
    TraceId::parse(digits.as_bytes()).unwrap()
}

fn span(digits: &str) -> SpanId {
    SpanId::parse(digits.as_bytes()).unwrap()
}

fn context(sampled: Option<bool>) -> Context {
    Context { trace: trace(TRACE), span: span(SPAN), sampled, debug: false, random: false }
}

#[test]
fn ids_are_digits_in_lower_case_and_not_zero() {
    for (digits, legal) in [
        (TRACE, true),
        ("00000000000000000000000000000001", true),
        ("ffffffffffffffffffffffffffffffff", true),
        ("00000000000000000000000000000000", false),
        ("4BF92F3577B34DA6A3CE929D0E0E4736", false),
        ("4bf92f3577b34da6a3ce929d0e0e473", false),
        ("4bf92f3577b34da6a3ce929d0e0e47360", false),
        ("4bf92f3577b34da6a3ce929d0e0e473g", false),
        ("4bf92f3577b34da6a3ce929d0e0e473 ", false),
        ("+bf92f3577b34da6a3ce929d0e0e4736", false),
        ("0x4bf92f3577b34da6a3ce929d0e0e47", false),
        ("4bf92f3577b34da6a3ce929d0e0e47é", false),
        ("", false),
    ] {
        let id = TraceId::parse(digits.as_bytes());
        assert_eq!(id.map(|id| id.to_string()), legal.then(|| digits.to_owned()), "{digits:?}");
    }
    for (digits, legal) in [
        (SPAN, true),
        ("ffffffffffffffff", true),
        ("0000000000000000", false),
        ("00F067AA0BA902B7", false),
        ("00f067aa0ba902b", false),
        ("00f067aa0ba902b70", false),
        ("00f067aa0ba902b/", false),
        ("00f067aa0ba902b:", false),
        ("00f067aa0ba902b`", false),
        ("", false),
    ] {
        let id = SpanId::parse(digits.as_bytes());
        assert_eq!(id.map(|id| id.to_string()), legal.then(|| digits.to_owned()), "{digits:?}");
    }
}

#[test]
fn every_byte_is_a_digit_or_is_not() {
    for byte in u8::MIN..=u8::MAX {
        let legal = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        for at in 0..16 {
            let mut digits = *b"00f067aa0ba902b7";
            digits[at] = byte;
            assert_eq!(hex::parse(&digits).is_some(), legal, "{byte:#04x} at {at}");
        }
        assert_eq!(hex::parse_byte(&[byte, b'0']).is_some(), legal, "{byte:#04x}");
        assert_eq!(hex::parse_byte(&[b'0', byte]).is_some(), legal, "{byte:#04x}");
    }
}

#[test]
fn no_random_number_makes_an_id_of_zero() {
    assert_eq!(TraceId::from_random(0, 0).to_string(), "00000000000000000000000000000001");
    assert_eq!(TraceId::from_random(1, 2).to_string(), "00000000000000010000000000000002");
    assert_eq!(TraceId::from_random(u64::MAX, 0).to_string(), "ffffffffffffffff0000000000000000");
    assert_eq!(SpanId::from_random(0).to_string(), "0000000000000001");
    assert_eq!(SpanId::from_random(u64::MAX).to_string(), "ffffffffffffffff");
}

#[test]
fn propagators_are_those_of_opentelemetry_that_are_written_here() {
    for (text, shown) in [
        ("", "tracecontext"),
        (" ", "tracecontext"),
        ("tracecontext,baggage", "tracecontext"),
        ("b3", "b3"),
        ("b3multi, tracecontext ,b3", "b3multi,tracecontext,b3"),
        ("b3,b3,tracecontext,b3", "b3,tracecontext"),
        ("baggage", "none"),
        ("none", "none"),
    ] {
        assert_eq!(propagators(text).to_string(), shown, "{text:?}");
    }
    for (text, error) in [
        ("jaeger", "`jaeger` is none of tracecontext, b3, b3multi, baggage, none"),
        ("tracecontext,,b3", "`` is none of tracecontext, b3, b3multi, baggage, none"),
        ("B3", "`B3` is none of tracecontext, b3, b3multi, baggage, none"),
        ("b3,none", "`none` stands beside others"),
    ] {
        assert_eq!(text.parse::<Propagators>().unwrap_err().to_string(), error, "{text:?}");
    }
}
