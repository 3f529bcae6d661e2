use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};

use super::{BODY_WAIT, Coalescer, Event, Key, MAX_FOLLOWERS, Recording, Role};
use crate::{cache::RequestView, cache::tests::fields, testing};

pub(super) fn key(path: &str, request: &str) -> Option<Key> {
    let headers = fields(request);
    Key::of(&RequestView {
        method: &Method::GET,
        authority: "orders",
        path,
        headers: &headers,
        has_body: false,
    })
}

fn join(flights: &mut Coalescer, path: &str) -> Role {
    flights.join(key(path, "").unwrap())
}

fn events(flights: &mut Coalescer) -> Vec<Event> {
    std::iter::from_fn(|| flights.poll_event()).collect()
}

/// A leader and so many followers of "/".
macro_rules! flight {
    ($flights:ident, $leader:ident $(, $follower:ident)*) => {
        let mut $flights = Coalescer::new();
        let Role::Leader($leader) = join(&mut $flights, "/") else { panic!() };
        $(let Role::Follower($follower) = join(&mut $flights, "/") else { panic!() };)*
    };
}

#[test]
fn equal_requests_are_one() {
    for (one, other, expected) in [
        ("", "", true),
        ("a: 1\nb: 2", "b: 2\na: 1", true),
        ("a: 1\na: 2", "a: 2\na: 1", false),
        ("a: 1", "a: 2", false),
        ("a: 1", "", false),
        ("authorization: a", "authorization: b", false),
        ("authorization: a", "", false),
        ("cookie: sid=1", "cookie: sid=2", false),
        ("if-none-match: \"a\"", "", false),
        ("traceparent: 00-1\nx-request-id: 1", "traceparent: 00-2\nx-request-id: 2", true),
        ("x-outrigger-deadline: 900\nx-outrigger-attempt: 1", "x-outrigger-deadline: 100", true),
    ] {
        assert_eq!(key("/", one) == key("/", other), expected, "{one:?} {other:?}");
    }
    assert_ne!(key("/a", ""), key("/b", ""));
    assert_ne!(key("/a?x=1", ""), key("/a?x=2", ""));
}

#[test]
fn some_requests_are_never_one() {
    for request in ["range: bytes=0-1", "if-match: \"a\"", "cache-control: no-cache", "upgrade: websocket"] {
        assert_eq!(key("/", request), None, "{request}");
    }
    let headers = fields("");
    let view = |method, has_body| RequestView {
        method,
        authority: "orders",
        path: "/",
        headers: &headers,
        has_body,
    };
    assert_eq!(Key::of(&view(&Method::POST, false)), None);
    assert_eq!(Key::of(&view(&Method::HEAD, false)), None);
    assert_eq!(Key::of(&view(&Method::GET, true)), None);
}

#[test]
fn followers_get_the_leaders_answer() {
    flight!(flights, leader, first, second);
    assert!(flights.on_head(leader, true, testing::start()));
    assert_eq!(events(&mut flights), []);
    flights.on_complete(leader);
    assert_eq!(events(&mut flights), [Event::Answered(first), Event::Answered(second)]);
    assert!(flights.is_empty());
    flights.on_complete(leader);
    assert_eq!(events(&mut flights), []);
}

#[test]
fn what_is_not_for_all_releases_them() {
    flight!(flights, leader, first);
    assert!(!flights.on_head(leader, false, testing::start()));
    assert_eq!(events(&mut flights), [Event::Released(first)]);
    flight!(flights, leader, first);
    flights.on_failed(leader);
    assert_eq!(events(&mut flights), [Event::Released(first)]);
    flight!(flights, leader);
    assert!(!flights.on_head(leader, true, testing::start()), "nobody to record it for");
    assert!(flights.is_empty());
}

#[test]
fn nobody_joins_an_answer_that_has_begun_or_was_overtaken() {
    flight!(flights, leader, _first);
    assert!(flights.on_head(leader, true, testing::start()));
    assert!(matches!(join(&mut flights, "/"), Role::Leader(other) if other != leader));
    flight!(flights, leader, first);
    flights.seal("orders", "/other");
    assert!(matches!(join(&mut flights, "/"), Role::Follower(_)));
    flights.seal("orders", "/");
    let Role::Leader(next) = join(&mut flights, "/") else { panic!() };
    flights.on_failed(next);
    assert!(matches!(join(&mut flights, "/"), Role::Leader(_)), "the sealed one stays so");
    flights.on_complete(leader);
    assert_eq!(events(&mut flights)[0], Event::Answered(first));
}

