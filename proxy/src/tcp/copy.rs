//! Copies bytes both ways between two streams until both directions have ended.
//!
//! An end in one direction is passed on as a half-close and the other direction goes on. A failed read ends both at once.
//! A failed write ends its own direction, and the other one is still carried to its end, because the last words of a
//! peer that has closed are often on their way. Either failure is reported, and the caller must not close in good order
//! then: a cut stream must not look whole.
//!
//! **Memory.** Reads go into one scratch buffer per thread and are written on from there at once; only what the writer
//! did not take is kept per connection. An idle connection therefore holds no buffer, and a stalled one at most one
//! scratch buffer's worth per direction, because nothing more is read until it has been written.

use std::{
    cell::{Cell, RefCell},
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, sleep_until},
};

const SCRATCH_BYTES: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH_BYTES].into_boxed_slice());
}

/// Bytes moved so far. Outlives the copy, so that a copy that was abandoned is still accounted for.
#[derive(Debug, Default)]
pub struct Counts {
    /// From the first stream to the second.
    pub forth: Cell<u64>,
    /// From the second stream to the first.
    pub back: Cell<u64>,
}

/// Why a copy ended before both directions had.
#[derive(Debug, thiserror::Error)]
pub enum CutShort {
    #[error("no byte either way for {0:?}")]
    Idle(Duration),
    /// The first stream failed.
    #[error("caller's side: {0}")]
    First(#[source] io::Error),
    /// The second stream failed.
    #[error("endpoint's side: {0}")]
    Second(#[source] io::Error),
}

/// One direction.
///
/// ```text
///   Open ── read n ──▶ Open (rest kept until written)
///   Open ── read 0, rest written ──▶ Closing ── shutdown done ──▶ Closed
///   Open, Closing ── write failed ──▶ Closed, with the error in `refused`
/// ```
struct Lane {
    state: State,
    rest: Bytes,
    unflushed: bool,
    refused: Option<io::Error>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Closing,
    Closed,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

pub async fn copy<A, B>(
    first: &mut A,
    second: &mut B,
    counts: &Counts,
    idle: Option<Duration>,
) -> Result<(), CutShort>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut forth = Lane::new();
    let mut back = Lane::new();
    let mut last = Instant::now();
    let mut timer = pin!(idle.map(|idle| sleep_until(last + idle)));
    poll_fn(|cx| {
        let before = counts.forth.get() + counts.back.get();
        let forth_done = forth.poll(cx, first, second, &counts.forth).map_err(CutShort::First)?;
        let back_done = back.poll(cx, second, first, &counts.back).map_err(CutShort::Second)?;
        if forth_done.is_ready() && back_done.is_ready() {
            return Poll::Ready(match (forth.refused.take(), back.refused.take()) {
                (Some(error), _) => Err(CutShort::Second(error)),
                (None, Some(error)) => Err(CutShort::First(error)),
                (None, None) => Ok(()),
            });
        }
        let Some(idle) = idle else { return Poll::Pending };
        if counts.forth.get() + counts.back.get() != before {
            last = Instant::now();
        }
        // The timer is not moved by every byte; when it fires early it is set to where it belongs.
        while let Some(mut sleep) = timer.as_mut().as_pin_mut() {
            if sleep.as_mut().poll(cx).is_pending() {
                break;
            }
            if Instant::now() >= last + idle {
                return Poll::Ready(Err(CutShort::Idle(idle)));
            }
            sleep.reset(last + idle);
        }
        Poll::Pending
    })
    .await
}

// === impl Lane ===

impl Lane {
    fn new() -> Self {
        Self { state: State::Open, rest: Bytes::new(), unflushed: false, refused: None }
    }

    /// Ready when this direction is over; an error is one of reading.
    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &Cell<u64>,
    ) -> io::Result<Poll<()>>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        match self.advance(cx, reader, writer, count) {
            Ok(progress) => Ok(progress),
            Err(Failed::Reading(error)) => Err(error),
            Err(Failed::Writing(error)) => {
                self.state = State::Closed;
                self.rest = Bytes::new();
                self.refused = Some(error);
                Ok(Poll::Ready(()))
            }
        }
    }

    fn advance<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &Cell<u64>,
    ) -> Result<Poll<()>, Failed>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            match self.state {
                State::Closed => return Ok(Poll::Ready(())),
                State::Closing => match Pin::new(&mut *writer).poll_shutdown(cx).map_err(Failed::Writing)? {
                    Poll::Ready(()) => self.state = State::Closed,
                    Poll::Pending => return Ok(Poll::Pending),
                },
                State::Open => {
                    while !self.rest.is_empty() {
                        match Pin::new(&mut *writer).poll_write(cx, &self.rest).map_err(Failed::Writing)? {
                            Poll::Ready(n) => {
                                wrote(n, count, &mut self.unflushed)?;
                                self.rest.advance(n);
                            }
                            Poll::Pending => return Ok(Poll::Pending),
                        }
                    }
                    // Lets go of the allocation that the rest was a slice of.
                    self.rest = Bytes::new();
                    if SCRATCH
                        .with_borrow_mut(|scratch| self.pump(cx, reader, writer, count, scratch))?
                        .is_pending()
                    {
                        return Ok(Poll::Pending);
                    }
                }
            }
        }
    }

    /// Reads once and writes what was read as far as the writer goes. Ready: there is something to do next.
    fn pump<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        count: &Cell<u64>,
        scratch: &mut [u8],
    ) -> Result<Poll<()>, Failed>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut buf = ReadBuf::new(scratch);
        if Pin::new(reader).poll_read(cx, &mut buf).map_err(Failed::Reading)?.is_pending() {
            if self.unflushed && Pin::new(writer).poll_flush(cx).map_err(Failed::Writing)?.is_ready() {
                self.unflushed = false;
            }
            return Ok(Poll::Pending);
        }
        let mut read = buf.filled();
        if read.is_empty() {
            self.state = State::Closing;
            return Ok(Poll::Ready(()));
        }
        while !read.is_empty() {
            match Pin::new(&mut *writer).poll_write(cx, read).map_err(Failed::Writing)? {
                Poll::Ready(n) => {
                    wrote(n, count, &mut self.unflushed)?;
                    read = &read[n..];
                }
                Poll::Pending => {
                    self.rest = Bytes::copy_from_slice(read);
                    return Ok(Poll::Pending);
                }
            }
        }
        Ok(Poll::Ready(()))
    }
}

fn wrote(n: usize, count: &Cell<u64>, unflushed: &mut bool) -> Result<(), Failed> {
    if n == 0 {
        return Err(Failed::Writing(io::ErrorKind::WriteZero.into()));
    }
    count.set(count.get() + n as u64);
    *unflushed = true;
    Ok(())
}
