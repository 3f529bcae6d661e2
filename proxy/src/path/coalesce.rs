//! Outbound step: identical GETs under way at the same time, in one worker, become one. Decided in `core::coalesce`.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use hashbrown::HashMap;
use http::{HeaderMap, StatusCode};
use outrigger_core::coalesce::{Coalescer, Event, FlightId, Key, Recording, Role, SharedAnswer, Ticket};
use tokio::{sync::oneshot, time::sleep};

use crate::worker::now;

/// The largest answer that several callers share.
const MAX_SHARED_BYTES: u64 = 1 << 20;
/// How often a follower looks whether a leader's body takes too long.
const LOOK: Duration = Duration::from_secs(1);

/// The flights of one backend.
#[derive(Default)]
pub struct Flights(RefCell<State>);

#[derive(Default)]
struct State {
    machine: Coalescer,
    waiting: HashMap<Ticket, oneshot::Sender<Told>>,
}

enum Told {
    Answered(Arc<SharedAnswer>),
    Promoted(FlightId),
    Released,
}

/// What becomes of a request.
pub enum Joined {
    /// It is sent, for itself and for those that follow.
    Leader(Leader),
    /// It is sent for itself.
    Alone,
    Answered(Arc<SharedAnswer>),
}

/// The duty to say what became of a request that others wait for. Dropped, somebody else sends it.
pub struct Leader {
    flights: Rc<Flights>,
    id: Option<FlightId>,
    recording: Option<Recording>,
}

struct Following<'a> {
    flights: &'a Rc<Flights>,
    ticket: Ticket,
    told: oneshot::Receiver<Told>,
    over: bool,
}

// === impl Flights ===

impl Flights {
    /// Waits for another's answer if there is an equal request under way.
    pub async fn join(self: &Rc<Self>, key: Key) -> Joined {
        let role = self.0.borrow_mut().machine.join(key);
        let ticket = match role {
            Role::Leader(id) => return Joined::Leader(Leader::new(self, id)),
            Role::Alone => return Joined::Alone,
            Role::Follower(ticket) => ticket,
        };
        let (tell, told) = oneshot::channel();
        self.0.borrow_mut().waiting.insert(ticket, tell);
        let following = Following { flights: self, ticket, told, over: false };
        match following.wait().await {
            Told::Answered(answer) => Joined::Answered(answer),
            Told::Promoted(id) => Joined::Leader(Leader::new(self, id)),
            Told::Released => Joined::Alone,
        }
    }

    /// What is at this URL may have changed.
    pub fn seal(&self, authority: &str, path: &str) {
        self.0.borrow_mut().machine.seal(authority, path);
    }

    fn settle(&self, answer: Option<&Arc<SharedAnswer>>) {
        let State { machine, waiting } = &mut *self.0.borrow_mut();
        while let Some(event) = machine.poll_event() {
            let (ticket, told) = match (event, answer) {
                (Event::Answered(ticket), Some(answer)) => (ticket, Told::Answered(Arc::clone(answer))),
                (Event::Answered(ticket) | Event::Released(ticket), _) => (ticket, Told::Released),
                (Event::Promoted(ticket, id), _) => (ticket, Told::Promoted(id)),
            };
            if let Some(tell) = waiting.remove(&ticket) {
                // Whoever goes away takes its sender out first.
                let _ = tell.send(told);
            }
        }
    }
}

// === impl Following ===

impl Following<'_> {
    async fn wait(mut self) -> Told {
        loop {
            tokio::select! {
                biased;
                told = &mut self.told => {
                    self.over = true;
                    return told.unwrap_or(Told::Released);
                }
                () = sleep(LOOK) => {
                    self.flights.0.borrow_mut().machine.handle_timeout(now());
                    self.flights.settle(None);
                }
            }
        }
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.flights.0.borrow_mut();
        state.waiting.remove(&self.ticket);
        let cancelled = state.machine.cancel(self.ticket);
        drop(state);
        if !cancelled && let Ok(Told::Promoted(id)) = self.told.try_recv() {
            drop(Leader::new(self.flights, id));
        }
    }
}

// === impl Leader ===

impl Leader {
    fn new(flights: &Rc<Flights>, id: FlightId) -> Self {
        Self { flights: Rc::clone(flights), id: Some(id), recording: None }
    }

    /// The answer's head. `None`: nobody else gets it.
    pub fn begin(mut self, status: StatusCode, headers: &HeaderMap) -> Option<Self> {
        self.recording = Recording::begin(status, headers, MAX_SHARED_BYTES);
        let shareable = self.recording.is_some();
        let id = self.id?;
        let is_waited_for = self.flights.0.borrow_mut().machine.on_head(id, shareable, now());
        self.flights.settle(None);
        if !is_waited_for {
            self.id = None;
        }
        is_waited_for.then_some(self)
    }

    pub fn push(&mut self, data: &Bytes) {
        if let Some(recording) = &mut self.recording
            && !recording.push(data)
        {
            self.recording = None;
            self.end(None);
        }
    }

    pub fn finish(mut self) {
        let answer = self.recording.take().and_then(Recording::finish);
        self.end(answer.as_ref());
    }

    /// There is nothing to share.
    pub fn failed(mut self) {
        self.end(None);
    }

    fn end(&mut self, answer: Option<&Arc<SharedAnswer>>) {
        let Some(id) = self.id.take() else { return };
        let mut state = self.flights.0.borrow_mut();
        match answer {
            Some(_) => state.machine.on_complete(id),
            None => state.machine.on_failed(id),
        }
        drop(state);
        self.flights.settle(answer);
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.flights.0.borrow_mut().machine.on_leader_gone(id);
            self.flights.settle(None);
        }
    }
}
