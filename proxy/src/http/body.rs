//! The bodies that pass through: hyper's own, not copied, with what must happen along the way.
//!
//! A [`RequestBody`] counts what a caller sends and may wait for the upstream's `100 Continue`. A [`ResponseBody`] counts
//! what the caller gets, reads the gRPC status from trailers, and tells its [`Exchange`] how the answer ended. Both keep
//! hyper's knowledge of length and end, or a `Content-Length` would turn into chunks.
//!
//! An upstream that breaks off is an error here and therefore a broken-off answer at the caller, never a clean end.

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use outrigger_core::{
    headers::{self, HeaderError},
    verdict::Reason,
};
use tokio::time::{Instant, Sleep, sleep};

use super::{exchange::Exchange, replay::Cursor, serve::Watch};
use crate::{
    error::{Error, told},
    path::cache::Tap,
};

/// What a caller sends.
pub struct RequestBody {
    source: Source,
    exchange: Rc<Exchange>,
    gate: Option<Arc<Gate>>,
}

enum Source {
    None,
    Caller(Incoming),
    Kept(Cursor),
}

/// What a caller is answered.
pub struct ResponseBody {
    kind: Kind,
    exchange: Option<Rc<Exchange>>,
    /// HTTP/2: whoever resets streams that nobody takes.
    watch: Option<Rc<Watch>>,
    idle: Option<Idle>,
    /// Whoever keeps what goes by.
    tap: Option<Box<Tap>>,
}

/// Finds out that nothing moves either way. Its timer is made when an answer is first waited for, and not moved by every
/// byte: when it fires too early it is set anew, so it takes at most twice the time.
struct Idle {
    within: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    moved: u64,
}

enum Kind {
    Upstream(Incoming),
    /// The proxy's own words.
    Own(Bytes),
    /// From memory; the last piece first.
    Stored(Vec<Bytes>),
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// hyper looks in here for the code to reset the other side's stream with.
    #[error(transparent)]
    Peer(#[from] hyper::Error),
    #[error("trailers: {0}")]
    Trailers(HeaderError),
    #[error("another attempt has taken over")]
    Superseded,
    #[error("nothing moved for {0:?}")]
    Idle(Duration),
}

/// Holds a request's body back until the upstream wants it (`Expect: 100-continue`).
#[derive(Default)]
pub struct Gate {
    open: AtomicBool,
    waiting: AtomicWaker,
}

// === impl RequestBody ===

impl RequestBody {
    pub fn new(body: Incoming, exchange: Rc<Exchange>) -> Self {
        Self { source: Source::Caller(body), exchange, gate: None }
    }

    /// For a request that is sent again, and has none.
    pub fn empty(exchange: Rc<Exchange>) -> Self {
        Self { source: Source::None, exchange, gate: None }
    }

    /// One try of a body that can be sent again.
    pub fn kept(cursor: Cursor, exchange: Rc<Exchange>) -> Self {
        Self { source: Source::Kept(cursor), exchange, gate: None }
    }

    pub fn wait_for(&mut self, gate: Arc<Gate>) {
        self.gate = Some(gate);
    }

    pub fn is_empty(&self) -> bool {
        match &self.source {
            Source::None => true,
            Source::Caller(body) => body.is_end_stream(),
            Source::Kept(cursor) => cursor.is_end_stream(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(gate) = &this.gate {
            ready!(gate.poll_open(cx));
            this.gate = None;
        }
        let body = match &mut this.source {
            Source::None => return Poll::Ready(None),
            Source::Caller(body) => body,
            Source::Kept(cursor) => return cursor.poll_frame(cx),
        };
        let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
        match &frame {
            None => this.exchange.request_ends(),
            Some(Err(error)) => this.exchange.caller_broke_off(error),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.exchange.received.set(this.exchange.received.get() + data.len() as u64);
                }
                if body.is_end_stream() {
                    this.exchange.request_ends();
                }
            }
        }
        Poll::Ready(frame.map(|frame| cleaned(frame?)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::None => SizeHint::with_exact(0),
            Source::Caller(body) => body.size_hint(),
            Source::Kept(cursor) => cursor.size_hint(),
        }
    }
}

// === impl ResponseBody ===

impl ResponseBody {
    /// `idle`: how long nothing may move either way.
    pub fn upstream(body: Incoming, exchange: Rc<Exchange>, idle: Option<Duration>) -> Self {
        let idle = idle.map(|within| Idle { within, timer: None, moved: 0 });
        let this =
            Self { kind: Kind::Upstream(body), exchange: Some(exchange), watch: None, idle, tap: None };
        if this.is_end_stream() {
            // hyper does not poll a body that says it is over.
            this.ends(true);
        }
        this
    }

    pub fn own(text: Bytes, exchange: Rc<Exchange>) -> Self {
        Self { kind: Kind::Own(text), exchange: Some(exchange), watch: None, idle: None, tap: None }
    }

