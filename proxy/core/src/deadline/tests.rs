use proptest::prelude::*;

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

fn fields(lines: &[(HeaderName, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, value) in lines {
        fields.append(name.clone(), HeaderValue::from_str(value).unwrap());
    }
    fields
}

fn text<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    fields.get(name).map(|value| value.to_str().unwrap())
}

#[test]
fn grpc_timeouts_have_units_and_at_most_eight_digits() {
    for (value, timeout) in [
        ("1H", Some(Duration::from_secs(3600))),
        ("2M", Some(Duration::from_secs(120))),
        ("30S", Some(Duration::from_secs(30))),
        ("250m", Some(Duration::from_millis(250))),
        ("7u", Some(Duration::from_micros(7))),
        ("99999999n", Some(Duration::from_nanos(99_999_999))),
        ("0S", Some(Duration::ZERO)),
        ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
        ("100000000n", None),
        ("S", None),
        ("5", None),
        ("", None),
        ("1s", None),
        ("1h", None),
        ("-1S", None),
        ("+1S", None),
        ("1.5S", None),
        ("1 S", None),
    ] {
        assert_eq!(parse_grpc_timeout(value.as_bytes()), timeout, "{value}");
    }
}

#[test]
fn milliseconds_have_at_most_ten_digits() {
    for (value, left) in [
        ("0", Some(0)),
        ("1500", Some(1500)),
        ("007", Some(7)),
        ("9999999999", Some(9_999_999_999)),
        ("10000000000", None),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1.0", None),
        ("1e3", None),
        ("10 ", None),
        ("10, 20", None),
    ] {
        assert_eq!(parse_millis(value.as_bytes()), left.map(Duration::from_millis), "{value}");
    }
}

#[test]
fn the_least_counts_and_says_whose_it_was() {
    let now = crate::testing::start();
    let (one, two, three) = (Some(SECOND), Some(2 * SECOND), Some(3 * SECOND));
    for (mesh, grpc, limit, left, reason) in [
        (None, None, None, None, Reason::RequestTimeout),
        (None, None, two, two, Reason::RequestTimeout),
        (one, None, None, one, Reason::DeadlineExceeded),
        (None, one, None, one, Reason::DeadlineExceeded),
        (three, one, two, one, Reason::DeadlineExceeded),
        (one, three, two, one, Reason::DeadlineExceeded),
        (three, three, two, two, Reason::RequestTimeout),
        (two, None, two, two, Reason::DeadlineExceeded),
        (Some(Duration::ZERO), None, two, Some(Duration::ZERO), Reason::DeadlineExceeded),
        (Some(Duration::MAX), None, None, Some(MOST), Reason::DeadlineExceeded),
    ] {
        let deadline = Deadline::new(Told { mesh, grpc }, limit, now);
        assert_eq!(deadline.remaining(now), left, "{mesh:?} {grpc:?} {limit:?}");
        assert_eq!(deadline.reason(), reason, "{mesh:?} {grpc:?} {limit:?}");
        assert_eq!(deadline.call_remaining(now), grpc, "no limit of a head ends the stream behind it");
        assert_eq!(deadline.at(), left.map(|left| now + left));
    }
}

#[test]
fn what_is_left_shrinks_to_nothing() {
    let now = crate::testing::start();
    let deadline = Deadline::new(Told::default(), Some(SECOND), now);
    for (passed, expired) in [(0, false), (999, false), (1000, true), (5000, true)] {
        let later = now + passed * MILLI;
        assert_eq!(deadline.remaining(later), Some(SECOND.saturating_sub(passed * MILLI)));
        assert_eq!(deadline.is_expired(later), expired, "after {passed} ms");
    }
    assert!(
        deadline.is_expired(now + SECOND - MILLI + Duration::from_nanos(1)),
        "what cannot be told is nothing"
    );
    assert!(!Deadline::new(Told::default(), None, now).is_expired(now + 10_000 * SECOND));
}

#[test]
fn the_next_hop_is_told_what_is_left() {
    let now = crate::testing::start();
    let later = now + 250 * MILLI;
    let (mesh, grpc) = (DEADLINE, GRPC_TIMEOUT);
    for (received, limit, per_try, mesh_left, grpc_left) in [
        (vec![], None, None, None, None),
        (vec![], Some(SECOND), None, Some("750"), None),
        (vec![], None, Some(SECOND), Some("1000"), None),
        (vec![(mesh.clone(), "500")], Some(SECOND), None, Some("250"), None),
        (vec![(mesh.clone(), "900")], None, Some(300 * MILLI), Some("300"), None),
        (vec![(mesh.clone(), "100")], None, None, Some("0"), None),
        // The request timeout is none of the stream's.
        (vec![(grpc.clone(), "5S")], Some(SECOND), None, Some("750"), Some("4750000u")),
        (vec![(grpc.clone(), "1S")], Some(5 * SECOND), None, Some("750"), Some("750000u")),
        (vec![(grpc.clone(), "100m")], None, None, Some("0"), Some("0n")),
        // What is malformed is replaced where it is ours, and left to its server to refuse where it is not.
        (vec![(mesh.clone(), "soon")], None, None, None, None),
        (vec![(mesh.clone(), "soon")], Some(SECOND), None, Some("750"), None),
        (vec![(mesh.clone(), "400"), (mesh.clone(), "500")], Some(SECOND), None, Some("750"), None),
        (vec![(grpc.clone(), "5 seconds")], Some(SECOND), None, Some("750"), Some("5 seconds")),
    ] {
        let mut fields = fields(&received);
        Deadline::new(Told::of(&fields), limit, now).pass_on(per_try, &mut fields, later);
        assert_eq!(text(&fields, &mesh), mesh_left, "{received:?} {limit:?} {per_try:?}");
        assert_eq!(text(&fields, &grpc), grpc_left, "{received:?} {limit:?} {per_try:?}");
        assert!(fields.get_all(&mesh).iter().count() <= 1);
    }
}

