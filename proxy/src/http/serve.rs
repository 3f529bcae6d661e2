//! An HTTP connection that a peer has opened, from its first request to its goodbye.
//!
//! Limits are the core's. On a drain the connection is told to go (`Connection: close`, GOAWAY) and what is in flight is
//! finished. For HTTP/2, streams are watched from outside, because hyper does not look after them:
//!
//! - A stream whose caller takes nothing of an answer that is there for it, for a time, is reset. Opening the window by a
//!   byte now and then does not help, as progress is counted in whole pieces of the body.
//! - A connection most of whose streams are reset before they are answered is closed. The mesh connections behind it are
//!   shared with others, so this kind of abuse must end here.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Body as _;
use hyper::{
    body::Incoming,
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_core::{framing::FramingError, limits};
use pin_project_lite::pin_project;
use slab::Slab;
use tokio::{
    task::{self, AbortHandle},
    time::{Instant, sleep_until},
};

use super::{body::ResponseBody, exchange::Caller, watched::Watched};
use crate::{error::Error, tcp::Io, telemetry::Direction};

/// How often the streams of a connection are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Serves every request of a connection with `handle`. Ends when the peer or the drain has ended it; an error is what
/// broke it.
pub async fn serve<F>(
    io: Io,
    caller: &Rc<Caller>,
    handle: impl Fn(Request<Incoming>) -> F + 'static,
) -> Result<(), hyper::Error>
where
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let idle = match caller.direction {
        Direction::Inbound => limits::MESH_IDLE_TIMEOUT,
        Direction::Outbound => limits::PLAIN_IDLE_TIMEOUT,
    };
    if caller.http2 { http2(io, caller, idle, handle).await } else { http1(io, caller, idle, handle).await }
}

async fn http1<F>(
    io: Io,
    caller: &Rc<Caller>,
    idle: Duration,
    handle: impl Fn(Request<Incoming>) -> F + 'static,
) -> Result<(), hyper::Error>
where
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let id = caller.worker.next_id();
    let room = caller.sender().http1_request();
    let watched = Watched::http1(io, Arc::clone(&caller.vitals), idle, id, room);
    let vitals = Arc::clone(&caller.vitals);
    let service = service_fn(move |request: Request<Incoming>| {
        // At once, not when the handler is polled: hyper reads on in between.
        vitals.owe(!request.body().is_end_stream());
        let answer = handle(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .half_close(false)
        .keep_alive(true)
        .writev(true)
        .auto_date_header(false)
        // No `max_headers`: with more than its own 100 hyper allocates for each head. The guard says no before it does.
        .max_buf_size(limits::HTTP1_BUFFER_BYTES)
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(watched), service)
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut going = caller.worker.drain.going(caller.direction);
    let ended = tokio::select! {
        biased;
        ended = &mut connection => ended,
        () = &mut going => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    let refused = caller.vitals.take_refused().or_else(|| match &ended {
        // What is left to hyper it answers with a bare status.
        Err(error) if error.is_parse_too_large() => Some(Error::Framing(FramingError::TooLarge(room))),
        Err(error) if error.is_parse() => Some(Error::Malformed(error.to_string().into())),
        Ok(()) | Err(_) => None,
    });
    if let Some(error) = refused {
        caller.passage(id).blame(&error);
    }
    ended
}

async fn http2<F>(
    io: Io,
    caller: &Rc<Caller>,
    idle: Duration,
    handle: impl Fn(Request<Incoming>) -> F + 'static,
) -> Result<(), hyper::Error>
where
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let watched = Watched::http2(io, Arc::clone(&caller.vitals), idle);
    let streams = Rc::new(Streams::default());
    let begun = Rc::clone(&streams);
    let service = service_fn(move |request| {
        let stream = begun.begin();
        let answer = handle(request);
        async move {
            let mut response = answer.await;
            stream.answered.set(true);
            response.body_mut().watch(stream);
            Ok::<_, Infallible>(response)
        }
    });
    let (max_streams, max_resets) = match caller.direction {
        // A proxy carries the requests of many callers, and so their cancellations too.
        Direction::Inbound => (limits::MAX_MESH_STREAMS, limits::MAX_MESH_STREAMS as usize),
        Direction::Outbound => (limits::MAX_STREAMS, limits::MAX_PENDING_RESETS),
    };
    let connection = http2::Builder::new(StreamTasks(Rc::clone(&streams)))
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_frame_size(limits::MAX_FRAME_BYTES)
        .max_concurrent_streams(max_streams)
        .max_header_list_size(caller.sender().http2().bytes as u32)
        .header_table_size(limits::HPACK_TABLE_BYTES)
        .max_send_buf_size(limits::STREAM_SEND_BUFFER_BYTES)
        .max_pending_accept_reset_streams(max_resets)
        .max_local_error_reset_streams(limits::MAX_LOCAL_RESETS)
        .keep_alive_interval(limits::PING_INTERVAL)
        .keep_alive_timeout(limits::PING_TIMEOUT)
        .auto_date_header(false)
        .enable_connect_protocol()
        .serve_connection(TokioIo::new(watched), service);
    let mut connection = pin!(connection);
    let mut going = caller.worker.drain.going(caller.direction);
    let mut told = false;
    let mut look = pin!(sleep_until(Instant::now() + LOOK));
    let abusive = caller.direction == Direction::Outbound;
    poll_fn(|cx| {
        if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        if !told && Pin::new(&mut going).poll(cx).is_ready() {
            told = true;
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        if abusive && streams.is_abused() {
            tracing::debug!(caller = %caller.address, "closed: most of its streams were reset before an answer");
            return Poll::Ready(Ok(()));
        }
        // Registered with the timer only while there is something to look at.
        while !streams.live.borrow().is_empty() && look.as_mut().poll(cx).is_ready() {
            streams.reset_stalled();
            look.as_mut().reset(Instant::now() + LOOK);
        }
        Poll::Pending
    })
    .await
}

/// The streams of one HTTP/2 connection.
#[derive(Default)]
pub struct Streams {
    live: RefCell<Slab<Rc<Watch>>>,
    /// Begun by the handler, not yet spawned by hyper, which does so at once.
    begun: RefCell<Option<Rc<Watch>>>,
    total: Cell<u32>,
    premature: Cell<u32>,
}

/// One stream, as far as its answer goes.
#[derive(Default)]
pub struct Watch {
    answered: Cell<bool>,
    /// A piece of the answer was handed to the connection and nothing was asked for since.
    handed: Cell<Option<Instant>>,
    task: RefCell<Option<AbortHandle>>,
}

/// Spawns streams so that they can be counted, and ended from outside.
#[derive(Clone)]
struct StreamTasks(Rc<Streams>);

pin_project! {
    /// A stream's future, and its place in the list.
    struct Counted<F> {
        #[pin]
        stream: F,
        streams: Rc<Streams>,
        watch: Rc<Watch>,
        slot: usize,
    }

    impl<F> PinnedDrop for Counted<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            this.streams.live.borrow_mut().try_remove(*this.slot);
            if !this.watch.answered.get() {
                this.streams.premature.set(this.streams.premature.get() + 1);
            }
            this.watch.task.take();
        }
    }
}

