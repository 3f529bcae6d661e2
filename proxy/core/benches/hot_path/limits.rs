//! Bulkheads and rate limits.

use std::{
    hash::RandomState,
    hint::black_box,
    num::{NonZeroU32, NonZeroU64},
    time::{Duration, Instant},
};

use outrigger_core::{
    bulkhead::{Bulkhead, Config},
    rate_limit::RateLimiter,
};
use outrigger_proto::spec::{Adaptive, Queue, RateAlgorithm, RateLimit, Scope};

use super::Bench;

const CALLER: &str = "spiffe://mesh.local/ns/shop/sa/web";

pub(super) fn rows(bench: &Bench, now: Instant) {
    bulkheads(bench, now);
    rate_limits(bench, now);
}

fn bulkheads(bench: &Bench, now: Instant) {
    let limit = NonZeroU32::new(100);
    let queue = limit.map(|size| Queue { size, timeout: Duration::from_millis(100) });
    let config = Config { total: limit, per_key: limit, queue, adaptive: None };
    let mut bulkhead = Bulkhead::new(config, now);
    bench.row("bulkhead: acquire and release", || {
        black_box(bulkhead.acquire(&(), now));
        bulkhead.release(&(), None, now);
    });
    let adaptive = limit.map(|max| Adaptive { min: NonZeroU32::MIN, max, tolerance_percent: 150 });
    let mut bulkhead = Bulkhead::new(Config { adaptive, ..config }, now);
    bulkhead.acquire(&CALLER, now);
    let mut at = now;
    bench.row("bulkhead: the same by caller, adaptive", || {
        at += Duration::from_micros(100);
        black_box(bulkhead.acquire(&CALLER, at));
        bulkhead.release(&CALLER, Some(Duration::from_millis(1)), at);
    });
    let mut bulkhead = Bulkhead::new(config, now);
    (0..100).for_each(|_| {
        black_box(bulkhead.acquire(&0, now));
    });
    (1..100).for_each(|key| {
        black_box(bulkhead.acquire(&key, now));
    });
    let mut holder = 0;
    let mut next = 1;
    bench.row("bulkhead: wait among 99 callers, be granted", || {
        black_box(bulkhead.acquire(&holder, now));
        bulkhead.release(&holder, None, now);
        black_box(bulkhead.poll_event());
        holder = next;
        next = next % 99 + 1;
    });
}

fn rate_limits(bench: &Bench, now: Instant) {
    for algorithm in [RateAlgorithm::TokenBucket, RateAlgorithm::SlidingWindow] {
        let Some((rate, keys)) = NonZeroU64::new(1_000_000).zip(NonZeroU32::new(10_000)) else { return };
        let policy = RateLimit {
            name: "bench".into(),
            algorithm,
            requests: rate,
            per: Duration::from_secs(1),
            burst: rate,
            key: vec![],
            scope: Scope::Local,
            dry_run: false,
            max_keys: keys,
        };
        let mut limiter = RateLimiter::new(&policy, RandomState::new(), now);
        let mut at = now;
        let key = limiter.key([]);
        bench.row(&format!("rate limit: {algorithm:?}, one count"), || {
            at += Duration::from_micros(1);
            black_box(limiter.check(key, at).admitted);
        });
        let mut number = 0_u64;
        bench.row(&format!("rate limit: {algorithm:?}, 20,000 by turns"), || {
            at += Duration::from_micros(1);
            number = (number + 1) % 20_000;
            let key = limiter.key([Some(CALLER.as_bytes()), Some(&number.to_be_bytes()[..])]);
            black_box(limiter.check(key, at).admitted);
        });
    }
}
