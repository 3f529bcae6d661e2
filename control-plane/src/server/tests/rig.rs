//! A running control plane and clients that do what proxies do, or what they must not.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use outrigger_certs::{
    Authority, Credential, Credentials, JoinToken, KeyRequest, SpiffeId, TrustBundle, TrustDomain, alpn, tls,
    token::Labels,
};
use outrigger_proto::{
    convert,
    pb::{self, configure_request::Kind, identity_client::IdentityClient, mesh_client::MeshClient},
    spec::{Hello, State},
};
use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    app::App,
    args::Settings,
    ca::{OWN_NAMESPACE, OWN_SERVICE_ACCOUNT, Source},
};

/// Far above anything that is waited for.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Rig {
    pub(super) dir: TempDir,
    pub(super) grpc: SocketAddr,
    pub(super) status: SocketAddr,
    pub(super) trust_domain: TrustDomain,
    end: Option<oneshot::Sender<()>>,
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Rig {
    /// A control plane with these files as its configuration.
    pub(super) async fn start(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("config")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join("config").join(name), text).unwrap();
        }
        Self::start_in(dir).await
    }

    async fn start_in(dir: TempDir) -> Self {
        let trust_domain = TrustDomain::parse("mesh.local").unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let settings = Settings {
            config_dir: dir.path().join("config"),
            state_dir: dir.path().join("state"),
            trust_domain: trust_domain.clone(),
            listen: any,
            status_listen: any,
            leaf_life: Duration::from_secs(600),
            ca: Source::Own(dir.path().join("state/ca")),
            history_memory: 64 << 20,
            history_disk: 256 << 20,
            log: tracing_subscriber::filter::Targets::default(),
        };
        let app = App::build(settings).await.unwrap();
        let (grpc, status) = app.addresses().unwrap();
        let (end, ended) = oneshot::channel();
        let running = tokio::spawn(app.run_until(async move { drop(ended.await) }));
        Self { dir, grpc, status, trust_domain, end: Some(end), running: Some(running) }
    }

    /// Ends it as SIGTERM does.
    pub(super) async fn stop(&mut self) {
        drop(self.end.take());
        let running = self.running.take().unwrap();
        timeout(DEADLINE, running).await.expect("it stops").unwrap().expect("it stops well");
    }

    pub(super) async fn restart(mut self) -> Self {
        self.stop().await;
        Self::start_in(self.dir).await
    }

    pub(super) fn ca_dir(&self) -> PathBuf {
        self.dir.path().join("state/ca")
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("config").join(name), text).unwrap();
    }

    pub(super) fn authority(&self) -> Authority {
        Authority::load_or_create(&self.ca_dir(), &self.trust_domain, SystemTime::now()).unwrap()
    }

    pub(super) fn identity(&self, name: &str) -> SpiffeId {
        SpiffeId::new(&self.trust_domain, "shop", name).unwrap()
    }

    fn own_identity(&self) -> SpiffeId {
        SpiffeId::new(&self.trust_domain, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT).unwrap()
    }

    pub(super) fn token(&self, name: &str, single_use: bool, life: Duration, now: SystemTime) -> String {
        let labels = Labels::from([("app".to_owned(), name.to_owned())]);
        let authority = self.authority();
        let token = JoinToken::new(&authority, self.identity(name), labels, life, single_use, now).unwrap();
        token.sign(&authority).unwrap()
    }

    /// As a machine that has nothing but the root's fingerprint.
    pub(super) async fn connect_pinned(&self) -> Result<Channel, tonic::transport::Error> {
        self.connect(tls::pinned_client_config(self.authority().root_fingerprint(), self.own_identity()))
            .await
    }

    /// With the certificate of a workload.
    pub(super) async fn connect_as(&self, credentials: &Arc<Credentials>) -> Channel {
        self.connect(tls::client_config(credentials, self.own_identity(), &[alpn::GRPC])).await.unwrap()
    }

    async fn connect(&self, config: Arc<rustls::ClientConfig>) -> Result<Channel, tonic::transport::Error> {
        let (connector, address) = (TlsConnector::from(config), self.grpc);
        let dial = tower::service_fn(move |_: http::Uri| {
            let connector = connector.clone();
            async move {
                let socket = TcpStream::connect(address).await?;
                connector.connect(tls::server_name(), socket).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(dial).await
    }

    /// Signs a new key with a token or, over a connection of its own, with a certificate.
    pub(super) async fn sign(
        &self,
        channel: Channel,
        token: Option<&str>,
        registration: &str,
        key: &KeyRequest,
    ) -> Result<pb::SignResponse, Status> {
        let request =
            pb::SignRequest { csr_der: key.csr_der().unwrap(), registration: registration.to_owned() };
        let mut request = Request::new(request);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        IdentityClient::new(channel).sign(request).await.map(tonic::Response::into_inner)
    }

    /// Everything that a workload has after joining.
    pub(super) async fn join(&self, name: &str) -> Joined {
        let token = self.token(name, false, Duration::from_secs(60), SystemTime::now());
        let key = KeyRequest::generate().unwrap();
        let channel = self.connect_pinned().await.unwrap();
        let response = self.sign(channel, Some(&token), "", &key).await.unwrap();
        Joined::new(&self.trust_domain, key, response)
    }

    /// The JSON of /status.
    pub(super) async fn report(&self) -> serde_json::Value {
        let (status, body) = self.get("/status").await;
        assert_eq!(status, 200);
        serde_json::from_str(&body).unwrap()
    }

    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        use http_body_util::{BodyExt as _, Empty};
        let socket = TcpStream::connect(self.status).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.unwrap();
        tokio::spawn(connection);
        let request =
            http::Request::get(path).header("host", "x").body(Empty::<bytes::Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    /// Waits until /status looks as wanted.
    pub(super) async fn wait_for(&self, what: &str, wanted: impl Fn(&serde_json::Value) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let report = self.report().await;
            if wanted(&report) {
                return;
            }
            assert!(start.elapsed() < DEADLINE, "{what} did not come:\n{report:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(super) struct Joined {
    pub(super) credentials: Arc<Credentials>,
    pub(super) registration: String,
}

impl Joined {
    pub(super) fn new(trust_domain: &TrustDomain, key: KeyRequest, response: pb::SignResponse) -> Self {
        let pb::SignResponse { chain_der, roots_der, registration } = response;
        let credential: Credential = key.into_credential(chain_der).unwrap();
        let credentials = Arc::new(Credentials::new(trust_domain.clone()));
        credentials.set_credential(credential).unwrap();
        credentials.set_trust(TrustBundle::from_der(trust_domain, &roots_der).unwrap()).unwrap();
        Self { credentials, registration }
    }

    pub(super) fn hello(&self, address: &str) -> Hello {
        Hello {
            version: "test".into(),
            registration: self.registration.clone(),
            instance: address.into(),
            addresses: vec![address.parse().unwrap()],
            zone: "a".into(),
            serves: vec![],
            held: vec![],
            state: State { ready: true, draining: false, ready_since: None },
            presence_only: false,
        }
    }
}

/// One configuration stream, as a proxy has it.
pub(super) struct Stream {
    requests: mpsc::UnboundedSender<pb::ConfigureRequest>,
    answers: Streaming<pb::ConfigureResponse>,
}

impl Stream {
    pub(super) async fn open(channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::unbounded_channel();
        let answers = MeshClient::new(channel)
            .max_decoding_message_size(64 << 20)
            .configure(UnboundedReceiverStream::new(receiver))
            .await?
            .into_inner();
        Ok(Self { requests, answers })
    }

    /// A stream that has introduced itself.
    pub(super) async fn greeted(rig: &Rig, joined: &Joined, hello: &Hello) -> Self {
        let this = Self::open(rig.connect_as(&joined.credentials).await).await.unwrap();
        this.say(Kind::Hello(convert::hello_to_pb(hello)));
        this
    }

    pub(super) fn say(&self, kind: Kind) {
        // A stream that was ended by the other side is noticed when it is read.
        let _ = self.requests.send(pb::ConfigureRequest { kind: Some(kind) });
    }

    pub(super) fn subscribe(&self, keys: &[&str]) {
        let keys = keys.iter().map(|key| (*key).to_owned()).collect();
        self.say(Kind::Subscribe(pb::Subscribe { keys }));
    }

    pub(super) async fn next(&mut self) -> pb::ConfigureResponse {
        timeout(DEADLINE, self.answers.message()).await.expect("an update").unwrap().expect("an open stream")
    }

    /// The next update, acknowledged, as its keys and removals.
    pub(super) async fn take(&mut self) -> (pb::ConfigureResponse, Vec<String>) {
        let update = self.next().await;
        self.say(Kind::Ack(pb::Ack { nonce: update.nonce }));
        let keys = update.resources.iter().map(|resource| resource.key.clone());
        let keys = keys.chain(update.removed.iter().map(|key| format!("-{key}"))).collect();
        (update, keys)
    }

    /// Takes updates until one satisfies.
    pub(super) async fn take_until(
        &mut self,
        mut wanted: impl FnMut(&pb::ConfigureResponse) -> bool,
    ) -> pb::ConfigureResponse {
        loop {
            let (update, _) = self.take().await;
            if wanted(&update) {
                return update;
            }
        }
    }

    /// How the other side ends it.
    pub(super) async fn end(&mut self) -> Status {
        loop {
            match timeout(DEADLINE, self.answers.message()).await.expect("an end") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a status"),
                Err(status) => return status,
            }
        }
    }
}

impl Rig {
    /// A workload joins while the files on disk make no authority; it is signed by the one in force.
    pub(super) async fn join_with_old_root(&self, root: &[u8]) {
        let fingerprint = outrigger_certs::verify::fingerprint(root);
        let config = tls::pinned_client_config(fingerprint, self.own_identity());
        self.connect(config).await.expect("the old authority still serves");
    }
}
