//! A request's right to a connection, from the queue for it to the end of its answer.

use std::{
    cell::Cell,
    error::Error as _,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use futures_util::future::Either;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use outrigger_core::{
    framing::FramingError,
    limits,
    pool::{ConnId, Reuse, Ticket},
    retry::Failure,
};
use tokio::sync::oneshot;

use super::{
    super::upstream::{ASKED_CONNECT, ASKED_HEAD, ASKED_OTHER, Sender},
    Connections, Terms,
    tally::End,
};
use crate::{
    error::Error,
    http::body::RequestBody,
    worker::{Worker, now},
};

/// The right to send one request on a connection, until its answer has ended.
pub struct Lease {
    pub(super) connections: Rc<Connections>,
    pub(super) worker: Rc<Worker>,
    pub(super) id: ConnId,
    /// This is the connection's first request.
    pub fresh: bool,
    /// It was waited for: for a new connection, or for somebody else's.
    pub waited: bool,
    pub(super) over: Cell<bool>,
}

/// A place in the queue.
pub(super) struct Waiting<'a> {
    pub(super) connections: &'a Rc<Connections>,
    pub(super) worker: &'a Rc<Worker>,
    pub(super) ticket: Ticket,
    pub(super) answer: oneshot::Receiver<Result<ConnId, Error>>,
    pub(super) answered: bool,
}

/// A request without an answer.
pub struct Unanswered {
    /// Nothing of it can have arrived.
    pub request: Option<Box<Request<RequestBody>>>,
    /// `None`: the connection was gone before.
    pub cause: Option<hyper::Error>,
}

// === impl Unanswered ===

impl Unanswered {
    /// How the attempt failed, and what to say about it.
    pub fn explain(&self, lease: &Lease) -> (Failure, Error) {
        let address = lease.address();
        let reset = |text: String| Error::Reset { address, error: text.into() };
        let Some(cause) = &self.cause else {
            return (Failure::Unsent, reset("the connection was closed while it was idle".to_owned()));
        };
        if self.request.is_some() {
            if lease.connections.http2 {
                lease.refused();
            }
            return (Failure::Unsent, reset(cause.to_string()));
        }
        let mut told = cause.to_string();
        let mut source = cause.source();
        while let Some(error) = source {
            if let Some(h2) = error.downcast_ref::<h2::Error>() {
                let unprocessed =
                    h2.is_go_away() && h2.is_remote() && h2.reason() == Some(h2::Reason::NO_ERROR);
                if unprocessed || h2.reason() == Some(h2::Reason::REFUSED_STREAM) {
                    return (Failure::Refused, reset(h2.to_string()));
                }
            }
            let guarded = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(framing) = guarded.and_then(|error| error.downcast_ref::<FramingError>()) {
                return (Failure::Sent, Error::Protocol { address, error: framing.to_string().into() });
            }
            told = format!("{told}: {error}");
            source = error.source();
        }
        if cause.is_parse() {
            return (Failure::Sent, Error::Protocol { address, error: told.into() });
        }
        if cause.is_user() {
            return (Failure::Sent, Error::CallerGone(told.into()));
        }
        (Failure::Sent, reset(told))
    }
}

// === impl Waiting ===

impl Waiting<'_> {
    pub(super) async fn get(mut self) -> Result<ConnId, Error> {
        let answer = (&mut self.answer).await;
        self.answered = true;
        answer.unwrap_or(Err(Error::Internal("the pool forgot a waiting request")))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut inner = self.connections.inner.borrow_mut();
        inner.waiting.remove(&self.ticket);
        let cancelled = inner.pool.cancel(self.ticket);
        drop(inner);
        if !cancelled && let Ok(Ok(id)) = self.answer.try_recv() {
            self.connections.release(self.worker, id, Reuse::Keep);
        }
    }
}

// === impl Lease ===

impl Lease {
    /// Who answers.
    pub fn sender(&self) -> limits::Sender {
        self.connections.remote.sender()
    }

    pub fn address(&self) -> SocketAddr {
        self.connections.remote.address()
    }

    /// How its connection is secured; `None`: not at all, or it is gone.
    pub fn security(&self) -> Option<Arc<str>> {
        self.connections.inner.borrow_mut().slot(self.id).and_then(|slot| slot.security.clone())
    }

    /// Sends the request and waits for the answer's head.
    pub async fn send(&self, request: Box<Request<RequestBody>>) -> Result<Response<Incoming>, Unanswered> {
        let sending = {
            let mut inner = self.connections.inner.borrow_mut();
            match inner.slot(self.id).map(|slot| &mut slot.sender) {
                Some(Sender::Http1 { sender, asked }) => {
                    let code = match *request.method() {
                        Method::HEAD => ASKED_HEAD,
                        Method::CONNECT => ASKED_CONNECT,
                        _ => ASKED_OTHER,
                    };
                    asked.store(code, Relaxed);
                    Either::Left(sender.try_send_request(*request))
                }
                Some(Sender::Http2(sender)) => Either::Right(sender.try_send_request(*request)),
                None => return Err(Unanswered { request: Some(request), cause: None }),
            }
        };
        let answer = match sending {
            Either::Left(sending) => sending.await,
            Either::Right(sending) => sending.await,
        };
        answer.map_err(|mut error| {
            let request = error.take_message().map(Box::new);
            Unanswered { request, cause: Some(error.into_error()) }
        })
    }

    /// The peer takes no further requests on this connection.
    pub fn refused(&self) {
        let mut inner = self.connections.inner.borrow_mut();
        inner.ends(self.id, End::Refused);
        inner.pool.on_goaway(self.id, now());
        drop(inner);
        self.connections.settle(&self.worker, &Terms::plain(limits::HANDSHAKE_TIMEOUT));
    }

    /// The answer has ended. `whole`: request and answer both have been carried to their ends.
    pub fn release(self, whole: bool) {
        self.end(whole);
    }

    fn end(&self, whole: bool) {
        if !self.over.replace(true) {
            let reuse = if whole || self.connections.http2 { Reuse::Keep } else { Reuse::Close };
            if reuse == Reuse::Close {
                self.connections.inner.borrow_mut().ends(self.id, End::Broken);
            }
            self.connections.release(&self.worker, self.id, reuse);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end(false);
    }
}
