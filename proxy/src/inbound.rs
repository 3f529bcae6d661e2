//! The inbound recipe: from a connection that arrives at this workload to its application.
//!
//! ```text
//!  accept ─▶ first bytes ─┬─ mesh ClientHello ─▶ mutual TLS ─▶ identity ─┐
//!                         └─ anything else ────▶ strict: refused         ├─▶ authorize ─▶ HTTP: each request again
//!                                                permissive ─────────────┘              └▶ opaque: until withdrawn
//! ```
//!
//! The destination is the connection's own (from the redirect, or the listener), never the peer's words. Not a byte
//! reaches the application before the caller is let in.

use std::{
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::Instant,
};

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use outrigger_core::{
    detect::Detection,
    headers, limits,
    race::{Learned, Winner},
    retry::{Attempts, Moment, Next, Traits},
    verdict::{Reason, Retry},
};
use outrigger_proto::spec::{DestinationKey, MtlsMode, Protocol, Retries, Timeouts};

use crate::{
    error::Error,
    http::{
        body::{RequestBody, ResponseBody},
        exchange::{Caller, Exchange, Hold},
        request, serve, upgrade,
        watched::Vitals,
    },
    path::{
        accept::{Accepted, Open, Target},
        authorize, detect,
        identity::Identity,
        pool::{Connections, Lease},
        respond, tls,
        upstream::{self, Opaque},
    },
    tcp::{self, Io, Passage, Sniffed, Stream},
    telemetry::{self, Direction},
    worker::{Worker, now},
};

/// Towards the application there is no policy of retries, only the defaults.
static RETRIES: LazyLock<Retries> = LazyLock::new(Retries::default);

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
    let place = match place(&target) {
        Ok(place) => place,
        Err(error) => return turn_away(&worker, Sniffed::new(stream), caller, "", &error).await,
    };
    let arrival = Arrival { worker, caller, place, open, began: now() };
    Box::pin(arrival.receive(Sniffed::new(stream))).await;
}

/// Where a connection wants to go.
#[derive(Clone, Copy)]
struct Place {
    application: SocketAddr,
    /// As policies know it.
    port: u16,
}

struct Arrival {
    worker: Rc<Worker>,
    caller: SocketAddr,
    place: Place,
    open: Option<Open>,
    began: Instant,
}

fn place(target: &Target) -> Result<Place, Error> {
    match target {
        Target::Original(address) => Ok(Place { application: *address, port: address.port() }),
        Target::Serve { application } => Ok(Place { application: *application, port: application.port() }),
        Target::Itself(address) => Err(Error::Loop(*address)),
        Target::Forward(_) => Err(Error::Internal("a forward listener is outbound")),
    }
}

impl Arrival {
    async fn receive(self, mut io: Sniffed) {
        let snapshot = self.worker.snapshot();
        let declared = match authorize::inbound(&snapshot) {
            Ok(inbound) => inbound.port(self.place.port),
            Err(error) => return self.turn_away(io, &error).await,
        };
        drop(snapshot);
        if declared.mtls == MtlsMode::Permissive {
            return self.receive_permissive(io, declared.protocol).await;
        }
        match detect::first_bytes(&mut io, limits::HANDSHAKE_TIMEOUT).await {
            Ok(Detection::Tls) if self.is_mesh(&mut io).await => self.receive_mesh(io).await,
            Ok(_) => {
                let policy = "strict mTLS".into();
                let error = Error::Denied { reason: Reason::MtlsRequired, policy };
                self.turn_away(io, &error).await;
            }
            Err(error) => self.passage().blame(&error),
        }
    }

    async fn is_mesh(&self, io: &mut Sniffed) -> bool {
        detect::client_hello(io).await.is_some_and(|hello| hello.is_mesh())
    }

    /// From another proxy.
    async fn receive_mesh(self, io: Sniffed) {
        let terminated = match tls::terminate(&self.worker, io).await {
            Ok(terminated) => terminated,
            Err(error) => return self.passage().blame(&error),
        };
        let identity = Identity::mutual(&self.worker.ctx.credentials, terminated.peer, self.caller);
        let io = Io::Accepted(terminated.stream);
        let verdict = authorize::connection(&self.worker.snapshot(), &identity.peer, self.place.port);
        match (terminated.inside, verdict) {
            // An HTTP caller is told so, request by request.
            (tls::Inside::Http1, _) => self.serve_http(io, identity, false).await,
            (tls::Inside::Http2, _) => self.serve_http(io, identity, true).await,
            (tls::Inside::Opaque, Ok(())) => self.carry(io, identity, telemetry::Protocol::Tcp, None).await,
            (tls::Inside::Opaque, Err(error)) => {
                io.reset_on_drop();
                let mut passage = self.passage();
                passage.peer = identity.id().cloned();
                passage.blame(&error);
            }
        }
    }

