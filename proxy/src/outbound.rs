//! The outbound recipe: from a connection that a local program has opened to whoever serves it.
//!
//! ```text
//!  accept ─▶ what is the destination? ─┬─ this proxy ──────▶ refused (loop)
//!                                      ├─ outside the mesh ▶ egress policy ─▶ opaque, as the program meant it
//!                                      └─ in the mesh ─▶ what is spoken? ─┬─ HTTP ─▶ each request: route, pick, send
//!                                                                         └─ else ─▶ the connection: pick, carry
//! ```
//!
//! A request that was never sent goes elsewhere; one that was sent goes again only if that is harmless. A destination in
//! the mesh is reached by mutual TLS or not at all.

use std::{cell::RefCell, future::pending, net::SocketAddr, rc::Rc, sync::Arc};

use http::{Request, Response, StatusCode, request::Parts};
use http_body::Body as _;
use hyper::body::Incoming;
use outrigger_core::{
    detect::Detection,
    limits,
    retry::{Attempts, Failure, Moment, Next, Traits},
    snapshot::{CompiledDestination, Snapshot},
    verdict::{Reason, Retry},
};
use outrigger_proto::spec::{DestinationKey, Protocol};
use tokio::time::{Instant, timeout_at};

use crate::{
    cluster::Cluster,
    error::Error,
    http::{
        body::{RequestBody, ResponseBody},
        exchange::{Caller, Exchange, Hold, Routed},
        request, serve, upgrade,
        watched::Vitals,
    },
    path::{
        accept::{Accepted, Open, Target},
        balance::{self, InFlight, Picked, Tried},
        detect, respond,
        route::{self, Chosen, Known},
        upstream::{self, Opaque},
    },
    shared::Held,
    tcp::{self, Io, Passage, Sniffed, Stream},
    telemetry::{self, Direction},
    worker::{Worker, now},
};

/// Serves one accepted connection to its end.
pub async fn serve(worker: Rc<Worker>, accepted: Accepted) {
    let Accepted { stream, peer, target, open } = accepted;
    connection(worker, Stream::Tcp(stream), peer, target, Some(open)).await;
}

/// The same for any stream. `caller`: the address that opened it.
pub async fn connection(
    worker: Rc<Worker>,
    stream: Stream,
    caller: SocketAddr,
    target: Target,
    open: Option<Open>,
) {
    let (key, wrong) = match target {
        Target::Original(address) => (DestinationKey::address(address), None),
        Target::Forward(key) => (key, None),
        Target::Itself(address) => (DestinationKey::address(address), Some(Error::Loop(address))),
        Target::Serve { application } => {
            (DestinationKey::address(application), Some(Error::Internal("a serving listener is inbound")))
        }
    };
    let io = Sniffed::new(stream);
    let departure = Departure { worker, caller, key, open, began: now() };
    match wrong {
        Some(error) => departure.turn_away(io, &error).await,
        None => Box::pin(departure.leave(io)).await,
    }
}

struct Departure {
    worker: Rc<Worker>,
    caller: SocketAddr,
    key: DestinationKey,
    open: Option<Open>,
    began: std::time::Instant,
}

impl Departure {
    async fn leave(self, mut io: Sniffed) {
        let destination = match route::resolve(&self.worker, &self.key).await {
            Ok(Known::Mesh(destination)) => destination,
            Ok(Known::External) => return self.pass_outside(io).await,
            Err(error) => return self.turn_away(io, &error).await,
        };
        let declared = route::protocol(&destination);
        let http2_if_unclear = match declared {
            Protocol::Tcp => return self.carry(io, &destination, telemetry::Protocol::Tcp, None).await,
            Protocol::Detect => return self.find_out(io, destination).await,
            Protocol::Tls => None,
            Protocol::Http => Some(false),
            Protocol::Http2 | Protocol::Grpc => Some(true),
        };
        let going = self.worker.drain.going(Direction::Outbound);
        let first = tokio::select! {
            biased;
            first = detect::first_bytes(&mut io, limits::PLAIN_IDLE_TIMEOUT) => first,
            // Nothing was asked for yet, so nothing is lost.
            () = going => Err(Error::NoFirstBytes),
        };
        match (first, http2_if_unclear) {
            (Ok(Detection::Http1), Some(_)) => self.serve_http(io, destination, false).await,
            (Ok(Detection::Http2), Some(_)) => self.serve_http(io, destination, true).await,
            (Ok(Detection::Opaque | Detection::NeedMore), Some(http2)) => {
                self.serve_http(io, destination, http2).await;
            }
            (Ok(Detection::Tls), _) => self.carry(io, &destination, telemetry::Protocol::Tls, None).await,
            (Ok(_), None) => self.carry(io, &destination, telemetry::Protocol::Tcp, None).await,
            (Err(error), _) => self.passage().blame(&error),
        }
    }

