//! The adaptive limit against an upstream that serves so many at once and lets the rest queue.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

/// Latency is `base` up to `capacity` in flight, and grows in proportion beyond.
struct Upstream {
    base: Duration,
    capacity: u32,
}

struct Run {
    bulkhead: Bulkhead<()>,
    now: Instant,
    /// When they end, and when they began.
    under_way: BinaryHeap<Reverse<(Instant, Instant)>>,
    served: u64,
}

impl Run {
    fn new(now: Instant) -> Self {
        let range = |min, max| NonZeroU32::new(min).zip(NonZeroU32::new(max)).unwrap();
        let (min, max) = range(5, 500);
        let adaptive = Some(Adaptive { min, max, tolerance_percent: 150 });
        let bulkhead = Bulkhead::new(Config { adaptive, ..Config::default() }, now);
        Self { bulkhead, now, under_way: BinaryHeap::new(), served: 0 }
    }

    /// `callers` who call again as soon as they may.
    fn drive(&mut self, upstream: &Upstream, callers: u32, lasts: Duration) {
        let end = self.now + lasts;
        while self.now < end {
            while self.bulkhead.in_flight() < callers
                && self.bulkhead.acquire(&(), self.now) == Admission::Admitted
            {
                let crowd = f64::from(self.bulkhead.in_flight()) / f64::from(upstream.capacity);
                let ends = self.now + upstream.base.mul_f64(crowd.max(1.0));
                self.under_way.push(Reverse((ends, self.now)));
            }
            self.bulkhead.handle_timeout(self.now);
            let tick = self.now + Duration::from_millis(1);
            while let Some(&Reverse((ends, began))) = self.under_way.peek() {
                if ends > tick {
                    break;
                }
                self.under_way.pop();
                self.bulkhead.release(&(), Some(ends - began), ends);
                self.served += 1;
            }
            self.now = tick;
        }
    }

    fn limit(&self) -> u32 {
        self.bulkhead.limit().unwrap()
    }

    fn floor(&self) -> Duration {
        self.bulkhead.gradient().and_then(Gradient::floor).unwrap()
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn it_finds_the_capacity_and_stays_there() {
    let upstream = Upstream { base: Duration::from_millis(10), capacity: 50 };
    let mut run = Run::new(crate::testing::start());
    run.drive(&upstream, 1000, seconds(20));
    for _ in 0..20 {
        run.served = 0;
        run.drive(&upstream, 1000, seconds(10));
        assert!((50..=100).contains(&run.limit()), "limit {} for a capacity of 50", run.limit());
        let full = 10 * 100 * 50;
        assert!(run.served > full * 9 / 10, "{} of {full} served", run.served);
    }
}

#[test]
fn it_does_not_grow_unused() {
    let upstream = Upstream { base: Duration::from_millis(10), capacity: 1000 };
    let mut run = Run::new(crate::testing::start());
    run.drive(&upstream, 4, seconds(120));
    assert_eq!(run.limit(), 20);
    run.drive(&upstream, 400, seconds(60));
    assert!(run.limit() >= 400, "{}", run.limit());
}

#[test]
fn a_floor_first_seen_under_load_is_corrected() {
    let upstream = Upstream { base: Duration::from_millis(10), capacity: 4 };
    let mut run = Run::new(crate::testing::start());
    // It begins at 20, five times the capacity: the first floor is five times too high.
    run.drive(&upstream, 1000, seconds(5));
    assert!(run.floor() > Duration::from_millis(20));
    run.drive(&upstream, 1000, seconds(300));
    assert!(run.floor() < Duration::from_millis(15), "{:?}", run.floor());
    assert!(run.limit() <= 12, "{}", run.limit());
}

#[test]
fn an_upstream_that_became_slower_for_good_is_not_throttled_for_ever() {
    let mut run = Run::new(crate::testing::start());
    run.drive(&Upstream { base: Duration::from_millis(10), capacity: 50 }, 1000, seconds(60));
    let slower = Upstream { base: Duration::from_millis(40), capacity: 50 };
    // At first it looks like overload; without a new floor the limit would end at its minimum.
    run.drive(&slower, 1000, seconds(120));
    assert!(
        run.floor() >= Duration::from_millis(40) && run.limit() >= 50,
        "{:?} {}",
        run.floor(),
        run.limit()
    );
}

#[test]
fn a_new_range_keeps_what_was_learned() {
    let now = crate::testing::start();
    let mut run = Run::new(now);
    run.drive(&Upstream { base: Duration::from_millis(10), capacity: 100 }, 1000, seconds(60));
    let (limit, floor) = (run.limit(), run.floor());
    let adaptive = |max| {
        Some(Adaptive { min: NonZeroU32::MIN, max: NonZeroU32::new(max).unwrap(), tolerance_percent: 200 })
    };
    run.bulkhead.set_config(Config { adaptive: adaptive(1000), ..Config::default() }, run.now);
    assert_eq!((run.limit(), run.floor()), (limit, floor));
    run.bulkhead.set_config(Config { adaptive: adaptive(30), ..Config::default() }, run.now);
    assert_eq!((run.limit(), run.floor()), (30, floor));
}
