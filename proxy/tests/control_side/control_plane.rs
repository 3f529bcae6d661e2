//! A control plane that does what the test says: real sockets, real TLS, real tokens; its answers are scripted.
//!
//! It runs on a thread of its own, so that it can be killed (its connections die with it), frozen (they stay, and nothing
//! answers), and is not moved by a test that moves time.

use std::{
    collections::VecDeque,
    net::{SocketAddr, TcpListener as StdTcpListener},
    pin::Pin,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver as StdReceiver, Sender as StdSender, channel},
    },
    task::{Context, Poll},
    thread::JoinHandle,
    time::{Duration, SystemTime},
};

use outrigger_certs::{
    Authority, Credentials, JoinToken, Registration, SpiffeId, TrustDomain, alpn,
    tls::{self, Peer},
};
use outrigger_proto::{
    convert,
    pb::{
        ConfigureRequest, ConfigureResponse, Guidance, Hello, Observations, ReportAck, Resource, SignRequest,
        SignResponse, TrafficReport,
        configure_request::Kind,
        identity_server::{Identity, IdentityServer},
        mesh_server::{Mesh, MeshServer},
    },
    spec::{Body, Trust},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::server::Connected};

/// Nothing here takes this long unless it is broken.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// One authority, shared by all control planes of a test.
pub(crate) struct Ca {
    _directory: tempfile::TempDir,
    pub(crate) authority: Authority,
}

pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    ca: Arc<Ca>,
    script: Arc<Script>,
    streams: mpsc::UnboundedReceiver<Stream>,
    kill: Option<oneshot::Sender<()>>,
    freeze: mpsc::UnboundedSender<StdReceiver<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What it does when asked to sign.
pub(crate) struct Script {
    ca: Arc<Ca>,
    streams: mpsc::UnboundedSender<Stream>,
    /// Said instead of an answer, one by one.
    pub(crate) refusals: Mutex<VecDeque<Status>>,
    /// Signed instead of what was attested.
    pub(crate) impostor: Mutex<Option<SpiffeId>>,
    pub(crate) signed: Mutex<Vec<Signed>>,
    /// Ends every new stream, after it was answered.
    pub(crate) unwelcome: Mutex<Option<Status>>,
}

/// A request for a certificate as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Signed {
    pub(crate) csr_der: Vec<u8>,
    pub(crate) with_token: bool,
    pub(crate) peer: Option<SpiffeId>,
}

/// One Configure stream, seen from here.
pub(crate) struct Stream {
    pub(crate) hello: Hello,
    pub(crate) peer: SpiffeId,
    incoming: Streaming<ConfigureRequest>,
    outgoing: mpsc::Sender<Result<ConfigureResponse, Status>>,
    nonce: u64,
}

impl Ca {
    pub(crate) fn new() -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(directory.path(), &mesh(), SystemTime::now()).unwrap();
        Arc::new(Self { _directory: directory, authority })
    }

    pub(crate) fn token(&self) -> String {
        self.token_with(Duration::from_secs(3600), SystemTime::now())
    }

    pub(crate) fn token_with(&self, life: Duration, made: SystemTime) -> String {
        let token = JoinToken::new(&self.authority, web(), [].into(), life, false, made).unwrap();
        token.sign(&self.authority).unwrap()
    }

    pub(crate) fn trust(&self, others: &[&Self]) -> Resource {
        let mut roots = self.authority.roots_der().to_vec();
        roots.extend(others.iter().flat_map(|other| other.authority.roots_der().to_vec()));
        convert::resource(&Body::Trust(Arc::new(Trust { trust_domain: mesh(), roots })))
    }
}

pub(crate) fn mesh() -> TrustDomain {
    TrustDomain::parse("mesh.local").unwrap()
}

pub(crate) fn web() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/web").unwrap()
}

fn control_plane() -> SpiffeId {
    SpiffeId::parse("spiffe://mesh.local/ns/outrigger/sa/control-plane").unwrap()
}

// === impl ControlPlane ===

impl ControlPlane {
    pub(crate) fn start(ca: &Arc<Ca>) -> Self {
        Self::start_as(ca, "127.0.0.1:0".parse().unwrap(), &control_plane())
    }

    /// Again, where the old one was.
    pub(crate) fn restart(ca: &Arc<Ca>, address: SocketAddr) -> Self {
        Self::start_as(ca, address, &control_plane())
    }

