//! Putting it together: what is built in which order, what runs beside what, and how it ends.
//!
//! Everything that can be wrong with flags, files and ports is found before the first proxy is served. Then
//! these run until SIGTERM or SIGINT: the gRPC server, the status port, the watch on the configuration
//! directory, the watch on the authority, the timers of leases, and the writer of workloads.json.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{
    args::Settings,
    ca::Ca,
    config::ConfigError,
    config_dir::{ConfigDir, Reading},
    events::{Events, Happened, Kind},
    hub::{Hub, Taken, report::ConfigurationReport},
    metrics::Metrics,
    observatory::{self, Observatory},
    recorder::Recorder,
    server, status,
    used_tokens::UsedTokens,
    watch::Watch,
    workloads::store,
};

/// Workloads come and go in bunches; each bunch is written once.
const SAVE_AFTER: Duration = Duration::from_millis(200);
const MAX_CONNECTIONS: usize = 10_000;
/// File descriptors for everything that is not a proxy's connection.
const RESERVED_FILES: u64 = 128;

/// A control plane with its ports bound, before it serves anybody.
pub struct App {
    grpc: TcpListener,
    status: TcpListener,
    status_shared: Arc<status::Shared>,
    serving: watch::Sender<bool>,
    shared: Arc<server::Shared>,
    config_dir: Arc<ConfigDir>,
    workloads_file: PathBuf,
    max_connections: usize,
}

impl App {
    pub async fn build(settings: Settings) -> anyhow::Result<Self> {
        let Settings {
            config_dir,
            state_dir,
            trust_domain,
            listen,
            status_listen,
            leaf_life,
            ca,
            history_memory,
            history_disk,
            log: _,
        } = settings;
        // Ports first: a second control plane on the same state is stopped before it touches that.
        let grpc = status::listen("listen", listen).await?;
        let status = status::listen("status-listen", status_listen).await?;
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&state_dir)
            .with_context(|| format!("--state-dir: cannot make {}", state_dir.display()))?;

        let now = SystemTime::now();
        let config_dir = Arc::new(ConfigDir::new(&config_dir, &trust_domain));
        let ca = Ca::load(ca, trust_domain, leaf_life, now).context("the certificate authority")?;
        let used = state_dir.join("used-tokens.json");
        // Without it, tokens that were used would count again: better not to start.
        let used_tokens = UsedTokens::load(used.clone()).with_context(|| used.display().to_string())?;
        let (ca, metrics) = (Arc::new(ca), Arc::new(Metrics::default()));
        let events = Arc::new(open_events(&state_dir.join("events.jsonl")));
        let recorder = Recorder::open(&state_dir.join("history"), history_memory, history_disk, &events);
        let recorder = Arc::new(recorder);
        let hub = Arc::new(Hub::new(Instant::now(), events));
        hub.set_trust(ca.trust());
        let workloads_file = state_dir.join("workloads.json");
        match store::load(&workloads_file) {
            Ok(known) => hub.restore(known, Instant::now()),
            // Proxies come back by themselves.
            Err(error) => {
                tracing::warn!(file = %workloads_file.display(), %error, "known workloads cannot be read");
            }
        }
        let observatory = Arc::new(Observatory::default());
        let shared = Arc::new(server::Shared { ca, hub, observatory, recorder, used_tokens, metrics });
        let serving = watch::Sender::new(false);
        let status_shared = Arc::new(status::Shared {
            ca: shared.ca.clone(),
            hub: shared.hub.clone(),
            observatory: shared.observatory.clone(),
            recorder: shared.recorder.clone(),
            waiting: Semaphore::new(status::MAX_WAITING),
            metrics: shared.metrics.clone(),
            serving: serving.subscribe(),
            started: Instant::now(),
        });
        Ok(Self {
            grpc,
            status,
            status_shared,
            serving,
            shared,
            config_dir,
            workloads_file,
            max_connections: max_connections(),
        })
    }

    /// Where proxies connect, and where the status is.
    pub fn addresses(&self) -> std::io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.grpc.local_addr()?, self.status.local_addr()?))
    }

    /// Serves until SIGTERM or SIGINT.
    pub async fn run(self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        self.run_until(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    }

    /// Serves until `end`.
    pub async fn run_until(self, end: impl Future<Output = ()>) -> anyhow::Result<()> {
        let (grpc_address, status_address) = self.addresses()?;
        let Self {
            grpc,
            status,
            status_shared,
            serving,
            shared,
            config_dir,
            workloads_file,
            max_connections,
        } = self;
        let mut tasks = JoinSet::new();
        // Watching begins before the first reading, so that no edit falls between them.
        let watch = Watch::new([config_dir.path()]);
        take(&shared, config_dir.read());
        tasks.spawn(follow(shared.clone(), config_dir, watch));
        tasks.spawn({
            let shared = shared.clone();
            async move { shared.ca.run(&shared.hub).await }
        });
        tasks.spawn({
            let hub = shared.hub.clone();
            async move { hub.run_timers().await }
        });
        tasks.spawn(observe(shared.clone()));
        tasks.spawn(save(shared.hub.clone(), workloads_file.clone()));
        tasks.spawn(status::serve(status, status_shared));
        // Reading back takes a moment; nobody but those who report waits for it.
        let loading = tokio::task::spawn_blocking({
            let shared = shared.clone();
            move || shared.recorder.load(shared.hub.events())
        });
        tasks.spawn(shared.recorder.clone().run(shared.hub.events().clone()));

        let stop = watch::Sender::new(false);
        let server = server::serve(grpc, shared.clone(), max_connections, stop.subscribe());
        tokio::pin!(server);
        serving.send_replace(true);
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            listen = %grpc_address,
            status = %status_address,
            trust_domain = %shared.ca.trust_domain(),
            max_connections,
            "serving"
        );
        tokio::pin!(end);
        let served = tokio::select! {
            served = &mut server => served,
            () = &mut end => {
                tracing::info!("stopping");
                serving.send_replace(false);
                // Before the streams end: who is connected now has its time to come back to our next self.
                write(&shared.hub, &workloads_file);
                // The writer would note our own end as theirs.
                tasks.shutdown().await;
                // What was taken is kept before the streams end, so that they can acknowledge it.
                let _ = loading.await;
                keep(&shared).await;
                stop.send_replace(true);
                server.await
            }
        };
        served?;
        // Who left because we did.
        keep(&shared).await;
        tracing::info!("stopped");
        Ok(())
    }
}

