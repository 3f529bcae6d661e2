//! What this process is and whom it trusts, right now: the holder that renewals and trust pushes write into.
//!
//! TLS configurations are made once and keep an `Arc<Credentials>`; every handshake reads the current credential and
//! bundle from it, so a rotation needs no new configuration and closes no connection. The locks are held for the time of
//! an `Arc` clone, once per handshake and never on a request.
//!
//! A credential that has ended is not presented: handshakes fail on our side with [`OwnError`], which says so, instead of
//! on the peer's side with an alert.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use crate::{Credential, CredentialError, TrustBundle, TrustDomain, TrustError, rotation::Held, verify};

/// The live credential and trust bundle of one process.
pub struct Credentials {
    trust_domain: TrustDomain,
    clock: Arc<dyn TimeProvider>,
    own: RwLock<Option<Arc<Credential>>>,
    trust: RwLock<Option<Arc<TrustBundle>>>,
    generation: AtomicU64,
}

/// Why this process cannot take part in a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OwnError {
    #[error("this workload has no certificate yet")]
    NoCertificate,
    #[error("this workload's own certificate expired at {}", verify::rfc3339(*.at))]
    Expired { at: SystemTime },
    #[error("this workload's own certificate is not valid before {}: check the clock", verify::rfc3339(*.from))]
    NotYetValid { from: SystemTime },
    #[error("this workload has no trust bundle yet")]
    NoTrust,
}

impl Credentials {
    /// Empty: every handshake fails with [`OwnError`] until both were set.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self::with_clock(trust_domain, Arc::new(DefaultTimeProvider))
    }

    /// With a clock other than the system's, for tests of what time does to certificates.
    pub fn with_clock(trust_domain: TrustDomain, clock: Arc<dyn TimeProvider>) -> Self {
        Self {
            trust_domain,
            clock,
            own: RwLock::default(),
            trust: RwLock::default(),
            generation: AtomicU64::new(0),
        }
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Used from the next handshake on.
    pub fn set_credential(&self, credential: Credential) -> Result<(), CredentialError> {
        if credential.identity().trust_domain() != self.trust_domain.as_str() {
            return Err(CredentialError::TrustDomain {
                expected: self.trust_domain.to_string(),
                got: credential.identity().trust_domain().to_owned(),
            });
        }
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(credential));
        self.generation.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Used from the next handshake on. Says whether this changed anything.
    pub fn set_trust(&self, bundle: TrustBundle) -> Result<bool, TrustError> {
        if bundle.trust_domain() != &self.trust_domain {
            return Err(TrustError::TrustDomain {
                expected: self.trust_domain.to_string(),
                got: bundle.trust_domain().to_string(),
            });
        }
        let mut trust = self.trust.write().unwrap_or_else(PoisonError::into_inner);
        let changed = trust.as_deref() != Some(&bundle);
        if changed {
            *trust = Some(Arc::new(bundle));
            self.generation.fetch_add(1, Ordering::Release);
        }
        Ok(changed)
    }

    /// Changes with every new credential or bundle, so that connections made with older ones can be replaced.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The credential held, whether it still counts or not. See [`Credentials::usable`].
    pub fn current(&self) -> Option<Arc<Credential>> {
        self.own.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn trust(&self) -> Option<Arc<TrustBundle>> {
        self.trust.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The credential, if it may be presented at this moment.
    pub fn usable(&self) -> Result<Arc<Credential>, OwnError> {
        self.usable_at(self.now())
    }

    pub(crate) fn usable_at(&self, now: SystemTime) -> Result<Arc<Credential>, OwnError> {
        let credential = self.current().ok_or(OwnError::NoCertificate)?;
        match credential.validity().at(now) {
            Held::Valid { .. } => Ok(credential),
            Held::Expired { since } => Err(OwnError::Expired { at: since }),
            Held::NotYet { from } => Err(OwnError::NotYetValid { from }),
            Held::Nothing => Err(OwnError::NoCertificate),
        }
    }

    pub(crate) fn clock(&self) -> &Arc<dyn TimeProvider> {
        &self.clock
    }

    fn now(&self) -> SystemTime {
        // A clock that cannot be read counts as long past every certificate's end: refuse.
        self.clock.current_time().map_or_else(|| verify::wall(verify::END_OF_TIME), verify::wall)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("trust_domain", &self.trust_domain)
            .field("own", &self.current())
            .field("trust", &self.trust())
            .finish_non_exhaustive()
    }
}
