//! Zipkin's formats, one field and many.

use super::*;

const LOW: &str = "a3ce929d0e0e4736";
const PARENT: &str = "05e3ac9a4f6e3b90";

fn read(format: Format, lines: &[(&str, &str)]) -> Extracted {
    Extracted::of(&fields(lines.iter().copied()), propagators(format.name()))
}

#[test]
fn one_field_tells_all() {
    for (value, sampled, debug) in [
        (format!("{TRACE}-{SPAN}"), None, false),
        (format!("{TRACE}-{SPAN}-1"), Some(true), false),
        (format!("{TRACE}-{SPAN}-0"), Some(false), false),
        (format!("{TRACE}-{SPAN}-d"), Some(true), true),
        (format!("{TRACE}-{SPAN}-1-{PARENT}"), Some(true), false),
        (format!("{TRACE}-{SPAN}-0-{PARENT}"), Some(false), false),
        (format!(" {TRACE}-{SPAN}-d-{PARENT}\t"), Some(true), true),
    ] {
        let extracted = read(Format::B3, &[("b3", &value)]);
        let expected = Context { debug, ..context(sampled) };
        assert_eq!(extracted.context, Some(expected), "{value}");
        assert_eq!(extracted.malformed, None, "{value}");

        let mut sent = fields([("b3", &*value)]);
        Mint::new().inject(&expected, &extracted, &mut sent);
        let without_parent = value.trim().trim_end_matches(&format!("-{PARENT}")).to_owned();
        assert_eq!(one(&sent, "b3"), Some(&*without_parent));
    }
}

#[test]
fn an_id_of_64_bits_stays_one() {
    let low = trace(&format!("{LOW:0>32}"));
    for (format, lines) in [
        (Format::B3, vec![("b3", format!("{LOW}-{SPAN}-1"))]),
        (
            Format::B3Multi,
            vec![
                ("x-b3-traceid", LOW.to_owned()),
                ("x-b3-spanid", SPAN.to_owned()),
                ("x-b3-sampled", "1".to_owned()),
            ],
        ),
    ] {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, &**value)).collect();
        let extracted = read(format, &lines);
        let expected = Context { trace: low, ..context(Some(true)) };
        assert_eq!(extracted.context, Some(expected));
        let mut sent = HeaderMap::new();
        Mint::new().inject(&expected, &extracted, &mut sent);
        assert_eq!(sent, fields(lines), "a program that knows only 64 bits gets what it sent");
    }
}

#[test]
fn many_fields_tell_all() {
    let ids = [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)];
    for (more, sampled, debug) in [
        (&[][..], None, false),
        (&[("x-b3-sampled", "1")], Some(true), false),
        (&[("x-b3-sampled", "0")], Some(false), false),
        (&[("x-b3-sampled", "true")], Some(true), false),
        (&[("x-b3-sampled", "false")], Some(false), false),
        (&[("x-b3-flags", "1")], Some(true), true),
        (&[("x-b3-flags", "1"), ("x-b3-sampled", "0")], Some(true), true),
        (&[("x-b3-flags", "0"), ("x-b3-sampled", "0")], Some(false), false),
        (&[("x-b3-flags", "")], None, false),
        (&[("x-b3-parentspanid", PARENT), ("x-b3-sampled", "1")], Some(true), false),
        (&[("x-b3-sampled", "1"), ("x-b3-sampled", "0")], Some(true), false),
        (&[("x-b3-traceid", "of another"), ("x-b3-spanid", "")], None, false),
    ] {
        let lines = [&ids, more].concat();
        let extracted = read(Format::B3Multi, &lines);
        let expected = Context { debug, ..context(sampled) };
        assert_eq!(extracted.context, Some(expected), "{more:?}");
        assert_eq!(extracted.malformed, None, "{more:?}");

        let mut sent = fields(lines);
        Mint::new().inject(&expected, &extracted, &mut sent);
        let decision = match (sampled, debug) {
            (_, true) => vec![("x-b3-flags", "1")],
            (Some(sampled), _) => vec![("x-b3-sampled", if sampled { "1" } else { "0" })],
            (None, _) => vec![],
        };
        assert_eq!(sent, fields([ids.to_vec(), decision].concat()), "{more:?}");
    }
}

