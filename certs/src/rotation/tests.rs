use std::collections::VecDeque;

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn start() -> Now {
    Now { mono: Instant::now(), wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000) }
}

fn after(now: Now, by: Duration) -> Now {
    Now { mono: now.mono + by, wall: now.wall + by }
}

/// As the authority makes them.
fn issued(now: Now, life: Duration) -> Validity {
    Validity { not_before: now.wall - BACKDATED, not_after: now.wall + life }
}

fn rng() -> StdRng {
    StdRng::seed_from_u64(7)
}

/// A machine that holds a certificate of this life, and when it will ask.
fn holding(life: Duration, seed: u64) -> (Rotation, Now) {
    let now = start();
    let mut rotation = Rotation::new(now);
    assert_eq!(rotation.handle_timeout(now), Some(Action::Ask));
    rotation.on_issued(issued(now, life), now, &mut StdRng::seed_from_u64(seed));
    (rotation, now)
}

#[test]
fn asks_at_once_and_only_once_when_nothing_is_held() {
    let now = start();
    let mut rotation = Rotation::new(now);
    assert_eq!(rotation.poll_timeout(), now.mono);
    assert_eq!(rotation.handle_timeout(now), Some(Action::Ask));
    assert_eq!(rotation.handle_timeout(now), None);
    assert_eq!(rotation.held(now.wall), Held::Nothing);
}

#[test]
fn renews_between_45_and_55_percent_of_a_life_and_not_always_at_the_same_point() {
    for life in [Duration::from_secs(20), HOUR, 24 * HOUR] {
        let mut asked_at = Vec::new();
        for seed in 0..50 {
            let (mut rotation, begin) = holding(life, seed);
            let early = after(begin, life * 449 / 1000);
            assert_eq!(rotation.handle_timeout(early), None, "life {life:?}, seed {seed}");
            let mut now = early;
            while rotation.handle_timeout(now).is_none() {
                let wait = rotation.poll_timeout() - now.mono;
                now = after(now, wait);
            }
            let waited = now.mono - begin.mono;
            assert!(waited <= life * 551 / 1000, "life {life:?}, seed {seed}: {waited:?}");
            asked_at.push(waited);
        }
        asked_at.sort();
        assert!(asked_at[49] - asked_at[0] > life / 20, "no jitter to speak of: {asked_at:?}");
    }
}

#[test]
fn a_certificate_from_disk_is_renewed_by_its_age_not_by_when_it_was_found() {
    let now = start();
    let mut rotation = Rotation::new(now);
    let made = Now { mono: now.mono, wall: now.wall - 20 * HOUR };
    rotation.on_issued(issued(made, 24 * HOUR), now, &mut rng());
    assert_eq!(rotation.handle_timeout(after(now, FIRST_BACKOFF)), Some(Action::Ask));
}

#[test]
fn backoff_doubles_to_seconds_while_nothing_is_held() {
    let mut now = start();
    let mut rotation = Rotation::new(now);
    let mut rng = rng();
    for bound in [1, 2, 4, 8, 8, 8] {
        let bound = Duration::from_secs(bound);
        assert_eq!(rotation.handle_timeout(now), Some(Action::Ask));
        rotation.on_failed(now, &mut rng);
        let wait = rotation.poll_timeout() - now.mono;
        assert!(wait >= bound * 3 / 4 && wait <= bound, "{wait:?} is outside 75 to 100 % of {bound:?}");
        now = after(now, wait);
    }
}

#[test]
fn backoff_doubles_to_a_minute_while_the_old_one_counts() {
    let (mut rotation, begin) = holding(24 * HOUR, 1);
    let mut rng = rng();
    let mut now = after(begin, 14 * HOUR);
    for bound in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
        let bound = Duration::from_secs(bound);
        assert_eq!(rotation.handle_timeout(now), Some(Action::Ask));
        rotation.on_failed(now, &mut rng);
        let wait = rotation.poll_timeout() - now.mono;
        assert!(wait >= bound * 3 / 4 && wait <= bound, "{wait:?} is outside 75 to 100 % of {bound:?}");
        now = after(now, wait);
    }
}

#[test]
fn tries_come_closer_together_towards_the_end() {
    let (mut rotation, begin) = holding(HOUR, 1);
    let mut rng = rng();
    let (mut now, mut last_minute) = (begin, 0);
    loop {
        match rotation.handle_timeout(now) {
            Some(Action::Ask) => {
                last_minute += u32::from(now.wall > begin.wall + HOUR - LAST_BACKOFF);
                rotation.on_failed(now, &mut rng);
            }
            Some(Action::Expired) => break,
            None => now = after(now, rotation.poll_timeout() - now.mono),
        }
    }
    assert!(
        last_minute >= 8,
        "{last_minute} tries in the last minute; the back-off alone would leave one or two"
    );
}

#[test]
fn expiry_is_told_once_and_asking_goes_on() {
    let (mut rotation, now) = holding(Duration::from_secs(20), 1);
    let mut rng = rng();
    let mut now = after(now, Duration::from_secs(11));
    assert_eq!(rotation.handle_timeout(now), Some(Action::Ask));
    rotation.on_failed(now, &mut rng);
    let (mut asked, mut expired) = (0, 0);
    while asked < 20 {
        match rotation.handle_timeout(now) {
            Some(Action::Ask) => {
                asked += 1;
                rotation.on_failed(now, &mut rng);
            }
            Some(Action::Expired) => {
                expired += 1;
                assert!(matches!(rotation.held(now.wall), Held::Expired { .. }));
            }
            None => now = after(now, (rotation.poll_timeout() - now.mono).max(Duration::from_micros(1))),
        }
    }
    assert_eq!(expired, 1);
    rotation.on_issued(issued(now, HOUR), now, &mut rng);
    assert!(matches!(rotation.held(now.wall), Held::Valid { .. }));
    assert_eq!(rotation.failures(), 0);
}

