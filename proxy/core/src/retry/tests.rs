use std::num::NonZeroUsize;

use outrigger_proto::spec::{self, RetryBudget, StatusRange};
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::verdict::Reason;

const SECOND: Duration = Duration::from_secs(1);
const PLAIN: Traits = Traits { replayable: true, idempotency_key: false, outer_layer: false };
const BASE: Duration = Duration::from_millis(25);

struct Case {
    policy: Retries,
    method: Method,
    traits: Traits,
    budget: Budget,
    moment: Moment,
    rng: StdRng,
}

impl Case {
    fn new() -> Self {
        let now = crate::testing::start();
        let rich = RetryBudget { percent: 100, min_per_second: 1000 };
        Self {
            policy: Retries::default(),
            method: Method::GET,
            traits: PLAIN,
            budget: Budget::new(&rich, NonZeroUsize::MIN, now),
            moment: Moment { breaker_open: false, left: None, now },
            rng: StdRng::seed_from_u64(7),
        }
    }

    fn with(change: impl FnOnce(&mut Self)) -> Self {
        let mut case = Self::new();
        change(&mut case);
        case
    }

    /// What becomes of the first failure.
    fn fails(&mut self, failure: Failure) -> Next {
        let mut attempts = Attempts::new(&self.policy, &self.method, self.traits);
        attempts.on_failure(failure, &self.moment, &mut self.budget, &mut self.rng)
    }

    /// What becomes of the first answer.
    fn answers(&mut self, answer: Answer) -> Option<Next> {
        let mut attempts = Attempts::new(&self.policy, &self.method, self.traits);
        attempts.on_answer(&answer, &self.moment, &mut self.budget, &mut self.rng)
    }
}

fn broke(case: &mut Case) {
    case.budget =
        Budget::new(&RetryBudget { percent: 0, min_per_second: 0 }, NonZeroUsize::MIN, case.moment.now);
}

fn is_again(next: Next) -> bool {
    matches!(next, Next::Again { .. })
}

#[test]
fn what_was_never_sent_goes_elsewhere_whatever_it_is() {
    for failure in [Failure::Unsent, Failure::Refused] {
        let mut case = Case::with(|case| {
            case.method = Method::POST;
            case.policy.attempts = 0;
            case.traits.outer_layer = true;
            case.moment.breaker_open = true;
            broke(case);
        });
        let mut attempts = Attempts::new(&case.policy, &case.method, case.traits);
        let mut waits = vec![];
        for _ in 1..MAX_ATTEMPTS {
            match attempts.on_failure(failure, &case.moment, &mut case.budget, &mut case.rng) {
                Next::Again { after } => waits.push(after),
                Next::GiveUp(why) => panic!("{why:?}"),
            }
        }
        assert_eq!(waits[0], Duration::ZERO, "elsewhere is not busy because here is nobody");
        for (n, wait) in waits[1..].iter().enumerate() {
            let exact = BASE * 2_u32.pow(u32::try_from(n).unwrap());
            assert!((exact..=exact + BASE.mul_f64(0.3)).contains(wait), "{n}: {wait:?}");
        }
        let next = attempts.on_failure(failure, &case.moment, &mut case.budget, &mut case.rng);
        assert_eq!(next, Next::GiveUp(GiveUp::Exhausted));
        assert_eq!(attempts.failed(), MAX_ATTEMPTS);
    }
}

#[test]
fn what_went_out_needs_a_kept_body_even_if_nobody_saw_it() {
    let mut case = Case::with(|case| case.traits.replayable = false);
    assert_eq!(case.fails(Failure::Refused), Next::GiveUp(GiveUp::BodyTooLarge));
    assert!(is_again(case.fails(Failure::Unsent)));
    let draining = Answer { status: 503, reason: Some(Reason::Draining), ..Answer::default() };
    assert_eq!(case.answers(draining), Some(Next::GiveUp(GiveUp::BodyTooLarge)));
}