    /// Nobody declared what the destination speaks: whoever speaks first tells.
    async fn find_out(self, mut io: Sniffed, destination: Arc<CompiledDestination>) {
        let learned = self.worker.clusters.learned(&self.key);
        let mut dial = Box::pin(self.dial(&destination));
        let (winner, ready) = match detect::race(&mut io, learned, dial.as_mut()).await {
            Ok(result) => result,
            Err(error) => {
                drop(dial);
                return self.passage().blame(&error);
            }
        };
        self.worker.clusters.learn(&self.key, winner.learned());
        let (protocol, http2) = match detect::detection(winner) {
            Detection::Http1 => (telemetry::Protocol::Http1, Some(false)),
            Detection::Http2 => (telemetry::Protocol::Http2, Some(true)),
            Detection::Tls => (telemetry::Protocol::Tls, None),
            Detection::Opaque | Detection::NeedMore => (telemetry::Protocol::Tcp, None),
        };
        if let Some(http2) = http2 {
            drop(dial);
            drop(ready);
            return self.serve_http(io, destination, http2).await;
        }
        let connected = match ready {
            Some(connected) => connected,
            None => dial.as_mut().await,
        };
        drop(dial);
        self.carry(io, &destination, protocol, Some(connected)).await;
    }

    /// An opaque connection to one of the destination's endpoints.
    async fn dial(&self, destination: &CompiledDestination) -> Result<Opaque, Error> {
        let snapshot = self.worker.snapshot();
        // It was found in an older snapshot if there was a wait for first bytes since.
        let destination = snapshot.destination(&self.key).map_or(destination, Arc::as_ref);
        let Chosen { cluster, .. } = route::connection(&self.worker, &snapshot, &self.key, destination)?;
        drop(snapshot);
        let timeouts = cluster.backend.traffic.timeouts;
        let mut tried = Tried::default();
        let mut last = None;
        for attempt in 1..=limits::MAX_ATTEMPTS {
            let now_dialled = now();
            let Some(Picked { endpoint, index }) = balance::pick(&self.worker, &cluster, &tried, now_dialled)
            else {
                break;
            };
            let load = InFlight::new(&endpoint, now_dialled);
            match upstream::connect(&self.worker, endpoint.opaque(), timeouts.connect).await {
                Ok(io) => {
                    let since = now();
                    load.answered(since);
                    return Ok(Opaque {
                        io: Sniffed::new(io),
                        address: endpoint.spec.address,
                        peer: Some(endpoint.spec.identity.clone()),
                        service: Some(Rc::clone(&cluster.label)),
                        attempts: attempt,
                        idle: timeouts.idle,
                        load: Some(load),
                        since,
                    });
                }
                Err(error) => {
                    load.failed(now());
                    tried.add(index);
                    last = Some(error);
                }
            }
        }
        Err(balance::exhausted(&cluster, last))
    }

    /// Opaque bytes to an endpoint. `ready`: the connection to it, if there is one already.
    async fn carry(
        self,
        mut io: Sniffed,
        destination: &CompiledDestination,
        protocol: telemetry::Protocol,
        ready: Option<Result<Opaque, Error>>,
    ) {
        let mut passage = self.passage();
        passage.protocol = protocol;
        if protocol == telemetry::Protocol::Tls {
            let hello = detect::client_hello(&mut io).await;
            passage.authority = hello.and_then(|hello| hello.server_name).unwrap_or_default();
        }
        let connected = match ready {
            Some(connected) => connected,
            None => self.dial(destination).await,
        };
        join(&mut passage, io, connected).await;
    }

    /// Out of the mesh, as the program meant it.
    async fn pass_outside(self, io: Sniffed) {
        let mut passage = self.passage();
        let connected = match &self.key {
            DestinationKey::Address(address) => upstream::plain(&self.worker, *address).await,
            DestinationKey::Authority(_) => Err(Error::Unresolved(self.key.to_string().into())),
        };
        join(&mut passage, io, connected).await;
    }

