//! Requests from a pod with all that came back of them: one, a row of them on one connection, many at once, and loops.
//!
//! What [`super::load`] counts as failed is an answer here: tests of limits are about refusals.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_lab::{Pod, wait_for};
use tokio::net::TcpStream;

use super::SOON;

#[derive(Clone, Debug)]
pub(crate) struct Ask {
    target: SocketAddr,
    path: String,
    fields: Vec<(HeaderName, HeaderValue)>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http1,
    /// With prior knowledge.
    Http2,
    /// Over HTTP/2.
    Grpc,
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) took: Duration,
    pub(crate) status: u16,
    /// With the trailers.
    pub(crate) fields: HeaderMap,
    pub(crate) body: String,
}

/// In the order of asking; `None`: not yet.
type Answers = Vec<Option<Result<Told, String>>>;

/// Requests under way at once.
pub(crate) struct Asked {
    answers: Arc<Mutex<Answers>>,
    thread: JoinHandle<()>,
}

/// Loops that ask until they are stopped.
#[derive(Clone, Debug)]
pub(crate) struct Loops {
    ask: Ask,
    loops: usize,
    every: Option<Duration>,
    after_refusal: Duration,
}

pub(crate) struct Running {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    told: Mutex<Vec<Told>>,
    broken: Mutex<Vec<String>>,
}

/// What loops have come to.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) told: Vec<Told>,
    /// Requests without a whole answer, in words.
    pub(crate) broken: Vec<String>,
}

/// Longer than any answer may take: what hangs has failed.
const PATIENCE: Duration = Duration::from_secs(40);
const AFTER_REFUSAL: Duration = Duration::from_millis(20);

impl Ask {
    pub(crate) fn new(target: SocketAddr, path: &str) -> Self {
        Self { target, path: path.to_owned(), fields: Vec::new(), kind: Kind::Http1 }
    }

    pub(crate) fn field(mut self, name: &'static str, value: &str) -> Self {
        let value = HeaderValue::from_str(value).expect("a value of a test");
        self.fields.push((HeaderName::from_static(name), value));
        self
    }

    pub(crate) fn http2(self) -> Self {
        Self { kind: Kind::Http2, ..self }
    }

    pub(crate) fn grpc(self) -> Self {
        Self { kind: Kind::Grpc, ..self }
    }

    /// Asks once, on a connection of its own.
    pub(crate) fn once(&self, pod: &Pod) -> Result<Told> {
        let mut told = in_turn(pod, vec![self.clone()])?;
        told.pop().context("no answer")
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>> {
        let mut request = match self.kind {
            Kind::Http1 => Request::get(&self.path).header("host", "store.shop"),
            Kind::Http2 => Request::get(format!("http://store.shop{}", self.path)),
            Kind::Grpc => Request::post(format!("http://store.shop{}", self.path))
                .header("content-type", "application/grpc")
                .header("te", "trailers"),
        };
        for (name, value) in &self.fields {
            request = request.header(name, value);
        }
        Ok(request.body(Empty::new())?)
    }
}

/// Asks one after the other on one connection, or on another where that was closed.
pub(crate) fn in_turn(pod: &Pod, asks: Vec<Ask>) -> Result<Vec<Told>> {
    pod.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut line = Line::default();
            let mut told = Vec::with_capacity(asks.len());
            for ask in &asks {
                told.push(line.ask(ask).await.with_context(|| format!("after {} answers", told.len()))?);
            }
            Ok(told)
        })
    })?
}

/// Asks all at once, each on a connection of its own.
pub(crate) fn at_once(pod: &Pod, asks: Vec<Ask>) -> Result<Asked> {
    let answers = Arc::new(Mutex::new(vec![None; asks.len()]));
    let shared = Arc::clone(&answers);
    let thread = pod.background(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let all = asks.into_iter().enumerate().map(|(number, ask)| {
            let shared = Arc::clone(&shared);
            async move {
                let told = Line::default().ask(&ask).await.map_err(|error| format!("{error:#}"));
                shared.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(told);
            }
        });
        runtime.block_on(join_all(all));
    })?;
    Ok(Asked { answers, thread })
}

impl Asked {
    /// How many have an answer.
    pub(crate) fn answered(&self) -> usize {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.iter().filter(|answer| answer.is_some()).count()
    }

    /// Waits for so many answers; the others may come later.
    pub(crate) fn wait_answered(&self, number: usize) -> Result<()> {
        wait_for(SOON, &format!("{number} answers"), || self.answered() >= number)
            .with_context(|| format!("there are {}", self.answered()))
    }

    /// Waits for all, in the order in which they were asked for.
    pub(crate) fn wait(self) -> Result<Vec<Told>> {
        self.thread.join().map_err(|_| anyhow!("asking panicked"))?;
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let all = answers.drain(..).map(|answer| match answer {
            Some(told) => told.map_err(|error| anyhow!("{error}")),
            None => Err(anyhow!("not asked")),
        });
        all.collect()
    }
}

impl Told {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.to_str().ok()
    }

    /// Why a proxy answered by itself; empty where the application did.
    pub(crate) fn reason(&self) -> &str {
        self.field("outrigger-reason").unwrap_or_default()
    }

    pub(crate) fn is_good(&self) -> bool {
        self.status == 200
            && self.reason().is_empty()
            && self.field("grpc-status").is_none_or(|status| status == "0")
    }
}

/// How many of each reason; those of the application are under "".
pub(crate) fn reasons<'a>(told: impl IntoIterator<Item = &'a Told>) -> BTreeMap<&'a str, usize> {
    let mut reasons = BTreeMap::new();
    for told in told {
        *reasons.entry(told.reason()).or_default() += 1;
    }
    reasons
}