#[test]
fn a_decision_needs_no_ids() {
    let (yes, no) = ((Some(true), false), (Some(false), false));
    for (format, name, value, expected) in [
        (Format::B3, "b3", "1", yes),
        (Format::B3, "b3", "0", no),
        (Format::B3, "b3", "d", (Some(true), true)),
        (Format::B3Multi, "x-b3-sampled", "1", yes),
        (Format::B3Multi, "x-b3-sampled", "0", no),
        (Format::B3Multi, "x-b3-flags", "1", (Some(true), true)),
    ] {
        let extracted = read(format, &[(name, value)]);
        assert_eq!((extracted.context, extracted.malformed), (None, None), "{name}: {value}");
        let origin = extracted.origin(true);
        assert_eq!((origin.sampled, origin.debug), expected, "{name}: {value}");
        assert_eq!(extracted.origin(false), Origin::default(), "{name}: {value} of a stranger");

        let decision = if origin.sampled == Some(true) { Decision::Record } else { Decision::Drop };
        let mut sent = fields([(name, value)]);
        Mint::new().inject(&origin.child(trace(TRACE), span(OWN), decision), &extracted, &mut sent);
        let again = Extracted::of(&sent, propagators(format.name())).context.unwrap();
        assert_eq!((again.trace, again.span), (trace(TRACE), span(OWN)));
        assert_eq!((again.sampled, again.debug), expected, "{name}: {value} goes on");
    }
}

#[test]
fn what_is_broken_is_named() {
    for (value, cause) in [
        ("", Cause::TraceId),
        ("-", Cause::TraceId),
        ("2", Cause::TraceId),
        ("D", Cause::TraceId),
        ("true", Cause::TraceId),
        ("4bf92f3577b34da6a3ce929d0e0e4736", Cause::Incomplete),
        ("a3ce929d0e0e4736", Cause::Incomplete),
        ("4bf92f3577b34da6a3ce929d0e0e4736-", Cause::SpanId),
        ("4bf92f3577b34da6a3ce929d0e0e4736-1", Cause::SpanId),
        ("4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000", Cause::SpanId),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7", Cause::SpanId),
        ("4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7", Cause::TraceId),
        ("00000000000000000000000000000000-00f067aa0ba902b7", Cause::TraceId),
        ("0000000000000000-00f067aa0ba902b7", Cause::TraceId),
        ("3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7", Cause::TraceId),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-", Cause::Sampled),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-2", Cause::Sampled),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-D", Cause::Sampled),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-05e3ac9a4f6e3b90", Cause::Sampled),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-", Cause::Shape),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-0000000000000000", Cause::Shape),
        ("a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90-", Cause::Shape),
        ("4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1-05e3ac9a4f6e3b90-1", Cause::Shape),
    ] {
        let extracted = read(Format::B3, &[("b3", value)]);
        assert_eq!(extracted.context, None, "{value:?}");
        assert_eq!(extracted.malformed, Some(Malformed { format: Format::B3, cause }), "{value:?}");
        assert_eq!(extracted.origin(true), Origin::default(), "{value:?}");
    }
    for (lines, cause) in [
        (&[("x-b3-traceid", TRACE)][..], Cause::Incomplete),
        (&[("x-b3-spanid", SPAN)], Cause::Incomplete),
        (&[("x-b3-traceid", TRACE), ("x-b3-sampled", "1")], Cause::Incomplete),
        (&[("x-b3-traceid", ""), ("x-b3-spanid", SPAN)], Cause::TraceId),
        (&[("x-b3-traceid", &TRACE[1..]), ("x-b3-spanid", SPAN)], Cause::TraceId),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", "")], Cause::SpanId),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", TRACE)], Cause::SpanId),
        (&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-sampled", "yes")], Cause::Sampled),
        (&[("x-b3-sampled", "")], Cause::Sampled),
    ] {
        let extracted = read(Format::B3Multi, lines);
        assert_eq!(extracted.context, None, "{lines:?}");
        assert_eq!(extracted.malformed, Some(Malformed { format: Format::B3Multi, cause }), "{lines:?}");
    }
    let twice = [("b3", "1"), ("b3", "0")];
    let malformed = Some(Malformed { format: Format::B3, cause: Cause::Repeated });
    assert_eq!(read(Format::B3, &twice).malformed, malformed);
    let parent = [("x-b3-parentspanid", PARENT)];
    assert_eq!(read(Format::B3Multi, &parent).malformed, None, "says nothing of a trace");
}
