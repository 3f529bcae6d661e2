//! The way out: SIGTERM to exit, in phases that everything else watches.
//!
//! ```text
//!            SIGTERM        peers had a moment     no inbound left, or      no connection left,
//!                                                  most of the grace gone   or the grace is over
//!  Serving ─────────▶ Leaving ────────────▶ Inbound ────────────────▶ Outbound ─────────▶ Over
//!            not ready,       inbound listeners       outbound listeners        what is left
//!            peers are told   close, connections      close, connections        is cut
//!                             are told to go          are told to go
//! ```
//!
//! Outbound goes last because finishing an inbound request may need outbound calls. A second SIGTERM goes to `Over` at
//! once. [`Drain`] is the process-wide phase; a worker follows it in a [`Local`], which costs its connections no lock.
//!
//! It closes nothing itself: listeners and connections watch and act.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::sync::watch;

use crate::telemetry::Direction;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    Leaving,
    Inbound,
    Outbound,
    Over,
}

/// The phase of the process.
#[derive(Clone)]
pub struct Drain(watch::Sender<Phase>);

/// A worker's copy of the phase.
#[derive(Clone)]
pub struct Local(Rc<Signals>);

#[derive(Default)]
struct Signals {
    inbound: Signal,
    outbound: Signal,
}

#[derive(Default)]
struct Signal {
    given: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// Completes when connections of its direction are told to go. Cheap to poll; fused.
pub struct Going {
    signals: Rc<Signals>,
    direction: Direction,
    slot: Option<usize>,
}

// === impl Drain ===

impl Drain {
    #[expect(
        clippy::new_without_default,
        reason = "a drain is one per process, made where the process is built"
    )]
    pub fn new() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }

    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Goes on to `phase`; never back.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let later = *now < phase;
            if later {
                *now = phase;
            }
            later
        });
    }

    /// Asks for a drain, as SIGTERM does.
    pub fn begin(&self) {
        self.advance(Phase::Leaving);
    }

    /// Waits until `phase` is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut phases = self.0.subscribe();
        // The sender lives in `self`, so the channel cannot be closed here.
        let _ = phases.wait_for(|now| *now >= phase).await;
    }
}

// === impl Phase ===

impl Phase {
    /// The phase at which connections of a direction are told to go.
    pub fn of(direction: Direction) -> Self {
        match direction {
            Direction::Inbound => Self::Inbound,
            Direction::Outbound => Self::Outbound,
        }
    }
}

// === impl Local ===

impl Local {
    #[expect(clippy::new_without_default, reason = "one per worker, made where the worker is built")]
    pub fn new() -> Self {
        Self(Rc::new(Signals::default()))
    }

    /// Follows the process until it is over; run by each worker.
    pub async fn follow(&self, drain: &Drain) {
        drain.reached(Phase::Inbound).await;
        self.0.inbound.give();
        drain.reached(Phase::Outbound).await;
        self.0.outbound.give();
    }

    /// For a connection: the moment to say goodbye (GOAWAY, `Connection: close`).
    pub fn going(&self, direction: Direction) -> Going {
        Going { signals: Rc::clone(&self.0), direction, slot: None }
    }

    /// Whether connections of this direction have been told to go.
    pub fn is_going(&self, direction: Direction) -> bool {
        self.0.of(direction).given.get()
    }
}

impl Signals {
    fn of(&self, direction: Direction) -> &Signal {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

impl Signal {
    fn give(&self) {
        self.given.set(true);
        for waker in self.waiting.take() {
            waker.1.wake();
        }
    }
}

// === impl Going ===

impl Future for Going {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let signal = this.signals.of(this.direction);
        if signal.given.get() {
            this.slot = None;
            return Poll::Ready(());
        }
        let mut waiting = signal.waiting.borrow_mut();
        match this.slot.and_then(|slot| waiting.get_mut(slot)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => this.slot = Some(waiting.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Going {
    fn drop(&mut self) {
        let signal = self.signals.of(self.direction);
        if let (Some(slot), false) = (self.slot, signal.given.get()) {
            signal.waiting.borrow_mut().try_remove(slot);
        }
    }
}

/// How a grace period is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// For peers to hear that this workload leaves, while everything is still served.
    pub moment: Duration,
    /// From the signal to the end of the inbound phase at the latest.
    pub inbound: Duration,
    /// From the signal to the exit at the latest.
    pub total: Duration,
}

impl Schedule {
    pub fn new(grace: Duration) -> Self {
        Self { moment: (grace / 5).min(Duration::from_millis(1500)), inbound: grace * 9 / 10, total: grace }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::task::LocalSet;

    use super::*;

    #[test]
    fn phases_only_go_on() {
        let drain = Drain::new();
        drain.advance(Phase::Outbound);
        drain.advance(Phase::Inbound);
        drain.begin();
        assert_eq!(drain.phase(), Phase::Outbound);
    }

    #[test]
    fn a_grace_period_is_divided() {
        for (grace, moment) in [(0, 0), (1_000, 200), (30_000, 1_500)] {
            let schedule = Schedule::new(Duration::from_millis(grace));
            assert_eq!(schedule.moment, Duration::from_millis(moment));
            assert!(schedule.moment <= schedule.inbound && schedule.inbound <= schedule.total);
        }
    }

    #[tokio::test]
    async fn connections_are_told_by_direction() {
        let drain = Drain::new();
        let local = Local::new();
        let tasks = LocalSet::new();
        let (follow, with) = (local.clone(), drain.clone());
        tasks.spawn_local(async move { follow.follow(&with).await });
        let mut inbound = local.going(Direction::Inbound);
        let mut outbound = local.going(Direction::Outbound);
        let given_up = local.going(Direction::Inbound);
        tasks
            .run_until(async {
                assert!((&mut inbound).now_or_never().is_none());
                drop(given_up);
                drain.begin();
                tokio::task::yield_now().await;
                assert!(!local.is_going(Direction::Inbound), "still served");
                drain.advance(Phase::Inbound);
                (&mut inbound).await;
                (&mut inbound).await;
                assert!((&mut outbound).now_or_never().is_none());
                drain.advance(Phase::Over);
                outbound.await;
            })
            .await;
    }

    #[test]
    fn one_that_waits_no_longer_takes_no_place() {
        let local = Local::new();
        for _ in 0..10 {
            assert!(local.going(Direction::Inbound).now_or_never().is_none());
        }
        assert_eq!(local.0.inbound.waiting.borrow().len(), 0);
    }
}