    /// HTTP into the mesh, request by request.
    async fn serve_http(self, io: Sniffed, destination: Arc<CompiledDestination>, http2: bool) {
        let caller = Rc::new(Caller {
            direction: Direction::Outbound,
            address: self.caller,
            identity: None,
            http2,
            service: self.key.to_string().into(),
            vitals: Arc::new(Vitals::default()),
            open: self.open,
            worker: self.worker,
        });
        let snapshot = caller.worker.snapshot();
        // It was found in an older snapshot if there was a wait for first bytes since.
        let destination = snapshot.destination(&self.key).map_or(destination, Arc::clone);
        let known = RefCell::new((snapshot, destination));
        let serving = Rc::new(Serving { caller: Rc::clone(&caller), key: self.key, known });
        let ended =
            serve::serve(Io::Plain(io), &caller, move |request| handle(Rc::clone(&serving), request)).await;
        if let Err(error) = ended {
            tracing::debug!(caller = %caller.address, %error, "outbound connection broke");
        }
    }

    fn passage(&self) -> Passage {
        Passage::new(&self.worker, Direction::Outbound, self.caller, self.key.to_string().into(), self.began)
    }

    async fn turn_away(self, io: Sniffed, error: &Error) {
        let mut passage = self.passage();
        passage.blame(error);
        respond::turn_away(io, passage.id, error).await;
    }
}

async fn join(passage: &mut Passage, io: Sniffed, connected: Result<Opaque, Error>) {
    match connected {
        Ok(upstream) => tcp::carry(passage, Io::Plain(io), upstream, pending()).await,
        Err(error) => {
            // The program finds out as it would have without us: its connection breaks.
            io.get_ref().reset_on_drop();
            passage.blame(&error);
        }
    }
}

/// An HTTP connection to one destination.
pub(crate) struct Serving {
    caller: Rc<Caller>,
    key: DestinationKey,
    /// What the destination is, by which snapshot.
    known: RefCell<(Held<Snapshot>, Arc<CompiledDestination>)>,
}

impl Serving {
    /// The newest snapshot, and what the destination is by it.
    fn current(&self) -> (Held<Snapshot>, Arc<CompiledDestination>) {
        let snapshot = self.caller.worker.snapshot();
        self.caller.worker.ctx.discovery.touch(&self.key);
        let mut known = self.known.borrow_mut();
        if !known.0.same(&snapshot) {
            if let Some(destination) = snapshot.destination(&self.key) {
                known.1 = Arc::clone(destination);
            }
            known.0 = snapshot.clone();
        }
        (snapshot, Arc::clone(&known.1))
    }
}

pub(crate) async fn handle(serving: Rc<Serving>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let exchange = Exchange::new(&serving.caller, &head, has_body, now());
    match forward(&serving, &exchange, head, body).await {
        Ok(response) => response,
        Err(error) => respond::refuse(&exchange, &error),
    }
}

async fn forward(
    serving: &Serving,
    exchange: &Rc<Exchange>,
    mut head: Parts,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let caller = &serving.caller;
    let caller_half = request::prepare(&mut head, caller)?;
    let (snapshot, destination) = serving.current();
    let chosen = route::request(&caller.worker, &snapshot, &serving.key, &destination, &head)?;
    drop((snapshot, destination));
    exchange.routed.replace(Routed {
        service: Some(Rc::clone(&chosen.cluster.label)),
        route: chosen.route,
        peer: None,
    });
    let copy = request::Copy::of(&head, exchange.is_request_over());
    let body = request::body(&mut head, body, exchange);
    let sending = send(caller, exchange, &chosen.cluster, request::assemble(head, body), copy);
    let (mut response, hold) = match chosen.timeout {
        None => sending.await?,
        Some(within) => match timeout_at(Instant::from_std(exchange.started + within), sending).await {
            Ok(sent) => sent?,
            Err(_) => return Err(Error::RequestTimeout(within)),
        },
    };
    let switched = caller_half.is_some() && request::switches(&response, exchange);
    let upstream_half = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    let address = exchange.endpoint.get().unwrap_or(caller.address);
    request::prepare_answer(&mut head, exchange, switched)
        .map_err(|error| Error::Protocol { address, error: error.to_string().into() })?;
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !switched {
        return Err(Error::Protocol { address, error: "an upgrade that nobody asked for".into() });
    }
    if let Some(reason) = request::told_reason(&head.headers) {
        exchange.blame(reason, "said the other side's proxy");
    }
    exchange.answer_begins(head.status.as_u16(), hold, now());
    if let (Some(caller_half), Some(upstream_half)) = (caller_half, upstream_half) {
        let idle = chosen.cluster.backend.traffic.timeouts.idle;
        upgrade::join(Rc::clone(exchange), caller_half, upstream_half, idle, pending());
        return Ok(Response::from_parts(head, ResponseBody::none()));
    }
    Ok(Response::from_parts(head, ResponseBody::upstream(body, Rc::clone(exchange))))
}

