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
//! the mesh is reached by mutual TLS or not at all. What happens to a request is in `requests`.

use std::{cell::RefCell, future::pending, net::SocketAddr, rc::Rc, sync::Arc};

use outrigger_core::{
    detect::Detection,
    limits::{self, MAX_ATTEMPTS},
    retry::Failure,
    snapshot::CompiledDestination,
};
use outrigger_proto::spec::{DestinationKey, Protocol};

use crate::{
    cluster::{Nobody, Picked},
    error::Error,
    http::{exchange::Caller, serve, watched::Vitals},
    path::{
        accept::{Accepted, Open, Target},
        balance::{self, Asked, Tried},
        detect,
        outlier::{self, Trial},
        rate_limit::{self, Asking},
        respond,
        route::{self, Chosen, Known},
        upstream::{self, Opaque},
    },
    shared_limits::Kind,
    tcp::{self, Io, Passage, Sniffed, Stream},
    telemetry::{self, Direction},
    worker::{Worker, now},
};

mod detour;
mod requests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_grpc;
#[cfg(test)]
mod tests_hostile;
#[cfg(test)]
mod tests_limits;

use requests::Serving;
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
        let worker = &self.worker;
        let limits = &cluster.limits;
        if !limits.rates.is_empty() {
            let own = worker.ctx.credentials.current();
            let asking = Asking::connection(own.as_ref().map(|own| own.identity()), self.caller.ip());
            rate_limit::check(&limits.rates, &asking, &worker.telemetry, None)?;
        }
        let permit = match &limits.connections {
            Some(hall) => Some(hall.admit(&None, &worker.telemetry).await?),
            None => None,
        };
        let timeouts = cluster.backend.traffic.timeouts;
        let asked = Asked::of_connection(worker, &cluster.backend.traffic, self.caller);
        let mut tried = Tried::default();
        let mut last = None;
        for attempt in 1..=MAX_ATTEMPTS {
            let dispatched = now();
            let picked = cluster.live.pick(worker, &asked.wanted(), &tried, Kind::Connection, dispatched);
            let Picked { endpoint, trial, place } = match picked {
                Ok(picked) => picked,
                Err(nobody) => return Err(balance::nobody(&cluster, nobody, last)),
            };
            tried.add(&endpoint);
            let trial = Trial::new(worker, &cluster, Rc::clone(&endpoint), trial, place, dispatched);
            match upstream::connect(worker, endpoint.opaque(), timeouts.connect).await {
                Ok(io) => {
                    let since = now();
                    trial.connected(since);
                    return Ok(Opaque {
                        security: io.security(),
                        io: Sniffed::new(io),
                        address: endpoint.spec.address,
                        peer: Some(endpoint.spec.identity.clone()),
                        service: Some(Rc::clone(&cluster.label)),
                        attempts: attempt,
                        idle: timeouts.idle,
                        trial: Some(trial),
                        permit,
                        since,
                    });
                }
                Err(error) => {
                    trial.failed(outlier::judge(Failure::Unsent, &error, true), now());
                    tried.lose(&endpoint);
                    last = Some(error);
                }
            }
        }
        Err(balance::nobody(&cluster, Nobody::Tried, last))
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
            security: None,
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
