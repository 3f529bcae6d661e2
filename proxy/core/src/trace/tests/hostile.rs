//! What a stranger may send in place of a trace. The proxy lets no more than 32 KiB of fields in; this does not need it.

use super::*;

const NAMES: [&str; 9] = [
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

fn value(bytes: &[u8]) -> HeaderValue {
    HeaderValue::from_bytes(bytes).unwrap()
}

/// Whatever came: what goes on is a good context and nothing that is over a limit.
fn check(mut fields: HeaderMap, what: &str) {
    let order = propagators("tracecontext,b3,b3multi");
    let extracted = Extracted::of(&fields, order);
    let origin = extracted.origin(true);
    let id = origin.parent.map_or_else(|| TraceId::from_random(1, 2), |parent| parent.trace);
    let own = origin.child(id, span(OWN), Decision::Record);
    Mint::new().inject(&own, &extracted, &mut fields);
    let again = Extracted::of(&fields, order);
    assert_eq!(again.malformed, None, "{what}");
    let context = again.context.unwrap();
    assert_eq!((context.trace, context.span, context.sampled), (id, span(OWN), Some(true)), "{what}");
    for passage in [again.tracestate, again.baggage] {
        assert!(!matches!(passage, Passage::Dropped(_)), "{what}: {passage:?} was passed on");
    }
}

#[test]
fn a_megabyte_of_anything() {
    const MEGABYTE: usize = 1 << 20;
    for name in NAMES {
        let name = HeaderName::from_static(name);
        for text in ["a", "0", "-", ",", " ", "\t", "=", "00-", "f,", "\u{e9}", "1", "d"] {
            let mut fields = HeaderMap::new();
            fields.insert(name.clone(), value(text.repeat(MEGABYTE / text.len()).as_bytes()));
            check(fields, &format!("{name}: a megabyte of {text:?}"));
        }
    }
    let mut fields = HeaderMap::new();
    let long = format!("cc-{TRACE}-{SPAN}-01-{}", "x".repeat(MEGABYTE));
    fields.insert("traceparent", value(long.as_bytes()));
    check(fields, "a later version with much behind it");
}

#[test]
fn many_of_the_same() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let b3 = format!("{TRACE}-{SPAN}-1");
    for name in NAMES {
        for text in ["", "1", "a=b", &traceparent, &b3, TRACE, SPAN] {
            let mut fields = HeaderMap::new();
            for _ in 0..1_000 {
                fields.append(HeaderName::from_static(name), value(text.as_bytes()));
            }
            check(fields, &format!("{name}: 1,000 of {text:?}"));
        }
    }
}

#[test]
fn every_single_byte_in_every_place() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let b3 = format!("{TRACE}-{SPAN}-1-{OWN}");
    for (name, text) in [("traceparent", traceparent), ("b3", b3), ("x-b3-traceid", TRACE.to_owned())] {
        for at in 0..text.len() {
            for byte in (b'\t'..=b'\t').chain(0x20..0x7f).chain(0x80..=0xff) {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = byte;
                let mut fields = HeaderMap::new();
                fields.insert(name, value(&bytes));
                if name == "x-b3-traceid" {
                    fields.insert("x-b3-spanid", value(SPAN.as_bytes()));
                }
                check(fields, &format!("{name}: {byte:#04x} at {at}"));
            }
        }
    }
}

#[test]
fn every_prefix() {
    let traceparent = format!("00-{TRACE}-{SPAN}-01");
    let b3 = format!("{TRACE}-{SPAN}-1-{OWN}");
    for (name, text) in [("traceparent", &traceparent), ("b3", &b3)] {
        for end in 0..text.len() {
            check(fields([(name, &text[..end])]), &format!("{name}: {:?}", &text[..end]));
            check(fields([(name, &text[end..])]), &format!("{name}: {:?}", &text[end..]));
        }
    }
}
