//! The life of the process: what is opened and started in which order, and how it ends.
//!
//! ```text
//!  main thread = control runtime                                     worker-0 … worker-N
//!  ─────────────────────────────                                     ──────────────────
//!  descriptors, mark, addresses, listeners, log, state: all problems
//!  at once, or none
//!  status, admin, admin.sock are served            ┌── start ──▶     accept, recipes (inbound, outbound)
//!  certificates, configuration, snapshot on disk ──┤ Shared, Credentials
//!  ready                                           │
//!  SIGTERM: phases of `drain.rs` ──────────────────┴── Drain ──▶     close listeners, say goodbye, end
//! ```
//!
//! A fault on the control side (a panic in its tasks) takes readiness away and leaves traffic alone; a worker that dies
//! ends the process, because nobody would take its connections.

use std::{
    fs,
    io::{self, IsTerminal as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::{fs::DirBuilderExt as _, net::UnixListener as StdUnixListener},
    panic,
    path::Path,
    process::ExitCode,
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    ifaddrs::getifaddrs,
    net::if_::InterfaceFlags,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use outrigger_proto::spec::ProxyEventKind;
use tokio::{
    net::{TcpListener, UnixListener},
    runtime::{Builder, LocalOptions, LocalRuntime},
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
    task,
    time::{self, Instant},
};
use tracing::{error, info, warn};
use tracing_subscriber::{
    Registry, filter::Targets, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::{
    access_log,
    admin::{Admin, Door, scrape::Scrapes, serve},
    capture_check::{self, CaptureCheck},
    config::{
        AccessLog, Config,
        settings::{Problem, Problems},
    },
    context::Ctx,
    credentials::Certificates,
    drain::{Drain, Phase, Schedule},
    metrics::{self, merge},
    observe::{self, Bulletin, Events},
    otlp,
    path::{accept::Cap, cache::Caches, dial},
    readiness::{Gate, Readiness},
    report,
    shared_limits::SharedLimits,
    store::Store,
    sync::Sync,
    telemetry::{Direction, Telemetry},
    trace::Tracing,
    worker,
};

mod listen;

/// Runs the sidecar until it is told to end.
pub fn run(config: Config) -> ExitCode {
    let log = match start_log(&config.log) {
        Ok(log) => log,
        Err(error) => return failed(&Problems(vec![Problem(format!("--log: {error}"))])),
    };
    let (prepared, runtime) = match prepare(config).and_then(|prepared| Ok((prepared, runtime()?))) {
        Ok(both) => both,
        Err(problems) => return failed(&problems),
    };
    runtime.block_on(live(prepared, log))
}

fn failed(problems: &Problems) -> ExitCode {
    eprintln!("outrigger-proxy run: cannot start:\n{problems}");
    ExitCode::FAILURE
}

// ---- before anything runs -------------------------------------------------------------------------------------------

/// Everything that could have failed, done.
struct Prepared {
    ctx: Arc<Ctx>,
    listeners: listen::Listeners,
    socket: Option<(StdUnixListener, serve::SocketFile)>,
    certificates: Certificates,
    sync: Sync,
    store: Option<Arc<Store>>,
}

fn prepare(mut config: Config) -> Result<Prepared, Problems> {
    let mut problems = Vec::new();
    let mut note = |text: String| problems.push(Problem(text));
    let descriptors = raise_descriptor_limit();
    if config.addresses.is_empty() {
        config.addresses = addresses_of_interfaces();
    }
    if let Some(mark) = config.mark
        && let Err(error) = dial::can_mark(mark)
    {
        note(format!(
            "--mark {mark}: this process may not mark its connections ({error}), so the redirect rules would catch them: \
             give it CAP_NET_ADMIN, or run it under the uid that `init --proxy-uid` names and pass --mark 0"
        ));
    }
    let socket = config.state_dir.as_deref().and_then(|directory| {
        let opened = make_directory(directory).and_then(|()| serve::open_socket(directory));
        opened.map_err(|error| note(format!("--state-dir {}: {error}", directory.display()))).ok()
    });
    let access_log = match &config.access_log {
        AccessLog::Off => Ok(access_log::AccessLog::off()),
        AccessLog::Stdout => {
            access_log::AccessLog::stdout().map_err(|error| format!("--access-log stdout: {error}"))
        }
        AccessLog::File(path) => access_log::AccessLog::file(path)
            .map_err(|error| format!("--access-log {}: {error}", path.display())),
    };
    let access_log = access_log.map_err(&mut note).ok();
    let access_log =
        access_log.map(|log| log.shaped(config.access_log_format.clone(), config.access_log_only.clone()));
    otlp::check(&config).into_iter().for_each(&mut note);
    merge::check(&config).for_each(|problem| note(problem.0));
    let certificates = Certificates::new(&config).map_err(|error| note(error.to_string())).ok();
    let listeners = listen::open(&config, &mut problems);
    let (Some(access_log), Some(certificates), true) = (access_log, certificates, problems.is_empty()) else {
        return Err(Problems(problems));
    };

    let identity = certificates.identity().clone();
    let store =
        config.state_dir.as_deref().map(|directory| Arc::new(Store::new(directory, identity.clone())));
    let kept = store.as_ref().map(|store| store.load()).unwrap_or_default();
    let sync = Sync::new(&config, &identity, certificates.handle(), kept);
    let ctx = Arc::new(Ctx {
        snapshot: sync.snapshot(),
        credentials: certificates.handle().credentials(),
        discovery: sync.discovery(),
        telemetry: Telemetry::with(
            metrics::Registry::with(config.metrics_series, config.metrics_idle),
            access_log,
        ),
        merges: Arc::new(merge::Merges::new(&config.merge_metrics, config.mark)),
        tracing: Tracing::new(&config),
        readiness: Readiness::new(),
        drain: Drain::new(),
        cap: Cap::from_descriptor_limit(descriptors),
        events: Events::default(),
        bulletin: Bulletin::default(),
        limits: SharedLimits::default(),
        caches: Caches::default(),
        capture_check: CaptureCheck::default(),
        config,
    });
    Ok(Prepared { ctx, listeners, socket, certificates, sync, store })
}

fn start_log(filter: &str) -> Result<reload::Handle<Targets, Registry>, String> {
    let filter = filter.parse::<Targets>().map_err(|error| error.to_string())?;
    let (filter, handle) = reload::Layer::new(filter);
    let format =
        tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let started = tracing_subscriber::registry().with(filter).with(format).try_init();
    started.map(|()| handle).map_err(|error| error.to_string())
}

/// As many descriptors as the hard limit gives; says how many.
fn raise_descriptor_limit() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

fn make_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Addresses that others can dial; loopback only if there is nothing else (a machine on its own).
fn addresses_of_interfaces() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for interface in
        getifaddrs().into_iter().flatten().filter(|one| one.flags.contains(InterfaceFlags::IFF_UP))
    {
        let Some(address) = interface.address else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (None, Some(v6)) if !v6.ip().is_unicast_link_local() => IpAddr::V6(v6.ip()),
            (None, Some(_) | None) => continue,
        };
        if !ip.is_loopback() && !addresses.contains(&ip) {
            addresses.push(ip);
        }
    }
    if addresses.is_empty() {
        addresses.push(Ipv4Addr::LOCALHOST.into());
    }
    addresses
}

fn runtime() -> Result<LocalRuntime, Problems> {
    Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())
        .map_err(|error| Problems(vec![Problem(format!("no event loop: {error}"))]))
}

