use bytes::Bytes;
use http::StatusCode;
use outrigger_proto::spec::{Answer, BackendKey, Fallback, FallbackOn, FallbackTo, StatusRange};

use super::{Cause, Step, steps, triggers};
use crate::verdict::{Blame, Reason};

const NOTHING: FallbackOn =
    FallbackOn { breaker: false, no_endpoints: false, timeout: false, failure: false, statuses: Vec::new() };

fn answer() -> Answer {
    Answer { status: StatusCode::OK, headers: Vec::new(), body: Bytes::from_static(b"[]") }
}

/// Each reason that any field asks for, with the one field that does.
#[test]
fn a_reason_belongs_to_one_field() {
    let fields = [
        ("breaker", FallbackOn { breaker: true, ..NOTHING }),
        ("no-endpoints", FallbackOn { no_endpoints: true, ..NOTHING }),
        ("timeout", FallbackOn { timeout: true, ..NOTHING }),
        ("failure", FallbackOn { failure: true, ..NOTHING }),
        ("statuses", FallbackOn { statuses: vec![StatusRange::new(100, 599)], ..NOTHING }),
    ];
    let expected = [
        ("all-ejected", "breaker"),
        ("bulkhead-full", "breaker"),
        ("queue-timeout", "breaker"),
        ("overloaded", "breaker"),
        ("no-endpoints", "no-endpoints"),
        ("connect-timeout", "timeout"),
        ("request-timeout", "timeout"),
        ("response-timeout", "timeout"),
        ("stream-idle", "timeout"),
        ("connect-failed", "failure"),
        ("identity-mismatch", "failure"),
        ("upstream-handshake", "failure"),
        ("upstream-reset", "failure"),
        ("upstream-protocol", "failure"),
        ("not-ready", "failure"),
        ("draining", "failure"),
    ];
    for reason in Reason::ALL {
        let asking: Vec<_> = fields
            .iter()
            .filter(|(_, on)| triggers(on, Cause::Verdict(reason)))
            .map(|(field, _)| (reason.as_str(), *field))
            .collect();
        let wanted: Vec<_> = expected.into_iter().filter(|(code, _)| *code == reason.as_str()).collect();
        assert_eq!(asking, wanted, "{reason:?}");
        if matches!(reason.blame(), Blame::Downstream) {
            assert!(wanted.is_empty(), "no fallback for the caller's own fault: {reason:?}");
        }
    }
}

#[test]
fn an_answer_of_the_application_is_asked_for_by_status() {
    let on = FallbackOn {
        statuses: vec![StatusRange::new(500, 502), StatusRange::new(404, 404)],
        ..Default::default()
    };
    for (status, expected) in
        [(499, false), (500, true), (502, true), (503, false), (404, true), (200, false)]
    {
        let cause = Cause::Status(StatusCode::from_u16(status).unwrap());
        assert_eq!(triggers(&on, cause), expected, "{status}");
        assert!(!triggers(&FallbackOn::default(), cause), "none by default");
    }
}

#[test]
fn stale_comes_first() {
    let backend = "shop/orders-backup:80".parse::<BackendKey>().unwrap();
    let to_backup = Fallback { on: FallbackOn::default(), to: FallbackTo::Backend(backend.clone()) };
    let to_answer = Fallback {
        on: FallbackOn { statuses: vec![StatusRange::new(404, 404)], ..NOTHING },
        to: FallbackTo::Answer(answer()),
    };
    let answer = answer();
    let status = |status| Cause::Status(StatusCode::from_u16(status).unwrap());
    let failed = Cause::Verdict(Reason::ConnectFailed);
    for (fallback, cause, expected) in [
        (Some(&to_backup), failed, &[Step::Stale, Step::Backend(&backend)][..]),
        (Some(&to_backup), status(503), &[Step::Stale]),
        (Some(&to_backup), status(404), &[]),
        (Some(&to_backup), Cause::Verdict(Reason::Denied), &[]),
        (Some(&to_backup), Cause::Verdict(Reason::DeadlineExceeded), &[]),
        // What the policy calls a failure is one.
        (Some(&to_answer), status(404), &[Step::Stale, Step::Answer(&answer)]),
        (Some(&to_answer), failed, &[Step::Stale]),
        (Some(&to_answer), Cause::Verdict(Reason::RateLimited), &[]),
        // RFC 5861 needs no policy.
        (None, failed, &[Step::Stale]),
        (None, status(500), &[Step::Stale]),
        (None, status(501), &[]),
        (None, status(502), &[Step::Stale]),
        (None, status(504), &[Step::Stale]),
        (None, status(200), &[]),
    ] {
        assert_eq!(steps(fallback, cause).collect::<Vec<_>>(), expected, "{cause:?}");
    }
}
