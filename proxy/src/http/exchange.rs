//! One request on its way, from its head to the end of its answer.
//!
//! An [`Exchange`] is shared by the bodies of both directions and by whoever is at work on the request, and it is told
//! what happens. When the last of them lets go of it, however that comes about, it is reported to telemetry: exactly once,
//! also for a caller that left. What the answer holds on to meanwhile (its place in an endpoint's load, its upstream
//! connection) is released the moment it ends.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Uri, Version, header, request};
use outrigger_certs::SpiffeId;
use outrigger_core::{headers, limits, outlier::What, verdict::Reason};
use outrigger_proto::spec::{Endpoint, Route};

use super::{tries::Tries, watched::Vitals};
use crate::{
    error::{Error, told},
    path::{accept::Open, outlier::Trial, pool::Lease},
    shared_limits::Permit,
    tcp::Passage,
    telemetry::{Direction, Handled, Protocol, RequestRecord},
    trace,
    worker::{Worker, now},
};

/// An HTTP connection that somebody has opened to this proxy.
pub struct Caller {
    pub worker: Rc<Worker>,
    pub direction: Direction,
    pub address: SocketAddr,
    /// Inbound: who proved to be calling.
    pub identity: Option<SpiffeId>,
    /// How its connection is secured; `None`: not at all.
    pub security: Option<Arc<str>>,
    pub http2: bool,
    /// What is called, as access logs name it.
    pub service: Rc<str>,
    pub vitals: Arc<Vitals>,
    /// The connection's place among the open ones.
    pub open: Option<Open>,
}

pub struct Exchange {
    pub caller: Rc<Caller>,
    pub id: u64,
    pub started: Instant,
    pub method: Method,
    pub grpc: bool,
    uri: Uri,
    host: Option<HeaderValue>,
    /// What the request was routed to.
    pub routed: RefCell<Routed>,
    pub endpoint: Cell<Option<SocketAddr>>,
    pub attempts: Cell<u32>,
    pub tries: Tries,
    /// In a trace.
    pub place: Cell<Option<trace::Place>>,
    pub notes: Notes,
    status: Cell<u16>,
    grpc_status: Cell<Option<u16>>,
    reason: Cell<Option<Reason>>,
    detail: RefCell<Cow<'static, str>>,
    first_byte: Cell<Duration>,
    pub(super) received: Cell<u64>,
    pub(super) sent: Cell<u64>,
    request_over: Cell<bool>,
    /// When it was, of a request that had more than a head.
    request_over_at: Cell<Option<Instant>>,
    answer_over: Cell<bool>,
    hold: RefCell<Hold>,
}

#[derive(Default)]
pub struct Routed {
    /// `None`: as the caller's connection.
    pub service: Option<Rc<str>>,
    pub route: Option<Arc<Route>>,
    /// Outbound: who answers.
    pub peer: Option<SpiffeId>,
    /// Outbound: how the connection to whoever answers is secured.
    pub security: Option<Arc<str>>,
}

/// What resilience did about it, for the log; see [`Handled`].
#[derive(Default)]
pub struct Notes {
    pub queued: Cell<Duration>,
    pub gave_up: Cell<Option<&'static str>>,
    pub hedged: Cell<Option<&'static str>>,
    pub fallback: Cell<Option<&'static str>>,
    pub cache: Cell<Option<&'static str>>,
    pub limit: RefCell<Option<Arc<str>>>,
    /// What let the caller in, or did not, of a request that may have a span.
    pub policy: RefCell<Option<Ruling>>,
    /// Endpoints that were out when one was picked, of such a request.
    pub ejected: Cell<u32>,
}

/// Who decided about a caller.
pub enum Ruling {
    /// No policy; a word of its own, because a request that has no span in the end is to cost no memory.
    Default,
    Policy(Arc<str>),
}

/// What an answer keeps until it ends.
#[derive(Default)]
pub struct Hold {
    pub lease: Option<Lease>,
    pub trial: Option<Trial>,
    /// Places in bulkheads.
    pub permits: Vec<Permit>,
}

