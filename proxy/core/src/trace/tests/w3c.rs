//! `traceparent` and the company it keeps. Rows of the W3C's own test suite are among them.

use super::*;

const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn read(value: &str) -> Extracted {
    Extracted::of(&fields([("traceparent", value)]), Propagators::default())
}

#[test]
fn flags_are_bits() {
    for (flags, sampled, random) in [
        ("00", false, false),
        ("01", true, false),
        ("02", false, true),
        ("03", true, true),
        ("08", false, false),
        ("09", true, false),
        ("fc", false, false),
        ("ff", true, true),
    ] {
        let extracted = read(&format!("00-{TRACE}-{SPAN}-{flags}"));
        let expected = Context { random, ..context(Some(sampled)) };
        assert_eq!(extracted.context, Some(expected), "{flags}");
        assert_eq!(extracted.malformed, None, "{flags}");

        let mut sent = HeaderMap::new();
        Mint::new().inject(&expected, &extracted, &mut sent);
        let known = u8::from_str_radix(flags, 16).unwrap() & 3;
        let expected = format!("00-{TRACE}-{SPAN}-{known:02x}");
        assert_eq!(one(&sent, "traceparent"), Some(&*expected), "what is not defined is sent as 0");
    }
}

#[test]
fn later_versions_are_read_as_far_as_they_are_known() {
    for value in [
        "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
        "fe-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
    ] {
        let extracted = read(value);
        assert_eq!(extracted.context, Some(context(Some(true))), "{value}");
        let mut sent = fields([("traceparent", value)]);
        Mint::new().inject(&context(Some(true)), &extracted, &mut sent);
        assert_eq!(one(&sent, "traceparent"), Some(GOOD), "sent in the version that is known");
    }
}

#[test]
fn white_space_around_it_is_none_of_its_own() {
    for value in [" ", "\t", "\t \t"] {
        for value in [format!("{value}{GOOD}"), format!("{GOOD}{value}"), format!("{value}{GOOD}{value}")] {
            assert_eq!(read(&value).context, Some(context(Some(true))), "{value:?}");
        }
    }
}

#[test]
fn what_is_broken_is_named() {
    for (value, cause) in [
        ("", Cause::Shape),
        (" ", Cause::Shape),
        ("00", Cause::Shape),
        ("-", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", Cause::Shape),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.more", Cause::Shape),
        ("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0", Cause::Shape),
        ("00 4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01", Cause::Shape),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7\t01", Cause::Shape),
        ("000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Shape),
        ("0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Shape),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Version),
        ("FE-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Version),
        (".0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Version),
        ("0.-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::Version),
        ("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", Cause::TraceId),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", Cause::TraceId),
        ("00-.bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Cause::TraceId),
        ("00-4bf92f3577b34da6a3ce929d0e0e473.-00f067aa0ba902b7-01", Cause::TraceId),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01", Cause::SpanId),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", Cause::SpanId),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-.0f067aa0ba902b7-01", Cause::SpanId),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b.-01", Cause::SpanId),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-.1", Cause::Flags),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0X", Cause::Flags),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0A", Cause::Flags),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7,00-4bf92f", Cause::Shape),
    ] {
        let extracted = read(value);
        assert_eq!(extracted.context, None, "{value:?}");
        assert_eq!(extracted.malformed, Some(Malformed { format: Format::W3c, cause }), "{value:?}");
        assert!(extracted.formats.has(Format::W3c), "{value:?} is replaced");
    }
    let told = read("00-").malformed.unwrap().to_string();
    assert_eq!(told, "tracecontext: of another length or shape");
}

#[test]
fn two_of_them_are_none() {
    for other in [GOOD, "", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"] {
        for lines in [[GOOD, other], [other, GOOD]] {
            let mut fields = fields(lines.map(|value| ("traceparent", value)));
            let extracted = Extracted::of(&fields, Propagators::default());
            let malformed = Malformed { format: Format::W3c, cause: Cause::Repeated };
            assert_eq!((extracted.context, extracted.malformed), (None, Some(malformed)), "{lines:?}");
            Mint::new().inject(&context(Some(false)), &extracted, &mut fields);
            assert_eq!(all(&fields, "traceparent"), [GOOD.replace("-01", "-00")], "both are replaced by one");
        }
    }
}

#[test]
fn other_names_are_other_fields() {
    for name in ["trace-parent", "trace.parent", "b3", "x-b3-traceid", "grpc-trace-bin", "uber-trace-id"] {
        let mut sent = fields([(name, GOOD)]);
        let extracted = Extracted::of(&sent, Propagators::default());
        assert_eq!((extracted.context, extracted.malformed), (None, None), "{name}");
        Mint::new().inject(&context(Some(true)), &extracted, &mut sent);
        assert_eq!(one(&sent, name), Some(GOOD), "{name} goes on as it is");
    }
}