#[test]
fn grpc_timeouts_are_written_as_finely_as_eight_digits_allow() {
    for (left, value) in [
        (Duration::ZERO, "0n"),
        (Duration::from_nanos(1), "1n"),
        (Duration::from_nanos(99_999_999), "99999999n"),
        (Duration::from_nanos(100_000_999), "100000u"),
        (Duration::from_micros(99_999_999), "99999999u"),
        (Duration::from_secs(100), "100000m"),
        (Duration::from_secs(99_999), "99999000m"),
        (Duration::from_secs(100_000), "100000S"),
        (Duration::MAX, "99999999S"),
    ] {
        assert_eq!(format_grpc_timeout(left), value, "{left:?}");
    }
}

/// Anything from nanoseconds to centuries, all magnitudes alike.
fn duration() -> impl Strategy<Value = Duration> {
    (0..=u64::MAX, 0..64_u32).prop_map(|(number, shift)| Duration::from_nanos(number >> shift))
}

proptest! {
    #[test]
    fn what_is_written_reads_back_as_no_more(left in duration()) {
        let millis = format_millis(left);
        let read = parse_millis(millis.as_bytes()).unwrap();
        prop_assert!(read <= left && left.min(MOST) - read < MILLI);
        prop_assert_eq!(read.is_zero(), left < RESOLUTION);
        let grpc = format_grpc_timeout(left);
        let read = parse_grpc_timeout(grpc.as_bytes()).unwrap();
        let most = left.min(Duration::from_secs(99_999_999));
        prop_assert!(read <= left && (most - read) * 10_000 <= most, "{:?} as {:?}", left, grpc);
        prop_assert_eq!(read.is_zero(), left.is_zero());
    }

    /// A chain of hops, each with its own limits, delays and idea of now: nobody ever has more than the hop before it had
    /// when it passed the request on.
    #[test]
    fn deadlines_only_shrink_from_hop_to_hop(
        first_mesh in prop::option::of(duration()),
        first_grpc in prop::option::of(duration()),
        hops in prop::collection::vec(
            (prop::option::of(duration()), prop::option::of(duration()), duration(), 0..1_000_000_u64),
            1..8,
        ),
    ) {
        let start = crate::testing::start();
        let mut fields = HeaderMap::new();
        first_mesh.map(|left| fields.insert(DEADLINE, format_millis(left)));
        first_grpc.map(|left| fields.insert(GRPC_TIMEOUT, format_grpc_timeout(left)));
        let (mut head, mut call) = (lesser(first_mesh, first_grpc), first_grpc);
        for (limit, per_try, spent, offset) in hops {
            // Each machine's clock begins somewhere else.
            let arrived = start + Duration::from_secs(offset);
            let deadline = Deadline::new(Told::of(&fields), limit, arrived);
            let spent = spent.min(MOST);
            let sent = arrived + spent;
            deadline.pass_on(per_try, &mut fields, sent);
            prop_assert_eq!(text(&fields, &DEADLINE) == Some("0"), per_try.is_some_and(|limit| limit < MILLI)
                || deadline.is_expired(sent));
            let told = Told::of(&fields);
            for (before, after) in [(head, told.mesh), (limit, told.mesh), (call, told.grpc)] {
                if let Some(before) = before {
                    prop_assert!(after.is_some(), "a deadline never gets lost");
                    prop_assert!(after <= Some(before.saturating_sub(spent)), "{:?} after {:?}", after, before);
                }
            }
            (head, call) = (told.mesh, told.grpc);
        }
    }

    #[test]
    fn no_value_is_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..16), passed in duration()) {
        let now = crate::testing::start();
        if let Ok(value) = HeaderValue::from_bytes(&bytes) {
            let mut fields = HeaderMap::new();
            fields.insert(DEADLINE, value.clone());
            fields.insert(GRPC_TIMEOUT, value.clone());
            let told = Told::of(&fields);
            let deadline = Deadline::new(told, None, now);
            deadline.pass_on(None, &mut fields, now + passed.min(MOST));
            prop_assert_eq!(fields.get(GRPC_TIMEOUT) == Some(&value) || told.grpc.is_some(), true);
        }
    }
}
