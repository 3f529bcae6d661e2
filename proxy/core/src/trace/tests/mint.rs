//! Values are slices of few chunks.

use super::*;

fn inject(mint: &mut Mint, random: u64) -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(8);
    let own = Context { span: SpanId::from_random(random), ..context(Some(false)) };
    let extracted = Extracted::of(&fields, Propagators::default());
    mint.inject(&own, &extracted, &mut fields);
    assert_eq!(one(&fields, "traceparent").map(str::to_owned), Some(format!("00-{TRACE}-{}-00", own.span)));
    fields
}

/// Chunks begin anew where a value does not lie right behind the one before it.
fn chunks(fields: &[HeaderMap]) -> usize {
    let places: Vec<_> =
        fields.iter().map(|fields| fields["traceparent"].as_bytes().as_ptr_range()).collect();
    1 + places.windows(2).filter(|pair| pair[0].end != pair[1].start).count()
}

#[test]
fn dozens_of_requests_share_a_chunk() {
    let mut mint = Mint::new();
    let held: Vec<_> = (1..=740).map(|random| inject(&mut mint, random)).collect();
    assert_eq!(chunks(&held), 10, "74 values each, while all of them are held");
    for (fields, random) in held.iter().zip(1..) {
        let expected = format!("00-{TRACE}-{}-00", SpanId::from_random(random));
        assert_eq!(one(fields, "traceparent"), Some(&*expected), "nobody writes over what is held");
    }
}

#[test]
fn a_chunk_that_nobody_holds_is_filled_anew() {
    let mut mint = Mint::new();
    let first = inject(&mut mint, 1)["traceparent"].as_bytes().as_ptr();
    for random in 2..=74 {
        inject(&mut mint, random);
    }
    let again = inject(&mut mint, 75);
    assert_eq!(again["traceparent"].as_bytes().as_ptr(), first, "the same memory, over and over");
}
