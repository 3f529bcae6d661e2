//! Section 4.3 (confirmation), section 4.4 (invalidation) and RFC 5861 (stale for want of a better one).

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode};
use outrigger_proto::spec;

use super::{Lookup, Rig, fields, text, word};

const MODIFIED: &str = "Tue, 15 Nov 1994 08:00:00 GMT";

#[test]
fn validators_become_conditions() {
    for (head, before, after) in [
        ("etag: \"a\"", "", "if-none-match: \"a\""),
        ("etag: W/\"a\"", "x: 1", "x: 1\nif-none-match: W/\"a\""),
        (
            "last-modified: Tue, 15 Nov 1994 08:00:00 GMT",
            "",
            "if-modified-since: Tue, 15 Nov 1994 08:00:00 GMT",
        ),
        (
            "etag: \"a\"\nlast-modified: Tue, 15 Nov 1994 08:00:00 GMT",
            "if-none-match: \"b\", \"c\"",
            "if-none-match: \"a\"\nif-modified-since: Tue, 15 Nov 1994 08:00:00 GMT",
        ),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, head));
        let mut request = fields(before);
        assert!(rig.stale("/", before).set_conditions(&mut request));
        assert_eq!(request, fields(after), "{head}");
    }
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "", 200, "cache-control: max-age=1"));
    rig.wait(1);
    let mut request = fields("if-none-match: \"b\"");
    assert!(!rig.stale("/", "").set_conditions(&mut request));
    assert_eq!(request, fields("if-none-match: \"b\""), "the caller's own stay");
}

#[test]
fn a_confirmation_renews_the_answer() {
    let mut rig = Rig::new();
    let head =
        "cache-control: max-age=60\netag: \"a\"\ncontent-type: text/plain\nx-old: 1\nx-both: 1\nage: 5";
    assert!(rig.fetch("/", "", 200, head));
    rig.wait(100);
    let stale = rig.stale("/", "");
    let confirmation = fields(
        "cache-control: max-age=30\netag: \"a\"\ncontent-type: text/html\ncontent-length: 0\nx-both: 2\nx-both: 3\n\
         x-new: 1\nage: 2\nconnection: close\nset-cookie: sid=1\ndate: Tue, 15 Nov 1994 08:14:11 GMT",
    );
    let now = rig.now();
    let hit = rig.cache.freshen(stale, &confirmation, now).unwrap();
    let renewed = "cache-control: max-age=30\netag: \"a\"\ncontent-type: text/plain\ncontent-length: 4\nx-old: 1\n\
                   x-both: 2\nx-both: 3\nx-new: 1\nage: 2\ndate: Tue, 15 Nov 1994 08:14:11 GMT";
    assert_eq!(hit.status(), StatusCode::OK);
    assert_eq!(
        hit.headers(),
        fields(&format!("{renewed}\nset-cookie: sid=1")),
        "the cookie is this caller's"
    );
    assert_eq!(hit.body().concat(), b"body");
    assert_eq!(rig.hit("/", "").headers(), fields(renewed));
    rig.wait(27);
    assert_eq!(word(&rig.get("/", "")), "fresh");
    rig.wait(1);
    assert_eq!(word(&rig.get("/", "")), "stale");
}

/// Section 4.3.4 with the comparisons of RFC 9110 section 8.8.3.2: held, confirmed, about the same.
#[test]
fn a_confirmation_of_another_answer_is_none() {
    for (held, named, expected) in [
        ("etag: \"1\"", "etag: \"1\"", true),
        ("etag: W/\"1\"", "etag: W/\"1\"", true),
        ("etag: \"1\"", "etag: W/\"1\"", true),
        ("etag: W/\"1\"", "etag: \"1\"", false),
        ("etag: \"1\"", "etag: \"2\"", false),
        ("etag: \"1\"", "", true),
        ("last-modified: Tue, 15 Nov 1994 08:00:00 GMT", "etag: \"1\"", false),
        ("last-modified: Tue, 15 Nov 1994 08:00:00 GMT", "", true),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, held));
        let (stale, now) = (rig.stale("/", ""), rig.now());
        let freshened = rig.cache.freshen(stale, &fields(named), now);
        assert_eq!(freshened.is_ok(), expected, "{held} {named}");
        assert_eq!(rig.cache.usage().entries, usize::from(expected), "the other one is gone");
        if let Err(pending) = freshened {
            assert!(rig.answer(pending, 200, "etag: \"2\"", b"new"));
        }
    }
}

#[test]
fn a_confirmation_may_take_the_permission_back() {
    for (request, head, taken) in [
        ("", "cache-control: no-store", true),
        ("", "cache-control: private", true),
        ("", "vary: accept", true),
        ("authorization: a", "cache-control: max-age=60", true),
        ("authorization: a", "cache-control: max-age=60, public", false),
        ("", "cache-control: no-cache", false),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", request, 200, "cache-control: public, max-age=0\netag: \"a\""));
        let (stale, now) = (rig.stale("/", request), rig.now());
        assert!(rig.cache.freshen(stale, &fields(head), now).is_ok(), "this caller asked in time");
        assert_eq!(rig.cache.usage().entries, usize::from(!taken), "{head}");
    }
}

