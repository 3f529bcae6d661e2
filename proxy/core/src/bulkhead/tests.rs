use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;

use super::*;

mod adaptive;

const TIMEOUT: Duration = Duration::from_millis(100);

fn limits(total: u32, per_key: u32, size: u32) -> Config {
    let queue = NonZeroU32::new(size).map(|size| Queue { size, timeout: TIMEOUT });
    Config { total: NonZeroU32::new(total), per_key: NonZeroU32::new(per_key), queue, adaptive: None }
}

fn events<K: Eq + Hash + Clone>(bulkhead: &mut Bulkhead<K>) -> Vec<Event> {
    std::iter::from_fn(|| bulkhead.poll_event()).collect()
}

fn queued<K: Eq + Hash + Clone>(bulkhead: &mut Bulkhead<K>, key: K, now: Instant) -> Ticket {
    let admission = bulkhead.acquire(&key, now);
    let Admission::Queued(ticket) = admission else { panic!("expected to wait, got {admission:?}") };
    ticket
}

#[test]
fn without_limits_everybody_is_admitted_and_nothing_stays() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(Config::default(), now);
    for key in 0..1000 {
        assert_eq!(bulkhead.acquire(&key, now), Admission::Admitted);
    }
    assert_eq!((bulkhead.in_flight(), bulkhead.keys(), bulkhead.limit()), (1000, 1000, None));
    for key in 0..1000 {
        bulkhead.release(&key, None, now);
    }
    assert_eq!((bulkhead.in_flight(), bulkhead.keys()), (0, 0));
    bulkhead.release(&7, None, now);
    assert_eq!(bulkhead.in_flight(), 0, "a release too many does nothing");
}

#[test]
fn a_full_one_sheds_at_once_and_waiters_are_served_in_order() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(1, 0, 2), now);
    assert_eq!(bulkhead.acquire(&(), now), Admission::Admitted);
    let first = queued(&mut bulkhead, (), now);
    let second = queued(&mut bulkhead, (), now);
    assert_eq!(bulkhead.acquire(&(), now), Admission::Full);
    bulkhead.release(&(), None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(first)]);
    assert!(!bulkhead.cancel(first, now), "it has its answer");
    assert!(bulkhead.cancel(second, now) && !bulkhead.cancel(second, now));
    bulkhead.release(&(), None, now);
    assert_eq!((events(&mut bulkhead), bulkhead.in_flight(), bulkhead.waiting()), (vec![], 0, 0));
}

#[test]
fn without_a_queue_nobody_waits() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(1, 0, 0), now);
    assert_eq!(bulkhead.acquire(&(), now), Admission::Admitted);
    assert_eq!(bulkhead.acquire(&(), now), Admission::Full);
    assert_eq!(bulkhead.poll_timeout(), None);
}

#[test]
fn waiting_ends_after_its_time() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(1, 0, 5), now);
    bulkhead.acquire(&(), now);
    let first = queued(&mut bulkhead, (), now);
    let later = now + TIMEOUT / 2;
    let second = queued(&mut bulkhead, (), later);
    assert_eq!(bulkhead.poll_timeout(), Some(now + TIMEOUT));
    bulkhead.handle_timeout(now + TIMEOUT - Duration::from_nanos(1));
    assert_eq!(events(&mut bulkhead), []);
    bulkhead.handle_timeout(now + TIMEOUT);
    assert_eq!(
        (events(&mut bulkhead), bulkhead.poll_timeout()),
        (vec![Event::Expired(first)], Some(later + TIMEOUT))
    );
    let shorter = Queue { size: NonZeroU32::MIN, timeout: Duration::from_millis(1) };
    bulkhead.set_config(Config { queue: Some(shorter), ..limits(1, 0, 5) }, now + TIMEOUT);
    assert_eq!(events(&mut bulkhead), [Event::Expired(second)], "a shorter time counts from when it came");
    assert_eq!(bulkhead.poll_timeout(), None);
}

#[test]
fn callers_take_turns_and_one_at_its_own_limit_holds_nobody_up() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(2, 1, 10), now);
    assert_eq!(bulkhead.acquire(&'a', now), Admission::Admitted);
    let mut waits = |key| queued(&mut bulkhead, key, now);
    let [a1, a2] = ['a', 'a'].map(&mut waits);
    assert_eq!(
        bulkhead.acquire(&'b', now),
        Admission::Admitted,
        "'a' waits for its own limit, not for the total"
    );
    let c1 = queued(&mut bulkhead, 'c', now);
    let b1 = queued(&mut bulkhead, 'b', now);
    bulkhead.release(&'a', None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(c1)], "its turn came first");
    bulkhead.release(&'c', None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(a1)]);
    bulkhead.release(&'b', None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(b1)]);
    bulkhead.release(&'b', None, now);
    assert_eq!(events(&mut bulkhead), [], "'a' is at its limit");
    bulkhead.release(&'a', None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(a2)]);
}

