//! The inbound recipe: from a connection that arrives at this workload to its application.
//!
//! ```text
//!  accept ─▶ first bytes ─┬─ mesh ClientHello ─▶ mutual TLS ─▶ identity ─┐
//!                         └─ anything else ────▶ strict: refused         ├─▶ authorize ─▶ HTTP: each request again
//!                                                permissive ─────────────┘              └▶ opaque: until withdrawn
//! ```
//!
//! The destination is the connection's own (from the redirect, or the listener), never the peer's words. Not a byte
//! reaches the application before the caller is let in. What happens to a request is in `requests`.

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use outrigger_core::{
    detect::Detection,
    limits,
    race::{Learned, Winner},
    verdict::Reason,
};
use outrigger_proto::spec::{DestinationKey, MtlsMode, Protocol, Timeouts};

use crate::{
    error::Error,
    http::{exchange::Caller, serve, watched::Vitals},
    path::{
        accept::{Accepted, Open, Target},
        authorize, detect,
        identity::Identity,
        pool::Terms,
        respond,
        server_bulkhead::Door,
        tls,
        upstream::{self, Opaque},
    },
    tcp::{self, Io, Passage, Sniffed, Stream},
    telemetry::{self, Direction},
    worker::{Worker, now},
};

mod requests;

use requests::Served;
pub(crate) use requests::handle;

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
        let io = Io::Accepted(terminated.stream);
        let credentials = &self.worker.ctx.credentials;
        let identity = Identity::mutual(credentials, terminated.peer, io.security(), self.caller);
        let door = self.door(&identity);
        let verdict = authorize::connection(&self.worker.snapshot(), &identity.peer, self.place.port);
        match (terminated.inside, verdict) {
            // An HTTP caller is told so, request by request.
            (tls::Inside::Http1, _) => self.serve_http(io, identity, door, false).await,
            (tls::Inside::Http2, _) => self.serve_http(io, identity, door, true).await,
            (tls::Inside::Opaque, Ok(())) => {
                self.carry(io, identity, door, telemetry::Protocol::Tcp, None).await;
            }
            (tls::Inside::Opaque, Err(error)) => {
                io.reset_on_drop();
                let mut passage = self.passage();
                passage.peer = identity.id().cloned();
                passage.security = identity.security;
                passage.blame(&error);
            }
        }
    }

    /// On a port that takes plaintext too.
    async fn receive_permissive(self, mut io: Sniffed, declared: Protocol) {
        let plain = Identity::plain(self.caller);
        let door = self.door(&plain);
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
            // Who is not let in, or is one too many, must not make the application see a connection.
            Some(_) if self.is_denied(&plain) || door.connection(&self.worker).is_err() => {
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
            drop((ready, door));
            return self.receive_mesh(io).await;
        }
        if let Err(error) = authorize::connection(&self.worker.snapshot(), &plain.peer, self.place.port) {
            return self.turn_away(io, &error).await;
        }
        let http2 = declared_http2(declared);
        let winner = match (declared, winner) {
            // Carried as they are, also when its caller spoke before the application was there and it looks like HTTP.
            (Protocol::Tcp | Protocol::Tls, Detection::Http1 | Detection::Http2) => Detection::Opaque,
            (_, winner) => winner,
        };
        match winner {
            Detection::Http1 => self.serve_http(Io::Plain(io), plain, door, false).await,
            Detection::Http2 => self.serve_http(Io::Plain(io), plain, door, true).await,
            Detection::Opaque | Detection::NeedMore if let Some(http2) = http2 => {
                self.serve_http(Io::Plain(io), plain, door, http2).await;
            }
            Detection::Tls => self.carry(Io::Plain(io), plain, door, telemetry::Protocol::Tls, ready).await,
            Detection::Opaque | Detection::NeedMore => {
                self.carry(Io::Plain(io), plain, door, telemetry::Protocol::Tcp, ready).await;
            }
        }
    }

    fn door(&self, identity: &Identity) -> Door {
        Door::new(self.place.port, identity.id().cloned(), self.caller)
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
    async fn serve_http(self, io: Io, identity: Identity, door: Door, http2: bool) {
        let connections = self.worker.clusters.application(&self.worker, self.place.application, http2);
        let caller = Rc::new(Caller {
            direction: Direction::Inbound,
            address: self.caller,
            identity: identity.id().cloned(),
            security: identity.security.clone(),
            http2,
            service: self.label(),
            vitals: Arc::new(Vitals::default()),
            open: self.open,
            worker: self.worker,
        });
        let terms =
            Terms { service: Some(Rc::clone(&caller.service)), ..Terms::plain(Timeouts::default().connect) };
        let served = Rc::new(Served { caller, identity, door, place: self.place, connections, terms });
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
        door: Door,
        protocol: telemetry::Protocol,
        ready: Option<Result<Opaque, Error>>,
    ) {
        let mut passage = self.passage();
        passage.protocol = protocol;
        passage.peer = identity.id().cloned();
        passage.security.clone_from(&identity.security);
        let connected = match (door.opaque(&self.worker), ready) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(connected)) => connected,
            (Ok(()), None) => upstream::plain(&self.worker, self.place.application).await,
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

#[cfg(test)]
mod tests;