    /// On a port that takes plaintext too.
    async fn receive_permissive(self, mut io: Sniffed, declared: Protocol) {
        let plain = Identity::plain(self.caller);
        let worker = Rc::clone(&self.worker);
        let mut dial = Box::pin(upstream::plain(&worker, self.place.application));
        let learned = match declared {
            Protocol::Http | Protocol::Http2 | Protocol::Grpc | Protocol::Tls => None,
            Protocol::Tcp => Some(Learned::ServerFirst),
            Protocol::Detect => Some(self.worker.clusters.learned(&self.key())),
        };
        let (winner, ready) = match learned {
            None => match detect::first_bytes(&mut io, limits::PLAIN_IDLE_TIMEOUT).await {
                Ok(detection) => (detection, None),
                Err(error) => return self.passage().blame(&error),
            },
            // Who is not let in must not make the application see a connection, so nothing is dialled before.
            Some(_) if self.is_denied(&plain) => {
                match detect::first_bytes(&mut io, limits::HANDSHAKE_TIMEOUT).await {
                    Ok(detection) => (detection, None),
                    Err(error) => return self.passage().blame(&error),
                }
            }
            Some(learned) => match detect::race(&mut io, learned, dial.as_mut()).await {
                Ok((winner, ready)) => {
                    self.learn(winner);
                    (detect::detection(winner), ready)
                }
                Err(error) => return self.passage().blame(&error),
            },
        };
        if winner == Detection::Tls && self.is_mesh(&mut io).await {
            drop(ready);
            return self.receive_mesh(io).await;
        }
        if let Err(error) = authorize::connection(&self.worker.snapshot(), &plain.peer, self.place.port) {
            return self.turn_away(io, &error).await;
        }
        let http2 = declared_http2(declared);
        match winner {
            Detection::Http1 => self.serve_http(Io::Plain(io), plain, false).await,
            Detection::Http2 => self.serve_http(Io::Plain(io), plain, true).await,
            Detection::Opaque | Detection::NeedMore if let Some(http2) = http2 => {
                self.serve_http(Io::Plain(io), plain, http2).await;
            }
            Detection::Tls => self.carry(Io::Plain(io), plain, telemetry::Protocol::Tls, ready).await,
            Detection::Opaque | Detection::NeedMore => {
                self.carry(Io::Plain(io), plain, telemetry::Protocol::Tcp, ready).await;
            }
        }
    }

    fn is_denied(&self, identity: &Identity) -> bool {
        authorize::connection(&self.worker.snapshot(), &identity.peer, self.place.port).is_err()
    }

    fn key(&self) -> DestinationKey {
        DestinationKey::address(self.place.application)
    }

    fn learn(&self, winner: Winner) {
        self.worker.clusters.learn(&self.key(), winner.learned());
    }

    /// HTTP to the application, request by request.
    async fn serve_http(self, io: Io, identity: Identity, http2: bool) {
        let connections = self.worker.clusters.application(&self.worker, self.place.application, http2);
        let caller = Rc::new(Caller {
            direction: Direction::Inbound,
            address: self.caller,
            identity: identity.id().cloned(),
            http2,
            service: self.label(),
            vitals: Arc::new(Vitals::default()),
            open: self.open,
            worker: self.worker,
        });
        let served = Rc::new(Served { caller, identity, place: self.place, connections });
        let caller = Rc::clone(&served.caller);
        let ended = serve::serve(io, &caller, move |request| handle(Rc::clone(&served), request)).await;
        if let Err(error) = ended {
            tracing::debug!(caller = %caller.address, %error, "inbound connection broke");
        }
    }

    /// Opaque bytes to the application, until both have ended or policy withdraws its consent. `ready`: the connection to
    /// the application, if there is one already.
    async fn carry(
        self,
        io: Io,
        identity: Identity,
        protocol: telemetry::Protocol,
        ready: Option<Result<Opaque, Error>>,
    ) {
        let mut passage = self.passage();
        passage.protocol = protocol;
        passage.peer = identity.id().cloned();
        let connected = match ready {
            Some(connected) => connected,
            None => upstream::plain(&self.worker, self.place.application).await,
        };
        match connected {
            Ok(upstream) => {
                let withdrawn = authorize::withdrawn(&self.worker, &identity.peer, self.place.port);
                tcp::carry(&mut passage, io, upstream, withdrawn).await;
            }
            Err(error) => {
                io.reset_on_drop();
                passage.blame(&error);
            }
        }
    }

    fn label(&self) -> Rc<str> {
        format!(":{}", self.place.port).into()
    }

    fn passage(&self) -> Passage {
        Passage::new(&self.worker, Direction::Inbound, self.caller, self.label(), self.began)
    }

    async fn turn_away(self, io: Sniffed, error: &Error) {
        let label = self.label();
        turn_away(&self.worker, io, self.caller, &label, error).await;
    }
}

fn declared_http2(declared: Protocol) -> Option<bool> {
    match declared {
        Protocol::Http => Some(false),
        Protocol::Http2 | Protocol::Grpc => Some(true),
        Protocol::Detect | Protocol::Tcp | Protocol::Tls => None,
    }
}

