//! The stream beneath an HTTP connection that a peer has opened, watched for what hyper does not watch.
//!
//! - **Framing** (HTTP/1): bytes that the core's guard refuses never reach hyper. What is still owed is answered, then the
//!   refusal is written here, in hyper's place, and the connection ends.
//! - **Slow heads** (HTTP/1): a head that has begun must be complete within a fixed time.
//! - **Half-close** (HTTP/1): a client that has said all it has to say still gets its answer. hyper would either take the
//!   end for a cancellation or never notice a client that is gone; here an end between requests is held back while an
//!   answer is owed, and a reset is not.
//! - **Stalled writes**: a peer that takes nothing for a time is cut off.
//! - **Idleness**: a connection without a request for a time ends in good order.
//! - **Lingering** (HTTP/1): closing a socket with unread bytes resets it, and the last answer with it. So the rest of a
//!   refused request is read for a moment before the end.
//!
//! One timer serves all times. It is not moved by every byte: when it fires too early it is set anew.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use outrigger_core::{
    framing::{FramingError, Guard, Side},
    limits::{self, Room},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{error::Error, path::respond, tcp::Io};

/// Unread bytes of a peer that are dropped at the end, and for how long.
const LINGER_BYTES: u64 = limits::MAX_DRAIN_BYTES;
const LINGER_TIME: Duration = Duration::from_secs(1);

/// What the watched stream and the handler of its requests tell each other. Atomics only because hyper's upgrades want
/// the stream to be `Send`; both live on one thread.
#[derive(Debug, Default)]
pub struct Vitals {
    owed: AtomicU32,
    /// Requests that have reached their handler.
    requests: AtomicU32,
    receiving: AtomicBool,
    asked: AtomicBool,
    upgraded: AtomicBool,
    refused: Mutex<Option<Error>>,
    /// A read was put off until an answer is complete.
    held_back: AtomicBool,
    reader: AtomicWaker,
}

pub struct Watched {
    io: Io,
    vitals: Arc<Vitals>,
    http1: Option<Http1>,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    /// Bytes have come since the timer was set.
    active: bool,
    write_due: Option<Instant>,
}

struct Http1 {
    guard: Guard,
    /// Under which a refusal is reported.
    id: u64,
    /// Bytes of a head have come: when its request must have, and how many requests there were before it.
    head_due: Option<(Instant, u32)>,
    /// Nothing more is read: `Err` until what is owed has been answered.
    last_words: Option<Result<Bytes, Error>>,
    ended: bool,
    linger: Option<(Instant, u64)>,
}

// === impl Vitals ===

impl Vitals {
    /// A request has reached its handler, which owes an answer. `has_body`: and the rest of it is still to come.
    pub fn owe(&self, has_body: bool) {
        self.owed.store(self.owed.load(Relaxed) + 1, Relaxed);
        self.requests.store(self.requests.load(Relaxed).wrapping_add(1), Relaxed);
        self.receiving.store(has_body, Relaxed);
    }

    /// The request in hand has been received completely.
    pub fn received(&self) {
        self.receiving.store(false, Relaxed);
    }

    /// The request in hand asks for an upgrade: what follows it is not looked at until that is settled.
    pub fn ask(&self) {
        self.asked.store(true, Relaxed);
    }

    /// An answer is complete, or will never be.
    pub fn answered(&self) {
        self.asked.store(false, Relaxed);
        self.owed.store(self.owed.load(Relaxed).saturating_sub(1), Relaxed);
        self.resume();
    }

    /// What follows on the stream is not HTTP any more.
    pub fn upgrade(&self) {
        self.upgraded.store(true, Relaxed);
        self.resume();
    }

    /// Puts a read off. hyper does not read again by itself after its last read was not ready.
    fn hold_back<T>(&self, cx: &Context<'_>) -> Poll<T> {
        self.reader.register(cx.waker());
        self.held_back.store(true, Relaxed);
        Poll::Pending
    }

    fn resume(&self) {
        if self.held_back.load(Relaxed) {
            self.held_back.store(false, Relaxed);
            self.reader.wake();
        }
    }

    /// Why the connection was ended without a request to answer.
    pub fn take_refused(&self) -> Option<Error> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set_refused(&self, error: Error) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn is_owed(&self) -> bool {
        self.owed.load(Relaxed) > 0
    }
}

// === impl Watched ===

impl Watched {
    pub fn http1(io: Io, vitals: Arc<Vitals>, idle: Duration, id: u64, room: Room) -> Self {
        let guard = Guard::new(Side::Requests, room);
        let http1 = Http1 { guard, id, head_due: None, last_words: None, ended: false, linger: None };
        Self::new(io, vitals, idle, Some(http1))
    }

    pub fn http2(io: Io, vitals: Arc<Vitals>, idle: Duration) -> Self {
        Self::new(io, vitals, idle, None)
    }

    fn new(io: Io, vitals: Arc<Vitals>, idle: Duration, http1: Option<Http1>) -> Self {
        let timer = Box::pin(sleep_until(Instant::now() + idle));
        Self { io, vitals, http1, idle, timer, active: false, write_due: None }
    }

    /// The stream without its watch, for what is no longer HTTP.
    pub fn into_io(self) -> Io {
        self.io
    }

