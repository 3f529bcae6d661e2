//! From PEM texts to an [`Authority`]: every check that a user's own CA may fail, each with the file it is about.

use std::{fmt, time::SystemTime};

use rcgen::{Issuer, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use super::Authority;
use crate::{TrustDomain, credential::NotP256, key::PrivateKey, rotation::Held, verify};

/// What is wrong, and with which file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityError {
    pub file: String,
    pub cause: AuthorityCause,
}

/// Why these files are no authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorityCause {
    #[error("{0}")]
    Io(String),
    #[error("is missing, although {other} is there")]
    Missing { other: String },
    #[error("is not PEM: {0}")]
    Pem(String),
    #[error("has no certificate in it")]
    NoCertificate,
    #[error("has no private key in it")]
    NoKey,
    #[error("certificate {index} (\"{subject}\") {what}")]
    Certificate { index: usize, subject: String, what: CertificateFault },
    #[error(
        "ends with \"{subject}\", which is not self-signed: its root is neither here nor among the trusted roots"
    )]
    RootMissing { subject: String },
    #[error("{0}")]
    KeyType(#[from] NotP256),
    #[error("is not the key of the first certificate in {chain}")]
    OtherKey { chain: String },
    #[error("cannot be used: {0}")]
    Unusable(String),
}

/// What is wrong with one certificate of a file; counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    #[error("cannot be read: {0}")]
    Malformed(String),
    #[error("is no certificate authority (CA:FALSE)")]
    NotAuthority,
    #[error("may not sign certificates (key usage)")]
    KeyUsage,
    #[error("expired at {}", verify::rfc3339(*.at))]
    Expired { at: SystemTime },
    #[error("is not valid before {}", verify::rfc3339(*.from))]
    NotYetValid { from: SystemTime },
    #[error("is not signed by the certificate after it")]
    NotSignedByNext,
    #[error("is for trust domain {got}, not {expected}")]
    TrustDomain { expected: String, got: String },
}

/// A text and what to call it in an error.
#[derive(Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl Authority {
    /// From PEM texts: the issuing certificate first and the root last, its key, and further roots to trust (may be
    /// empty). A root that is not in the chain is looked for among those.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        chain: &str,
        key: &str,
        roots: &str,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::from_named(
            trust_domain,
            Named { name: "the CA certificate", text: chain },
            Named { name: "the CA key", text: key },
            Named { name: "the trusted roots", text: roots },
            now,
        )
    }

    pub(super) fn from_named(
        trust_domain: &TrustDomain,
        chain: Named<'_>,
        key: Named<'_>,
        roots: Named<'_>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let mut ders = certificates(chain)?;
        if ders.is_empty() {
            return Err(chain.error(AuthorityCause::NoCertificate));
        }
        let private = private_key(key)?;
        let trusted = certificates(roots)?;
        complete(&mut ders, &trusted, chain)?;

        let mut expires = None::<SystemTime>;
        for (index, der) in ders.iter().enumerate() {
            let end = check(der, index, ders.get(index + 1), chain, trust_domain, now)?;
            expires = Some(expires.map_or(end, |earliest| earliest.min(end)));
        }
        let (Some(expires), [issuing, ..]) = (expires, ders.as_slice()) else {
            return Err(chain.error(AuthorityCause::NoCertificate));
        };
        let parsed = parse(issuing, 0, chain)?;
        if parsed.public_key().subject_public_key.data.as_ref() != private.der_bytes() {
            return Err(key.error(AuthorityCause::OtherKey { chain: chain.name.to_owned() }));
        }
        let mut token_keys = vec![private.der_bytes().to_vec()];
        let mut all_roots = vec![ders[ders.len() - 1].to_vec()];
        for (index, der) in trusted.iter().enumerate() {
            if !all_roots.iter().any(|known| known == der.as_ref()) {
                check_root(der, index, roots)?;
                all_roots.push(der.to_vec());
            }
        }
        for (index, der) in all_roots.iter().enumerate() {
            let der = CertificateDer::from(der.as_slice());
            let point = parse(&der, index, roots)?.public_key().subject_public_key.data.to_vec();
            if !token_keys.contains(&point) {
                token_keys.push(point); // of another kind, it verifies nothing
            }
        }
        let unusable = |e: String| chain.error(AuthorityCause::Unusable(e));
        let issuer = Issuer::from_ca_cert_der(issuing, private).map_err(|e| unusable(e.to_string()))?;
        let authority = Self {
            trust_domain: trust_domain.clone(),
            issuer,
            chain: ders,
            roots: all_roots,
            expires,
            token_keys,
        };
        authority.probe(now).map_err(|e| unusable(e.to_string()))?;
        Ok(authority)
    }
}

