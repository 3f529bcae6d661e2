//! What may be sent again, until when, and what may be sent twice.

use std::{
    hint::black_box,
    num::{NonZeroU32, NonZeroUsize},
    time::{Duration, Instant},
};

use http::{HeaderMap, Method};
use outrigger_core::{
    deadline::{Deadline, GRPC_TIMEOUT, Told, format_grpc_timeout},
    hedge::Hedger,
    retry::{Answer, Attempts, Budget, Failure, Moment, Traits, field},
};
use outrigger_proto::spec::{Hedging, Retries};
use rand::{SeedableRng, rngs::SmallRng};

use super::Bench;

pub(super) fn rows(bench: &Bench, request: &http::request::Parts, now: Instant) {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut at = now;
    let policy = Retries::default();
    let mut budget = Budget::new(&policy.budget, NonZeroUsize::MIN, now);
    bench.row("retry budget: count a request", || {
        at += Duration::from_micros(100);
        budget.on_request(at);
    });
    let traits = Traits { replayable: true, idempotency_key: false, outer_layer: false };
    let good = Answer { status: 200, ..Answer::default() };
    bench.row("retry: begin, and pass an answer of 200", || {
        let moment = Moment { breaker_open: false, left: None, now: at };
        let mut attempts = Attempts::new(&policy, black_box(&Method::GET), traits);
        black_box(attempts.on_answer(black_box(&good), &moment, &mut budget, &mut rng));
    });
    bench.row("retry: begin, and decide on a reset", || {
        at += Duration::from_micros(100);
        budget.on_request(at);
        let moment = Moment { breaker_open: false, left: None, now: at };
        let mut attempts = Attempts::new(&policy, black_box(&Method::GET), traits);
        black_box(attempts.on_failure(Failure::Sent, &moment, &mut budget, &mut rng));
    });
    let mut fields = request.headers.clone();
    bench.row("retry: name the first attempt", || {
        fields.remove(field::ATTEMPT);
        field::Received::of(&fields).pass_on(Some(NonZeroU32::MIN), &mut fields);
    });
    let mut fields = request.headers.clone();
    bench.row("deadline: from a timeout to the next hop", || {
        let deadline = Deadline::new(Told::of(black_box(&fields)), Some(Duration::from_secs(30)), at);
        deadline.pass_on(None, &mut fields, at + Duration::from_micros(300));
    });
    let mut fields = HeaderMap::new();
    fields.insert(GRPC_TIMEOUT, format_grpc_timeout(Duration::from_secs(5)));
    bench.row("deadline: from grpc-timeout to the next hop", || {
        let deadline = Deadline::new(Told::of(black_box(&fields)), Some(Duration::from_secs(30)), at);
        deadline.pass_on(None, &mut fields, at + Duration::from_nanos(10));
    });
    let mut hedger = Hedger::new(&Hedging::default(), at);
    bench.row("hedge: request, delay, answer", || {
        at += Duration::from_micros(100);
        hedger.on_request(at);
        black_box(hedger.delay(at));
        hedger.on_answer(
            Duration::from_micros(900 + u64::from(at.duration_since(now).subsec_micros() % 512)),
            at,
        );
    });
}
