//! The workload's certificate: had with a join token the first time, renewed over mutual TLS from then on.
//!
//! `certs::rotation` decides when, `credentials/ask.rs` asks one control plane, this file drives the one with the other
//! and tells whoever depends on the outcome: TLS (through [`Credentials`]), readiness, `--identity-dir`.
//!
//! | held                   | asks with                                                                     |
//! |------------------------|-------------------------------------------------------------------------------|
//! | a valid certificate    | that certificate; with the token where that was refused                       |
//! | none, or an ended one  | the join token                                                                |
//!
//! Every control plane in the list is tried in turn, and there is no last attempt. What is held is used until it ends.
//! The key is made here and stays in memory, except for `--identity-dir`. Nothing here judges peers.

use std::{
    fmt, fs, io,
    num::NonZeroU32,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use outrigger_certs::{
    Credentials, JoinToken, KeyRequest, SpiffeId, TokenError, TrustBundle, TrustDomain,
    rotation::{Action, Held, Now, Rotation},
    verify::rfc3339,
};
use rand::{SeedableRng as _, rngs::SmallRng};
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use self::ask::{AskError, Asked, Proof};
use crate::{
    config::{Config, HostPort, Token},
    identity_dir::{IdentityDir, Kept, OpenError},
    metrics::Registry,
    readiness::{Gate, Readiness},
};

mod ask;

/// The certificate of this process, ready to be driven.
pub struct Certificates {
    control_planes: Arc<[HostPort]>,
    token: Token,
    mark: Option<NonZeroU32>,
    identity: SpiffeId,
    identity_dir: Option<Arc<IdentityDir>>,
    shared: Arc<Shared>,
    /// The key that waits for its certificate. It outlives a failed attempt: a single-use token is bound to it.
    key: Option<KeyRequest>,
}

/// For those who need the certificate, or know something about it.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

struct Shared {
    credentials: Arc<Credentials>,
    /// Something when there is a certificate.
    registration: watch::Sender<Option<Arc<str>>>,
    trust_changed: Notify,
    /// The trust bundle comes from the configuration stream now; what an answer to a CSR says about it may be older.
    trust_is_pushed: AtomicBool,
}

/// Why the process cannot start. Everything else is tried again for ever.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    IdentityDir(#[from] OpenError),
    #[error(transparent)]
    Token(#[from] BadToken),
}

/// Why there is no token to show.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    #[error("--token-file {path}: {error}", path = .path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: {error}", flag(.path.as_ref()))]
    Token { path: Option<PathBuf>, error: TokenError },
}

/// One failure per control plane that was asked.
struct Failures(Vec<(String, AskError)>);

// === impl Certificates ===