/// Appends the root from the trusted ones if the chain stops before it.
fn complete(
    chain: &mut Vec<CertificateDer<'static>>,
    trusted: &[CertificateDer<'static>],
    named: Named<'_>,
) -> Result<(), AuthorityError> {
    let index = chain.len() - 1; // the caller refused an empty one
    let last = parse(&chain[index], index, named)?;
    if last.verify_signature(None).is_ok() {
        return Ok(());
    }
    let signed_last = |root: &&CertificateDer<'static>| {
        X509Certificate::from_der(root).is_ok_and(|(_, root)| {
            root.subject().as_raw() == last.issuer().as_raw()
                && last.verify_signature(Some(root.public_key())).is_ok()
        })
    };
    let root = trusted.iter().find(signed_last).cloned();
    let subject = last.subject().to_string();
    chain.push(root.ok_or_else(|| named.error(AuthorityCause::RootMissing { subject }))?);
    Ok(())
}

/// One certificate of the chain; returns its end.
fn check(
    der: &CertificateDer<'_>,
    index: usize,
    next: Option<&CertificateDer<'_>>,
    named: Named<'_>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<SystemTime, AuthorityError> {
    let certificate = parse(der, index, named)?;
    let fault = |what| {
        named.error(AuthorityCause::Certificate { index, subject: certificate.subject().to_string(), what })
    };
    let malformed = |e: x509_parser::error::X509Error| fault(CertificateFault::Malformed(e.to_string()));
    if !certificate.is_ca() {
        return Err(fault(CertificateFault::NotAuthority));
    }
    if certificate.key_usage().map_err(malformed)?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err(fault(CertificateFault::KeyUsage));
    }
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    for name in names.map_or(&[][..], |names| &names.value.general_names) {
        if let GeneralName::URI(uri) = name
            && let Some(got) = uri.strip_prefix("spiffe://")
            && got != trust_domain.as_str()
        {
            let (expected, got) = (trust_domain.to_string(), got.to_owned());
            return Err(fault(CertificateFault::TrustDomain { expected, got }));
        }
    }
    let (_, dates) =
        verify::read_authority(der).map_err(|e| fault(CertificateFault::Malformed(e.to_string())))?;
    match dates.at(now) {
        Held::Expired { since } => return Err(fault(CertificateFault::Expired { at: since })),
        Held::NotYet { from } => return Err(fault(CertificateFault::NotYetValid { from })),
        Held::Valid { .. } | Held::Nothing => {}
    }
    if let Some(next) = next {
        let next = parse(next, index + 1, named)?;
        if certificate.verify_signature(Some(next.public_key())).is_err() {
            return Err(fault(CertificateFault::NotSignedByNext));
        }
    }
    Ok(dates.not_after)
}

/// A further root: readable and an authority. An ended one is harmless, peers look at its dates.
fn check_root(der: &CertificateDer<'_>, index: usize, named: Named<'_>) -> Result<(), AuthorityError> {
    let certificate = parse(der, index, named)?;
    if certificate.is_ca() {
        return Ok(());
    }
    let (subject, what) = (certificate.subject().to_string(), CertificateFault::NotAuthority);
    Err(named.error(AuthorityCause::Certificate { index, subject, what }))
}

fn parse<'a>(
    der: &'a CertificateDer<'_>,
    index: usize,
    named: Named<'_>,
) -> Result<X509Certificate<'a>, AuthorityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| {
        let what = CertificateFault::Malformed(e.to_string());
        named.error(AuthorityCause::Certificate { index, subject: "?".to_owned(), what })
    })?;
    Ok(certificate)
}

fn certificates(pem: Named<'_>) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    CertificateDer::pem_slice_iter(pem.text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|e| pem.error(AuthorityCause::Pem(e.to_string())))
}

fn private_key(pem: Named<'_>) -> Result<PrivateKey, AuthorityError> {
    let key = PrivateKeyDer::from_pem_slice(pem.text.as_bytes()).map_err(|e| {
        pem.error(if matches!(e, rustls::pki_types::pem::Error::NoItemsFound) {
            AuthorityCause::NoKey
        } else {
            AuthorityCause::Pem(e.to_string())
        })
    })?;
    let key = Zeroizing::new(key);
    PrivateKey::from_der(key.secret_der()).map_err(|e| pem.error(e.into()))
}

impl Named<'_> {
    pub(super) fn error(&self, cause: AuthorityCause) -> AuthorityError {
        AuthorityError { file: self.name.to_owned(), cause }
    }
}

impl fmt::Display for AuthorityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file, self.cause)
    }
}

impl std::error::Error for AuthorityError {}