    pub(crate) fn start_as(ca: &Arc<Ca>, address: SocketAddr, identity: &SpiffeId) -> Self {
        let listener = StdTcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let credentials = Arc::new(Credentials::new(mesh()));
        let now = SystemTime::now();
        let life = Duration::from_secs(3600);
        credentials.set_credential(ca.authority.serving_credential(identity, life, now).unwrap()).unwrap();
        credentials.set_trust(ca.authority.trust_bundle()).unwrap();
        let acceptor = TlsAcceptor::from(tls::server_config_optional(&credentials, &[alpn::GRPC]));

        let (streams_in, streams) = mpsc::unbounded_channel();
        let script = Arc::new(Script {
            ca: Arc::clone(ca),
            streams: streams_in,
            refusals: Mutex::default(),
            impostor: Mutex::default(),
            signed: Mutex::default(),
            unwelcome: Mutex::default(),
        });
        let (kill, killed) = oneshot::channel();
        let (freeze, mut freezes) = mpsc::unbounded_channel::<StdReceiver<()>>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let service = Arc::clone(&script);
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    () = serve(listener, acceptor, service) => {}
                    _ = killed => {}
                    () = async { while let Some(thaw) = freezes.recv().await { let _ = thaw.recv(); } } => {}
                }
            });
            // Dropped here, the runtime takes every connection with it.
        });
        Self { address, ca: Arc::clone(ca), script, streams, kill: Some(kill), freeze, thread: Some(thread) }
    }

    /// The next stream that says hello.
    pub(crate) async fn stream(&mut self) -> Stream {
        timeout(DEADLINE, self.streams.recv()).await.expect("a stream in time").expect("running")
    }

    /// The next stream that asks for configuration, after it was given the basic one. The proxy may stand by first.
    pub(crate) async fn configured(&mut self) -> Stream {
        let mut stream = self.stream().await;
        while stream.hello.presence_only {
            stream = self.stream().await;
        }
        let Kind::Subscribe(_) = stream.next().await else { panic!("asks for what it needs") };
        stream.send(vec![inbound(), self.ca.trust(&[])]).await;
        stream.acknowledged().await;
        stream
    }

    pub(crate) fn script(&self) -> &Script {
        &self.script
    }

    /// Stops answering, without closing anything, until the guard is dropped.
    pub(crate) fn freeze(&self) -> StdSender<()> {
        let (thaw, thawed) = channel();
        self.freeze.send(thawed).unwrap();
        thaw
    }

    /// As SIGKILL does. Returns when every socket is closed.
    pub(crate) fn kill(mut self) -> SocketAddr {
        self.end();
        self.address
    }

    fn end(&mut self) {
        if let Some(kill) = self.kill.take() {
            let _ = kill.send(());
        }
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the control plane panicked");
        }
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn inbound() -> Resource {
    convert::resource(&Body::Inbound(Arc::default()))
}

// === impl Stream ===

impl Stream {
    pub(crate) async fn next(&mut self) -> Kind {
        let message = timeout(DEADLINE, self.incoming.message()).await.expect("a message in time");
        message.expect("a message").expect("an open stream").kind.expect("a kind this build knows")
    }

    pub(crate) async fn send(&mut self, resources: Vec<Resource>) {
        self.send_and_remove(resources, &[]).await;
    }

    pub(crate) async fn send_and_remove(&mut self, resources: Vec<Resource>, removed: &[&str]) {
        self.nonce += 1;
        let removed = removed.iter().map(ToString::to_string).collect();
        let response = ConfigureResponse { nonce: self.nonce, resources, removed };
        self.outgoing.send(Ok(response)).await.expect("an open stream");
    }

    /// Waits for the answer to the last update.
    pub(crate) async fn acknowledged(&mut self) {
        let answer = self.next_but_state().await;
        let Kind::Ack(ack) = answer else { panic!("not acknowledged: {answer:?}") };
        assert_eq!(ack.nonce, self.nonce);
    }

    pub(crate) async fn next_but_state(&mut self) -> Kind {
        loop {
            let next = self.next().await;
            if !matches!(next, Kind::State(_)) {
                return next;
            }
        }
    }

    pub(crate) fn held(&self) -> Vec<(&str, &str)> {
        self.hello.held.iter().map(|held| (held.key.as_str(), held.version.as_str())).collect()
    }
}