/// Sends a request to one endpoint after the other until there is an answer, or no right to go on.
async fn send(
    caller: &Caller,
    exchange: &Rc<Exchange>,
    cluster: &Cluster,
    mut request: Box<Request<RequestBody>>,
    copy: Option<request::Copy>,
) -> Result<(Response<Incoming>, Hold), Error> {
    let worker = &caller.worker;
    cluster.budget.borrow_mut().on_request(exchange.started);
    let traits = Traits { replayable: copy.is_some(), idempotency_key: false, outer_layer: false };
    let mut attempts = Attempts::new(&cluster.backend.traffic.retries, &exchange.method, traits);
    let mut tried = Tried::default();
    let mut last = None;
    loop {
        let dispatched = if exchange.attempts.get() == 0 { exchange.started } else { now() };
        let Some(Picked { endpoint, index }) = balance::pick(worker, cluster, &tried, dispatched) else {
            return Err(balance::exhausted(cluster, last));
        };
        exchange.attempts.set(exchange.attempts.get() + 1);
        exchange.endpoint.set(Some(endpoint.spec.address));
        exchange.routed.borrow_mut().peer = Some(endpoint.spec.identity.clone());
        let load = InFlight::new(&endpoint, dispatched);
        let connections = endpoint.connections(caller.http2);
        let (failure, error, unsent) =
            match connections.lease(worker, cluster.backend.traffic.timeouts.connect).await {
                Err(error) => {
                    tried.add(index);
                    (Failure::Unsent, error, Some(request))
                }
                Ok(lease) => match lease.send(request).await {
                    Ok(response) => match refused_there(&response, copy.is_some()) {
                        None => {
                            load.answered(now());
                            return Ok((response, Hold { lease: Some(lease), load: Some(load), ..Hold::default() }));
                        }
                        Some((failure, reason)) => {
                            tried.add(index);
                            let address = endpoint.spec.address;
                            (failure, Error::Elsewhere { address, reason }, None)
                        }
                    },
                    Err(unanswered) => {
                        // An idle connection that was closed says nothing about its endpoint.
                        if lease.fresh {
                            tried.add(index);
                        }
                        let (failure, error) = unanswered.explain(&lease);
                        (failure, error, unanswered.request)
                    }
                },
            };
        load.failed(now());
        let next = match error.reason().retry() {
            Retry::Never => return Err(error),
            Retry::IfUnsent | Retry::IfIdempotent => {
                let moment = Moment { breaker_open: false, left: None, now: now() };
                attempts.on_failure(failure, &moment, &mut cluster.budget.borrow_mut(), &mut *worker.rng())
            }
        };
        request = match (next, unsent, &copy) {
            (Next::Again { .. }, Some(unsent), _) => unsent,
            (Next::Again { .. }, None, Some(copy)) => copy.request(exchange),
            (Next::Again { .. }, None, None) | (Next::GiveUp(_), _, _) => return Err(error),
        };
        if let Next::Again { after } = next
            && !after.is_zero()
        {
            tokio::time::sleep(after).await;
        }
        last = Some(error);
    }
}

/// Whether the endpoint's own proxy says that its application did not take the request. Only looked at if it can be sent
/// again at all; otherwise that answer is the caller's.
fn refused_there(response: &Response<Incoming>, repeatable: bool) -> Option<(Failure, Reason)> {
    if !repeatable || !response.status().is_server_error() {
        return None;
    }
    let reason = request::told_reason(response.headers())?;
    match reason.retry() {
        Retry::IfUnsent => Some((Failure::Refused, reason)),
        Retry::IfIdempotent => Some((Failure::Sent, reason)),
        Retry::Never => None,
    }
}