#[test]
fn what_was_sent_goes_again_only_when_harmless() {
    for (method, key, unsafe_methods, want) in [
        ("GET", false, false, true),
        ("HEAD", false, false, true),
        ("OPTIONS", false, false, true),
        ("TRACE", false, false, true),
        ("PUT", false, false, true),
        ("DELETE", false, false, true),
        ("POST", false, false, false),
        ("PATCH", false, false, false),
        ("CONNECT", false, false, false),
        ("get", false, false, false),
        ("POST", true, false, true),
        ("POST", false, true, true),
    ] {
        let mut case = Case::with(|case| {
            case.method = Method::from_bytes(method.as_bytes()).unwrap();
            case.traits.idempotency_key = key;
            case.policy.unsafe_methods = unsafe_methods;
        });
        let attempts = Attempts::new(&case.policy, &case.method, case.traits);
        assert_eq!(attempts.may_resend(), want, "{method}");
        assert_eq!(attempts.may_hedge(), want && !unsafe_methods, "{method}: a hedge follows no failure");
        match case.fails(Failure::Sent) {
            Next::Again { after } => {
                assert!(want, "{method}");
                assert!((BASE..=BASE.mul_f64(1.3)).contains(&after), "{after:?}");
            }
            next => assert_eq!((want, next), (false, Next::GiveUp(GiveUp::NotRepeatable)), "{method}"),
        }
    }
}

#[test]
fn each_no_has_its_name() {
    type Change = fn(&mut Case);
    let rows: [(Change, Failure, GiveUp); 10] = [
        (|case| case.policy.attempts = 0, Failure::Sent, GiveUp::Disabled),
        (|case| case.policy.on.reset = false, Failure::Sent, GiveUp::Disabled),
        (|case| case.policy.on.timeout = false, Failure::TimedOut, GiveUp::Disabled),
        (|case| case.traits.outer_layer = true, Failure::Sent, GiveUp::OuterLayer),
        (|case| case.method = Method::POST, Failure::TimedOut, GiveUp::NotRepeatable),
        (|case| case.traits.replayable = false, Failure::Sent, GiveUp::BodyTooLarge),
        (|case| case.moment.breaker_open = true, Failure::Sent, GiveUp::BreakerOpen),
        (|case| case.moment.left = Some(BASE), Failure::Sent, GiveUp::NoTime),
        (|case| case.moment.left = Some(Duration::ZERO), Failure::Unsent, GiveUp::NoTime),
        (broke, Failure::TimedOut, GiveUp::Budget),
    ];
    for (change, failure, why) in rows {
        assert_eq!(Case::with(change).fails(failure), Next::GiveUp(why), "{failure:?}");
        let name = why.as_str();
        assert_eq!(GiveUp::ALL.iter().filter(|other| other.as_str() == name).count(), 1, "{name}");
    }
    for failure in [Failure::Unsent, Failure::Refused, Failure::Sent, Failure::TimedOut] {
        assert!(is_again(Case::new().fails(failure)), "{failure:?}");
    }
}

#[test]
fn resends_are_as_many_as_the_policy_says() {
    for allowed in [1, 2, 7] {
        let mut case = Case::with(|case| case.policy.attempts = allowed);
        let mut attempts = Attempts::new(&case.policy, &case.method, case.traits);
        for n in 0..allowed {
            let failure = if n % 2 == 0 { Failure::Sent } else { Failure::TimedOut };
            assert!(is_again(attempts.on_failure(failure, &case.moment, &mut case.budget, &mut case.rng)));
        }
        let next = attempts.on_failure(Failure::Sent, &case.moment, &mut case.budget, &mut case.rng);
        assert_eq!(next, Next::GiveUp(GiveUp::Exhausted));
        assert_eq!(attempts.failed(), allowed + 1);
    }
}

#[test]
fn a_body_that_grows_too_large_on_the_way_ends_it() {
    let mut case = Case::new();
    let mut attempts = Attempts::new(&case.policy, &case.method, case.traits);
    attempts.on_body_too_large();
    assert!(!attempts.may_resend() && !attempts.may_hedge());
    let next = attempts.on_failure(Failure::Sent, &case.moment, &mut case.budget, &mut case.rng);
    assert_eq!(next, Next::GiveUp(GiveUp::BodyTooLarge));
}