    /// Pieces that are here already, none of them empty.
    pub fn stored(mut pieces: Vec<Bytes>, exchange: Rc<Exchange>) -> Self {
        pieces.reverse();
        Self { kind: Kind::Stored(pieces), exchange: Some(exchange), watch: None, idle: None, tap: None }
    }

    /// Lets somebody else see what goes by.
    pub fn tap(&mut self, mut tap: Tap) {
        if self.is_end_stream() {
            tap.finish();
        } else if tap.is_needed() {
            self.tap = Some(Box::new(tap));
        }
    }

    /// Before a connection becomes something else.
    pub fn none() -> Self {
        Self { kind: Kind::Own(Bytes::new()), exchange: None, watch: None, idle: None, tap: None }
    }

    pub(super) fn watch(&mut self, watch: Rc<Watch>) {
        self.watch = Some(watch);
    }

    fn ends(&self, whole: bool) {
        if let Some(exchange) = &self.exchange {
            exchange.answer_ends(whole);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(watch) = &this.watch {
            watch.hands(false);
        }
        let frame = match &mut this.kind {
            Kind::Upstream(body) => match Pin::new(body).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    let (Some(idle), Some(exchange)) = (&mut this.idle, &this.exchange) else {
                        return Poll::Pending;
                    };
                    ready!(idle.poll(cx, exchange.moved()));
                    let error = Error::StreamIdle(idle.within);
                    exchange.answer_breaks(error.reason(), error.to_string());
                    return Poll::Ready(Some(Err(BodyError::Idle(idle.within))));
                }
            },
            Kind::Own(text) if text.is_empty() => None::<Result<_, hyper::Error>>,
            Kind::Own(text) => Some(Ok(Frame::data(std::mem::take(text)))),
            Kind::Stored(pieces) => pieces.pop().map(|piece| Ok(Frame::data(piece))),
        };
        if let Some(watch) = &this.watch {
            watch.hands(true);
        }
        let Some(exchange) = &this.exchange else { return Poll::Ready(frame.map(|frame| Ok(frame?))) };
        if let Some(tap) = &mut this.tap {
            match &frame {
                None => tap.finish(),
                Some(Ok(frame)) => match frame.data_ref() {
                    Some(data) => tap.push(data),
                    None => tap.spoil(),
                },
                Some(Err(_)) => tap.spoil(),
            }
        }
        match &frame {
            None => exchange.answer_ends(true),
            Some(Err(error)) => exchange.answer_breaks(Reason::UpstreamReset, told(error)),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    exchange.sent.set(exchange.sent.get() + data.len() as u64);
                }
                if let Some(trailers) = frame.trailers_ref() {
                    exchange.set_grpc_status(grpc_status(trailers));
                }
                if this.is_end_stream() {
                    exchange.answer_ends(true);
                    if let Some(tap) = &mut this.tap {
                        tap.finish();
                    }
                }
            }
        }
        Poll::Ready(frame.map(|frame| cleaned(frame?)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Upstream(body) => body.is_end_stream(),
            Kind::Own(text) => text.is_empty(),
            Kind::Stored(pieces) => pieces.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Upstream(body) => body.size_hint(),
            Kind::Own(text) => SizeHint::with_exact(text.len() as u64),
            Kind::Stored(pieces) => SizeHint::with_exact(pieces.iter().map(|piece| piece.len() as u64).sum()),
        }
    }
}

impl Idle {
    /// Ready when nothing has moved for too long. `moved`: bytes of both directions so far.
    fn poll(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<()> {
        loop {
            let timer = self.timer.get_or_insert_with(|| {
                self.moved = moved;
                Box::pin(sleep(self.within))
            });
            ready!(timer.as_mut().poll(cx));
            if self.moved == moved {
                return Poll::Ready(());
            }
            self.moved = moved;
            timer.as_mut().reset(Instant::now() + self.within);
        }
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.ends(self.is_end_stream());
    }
}

/// Trailers must not bring in what is decided by the head, nor more than a head may.
pub(super) fn cleaned(mut frame: Frame<Bytes>) -> Result<Frame<Bytes>, BodyError> {
    if let Some(trailers) = frame.trailers_mut() {
        headers::inspect_trailers(trailers).map_err(BodyError::Trailers)?;
        headers::remove_forbidden_trailers(trailers);
    }
    Ok(frame)
}

/// The status of a gRPC answer, from its trailers or from a head that has no body behind it.
pub fn grpc_status(fields: &HeaderMap) -> Option<u16> {
    fields.get("grpc-status")?.to_str().ok()?.parse().ok()
}

// === impl Gate ===

impl Gate {
    pub fn open(&self) {
        self.open.store(true, Relaxed);
        self.waiting.wake();
    }

    fn poll_open(&self, cx: &Context<'_>) -> Poll<()> {
        self.waiting.register(cx.waker());
        if self.open.load(Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }
}