#[test]
fn a_wall_clock_set_forward_renews_and_one_set_back_does_not_postpone() {
    let (mut rotation, now) = holding(24 * HOUR, 1);
    let forward = Now { mono: now.mono + HOUR, wall: now.wall + 23 * HOUR };
    assert_eq!(rotation.handle_timeout(forward), Some(Action::Ask));

    let (mut rotation, now) = holding(24 * HOUR, 1);
    let back = Now { mono: now.mono + HOUR, wall: now.wall - 8760 * HOUR };
    assert_eq!(rotation.handle_timeout(back), None);
    let later = Now { mono: back.mono + 13 * HOUR, wall: back.wall + 13 * HOUR };
    assert_eq!(rotation.handle_timeout(later), Some(Action::Ask));
}

#[test]
fn changed_roots_bring_a_renewal_within_seconds_even_while_an_answer_is_on_its_way() {
    let (mut rotation, now) = holding(24 * HOUR, 1);
    rotation.on_trust_changed(now, &mut rng());
    let soon = after(now, TRUST_SPREAD);
    assert_eq!(rotation.handle_timeout(soon), Some(Action::Ask));

    rotation.on_trust_changed(soon, &mut rng());
    rotation.on_issued(issued(soon, 24 * HOUR), soon, &mut rng());
    assert_eq!(rotation.handle_timeout(after(soon, TRUST_SPREAD)), Some(Action::Ask));
}

/// What can happen between two looks at the machine.
#[derive(Clone, Debug)]
enum Op {
    Pass(u32),
    /// The wall clock is set, by seconds.
    Jump(i32),
    Issue(u32),
    Fail,
    ChangeTrust,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => (0..200_000_u32).prop_map(Op::Pass),
        1 => (-100_000..100_000_i32).prop_map(Op::Jump),
        2 => (1..200_000_u32).prop_map(Op::Issue),
        3 => Just(Op::Fail),
        1 => Just(Op::ChangeTrust),
    ];
    proptest::collection::vec(op, 1..60)
}

proptest! {
    /// Whatever happens: no ask before a back-off is over, never two asks at once, always a next ask within reach, and a
    /// try before the end after every failure that leaves time for one.
    #[test]
    fn invariants_hold_over_any_sequence(ops in ops(), seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut now = start();
        let mut rotation = Rotation::new(now);
        let mut held: Option<Validity> = None;
        let mut asking = false;
        let mut not_before = now.mono; // end of the current back-off at its earliest
        let mut told_expired = false;
        let mut queue: VecDeque<Op> = ops.into();
        while let Some(op) = queue.pop_front() {
            match op {
                Op::Pass(millis) => now = after(now, Duration::from_millis(millis.into())),
                Op::Jump(seconds) => {
                    let by = Duration::from_secs(seconds.unsigned_abs().into());
                    now.wall = if seconds < 0 { now.wall - by } else { now.wall + by };
                }
                Op::Issue(seconds) if asking => {
                    let validity = issued(now, Duration::from_secs(seconds.into()));
                    rotation.on_issued(validity, now, &mut rng);
                    (held, asking, told_expired, not_before) = (Some(validity), false, false, now.mono);
                }
                Op::Fail if asking => {
                    rotation.on_failed(now, &mut rng);
                    asking = false;
                    let wait = rotation.poll_timeout() - now.mono;
                    prop_assert!(wait <= LAST_BACKOFF);
                    not_before = now.mono + FIRST_BACKOFF * 3 / 4;
                    if let Some(held) = held {
                        let left = since(held.not_after, now.wall);
                        prop_assert!(left < FIRST_BACKOFF || wait <= left, "no try before the end: {wait:?} of {left:?}");
                    }
                }
                Op::ChangeTrust => rotation.on_trust_changed(now, &mut rng),
                Op::Issue(_) | Op::Fail => {}
            }
            while let Some(action) = rotation.handle_timeout(now) {
                match action {
                    Action::Ask => {
                        prop_assert!(!asking, "asked twice");
                        prop_assert!(now.mono >= not_before, "asked during the back-off");
                        asking = true;
                    }
                    Action::Expired => {
                        prop_assert!(!told_expired && held.is_some_and(|held| now.wall > held.not_after));
                        told_expired = true;
                    }
                }
            }
            // The old one is held until it ends, whatever failed since.
            let expected = held.map_or(Held::Nothing, |held| held.at(now.wall));
            prop_assert_eq!(rotation.held(now.wall), expected);
            // The next look is ahead and near; and if nothing is asked, looking goes on until something is.
            prop_assert!(rotation.poll_timeout() > now.mono && rotation.poll_timeout() <= now.mono + LOOK_EVERY);
        }
        for _ in 0..100_000 {
            if asking {
                break;
            }
            now = after(now, rotation.poll_timeout().saturating_duration_since(now.mono));
            asking = rotation.handle_timeout(now) == Some(Action::Ask);
        }
        prop_assert!(asking, "stopped asking");
    }
}
