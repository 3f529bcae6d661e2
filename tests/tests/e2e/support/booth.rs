//! An application whose doors a test keeps: it serves so many at a time, and lets those that are inside out one by one.
//!
//! ```text
//!   /hold...     waits until the test lets one out            /fail-at-NAME   503, if that is its name
//!   other paths  one of `places` for `work`, then its name    grpc            the same by path, then grpc-status 0
//! ```
//!
//! A request counts as inside until its answer has begun, or its caller is gone. All that came is kept, in order.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    service::service_fn,
};
use outrigger_lab::Pod;
use tokio::sync::Semaphore;

use super::server::Server;

/// Ends when dropped, and resets its connections then, as a killed program would.
pub(crate) struct Booth {
    state: Arc<State>,
    _server: Server,
}

/// A request that reached the application.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) path: String,
    pub(crate) fields: HeaderMap,
}

struct State {
    name: String,
    work: Duration,
    places: Semaphore,
    exit: Semaphore,
    inside: AtomicU64,
    most: AtomicU64,
    arrivals: Mutex<Vec<Arrival>>,
}

struct Visit<'a>(&'a State);

type Body = BoxBody<Bytes, Infallible>;

impl Booth {
    /// Serves everybody at once and without delay, but for those it holds.
    pub(crate) fn start(pod: &Pod, port: u16, name: &str) -> Result<Self> {
        Self::with_work(pod, port, name, Semaphore::MAX_PERMITS, Duration::ZERO)
    }

    /// Serves so many at a time, each for as long as `work`; the others wait inside.
    pub(crate) fn with_work(pod: &Pod, port: u16, name: &str, places: usize, work: Duration) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = pod.enter(|| std::net::TcpListener::bind(address))?.context("bind the booth")?;
        let state = Arc::new(State {
            name: name.to_owned(),
            work,
            places: Semaphore::new(places),
            exit: Semaphore::new(0),
            inside: AtomicU64::new(0),
            most: AtomicU64::new(0),
            arrivals: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let server = Server::start(pod, listener, false, move || {
            let state = Arc::clone(&shared);
            service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(request, &state).await) }
            })
        })?;
        Ok(Self { state, _server: server })
    }

    /// Requests inside now.
    pub(crate) fn inside(&self) -> u64 {
        self.state.inside.load(Ordering::SeqCst)
    }

    /// The most that were inside at once, since it was asked last.
    pub(crate) fn take_most(&self) -> u64 {
        self.state.most.swap(self.inside(), Ordering::SeqCst)
    }

    /// Lets so many out of those it holds, now or when they come.
    pub(crate) fn let_out(&self, number: usize) {
        self.state.exit.add_permits(number);
    }

    /// Requests that have come.
    pub(crate) fn requests(&self) -> u64 {
        self.lock().len() as u64
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.lock().clone()
    }

    /// Requests that came in this time.
    pub(crate) fn arrived(&self, from: Instant, until: Instant) -> u64 {
        self.lock().iter().filter(|arrival| (from..until).contains(&arrival.at)).count() as u64
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Arrival>> {
        self.state.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }

    /// The service account of the caller, as the proxy says it.
    pub(crate) fn caller(&self) -> &str {
        self.field("x-forwarded-client-cert")
            .and_then(|value| value.rsplit_once("/sa/"))
            .map_or("", |(_, sa)| sa)
    }
}

impl State {
    fn visit(&self, request: &Request<Incoming>) -> Visit<'_> {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(inside, Ordering::SeqCst);
        let path = request.uri().path().to_owned();
        let arrival = Arrival { at: Instant::now(), path, fields: request.headers().clone() };
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(arrival);
        Visit(self)
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn answer(request: Request<Incoming>, state: &State) -> Response<Body> {
    let _visit = state.visit(&request);
    let path = request.uri().path().to_owned();
    let kind = request.headers().get("content-type");
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    // A body that is read to its end leaves the connection usable.
    drop(request.into_body().collect().await);
    if path.starts_with("/hold") {
        if let Ok(permit) = state.exit.acquire().await {
            permit.forget();
        }
    } else {
        let _place = state.places.acquire().await;
        tokio::time::sleep(state.work).await;
    }
    if grpc {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        // One message, without content: a flag and its length.
        let message = Frame::data(Bytes::from_static(&[0; 5]));
        let last = futures_util::stream::iter([Ok(message), Ok(Frame::trailers(trailers))]);
        let mut response = Response::new(BodyExt::boxed(StreamBody::new(last)));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        return response;
    }
    let mut response = Response::new(Full::new(Bytes::from(state.name.clone())).boxed());
    if path.strip_prefix("/fail-at-") == Some(&state.name) {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}
