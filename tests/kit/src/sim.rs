//! A whole fleet in virtual time: callers with the product's own machines, endpoints that follow scripts.
//!
//! ```text
//!   callers (Poisson) ─▶ pick, send ─▶ network ─▶ endpoint: wait, work, answer ─▶ network ─▶ judge, retry, hedge
//!                          ▲                                                                  │
//!                          └──────────────── the core's machines, as the shell drives them ◀──┘
//! ```
//!
//! One seed decides everything that is left to chance, so a run can be repeated: minutes of traffic take milliseconds.
//! Endpoints go on working for callers that have given up, as real ones do; that is what makes retries dangerous.
//!
//! It says nothing about sockets, and nothing about time that code takes. What it finds is in the [`Report`]; judging it
//! is for tests, except for promises that must hold whatever happens ([`Report::broken`]).

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_core::retry::{Attempts, Next};
use outrigger_proto::spec::{Endpoint, Traffic};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};

mod caller;
mod report;
mod server;

pub use report::{Call, Pair, Report};
pub use server::{Behaviour, Script, State};

use caller::{Caller, Ended, Sent};
use server::{Arrival, AttemptId, Server};

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub callers: usize,
    /// Calls per second of each caller, evenly at random.
    pub rate: f64,
    /// Calls begin in this time; the simulation goes on until all have ended.
    pub duration: Duration,
    pub endpoints: Vec<Script>,
    /// From a caller to an endpoint, and as long back.
    pub network: Duration,
    pub traffic: Traffic,
    /// Of the calls, how many are of a method that may be repeated, between 0 and 1.
    pub idempotent: f64,
}

struct World<'a> {
    scenario: &'a Scenario,
    start: Instant,
    now: Instant,
    rng: SmallRng,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    order: u64,
    callers: Vec<Caller<'a>>,
    servers: Vec<Server>,
    calls: Vec<Running<'a>>,
    attempts: Vec<Attempt>,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Begin { caller: usize },
    Send { call: usize },
    Hedge { call: usize },
    Arrive(AttemptId),
    Done { server: usize, attempt: AttemptId, status: u16 },
    Hear { attempt: AttemptId, ended: Ended },
    Late(AttemptId),
    GiveUp { call: usize },
}

struct Running<'a> {
    caller: usize,
    began: Instant,
    attempts: Attempts<'a>,
    tried: Vec<usize>,
    under_way: Vec<AttemptId>,
    sent: u32,
    over: bool,
}

struct Attempt {
    call: usize,
    /// `None`: its end has been told.
    sent: Option<Sent>,
    server: usize,
}

