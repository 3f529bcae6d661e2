//! What is passed on beside a context, and what of several formats counts.

use super::*;

const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// `count` members of `length` bytes in all.
fn list(count: usize, length: usize) -> String {
    let mut list = (0..count).map(|n| format!("k{n}=v")).collect::<Vec<_>>().join(",");
    assert!(list.len() <= length);
    list.push_str(&"x".repeat(length - list.len()));
    list
}

fn sent(lines: &[(&str, &str)]) -> (Extracted, HeaderMap) {
    let mut fields = fields(lines.iter().copied());
    let extracted = Extracted::of(&fields, Propagators::default());
    let trace = extracted.context.map_or_else(|| TraceId::from_random(1, 2), |context| context.trace);
    let own = extracted.origin(true).child(trace, span(OWN), Decision::Drop);
    Mint::new().inject(&own, &extracted, &mut fields);
    (extracted, fields)
}

#[test]
fn tracestate_goes_on_untouched_or_not_at_all() {
    let (short, long) = (list(2, 512), list(2, 513));
    let (few, many) = (list(32, 300), list(33, 300));
    let (half, rest) = (list(20, 256), list(12, 255));
    let empty = format!("{}{}", list(32, 300), ", ,\t,".repeat(4));
    let commas = ",".repeat(512);
    for (lines, expected) in [
        (vec!["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"], Passage::Kept),
        (vec!["congo=t61rcWkgMzE", "", "rojo=00f067aa0ba902b7"], Passage::Kept),
        (vec![""], Passage::Kept),
        (vec!["FOO =not=looked,,at"], Passage::Kept),
        (vec![&*short], Passage::Kept),
        (vec![&*long], Passage::Dropped(Dropped::TooLong)),
        (vec![&*few], Passage::Kept),
        (vec![&*many], Passage::Dropped(Dropped::TooMany)),
        (vec![&*empty], Passage::Kept),
        (vec![&*commas], Passage::Kept),
        // A comma between the lines counts.
        (vec![&*half, &*rest], Passage::Kept),
        (vec![&*half, &*half], Passage::Dropped(Dropped::TooLong)),
        (vec![&*few, "one=more"], Passage::Dropped(Dropped::TooMany)),
        (vec![&*few, " , "], Passage::Kept),
        (vec![",,,,,,,,,,,,,,,,,,,,,,,,,,,,,,", &*half], Passage::Kept),
        (vec![&*half, ",,,,,,,,,,,,,,,,,,,,,,,,,,,,,,"], Passage::Kept),
    ] {
        let mut fields = vec![("traceparent", GOOD)];
        fields.extend(lines.iter().map(|line| ("tracestate", *line)));
        let (extracted, sent) = sent(&fields);
        assert_eq!(extracted.tracestate, expected, "{lines:?}");
        assert_eq!(extracted.context, Some(context(Some(true))), "whatever becomes of the state");
        let kept = if expected == Passage::Kept { lines } else { vec![] };
        assert_eq!(all(&sent, "tracestate"), kept);
    }
}

#[test]
fn tracestate_needs_its_traceparent() {
    for lines in [
        vec![("tracestate", "a=b")],
        vec![("traceparent", "00-bad"), ("tracestate", "a=b")],
        vec![("traceparent", GOOD), ("traceparent", GOOD), ("tracestate", "a=b"), ("tracestate", "c=d")],
    ] {
        let (extracted, sent) = sent(&lines);
        assert_eq!(extracted.tracestate, Passage::Dropped(Dropped::Orphaned), "{lines:?}");
        assert!(!sent.contains_key("tracestate"), "{lines:?}");
        assert!(one(&sent, "traceparent").is_some(), "{lines:?}");
    }
    let (extracted, _) = sent(&[("traceparent", GOOD)]);
    assert_eq!(extracted.tracestate, Passage::Absent);
}

#[test]
fn tracestate_stays_in_its_trace() {
    let mut fields = fields([("traceparent", GOOD), ("tracestate", "a=b")]);
    let extracted = Extracted::of(&fields, Propagators::default());
    let origin = extracted.origin(false);
    let own = origin.child(TraceId::from_random(1, 2), span(OWN), Decision::Drop);
    Mint::new().inject(&own, &extracted, &mut fields);
    assert!(!fields.contains_key("tracestate"), "of a stranger's trace");
}

