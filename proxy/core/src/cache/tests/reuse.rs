//! Section 4: which request gets a stored answer, how old it is, and when it needs its origin's word.

use std::time::Duration;

use http::Method;

use super::{Rig, THEN, text, word};

/// Answer, seconds later, request, what becomes of it.
const ROWS: &[(&str, u64, &str, &str)] = &[
    ("cache-control: max-age=60", 59, "", "fresh"),
    ("cache-control: max-age=60", 60, "", "stale"),
    // The first of these that is there counts (section 4.2.1).
    ("cache-control: max-age=60, s-maxage=600", 599, "", "fresh"),
    ("cache-control: max-age=600, s-maxage=60", 60, "", "stale"),
    ("cache-control: max-age=60\nexpires: Tue, 15 Nov 1994 09:12:31 GMT", 60, "", "stale"),
    ("expires: Tue, 15 Nov 1994 08:13:31 GMT", 59, "", "fresh"),
    ("expires: Tue, 15 Nov 1994 08:13:31 GMT", 60, "", "stale"),
    // Expires is against the origin's date, whatever our clock says; the older spellings are dates too (RFC
    // 9110 5.6.7).
    ("expires: Sunday, 06-Nov-94 08:50:37 GMT\ndate: Sun Nov  6 08:49:37 1994\netag: \"a\"", 0, "", "stale"),
    ("expires: Tue, 15 Nov 1994 10:13:31 GMT\ndate: Tue, 15 Nov 1994 10:12:31 GMT", 59, "", "fresh"),
    ("expires: Tue, 15 Nov 1994 10:13:31 GMT\ndate: Tue, 15 Nov 1994 10:12:31 GMT", 60, "", "stale"),
    // No heuristics.
    ("etag: \"a\"\nlast-modified: Tue, 15 Nov 1983 08:12:31 GMT", 0, "", "stale"),
    ("cache-control: no-cache, max-age=60\netag: \"a\"", 0, "", "stale"),
    ("cache-control: no-cache=\"x\", max-age=60\netag: \"a\"", 0, "", "stale"),
    ("cache-control: max-age=60\nage: 50", 9, "", "fresh"),
    ("cache-control: max-age=60\nage: 50", 10, "", "stale"),
    // The request's wishes (section 5.2.1).
    ("cache-control: max-age=60", 0, "cache-control: no-cache", "stale"),
    ("cache-control: max-age=60", 0, "pragma: no-cache", "stale"),
    ("cache-control: max-age=60", 0, "cache-control: max-age=0", "stale"),
    ("cache-control: max-age=60", 10, "cache-control: max-age=10", "fresh"),
    ("cache-control: max-age=60", 11, "cache-control: max-age=10", "stale"),
    ("cache-control: max-age=60", 50, "cache-control: min-fresh=10", "fresh"),
    ("cache-control: max-age=60", 51, "cache-control: min-fresh=10", "stale"),
    ("cache-control: max-age=60", 70, "cache-control: max-stale=10", "old"),
    ("cache-control: max-age=60", 71, "cache-control: max-stale=10", "stale"),
    ("cache-control: max-age=60", 100_000, "cache-control: max-stale", "old"),
    ("cache-control: max-age=60", 70, "cache-control: max-stale=10, max-age=65", "stale"),
    ("cache-control: max-age=60", 70, "cache-control: max-stale=10, min-fresh=1", "stale"),
    ("cache-control: max-age=60, must-revalidate", 70, "cache-control: max-stale", "stale"),
    ("cache-control: max-age=60, proxy-revalidate", 70, "cache-control: max-stale", "stale"),
    ("cache-control: s-maxage=60", 70, "cache-control: max-stale", "stale"),
    ("cache-control: max-age=60", 59, "cache-control: only-if-cached", "fresh"),
    ("cache-control: max-age=60", 60, "cache-control: only-if-cached", "504"),
    ("cache-control: max-age=60", 60, "cache-control: only-if-cached, max-stale", "old"),
];

#[test]
fn an_answer_serves_while_it_is_fresh() {
    for (head, later, request, expected) in ROWS {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, head), "{head}");
        rig.wait(*later);
        assert_eq!(word(&rig.get("/", request)), *expected, "{head:?} after {later} s, {request:?}");
    }
}

#[test]
fn nothing_stored_and_nothing_wanted_from_upstream() {
    assert_eq!(word(&Rig::new().get("/", "cache-control: only-if-cached")), "504");
}

