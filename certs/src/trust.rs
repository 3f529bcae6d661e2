//! The roots a trust domain is verified against: a set, so that one root can be replaced by another while both count.
//!
//! A bundle is made whole or not at all, and never changes; `credentials.rs` swaps it for another. It fetches nothing
//! and knows no revocation lists: leaves live for a day.

use std::fmt;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};

use crate::{TrustDomain, Validity, rotation::Held, verify};

/// The roots of one trust domain.
pub struct TrustBundle {
    trust_domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    /// Of each root: webpki does not look at a trust anchor's dates.
    validity: Vec<Validity>,
}

/// Why a set of roots is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    #[error("the trust bundle has no root")]
    Empty,
    #[error("root {index} of the trust bundle cannot be read: {reason}")]
    Malformed { index: usize, reason: String },
    #[error("root {index} of the trust bundle is no certificate authority (CA:FALSE)")]
    NotAuthority { index: usize },
    #[error("the trust bundle is for trust domain {got}, not {expected}")]
    TrustDomain { expected: String, got: String },
}

impl TrustBundle {
    pub fn from_der(trust_domain: &TrustDomain, roots_der: &[Vec<u8>]) -> Result<Self, TrustError> {
        if roots_der.is_empty() {
            return Err(TrustError::Empty);
        }
        let mut roots: Vec<CertificateDer<'static>> = Vec::with_capacity(roots_der.len());
        let (mut anchors, mut validity) = (Vec::new(), Vec::new());
        for (index, der) in roots_der.iter().enumerate() {
            let malformed = |reason: String| TrustError::Malformed { index, reason };
            if roots.iter().any(|known| known.as_ref() == der) {
                continue;
            }
            let root = CertificateDer::from(der.clone());
            let (is_ca, valid) = verify::read_authority(&root).map_err(|e| malformed(e.to_string()))?;
            if !is_ca {
                return Err(TrustError::NotAuthority { index });
            }
            let anchor =
                webpki::anchor_from_trusted_cert(&root).map_err(|e| malformed(e.to_string()))?.to_owned();
            roots.push(root);
            anchors.push(anchor);
            validity.push(valid);
        }
        Ok(Self { trust_domain: trust_domain.clone(), roots, anchors, validity })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// Whether the root behind an anchor counts at this time.
    pub(crate) fn check_anchor(&self, anchor: &TrustAnchor<'_>, now: UnixTime) -> Result<(), webpki::Error> {
        let same = |own: &TrustAnchor<'_>| {
            own.subject == anchor.subject && own.subject_public_key_info == anchor.subject_public_key_info
        };
        let dates =
            self.anchors.iter().zip(&self.validity).filter(|(own, _)| same(own)).map(|(_, dates)| dates);
        let mut verdict = Err(webpki::Error::UnknownIssuer);
        // The same key may stand in the bundle twice with different dates: one that counts is enough.
        for dates in dates {
            match dates.at(verify::wall(now)) {
                Held::Expired { since } => {
                    verdict = Err(webpki::Error::CertExpired { time: now, not_after: verify::unix(since) });
                }
                Held::NotYet { from } => {
                    verdict =
                        Err(webpki::Error::CertNotValidYet { time: now, not_before: verify::unix(from) });
                }
                Held::Valid { .. } | Held::Nothing => return Ok(()),
            }
        }
        verdict
    }
}

/// Equal means: verifies the same peers, and the same root signs, which comes first. When another one signs, workloads have
/// to renew although the set is the same: the root that they hang from is about to go.
impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain
            && self.roots.len() == other.roots.len()
            && self.roots.first() == other.roots.first()
            && self.roots.iter().all(|root| other.roots.contains(root))
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle")
            .field("trust_domain", &self.trust_domain)
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}
