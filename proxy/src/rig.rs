//! Two proxies in one test: a caller's and a server's, each a worker, with real TLS between them and scripted ends.
//!
//! The program and the caller's proxy are joined by a pipe, the proxies and the application by loopback sockets. Nothing
//! is captured here: targets are given as the listeners would give them.

use std::{
    cell::Cell,
    future::Future,
    net::SocketAddr,
    num::NonZeroU32,
    os::fd::AsFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use outrigger_certs::{Authority, KeyRequest, SpiffeId, TrustDomain};
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::spec::{
    Backend, BackendKey, Body, Destination, DestinationKey, EgressPolicy, Endpoint, Inbound, InboundPort,
    Protocol, Resource, Route, ServicePort, Timeouts, Traffic, Transition, Update,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    runtime::Builder,
    task,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{
    context::{Ctx, testing},
    inbound, outbound,
    path::accept::Target,
    tcp::Stream,
    worker::Worker,
};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// Where the program dials.
pub(crate) const SERVICE: &str = "10.96.0.10:80";

pub(crate) struct Rig {
    pub(crate) authority: Authority,
    pub(crate) client: Rc<Worker>,
    pub(crate) servers: Vec<Server>,
    pub(crate) backend: Backend,
    pub(crate) protocol: Protocol,
    pub(crate) routes: Vec<Arc<Route>>,
    version: u64,
    variables: Vec<(&'static str, String)>,
}

/// A proxy with an application behind it.
pub(crate) struct Server {
    pub(crate) worker: Rc<Worker>,
    pub(crate) mesh: SocketAddr,
    pub(crate) app: TcpListener,
    pub(crate) inbound: Inbound,
    /// Connections of callers' proxies so far.
    pub(crate) dials: Rc<Cell<u32>>,
}

/// Runs a test as a worker runs.
pub(crate) fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce() -> F) {
    let runtime = Builder::new_current_thread().enable_all().build_local(Default::default()).unwrap();
    runtime.block_on(async { timeout(6 * PATIENCE, test()).await.expect("the test hangs") });
}

pub(crate) fn identity(name: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), "shop", name).unwrap()
}

/// Gives a proxy an identity by this authority.
pub(crate) fn issue(authority: &Authority, ctx: &Ctx, identity: &SpiffeId) {
    let request = KeyRequest::generate().unwrap();
    let life = Duration::from_secs(3600);
    let chain = authority.sign(&request.csr_der().unwrap(), identity, life, SystemTime::now()).unwrap();
    ctx.credentials.set_credential(request.into_credential(chain).unwrap()).unwrap();
    ctx.credentials.set_trust(authority.trust_bundle()).unwrap();
}

fn context(flags: &str, variables: &[(&'static str, String)]) -> testing::Made {
    let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, &**value)).collect();
    testing::context_with(flags, &variables)
}

impl Rig {
    /// A caller and `servers` workloads `orders` behind one service.
    pub(crate) async fn new(protocol: Protocol, servers: usize) -> Self {
        Self::with(protocol, servers, Vec::new()).await
    }