#[test]
fn a_flood_costs_another_caller_one_turn_and_no_place_in_the_queue() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(1, 0, 10), now);
    bulkhead.acquire(&"flood", now);
    let flood: Vec<_> = (0..10).map(|_| queued(&mut bulkhead, "flood", now)).collect();
    assert_eq!(bulkhead.acquire(&"flood", now), Admission::Full);
    let other = queued(&mut bulkhead, "other", now);
    assert_eq!(events(&mut bulkhead), [Event::Shed(flood[9])]);
    bulkhead.release(&"flood", None, now);
    bulkhead.release(&"flood", None, now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(flood[0]), Event::Granted(other)]);
}

#[test]
fn a_new_limit_cuts_nobody_off_and_admits_who_waits() {
    let now = crate::testing::start();
    let mut bulkhead = Bulkhead::new(limits(3, 0, 10), now);
    for key in 0..3 {
        bulkhead.acquire(&key, now);
    }
    let [first, second, third] = [7, 8, 9].map(|key| queued(&mut bulkhead, key, now));
    bulkhead.set_config(limits(1, 0, 10), now);
    assert_eq!((events(&mut bulkhead), bulkhead.in_flight()), (vec![], 3));
    bulkhead.release(&0, None, now);
    bulkhead.release(&1, None, now);
    assert_eq!((events(&mut bulkhead), bulkhead.in_flight()), (vec![], 1));
    bulkhead.set_config(limits(3, 0, 10), now);
    assert_eq!(events(&mut bulkhead), [Event::Granted(first), Event::Granted(second)]);
    bulkhead.set_config(limits(3, 0, 0), now);
    assert_eq!(events(&mut bulkhead), [Event::Shed(third)]);
}

// === any sequence of operations ===

#[derive(Clone, Debug)]
enum Step {
    Acquire(u8),
    Release(usize, u64),
    Cancel(usize),
    Pass(u64),
    Configure(Config),
}

fn config() -> impl Strategy<Value = Config> {
    let number = |max: u32| prop::option::of(1..=max).prop_map(|number| number.and_then(NonZeroU32::new));
    let queue = prop::option::of((1..20_u32, 1..200_u64)).prop_map(|queue| {
        let (size, timeout) = queue?;
        Some(Queue { size: NonZeroU32::new(size)?, timeout: Duration::from_millis(timeout) })
    });
    let adaptive = prop::option::of((1..5_u32, 0..10_u32)).prop_map(|range| {
        let (min, more) = range?;
        let (min, max) = (NonZeroU32::new(min)?, NonZeroU32::new(min + more)?);
        Some(Adaptive { min, max, tolerance_percent: 150 })
    });
    (number(6), number(4), queue, adaptive).prop_map(|(total, per_key, queue, adaptive)| Config {
        total,
        per_key,
        queue,
        adaptive,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..5_u8).prop_map(Step::Acquire),
        8 => (any::<usize>(), 1..50_u64).prop_map(|(which, latency)| Step::Release(which, latency)),
        2 => any::<usize>().prop_map(Step::Cancel),
        3 => (0..100_u64).prop_map(Step::Pass),
        1 => config().prop_map(Step::Configure),
    ]
}

/// What everybody outside sees.
#[derive(Default)]
struct World {
    in_flight: BTreeMap<u8, u32>,
    waiting: BTreeMap<Ticket, u8>,
    /// How often others were served while a key could have been.
    passed: HashMap<u8, HashMap<u8, u32>>,
    answered: BTreeSet<Ticket>,
}

impl World {
    fn total(&self) -> u32 {
        self.in_flight.values().sum()
    }

    fn of(&self, key: u8) -> u32 {
        self.in_flight.get(&key).copied().unwrap_or_default()
    }

    fn eligible(&self, config: &Config) -> BTreeSet<u8> {
        let below = |key: u8| config.per_key.is_none_or(|limit| self.of(key) < limit.get());
        self.waiting.values().copied().filter(|&key| below(key)).collect()
    }

