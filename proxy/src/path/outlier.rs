//! Outbound step: what an attempt has shown of its endpoint, told to the endpoint's load and to its circuit.
//!
//! ```text
//! pick ─▶ Trial ─┬─ failed(…)             no answer: the endpoint's failure, or nobody's
//!                └─ answered(head) ─┬─ a failure: told at once
//!                                   └─ ended(grpc) whole │ broke(what) cut short │ dropped: the caller left
//! ```
//!
//! What the endpoint's own proxy answers in its application's place (`outrigger-reason`) is the endpoint's failure where it
//! says that the application cannot be reached or broke off; all its other answers say nothing of the endpoint.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::{Duration, Instant},
};

use outrigger_core::{
    outlier::{self, Ended, What, classify},
    retry::{Answer, Failure},
    verdict::Reason,
};

use crate::{
    cluster::{Cluster, Endpoint},
    error::Error,
    shared_limits::Place,
    worker::{Worker, now},
};

/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u16 = 8;

/// One attempt at one endpoint, in its load until it is dropped, and told to its circuit exactly once.
pub struct Trial {
    worker: Rc<Worker>,
    cluster: Rc<Cluster>,
    endpoint: Rc<Endpoint>,
    dispatched: Instant,
    /// `None`: told.
    trial: RefCell<Option<outlier::Trial>>,
    head: Cell<Option<Head>>,
    _place: Option<Place>,
}

#[derive(Clone, Copy)]
struct Head {
    status: u16,
    latency: Duration,
    grpc: bool,
}

impl Trial {
    pub fn new(
        worker: &Rc<Worker>,
        cluster: &Rc<Cluster>,
        endpoint: Rc<Endpoint>,
        trial: outlier::Trial,
        place: Option<Place>,
        now: Instant,
    ) -> Self {
        endpoint.load.borrow_mut().on_dispatch(now);
        Self {
            worker: Rc::clone(worker),
            cluster: Rc::clone(cluster),
            endpoint,
            dispatched: now,
            trial: RefCell::new(Some(trial)),
            head: Cell::new(None),
            _place: place,
        }
    }

    pub fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// The answer's head is there. `grpc`: its status may still come in trailers.
    pub fn answered(&self, answer: &Answer, grpc: bool, now: Instant) {
        let latency = self.since(now);
        self.head.set(Some(Head { status: answer.status, latency, grpc }));
        let refused = matches!(answer.status, 429 | 503) || answer.grpc == Some(RESOURCE_EXHAUSTED);
        let mut load = self.endpoint.load.borrow_mut();
        load.on_response(latency, now);
        if refused {
            load.on_refusal(answer.retry_after, now);
        }
        drop(load);
        let ended = match answer.reason {
            Some(reason) => shown_by(reason),
            None => self.classify(answer.status, answer.grpc),
        };
        match ended {
            Ended::Success(_) => self.cluster.live.on_head(&self.trial, now),
            ended @ (Ended::Failure(_) | Ended::ConnectFailed | Ended::Cancelled | Ended::Ignored) => {
                self.tell(ended, latency, now);
            }
        }
    }

    /// There will be no answer.
    pub fn failed(&self, ended: Ended, now: Instant) {
        let latency = self.since(now);
        self.head.set(Some(Head { status: 0, latency, grpc: false }));
        match ended {
            Ended::Failure(_) | Ended::ConnectFailed => {
                self.endpoint.load.borrow_mut().on_failure(latency, now);
            }
            Ended::Success(_) | Ended::Cancelled | Ended::Ignored => {
                self.endpoint.load.borrow_mut().on_cancel(latency, now);
            }
        }
        self.tell(ended, latency, now);
    }

    /// An opaque connection is there.
    pub fn connected(&self, now: Instant) {
        let latency = self.since(now);
        self.head.set(Some(Head { status: 0, latency, grpc: false }));
        self.endpoint.load.borrow_mut().on_response(latency, now);
        self.cluster.live.on_head(&self.trial, now);
    }