    /// The same with these variables in the environments of all proxies.
    pub(crate) async fn with(
        protocol: Protocol,
        servers: usize,
        variables: Vec<(&'static str, String)>,
    ) -> Self {
        let made = context("--no-capture --forward 127.0.0.1:1=orders.shop:80", &variables);
        issue(&made.authority, &made.ctx, &identity("web"));
        let mut rig = Self {
            authority: made.authority,
            client: Worker::new(made.ctx, 0),
            servers: Vec::new(),
            backend: Backend::default(),
            protocol,
            routes: Vec::new(),
            version: 0,
            variables,
        };
        for _ in 0..servers {
            rig.add_server("orders").await;
        }
        rig.configure();
        rig
    }

    pub(crate) async fn add_server(&mut self, name: &str) {
        let made = context("--no-capture --serve 127.0.0.1:1=127.0.0.1:2", &self.variables);
        issue(&self.authority, &made.ctx, &identity(name));
        let worker = Worker::new(made.ctx, 0);
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mesh = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = mesh.local_addr().unwrap();
        let application = app.local_addr().unwrap();
        let accepting = Rc::clone(&worker);
        let dials: Rc<Cell<u32>> = Rc::default();
        let counting = Rc::clone(&dials);
        task::spawn_local(async move {
            while let Ok((stream, peer)) = mesh.accept().await {
                counting.set(counting.get() + 1);
                let target = Target::Serve { application };
                let worker = Rc::clone(&accepting);
                task::spawn_local(inbound::connection(worker, Stream::Tcp(stream), peer, target, None));
            }
        });
        let server = Server { worker, mesh: address, app, inbound: Inbound::default(), dials };
        server.publish();
        self.backend.endpoints.push(endpoint(address, "orders"));
        self.servers.push(server);
    }

    /// Publishes another destination to the caller's proxy.
    pub(crate) fn add_destination(&mut self, address: SocketAddr, destination: Destination) {
        self.version += 1;
        let body = Body::Destination(DestinationKey::address(address), Arc::new(destination));
        publish(&self.client, self.version, vec![body]);
    }

    /// Publishes the caller's own policy.
    pub(crate) fn set_egress(&mut self, egress: EgressPolicy) {
        self.version += 1;
        let inbound = Inbound { egress, ..Inbound::default() };
        publish(&self.client, self.version, vec![Body::Inbound(Arc::new(inbound))]);
    }

    /// Publishes what the fields say to the caller's proxy.
    pub(crate) fn configure(&mut self) {
        self.version += 1;
        let key: BackendKey = "shop/orders:80".parse().unwrap();
        let destination = Destination::Service(ServicePort {
            namespace: "shop".into(),
            name: "orders".into(),
            port: 80.try_into().unwrap(),
            protocol: self.protocol,
            routes: self.routes.clone(),
            backend: key.clone(),
        });
        let address = DestinationKey::address(SERVICE.parse().unwrap());
        let mut backend = self.backend.clone();
        backend.endpoints.sort_by_key(|endpoint| endpoint.address);
        publish(
            &self.client,
            self.version,
            vec![
                Body::Inbound(Arc::default()),
                Body::Destination(address, Arc::new(destination)),
                Body::Backend(key, Arc::new(backend)),
            ],
        );
    }

    /// A connection of the program to the service.
    pub(crate) fn dial(&self) -> DuplexStream {
        self.dial_to(Target::Original(SERVICE.parse().unwrap()))
    }

    pub(crate) fn dial_to(&self, target: Target) -> DuplexStream {
        let (program, proxy) = duplex(256 << 10);
        let caller = "10.0.0.9:4000".parse().unwrap();
        let worker = Rc::clone(&self.client);
        task::spawn_local(outbound::connection(worker, Stream::Pipe(proxy), caller, target, None));
        program
    }

    pub(crate) fn set_timeouts(&mut self, timeouts: Timeouts) {
        Arc::make_mut(&mut self.backend.traffic).timeouts = timeouts;
        self.configure();
    }

    /// Changes how the service is called.
    pub(crate) fn set_traffic(&mut self, change: impl FnOnce(&mut Traffic)) {
        change(Arc::make_mut(&mut self.backend.traffic));
        self.configure();
    }

    /// Publishes another backend to the caller's proxy, with the same policy's defaults.
    pub(crate) fn add_backend(&mut self, key: &str, endpoints: Vec<Endpoint>) {
        self.version += 1;
        let backend = Backend { endpoints, ..Backend::default() };
        publish(&self.client, self.version, vec![Body::Backend(key.parse().unwrap(), Arc::new(backend))]);
    }

    /// Circuits that have changed, the oldest first.
    pub(crate) fn transitions(&self) -> Vec<Transition> {
        self.client.ctx.events.recent()
    }

    /// An endpoint whose proxy has the right certificate and no manners: it accepts, reads a head, and then this.
    pub(crate) async fn add_rogue(
        &mut self,
        alpn: &'static [u8],
        script: impl Fn(Rogue) + 'static,
    ) -> SocketAddr {
        let made = testing::context("--no-capture --serve 127.0.0.1:1=127.0.0.1:2");
        issue(&self.authority, &made.ctx, &identity("orders"));
        let config = outrigger_certs::tls::server_config(&made.ctx.credentials, &[alpn]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        task::spawn_local(async move {
            // What signs for it must live as long.
            let _made = made;
            while let Ok((stream, _)) = listener.accept().await {
                if let Ok(stream) = TlsAcceptor::from(Arc::clone(&config)).accept(stream).await {
                    script(stream);
                }
            }
        });
        self.backend.endpoints.push(endpoint(address, "orders"));
        self.configure();
        address
    }

    /// The application of the first server gets its next connection.
    pub(crate) async fn app(&self) -> TcpStream {
        self.servers[0].accept().await
    }
}

/// What a rogue endpoint has of a connection.
pub(crate) type Rogue = TlsStream<TcpStream>;

/// What an application does with a request.
#[derive(Clone)]
pub(crate) enum Reply {
    /// Sends this and goes on.
    Answer(String),
    /// Sends this and closes.
    Last(String),
    /// Sends this and says no more.
    Hang(String),
}

impl Server {
    /// An application that answers by itself: `script` gets the number of the request, from 0, and its head. Gives the
    /// count of requests.
    pub(crate) fn serve(&self, script: impl Fn(u32, &str) -> Reply + 'static) -> Rc<Cell<u32>> {
        let (listener, script, count) = (self.listener(), Rc::new(script), Rc::new(Cell::new(0)));
        let counting = Rc::clone(&count);
        task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (script, count) = (Rc::clone(&script), Rc::clone(&counting));
                task::spawn_local(async move {
                    while let Some(head) = next_head(&mut stream).await {
                        let number = count.replace(count.get() + 1);
                        let (text, goes_on) = match script(number, &head) {
                            Reply::Answer(text) => (text, true),
                            Reply::Last(text) => (text, false),
                            Reply::Hang(text) => {
                                let _ = stream.write_all(text.as_bytes()).await;
                                let _ = stream.read_u8().await;
                                return;
                            }
                        };
                        if stream.write_all(text.as_bytes()).await.is_err() || !goes_on {
                            return;
                        }
                    }
                });
            }
        });
        count
    }

    pub(crate) async fn accept(&self) -> TcpStream {
        timeout(PATIENCE, self.app.accept()).await.expect("nobody dials the application").unwrap().0
    }

    /// The application's listener once more, for a task.
    pub(crate) fn listener(&self) -> TcpListener {
        let listener = std::net::TcpListener::from(self.app.as_fd().try_clone_to_owned().unwrap());
        TcpListener::from_std(listener).unwrap()
    }

    /// Publishes the server side's policy.
    pub(crate) fn publish(&self) {
        let version = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
        publish(&self.worker, version, vec![Body::Inbound(Arc::new(self.inbound.clone()))]);
    }

    pub(crate) fn declare(&mut self, port: InboundPort) {
        let number = self.app.local_addr().unwrap().port();
        self.inbound.ports.insert(number.try_into().unwrap(), port);
        self.publish();
    }
}