// ---- running --------------------------------------------------------------------------------------------------------

/// From the start of the workers to the end of the process; the control runtime's main task.
async fn live(prepared: Prepared, log: reload::Handle<Targets, Registry>) -> ExitCode {
    let Prepared { ctx, listeners, socket, certificates, sync, store } = prepared;
    let signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            return failed(&Problems(vec![Problem(format!("signals cannot be received: {error}"))]));
        }
    };
    count_panics(Arc::clone(&ctx.telemetry.metrics));
    let mut workers = match start_workers(&ctx, listeners.shares) {
        Ok(workers) => workers,
        Err(error) => {
            return failed(&Problems(vec![Problem(format!(
                "--workers: no thread could be started: {error}"
            ))]));
        }
    };
    let admin = Arc::new(Admin {
        ctx: Arc::clone(&ctx),
        workers: workers.asks.clone(),
        log,
        scrapes: Scrapes::default(),
    });
    let (socket, _file) = socket.unzip();
    if let Err(error) = serve_doors(&admin, listeners.status, listeners.admin, socket) {
        return failed(&Problems(vec![Problem(format!("--status-address, --admin-port: {error}"))]));
    }

    if let Some(store) = store {
        task::spawn_local(store.keep(ctx.snapshot.clone()));
    }
    let exporters = otlp::start(&ctx, certificates.identity(), &workers.asks);
    task::spawn_local(metrics::keep(Arc::clone(&ctx), workers.asks.clone()));
    let registry = || Arc::clone(&ctx.telemetry.metrics);
    guard(&ctx, Gate::Certificate, certificates.run(ctx.readiness.clone(), registry()));
    task::spawn_local(observe::stream::run(Arc::clone(&ctx), sync.active()));
    task::spawn_local(observe::stream::keep(Arc::clone(&ctx)));
    task::spawn_local(report::collect::run(Arc::clone(&ctx), workers.asks.clone()));
    for (plane, connections) in sync.connections().enumerate() {
        let reports = Arc::clone(&ctx.telemetry.reports);
        task::spawn_local(report::stream::run(reports, plane, connections));
    }
    guard(&ctx, Gate::Configuration, sync.run(ctx.readiness.clone(), registry()));

    if workers.listening().await.is_ok() {
        ctx.readiness.met(Gate::Listeners);
        info!(
            version = env!("CARGO_PKG_VERSION"),
            workers = ctx.config.workers,
            addresses = ?ctx.config.addresses,
            "listening"
        );
        task::spawn_local(capture_check::run(Arc::clone(&ctx)));
    }
    let told = task::spawn_local(tell_when_ready(ctx.readiness.clone()));
    let ended = end(&ctx, signals, &mut workers).await;
    told.abort();
    tokio::join!(
        exporters.flush(Duration::from_secs(1)),
        ctx.telemetry.reports.flush(Duration::from_secs(1)),
    );
    ctx.telemetry.flush(Duration::from_secs(1));
    ended
}

