//! The certificate authority: read from its files, followed live, and used for our own certificate.
//!
//! ```text
//!   ca.pem, ca.key, trust.pem ──watch──▶ Authority ──┬─▶ Sign answers
//!                                                    ├─▶ own certificate and trust (Credentials)
//!                                                    └─▶ Trust pushed to every proxy (Hub)
//! ```
//!
//! Replacing a root without a failed request goes in three steps, each a change of files: trust.pem names
//! both roots; the new ca.key and ca.pem come in; trust.pem names the new one alone. Files that do not fit
//! together (a new certificate beside the old key, while they are copied) are refused as a whole, and the
//! authority in force stays.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use outrigger_certs::{
    Authority, AuthorityError, Credentials, SignError, SpiffeId, TrustDomain, authority::Files, inspect,
    verify,
};
use outrigger_proto::spec::Trust;
use serde::Serialize;

use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{
    events::{Events, Happened, Kind, Severity},
    hub::Hub,
    watch::Watch,
};

/// Namespace and service account of the control plane itself; no token may name them.
pub const OWN_NAMESPACE: &str = "outrigger";
pub const OWN_SERVICE_ACCOUNT: &str = "control-plane";

pub struct Ca {
    files: Files,
    trust_domain: TrustDomain,
    leaf_life: Duration,
    identity: SpiffeId,
    credentials: Arc<Credentials>,
    authority: RwLock<Arc<Authority>>,
    /// Why the files as they are now are not in force.
    error: Mutex<Option<String>>,
    /// Certificates of which it was told that they end soon.
    told: Mutex<BTreeSet<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    #[error("cannot issue our own certificate: {0}")]
    Own(#[from] SignError),
    #[error("{0}")]
    Other(String),
}

/// When a certificate of ours is valid, in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateTimes {
    /// `own`, `issuer` or `root`.
    pub role: &'static str,
    pub subject: String,
    pub sha256: String,
    pub not_before: i64,
    pub not_after: i64,
}

/// The authority as `/status` shows it.
#[derive(Debug, Serialize)]
pub struct CaReport {
    pub trust_domain: String,
    /// Who signs now, up to the root.
    pub issuer: Vec<inspect::Summary>,
    /// Everything that is trusted.
    pub roots: Vec<inspect::Summary>,
    /// What join tokens made now pin.
    pub root_sha256: String,
    pub leaf_life_seconds: u64,
    pub own_certificate: Option<inspect::Summary>,
    pub error: Option<String>,
}

/// Where the authority's files are.
pub enum Source {
    /// In `ca/` of the state directory; made there on the first start.
    Own(PathBuf),
    /// The user's.
    Given(Files),
}

impl Ca {
    pub fn load(
        source: Source,
        trust_domain: TrustDomain,
        leaf_life: Duration,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let (files, authority) = match source {
            Source::Own(dir) => (Files::in_dir(&dir), Authority::load_or_create(&dir, &trust_domain, now)?),
            Source::Given(files) => {
                let authority = Authority::load(&files, &trust_domain, now)?;
                (files, authority)
            }
        };
        let identity = SpiffeId::new(&trust_domain, OWN_NAMESPACE, OWN_SERVICE_ACCOUNT)
            .map_err(|error| CaError::Other(error.to_string()))?;
        let this = Self {
            files,
            leaf_life,
            identity,
            credentials: Arc::new(Credentials::new(trust_domain.clone())),
            trust_domain,
            authority: RwLock::new(Arc::new(authority)),
            error: Mutex::new(None),
            told: Mutex::default(),
        };
        this.credential_renewed(now)?;
        this.credentials.set_trust(this.authority().trust_bundle()).map_err(other)?;
        Ok(this)
    }

