//! What metrics are told about the connections to one endpoint.
//!
//! An endpoint may serve several services; what happens to its connections counts for the one that used them last. How
//! often connections were used again is told with the sweep, so that a request does not pay for it.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use outrigger_core::verdict::Reason;

use crate::{
    metrics::{Event, Timed},
    worker::Worker,
};

/// Why a connection is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nobody used it: for long, or while others were needed more.
    Idle,
    /// It was as old as the policy allows.
    Age,
    /// Credentials are newer than it.
    Renewed,
    /// Its endpoint has left the configuration.
    Left,
    /// A request or an answer on it was not carried to its end.
    Broken,
    /// The peer takes no more requests on it.
    Refused,
    /// The peer closed it, or the network did.
    Peer,
}

#[derive(Default)]
pub(super) struct Tally {
    service: RefCell<Rc<str>>,
    reused: Cell<u64>,
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Renewed => "renewed",
            Self::Left => "endpoint-left",
            Self::Broken => "broken",
            Self::Refused => "refused",
            Self::Peer => "peer",
        }
    }
}

impl Tally {
    /// Counts for this service from now on.
    pub(super) fn serve(&self, worker: &Worker, service: Option<&Rc<str>>) {
        let Some(service) = service else { return };
        if !Rc::ptr_eq(&self.service.borrow(), service) {
            self.tell(worker);
            self.service.replace(Rc::clone(service));
        }
    }

    pub(super) fn reused(&self) {
        self.reused.set(self.reused.get() + 1);
    }

    /// What was not told yet.
    pub(super) fn tell(&self, worker: &Worker) {
        let times = self.reused.take();
        if times > 0 {
            worker.telemetry.events(Event::Reused, &self.service.borrow(), ["", ""], times);
        }
    }

    pub(super) fn made(&self, worker: &Worker, took: Duration) {
        worker.telemetry.timed(Timed::Connect, &self.service.borrow(), took);
    }

    pub(super) fn failed(&self, worker: &Worker, reason: Reason) {
        worker.telemetry.event(Event::ConnectFailed, &self.service.borrow(), [reason.as_str(), ""]);
    }

    pub(super) fn ended(&self, worker: &Worker, end: End) {
        worker.telemetry.event(Event::Closed, &self.service.borrow(), [end.name(), ""]);
    }
}

#[cfg(test)]
mod tests;
