use std::num::NonZeroU32;

use outrigger_proto::spec::CheckKind;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> HealthCheck {
    HealthCheck { kind: CheckKind::Tcp, ..HealthCheck::default() }
}

fn checks(checker: &mut Checker) -> Vec<Check> {
    std::iter::from_fn(|| checker.poll_check()).collect()
}

/// Runs it for so long; when each check of each endpoint was sent.
fn run(
    checker: &mut Checker,
    now: &mut Instant,
    time: Duration,
    rng: &mut SmallRng,
) -> Vec<(usize, Instant)> {
    let (end, mut sent) = (*now + time, Vec::new());
    while let Some(due) = checker.poll_timeout().filter(|due| *due <= end) {
        *now = due.max(*now);
        checker.handle_timeout(*now, rng);
        sent.extend(checks(checker).into_iter().map(|check| (check.index, *now)));
    }
    *now = end;
    sent
}

#[test]
fn the_first_checks_are_spread_and_the_others_come_at_the_interval() {
    let (mut now, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(1));
    let start = now;
    let mut checker = Checker::new(&policy(), 100, now, &mut rng);
    let sent = run(&mut checker, &mut now, 100 * SECOND, &mut rng);
    for index in 0..100 {
        let times: Vec<_> = sent.iter().filter(|(of, _)| *of == index).map(|(_, at)| *at).collect();
        assert!(times[0] - start <= 10 * SECOND);
        for pair in times.windows(2) {
            let wait = pair[1] - pair[0];
            assert!((9 * SECOND..=11 * SECOND).contains(&wait), "{wait:?}");
        }
    }
    for second in 0..10 {
        let within = |at: Instant| (at - start).as_secs() == second;
        let first =
            (0..100).filter(|index| sent.iter().find(|(of, _)| of == index).is_some_and(|it| within(it.1)));
        assert!((2..25).contains(&first.count()), "second {second}");
    }
}

#[test]
fn thresholds() {
    let (start, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(1));
    let mut checker = Checker::new(&policy(), 1, start, &mut rng);
    for (results, want) in [
        ("bbgbb", None),
        ("b", Some(false)),
        ("bbgbg", None),
        ("g", Some(true)),
        ("bbgbbg", None),
        ("bbb", Some(false)),
    ] {
        for (n, result) in results.chars().enumerate() {
            let now = checker.poll_timeout().unwrap();
            checker.handle_timeout(now, &mut rng);
            let [check] = &checks(&mut checker)[..] else { panic!("one check") };
            assert_eq!(check.timeout, SECOND);
            let checked = checker.on_result(check, result == 'g', now).unwrap();
            let last = n + 1 == results.len();
            assert_eq!(checked.healthy, want.filter(|_| last), "{results} at {n}");
            assert_eq!((checked.index, checked.good), (0, result == 'g'));
            assert_eq!(checker.on_result(check, false, now), None, "a result is taken once");
        }
        if let Some(healthy) = want {
            assert_eq!(checker.is_healthy(0), healthy);
        }
    }
}

#[test]
fn more_callers_check_less_often_each() {
    let (mut now, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(1));
    let mut checker = Checker::new(&policy(), 1, now, &mut rng);
    checker.set_callers(1000, now);
    let sent = run(&mut checker, &mut now, 10_000 * SECOND, &mut rng);
    // A thousand of these make at most ten a second.
    assert!((80..=101).contains(&sent.len()), "{}", sent.len());
    assert!(sent.windows(2).all(|pair| pair[1].1 - pair[0].1 >= 100 * SECOND));
    // And when the others leave, it does not wait for the end of the long interval.
    checker.set_callers(2, now);
    assert!(checker.poll_timeout().unwrap() - now <= 12 * SECOND);
    let sent = run(&mut checker, &mut now, 100 * SECOND, &mut rng);
    assert!((8..=12).contains(&sent.len()), "{}", sent.len());
    let slower = HealthCheck { interval: 100 * SECOND, ..policy() };
    checker.set_policy(&slower, now);
    assert!((0..=2).contains(&run(&mut checker, &mut now, 100 * SECOND, &mut rng).len()));
}

#[test]
fn endpoints_come_and_go() {
    let (mut now, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(1));
    let once = HealthCheck { unhealthy_after: NonZeroU32::MIN, ..policy() };
    let mut checker = Checker::new(&once, 3, now, &mut rng);
    now += 10 * SECOND;
    checker.handle_timeout(now, &mut rng);
    let mut all = checks(&mut checker);
    all.sort_by_key(|check| check.index);
    checker.on_result(&all[1], false, now);
    checker.relink(&[Some(2), Some(1)], now, &mut rng);
    assert!(!checker.is_healthy(1) && checker.is_healthy(0));
    assert_eq!(checker.on_result(&all[0], false, now), None, "it is gone");
    let want = Checked { index: 0, good: false, healthy: Some(false) };
    assert_eq!(checker.on_result(&all[2], false, now), Some(want));
    checker.relink(&[None, None, Some(0)], now, &mut rng);
    assert!(checker.is_healthy(0) && checker.is_healthy(1) && !checker.is_healthy(2));
    checker.relink(&[], now, &mut rng);
    assert_eq!(checker.poll_timeout(), None);
}

#[test]
fn a_result_that_comes_after_the_next_check_is_too_late() {
    let (mut now, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(1));
    let mut checker = Checker::new(&policy(), 1, now, &mut rng);
    now += 10 * SECOND;
    checker.handle_timeout(now, &mut rng);
    let late = checks(&mut checker).remove(0);
    now += 12 * SECOND;
    checker.handle_timeout(now, &mut rng);
    let next = checks(&mut checker).remove(0);
    assert_eq!(checker.on_result(&late, false, now), None);
    assert!(checker.on_result(&next, false, now).is_some());
}

proptest! {
    /// Whatever is relinked and however many callers there are: no endpoint is checked more often than the fleet may,
    /// once the number of callers stands, and each is checked within two intervals.
    #[test]
    fn never_too_often_and_never_forgotten(
        seed: u64,
        callers in 1..5000_u32,
        fleet in 1..50_u32,
        steps in prop::collection::vec((0..6_usize, 0..30_u64), 1..20),
    ) {
        let (mut now, mut rng) = (crate::testing::start(), SmallRng::seed_from_u64(seed));
        let policy = HealthCheck { fleet_per_second: NonZeroU32::new(fleet).unwrap(), ..policy() };
        let mut checker = Checker::new(&policy, 3, now, &mut rng);
        checker.set_callers(callers, now);
        let least = Duration::from_secs_f64(f64::from(callers) / f64::from(fleet)).max(9 * SECOND);
        let longest = (least * 11 / 9) + SECOND;
        // The last check, and since when it waits for the next one.
        let mut known: Vec<(Option<Instant>, Instant)> = vec![(None, now); 3];
        for (endpoints, seconds) in steps {
            let before: Vec<_> = (0..endpoints).map(|n| (n < known.len()).then_some(n)).collect();
            checker.relink(&before, now, &mut rng);
            known.resize(endpoints, (None, now));
            for (index, at) in run(&mut checker, &mut now, Duration::from_secs(seconds), &mut rng) {
                let (last, since) = &mut known[index];
                prop_assert!(last.is_none_or(|last| at - last + Duration::from_millis(1) >= least));
                (*last, *since) = (Some(at), at);
            }
            prop_assert!(known.iter().all(|(_, since)| now - *since <= longest), "{known:?} {longest:?}");
        }
    }
}