    fn on_event(&mut self, event: Event, config: &Config) {
        let (Event::Granted(ticket) | Event::Expired(ticket) | Event::Shed(ticket)) = event;
        assert!(self.answered.insert(ticket), "{ticket:?} is answered twice");
        let eligible = self.eligible(config);
        let key = self.waiting.remove(&ticket).expect("nobody waits with this ticket");
        let Event::Granted(_) = event else { return };
        assert!(eligible.contains(&key), "served above its own limit");
        let older = self.waiting.iter().find(|(other, of)| **of == key && **other < ticket);
        assert_eq!(older, None, "overtaken within a key");
        *self.in_flight.entry(key).or_default() += 1;
        self.passed.remove(&key);
        for other in eligible.into_iter().filter(|other| *other != key) {
            let times = self.passed.entry(other).or_default().entry(key).or_default();
            *times += 1;
            assert!(*times <= 1, "{key} was served twice while {other} waited");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn limits_hold_and_every_waiter_is_answered_once(
        first in config(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut now = crate::testing::start();
        let mut bulkhead = Bulkhead::new(first, now);
        let mut world = World::default();
        let mut config = first;
        for step in steps {
            let before = world.in_flight.clone();
            match step {
                Step::Acquire(key) => match bulkhead.acquire(&key, now) {
                    Admission::Admitted => {
                        prop_assert!(!world.waiting.values().any(|of| *of == key), "overtook its own");
                        *world.in_flight.entry(key).or_default() += 1;
                    }
                    Admission::Queued(ticket) => {
                        prop_assert!(config.queue.is_some());
                        prop_assert!(world.waiting.insert(ticket, key).is_none());
                    }
                    Admission::Full => {}
                },
                Step::Release(which, latency) => {
                    let held: Vec<_> = world.in_flight.iter().filter(|(_, count)| **count > 0).collect();
                    if !held.is_empty() {
                        let key = *held[which % held.len()].0;
                        *world.in_flight.entry(key).or_default() -= 1;
                        bulkhead.release(&key, Some(Duration::from_millis(latency)), now);
                    }
                }
                Step::Cancel(which) => {
                    if let Some(&ticket) = world.waiting.keys().nth(which % world.waiting.len().max(1)) {
                        prop_assert!(bulkhead.cancel(ticket, now));
                        prop_assert!(!bulkhead.cancel(ticket, now));
                        world.waiting.remove(&ticket);
                        world.answered.insert(ticket);
                    }
                }
                Step::Pass(milliseconds) => {
                    now += Duration::from_millis(milliseconds);
                    bulkhead.handle_timeout(now);
                    prop_assert!(bulkhead.poll_timeout().is_none_or(|next| next > now));
                }
                Step::Configure(new) => {
                    config = new;
                    bulkhead.set_config(new, now);
                }
            }
            while let Some(event) = bulkhead.poll_event() {
                world.on_event(event, &config);
            }

            let (total, limit) = (world.total(), bulkhead.limit());
            prop_assert_eq!(bulkhead.in_flight(), total);
            prop_assert_eq!(bulkhead.waiting(), world.waiting.len());
            prop_assert!(limit.is_none_or(|limit| total <= limit.max(before.values().sum())));
            for (key, count) in &world.in_flight {
                let was = before.get(key).copied().unwrap_or_default();
                prop_assert!(config.per_key.is_none_or(|limit| *count <= limit.get().max(was)));
                prop_assert_eq!(bulkhead.in_flight_of(key), *count);
            }
            let eligible = world.eligible(&config);
            prop_assert!(
                eligible.is_empty() || limit.is_some_and(|limit| total >= limit),
                "somebody waits in front of a free place"
            );
            world.passed.retain(|key, _| eligible.contains(key));
            if let (Some(adaptive), Some(limit)) = (config.adaptive, limit) {
                prop_assert!((adaptive.min.get()..=adaptive.max.get()).contains(&limit));
            }
            let known: BTreeSet<_> = world.in_flight.iter().filter(|(_, count)| **count > 0).map(|(key, _)| *key)
                .chain(world.waiting.values().copied()).collect();
            prop_assert_eq!(bulkhead.keys(), known.len(), "nothing is kept of who is not there");
        }
        // Time alone answers whoever still waits.
        while let Some(next) = bulkhead.poll_timeout() {
            bulkhead.handle_timeout(next);
            while let Some(event) = bulkhead.poll_event() {
                world.on_event(event, &config);
            }
        }
        prop_assert!(world.waiting.is_empty() && bulkhead.waiting() == 0);
    }
}