// === impl Caller ===

impl Caller {
    /// A proof of identity is what tells another proxy.
    pub fn sender(&self) -> limits::Sender {
        if self.identity.is_some() { limits::Sender::Proxy } else { limits::Sender::Program }
    }

    /// A record for what did not become a request.
    pub fn passage(&self, id: u64) -> Passage {
        let service = Rc::clone(&self.service);
        let mut passage = Passage::new(&self.worker, self.direction, self.address, service, now());
        passage.protocol = if self.http2 { Protocol::Http2 } else { Protocol::Http1 };
        passage.peer.clone_from(&self.identity);
        passage.security.clone_from(&self.security);
        passage.id = id;
        passage
    }
}

// === impl Ruling ===

impl Ruling {
    fn name(&self) -> &str {
        match self {
            Self::Default => "default",
            Self::Policy(name) => name,
        }
    }
}

// === impl Exchange ===

impl Exchange {
    /// `has_body`: more of the request is to come.
    pub fn new(caller: &Rc<Caller>, head: &request::Parts, has_body: bool, now: Instant) -> Rc<Self> {
        if caller.http2 {
            // For HTTP/1 this is known before the handler runs; see `serve.rs`.
            caller.vitals.owe(false);
        }
        Rc::new(Self {
            caller: Rc::clone(caller),
            id: caller.worker.next_id(),
            started: now,
            method: head.method.clone(),
            grpc: headers::is_grpc(&head.headers),
            uri: head.uri.clone(),
            host: head.headers.get(header::HOST).cloned(),
            routed: RefCell::default(),
            endpoint: Cell::new(None),
            attempts: Cell::new(0),
            tries: Tries::new(now),
            place: Cell::new(None),
            notes: Notes::default(),
            status: Cell::new(0),
            grpc_status: Cell::new(None),
            reason: Cell::new(None),
            detail: RefCell::new(Cow::Borrowed("")),
            first_byte: Cell::new(Duration::ZERO),
            received: Cell::new(0),
            sent: Cell::new(0),
            request_over: Cell::new(!has_body),
            request_over_at: Cell::new((!has_body).then_some(now)),
            answer_over: Cell::new(false),
            hold: RefCell::default(),
        })
    }

    /// The proxy answers itself, or cuts the answer short. The first cause stands.
    pub fn blame(&self, reason: Reason, detail: impl Into<Cow<'static, str>>) {
        if self.reason.get().is_none() {
            self.reason.set(Some(reason));
            self.detail.replace(detail.into());
        }
    }

    /// The request has been received to its end.
    pub fn request_ends(&self) {
        if !self.request_over.replace(true) {
            self.request_over_at.set(Some(now()));
            self.caller.vitals.received();
        }
    }

    /// The caller's half of the request failed.
    pub fn caller_broke_off(&self, error: &hyper::Error) {
        let error = Error::CallerGone(told(error).into());
        self.blame(error.reason(), error.to_string());
    }

    pub fn is_request_over(&self) -> bool {
        self.request_over.get()
    }

    /// Since when there is no more of the request to come. `None`: there is.
    pub fn request_over_since(&self) -> Option<Instant> {
        self.request_over_at.get()
    }

    /// Of the caller's connection.
    pub fn version(&self) -> Version {
        if self.caller.http2 { Version::HTTP_2 } else { Version::HTTP_11 }
    }

    /// Whether it has a span, or may still have one.
    pub fn is_recorded(&self) -> bool {
        self.place.get().is_some_and(|place| place.is_recorded())
    }

    /// Bytes of both bodies so far.
    pub fn moved(&self) -> u64 {
        self.received.get() + self.sent.get()
    }

    /// Where it is sent, or who has answered.
    pub fn goes_to(&self, endpoint: &Endpoint) {
        self.endpoint.set(Some(endpoint.address));
        self.routed.borrow_mut().peer = Some(endpoint.identity.clone());
    }