/// Runs a scenario to its end.
pub fn run(scenario: &Scenario, seed: u64) -> Report {
    let mut world = World::new(scenario, seed);
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        world.handle(event);
    }
    world.finish()
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let start = Instant::now();
        let mut rng = SmallRng::seed_from_u64(seed);
        let endpoints: Vec<Endpoint> = (0..scenario.endpoints.len()).map(endpoint).collect();
        let callers = (0..scenario.callers)
            .map(|_| Caller::new(&scenario.traffic, &endpoints, start, &mut rng))
            .collect();
        let servers = scenario.endpoints.iter().cloned().map(Server::new).collect();
        let mut world = Self {
            scenario,
            start,
            now: start,
            rng,
            events: BinaryHeap::new(),
            order: 0,
            callers,
            servers,
            calls: Vec::new(),
            attempts: Vec::new(),
            report: Report::default(),
        };
        for caller in 0..scenario.callers {
            world.schedule_begin(caller);
        }
        world
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.order += 1;
        self.events.push(Reverse((self.now + after, self.order, event)));
    }

    fn time(&self) -> Duration {
        self.now - self.start
    }

    fn schedule_begin(&mut self, caller: usize) {
        let pause = -(1.0 - self.rng.random::<f64>()).ln() / self.scenario.rate;
        let pause = Duration::from_secs_f64(pause);
        if self.time() + pause < self.scenario.duration {
            self.at(pause, Event::Begin { caller });
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begin { caller } => self.begin(caller),
            Event::Send { call } => self.send(call),
            Event::Hedge { call } => self.hedge(call),
            Event::Arrive(attempt) => {
                let server = self.attempts[attempt].server;
                let time = self.time();
                let arrival = self.servers[server].on_arrival(attempt, time, &mut self.rng);
                self.arrived(attempt, arrival);
            }
            Event::Done { server, attempt, status } => {
                self.at(self.scenario.network, Event::Hear { attempt, ended: Ended::Answered(status) });
                let time = self.time();
                if let Some((next, arrival)) = self.servers[server].on_done(time, &mut self.rng) {
                    self.arrived(next, arrival);
                }
            }
            Event::Hear { attempt, ended } => self.end(attempt, ended),
            Event::Late(attempt) => self.end(attempt, Ended::TimedOut),
            Event::GiveUp { call } => self.conclude(call, false, Ended::TimedOut),
        }
    }

    fn begin(&mut self, caller: usize) {
        self.schedule_begin(caller);
        let idempotent = self.rng.random_bool(self.scenario.idempotent);
        let attempts = self.callers[caller].attempts(idempotent);
        let hedge = self.callers[caller].begin(self.now);
        let call = self.calls.len();
        self.calls.push(Running {
            caller,
            began: self.now,
            attempts,
            tried: Vec::new(),
            under_way: Vec::new(),
            sent: 0,
            over: false,
        });
        if let Some(limit) = self.scenario.traffic.timeouts.request {
            self.at(limit, Event::GiveUp { call });
        }
        if let (Some(after), true) = (hedge, self.calls[call].attempts.may_hedge()) {
            self.at(after, Event::Hedge { call });
        }
        self.send(call);
    }

    fn hedge(&mut self, call: usize) {
        let running = &self.calls[call];
        // Not beside nothing, and not beside a hedge.
        if !running.over && running.under_way.len() == 1 && self.callers[running.caller].may_hedge(self.now) {
            self.send(call);
        }
    }

    fn send(&mut self, call: usize) {
        let running = &mut self.calls[call];
        if running.over {
            return;
        }
        let caller = &mut self.callers[running.caller];
        let Some(sent) = caller.send(&running.tried, self.now, &mut self.rng, &mut self.report.broken) else {
            if running.under_way.is_empty() {
                self.conclude(call, false, Ended::Cancelled);
            }
            return;
        };
        let attempt = self.attempts.len();
        let server = sent.endpoint;
        running.sent += 1;
        running.tried.push(server);
        running.under_way.push(attempt);
        self.attempts.push(Attempt { call, sent: Some(sent), server });
        self.at(self.scenario.network, Event::Arrive(attempt));
        if let Some(limit) = self.scenario.traffic.timeouts.per_try {
            self.at(limit, Event::Late(attempt));
        }
    }

    fn arrived(&mut self, attempt: AttemptId, arrival: Arrival) {
        let server = self.attempts[attempt].server;
        match arrival {
            Arrival::Refused => {
                self.at(self.scenario.network, Event::Hear { attempt, ended: Ended::Refused });
            }
            Arrival::Silence => {}
            Arrival::Works(takes, status) => self.at(takes, Event::Done { server, attempt, status }),
        }
    }

    /// An attempt has ended, unless that was told before.
    fn end(&mut self, attempt: AttemptId, ended: Ended) {
        let Attempt { call, sent, .. } = &mut self.attempts[attempt];
        let (call, Some(sent)) = (*call, sent.take()) else { return };
        let running = &mut self.calls[call];
        running.under_way.retain(|other| *other != attempt);
        let left = self.scenario.traffic.timeouts.request;
        let left = left.map(|limit| (running.began + limit).saturating_duration_since(self.now));
        let next = self.callers[running.caller].end(
            sent,
            ended,
            Some((&mut running.attempts, left)),
            self.now,
            &mut self.rng,
            &mut self.report.broken,
        );
        match next {
            None => self.conclude(call, ended == Ended::Answered(200), Ended::Cancelled),
            // The other one may still bring something.
            Some(_) if !self.calls[call].under_way.is_empty() => {}
            Some(Next::Again { after }) => self.at(after, Event::Send { call }),
            Some(Next::GiveUp(_)) => self.conclude(call, false, Ended::Cancelled),
        }
    }

    /// The program is told; what is still under way for it is given up like this.
    fn conclude(&mut self, call: usize, good: bool, rest: Ended) {
        let running = &mut self.calls[call];
        if std::mem::replace(&mut running.over, true) {
            return;
        }
        let (began, attempts) = (running.began, running.sent);
        for attempt in std::mem::take(&mut running.under_way) {
            if let Some(sent) = self.attempts[attempt].sent.take() {
                let caller = &mut self.callers[self.calls[call].caller];
                caller.end(sent, rest, None, self.now, &mut self.rng, &mut self.report.broken);
            }
        }
        self.report.calls.push(Call { began: began - self.start, took: self.now - began, good, attempts });
    }

    fn finish(mut self) -> Report {
        if let Some(lost) = self.calls.iter().position(|call| !call.over) {
            self.report.broken.push(format!("call {lost} has no end"));
        }
        for (index, caller) in self.callers.iter().enumerate() {
            if caller.in_flight() > 0 {
                self.report
                    .broken
                    .push(format!("caller {index} counts {} in flight at the end", caller.in_flight()));
            }
        }
        self.report.pairs = self.callers.into_iter().map(|caller| caller.pairs).collect();
        self.report
    }
}

fn endpoint(index: usize) -> Endpoint {
    let identity = SpiffeId::parse("spiffe://mesh.local/ns/sim/sa/endpoint");
    Endpoint {
        address: ([10, 0, (index >> 8) as u8, index as u8], 8080).into(),
        identity: identity.unwrap_or_else(|error| unreachable!("the identity is a constant: {error}")),
        zone: "".into(),
        weight: std::num::NonZeroU32::MIN,
        subset: "".into(),
        ready_since: None,
    }
}