impl Certificates {
    /// Finds out who this workload is: from the token, and from what `--identity-dir` has kept.
    pub fn new(config: &Config) -> Result<Self, StartError> {
        let identity_dir = config.identity_dir.as_deref().map(IdentityDir::open).transpose()?;
        let kept = identity_dir.as_ref().and_then(load);
        let token = read_token(&config.token);
        let (identity, kept) = match (kept, token) {
            (Some(kept), Ok((_, token))) if token.identity != *kept.credential.identity() => {
                let (other, identity) = (kept.credential.identity(), &token.identity);
                warn!(%identity, %other, "the certificate in --identity-dir is another workload's: ignored");
                (token.identity, None)
            }
            // A token that is gone or no longer readable is not needed as long as there is a certificate.
            (Some(kept), _) => (kept.credential.identity().clone(), Some(kept)),
            (None, token) => (token?.1.identity, None),
        };
        let trust_domain =
            TrustDomain::parse(identity.trust_domain()).expect("part of an identity, which is valid");
        let shared = Arc::new(Shared {
            credentials: Arc::new(Credentials::new(trust_domain)),
            registration: watch::Sender::new(None),
            trust_changed: Notify::new(),
            trust_is_pushed: AtomicBool::new(false),
        });
        if let Some(kept) = kept {
            shared.resume(kept);
        }
        Ok(Self {
            control_planes: config.control_planes.as_slice().into(),
            token: config.token.clone(),
            mark: config.mark,
            identity,
            identity_dir: identity_dir.map(Arc::new),
            shared,
            key: None,
        })
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    pub fn handle(&self) -> Handle {
        Handle(Arc::clone(&self.shared))
    }

    /// Runs for as long as the process lives.
    pub async fn run(mut self, readiness: Readiness, metrics: Arc<Registry>) {
        let mut rng = SmallRng::from_rng(&mut rand::rng());
        let mut rotation = Rotation::new(now());
        if let Ok(credential) = self.shared.credentials.usable() {
            rotation.on_issued(credential.validity(), now(), &mut rng);
            readiness.met(Gate::Certificate);
        }
        let shared = Arc::clone(&self.shared);
        loop {
            while let Some(action) = rotation.handle_timeout(now()) {
                match action {
                    Action::Ask => match self.ask().await {
                        Ok(asked) => {
                            rotation.on_issued(asked.credential.validity(), now(), &mut rng);
                            self.take(asked).await;
                            readiness.met(Gate::Certificate);
                            metrics.certificate_issued();
                        }
                        Err(failures) => {
                            rotation.on_failed(now(), &mut rng);
                            metrics.certificate_not_issued();
                            self.lament(&failures, rotation.held(SystemTime::now()), &readiness);
                        }
                    },
                    Action::Expired => {
                        warn!(identity = %self.identity, "the certificate has ended: no new connections until there is another");
                        readiness
                            .waiting(Gate::Certificate, "the certificate has ended and could not be renewed");
                    }
                }
            }
            tokio::select! {
                () = sleep_until(Instant::from_std(rotation.poll_timeout())) => {}
                () = shared.trust_changed.notified() => {
                    rotation.on_trust_changed(now(), &mut rng);
                    self.keep().await;
                }
            }
        }
    }

    /// One attempt at every control plane.
    async fn ask(&mut self) -> Result<Asked, Failures> {
        let mut failures = Failures(Vec::new());
        let control_planes = Arc::clone(&self.control_planes);
        let shared = Arc::clone(&self.shared);
        let registration = self.shared.registration.borrow().clone();
        let mut token_may_help = true;
        if let (Ok(_), Some(registration)) = (shared.credentials.usable(), registration) {
            token_may_help = false;
            for target in &*control_planes {
                let proof =
                    Proof::Certificate { credentials: &shared.credentials, registration: &registration };
                match self.ask_one(target, proof).await {
                    Ok(asked) => return Ok(asked),
                    Err(error) => {
                        token_may_help |= !error.is_unreachable();
                        failures.0.push((target.to_string(), error));
                    }
                }
            }
        }
        if token_may_help {
            match read_token(&self.token) {
                Ok((text, token)) => {
                    for target in &*control_planes {
                        match self.ask_one(target, Proof::Token { text: &text, token: &token }).await {
                            Ok(asked) => return Ok(asked),
                            Err(error) => failures.0.push((target.to_string(), error)),
                        }
                    }
                }
                Err(error) => failures.0.push(("join token".to_owned(), AskError::Token(error))),
            }
        }
        Err(failures)
    }

    async fn ask_one(&mut self, target: &HostPort, proof: Proof<'_>) -> Result<Asked, AskError> {
        let key = match self.key.take() {
            Some(key) => key,
            None => KeyRequest::generate()?,
        };
        let csr = key.csr_der()?;
        match ask::ask(target, proof, csr, self.mark).await {
            Ok(answer) => answer.check(key, &self.identity, self.shared.credentials.trust_domain()),
            Err(error) => {
                self.key = Some(key);
                Err(error)
            }
        }
    }

    /// Puts a certificate to use.
    async fn take(&self, asked: Asked) {
        let Asked { credential, trust, registration } = asked;
        let shared = &self.shared;
        let until = rfc3339(credential.validity().not_after);
        let roots = trust.roots().len();
        // What the stream has pushed is newer than, or the same as, what comes along here.
        let trust = if shared.trust_is_pushed.load(Relaxed) {
            Ok(false)
        } else {
            shared.credentials.set_trust(trust)
        };
        if let Err(error) = trust
            .map_err(|e| e.to_string())
            .and_then(|_| shared.credentials.set_credential(credential).map_err(|e| e.to_string()))
        {
            // The identity was compared with ours, which is of this trust domain.
            warn!("the certificate cannot be used: {error}");
            return;
        }
        shared.registration.send_replace(Some(registration.into()));
        info!(identity = %self.identity, until, roots, "certificate issued");
        self.keep().await;
    }

    /// Writes what is held to `--identity-dir`.
    async fn keep(&self) {
        let shared = &self.shared;
        let registration = shared.registration.borrow().clone();
        let (Some(directory), Some(registration)) = (&self.identity_dir, registration) else { return };
        let (Some(credential), Some(trust)) = (shared.credentials.current(), shared.credentials.trust())
        else {
            return;
        };
        let directory = Arc::clone(directory);
        let path = directory.file();
        let save =
            move || directory.save(&credential, &registration, trust.roots().iter().map(AsRef::as_ref));
        let saved = spawn_blocking(save).await.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
        if let Err(error) = saved {
            warn!(path = %path.display(), "the certificate is not kept for a restart: {error}");
        }
    }

    fn lament(&self, failures: &Failures, held: Held, readiness: &Readiness) {
        match held {
            Held::Valid { until } => {
                warn!(
                    "the certificate was not renewed, the present one counts until {}: {failures}",
                    rfc3339(until)
                );
            }
            Held::Nothing | Held::NotYet { .. } | Held::Expired { .. } => {
                warn!("no certificate: {failures}");
                readiness.waiting(Gate::Certificate, &failures.to_string());
            }
        }
    }
}

// === impl Handle ===

impl Handle {
    pub fn credentials(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.credentials)
    }

