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
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, SystemTime},
};

use outrigger_certs::{
    Authority, AuthorityError, Credentials, SignError, SpiffeId, TrustDomain, authority::Files, inspect,
};
use outrigger_proto::spec::Trust;
use serde::Serialize;

use crate::{hub::Hub, watch::Watch};

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