#[test]
fn a_confirmation_does_not_bring_back_what_was_invalidated() {
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "", 200, "etag: \"a\""));
    let stale = rig.stale("/", "");
    rig.change(&Method::PUT, "/", 204, "");
    let now = rig.now();
    assert!(rig.cache.freshen(stale, &fields("cache-control: max-age=60"), now).is_ok());
    assert_eq!(word(&rig.get("/", "")), "miss");
}

/// The caller's own conditions: stored, asked, 304.
#[test]
fn what_the_caller_holds_is_not_sent_again() {
    for (held, request, expected) in [
        ("etag: \"a\"", "if-none-match: \"a\"", true),
        ("etag: \"a\"", "if-none-match: W/\"a\"", true),
        ("etag: W/\"a\"", "if-none-match: \"x\", \"a\"", true),
        ("etag: \"a,b\"", "if-none-match: \"x\",\"a,b\"", true),
        ("etag: \"a\"", "if-none-match: \"x\"\nif-none-match: \"a\"", true),
        ("etag: \"a\"", "if-none-match: *", true),
        ("", "if-none-match: *", true),
        ("etag: \"b\"", "if-none-match: \"a\"", false),
        ("etag: \"a\"", "if-none-match: a", false),
        ("etag: \"a\"", "if-none-match: \"a", false),
        ("", "if-none-match: \"a\"", false),
        (
            "last-modified: Tue, 15 Nov 1994 08:00:00 GMT",
            "if-modified-since: Tue, 15 Nov 1994 08:00:00 GMT",
            true,
        ),
        (
            "last-modified: Tue, 15 Nov 1994 08:00:00 GMT",
            "if-modified-since: Tue, 15 Nov 1994 07:59:59 GMT",
            false,
        ),
        ("last-modified: Tue, 15 Nov 1994 08:00:00 GMT", "if-modified-since: yesterday", false),
        ("", "if-modified-since: Tue, 15 Nov 1994 08:00:00 GMT", false),
        // The entity tag is the better witness (RFC 9110 section 13.2.2).
        (
            "etag: \"a\"\nlast-modified: Tue, 15 Nov 1994 08:00:00 GMT",
            "if-none-match: \"b\"\nif-modified-since: Tue, 15 Nov 1994 08:00:00 GMT",
            false,
        ),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, &format!("cache-control: max-age=60\nx: 1\n{held}")));
        let hit = rig.hit("/", request);
        let status = if expected { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
        assert_eq!(hit.status(), status, "{held} {request}");
        assert_eq!(hit.body().is_empty(), expected);
        assert_eq!(text(&hit.headers(), "x").is_empty(), expected);
        assert_eq!(text(&hit.headers(), "age"), "0");
    }
}

#[test]
fn another_answer_replaces_or_removes_the_stored_one() {
    for (status, head, after) in [
        (200, "etag: \"b\"\ncache-control: max-age=60", "fresh"),
        (200, "cache-control: no-store", "miss"),
        (403, "", "miss"),
        (404, "", "miss"),
        // About the moment, not about the resource.
        (500, "", "stale"),
        (503, "", "stale"),
        (429, "", "stale"),
        (408, "", "stale"),
    ] {
        let mut rig = Rig::new();
        assert!(rig.fetch("/", "", 200, "etag: \"a\""));
        rig.fetch("/", "", status, head);
        assert_eq!(word(&rig.get("/", "")), after, "{status} {head}");
    }
    let mut rig = Rig::new();
    assert!(rig.fetch("/", "", 200, "etag: \"a\""));
    let Lookup::Stale(stale) = rig.ask(&Method::HEAD, "/", "") else { panic!() };
    assert!(!rig.answer(stale.into_pending(), 200, "etag: \"b\"", b""));
    assert_eq!(word(&rig.get("/", "")), "stale", "HEAD has no body to put in its place");
}

