//! The configuration stream: from the control planes to the snapshot that the workers read.
//!
//! ```text
//!   workers ── want, touch ──▶ discovery ─┐                              ┌─▶ link ⇄ control plane 1   (active)
//!                                         ▼                              │
//!                                      Driver ◀── asks and obeys ──▶ session (decides, no IO)
//!                                         │ │                            │
//!   workers ◀── Shared<Snapshot> ─────────┘ └─ trust bundle, readiness   └─▶ link ⇄ control plane 2   (standby)
//! ```
//!
//! - [`discovery`]: what the data path holds; asks for destinations, never waits.
//! - `session`, `interest`: every decision, as plain structs.
//! - `link`, `connect`: one control plane each: connection, stream, back-off.
//!
//! All of it runs on the control runtime, and nothing on the path of a request waits for it. What is held goes on being
//! used for as long as no control plane can be reached.

use std::{num::NonZeroU32, sync::Arc, time::SystemTime};

use outrigger_certs::{Credentials, SpiffeId, TrustBundle, alpn, tls};
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::{
    convert,
    pb::{self, configure_request::Kind},
    spec::{self, DestinationKey, FieldError, Hello, Key},
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use self::{
    link::{Command, Link, Report},
    session::{Event, Message, Open, Phase, Session},
};
use crate::{
    config::{Config, HostPort},
    credentials::Handle,
    metrics::Registry,
    readiness::{Gate, Readiness},
    shared::Shared,
};

pub(crate) mod connect;
pub mod discovery;
mod interest;
mod link;
mod session;

pub use discovery::{ControlPlane, Discovery, MAX_DESTINATIONS, Standing};

/// Field errors of a refused update that are logged; the control plane is told all of them.
const LOGGED_ERRORS: usize = 5;

/// The control side, ready to run.
pub struct Sync {
    control_planes: Vec<HostPort>,
    pinned: Vec<DestinationKey>,
    mark: Option<NonZeroU32>,
    /// All that a greeting says and that does not change.
    greeting: Hello,
    identity: SpiffeId,
    credentials: Arc<Credentials>,
    certificates: Handle,
    snapshot: Shared<Snapshot>,
    discovery: Discovery,
    active: watch::Sender<Option<Connection>>,
    connections: Vec<watch::Sender<Option<Connection>>>,
}

/// A connection to a control plane, with a stream of configuration on it.
#[derive(Clone)]
pub struct Connection {
    /// Another number is another connection.
    pub number: u64,
    pub channel: Channel,
}

struct Driver {
    session: Session,
    greeting: Hello,
    registration: watch::Receiver<Option<Arc<str>>>,
    credentials: Arc<Credentials>,
    certificates: Handle,
    snapshot: Shared<Snapshot>,
    discovery: Discovery,
    readiness: Readiness,
    metrics: Arc<Registry>,
    links: Vec<mpsc::UnboundedSender<Command>>,
    /// The connection of each link, and how many there have been.
    channels: Vec<Option<Connection>>,
    made: u64,
    active: watch::Sender<Option<Connection>>,
    connections: Vec<watch::Sender<Option<Connection>>>,
    configured: bool,
}

// === impl Sync ===

impl Sync {
    /// `kept` is what an earlier process left on disk, checked; or the empty snapshot.
    pub fn new(config: &Config, identity: &SpiffeId, certificates: Handle, kept: Snapshot) -> Self {
        let serves = config.serves.iter().filter_map(|serve| {
            let (mesh_port, application_port) =
                (serve.mesh.port().try_into().ok()?, serve.application.port().try_into().ok()?);
            Some(spec::Serve { mesh_port, application_port })
        });
        let greeting = Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            registration: String::new(),
            instance: format!("{:032x}", rand::random::<u128>()),
            addresses: config.addresses.clone(),
            zone: Arc::clone(&config.zone),
            serves: serves.collect(),
            held: Vec::new(),
            state: spec::State::default(),
            presence_only: true,
        };
        let discovery = Discovery::new();
        discovery.know(kept.destinations().map(|(key, _)| key));
        let pinned: Vec<_> = config.forwards.iter().map(|forward| forward.destination.clone()).collect();
        discovery.know(&pinned);
        Self {
            control_planes: config.control_planes.clone(),
            pinned,
            mark: config.mark,
            greeting,
            identity: identity.clone(),
            credentials: certificates.credentials(),
            certificates,
            snapshot: Shared::new(kept),
            discovery,
            active: watch::Sender::default(),
            connections: config.control_planes.iter().map(|_| watch::Sender::default()).collect(),
        }
    }

    /// The connection to the control plane that configures this proxy, as long as there is one.
    pub fn active(&self) -> watch::Receiver<Option<Connection>> {
        self.active.subscribe()
    }

    /// The connections to all of them, in the order of the list; also to those that stand by.
    pub fn connections(&self) -> impl Iterator<Item = watch::Receiver<Option<Connection>>> {
        self.connections.iter().map(watch::Sender::subscribe)
    }

    pub fn snapshot(&self) -> Shared<Snapshot> {
        self.snapshot.clone()
    }

    pub fn discovery(&self) -> Discovery {
        self.discovery.clone()
    }

    /// Runs for as long as the process lives; dropped, it takes its connections down.
    pub async fn run(self, readiness: Readiness, metrics: Arc<Registry>) {
        let trust_domain = self.credentials.trust_domain().clone();
        let expected = connect::control_plane_identity(&trust_domain);
        let tls = tls::client_config(&self.credentials, expected, &[alpn::GRPC]);
        let (reports_in, mut reports) = mpsc::channel(16);
        let mut tasks = JoinSet::new();
        let mut links = Vec::with_capacity(self.control_planes.len());
        for (index, target) in self.control_planes.iter().enumerate() {
            let (commands_in, commands) = mpsc::unbounded_channel();
            links.push(commands_in);
            let link = Link {
                index,
                target: target.clone(),
                tls: Arc::clone(&tls),
                credentials: Arc::clone(&self.credentials),
                mark: self.mark,
                registration: self.certificates.registration(),
                commands,
                reports: reports_in.clone(),
            };
            tasks.spawn(link.run());
        }
        let away = self.control_planes.iter().map(|target| ControlPlane {
            address: target.to_string(),
            standing: Standing::Away,
            last_error: String::new(),
        });
        self.discovery.update_control_planes(|all| *all = away.collect());

        let mut states = readiness.states();
        let snapshot = self.snapshot.load();
        let now = Instant::now().into_std();
        let count = links.len();
        let session = Session::new(trust_domain, snapshot, self.pinned, states.current(), count, now);
        let mut driver = Driver {
            session,
            greeting: self.greeting,
            registration: self.certificates.registration(),
            credentials: self.credentials,
            certificates: self.certificates,
            snapshot: self.snapshot,
            discovery: self.discovery.clone(),
            readiness,
            metrics,
            channels: vec![None; links.len()],
            made: 0,
            active: self.active,
            connections: self.connections,
            links,
            configured: false,
        };
        driver.judge();
        info!(identity = %self.identity, control_planes = count, "asking for configuration");
        loop {
            tokio::select! {
                report = reports.recv() => match report {
                    Some((link, report)) => driver.on_report(link, report),
                    None => return,
                },
                // A link ends after its driver, or by a fault that is the driver's, too.
                Some(Err(fault)) = tasks.join_next() => {
                    if let Ok(panic) = fault.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                () = self.discovery.has_news() => driver.on_news(),
                state = states.differs_from(driver.session.state()) => driver.session.on_state(state),
                () = sleep_until(Instant::from_std(driver.session.poll_timeout())) => {
                    let uses = driver.discovery.take_uses();
                    driver.session.handle_timeout(&uses, Instant::now().into_std());
                }
            }
            driver.obey();
        }
    }
}

// === impl Driver ===

impl Driver {
    fn on_report(&mut self, link: usize, report: Report) {
        match report {
            Report::Connected(channel) => {
                self.made += 1;
                self.channels[link] = Some(Connection { number: self.made, channel });
                self.session.on_connected(link);
            }
            Report::Opened => {
                if self.session.phase(link) == Phase::Active {
                    info!(control_plane = self.name(link), "connected: this control plane is the active one");
                    self.stand(link, Standing::Active);
                } else {
                    info!(control_plane = self.name(link), "connected: standing by");
                    self.stand(link, Standing::Standby);
                }
            }
            Report::Updates(updates) => self.session.on_updates(link, updates),
            Report::Lost(why) => self.on_lost(link, why),
        }
    }

    fn on_lost(&mut self, link: usize, why: String) {
        self.session.on_lost(link);
        self.channels[link] = None;
        let (news, address) = self.discovery.update_control_planes(|all| {
            let entry = &mut all[link];
            let news = entry.standing != Standing::Away || entry.last_error != why;
            entry.last_error.clone_from(&why);
            (news, entry.address.clone())
        });
        // An attempt every few seconds for an hour is one line, not a thousand.
        if news {
            warn!(control_plane = address, "not connected, trying again: {why}");
        } else {
            debug!(control_plane = address, "still not connected: {why}");
        }
        self.stand(link, Standing::Away);
        self.judge();
    }

    fn on_news(&mut self) {
        let news = self.discovery.take_news();
        let now = Instant::now().into_std();
        self.session.on_wanted(news.wanted, now);
        if news.full {
            if self.session.active().is_some() {
                warn!("more than {MAX_DESTINATIONS} destinations are in use: giving up the longest unused");
            }
            let uses = self.discovery.take_uses();
            self.session.on_full(&uses, now);
        }
    }

    /// Does what the session asks for.
    fn obey(&mut self) {
        while let Some(event) = self.session.poll_event() {
            match event {
                Event::Open { link, open } => self.open(link, open),
                Event::Send { link, message } => self.send(link, message),
                Event::Forget(keys) => self.discovery.forget(&keys),
                Event::Trust(bundle) => self.trust(bundle),
                Event::Publish(snapshot) => {
                    self.snapshot.publish(snapshot);
                    self.judge();
                }
            }
        }
    }

    fn open(&mut self, link: usize, open: Open) {
        let Open { presence_only, state, held, subscribe } = open;
        let registration = self.registration.borrow().as_deref().unwrap_or_default().to_owned();
        let hello = Hello { registration, held, state, presence_only, ..self.greeting.clone() };
        let mut first = vec![Kind::Hello(convert::hello_to_pb(&hello))];
        if !subscribe.is_empty() {
            first.push(kind(Message::Subscribe(subscribe)));
        }
        self.tell(link, Command::Open(first));
    }

    fn send(&mut self, link: usize, message: Message) {
        match &message {
            Message::Ack(_) => self.metrics.config_applied(SystemTime::now()),
            Message::Nack(nonce, errors) => self.refused(link, *nonce, errors),
            Message::Subscribe(_) | Message::Unsubscribe(_) | Message::State(_) => {}
        }
        self.tell(link, Command::Send(kind(message)));
    }

    fn refused(&self, link: usize, nonce: u64, errors: &[FieldError]) {
        self.metrics.config_refused();
        let shown: Vec<_> = errors.iter().take(LOGGED_ERRORS).map(ToString::to_string).collect();
        let more = errors.len().saturating_sub(LOGGED_ERRORS);
        warn!(
            control_plane = self.name(link),
            nonce,
            more,
            "update refused, the last good configuration stays: {}",
            shown.join("; ")
        );
    }

    fn tell(&self, link: usize, command: Command) {
        // A link ends only with this driver.
        let _ = self.links[link].send(command);
    }

    fn trust(&self, bundle: TrustBundle) {
        self.certificates.trust_is_pushed();
        let roots = bundle.roots().len();
        match self.credentials.set_trust(bundle) {
            Ok(true) => {
                info!(roots, "trust bundle changed");
                self.certificates.on_trust_changed();
            }
            Ok(false) => {}
            // The session has compared the trust domain already.
            Err(error) => warn!("trust bundle not taken: {error}"),
        }
    }

    fn stand(&self, link: usize, standing: Standing) {
        let active = self.discovery.update_control_planes(|all| {
            all[link].standing = standing;
            all.iter().position(|entry| entry.standing == Standing::Active)
        });
        self.discovery.set_connected(active.is_some());
        self.metrics.control_plane(active.is_some());
        replace(&self.active, active.and_then(|link| self.channels[link].clone()));
        let open = standing != Standing::Away;
        replace(&self.connections[link], self.channels[link].clone().filter(|_| open));
    }

    /// Tells readiness whether there is a configuration, and if not, what was in the way last.
    fn judge(&mut self) {
        if self.configured {
            return; // once there, it is kept
        }
        if self.session.is_configured() {
            self.configured = true;
            self.readiness.met(Gate::Configuration);
            return;
        }
        let errors: Vec<_> = self
            .discovery
            .control_planes()
            .into_iter()
            .filter(|entry| !entry.last_error.is_empty())
            .map(|entry| format!("{}: {}", entry.address, entry.last_error))
            .collect();
        let why = if errors.is_empty() { "none has arrived yet".to_owned() } else { errors.join("; ") };
        self.readiness.waiting(Gate::Configuration, &why);
    }

    fn name(&self, link: usize) -> String {
        self.discovery.update_control_planes(|all| all[link].address.clone())
    }
}

fn replace(known: &watch::Sender<Option<Connection>>, connection: Option<Connection>) {
    let number = |connection: &Option<Connection>| connection.as_ref().map(|one| one.number);
    known.send_if_modified(|known| {
        let changed = number(known) != number(&connection);
        *known = connection;
        changed
    });
}

fn kind(message: Message) -> Kind {
    let texts = |keys: Vec<Key>| keys.iter().map(Key::to_string).collect();
    match message {
        Message::Subscribe(keys) => Kind::Subscribe(pb::Subscribe { keys: texts(keys) }),
        Message::Unsubscribe(keys) => Kind::Unsubscribe(pb::Unsubscribe { keys: texts(keys) }),
        Message::Ack(nonce) => Kind::Ack(pb::Ack { nonce }),
        Message::Nack(nonce, errors) => {
            let errors =
                errors.into_iter().map(|error| pb::FieldError { field: error.field, reason: error.reason });
            Kind::Nack(pb::Nack { nonce, errors: errors.collect() })
        }
        Message::State(state) => Kind::State(convert::state_to_pb(state)),
    }
}
