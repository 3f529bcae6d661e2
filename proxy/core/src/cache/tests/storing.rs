//! Section 3: what is stored.

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use outrigger_proto::spec;

use super::{Rig, fields, text};
use crate::cache::directives::Directives;

/// Request, status, answer, stored.
const ROWS: &[(&str, u16, &str, bool)] = &[
    ("", 200, "cache-control: max-age=60", true),
    ("", 200, "cache-control: s-maxage=60", true),
    ("", 200, "expires: Tue, 15 Nov 1994 09:00:00 GMT", true),
    // Of no use later: no life, no validator.
    ("", 200, "cache-control: max-age=0", false),
    ("", 200, "expires: 0", false),
    ("", 200, "", false),
    // To be confirmed each time.
    ("", 200, "etag: \"a\"", true),
    ("", 200, "cache-control: no-cache\netag: \"a\"", true),
    ("", 200, "cache-control: max-age=0\nlast-modified: Tue, 15 Nov 1994 08:00:00 GMT", true),
    // Without a word about its life it may be one user's.
    ("cookie: sid=1", 200, "etag: \"a\"", false),
    ("cookie: sid=1", 200, "etag: \"a\"\ncache-control: public", true),
    ("cookie: sid=1", 200, "cache-control: max-age=60", true),
    ("", 404, "etag: \"a\"", false),
    // Section 5.2.2.
    ("", 200, "cache-control: max-age=60, no-store", false),
    ("", 200, "cache-control: max-age=60, no-store, must-understand", true),
    ("", 200, "cache-control: max-age=60, private", false),
    ("", 200, "cache-control: max-age=60, private=\"set-cookie\"", false),
    ("", 200, "cache-control: max-age=60\ncache-control: private", false),
    ("", 200, "cache-control: max-age=60, x=\"a, private, b\"", true),
    ("", 200, "cache-control: max-age=60, x=\"open", false),
    // Section 3.5.
    ("authorization: a", 200, "cache-control: max-age=60", false),
    ("authorization: a", 200, "cache-control: max-age=60, public", true),
    ("authorization: a", 200, "cache-control: max-age=60, must-revalidate", true),
    ("authorization: a", 200, "cache-control: s-maxage=60", true),
    ("authorization: a", 200, "cache-control: max-age=60, private, public", false),
    ("authorization: a", 200, "etag: \"a\"", false),
    // Cookies are one user's unless the origin says otherwise.
    ("", 200, "cache-control: max-age=60\nset-cookie: sid=1", false),
    ("", 200, "cache-control: max-age=60, public\nset-cookie: theme=dark", true),
    // Status codes.
    ("", 203, "cache-control: max-age=60", true),
    ("", 204, "cache-control: max-age=60", true),
    ("", 300, "cache-control: max-age=60", true),
    ("", 301, "cache-control: max-age=60", true),
    ("", 308, "cache-control: max-age=60", true),
    ("", 404, "cache-control: max-age=60", true),
    ("", 405, "cache-control: max-age=60", true),
    ("", 410, "cache-control: max-age=60", true),
    ("", 414, "cache-control: max-age=60", true),
    ("", 501, "cache-control: max-age=60", true),
    ("", 201, "cache-control: max-age=60", false),
    ("", 206, "cache-control: max-age=60", false),
    ("", 302, "cache-control: max-age=60", false),
    ("", 304, "cache-control: max-age=60", false),
    ("", 500, "cache-control: max-age=60", false),
    ("", 503, "cache-control: max-age=60", false),
    ("", 299, "cache-control: max-age=60", false),
    // A proxy's own answer, a part, one that no request matches.
    ("", 404, "cache-control: max-age=60\noutrigger-reason: no-route", false),
    ("", 200, "cache-control: max-age=60\ncontent-range: bytes 0-3/9", false),
    ("", 200, "cache-control: max-age=60\nvary: *", false),
    ("", 200, "cache-control: max-age=60\nvary: accept, *", false),
    // Section 4.2.1.
    ("", 200, "cache-control: max-age=60, max-age=60", true),
    ("", 200, "cache-control: max-age=60, max-age=61", false),
    ("", 200, "cache-control: max-age=abc", false),
    ("", 200, "cache-control: max-age=-1", false),
    ("", 200, "cache-control: max-age=99999999999999999999", true),
    ("", 200, "CACHE-CONTROL: ,, Max-Age = \"60\" ,", true),
    // As old as it may become when it comes in.
    ("", 200, "cache-control: max-age=60\nage: 60", false),
    ("", 200, "cache-control: max-age=60\nage: 59", true),
    ("", 200, "cache-control: max-age=60\ndate: Tue, 15 Nov 1994 08:11:31 GMT", false),
    ("", 200, "cache-control: max-age=60\ndate: Tue, 15 Nov 1994 08:11:32 GMT", true),
    // Complete as promised.
    ("", 200, "cache-control: max-age=60\ncontent-length: 4", true),
    ("", 200, "cache-control: max-age=60\ncontent-length: 5", false),
    ("", 200, "cache-control: max-age=60\ncontent-length: 3", false),
];