/// A panic ends the task in which it happens. It belongs into the log and the metrics, not on a bare standard error.
fn count_panics(metrics: Arc<metrics::Registry>) {
    panic::set_hook(Box::new(move |fault| {
        metrics.panicked();
        error!(thread = thread::current().name(), "{fault}");
    }));
}

fn serve_doors(
    admin: &Arc<Admin>,
    status: Option<std::net::TcpListener>,
    loopback: Vec<std::net::TcpListener>,
    socket: Option<StdUnixListener>,
) -> io::Result<()> {
    if let Some(listener) = status {
        task::spawn_local(serve::tcp(Arc::clone(admin), Door::Status, TcpListener::from_std(listener)?));
    }
    for listener in loopback {
        task::spawn_local(serve::tcp(Arc::clone(admin), Door::Loopback, TcpListener::from_std(listener)?));
    }
    if let Some(listener) = socket {
        task::spawn_local(serve::socket(Arc::clone(admin), UnixListener::from_std(listener)?));
    }
    Ok(())
}

/// Runs a control task. If it panics, the proxy goes on with what it has but is no longer ready.
fn guard(ctx: &Arc<Ctx>, gate: Gate, work: impl Future<Output = ()> + 'static) {
    let ctx = Arc::clone(ctx);
    task::spawn_local(async move {
        if let Err(fault) = task::spawn_local(work).await {
            error!(%fault, "a control task has failed; traffic goes on with what is known, restart the proxy");
            ctx.readiness.waiting(gate, "an internal fault has stopped its updates: restart the proxy");
        }
    });
}

async fn tell_when_ready(readiness: Readiness) {
    let mut states = readiness.states();
    let mut known = states.current();
    let mut was_ready = false;
    loop {
        if known.ready {
            info!("ready");
        } else if was_ready && !known.draining {
            warn!("not ready any more: {}", readiness.missing().join("; "));
        } else if !known.draining {
            info!("not ready yet: {}", readiness.missing().join("; "));
        }
        was_ready = known.ready;
        known = states.differs_from(known).await;
    }
}

// ---- workers --------------------------------------------------------------------------------------------------------

