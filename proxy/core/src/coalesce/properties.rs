//! Every follower is answered, promoted, released or cancelled exactly once, whatever happens in whatever
//! order; nobody leads a flight beside another that can be joined under the same key.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use proptest::prelude::*;

use super::{Coalescer, Event, FlightId, Role, Ticket, tests::key};
use crate::testing;

#[derive(Clone, Debug)]
enum Step {
    Join(u8),
    Head(usize, bool),
    Complete(usize),
    Fail(usize),
    LeaderGone(usize),
    Cancel(usize),
    Seal(u8),
    Wait(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..3_u8).prop_map(Step::Join),
        2 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, shareable)| Step::Head(which, shareable)),
        2 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Fail),
        2 => any::<usize>().prop_map(Step::LeaderGone),
        2 => any::<usize>().prop_map(Step::Cancel),
        1 => (0..3_u8).prop_map(Step::Seal),
        1 => (0..8_u8).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 1..150)
}

fn some<T: Copy>(of: &BTreeSet<T>, which: usize) -> Option<T> {
    of.iter().nth(which % of.len().max(1)).copied()
}

/// What the shell would know.
#[derive(Default)]
struct Shell {
    flights: Coalescer,
    /// Whose leader has a request under way.
    led: BTreeSet<FlightId>,
    waiting: BTreeSet<Ticket>,
    /// What became of those that wait no more.
    ended: BTreeMap<Ticket, Event>,
}

impl Shell {
    fn drain(&mut self) -> Result<(), TestCaseError> {
        while let Some(event) = self.flights.poll_event() {
            let (Event::Answered(ticket) | Event::Promoted(ticket, _) | Event::Released(ticket)) = event;
            prop_assert!(
                self.waiting.remove(&ticket),
                "{event:?} was not waiting: {:?}",
                self.ended.get(&ticket)
            );
            prop_assert!(self.ended.insert(ticket, event).is_none());
            if let Event::Promoted(_, flight) = event {
                prop_assert!(self.led.insert(flight), "two lead");
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn each_follower_ends_once(steps in steps()) {
        let mut now = testing::start();
        let mut shell = Shell::default();
        for step in steps {
            match step {
                Step::Join(url) => match shell.flights.join(key(&format!("/{url}"), "").unwrap()) {
                    Role::Leader(flight) => prop_assert!(shell.led.insert(flight)),
                    Role::Follower(ticket) => prop_assert!(shell.waiting.insert(ticket)),
                    Role::Alone => prop_assert!(false, "nothing is full"),
                },
                Step::Head(which, shareable) => {
                    let flight = some(&shell.led, which);
                    if let Some(over) = flight.filter(|flight| !shell.flights.on_head(*flight, shareable, now)) {
                        shell.led.remove(&over);
                    }
                }
                Step::Complete(which) => if let Some(flight) = some(&shell.led, which) {
                    shell.flights.on_complete(flight);
                    shell.led.remove(&flight);
                },
                Step::Fail(which) => if let Some(flight) = some(&shell.led, which) {
                    shell.flights.on_failed(flight);
                    shell.led.remove(&flight);
                },
                Step::LeaderGone(which) => if let Some(flight) = some(&shell.led, which) {
                    shell.led.remove(&flight);
                    shell.flights.on_leader_gone(flight);
                },
                Step::Cancel(which) => if let Some(ticket) = some(&shell.waiting, which) {
                    prop_assert!(shell.flights.cancel(ticket), "it waits");
                    prop_assert!(!shell.flights.cancel(ticket));
                    shell.waiting.remove(&ticket);
                },
                Step::Seal(url) => shell.flights.seal("orders", &format!("/{url}")),
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds.into());
                    shell.flights.handle_timeout(now);
                    prop_assert!(shell.flights.poll_timeout().is_none_or(|at| at > now));
                }
            }
            shell.drain()?;
        }
        // Whoever leads ends, and so does everything.
        while let Some(flight) = shell.led.pop_first() {
            shell.flights.on_leader_gone(flight);
            shell.drain()?;
        }
        prop_assert!(shell.waiting.is_empty(), "{:?} wait for nothing", shell.waiting);
        prop_assert!(shell.flights.is_empty());
        prop_assert!(shell.flights.open.is_empty());
    }
}