#[test]
fn baggage_goes_on_whole_or_not_at_all() {
    let (short, long) = (list(64, 8192), list(1, 8193));
    let many = list(65, 1000);
    for (lines, expected) in [
        (vec!["user=alice;level=1,x=%20"], Passage::Kept),
        (vec!["a=b", "c=d"], Passage::Kept),
        (vec![&*short], Passage::Kept),
        (vec![&*long], Passage::Dropped(Dropped::TooLong)),
        (vec![&*many], Passage::Dropped(Dropped::TooMany)),
        (vec![&*short, ""], Passage::Dropped(Dropped::TooLong)),
    ] {
        for traceparent in [GOOD, "broken"] {
            let mut fields = vec![("traceparent", traceparent)];
            fields.extend(lines.iter().map(|line| ("baggage", *line)));
            let (extracted, sent) = sent(&fields);
            assert_eq!(extracted.baggage, expected);
            let kept = if expected == Passage::Kept { &lines[..] } else { &[] };
            assert_eq!(all(&sent, "baggage"), kept);
        }
    }
    let (extracted, _) = sent(&[]);
    assert_eq!(extracted.baggage, Passage::Absent);
}

#[test]
fn of_several_formats_the_first_good_one_counts_and_all_are_written() {
    let b3 = "0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-0";
    let multi = [("x-b3-traceid", "1af7651916cd43dd8448eb211c80319c"), ("x-b3-spanid", SPAN)];
    for (order, w3c, chosen, malformed, tracestate) in [
        ("tracecontext,b3,b3multi", GOOD, TRACE, None, true),
        ("b3,tracecontext,b3multi", GOOD, "0af7651916cd43dd8448eb211c80319c", None, false),
        ("b3multi,b3,tracecontext", GOOD, "1af7651916cd43dd8448eb211c80319c", None, false),
        (
            "tracecontext,b3,b3multi",
            "00-bad",
            "0af7651916cd43dd8448eb211c80319c",
            Some(Malformed { format: Format::W3c, cause: Cause::Shape }),
            false,
        ),
    ] {
        let mut fields = fields(
            [("traceparent", w3c), ("b3", b3), ("tracestate", "a=b")]
                .into_iter()
                .chain(multi.iter().copied()),
        );
        let extracted = Extracted::of(&fields, propagators(order));
        assert_eq!(extracted.context.unwrap().trace, trace(chosen), "{order}");
        assert_eq!(extracted.malformed, malformed, "{order}");
        assert_eq!(extracted.tracestate == Passage::Kept, tracestate, "{order}");

        let own = extracted.origin(true).child(trace(chosen), span(OWN), Decision::Record);
        Mint::new().inject(&own, &extracted, &mut fields);
        assert_eq!(one(&fields, "traceparent"), Some(&*format!("00-{chosen}-{OWN}-01")), "{order}");
        assert_eq!(one(&fields, "b3"), Some(&*format!("{chosen}-{OWN}-1")), "{order}");
        assert_eq!(one(&fields, "x-b3-traceid"), Some(chosen), "{order}");
        assert_eq!(one(&fields, "x-b3-spanid"), Some(OWN), "{order}");
        assert_eq!(fields.contains_key("tracestate"), tracestate, "{order}");
    }
}

#[test]
fn tracestate_stays_where_both_formats_tell_of_one_trace() {
    let b3 = format!("{TRACE}-{SPAN}-1");
    let fields = fields([("b3", &*b3), ("traceparent", GOOD), ("tracestate", "a=b")]);
    assert_eq!(Extracted::of(&fields, propagators("b3,tracecontext")).tracestate, Passage::Kept);
}

#[test]
fn it_goes_on_as_it_came_or_as_is_configured() {
    for (order, lines, written) in [
        ("b3,tracecontext", vec![], vec!["b3", "traceparent"]),
        ("b3,tracecontext", vec![("traceparent", GOOD)], vec!["traceparent"]),
        ("b3,tracecontext", vec![("traceparent", "bad")], vec!["traceparent"]),
        ("tracecontext,b3", vec![("b3", "0")], vec!["b3"]),
        ("tracecontext,b3", vec![("b3", "bad"), ("traceparent", GOOD)], vec!["b3", "traceparent"]),
        ("b3multi", vec![], vec!["x-b3-sampled", "x-b3-spanid", "x-b3-traceid"]),
        ("none", vec![], vec![]),
    ] {
        let mut fields = fields(lines.iter().copied());
        let extracted = Extracted::of(&fields, propagators(order));
        Mint::new().inject(&context(Some(true)), &extracted, &mut fields);
        let mut names: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, written, "{order}, {lines:?}");
        let again = Extracted::of(&fields, propagators(order));
        assert_eq!((again.context.is_some(), again.malformed), (!written.is_empty(), None), "{order}");
    }
}

#[test]
fn what_is_not_configured_is_left_alone() {
    let lines = [("traceparent", GOOD), ("tracestate", "a=b"), ("x-b3-traceid", "?")];
    for order in ["b3", "none"] {
        let mut sent = fields(lines);
        let extracted = Extracted::of(&sent, propagators(order));
        assert_eq!((extracted.context, extracted.malformed), (None, None), "{order}");
        Mint::new().inject(&context(Some(true)), &extracted, &mut sent);
        sent.remove("b3");
        assert_eq!(sent, fields(lines), "{order}");
    }
}