// === serving ===

async fn serve(listener: StdTcpListener, acceptor: TlsAcceptor, script: Arc<Script>) {
    let listener = TcpListener::from_std(listener).unwrap();
    let (ready, connections) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                // A handshake that fails is what some tests are about.
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let Ok(peer) = tls::peer_if_any(stream.get_ref().1) else { return };
                let _ = ready.send(Ok::<_, std::io::Error>(Io { stream, peer })).await;
            });
        }
    });
    tonic::transport::Server::builder()
        .add_service(IdentityServer::from_arc(Arc::clone(&script)))
        .add_service(MeshServer::from_arc(script).max_encoding_message_size(usize::MAX))
        .serve_with_incoming(ReceiverStream::new(connections))
        .await
        .unwrap();
}

#[tonic::async_trait]
impl Identity for Script {
    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let authority = &self.ca.authority;
        let now = SystemTime::now();
        let peer = request.extensions().get::<Option<Peer>>().cloned().flatten().map(|peer| peer.identity);
        let bearer = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let SignRequest { csr_der, registration } = request.into_inner();
        let signed = Signed { csr_der: csr_der.clone(), with_token: bearer.is_some(), peer: peer.clone() };
        self.signed.lock().unwrap().push(signed);
        if let Some(refusal) = self.refusals.lock().unwrap().pop_front() {
            return Err(refusal);
        }
        let refused = |error: outrigger_certs::TokenError| Status::unauthenticated(error.to_string());
        let identity = match bearer {
            Some(text) => {
                let text = text.strip_prefix("Bearer ").expect("a bearer token");
                JoinToken::verify(text, authority, now).map_err(refused)?.identity
            }
            None => {
                let registration = Registration::verify(&registration, authority, now).map_err(refused)?;
                assert_eq!(Some(&registration.identity), peer.as_ref());
                registration.identity
            }
        };
        let life = Duration::from_secs(24 * 3600);
        let identity = self.impostor.lock().unwrap().clone().unwrap_or(identity);
        let chain_der = authority.sign(&csr_der, &identity, life, now).unwrap();
        let registration = Registration { identity, labels: [].into(), expires: now + life };
        Ok(Response::new(SignResponse {
            chain_der,
            roots_der: authority.roots_der().to_vec(),
            registration: registration.sign(authority).unwrap(),
        }))
    }
}

#[tonic::async_trait]
impl Mesh for Script {
    type ConfigureStream = ReceiverStream<Result<ConfigureResponse, Status>>;
    type ObserveStream = ReceiverStream<Result<Guidance, Status>>;
    type ReportStream = ReceiverStream<Result<ReportAck, Status>>;

    async fn configure(
        &self,
        request: Request<Streaming<ConfigureRequest>>,
    ) -> Result<Response<Self::ConfigureStream>, Status> {
        let peer = request.extensions().get::<Option<Peer>>().cloned().flatten();
        let peer = peer.ok_or_else(|| Status::unauthenticated("no certificate"))?.identity;
        let mut incoming = request.into_inner();
        let Some(ConfigureRequest { kind: Some(Kind::Hello(hello)) }) = incoming.message().await? else {
            panic!("the first message is a greeting");
        };
        let registered = Registration::verify(&hello.registration, &self.ca.authority, SystemTime::now());
        assert_eq!(registered.unwrap().identity, peer);
        let (outgoing, responses) = mpsc::channel(1024);
        let unwelcome = self.unwelcome.lock().unwrap().clone();
        if let Some(status) = unwelcome {
            let _ = outgoing.send(Err(status)).await;
            return Ok(Response::new(ReceiverStream::new(responses)));
        }
        let _ = self.streams.send(Stream { hello, peer, incoming, outgoing, nonce: 0 });
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    /// A control plane of an earlier version, which knows no such call.
    async fn observe(
        &self,
        _: Request<Streaming<Observations>>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        Err(Status::unimplemented("observe"))
    }

    async fn report(
        &self,
        _: Request<Streaming<TrafficReport>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        Err(Status::unimplemented("report"))
    }
}

/// A TLS connection that tells tonic who is on the other side.
struct Io {
    stream: TlsStream<TcpStream>,
    peer: Option<Peer>,
}

impl Connected for Io {
    type ConnectInfo = Option<Peer>;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