/// Section 4.2.3: Date says, Age says, seconds that the answer took, seconds kept, age.
#[test]
fn age_is_the_largest_of_what_is_known() {
    for (date, age, delay, kept, expected) in [
        ("", "", 0, 0, 0),
        ("", "", 3, 5, 8),
        ("", "age: 10", 3, 5, 18),
        ("date: Tue, 15 Nov 1994 08:12:01 GMT", "", 0, 5, 35),
        // The answer came 3 s after THEN: apparent age 33 against 10 + 3.
        ("date: Tue, 15 Nov 1994 08:12:01 GMT", "age: 10", 3, 5, 38),
        ("date: Tue, 15 Nov 1994 08:12:01 GMT", "age: 40", 3, 5, 48),
        // A clock that is ahead of ours, an age that is none, a list.
        ("date: Tue, 15 Nov 1994 09:12:01 GMT", "age: x", 0, 5, 5),
        ("", "age: 7, 90", 0, 0, 7),
    ] {
        let mut rig = Rig::new();
        let pending = rig.pending("/", "");
        rig.wait(delay);
        assert!(rig.answer(pending, 200, &format!("cache-control: max-age=600\n{date}\n{age}"), b""));
        rig.wait(kept);
        let hit = rig.hit("/", "");
        assert_eq!(hit.age(), Duration::from_secs(expected), "{date} {age} {delay} {kept}");
        assert_eq!(text(&hit.headers(), "age"), expected.to_string());
    }
}

#[test]
fn a_clock_that_stood_still_or_was_set_makes_older_never_younger() {
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "", 200, "cache-control: max-age=60"));
    let now = rig.now();
    let none = http::HeaderMap::new();
    let request = super::RequestView {
        method: &Method::GET,
        authority: "orders",
        path: "/",
        headers: &none,
        has_body: false,
    };
    let minute = Duration::from_secs(60);
    let slept = super::Now { instant: now.instant, wall: now.wall + minute };
    let set_back = super::Now { instant: now.instant + minute, wall: now.wall - minute };
    assert_eq!(word(&rig.cache.lookup(&request, slept)), "stale");
    assert_eq!(word(&rig.cache.lookup(&request, set_back)), "stale");
    assert_eq!(word(&rig.cache.lookup(&request, now)), "fresh");
}

/// Section 4.1. Fields of the stored request, of the new one, Vary, match.
#[test]
fn vary_selects() {
    for (stored, asked, vary, expected) in [
        ("accept-language: en", "accept-language: en", "accept-language", true),
        ("accept-language: en", "accept-language: de", "accept-language", false),
        ("accept-language: en", "", "Accept-Language", false),
        ("", "accept-language: en", "accept-language", false),
        ("", "", "accept-language", true),
        ("accept-language: en", "accept-language: de", "accept-encoding", true),
        ("x: 1\ny: 2", "x: 1\ny: 3", "x, y", false),
        ("x: 1\ny: 2", "y: 2\nx: 1", "y,x,x", true),
        // Lines joined, space around them.
        ("x: a\nx: b", "x: a,b", "x", true),
        ("x: a\nx: b", "x: b,a", "x", false),
        // Which field a value stands in matters, and an empty one is not an absent one.
        ("x: 1", "y: 1", "x, y", false),
        ("x:", "", "x", false),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", stored, 200, &format!("cache-control: max-age=60\nvary: {vary}")));
        assert_eq!(word(&rig.get("/", stored)), "fresh");
        let found = word(&rig.get("/", asked)) == "fresh";
        assert_eq!(found, expected, "{stored:?} {asked:?} {vary}");
    }
}

#[test]
fn another_vary_makes_all_variants_doubtful() {
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "accept: a", 200, "cache-control: max-age=60\nvary: accept"));
    assert!(rig.fetch("/", "accept: b", 200, "cache-control: max-age=60\nvary: accept"));
    assert!(rig.fetch("/", "accept: c", 200, "cache-control: max-age=60\nvary: accept, cookie"));
    assert_eq!(word(&rig.get("/", "accept: a")), "miss");
    assert_eq!(word(&rig.get("/", "accept: c")), "fresh");
    assert_eq!(rig.cache.usage().entries, 1);
}

#[test]
fn credentials_never_share() {
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "authorization: a", 200, "cache-control: s-maxage=60, public"));
    for other in ["", "authorization: b", "authorization: a\nauthorization: a", "cookie: a"] {
        assert_eq!(word(&rig.get("/", other)), "miss", "{other}");
    }
    assert_eq!(word(&rig.get("/", "authorization: a")), "fresh");
    assert!(rig.fetch("/", "", 200, "cache-control: s-maxage=60, public"));
    assert_eq!(word(&rig.get("/", "")), "fresh");
    assert_eq!(word(&rig.get("/", "authorization: b")), "miss");
}

#[test]
fn a_url_is_host_path_and_query() {
    let mut rig = Rig::new();
    assert!(rig.fetch("/a?x=1", "", 200, &format!("cache-control: max-age=60\ndate: {THEN}")));
    for (authority, path, expected) in [
        ("orders", "/a?x=1", "fresh"),
        ("ORDERS:80", "/a?x=1", "fresh"),
        ("orders:8080", "/a?x=1", "miss"),
        ("orders", "/a?x=2", "miss"),
        ("orders", "/a", "miss"),
        ("orders", "/A?x=1", "miss"),
        ("billing", "/a?x=1", "miss"),
    ] {
        let (headers, now) = (http::HeaderMap::new(), rig.now());
        let request =
            super::RequestView { method: &Method::GET, authority, path, headers: &headers, has_body: false };
        assert_eq!(word(&rig.cache.lookup(&request, now)), expected, "{authority}{path}");
    }
}