#[test]
fn a_follower_takes_over() {
    flight!(flights, leader, first, second);
    flights.on_leader_gone(leader);
    assert_eq!(events(&mut flights), [Event::Promoted(first, leader)]);
    assert!(!flights.cancel(first), "it leads");
    assert!(matches!(join(&mut flights, "/"), Role::Follower(_)), "its request is only just being sent");
    assert!(flights.cancel(second));
    assert!(!flights.cancel(second));
    flights.on_leader_gone(leader);
    assert!(matches!(events(&mut flights)[..], [Event::Promoted(..)]));
    flights.on_leader_gone(leader);
    assert!(flights.is_empty());
    assert!(matches!(join(&mut flights, "/"), Role::Leader(_)));
}

#[test]
fn a_body_without_an_end_is_not_waited_for() {
    let start = testing::start();
    flight!(flights, leader, first, second);
    assert_eq!(flights.poll_timeout(), None);
    assert!(flights.on_head(leader, true, start));
    assert_eq!(flights.poll_timeout(), Some(start + BODY_WAIT));
    // Another one leads, and has its own time from its own head on.
    flights.on_leader_gone(leader);
    assert_eq!(events(&mut flights), [Event::Promoted(first, leader)]);
    flights.handle_timeout(start + BODY_WAIT);
    assert_eq!(events(&mut flights), []);
    let later = start + BODY_WAIT + Duration::from_secs(1);
    assert!(flights.on_head(leader, true, later));
    flights.handle_timeout(later + BODY_WAIT);
    assert_eq!(events(&mut flights), [Event::Released(second)]);
    assert_eq!(flights.poll_timeout(), None);
}

#[test]
fn a_flight_is_full() {
    flight!(flights, leader);
    for _ in 0..MAX_FOLLOWERS {
        assert!(matches!(join(&mut flights, "/"), Role::Follower(_)));
    }
    assert_eq!(join(&mut flights, "/"), Role::Alone);
    flights.on_failed(leader);
    assert_eq!(events(&mut flights).len(), MAX_FOLLOWERS);
}

#[test]
fn only_answers_for_all_are_shared() {
    for (status, head, expected) in [
        (200, "", true),
        (200, "cache-control: max-age=0", true),
        (404, "content-length: 4", true),
        (200, "vary: accept", true),
        (200, "cache-control: private", false),
        (200, "cache-control: no-store", false),
        (200, "cache-control: no-store, must-understand", false),
        (200, "cache-control: no-cache", false),
        (200, "set-cookie: sid=1", false),
        (200, "cache-control: public\nset-cookie: sid=1", false),
        (200, "vary: *", false),
        (200, "vary: accept, x-request-id", false),
        (200, "content-type: Text/Event-Stream; charset=utf-8", false),
        (200, "content-length: 101", false),
        (200, "outrigger-reason: no-route", false),
        (206, "", false),
        (304, "", false),
        (302, "", false),
        (500, "", false),
        (503, "", false),
    ] {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(Recording::begin(status, &fields(head), 100).is_some(), expected, "{status} {head}");
    }
}

#[test]
fn only_whole_answers_are_shared() {
    let begin = |head| Recording::begin(StatusCode::OK, &fields(head), 100).unwrap();
    let mut cut = begin("content-length: 4");
    assert!(cut.push(&Bytes::from_static(b"abc")));
    assert!(cut.finish().is_none());
    let mut long = begin("");
    assert!(long.push(&Bytes::from(vec![0; 100])));
    assert!(!long.push(&Bytes::from_static(b"a")));
    assert!(long.finish().is_none());
    let mut whole = begin("x: 1");
    assert!(whole.push(&Bytes::from_static(b"abc")));
    let answer = whole.finish().unwrap();
    assert_eq!(
        (answer.status, answer.headers.len(), &*answer.body.chunks()[0]),
        (StatusCode::OK, 1, &b"abc"[..])
    );
}
