//! What counts of a context, and what becomes of it here.

use super::*;

fn extracted(lines: &[(&str, &str)]) -> Extracted {
    Extracted::of(&fields(lines.iter().copied()), propagators("tracecontext,b3"))
}

#[test]
fn a_stranger_is_linked_to_and_not_obeyed() {
    let traceparent = format!("00-{TRACE}-{SPAN}-03");
    let theirs = Context { random: true, ..context(Some(true)) };
    let extracted = extracted(&[("traceparent", &traceparent)]);
    let inside = Origin { parent: Some(theirs), link: None, sampled: Some(true), debug: false };
    assert_eq!(extracted.origin(true), inside);
    let outside = Origin { parent: None, link: Some(theirs), sampled: None, debug: false };
    assert_eq!(extracted.origin(false), outside);
}

#[test]
fn debug_counts_inside_only() {
    let b3 = format!("{TRACE}-{SPAN}-d");
    let extracted = extracted(&[("b3", &b3)]);
    assert_eq!((extracted.origin(true).sampled, extracted.origin(true).debug), (Some(true), true));
    assert_eq!((extracted.origin(false).sampled, extracted.origin(false).debug), (None, false));
}

#[test]
fn nothing_and_nonsense_have_no_origin() {
    for lines in [&[][..], &[("traceparent", "00-bad")], &[("b3", "bad")]] {
        for trusted in [true, false] {
            assert_eq!(extracted(lines).origin(trusted), Origin::default(), "{lines:?}");
        }
    }
}

#[test]
fn a_child_is_in_its_parents_trace_and_says_what_was_decided_here() {
    let parent = context(Some(true));
    for random in [false, true] {
        let origin = Origin { parent: Some(Context { random, ..parent }), ..Origin::default() };
        for (decision, sampled) in
            [(Decision::Record, true), (Decision::Candidate, false), (Decision::Drop, false)]
        {
            let child = origin.child(parent.trace, span(OWN), decision);
            let expected = Context { span: span(OWN), sampled: Some(sampled), random, ..parent };
            assert_eq!(child, expected, "{decision:?}");
        }
    }
    let child = Origin::default().child(trace(TRACE), span(OWN), Decision::Drop);
    assert!(child.random, "an id that was made here is random, and says so");
}

#[test]
fn debug_goes_on_where_it_is_obeyed() {
    let origin = Origin { sampled: Some(true), debug: true, ..Origin::default() };
    for (decision, debug) in [(Decision::Record, true), (Decision::Candidate, false), (Decision::Drop, false)]
    {
        assert_eq!(origin.child(trace(TRACE), span(OWN), decision).debug, debug, "{decision:?}");
    }
}
