//! Load from a pod, counted: what "0 failed requests" is measured with.
//!
//! Closed loops with a pause between requests, so that the machine is not saturated and every loss shows. A request has
//! failed when it got anything but a complete 200 (for gRPC: all messages back and status 0).

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_lab::{Pod, wait_for};
use tokio::{net::TcpStream, sync::mpsc};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http1,
    Http2,
    /// Bidirectional streams of [`MESSAGES`] messages, each sent after the answer to the one before.
    GrpcStream,
}

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    pub(crate) target: SocketAddr,
    pub(crate) authority: String,
    pub(crate) path: String,
    /// Loops at once. HTTP/1.1: a connection each; otherwise they share [`SHARED`] to a connection.
    pub(crate) loops: usize,
    pub(crate) pause: Duration,
}

pub(crate) struct Load {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    /// The first few, in words.
    failures: Mutex<Vec<String>>,
    /// Answers by instance.
    instances: Mutex<BTreeMap<String, u64>>,
}

/// What a load has come to.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) failures: Vec<String>,
    pub(crate) instances: BTreeMap<String, u64>,
}

/// Messages of one gRPC stream.
pub(crate) const MESSAGES: u64 = 10;
const SHARED: usize = 8;
const FAILURES_KEPT: usize = 8;
/// Longer than any answer may take: what hangs has failed.
const PATIENCE: Duration = Duration::from_secs(40);

impl Plan {
    pub(crate) fn new(kind: Kind, target: SocketAddr, authority: &str) -> Self {
        Self {
            kind,
            target,
            authority: authority.to_owned(),
            path: if kind == Kind::GrpcStream { "/outrigger.test.Echo/Bidi" } else { "/id" }.to_owned(),
            loops: 8,
            pause: Duration::from_millis(2),
        }
    }

    pub(crate) fn loops(mut self, loops: usize, pause: Duration) -> Self {
        (self.loops, self.pause) = (loops, pause);
        self
    }

    /// Starts the load in a pod.
    pub(crate) fn start(self, pod: &Pod) -> Result<Load> {
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let thread = pod.background(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(drive(Arc::new(self), counted));
        })?;
        Ok(Load { counts, thread: Some(thread) })
    }
}

impl Load {
    /// Answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.counts.answered.load(Ordering::Relaxed)
    }

    /// Waits for `more` further answers.
    pub(crate) fn wait_for_more(&self, more: u64, deadline: Duration) -> Result<()> {
        let goal = self.answered() + more;
        wait_for(deadline, &format!("{goal} answered requests"), || self.answered() >= goal)
            .with_context(|| self.report().to_string())
    }

    pub(crate) fn report(&self) -> Report {
        let lock = |list: &Mutex<Vec<String>>| list.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Report {
            answered: self.answered(),
            failed: self.counts.failed.load(Ordering::Relaxed),
            failures: lock(&self.counts.failures),
            instances: self.counts.instances.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    /// Lets requests in flight finish, and reports.
    pub(crate) fn stop(mut self) -> Result<Report> {
        self.counts.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the load panicked"))?;
        }
        Ok(self.report())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::Relaxed);
    }
}

impl Report {
    /// An error unless nothing failed and at least `fewest` were answered.
    pub(crate) fn expect_none_failed(&self, fewest: u64) -> Result<()> {
        ensure!(self.failed == 0 && self.answered >= fewest, "wanted 0 failed of at least {fewest}: {self}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {:?}, {} failed", self.answered, self.instances, self.failed)?;
        self.failures.iter().try_for_each(|failure| write!(f, "; {failure}"))
    }
}

impl Counts {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn count(&self, outcome: Result<String>) {
        match outcome {
            Ok(instance) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                *self
                    .instances
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .entry(instance)
                    .or_default() += 1;
            }
            Err(error) => {
                let number = self.failed.fetch_add(1, Ordering::Relaxed);
                let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
                if failures.len() < FAILURES_KEPT {
                    let after = self.answered.load(Ordering::Relaxed);
                    failures.push(format!("#{number} after {after} answers: {error:#}"));
                }
            }
        }
    }
}

async fn drive(plan: Arc<Plan>, counts: Arc<Counts>) {
    let per_connection = if plan.kind == Kind::Http1 { 1 } else { SHARED };
    let mut connections = Vec::new();
    for _ in 0..plan.loops.div_ceil(per_connection) {
        let (plan, counts) = (Arc::clone(&plan), Arc::clone(&counts));
        connections.push(tokio::spawn(async move {
            match plan.kind {
                Kind::Http1 => http1(&plan, &counts).await,
                Kind::Http2 | Kind::GrpcStream => http2(&plan, &counts, per_connection.min(plan.loops)).await,
            }
        }));
    }
    for connection in connections {
        if let Err(panic) = connection.await {
            counts.count(Err(anyhow!("a loop ended: {panic}")));
        }
    }
}

type Body = BoxBody<Bytes, std::convert::Infallible>;