pub(crate) fn endpoint(address: SocketAddr, name: &str) -> Endpoint {
    Endpoint {
        address,
        identity: identity(name),
        zone: "".into(),
        weight: NonZeroU32::MIN,
        subset: "".into(),
        ready_since: None,
    }
}

fn publish(worker: &Worker, version: u64, bodies: Vec<Body>) {
    let resources = bodies.into_iter().map(|body| Resource { version: version.to_string().into(), body });
    let update = Update { nonce: version, resources: resources.collect(), removed: Vec::new() };
    let snapshot: Snapshot = worker.ctx.snapshot.load().apply(update).unwrap();
    worker.ctx.snapshot.publish(snapshot);
}

/// The next request's head with its body, by its length; `None` at the end.
async fn next_head(io: &mut (impl AsyncReadExt + Unpin)) -> Option<String> {
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        seen.push(io.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&seen).to_ascii_lowercase();
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    io.read_exact(&mut body).await.ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

/// Reads until `end` was seen, and returns all of it.
pub(crate) async fn read_until(io: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut seen = Vec::new();
    let read = async {
        while !seen.ends_with(end.as_bytes()) {
            match io.read_u8().await {
                Ok(byte) => seen.push(byte),
                Err(error) => {
                    panic!("ended ({error}) before {end:?} in {:?}", String::from_utf8_lossy(&seen))
                }
            }
        }
    };
    timeout(PATIENCE, read).await.expect("nothing more comes");
    String::from_utf8_lossy(&seen).into_owned()
}

/// A message's head, in lower case.
pub(crate) async fn read_head(io: &mut (impl AsyncReadExt + Unpin)) -> String {
    read_until(io, "\r\n\r\n").await.to_ascii_lowercase()
}

/// Everything until the end, and whether that was a clean one.
pub(crate) async fn read_rest(io: &mut (impl AsyncReadExt + Unpin)) -> (String, bool) {
    let mut rest = Vec::new();
    let clean = timeout(PATIENCE, io.read_to_end(&mut rest)).await.expect("it does not end").is_ok();
    (String::from_utf8_lossy(&rest).into_owned(), clean)
}

pub(crate) async fn write(io: &mut (impl AsyncWriteExt + Unpin), text: &str) {
    timeout(PATIENCE, io.write_all(text.as_bytes())).await.expect("cannot write").unwrap();
}