#[test]
fn only_what_may_be_reused_is_stored() {
    for (request, status, head, expected) in ROWS {
        let stored = Rig::new().fetch("/", request, *status, head);
        assert_eq!(stored, *expected, "{request:?} {status} {head:?}");
    }
}

#[test]
fn what_may_serve_for_an_error_is_stored_too() {
    let policy =
        spec::Cache { stale_if_error: Some(std::time::Duration::from_secs(60)), ..Default::default() };
    for (head, with_policy) in [
        ("", true),
        ("cache-control: max-age=0", true),
        ("cache-control: max-age=0, must-revalidate", false),
        ("cache-control: no-cache", false),
        ("cache-control: no-store", false),
    ] {
        assert!(!Rig::new().fetch("/", "", 200, head), "{head}");
        assert_eq!(Rig::with(&policy).fetch("/", "", 200, head), with_policy, "{head}");
    }
    assert!(Rig::new().fetch("/", "", 200, "cache-control: max-age=0, stale-if-error=60"));
}

#[test]
fn requests_that_are_none_of_its_business() {
    for (method, request) in [
        (Method::POST, ""),
        (Method::OPTIONS, ""),
        (Method::GET, "range: bytes=0-3"),
        (Method::GET, "if-range: \"a\""),
        (Method::GET, "if-match: \"a\""),
        (Method::GET, "if-unmodified-since: Tue, 15 Nov 1994 08:12:31 GMT"),
        (Method::GET, "cache-control: no-store"),
        (Method::GET, "upgrade: websocket"),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, "cache-control: max-age=60"));
        assert_eq!(super::word(&rig.ask(&method, "/", request)), "bypass", "{method} {request}");
    }
}

#[test]
fn head_is_answered_and_not_stored() {
    let mut rig = Rig::new();
    let super::Lookup::Miss(pending) = rig.ask(&Method::HEAD, "/", "") else { panic!() };
    assert!(!rig.answer(pending, 200, "cache-control: max-age=60\ncontent-length: 0", b""));
    assert!(rig.fetch("/", "", 200, "cache-control: max-age=60"));
    let super::Lookup::Fresh(hit) = rig.ask(&Method::HEAD, "/", "") else { panic!() };
    assert_eq!((hit.status(), hit.body().len()), (StatusCode::OK, 0));
    assert_eq!(text(&hit.headers(), "content-length"), "4", "that of the answer to GET");
}

#[test]
fn fields_of_the_connection_are_not_kept() {
    let mut rig = Rig::new();
    let head = "cache-control: max-age=60\nage: 7\ntrailer: x\nproxy-authenticate: Basic\nx-a: 1\nx-a: 2\noutrigger-id: 1";
    assert!(rig.fetch("/", "", 200, head));
    let kept = rig.hit("/", "").headers();
    assert_eq!(kept, fields("cache-control: max-age=60\nage: 7\nx-a: 1\nx-a: 2\ncontent-length: 4"));
}

#[test]
fn a_body_keeps_its_large_pieces_and_gathers_the_small_ones() {
    let mut rig = Rig::new();
    let pending = rig.pending("/", "");
    let now = rig.now();
    let head = fields("cache-control: max-age=60");
    let mut recorder = rig.cache.begin_store(pending, StatusCode::OK, &head, now).unwrap();
    let large = Bytes::from(vec![7; 20_000]);
    for piece in
        [&Bytes::from_static(b"one "), &Bytes::from_static(b"two"), &large, &Bytes::from_static(b"end")]
    {
        assert!(recorder.push(piece));
    }
    assert!(rig.cache.store(recorder.finish().unwrap()));
    let hit = rig.hit("/", "");
    let [small, same, end] = hit.body() else { panic!() };
    assert_eq!((&**small, &**end), (&b"one two"[..], &b"end"[..]));
    assert_eq!(same.as_ptr(), large.as_ptr(), "no copy");
}

#[test]
fn one_that_is_cut_or_too_large_was_never_there() {
    let mut rig = Rig::with(&spec::Cache { max_object_bytes: 10_000, ..Default::default() });
    let head = fields("cache-control: max-age=60");
    let (pending, now) = (rig.pending("/", ""), rig.now());
    let mut recorder = rig.cache.begin_store(pending, StatusCode::OK, &head, now).unwrap();
    assert!(recorder.push(&Bytes::from(vec![0; 9_000])));
    assert!(!recorder.push(&Bytes::from(vec![0; 1_000])), "the head counts");
    assert!(recorder.finish().is_none());
    let (pending, declared) =
        (rig.pending("/", ""), fields("cache-control: max-age=60\ncontent-length: 10000"));
    assert!(rig.cache.begin_store(pending, StatusCode::OK, &declared, now).is_none());
    assert_eq!(rig.cache.usage().entries, 0);
}

#[test]
fn pragma_counts_where_cache_control_is_silent() {
    let said = |text| Directives::of_request(&fields(text)).no_cache;
    assert!(said("pragma: no-cache"));
    assert!(!said("pragma: no-cache\ncache-control: max-stale"));
    assert!(!Directives::of_request(&HeaderMap::new()).no_cache);
}