    /// All that was to come has come. `grpc`: the status of a gRPC answer.
    pub fn ended(&self, grpc: Option<u16>) {
        let Some(head) = self.head.get() else { return };
        let ended = if head.status == 0 {
            Ended::Success(What::Closed)
        } else {
            self.classify(head.status, grpc.filter(|_| head.grpc))
        };
        self.tell(ended, head.latency, now());
    }

    /// It broke off in the middle.
    pub fn broke(&self, what: What) {
        let now = now();
        let latency = self.head.get().map_or_else(|| self.since(now), |head| head.latency);
        self.tell(Ended::Failure(what), latency, now);
    }

    pub fn latency(&self) -> Option<Duration> {
        self.head.get().map(|head| head.latency)
    }

    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.dispatched)
    }

    fn classify(&self, status: u16, grpc: Option<u16>) -> Ended {
        match &self.cluster.backend.traffic.outlier_ejection.0 {
            Some(policy) => {
                let grpc = grpc.map(|code| u8::try_from(code).unwrap_or(u8::MAX));
                classify(&policy.failures, status, grpc, false)
            }
            None => Ended::Success(What::Status(status)),
        }
    }

    fn tell(&self, ended: Ended, latency: Duration, now: Instant) {
        if let Some(trial) = self.trial.take() {
            self.cluster.live.on_outcome(&self.worker, trial, ended, latency, now);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let now = now();
        // The caller left, or nothing depends on it any more.
        match self.head.get() {
            None => {
                self.endpoint.load.borrow_mut().on_cancel(self.since(now), now);
                self.tell(Ended::Cancelled, self.since(now), now);
            }
            // What its trailers would have said is not known.
            Some(head) if head.grpc => self.tell(Ended::Cancelled, head.latency, now),
            Some(_) => self.ended(None),
        }
        self.endpoint.load.borrow_mut().on_end(now);
    }
}

/// What a failed attempt says of the endpoint.
pub fn judge(failure: Failure, error: &Error, fresh: bool) -> Ended {
    let broke_off = failure == Failure::Sent || (failure == Failure::Unsent && fresh);
    match shown_by(error.reason()) {
        // Closed while it was idle, or going away in good order.
        Ended::Failure(What::Reset) if !broke_off => Ended::Ignored,
        ended @ (Ended::Success(_)
        | Ended::Failure(_)
        | Ended::ConnectFailed
        | Ended::Cancelled
        | Ended::Ignored) => ended,
    }
}

/// What a reason says of the endpoint, found here or told by its own proxy about the application behind it.
fn shown_by(reason: Reason) -> Ended {
    match reason {
        Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::IdentityMismatch
        | Reason::UpstreamHandshake => Ended::ConnectFailed,
        Reason::UpstreamReset => Ended::Failure(What::Reset),
        Reason::UpstreamProtocol => Ended::Failure(What::Invalid),
        Reason::RequestTimeout | Reason::ResponseTimeout | Reason::StreamIdle => {
            Ended::Failure(What::Timeout)
        }
        Reason::Denied
        | Reason::MtlsRequired
        | Reason::HandshakeFailed
        | Reason::BadRequest
        | Reason::HeadersTooLarge
        | Reason::UriTooLong
        | Reason::CallerTimeout
        | Reason::Unsupported
        | Reason::Loop
        | Reason::NoRoute
        | Reason::NoEndpoints
        | Reason::EgressDenied
        | Reason::Unresolved
        | Reason::NotReady
        | Reason::Draining
        | Reason::Overloaded
        | Reason::AllEjected
        | Reason::BulkheadFull
        | Reason::QueueTimeout
        | Reason::RateLimited
        | Reason::DeadlineExceeded
        | Reason::NotCached
        | Reason::Internal => Ended::Ignored,
    }
}