/// Reads the configuration directory again whenever it changed.
async fn follow(shared: Arc<server::Shared>, dir: Arc<ConfigDir>, mut watch: Watch) {
    loop {
        watch.changed().await;
        let reader = dir.clone();
        match tokio::task::spawn_blocking(move || reader.read()).await {
            Ok(reading) => take(&shared, reading),
            Err(error) => {
                tracing::error!(%error, "reading the configuration failed; the last good one stays");
            }
        }
    }
}

fn take(shared: &server::Shared, reading: Reading) {
    let files = reading.files.len();
    let errors = reading.result.as_ref().err().cloned().unwrap_or_default();
    match shared.hub.on_reading(reading, SystemTime::now()) {
        Taken::New => {
            shared.metrics.configurations_taken.add_one();
            let in_force = shared.hub.configuration();
            tracing::info!(generation = in_force.generation, files, "configuration taken");
            shared.hub.events().tell(taken(&in_force, ""));
        }
        // Whoever saw the refusal waits to hear that it is over.
        Taken::Same { after_errors: true } => {
            let in_force = shared.hub.configuration();
            tracing::info!(
                generation = in_force.generation,
                "the configuration is as it was before the errors"
            );
            shared.hub.events().tell(taken(&in_force, ", as before the errors"));
        }
        Taken::Same { after_errors: false } | Taken::Refused { new_errors: false } => {}
        Taken::Refused { new_errors: true } => {
            shared.metrics.configurations_refused.add_one();
            let in_force = shared.hub.totals(Instant::now()).generation;
            tracing::error!(
                errors = errors.len(),
                in_force,
                "configuration refused; the last good one stays in force"
            );
            for error in &errors {
                tracing::error!("{error}");
            }
            shared.hub.events().tell(refused(&errors, in_force));
        }
    }
}

fn taken(in_force: &ConfigurationReport, how: &str) -> Happened {
    let ConfigurationReport { generation, version, files, .. } = in_force;
    let message = format!("{} files, generation {generation}{how}", files.len());
    Happened::new(Kind::ConfigurationTaken, "the configuration", message)
        .with("generation", *generation)
        .with("version", version.as_str())
}

/// The first error in words, and the first few in the details.
fn refused(errors: &[ConfigError], in_force: u64) -> Happened {
    const SHOWN: usize = 20;
    let (subject, first) = match errors.first() {
        Some(error) => (error.file.to_string(), error.to_string()),
        None => ("the configuration".to_owned(), String::new()),
    };
    let more = match errors.len() {
        0 | 1 => String::new(),
        all => format!(" (and {} more)", all - 1),
    };
    let shown: Vec<_> = errors.iter().take(SHOWN).map(|error| serde_json::json!(error)).collect();
    Happened::new(Kind::ConfigurationRefused, subject, format!("{first}{more}; the last good one stays"))
        .with("errors", shown)
        .with("error_count", errors.len())
        .with("in_force", in_force)
}

/// Numbers of events go on where there is a file; without one they are in memory only.
fn open_events(path: &Path) -> Events {
    Events::open(path).unwrap_or_else(|error| {
        tracing::warn!(file = %path.display(), %error, "events cannot be kept: a restart loses them");
        Events::without_file(&error)
    })
}

/// Writes history and events as they are now.
async fn keep(shared: &Arc<server::Shared>) {
    let shared = shared.clone();
    let _ = tokio::task::spawn_blocking(move || {
        let events = shared.hub.events();
        shared.recorder.save(events);
        events.save();
    })
    .await;
}

/// Tells proxies what all of them together see.
async fn observe(shared: Arc<server::Shared>) {
    let mut ticks = interval(observatory::TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = ticks.tick().await;
        shared.observatory.on_tick(|name| shared.hub.shared_limit(name), now.into());
    }
}

async fn save(hub: Arc<Hub>, file: PathBuf) {
    let mut changes = hub.saving();
    while changes.changed().await.is_ok() {
        sleep(SAVE_AFTER).await;
        changes.mark_unchanged();
        let (hub, file) = (hub.clone(), file.clone());
        let _ = tokio::task::spawn_blocking(move || write(&hub, &file)).await;
    }
}

/// A full disk costs the leases after a restart, and nothing else.
fn write(hub: &Hub, file: &Path) {
    if let Err(error) = store::save(file, &hub.to_save()) {
        tracing::warn!(file = %file.display(), %error, "known workloads cannot be saved");
    }
}

/// As many as there are file descriptors for, after asking for all that we may have.
fn max_connections() -> usize {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return MAX_CONNECTIONS };
    let wanted = (MAX_CONNECTIONS as u64 + RESERVED_FILES).min(hard).max(soft);
    let have = match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    };
    usize::try_from(have.saturating_sub(RESERVED_FILES)).unwrap_or(MAX_CONNECTIONS).clamp(16, MAX_CONNECTIONS)
}
