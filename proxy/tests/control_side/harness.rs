//! The control side of a proxy without its data path: what `app.rs` starts on the control runtime.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use outrigger_certs::Credentials;
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::spec::DestinationKey;
use outrigger_proxy::{
    config::{
        Config,
        cli::{self, Wanted},
    },
    credentials::Certificates,
    metrics::Registry,
    readiness::Readiness,
    shared::Shared,
    store::Store,
    sync::{Connection, Discovery, Standing, Sync},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Duration, Instant, sleep},
};

use crate::control_plane::DEADLINE;

pub(crate) struct Proxy {
    pub(crate) readiness: Readiness,
    pub(crate) snapshot: Shared<Snapshot>,
    pub(crate) discovery: Discovery,
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) metrics: Arc<Registry>,
    /// The connection that observations go by.
    pub(crate) active: watch::Receiver<Option<Connection>>,
    /// The connections that reports go by.
    pub(crate) connections: Vec<watch::Receiver<Option<Connection>>>,
    /// Dropped, they end.
    _tasks: JoinSet<()>,
}

/// What a proxy is started with.
pub(crate) struct Setup {
    control_planes: Vec<String>,
    token: [String; 2],
    pub(crate) directory: PathBuf,
    state: bool,
    identity: bool,
    more: Vec<String>,
    _temporary: tempfile::TempDir,
}

impl Setup {
    pub(crate) fn new(control_planes: &[SocketAddr], token: &str) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        Self {
            control_planes: control_planes.iter().map(ToString::to_string).collect(),
            token: ["--token".to_owned(), token.to_owned()],
            directory: temporary.path().to_owned(),
            state: false,
            identity: false,
            more: vec![],
            _temporary: temporary,
        }
    }

    pub(crate) fn with_token_file(mut self, path: &Path) -> Self {
        self.token = ["--token-file".to_owned(), path.to_str().unwrap().to_owned()];
        self
    }

    pub(crate) fn with_state(mut self) -> Self {
        self.state = true;
        self
    }

    pub(crate) fn with_identity(mut self, identity: bool) -> Self {
        self.identity = identity;
        self
    }

    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.more.extend(flags.iter().map(ToString::to_string));
        self
    }

    pub(crate) fn config(&self) -> Config {
        let mut arguments =
            ["outrigger-proxy", "run", "--no-capture", "--address", "127.0.0.1"].map(String::from).to_vec();
        // Never opened here: these tests have no data path.
        arguments.extend(["--serve", "0.0.0.0:9443=127.0.0.1:8080"].map(String::from));
        let mut flag = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        flag("--control-plane", self.control_planes.join(","));
        let [token, value] = self.token.clone();
        flag(&token, value);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        if self.state {
            flag("--state-dir", path(&self.directory.join("state")));
        }
        if self.identity {
            flag("--identity-dir", path(&self.directory.join("identity")));
        }
        arguments.extend(self.more.clone());
        match cli::read(arguments.into_iter().map(Into::into).collect(), Default::default(), 1) {
            Ok(Wanted::Run(config)) => *config,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&self) -> Proxy {
        let config = self.config();
        let certificates = Certificates::new(&config).unwrap();
        let identity = certificates.identity().clone();
        let store =
            config.state_dir.as_deref().map(|directory| Arc::new(Store::new(directory, identity.clone())));
        let kept = store.as_ref().map(|store| store.load()).unwrap_or_default();
        let sync = Sync::new(&config, &identity, certificates.handle(), kept);
        let (snapshot, discovery, active) = (sync.snapshot(), sync.discovery(), sync.active());
        let connections = sync.connections().collect();
        let credentials = certificates.handle().credentials();
        let readiness = Readiness::new();
        readiness.met(outrigger_proxy::readiness::Gate::Listeners);
        let metrics = Registry::new(100);
        let mut tasks = JoinSet::new();
        if let Some(store) = store {
            tasks.spawn(store.keep(snapshot.clone()));
        }
        tasks.spawn(certificates.run(readiness.clone(), Arc::clone(&metrics)));
        tasks.spawn(sync.run(readiness.clone(), Arc::clone(&metrics)));
        Proxy { readiness, snapshot, discovery, credentials, metrics, active, connections, _tasks: tasks }
    }
}

impl Proxy {
    pub(crate) async fn ready(&self) {
        until(|| self.readiness.is_ready().then_some(()).ok_or_else(|| self.readiness.missing())).await;
    }

    /// Waits until what is missing is told with these words.
    pub(crate) async fn missing(&self, words: &str) {
        until(|| {
            let missing = self.readiness.missing();
            missing.iter().any(|line| line.contains(words)).then_some(()).ok_or((words, missing))
        })
        .await;
    }

    pub(crate) async fn stands<const N: usize>(&self, wanted: [Standing; N]) {
        until(|| {
            let standings: Vec<_> =
                self.discovery.control_planes().into_iter().map(|entry| entry.standing).collect();
            if standings == wanted { Ok(()) } else { Err(standings) }
        })
        .await;
    }

    pub(crate) async fn knows(&self, key: &DestinationKey) {
        until(|| self.snapshot.load().destination(key).map(drop).ok_or(key)).await;
    }

    pub(crate) async fn no_longer_knows(&self, key: &DestinationKey) {
        until(|| self.snapshot.load().destination(key).is_none().then_some(()).ok_or(key)).await;
    }
}

/// Waits for a condition, and says what was in the way if it never comes. Not moved by a test that moves time.
pub(crate) async fn until<T, E: std::fmt::Debug>(mut look: impl FnMut() -> Result<T, E>) -> T {
    let deadline = std::time::Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(value) => return value,
            Err(why) => assert!(std::time::Instant::now() < deadline, "waited in vain: {why:?}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
}

/// How long something took, on the runtime's clock.
pub(crate) async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let began = Instant::now();
    let value = work.await;
    (value, began.elapsed())
}