async fn http1(plan: &Plan, counts: &Counts) {
    while !counts.stopped() {
        let connected = async {
            let stream = TcpStream::connect(plan.target).await.context("connect")?;
            stream.set_nodelay(true)?;
            Ok::<_, anyhow::Error>(
                hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await?,
            )
        };
        let (mut sender, connection) = match patient(connected).await {
            Ok(pair) => pair,
            Err(error) => {
                counts.count(Err(error));
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = tokio::spawn(connection);
        // `ready` fails when the server closed after a complete answer: then a new connection is due, and nothing lost.
        while !counts.stopped() && sender.ready().await.is_ok() {
            let request = Request::get(&plan.path).header("host", &plan.authority).body(empty());
            let sent = async { whole(sender.send_request(request?).await?).await };
            let outcome = patient(sent).await;
            let broken = outcome.is_err();
            counts.count(outcome);
            if broken {
                break;
            }
            tokio::time::sleep(plan.pause).await;
        }
        drop(sender);
        connection.abort();
    }
}

async fn http2(plan: &Arc<Plan>, counts: &Arc<Counts>, loops: usize) {
    while !counts.stopped() {
        let connected = async {
            let stream = TcpStream::connect(plan.target).await.context("connect")?;
            stream.set_nodelay(true)?;
            let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
            Ok::<_, anyhow::Error>(handshake.await?)
        };
        let (sender, connection) = match patient(connected).await {
            Ok(pair) => pair,
            Err(error) => {
                counts.count(Err(error));
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connection = tokio::spawn(connection);
        let streams: Vec<_> = (0..loops)
            .map(|_| {
                let (plan, counts, mut sender) = (Arc::clone(plan), Arc::clone(counts), sender.clone());
                tokio::spawn(async move {
                    // `ready` fails when the server said GOAWAY: then a new connection is due, and nothing lost.
                    while !counts.stopped() && sender.ready().await.is_ok() {
                        let outcome = match plan.kind {
                            Kind::GrpcStream => patient(grpc_stream(&plan, &mut sender)).await,
                            Kind::Http1 | Kind::Http2 => {
                                let uri = format!("http://{}{}", plan.authority, plan.path);
                                patient(async {
                                    whole(sender.send_request(Request::get(uri).body(empty())?).await?).await
                                })
                                .await
                            }
                        };
                        counts.count(outcome);
                        tokio::time::sleep(plan.pause).await;
                    }
                })
            })
            .collect();
        drop(sender);
        for stream in streams {
            drop(stream.await);
        }
        connection.abort();
    }
}

async fn grpc_stream(
    plan: &Plan,
    sender: &mut hyper::client::conn::http2::SendRequest<Body>,
) -> Result<String> {
    let (messages, queue) = mpsc::channel::<Frame<Bytes>>(1);
    let stream = futures_util::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|frame| (Ok(frame), queue))
    });
    let request = Request::post(format!("http://{}{}", plan.authority, plan.path))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(BodyExt::boxed(StreamBody::new(stream)))?;
    messages.send(message(0)).await?;
    let mut response = sender.send_request(request).await?;
    refused(&response)?;
    let mut received = BytesMut::new();
    for number in 0..MESSAGES {
        let wanted = message(number).into_data().map_err(|_| anyhow!("a message is data"))?;
        while received.len() < wanted.len() {
            let frame = response.body_mut().frame().await.context("the stream ended early")??;
            let data =
                frame.into_data().map_err(|frame| anyhow!("early trailers {:?}", frame.into_trailers()))?;
            received.put(data);
        }
        ensure!(received.split_to(wanted.len()) == wanted, "message {number} came back changed");
        if number + 1 < MESSAGES {
            messages.send(message(number + 1)).await?;
        }
    }
    drop(messages);
    let rest = response.into_body().collect().await?;
    let trailers = rest.trailers().context("no trailers")?;
    ensure!(trailers.get("grpc-status").is_some_and(|status| status == "0"), "trailers {trailers:?}");
    Ok(trailers
        .get("x-instance")
        .map_or_else(String::new, |name| String::from_utf8_lossy(name.as_bytes()).into()))
}

/// A gRPC message: flag, length, bytes.
fn message(number: u64) -> Frame<Bytes> {
    let text = format!("message {number:04}");
    let mut bytes = BytesMut::with_capacity(text.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap_or(0));
    bytes.put(text.as_bytes());
    Frame::data(bytes.freeze())
}

fn empty() -> Body {
    Empty::new().boxed()
}

fn refused(response: &Response<Incoming>) -> Result<()> {
    if response.status() != StatusCode::OK || response.headers().contains_key("outrigger-reason") {
        bail!("status {} {:?}", response.status(), response.headers());
    }
    Ok(())
}

/// The body of a complete 200.
async fn whole(response: Response<Incoming>) -> Result<String> {
    refused(&response)?;
    let body = response.into_body().collect().await.context("body")?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}

async fn patient<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")))
}