struct Workers {
    asks: Vec<mpsc::Sender<worker::Ask>>,
    listening: Vec<oneshot::Receiver<()>>,
    /// One message per worker that has ended, whatever the cause.
    ended: mpsc::UnboundedReceiver<usize>,
    running: usize,
}

/// Sends when the thread ends, also by a panic.
struct TellEnd(mpsc::UnboundedSender<usize>, usize);

impl Drop for TellEnd {
    fn drop(&mut self) {
        // Nobody listens any more when the process is over.
        let _ = self.0.send(self.1);
    }
}

fn start_workers(ctx: &Arc<Ctx>, shares: Vec<listen::Share>) -> io::Result<Workers> {
    let (ended_in, ended) = mpsc::unbounded_channel();
    let mut workers = Workers { asks: Vec::new(), listening: Vec::new(), ended, running: shares.len() };
    for (id, share) in shares.into_iter().enumerate() {
        let (ask, asks) = mpsc::channel(8);
        let (listens, listening) = oneshot::channel();
        workers.asks.push(ask);
        workers.listening.push(listening);
        let (ctx, end) = (Arc::clone(ctx), TellEnd(ended_in.clone(), id));
        thread::Builder::new().name(format!("worker-{id}")).spawn(move || {
            let _end = end;
            if let Err(error) = worker::run(ctx, id, share, asks, listens) {
                error!(worker = id, %error, "a worker cannot run");
            }
        })?;
    }
    Ok(workers)
}

impl Workers {
    async fn listening(&mut self) -> Result<(), oneshot::error::RecvError> {
        for worker in self.listening.drain(..) {
            worker.await?;
        }
        Ok(())
    }

    /// Waits until all have ended, or it takes too long.
    async fn end(&mut self, within: Duration) {
        let all = async {
            while self.running > 0 && self.ended.recv().await.is_some() {
                self.running -= 1;
            }
        };
        // A worker that does not end is left behind: the process ends without it.
        let _ = time::timeout(within, all).await;
    }
}

// ---- the end --------------------------------------------------------------------------------------------------------

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Waits for a reason to end, then goes through the phases.
async fn end(ctx: &Ctx, mut signals: Signals, workers: &mut Workers) -> ExitCode {
    let why = tokio::select! {
        why = signals.next() => why,
        () = ctx.drain.reached(Phase::Leaving) => "POST /drain",
        id = workers.ended.recv() => {
            error!(worker = id, "a worker has died: ending");
            return ExitCode::FAILURE;
        }
    };
    info!(grace = ?ctx.config.drain_grace, "{why}: draining");
    let draining = format!("{why}: draining, for {:?} at most", ctx.config.drain_grace);
    ctx.telemetry.reports.event(ProxyEventKind::Draining, draining);
    tokio::select! {
        () = leave(ctx) => {}
        why = signals.next() => warn!("{why} again: ending at once"),
    }
    let cut = open(ctx, Direction::Inbound) + open(ctx, Direction::Outbound);
    if cut > 0 {
        warn!(connections = cut, "connections were still open and are cut");
    }
    ctx.drain.advance(Phase::Over);
    workers.end(Duration::from_secs(2)).await;
    info!("ended");
    ExitCode::SUCCESS
}

async fn leave(ctx: &Ctx) {
    let start = Instant::now();
    let was_ready = ctx.readiness.is_ready();
    let schedule = Schedule::new(ctx.config.drain_grace);
    ctx.drain.advance(Phase::Leaving);
    ctx.readiness.draining();
    if was_ready {
        // Callers hear of it from the control plane and turn elsewhere, while everything is still served.
        time::sleep(schedule.moment).await;
    }
    ctx.drain.advance(Phase::Inbound);
    none_open(ctx, Direction::Inbound, start + schedule.inbound).await;
    ctx.drain.advance(Phase::Outbound);
    none_open(ctx, Direction::Inbound, start + schedule.total).await;
    none_open(ctx, Direction::Outbound, start + schedule.total).await;
}

async fn none_open(ctx: &Ctx, direction: Direction, deadline: Instant) {
    while open(ctx, direction) > 0 && Instant::now() < deadline {
        time::sleep(Duration::from_millis(10)).await;
    }
}

fn open(ctx: &Ctx, direction: Direction) -> i64 {
    ctx.telemetry.metrics.connections_open(direction)
}
