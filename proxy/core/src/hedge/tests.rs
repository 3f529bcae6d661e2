use proptest::prelude::*;

use super::*;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const P95: Hedging = Hedging { delay: HedgeDelay::P95, budget_percent: 5 };

#[test]
fn a_fixed_delay_needs_no_answers() {
    let now = crate::testing::start();
    let fixed = HedgeDelay::After(30 * MILLI);
    let mut hedger = Hedger::new(&Hedging { delay: fixed, budget_percent: 5 }, now);
    assert_eq!(hedger.delay(now), Some(30 * MILLI));
}

#[test]
fn the_percentile_waits_for_a_hundred_answers() {
    let now = crate::testing::start();
    let mut hedger = Hedger::new(&P95, now);
    for _ in 0..99 {
        hedger.on_answer(10 * MILLI, now);
        assert_eq!(hedger.delay(now), None);
    }
    hedger.on_answer(10 * MILLI, now);
    let delay = hedger.delay(now).unwrap();
    assert!((10 * MILLI..12 * MILLI).contains(&delay), "{delay:?}");
}

#[test]
fn five_of_a_hundred_are_slower() {
    let now = crate::testing::start();
    for (slow, slower_than_fast) in [(5, false), (6, true)] {
        let mut hedger = Hedger::new(&P95, now);
        (0..100 - slow).for_each(|_| hedger.on_answer(MILLI, now));
        (0..slow).for_each(|_| hedger.on_answer(SECOND, now));
        let delay = hedger.delay(now).unwrap();
        assert_eq!(delay >= SECOND, slower_than_fast, "{slow} slow ones: {delay:?}");
    }
}

#[test]
fn it_follows_the_upstream_within_half_a_minute() {
    let start = crate::testing::start();
    let mut hedger = Hedger::new(&P95, start);
    (0..1000).for_each(|_| hedger.on_answer(SECOND, start));
    assert!(hedger.delay(start).unwrap() >= SECOND);
    for second in 0..40 {
        let now = start + second * SECOND;
        (0..20).for_each(|_| hedger.on_answer(MILLI, now));
        assert_eq!(hedger.delay(now).unwrap() < 2 * MILLI, second >= 30, "second {second}");
    }
    assert_eq!(hedger.delay(start + 120 * SECOND), None, "what was seen long ago says nothing");
}

#[test]
fn a_new_policy_finds_what_was_learned() {
    let now = crate::testing::start();
    let mut hedger = Hedger::new(&P95, now);
    for _ in 0..1000 {
        hedger.on_request(now);
        hedger.on_answer(10 * MILLI, now);
    }
    let learned = hedger.delay(now);
    assert_eq!((0..1000).filter(|_| hedger.withdraw(now)).count(), 50);
    hedger.set_policy(&Hedging { delay: HedgeDelay::After(MILLI), budget_percent: 10 });
    assert_eq!(hedger.delay(now), Some(MILLI));
    assert_eq!((0..1000).filter(|_| hedger.withdraw(now)).count(), 50);
    hedger.set_policy(&P95);
    assert!(!hedger.withdraw(now));
    assert_eq!(hedger.delay(now), learned);
}

#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Ask(usize),
    Answer(u64, usize),
    Hedge(usize),
    Policy(u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..8000_u64).prop_map(Step::Wait),
        (0..300_usize).prop_map(Step::Ask),
        (0..90_000_000_u64, 0..26_u32, 0..150_usize)
            .prop_map(|(micros, shift, times)| Step::Answer(micros >> shift, times)),
        (0..50_usize).prop_map(Step::Hedge),
        (0..30_u32).prop_map(Step::Policy),
    ]
}

proptest! {
    #[test]
    fn the_budget_is_never_exceeded(steps in prop::collection::vec(step(), 1..60)) {
        let start = crate::testing::start();
        let mut percent = 5;
        let mut hedger = Hedger::new(&P95, start);
        let (mut millis, mut requests, mut hedges) = (0_u64, Vec::new(), Vec::new());
        for step in steps {
            let (now, second) = (start + Duration::from_millis(millis), millis / 1000);
            match step {
                Step::Wait(wait) => millis += wait,
                Step::Ask(asked) => (0..asked).for_each(|_| {
                    hedger.on_request(now);
                    requests.push(second);
                }),
                Step::Answer(micros, times) => {
                    (0..times).for_each(|_| hedger.on_answer(Duration::from_micros(micros), now));
                }
                Step::Policy(budget_percent) => {
                    percent = budget_percent as usize;
                    hedger.set_policy(&Hedging { delay: HedgeDelay::P95, budget_percent });
                }
                Step::Hedge(tries) => for _ in 0..tries {
                    let lately = |list: &[u64]| list.iter().filter(|at| **at + 10 > second).count();
                    let granted = (lately(&hedges) + 1) * 100 <= lately(&requests) * percent;
                    prop_assert_eq!(hedger.withdraw(now), granted);
                    if granted {
                        hedges.push(second);
                    }
                },
            }
        }
    }

    /// Against a sorted list of the answers in the slices that still count. The look-up may be 16 answers old.
    #[test]
    fn the_delay_is_above_the_percentile_and_at_most_an_eighth(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let start = crate::testing::start();
        let mut hedger = Hedger::new(&P95, start);
        let (mut millis, mut answers) = (0_u64, Vec::<(u64, u64)>::new());
        for step in steps {
            let (now, slice) = (start + Duration::from_millis(millis), millis / 10_000);
            match step {
                Step::Wait(wait) => millis += wait,
                Step::Answer(micros, times) => {
                    (0..times).for_each(|_| hedger.on_answer(Duration::from_micros(micros), now));
                    answers.extend((0..times).map(|_| (slice, micros)));
                }
                Step::Ask(_) | Step::Hedge(_) | Step::Policy(_) => {}
            }
            let (now, slice) = (start + Duration::from_millis(millis), millis / 10_000);
            let lately: Vec<u64> =
                answers.iter().filter(|(at, _)| at + 3 > slice).map(|(_, micros)| *micros).collect();
            let Some(delay) = hedger.delay(now) else {
                prop_assert!(lately.len() < 100);
                continue;
            };
            prop_assert!(lately.len() >= 100);
            let p95 = |mut of: Vec<u64>| {
                of.sort_unstable();
                of[of.len() - 1 - of.len() * 5 / 100].clamp(64, (1 << 26) - 1)
            };
            let near = |exact: u64| {
                let micros = u64::try_from(delay.as_micros()).unwrap();
                micros > exact && micros <= exact + exact / 8 + 1
            };
            let known = (0..16.min(lately.len())).any(|unseen| {
                let seen = lately[..lately.len() - unseen].to_vec();
                seen.len() >= 85 && near(p95(seen))
            });
            prop_assert!(known, "{:?} of {} answers", delay, lately.len());
        }
    }
}