// === impl Streams ===

impl Streams {
    fn begin(&self) -> Rc<Watch> {
        let watch = Rc::new(Watch::default());
        self.begun.replace(Some(Rc::clone(&watch)));
        watch
    }

    /// Whether the peer resets most of what it asks for before it is answered.
    fn is_abused(&self) -> bool {
        let (total, premature) = (u64::from(self.total.get()), u64::from(self.premature.get()));
        premature >= u64::from(limits::RESET_CHECK_AFTER)
            && premature * 100 > total * u64::from(limits::MAX_RESET_PERCENT)
    }

    /// Ends the streams whose callers have taken nothing for too long.
    fn reset_stalled(&self) {
        let stalled =
            |watch: &Watch| watch.handed.get().is_some_and(|at| at.elapsed() >= limits::STALL_TIMEOUT);
        let live = self.live.borrow();
        for (_, watch) in live.iter().filter(|(_, watch)| stalled(watch)) {
            if let Some(task) = &*watch.task.borrow() {
                // Dropping hyper's stream resets it.
                task.abort();
            }
        }
    }
}

impl Watch {
    /// A piece of the answer goes out; `None`: the next piece is being waited for.
    pub fn hands(&self, piece: bool) {
        self.handed.set(piece.then(Instant::now));
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        let Some(watch) = self.0.begun.take() else {
            // The sending half of an upgraded stream, which has a task of its own.
            task::spawn_local(stream);
            return;
        };
        self.0.total.set(self.0.total.get() + 1);
        let slot = self.0.live.borrow_mut().insert(Rc::clone(&watch));
        let counted = Counted { stream, streams: Rc::clone(&self.0), watch: Rc::clone(&watch), slot };
        let task = task::spawn_local(counted);
        watch.task.replace(Some(task.abort_handle()));
    }
}

impl<F: Future<Output = ()>> Future for Counted<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.project().stream.poll(cx)
    }
}
