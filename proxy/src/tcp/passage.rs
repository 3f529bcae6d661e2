//! One connection that is carried as bytes, or that ends before it carries a request: what telemetry is told about it.
//!
//! Like an exchange it is reported once, when it is dropped, however that comes about.

use std::{
    borrow::Cow,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_core::{outlier::What, verdict::Reason};

use super::{Counts, CutShort, Io, copy};
use crate::{
    error::Error,
    path::upstream::Opaque,
    telemetry::{ConnectionRecord, Direction, Protocol},
    trace,
    worker::{Worker, now},
};

pub struct Passage {
    pub worker: Rc<Worker>,
    pub direction: Direction,
    pub protocol: Protocol,
    pub caller: SocketAddr,
    pub peer: Option<SpiffeId>,
    /// Of the connection to `peer`.
    pub security: Option<Arc<str>>,
    pub service: Rc<str>,
    pub authority: Box<str>,
    pub endpoint: Option<SocketAddr>,
    pub attempts: u32,
    pub counts: Counts,
    pub id: u64,
    started: Instant,
    connected: Duration,
    reason: Option<Reason>,
    detail: Cow<'static, str>,
}

impl Passage {
    pub fn new(
        worker: &Rc<Worker>,
        direction: Direction,
        caller: SocketAddr,
        service: Rc<str>,
        started: Instant,
    ) -> Self {
        Self {
            worker: Rc::clone(worker),
            direction,
            protocol: Protocol::Tcp,
            caller,
            peer: None,
            security: None,
            service,
            authority: Box::default(),
            endpoint: None,
            attempts: 0,
            counts: Counts::default(),
            id: worker.next_id(),
            started,
            connected: Duration::ZERO,
            reason: None,
            detail: Cow::Borrowed(""),
        }
    }

    /// The upstream is connected.
    pub fn connected(&mut self, upstream: &Opaque) {
        self.endpoint = Some(upstream.address);
        self.attempts = upstream.attempts;
        self.connected = upstream.since.saturating_duration_since(self.started);
        if let Some(peer) = &upstream.peer {
            self.peer = Some(peer.clone());
            self.security.clone_from(&upstream.security);
        }
        if let Some(service) = &upstream.service {
            self.service = Rc::clone(service);
        }
    }

    /// The proxy ended it. The first cause stands.
    pub fn blame(&mut self, error: &Error) {
        if self.reason.is_none() {
            // Who looks whether a port is open and leaves has done no wrong.
            self.reason = (!matches!(error, Error::NoFirstBytes)).then(|| error.reason());
            self.detail = error.to_string().into();
        }
    }

    /// The copy ended before both directions had. An idle end is nobody's fault, and a caller may leave.
    pub fn cut(&mut self, cut: &CutShort) {
        let reason = match cut {
            CutShort::Idle(_) | CutShort::First(_) => None,
            CutShort::Second(_) => Some(Reason::UpstreamReset),
        };
        if self.reason.is_none() {
            self.reason = reason;
            self.detail = cut.to_string().into();
        }
    }
}

/// Carries bytes between a caller and an upstream until both have ended, or `until` ends it from outside.
pub async fn carry(
    passage: &mut Passage,
    mut caller: Io,
    mut upstream: Opaque,
    until: impl Future<Output = Error>,
) {
    passage.connected(&upstream);
    let cut = tokio::select! {
        biased;
        error = until => {
            passage.blame(&error);
            true
        }
        copied = copy(&mut caller, &mut upstream.io, &passage.counts, upstream.idle) => match copied {
            Ok(()) => false,
            Err(error) => {
                if let (CutShort::Second(_), Some(trial)) = (&error, &upstream.trial)
                    && passage.counts.back.get() == 0
                {
                    // It was reached and never said a word: its proxy has nobody behind it.
                    trial.broke(What::Reset);
                }
                passage.cut(&error);
                true
            }
        },
    };
    if cut {
        caller.reset_on_drop();
        upstream.io.get_ref().reset_on_drop();
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        let mut record = ConnectionRecord {
            direction: self.direction,
            protocol: self.protocol,
            reason: self.reason,
            detail: &self.detail,
            peer: self.peer.as_ref(),
            caller: self.caller,
            service: &self.service,
            authority: &self.authority,
            endpoint: self.endpoint,
            received: self.counts.forth.get(),
            sent: self.counts.back.get(),
            connected: self.connected,
            duration: now().saturating_duration_since(self.started),
            attempts: self.attempts,
            security: self.security.as_deref().unwrap_or_default(),
            trace: None,
            id: self.id,
        };
        trace::connection(&self.worker, &mut record);
        self.worker.telemetry.connection(&record);
    }
}
