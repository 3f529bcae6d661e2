//! A request's body that is kept while it goes by, so that it can be sent again.
//!
//! ```text
//!              ┌ kept: frame │ frame │ frame ┐  rest, from the caller
//!  first try ──┴─────────────────────────────▶───────────
//!  next try  ── begins at the front, and takes over the rest where the first one has left off
//! ```
//!
//! More than the limit is not kept: the body goes by as it would have, and the request cannot be sent again. Only the
//! newest try gets anything; an older one, which may linger in a connection, is cut off. Tries beside each other (hedges)
//! are for bodies that are complete.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::body::{BodyError, cleaned};
use super::exchange::Exchange;

pub struct Replay {
    exchange: Rc<Exchange>,
    limit: u64,
    state: RefCell<State>,
    too_large: Cell<bool>,
    newest: Cell<u32>,
}

struct State {
    rest: Option<Incoming>,
    kept: Vec<Bytes>,
    bytes: u64,
    trailers: Option<HeaderMap>,
}

/// One try's place in it.
pub struct Cursor {
    replay: Rc<Replay>,
    number: u32,
    next: usize,
    trailers_read: bool,
}

// === impl Replay ===

impl Replay {
    /// Keeps at most `limit` bytes.
    pub fn new(body: Incoming, exchange: &Rc<Exchange>, limit: u64) -> Rc<Self> {
        let state = State { rest: Some(body), kept: Vec::new(), bytes: 0, trailers: None };
        Rc::new(Self {
            exchange: Rc::clone(exchange),
            limit,
            state: RefCell::new(state),
            too_large: Cell::new(false),
            newest: Cell::new(0),
        })
    }

    /// Whether another try can have all of it.
    pub fn is_whole(&self) -> bool {
        !self.too_large.get()
    }

    /// Whether all of it is here.
    pub fn is_complete(&self) -> bool {
        self.is_whole() && self.state.borrow().rest.as_ref().is_none_or(Body::is_end_stream)
    }

    /// For a new try. An older one gets no more, unless the body is complete.
    pub fn cursor(self: &Rc<Self>) -> Cursor {
        if !self.is_complete() {
            self.newest.set(self.newest.get() + 1);
        }
        Cursor { replay: Rc::clone(self), number: self.newest.get(), next: 0, trailers_read: false }
    }

    /// The next frame from the caller, kept if there is room.
    fn poll_rest(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.state.borrow_mut();
        let Some(rest) = &mut state.rest else { return Poll::Ready(None) };
        let frame = match ready!(Pin::new(&mut *rest).poll_frame(cx)) {
            None => {
                state.rest = None;
                self.exchange.request_ends();
                return Poll::Ready(None);
            }
            Some(Err(error)) => {
                self.exchange.caller_broke_off(&error);
                return Poll::Ready(Some(Err(error.into())));
            }
            Some(Ok(frame)) => cleaned(frame),
        };
        if rest.is_end_stream() {
            state.rest = None;
            self.exchange.request_ends();
        }
        let frame = frame?;
        if let Some(data) = frame.data_ref() {
            let length = data.len() as u64;
            self.exchange.received.set(self.exchange.received.get() + length);
            state.bytes += length;
            if state.bytes > self.limit {
                self.too_large.set(true);
                state.kept = Vec::new();
            } else if length > 0 {
                state.kept.push(data.clone());
            }
        } else if let Some(trailers) = frame.trailers_ref()
            && !self.too_large.get()
        {
            state.trailers = Some(trailers.clone());
        }
        Poll::Ready(Some(Ok(frame)))
    }
}

impl Cursor {
    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.number != self.replay.newest.get() {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        let state = self.replay.state.borrow();
        if let Some(kept) = state.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if let Some(trailers) = state.trailers.as_ref().filter(|_| !self.trailers_read) {
            self.trailers_read = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers.clone()))));
        }
        drop(state);
        let frame = ready!(self.replay.poll_rest(cx));
        match &frame {
            Some(Ok(frame)) if frame.is_trailers() => self.trailers_read = true,
            Some(Ok(_)) => self.next = self.replay.state.borrow().kept.len(),
            Some(Err(_)) | None => {}
        }
        Poll::Ready(frame)
    }

    pub fn is_end_stream(&self) -> bool {
        let state = self.replay.state.borrow();
        let trailers = state.trailers.is_some() && !self.trailers_read;
        self.next >= state.kept.len() && !trailers && state.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    pub fn size_hint(&self) -> SizeHint {
        let state = self.replay.state.borrow();
        let kept: u64 = state.kept.iter().skip(self.next).map(|kept| kept.len() as u64).sum();
        let rest = state.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint
    }
}