    pub fn authority(&self) -> Arc<Authority> {
        self.authority.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn leaf_life(&self) -> Duration {
        self.leaf_life
    }

    /// Whom a proxy finds at our address.
    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    /// Our own certificate and trust, for the TLS server.
    pub fn credentials(&self) -> &Arc<Credentials> {
        &self.credentials
    }

    pub fn trust(&self) -> Trust {
        Trust { trust_domain: self.trust_domain.clone(), roots: self.authority().roots_der().to_vec() }
    }

    /// Follows the files and keeps our own certificate fresh, for ever.
    pub async fn run(&self, hub: &Hub) {
        let mut watch = Watch::new(self.files.all().filter_map(Path::parent));
        // A clock that is set forward must not leave us with an expired certificate for long.
        let look = (self.leaf_life / 4).clamp(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            tokio::select! {
                () = watch.changed() => self.reload(hub),
                () = tokio::time::sleep(look) => self.renew_when_due(SystemTime::now()),
            }
            self.tell_of_ends(hub.events(), SystemTime::now());
        }
    }

    /// Takes the files as they are now, if they make an authority.
    pub fn reload(&self, hub: &Hub) {
        let now = SystemTime::now();
        let loaded = match Authority::load(&self.files, &self.trust_domain, now) {
            Ok(loaded) => loaded,
            Err(error) => {
                let text = error.to_string();
                let known = self.error.lock().unwrap_or_else(PoisonError::into_inner).replace(text.clone());
                if known.as_ref() != Some(&text) {
                    tracing::warn!(
                        error = text,
                        "the authority's files are not usable; the one in force stays"
                    );
                    let message = format!("not usable, the one in force stays: {text}");
                    hub.events().tell(Happened::new(
                        Kind::AuthorityRefused,
                        "the authority's files",
                        message,
                    ));
                }
                return;
            }
        };
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let before = self.authority();
        if before.chain() == loaded.chain() && before.roots_der() == loaded.roots_der() {
            return;
        }
        let issuer_changed = before.chain() != loaded.chain();
        let roots = loaded.roots_der().len();
        *self.authority.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        let trusted = self.credentials.set_trust(self.authority().trust_bundle()).map_err(other);
        if let Err(error) = trusted.and_then(|_| self.credential_renewed(now)) {
            tracing::error!(%error, "the changed authority cannot be used for our own certificate");
        }
        hub.set_trust(self.trust());
        tracing::info!(issuer_changed, roots, "the authority changed");
        let signs =
            if issuer_changed { "another certificate signs now" } else { "the same certificate signs" };
        let happened =
            Happened::new(Kind::RootChanged, "the authority", format!("{roots} roots trusted, {signs}"))
                .with("roots", self.authority().roots_der().iter().map(|der| sha256(der)).collect::<Vec<_>>())
                .with("issuer_changed", issuer_changed);
        hub.events().tell(happened);
    }

    /// An event for each certificate that has less than a quarter of its life left, once.
    fn tell_of_ends(&self, events: &Events, now: SystemTime) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        for certificate in self.certificates() {
            let CertificateTimes { role, subject, sha256, not_before, not_after } = certificate;
            let left = not_after.saturating_sub(now);
            if left >= not_after.saturating_sub(not_before) / 4 || !told.insert(sha256.clone()) {
                continue;
            }
            let hours = left / 3600;
            let message = match (role, left > 0) {
                (_, false) => format!("the {role} certificate has ended"),
                ("own", true) => format!("our own certificate ends in {left} s and could not be renewed"),
                (_, true) => format!(
                    "the {role} certificate ends in {hours} h: see docs/control-plane.md, Replacing the root"
                ),
            };
            let severity = if left > 0 { Severity::Warning } else { Severity::Error };
            let happened = Happened::new(Kind::CertificateNearEnd, subject, message)
                .severe(severity)
                .with("certificate", role)
                .with("sha256", sha256)
                .with("not_after", not_after);
            events.tell(happened);
        }
    }

    /// Each of them once: our own, what signs, and every root.
    pub fn certificates(&self) -> Vec<CertificateTimes> {
        let authority = self.authority();
        let own = self.credentials.current();
        let own = own.iter().filter_map(|own| own.chain().first()).map(|der| ("own", der.as_ref()));
        let issuers = authority.chain().iter().map(|der| ("issuer", der.as_ref()));
        let roots = authority.roots_der();
        // The chain ends with the root.
        let issuers = issuers.filter(|(_, der)| !roots.iter().any(|root| root.as_slice() == *der));
        let all = own.chain(issuers).chain(roots.iter().map(|der| ("root", der.as_slice())));
        let mut seen = BTreeSet::new();
        let all = all.filter_map(|(role, der)| {
            let (_, certificate) = X509Certificate::from_der(der).ok()?;
            let times = CertificateTimes {
                role,
                subject: certificate.subject().to_string(),
                sha256: sha256(der),
                not_before: certificate.validity().not_before.timestamp(),
                not_after: certificate.validity().not_after.timestamp(),
            };
            seen.insert(times.sha256.clone()).then_some(times)
        });
        all.collect()
    }

    fn renew_when_due(&self, now: SystemTime) {
        let due = self.credentials.current().is_none_or(|own| {
            let validity = own.validity();
            let life = validity.not_after.duration_since(validity.not_before).unwrap_or_default();
            validity.not_after.duration_since(now).is_ok_and(|left| left < life / 2)
                || validity.not_after <= now
                || validity.not_before > now
        });
        if due && let Err(error) = self.credential_renewed(now) {
            tracing::error!(%error, "our own certificate cannot be renewed");
        }
    }

    fn credential_renewed(&self, now: SystemTime) -> Result<(), CaError> {
        let credential = self.authority().serving_credential(&self.identity, self.leaf_life, now)?;
        self.credentials.set_credential(credential).map_err(other)
    }

    pub fn report(&self) -> CaReport {
        let authority = self.authority();
        let describe = |der: &[u8]| inspect::describe(der).ok();
        CaReport {
            trust_domain: self.trust_domain.to_string(),
            issuer: authority.chain().iter().filter_map(|der| describe(der)).collect(),
            roots: authority.roots_der().iter().filter_map(|der| describe(der)).collect(),
            root_sha256: inspect::hex(&authority.root_fingerprint()),
            leaf_life_seconds: self.leaf_life.as_secs(),
            own_certificate: self.credentials.current().and_then(|own| describe(own.chain().first()?)),
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn sha256(der: &[u8]) -> String {
    inspect::hex(&verify::fingerprint(der))
}

fn other(error: impl ToString) -> CaError {
    CaError::Other(error.to_string())
}

/// The paths of all files.
trait All {
    fn all(&self) -> impl Iterator<Item = &Path>;
}

impl All for Files {
    fn all(&self) -> impl Iterator<Item = &Path> {
        [Some(&self.chain), Some(&self.key), self.trust.as_ref()].into_iter().flatten().map(PathBuf::as_path)
    }
}