/// Refuses a plaintext connection: in words if it speaks HTTP/1, otherwise by closing it.
async fn turn_away(worker: &Rc<Worker>, io: Sniffed, caller: SocketAddr, label: &str, error: &Error) {
    let mut passage = Passage::new(worker, Direction::Inbound, caller, label.into(), now());
    passage.blame(error);
    respond::turn_away(io, passage.id, error).await;
}

/// An HTTP connection to one application.
pub(crate) struct Served {
    caller: Rc<Caller>,
    identity: Identity,
    place: Place,
    connections: Rc<Connections>,
}

pub(crate) async fn handle(served: Rc<Served>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (head, body) = request.into_parts();
    let has_body = !http_body::Body::is_end_stream(&body);
    let exchange = Exchange::new(&served.caller, &head, has_body, now());
    match forward(&served, &exchange, head, body).await {
        Ok(response) => response,
        Err(error) => respond::refuse(&exchange, &error),
    }
}

async fn forward(
    served: &Rc<Served>,
    exchange: &Rc<Exchange>,
    mut head: http::request::Parts,
    body: Incoming,
) -> Result<Response<ResponseBody>, Error> {
    let caller = &served.caller;
    let upgrade = request::prepare(&mut head, caller)?;
    authorize::request(&caller.worker.snapshot(), &served.identity.peer, served.place.port)?;
    if let Some(forwarded) = &served.identity.forwarded {
        head.headers.insert(headers::XFCC, forwarded.clone());
    }
    let copy = request::Copy::of(&head, exchange.is_request_over());
    let body = request::body(&mut head, body, exchange);
    let (lease, mut response) = send(served, exchange, request::assemble(head, body), copy).await?;
    let address = served.place.application;
    let switched = upgrade.is_some() && request::switches(&response, exchange);
    let upstream_half = switched.then(|| hyper::upgrade::on(&mut response));
    let (mut head, body) = response.into_parts();
    request::prepare_answer(&mut head, exchange, switched)
        .map_err(|error| Error::Protocol { address, error: error.to_string().into() })?;
    // Only proxies say these; an application's own would mislead the caller's.
    head.headers.remove(headers::REASON);
    head.headers.remove(headers::ID);
    if head.status == StatusCode::SWITCHING_PROTOCOLS && !switched {
        return Err(Error::Protocol { address, error: "an upgrade that nobody asked for".into() });
    }
    exchange.answer_begins(head.status.as_u16(), Hold { lease: Some(lease), ..Hold::default() }, now());
    if let (Some(caller_half), Some(upstream_half)) = (upgrade, upstream_half) {
        let served = Rc::clone(served);
        let until = async move {
            let worker = &served.caller.worker;
            authorize::withdrawn(worker, &served.identity.peer, served.place.port).await
        };
        upgrade::join(Rc::clone(exchange), caller_half, upstream_half, Timeouts::default().idle, until);
        return Ok(Response::from_parts(head, ResponseBody::none()));
    }
    Ok(Response::from_parts(head, ResponseBody::upstream(body, Rc::clone(exchange))))
}

/// Sends a request to the application. A connection that it closed while it was idle is no fault of the request's, so
/// another is taken then; what fails on a new connection has failed.
async fn send(
    served: &Served,
    exchange: &Rc<Exchange>,
    mut request: Box<Request<RequestBody>>,
    copy: Option<request::Copy>,
) -> Result<(Lease, Response<Incoming>), Error> {
    let worker = &served.caller.worker;
    let traits = Traits { replayable: copy.is_some(), idempotency_key: false, outer_layer: false };
    let mut attempts = Attempts::new(&RETRIES, &exchange.method, traits);
    worker.clusters.application_budget.borrow_mut().on_request(exchange.started);
    exchange.endpoint.set(Some(served.place.application));
    loop {
        exchange.attempts.set(exchange.attempts.get() + 1);
        let lease = served.connections.lease(worker, Timeouts::default().connect).await?;
        let unanswered = match lease.send(request).await {
            Ok(response) => return Ok((lease, response)),
            Err(unanswered) => unanswered,
        };
        let (failure, error) = unanswered.explain(&lease);
        let next = match error.reason().retry() {
            _ if lease.fresh => return Err(error),
            Retry::Never => return Err(error),
            Retry::IfUnsent | Retry::IfIdempotent => {
                let moment = Moment { breaker_open: false, left: None, now: now() };
                let budget = &mut worker.clusters.application_budget.borrow_mut();
                attempts.on_failure(failure, &moment, budget, &mut *worker.rng())
            }
        };
        request = match (next, unanswered.request, &copy) {
            (Next::Again { .. }, Some(unsent), _) => unsent,
            (Next::Again { .. }, None, Some(copy)) => copy.request(exchange),
            (Next::Again { .. }, None, None) | (Next::GiveUp(_), _, _) => return Err(error),
        };
        if let Next::Again { after } = next
            && !after.is_zero()
        {
            tokio::time::sleep(after).await;
        }
    }
}