impl Loops {
    /// Each loop asks again as soon as it is answered, on a connection of its own.
    pub(crate) fn new(ask: Ask, loops: usize) -> Self {
        Self { ask, loops, every: None, after_refusal: AFTER_REFUSAL }
    }

    /// How long a loop rests that was refused.
    pub(crate) fn resting(self, after_refusal: Duration) -> Self {
        Self { after_refusal, ..self }
    }

    /// All together ask so many times a second, as long as answers come in time.
    pub(crate) fn at_rate(self, per_second: u32) -> Self {
        let every = Duration::from_secs(1) * u32::try_from(self.loops).unwrap_or(1) / per_second;
        Self { every: Some(every), ..self }
    }

    pub(crate) fn start(self, pod: &Pod) -> Result<Running> {
        let shared = Arc::<Shared>::default();
        let of_thread = Arc::clone(&shared);
        let thread = pod.background(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
            runtime.block_on(join_all((0..self.loops).map(|number| self.run(number, &of_thread))));
        })?;
        Ok(Running { shared, thread: Some(thread) })
    }

    async fn run(&self, number: usize, shared: &Shared) {
        let mut line = Line::default();
        // Side by side instead of all at once.
        let first = self.every.map_or(Duration::ZERO, |every| every * number as u32 / self.loops as u32);
        tokio::time::sleep(first).await;
        let mut ticks = self.every.map(tokio::time::interval);
        while !shared.stop.load(Ordering::Relaxed) {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let refused = match line.ask(&self.ask).await {
                Ok(told) => {
                    let refused = !told.is_good();
                    shared.told.lock().unwrap_or_else(PoisonError::into_inner).push(told);
                    refused
                }
                Err(error) => {
                    shared.broken.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{error:#}"));
                    true
                }
            };
            if refused && ticks.is_none() {
                tokio::time::sleep(self.after_refusal).await;
            }
        }
    }
}

impl Running {
    /// Answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.shared.told.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    pub(crate) fn wait_for_more(&self, more: usize) -> Result<()> {
        let goal = self.answered() + more;
        wait_for(SOON, &format!("{goal} answers"), || self.answered() >= goal)
    }

    /// What came since this was asked last.
    pub(crate) fn take(&self) -> Outcome {
        let told = std::mem::take(&mut *self.shared.told.lock().unwrap_or_else(PoisonError::into_inner));
        let broken = std::mem::take(&mut *self.shared.broken.lock().unwrap_or_else(PoisonError::into_inner));
        Outcome { told, broken }
    }

    /// Lets requests under way finish.
    pub(crate) fn stop(mut self) -> Result<Outcome> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("a loop panicked"))?;
        }
        Ok(self.take())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Outcome {
    /// An error unless every request has a whole answer: the application's, or a refusal for one of these reasons.
    pub(crate) fn expect_only(&self, allowed: &[&str]) -> Result<()> {
        ensure!(self.broken.is_empty(), "{} requests broke, first: {}", self.broken.len(), self.broken[0]);
        let others = |told: &&Told| !told.is_good() && !allowed.contains(&told.reason());
        if let Some(other) = self.told.iter().find(others) {
            let number = self.told.iter().filter(others).count();
            return Err(anyhow!("{number} of {} answers, the first: {other:?}", self.told.len()));
        }
        Ok(())
    }

    /// How long all but so many per cent of the good answers took at most.
    pub(crate) fn percentile(&self, percent: usize) -> Result<Duration> {
        let mut took: Vec<_> = self.told.iter().filter(|told| told.is_good()).map(|told| told.took).collect();
        ensure!(!took.is_empty(), "no good answer of {}", self.told.len());
        took.sort_unstable();
        Ok(took[(took.len() * percent / 100).min(took.len() - 1)])
    }
}

// ---- one connection -------------------------------------------------------------------------------------------------

/// A connection that is made when it is needed, and again when the other side has closed it.
#[derive(Default)]
struct Line(Option<Sender>);

enum Sender {
    Http1(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    Http2(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Line {
    async fn ask(&mut self, ask: &Ask) -> Result<Told> {
        let told = tokio::time::timeout(PATIENCE, self.ask_patiently(ask)).await;
        let told = told.unwrap_or_else(|_| Err(anyhow!("no answer within {PATIENCE:?}")));
        if told.is_err() {
            self.0 = None;
        }
        told
    }

    async fn ask_patiently(&mut self, ask: &Ask) -> Result<Told> {
        let is_ready = match &mut self.0 {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        let sender = match self.0.take().filter(|_| is_ready) {
            Some(sender) => self.0.insert(sender),
            None => self.0.insert(connect(ask).await?),
        };
        let request = ask.request()?;
        let sent = Instant::now();
        let response = match sender {
            Sender::Http1(sender) => sender.send_request(request).await?,
            Sender::Http2(sender) => sender.send_request(request).await?,
        };
        whole(response, sent).await
    }
}

async fn connect(ask: &Ask) -> Result<Sender> {
    let stream = TcpStream::connect(ask.target).await.context("connect")?;
    stream.set_nodelay(true)?;
    let io = TokioIo::new(stream);
    Ok(match ask.kind {
        Kind::Http1 => {
            let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            Sender::Http1(sender)
        }
        Kind::Http2 | Kind::Grpc => {
            let (sender, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Sender::Http2(sender)
        }
    })
}

async fn whole(response: Response<Incoming>, sent: Instant) -> Result<Told> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.context("body")?;
    let mut fields = head.headers;
    fields.extend(body.trailers().cloned().unwrap_or_default());
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Told { took: sent.elapsed(), status: head.status.as_u16(), fields, body })
}