    /// Ready when a time is over: with an error, or with the idle connection's end.
    fn poll_times(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let head_due = self.http1.as_mut().and_then(|http1| http1.head_due(&self.vitals));
            let due = [self.write_due, head_due].into_iter().flatten().min();
            if let Some(due) = due
                && due < self.timer.deadline()
            {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.write_due.is_some_and(|due| due <= now) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            if let Some(http1) = &mut self.http1
                && head_due.is_some_and(|due| due <= now)
            {
                http1.head_due = None;
                http1.last_words = Some(Err(Error::SlowHead));
                return Poll::Ready(Ok(()));
            }
            if !self.active && !self.vitals.is_owed() && due.is_none() {
                return Poll::Ready(Ok(()));
            }
            self.active = false;
            self.timer.as_mut().reset(now + self.idle);
        }
    }
}

impl Http1 {
    /// Looks at what was read before hyper does.
    fn inspect(&mut self, read: &[u8], vitals: &Vitals) -> Result<(), FramingError> {
        self.guard.on_bytes(read)?;
        if !vitals.is_owed() && self.head_due(vitals).is_none() {
            self.head_due = Some((Instant::now() + limits::HEADERS_TIMEOUT, vitals.requests.load(Relaxed)));
        }
        Ok(())
    }

    /// Until when the head that has begun must be complete. Settled by its request, which reaches the handler at once if
    /// the bytes were the whole head.
    fn head_due(&mut self, vitals: &Vitals) -> Option<Instant> {
        self.head_due.take_if(|(_, requests)| *requests != vitals.requests.load(Relaxed));
        self.head_due.map(|(due, _)| due)
    }

    /// Writes the refusal once nothing else is owed, then pretends to hyper that the peer has closed.
    fn poll_last_words(
        &mut self,
        cx: &mut Context<'_>,
        io: &mut Io,
        vitals: &Vitals,
    ) -> Poll<io::Result<()>> {
        let Some(words) = &mut self.last_words else { return Poll::Ready(Ok(())) };
        if let Err(error) = words {
            if vitals.is_owed() {
                return vitals.hold_back(cx);
            }
            let text = respond::refuse_raw(self.id, error);
            vitals.set_refused(error.clone());
            *words = Ok(text);
        }
        let Ok(words) = words else { return Poll::Ready(Ok(())) };
        while !words.is_empty() {
            let n = ready!(Pin::new(&mut *io).poll_write(cx, words))?;
            words.advance(n);
        }
        Pin::new(io).poll_flush(cx)
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.vitals.upgraded.load(Relaxed) {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        if this.vitals.asked.load(Relaxed) {
            // Read again either by whoever carries the upgraded bytes, or by hyper once it has answered.
            return this.vitals.hold_back(cx);
        }
        let start = buf.filled().len();
        if let Some(http1) = &mut this.http1 {
            if http1.last_words.is_some() {
                return http1.poll_last_words(cx, &mut this.io, &this.vitals);
            }
            if http1.ended {
                return if this.vitals.is_owed() { this.vitals.hold_back(cx) } else { Poll::Ready(Ok(())) };
            }
        }
        if Pin::new(&mut this.io).poll_read(cx, buf)?.is_pending() {
            ready!(this.poll_times(cx))?;
            return match &mut this.http1 {
                Some(http1) => http1.poll_last_words(cx, &mut this.io, &this.vitals),
                None => Poll::Ready(Ok(())),
            };
        }
        this.active = true;
        let Some(http1) = &mut this.http1 else { return Poll::Ready(Ok(())) };
        if buf.filled().len() == start {
            http1.ended = true;
            // Another proxy never half-closes: its end is the caller's cancellation.
            let half_closed = matches!(this.io, Io::Plain(_)) && !this.vitals.receiving.load(Relaxed);
            let hold = half_closed && this.vitals.is_owed();
            return if hold { this.vitals.hold_back(cx) } else { Poll::Ready(Ok(())) };
        }
        let Err(error) = http1.inspect(&buf.filled()[start..], &this.vitals) else {
            return Poll::Ready(Ok(()));
        };
        buf.set_filled(start);
        http1.last_words = Some(Err(Error::Framing(error)));
        if this.vitals.receiving.load(Relaxed) {
            // A handler is waiting for the rest of this very request.
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
        http1.poll_last_words(cx, &mut this.io, &this.vitals)
    }
}

impl Watched {
    fn wrote<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Ready(result) => {
                self.write_due = None;
                Poll::Ready(result)
            }
            Poll::Pending => {
                if self.write_due.is_none() {
                    self.write_due = Some(Instant::now() + limits::STALL_TIMEOUT);
                }
                if let Poll::Ready(Err(error)) = self.poll_times(cx) {
                    return Poll::Ready(Err(error));
                }
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write(cx, buf);
        this.wrote(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.wrote(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.io).poll_flush(cx);
        this.wrote(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let unread = match &this.http1 {
            Some(http1) => http1.last_words.is_some() || this.vitals.receiving.load(Relaxed),
            None => false,
        };
        let Some(http1) = this.http1.as_mut().filter(|_| unread) else {
            let result = Pin::new(&mut this.io).poll_shutdown(cx);
            return this.wrote(cx, result);
        };
        let now = Instant::now();
        if http1.linger.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            http1.linger = Some((now + LINGER_TIME, LINGER_BYTES));
            this.timer.as_mut().reset(now + LINGER_TIME);
        }
        let Some((due, left)) = &mut http1.linger else { return Poll::Ready(Ok(())) };
        let mut sink = [0_u8; 4096];
        while *left > 0 && now < *due {
            let mut buf = ReadBuf::new(&mut sink);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len() as u64);
                }
                Poll::Ready(Ok(()) | Err(_)) => break,
                Poll::Pending => {
                    ready!(this.timer.as_mut().poll(cx));
                    break;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