    /// The answer's head is there. What is in `hold` is kept until the answer ends.
    pub fn answer_begins(&self, status: u16, hold: Hold, now: Instant) {
        self.status.set(status);
        self.first_byte.set(now.saturating_duration_since(self.started));
        if let Some(lease) = &hold.lease {
            self.routed.borrow_mut().security = lease.security();
        }
        self.hold.replace(hold);
    }

    pub fn set_grpc_status(&self, status: Option<u16>) {
        if status.is_some() {
            self.grpc_status.set(status);
        }
    }

    /// Bytes that were carried after an upgrade.
    pub fn add_bytes(&self, received: u64, sent: u64) {
        self.received.set(self.received.get() + received);
        self.sent.set(self.sent.get() + sent);
    }

    /// The answer breaks off in the middle.
    pub fn answer_breaks(&self, reason: Reason, detail: impl Into<Cow<'static, str>>) {
        self.blame(reason, detail);
        if let Some(trial) = &self.hold.borrow().trial {
            trial.broke(if reason == Reason::StreamIdle { What::Timeout } else { What::Reset });
        }
        self.answer_ends(false);
    }

    /// The answer has ended, or nobody will take the rest of it. `whole`: the upstream has said all it had to say.
    pub fn answer_ends(&self, whole: bool) {
        if self.answer_over.replace(true) {
            return;
        }
        let hold = self.hold.take();
        if let Some(trial) = hold.trial.as_ref().filter(|_| whole) {
            trial.ended(self.grpc_status.get());
        }
        if let Some(lease) = hold.lease {
            lease.release(whole && self.request_over.get());
        }
        self.caller.vitals.answered();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.answer_ends(false);
        let ended = now();
        let detail = self.detail.borrow();
        let routed = self.routed.borrow();
        let notes = &self.notes;
        let limit = notes.limit.borrow();
        let authority = match self.uri.authority() {
            Some(authority) => authority.as_str(),
            None => self.host.as_ref().and_then(|host| host.to_str().ok()).unwrap_or(""),
        };
        let security = routed.security.as_ref().or(self.caller.security.as_ref());
        let tries = self.tries.kept();
        let mut record = RequestRecord {
            direction: self.caller.direction,
            protocol: match (self.grpc, self.caller.http2) {
                (true, _) => Protocol::Grpc,
                (false, true) => Protocol::Http2,
                (false, false) => Protocol::Http1,
            },
            method: self.method.as_str(),
            authority,
            path: self.uri.path(),
            status: self.status.get(),
            grpc_status: self.grpc_status.get(),
            reason: self.reason.get(),
            detail: &detail,
            peer: routed.peer.as_ref().or(self.caller.identity.as_ref()),
            caller: self.caller.address,
            service: routed.service.as_ref().unwrap_or(&self.caller.service),
            route: routed.route.as_ref().map_or("", |route| &route.name),
            endpoint: self.endpoint.get(),
            received: self.received.get(),
            sent: self.sent.get(),
            first_byte: self.first_byte.get(),
            duration: ended.saturating_duration_since(self.started),
            attempts: self.attempts.get(),
            tries: &tries,
            security: security.map_or("", |security| security),
            trace: None,
            handled: Handled {
                queued: notes.queued.get(),
                gave_up: notes.gave_up.get(),
                hedged: notes.hedged.get(),
                fallback: notes.fallback.get(),
                cache: notes.cache.get(),
                limit: limit.as_deref().unwrap_or_default(),
            },
            id: self.id,
        };
        if let Some(place) = self.place.get() {
            let policy = notes.policy.borrow();
            let ejected = notes.ejected.get();
            let extra =
                trace::Extra { http2: self.caller.http2, policy: policy.as_ref().map(Ruling::name), ejected };
            trace::request(&self.caller.worker, &place, &mut record, &extra, ended);
        }
        self.caller.worker.telemetry.request(&record);
    }
}