/// RFC 5861 section 4. Policy, answer, seconds, request, serves.
#[test]
fn a_stale_answer_serves_for_want_of_a_better_one() {
    let own = "cache-control: max-age=600, stale-if-error=1200";
    for (policy, head, later, request, expected) in [
        // The RFC's example: fresh for 600 s, then on error for another 1,200.
        (None, own, 900, "", true),
        (None, own, 1800, "", true),
        (None, own, 1801, "", false),
        (None, "cache-control: max-age=600", 600, "", false),
        (None, "cache-control: max-age=600", 700, "cache-control: stale-if-error=100", true),
        (None, "cache-control: max-age=600", 701, "cache-control: stale-if-error=100", false),
        (Some(60), "cache-control: max-age=600", 660, "", true),
        (Some(60), "cache-control: max-age=600", 661, "", false),
        (Some(60), own, 1800, "", true),
        (Some(9999), own, 5000, "", true),
        // Never over the origin's word.
        (Some(9999), "cache-control: max-age=600, must-revalidate", 601, "", false),
        (Some(9999), "cache-control: max-age=600, stale-if-error=60, must-revalidate", 601, "", false),
        (Some(9999), "cache-control: max-age=600, proxy-revalidate", 601, "", false),
        (Some(9999), "cache-control: no-cache\netag: \"a\"", 1, "", false),
        (Some(9999), "cache-control: s-maxage=600", 601, "", false),
        (None, "cache-control: s-maxage=600, stale-if-error=60", 601, "", true),
        // A caller that wants the origin's word, and one that takes this too.
        (Some(60), own, 601, "cache-control: no-cache", false),
        (Some(60), own, 601, "cache-control: no-cache, stale-if-error=60", true),
        (Some(60), own, 601, "cache-control: max-age=0", true),
    ] {
        let policy = spec::Cache { stale_if_error: policy.map(Duration::from_secs), ..Default::default() };
        let mut rig = Rig::with(&policy);
        assert!(rig.fetch("/", "", 200, head));
        rig.wait(later);
        let (stale, now) = (rig.stale("/", request), rig.now());
        let hit = stale.for_error(now);
        assert_eq!(hit.is_some(), expected, "{policy:?} {head} {later} {request}");
        if let Some(hit) = hit {
            assert!(hit.is_stale());
            assert_eq!(text(&hit.headers(), "age"), later.to_string());
        }
    }
}

/// Section 4.4. Method, status, answer, what else goes.
#[test]
fn a_change_makes_doubtful_what_was_stored() {
    for (method, status, head, gone) in [
        (Method::PUT, 204, "", &["/a"][..]),
        (Method::POST, 303, "", &["/a"]),
        (Method::from_bytes(b"RENAME").unwrap(), 200, "", &["/a"]),
        (Method::POST, 201, "location: /b", &["/a", "/b"]),
        (Method::POST, 201, "location: http://orders/b?q=1#part", &["/a", "/b?q=1"]),
        (Method::POST, 201, "location: http://ORDERS:80/b", &["/a", "/b"]),
        (Method::PUT, 200, "content-location: /b", &["/a", "/b"]),
        // Another origin is none of its business.
        (Method::POST, 201, "location: http://billing/b", &["/a"]),
        (Method::POST, 201, "location: https://orders/b", &["/a"]),
        (Method::DELETE, 404, "", &[]),
        (Method::PUT, 500, "location: /b", &[]),
        (Method::OPTIONS, 200, "", &[]),
        (Method::GET, 200, "", &[]),
    ] {
        let mut rig = Rig::new();
        for path in ["/a", "/b", "/b?q=1"] {
            assert!(rig.fetch(path, "accept: x", 200, "cache-control: max-age=60\nvary: accept"));
            assert!(rig.fetch(path, "", 200, "cache-control: max-age=60\nvary: accept"));
        }
        rig.change(&method, "/a", status, head);
        for path in ["/a", "/b", "/b?q=1"] {
            let expected = if gone.contains(&path) { "miss" } else { "fresh" };
            for request in ["", "accept: x"] {
                assert_eq!(word(&rig.get(path, request)), expected, "{method} {status} {head}: {path}");
            }
        }
    }
}

#[test]
fn an_answer_from_before_a_change_is_not_stored_after_it() {
    let mut rig = Rig::new();
    let (early, other) = (rig.pending("/a", ""), rig.pending("/b", ""));
    rig.change(&Method::PUT, "/a", 204, "");
    let late = rig.pending("/a", "");
    assert!(!rig.answer(early, 200, "cache-control: max-age=60", b"old"));
    assert!(rig.answer(other, 200, "cache-control: max-age=60", b"other"));
    assert!(rig.answer(late, 200, "cache-control: max-age=60", b"new"));
    // More changes than are remembered: nobody knows any more.
    let early = rig.pending("/c", "");
    for number in 0..=crate::cache::REMEMBERED_INVALIDATIONS {
        rig.change(&Method::PUT, &format!("/{number}"), 204, "");
    }
    assert!(!rig.answer(early, 200, "cache-control: max-age=60", b"old"));
}

#[test]
fn a_304_to_the_callers_own_condition_is_passed_on() {
    let mut rig = Rig::new();
    assert!(rig.fetch(
        "/",
        "",
        200,
        &format!("cache-control: max-age=1, stale-if-error=9\ndate: {}", super::THEN)
    ));
    rig.wait(2);
    let request = format!("if-modified-since: {MODIFIED}");
    let stale = rig.stale("/", &request);
    assert!(!stale.set_conditions(&mut HeaderMap::new()));
    assert!(!rig.answer(stale.into_pending(), 304, "", b""));
    assert_eq!(word(&rig.get("/", "")), "stale", "still there for an error");
}