    /// Something when there is a certificate, and what goes with it.
    pub fn registration(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.registration.subscribe()
    }

    /// From now on the roots that come with a certificate are not looked at: the stream knows better.
    pub fn trust_is_pushed(&self) {
        self.0.trust_is_pushed.store(true, Relaxed);
    }

    /// The stream has brought another trust bundle: the certificate may hang from a root that is about to go.
    pub fn on_trust_changed(&self) {
        self.0.trust_changed.notify_one();
    }
}

// === impl Shared ===

impl Shared {
    /// Goes on with what an earlier process had.
    fn resume(&self, kept: Kept) {
        let Kept { credential, registration, roots } = kept;
        let until = rfc3339(credential.validity().not_after);
        let identity = credential.identity().clone();
        let taken = TrustBundle::from_der(self.credentials.trust_domain(), &roots)
            .and_then(|trust| self.credentials.set_trust(trust))
            .map_err(|error| error.to_string())
            .and_then(|_| self.credentials.set_credential(credential).map_err(|error| error.to_string()));
        match taken {
            Ok(()) => {
                self.registration.send_replace(Some(registration.into()));
                info!(%identity, until, "going on with the certificate in --identity-dir");
            }
            Err(error) => warn!("the certificate in --identity-dir is ignored: {error}"),
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (whom, error)) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{whom}: {error}")?;
        }
        Ok(())
    }
}

fn load(directory: &IdentityDir) -> Option<Kept> {
    match directory.load(SystemTime::now()) {
        Ok(kept) => kept,
        Err(error) => {
            warn!(path = %directory.file().display(), "the certificate kept there is ignored: {error}");
            None
        }
    }
}

fn read_token(token: &Token) -> Result<(Arc<str>, JoinToken), BadToken> {
    let (text, path): (Arc<str>, _) = match token {
        Token::Text(text) => (Arc::clone(text), None),
        Token::File(path) => match fs::read_to_string(path) {
            Ok(text) => (text.trim().into(), Some(path.clone())),
            Err(error) => return Err(BadToken::File { path: path.clone(), error }),
        },
    };
    match JoinToken::read(&text) {
        Ok(token) => Ok((text, token)),
        Err(error) => Err(BadToken::Token { path, error }),
    }
}

fn flag(path: Option<&PathBuf>) -> String {
    path.map_or_else(|| "--token".to_owned(), |path| format!("--token-file {}", path.display()))
}

fn now() -> Now {
    Now { mono: Instant::now().into_std(), wall: SystemTime::now() }
}
