//! What passes `--access-log-only`.

use super::*;

fn only(text: &str) -> Only {
    Only::parse(text).unwrap_or_else(|what| panic!("{text}: {what}"))
}

#[test]
fn without_a_filter_everything_passes() {
    assert!(Only::default().request(&record()) && Only::default().connection(&connection()));
}

#[test]
fn errors() {
    let only = only("errors");
    for (status, grpc_status, reason, passes) in [
        (200, None, None, false),
        (404, None, None, false),
        (499, None, None, false),
        (500, None, None, true),
        (503, None, None, true),
        // The caller left first.
        (0, None, None, true),
        // Made by the proxy, or cut short by it.
        (403, None, Some(Reason::Denied), true),
        (200, None, Some(Reason::UpstreamReset), true),
        (200, Some(0), None, false),
        (200, Some(1), None, false),
        (200, Some(2), None, true),
        (200, Some(3), None, false),
        (200, Some(4), None, true),
        (200, Some(5), None, false),
        (200, Some(7), None, false),
        (200, Some(8), None, false),
        (200, Some(12), None, true),
        (200, Some(13), None, true),
        (200, Some(14), None, true),
        (200, Some(15), None, true),
        (200, Some(16), None, false),
        // No code of gRPC's.
        (200, Some(17), None, true),
    ] {
        let record = RequestRecord { status, grpc_status, reason, ..record() };
        assert_eq!(only.request(&record), passes, "{status} {grpc_status:?} {reason:?}");
    }
    assert!(only.connection(&connection()));
    assert!(!only.connection(&ConnectionRecord { reason: None, ..connection() }));
}

#[test]
fn slower() {
    let only = only("slower=100ms");
    let of = |micros| RequestRecord { duration: Duration::from_micros(micros), ..record() };
    assert_eq!([99_999, 100_000, 100_001].map(|micros| only.request(&of(micros))), [false, false, true]);
    let of = |connected| ConnectionRecord {
        connected: Duration::from_millis(connected),
        duration: Duration::from_secs(3600),
        ..connection()
    };
    assert_eq!([100, 101].map(|millis| only.connection(&of(millis))), [false, true]);
}

#[test]
fn a_sample_has_its_share_whatever_the_ids() {
    const IDS: u64 = 100_000;
    for (share, expected) in [("0.01", 1_000), ("0.5", 50_000), ("1", IDS), ("1e-30", 0)] {
        let only = only(&format!("sample={share}"));
        let of_trace = |low: u128| {
            let trace = TraceId(low.try_into().unwrap());
            RequestRecord { trace: Some(Traced { trace, ..traced() }), ..record() }
        };
        // Somebody who counts, in the low and in the high half, and one whose ids are a clock's.
        let samples = [
            (1..=IDS).filter(|n| only.request(&RequestRecord { id: *n, ..record() })).count(),
            (1..=IDS).filter(|n| only.request(&of_trace((*n).into()))).count(),
            (1..=IDS).filter(|n| only.request(&of_trace(u128::from(*n) << 64))).count(),
            (1..=IDS).filter(|n| only.connection(&ConnectionRecord { id: *n << 20, ..connection() })).count(),
        ];
        for taken in samples {
            let error = (taken as f64 - expected as f64).abs();
            assert!(error <= 5.0 * (expected as f64).sqrt(), "{taken} instead of {expected}");
        }
    }
}

#[test]
fn all_proxies_of_a_trace_take_the_same_sample() {
    let only = only("sample=0.5");
    let mut taken = 0;
    for n in 1..=1000_u128 {
        let trace = TraceId(n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).try_into().unwrap());
        let of = |id, span: u64| RequestRecord {
            id,
            trace: Some(Traced { trace, span: SpanId(span.try_into().unwrap()), sampled: id == 1 }),
            ..record()
        };
        let all = [1, 2, 3].map(|n| only.request(&of(n, n + 7)));
        assert!(all == [all[0]; 3]);
        taken += u32::from(all[0]);
    }
    assert!((400..600).contains(&taken), "{taken}");
}

#[test]
fn one_suffices() {
    let only = only("errors,slower=1s");
    assert!(!only.request(&record()));
    assert!(only.request(&RequestRecord { status: 500, ..record() }));
    assert!(only.request(&RequestRecord { duration: Duration::from_secs(2), ..record() }));
}

#[test]
fn mistakes_are_named() {
    for (text, what) in [
        ("", "\"\": want errors, slower=TIME or sample=SHARE"),
        ("error", "\"error\": want errors, slower=TIME or sample=SHARE"),
        ("errors=1", "\"errors=1\": want errors"),
        ("errors,", "\"\": want errors"),
        ("errors,errors", "errors is there twice"),
        ("slower", "\"slower\": want errors"),
        ("slower=", "\"slower=\": want a time with its unit, such as slower=100ms"),
        ("slower=100", "\"slower=100\": want a time with its unit"),
        ("slower=1s,slower=2s", "slower is there twice"),
        ("sample=", "\"sample=\": want a share above 0 and up to 1"),
        ("sample=0", "\"sample=0\": want a share"),
        ("sample=1.5", "\"sample=1.5\": want a share"),
        ("sample=-0.1", "\"sample=-0.1\": want a share"),
        ("sample=1%", "\"sample=1%\": want a share"),
        ("sample=NaN", "\"sample=NaN\": want a share"),
        ("sample=inf", "\"sample=inf\": want a share"),
        ("sample=.", "\"sample=.\": want a share"),
    ] {
        let said = Only::parse(text).unwrap_err();
        assert!(said.contains(what), "{text}: {said}");
    }
}

#[test]
fn what_is_said_is_what_was_read() {
    for text in ["errors", "slower=100ms", "sample=0.01", "errors,slower=250ms,sample=1"] {
        assert_eq!(only(text).to_string(), text);
    }
    assert_eq!(Only::default().to_string(), "");
}
