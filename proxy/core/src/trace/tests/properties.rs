use proptest::prelude::*;

use super::*;

fn contexts() -> impl Strategy<Value = Context> {
    let sampled = prop_oneof![Just(None), Just(Some(true)), Just(Some(false))];
    (any::<[u64; 3]>(), sampled, any::<[bool; 2]>()).prop_map(
        |([high, low, id], sampled, [debug, random])| {
            let trace = TraceId::from_random(high, low);
            Context {
                trace,
                span: SpanId::from_random(id),
                sampled,
                debug: debug && sampled == Some(true),
                random,
            }
        },
    )
}

/// What a format can tell of it.
fn told(context: Context, format: Format) -> Context {
    match format {
        Format::W3c => Context { sampled: Some(context.sampled == Some(true)), debug: false, ..context },
        Format::B3 | Format::B3Multi => Context { random: false, ..context },
    }
}

fn orders() -> impl Strategy<Value = Propagators> {
    let orders = vec!["tracecontext", "b3", "b3multi", "b3,tracecontext", "b3multi,b3,tracecontext", "none"];
    proptest::sample::select(orders).prop_map(propagators)
}

fn values() -> impl Strategy<Value = Vec<u8>> {
    let legal = |byte: &u8| *byte == b'\t' || (*byte >= 0x20 && *byte != 0x7f);
    prop_oneof![
        proptest::collection::vec(any::<u8>().prop_filter("of a value", legal), 0..80),
        "[0-9a-f]{0,3}-[0-9a-f]{30,33}-[0-9a-f]{15,17}-[0-9a-f]{1,3}(-[a-z]{0,9})?"
            .prop_map(String::into_bytes),
        "[0-9a-f]{16}([0-9a-f]{16})?-[0-9a-f]{16}(-[01d2])?(-[0-9a-f]{16})?".prop_map(String::into_bytes),
        "[01d]".prop_map(String::into_bytes),
        "([a-z]=[0-9]{0,9}, ?){0,70}".prop_map(String::into_bytes),
    ]
}

fn lines() -> impl Strategy<Value = HeaderMap> {
    let names = proptest::sample::select(vec![
        "traceparent",
        "tracestate",
        "baggage",
        "b3",
        "x-b3-traceid",
        "x-b3-spanid",
        "x-b3-parentspanid",
        "x-b3-sampled",
        "x-b3-flags",
        "accept",
    ]);
    proptest::collection::vec((names, values()), 0..12).prop_map(|lines| {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(name, HeaderValue::from_bytes(&value).unwrap());
        }
        fields
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(context in contexts(), format in proptest::sample::select(&Format::ALL[..])) {
        let only = propagators(format.name());
        let mut fields = HeaderMap::new();
        Mint::new().inject(&context, &Extracted::of(&fields, only), &mut fields);
        let again = Extracted::of(&fields, only);
        prop_assert_eq!(again.context, Some(told(context, format)));
        prop_assert_eq!(again.malformed, None);

        // And written again, it is the same text.
        let mut twice = HeaderMap::new();
        Mint::new().inject(&again.context.unwrap(), &again, &mut twice);
        prop_assert_eq!(twice, fields);
    }

    #[test]
    fn whatever_comes_one_context_goes_on(
        mut fields in lines(), order in orders(), context in contexts(), trusted in any::<bool>(),
    ) {
        let extracted = Extracted::of(&fields, order);
        let origin = extracted.origin(trusted);
        prop_assert_eq!(extracted.context, origin.parent.or(origin.link));
        prop_assert!(trusted || origin.parent.is_none() && origin.sampled.is_none() && !origin.debug);
        let trace = origin.parent.map_or(context.trace, |parent| parent.trace);
        let decision = if origin.sampled.unwrap_or(context.random) { Decision::Record } else { Decision::Drop };
        let own = origin.child(trace, context.span, decision);
        let untouched = fields.get("accept").cloned();
        Mint::new().inject(&own, &extracted, &mut fields);

        prop_assert_eq!(fields.get("accept"), untouched.as_ref());
        let again = Extracted::of(&fields, order);
        prop_assert_eq!(again.malformed, None);
        prop_assert_eq!(again.context.is_some(), !order.formats().is_empty());
        if let Some(again) = again.context {
            prop_assert_eq!((again.trace, again.span, again.sampled), (own.trace, own.span, own.sampled));
        }
        prop_assert!(!matches!(again.tracestate, Passage::Dropped(_)), "{:?}", again.tracestate);
        prop_assert!(!matches!(again.baggage, Passage::Dropped(_)), "{:?}", again.baggage);
        if !extracted.context.is_some_and(|from| from.trace == own.trace) && order.formats().has(Format::W3c) {
            prop_assert!(!fields.contains_key("tracestate"), "a state of another trace");
        }
    }

    #[test]
    fn a_lower_ratio_takes_nothing_that_a_higher_one_drops(
        one in 0.0..=1.0_f64, other in 0.0..=1.0_f64, [high, low] in any::<[u64; 2]>(),
    ) {
        let (lower, higher) = if one < other { (one, other) } else { (other, one) };
        let trace = TraceId::from_random(high, low);
        let takes = |share: f64| sampling::takes(&share.to_string(), trace);
        prop_assert!(!takes(lower) || takes(higher), "{lower} takes what {higher} does not");
    }

    #[test]
    fn only_the_low_56_bits_decide([high, low] in any::<[u64; 2]>(), other in any::<u64>(), byte in any::<u8>()) {
        let low = low | 1;
        let changed = low & !(0xff << 56) | u64::from(byte) << 56;
        let (one, other) = (TraceId::from_random(high, low), TraceId::from_random(other, changed));
        prop_assert_eq!(sampling::takes("0.5", one), sampling::takes("0.5", other));
    }
}
