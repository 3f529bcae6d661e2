//! An endpoint that follows a script: how long it takes, how often it fails, how much it can do at a time, when it is away.

use std::{collections::VecDeque, time::Duration};

use rand::{Rng, RngExt as _};

/// What an endpoint is like from some moment on.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub state: State,
    /// Mean of the time it works on one request, which is between half and one and a half of it.
    pub latency: Duration,
    /// Of the requests, how many take ten times as long, between 0 and 1.
    pub tail: f64,
    /// Of the requests, how many it answers with `failure`, between 0 and 1. It takes a tenth of the time for that.
    pub failing: f64,
    pub failure: u16,
    /// Requests it works on at a time; the others wait for it, also when their caller has given up.
    pub slots: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Up,
    /// Refuses connections.
    Down,
    /// Takes requests and never answers.
    Hanging,
}

/// An endpoint's behaviour over time.
#[derive(Clone, Debug)]
pub struct Script {
    /// By the time from which it holds; the first holds from the beginning.
    pub phases: Vec<(Duration, Behaviour)>,
}

/// An attempt, as the world counts them.
pub(super) type AttemptId = usize;

#[derive(Debug)]
pub(super) struct Server {
    script: Script,
    working: usize,
    waiting: VecDeque<AttemptId>,
}

/// What becomes of a request that reached an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// No connection.
    Refused,
    /// It waits, or nobody will ever say.
    Silence,
    /// The answer comes after so long, with this status.
    Works(Duration, u16),
}

impl Behaviour {
    /// Up, never failing, with this mean latency and more room than anybody needs.
    pub fn good(latency: Duration) -> Self {
        Self { state: State::Up, latency, tail: 0.0, failing: 0.0, failure: 500, slots: usize::MAX }
    }

    pub fn down() -> Self {
        Self { state: State::Down, ..Self::good(Duration::ZERO) }
    }

    #[must_use]
    pub fn failing(mut self, share: f64, failure: u16) -> Self {
        self.failing = share;
        self.failure = failure;
        self
    }

    #[must_use]
    pub fn tail(mut self, share: f64) -> Self {
        self.tail = share;
        self
    }

    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }
}

impl Script {
    pub fn always(behaviour: Behaviour) -> Self {
        Self { phases: vec![(Duration::ZERO, behaviour)] }
    }

    /// Another behaviour from a later time on.
    #[must_use]
    pub fn then(mut self, from: Duration, behaviour: Behaviour) -> Self {
        self.phases.push((from, behaviour));
        self
    }

    fn at(&self, time: Duration) -> &Behaviour {
        let index = self.phases.iter().rposition(|(from, _)| *from <= time).unwrap_or(0);
        &self.phases[index].1
    }
}

impl Server {
    pub(super) fn new(script: Script) -> Self {
        Self { script, working: 0, waiting: VecDeque::new() }
    }

    pub(super) fn on_arrival(&mut self, attempt: AttemptId, time: Duration, rng: &mut impl Rng) -> Arrival {
        let behaviour = self.script.at(time);
        match behaviour.state {
            State::Down => Arrival::Refused,
            State::Hanging => Arrival::Silence,
            State::Up if self.working >= behaviour.slots => {
                self.waiting.push_back(attempt);
                Arrival::Silence
            }
            State::Up => {
                self.working += 1;
                self.work(time, rng)
            }
        }
    }

    /// Work has ended; the one that begins instead, if there is one.
    pub(super) fn on_done(&mut self, time: Duration, rng: &mut impl Rng) -> Option<(AttemptId, Arrival)> {
        let next = self.waiting.pop_front();
        match next {
            Some(attempt) => Some((attempt, self.work(time, rng))),
            None => {
                self.working -= 1;
                None
            }
        }
    }

    fn work(&self, time: Duration, rng: &mut impl Rng) -> Arrival {
        let behaviour = self.script.at(time);
        let mut takes = behaviour.latency.mul_f64(0.5 + rng.random::<f64>());
        if rng.random_bool(behaviour.tail) {
            takes *= 10;
        }
        if rng.random_bool(behaviour.failing) {
            return Arrival::Works(takes / 10, behaviour.failure);
        }
        Arrival::Works(takes, 200)
    }
}