#[test]
fn answers_are_judged_by_status_by_grpc_code_and_by_who_made_them() {
    let plain = |status| Answer { status, ..Answer::default() };
    let grpc = |code| Answer { status: 200, grpc: Some(code), ..Answer::default() };
    let made = |reason: Reason| Answer {
        status: reason.http_status().as_u16(),
        reason: Some(reason),
        ..Answer::default()
    };
    let made_grpc = |reason: Reason| Answer {
        status: 200,
        grpc: Some(reason.grpc_status().code().into()),
        reason: Some(reason),
        ..Answer::default()
    };
    for (answer, again) in [
        (plain(200), false),
        (plain(404), false),
        (plain(429), false),
        (plain(500), false),
        (plain(502), true),
        (plain(503), true),
        (plain(504), true),
        (plain(505), false),
        (grpc(0), false),
        (grpc(14), true),
        (grpc(13), false),
        (grpc(270), false),
        (made(Reason::Draining), true),
        (made(Reason::ConnectFailed), true),
        (made(Reason::UpstreamReset), true),
        (made(Reason::BulkheadFull), true),
        (made_grpc(Reason::BulkheadFull), true),
        (made_grpc(Reason::NotReady), true),
        // 502 to 504 all of them, but whoever says so knows better.
        (made(Reason::RequestTimeout), false),
        (made(Reason::DeadlineExceeded), false),
        (made(Reason::NoEndpoints), false),
        (made(Reason::AllEjected), false),
        (made_grpc(Reason::AllEjected), false),
        (made(Reason::RateLimited), false),
        (made(Reason::Denied), false),
    ] {
        assert_eq!(Case::new().answers(answer).is_some_and(is_again), again, "{answer:?}");
    }
    let mut elsewhere = Case::with(|case| {
        case.policy.on.statuses = vec![StatusRange::new(500, 500)];
        case.policy.on.grpc = vec![8];
        case.policy.on.reset = false;
    });
    assert!(elsewhere.answers(plain(500)).is_some_and(is_again));
    assert_eq!(elsewhere.answers(plain(503)), None);
    assert!(elsewhere.answers(grpc(8)).is_some_and(is_again));
    assert_eq!(elsewhere.answers(made(Reason::UpstreamReset)), Some(Next::GiveUp(GiveUp::Disabled)));
    let mut post = Case::with(|case| case.method = Method::POST);
    assert_eq!(post.answers(plain(503)), Some(Next::GiveUp(GiveUp::NotRepeatable)));
    assert!(post.answers(made(Reason::Draining)).is_some_and(is_again), "nobody has acted on it");
}

#[test]
fn retry_after_is_waited_for_or_left_to_the_caller() {
    let told = |after| Answer { status: 503, retry_after: Some(after), ..Answer::default() };
    assert_eq!(Case::new().answers(told(SECOND)), Some(Next::Again { after: SECOND }));
    let longer = SECOND + Duration::from_nanos(1);
    assert_eq!(Case::new().answers(told(longer)), Some(Next::GiveUp(GiveUp::RetryAfterTooLong)));
    let Some(Next::Again { after }) = Case::new().answers(told(Duration::ZERO)) else { panic!() };
    assert!(after >= BASE, "never sooner than without it");
    let mut late = Case::with(|case| case.moment.left = Some(SECOND));
    assert_eq!(late.answers(told(SECOND)), Some(Next::GiveUp(GiveUp::NoTime)));
    let mut empty = Case::with(broke);
    assert_eq!(empty.answers(told(longer)), Some(Next::GiveUp(GiveUp::RetryAfterTooLong)));
}

#[test]
fn a_request_that_is_given_up_costs_no_budget() {
    let one = RetryBudget { percent: 0, min_per_second: 1 };
    let changes: [fn(&mut Case); 4] = [
        |case| case.moment.left = Some(Duration::ZERO),
        |case| case.moment.breaker_open = true,
        |case| case.traits.outer_layer = true,
        |case| case.policy.attempts = 0,
    ];
    for change in changes {
        let mut case = Case::with(change);
        case.budget = Budget::new(&one, NonZeroUsize::MIN, case.moment.now);
        assert!(!is_again(case.fails(Failure::Sent)));
        assert!(case.budget.withdraw(case.moment.now));
    }
}

#[test]
fn waits_grow_to_the_maximum() {
    let mut case = Case::with(|case| {
        case.policy.attempts = 20;
        case.policy.backoff = spec::Backoff { base: BASE, max: 4 * BASE };
    });
    let mut attempts = Attempts::new(&case.policy, &case.method, case.traits);
    let waits: Vec<_> = (0..20)
        .map(|_| match attempts.on_failure(Failure::Sent, &case.moment, &mut case.budget, &mut case.rng) {
            Next::Again { after } => after,
            Next::GiveUp(why) => panic!("{why:?}"),
        })
        .collect();
    assert!(waits[1] >= 2 * BASE && waits[1] < 3 * BASE);
    assert!(waits[2..].iter().all(|wait| *wait == 4 * BASE));
}
