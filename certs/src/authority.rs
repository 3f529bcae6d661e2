//! The certificate authority: turns an attested identity and a public key into a certificate.
//!
//! Either the mesh's own, a self-signed P-256 root made on first start, or one the user brings as PEM: the issuing
//! certificate first, its issuers after it, the root last. What is loaded is tried before it is used: a probe certificate
//! is signed and verified the way peers will, so an authority that cannot serve says so at start and names the file.
//!
//! From a CSR nothing is taken but the public key, and that only if the CSR is signed by it. Names, extensions and
//! attributes that a CSR asks for are not looked at; the identity is the caller's, who attested it.
//!
//! It decides nothing about who may have which identity, keeps no list of what it signed, and revokes nothing.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    rand,
    signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey},
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509CertificationRequest};

use crate::{
    Credential, CredentialError, KeyRequest, SpiffeId, TrustBundle, TrustDomain, VerifyError,
    key::{NoKey, PrivateKey},
    rotation::BACKDATED,
    verify::{self, Role},
};

mod files;
mod load;
#[cfg(test)]
mod tests;

pub use files::Files;
pub use load::{AuthorityCause, AuthorityError};

/// Life of a root that we make. A workload never outlives its issuer, so this is how long a forgotten mesh runs.
pub const ROOT_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// A root is dated further back than a leaf: it has to count on every machine, whatever its clock.
const ROOT_BACKDATED: Duration = Duration::from_secs(60 * 60);
/// Longest CSR looked at, in bytes. Ours have about 250.
pub const MAX_CSR_BYTES: usize = 16 * 1024;

/// A certificate authority that signs for one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    issuer: Issuer<'static, PrivateKey>,
    /// The issuing certificate first, the root last.
    chain: Vec<CertificateDer<'static>>,
    /// The current root first, then whatever else is trusted.
    roots: Vec<Vec<u8>>,
    /// The earliest end on the chain.
    expires: SystemTime,
    /// P-256 public keys whose tokens count: the issuer's and those of every trusted root. Uncompressed points.
    token_keys: Vec<Vec<u8>>,
}

/// Why a CSR is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    #[error("the CSR is {bytes} bytes long; {MAX_CSR_BYTES} are allowed")]
    TooLarge { bytes: usize },
    #[error("the CSR cannot be read: {0}")]
    Malformed(String),
    #[error("the CSR's key is not ECDSA P-256 with SHA-256, the only kind signed")]
    KeyType,
    #[error("the CSR is not signed by the key in it")]
    Signature,
    #[error("the identity is of trust domain {got}; this authority signs for {expected}")]
    TrustDomain { expected: String, got: String },
    #[error("the authority's own certificate expired at {}", verify::rfc3339(*.at))]
    IssuerExpired { at: SystemTime },
    #[error("signing failed: {0}")]
    Failed(String),
    #[error("{0}")]
    Credential(#[from] CredentialError),
}

impl Authority {
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Signs the key of a CSR for an identity that the caller attested. The chain, leaf first, without the root; the life
    /// is cut to the authority's own.
    pub fn sign(
        &self,
        csr_der: &[u8],
        identity: &SpiffeId,
        life: Duration,
        now: SystemTime,
    ) -> Result<Vec<Vec<u8>>, SignError> {
        if identity.trust_domain() != self.trust_domain.as_str() {
            return Err(SignError::TrustDomain {
                expected: self.trust_domain.to_string(),
                got: identity.trust_domain().to_owned(),
            });
        }
        if self.expires <= now {
            return Err(SignError::IssuerExpired { at: self.expires });
        }
        let key = csr_key(csr_der)?;
        let params = leaf_params(
            identity,
            now,
            now.checked_add(life).map_or(self.expires, |end| end.min(self.expires)),
        )?;
        let leaf = params.signed_by(&key, &self.issuer).map_err(failed)?;
        let intermediates = &self.chain[..self.chain.len() - 1]; // the chain holds at least the root
        Ok(std::iter::once(leaf.der()).chain(intermediates).map(|der| der.to_vec()).collect())
    }

    /// A credential for a server that callers know by the root's fingerprint alone: the root is part of its chain.
    pub fn serving_credential(
        &self,
        identity: &SpiffeId,
        life: Duration,
        now: SystemTime,
    ) -> Result<Credential, SignError> {
        let request = KeyRequest::generate()?;
        let mut chain = self.sign(&request.csr_der()?, identity, life, now)?;
        chain.push(self.root().to_vec());
        Ok(request.into_credential(chain)?)
    }

    /// Everything to be trusted, the current root first.
    pub fn roots_der(&self) -> &[Vec<u8>] {
        &self.roots
    }

    /// The issuing certificate first, the root last.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// SHA-256 of the root that signs now: what join tokens pin.
    pub fn root_fingerprint(&self) -> [u8; 32] {
        verify::fingerprint(self.root())
    }

    /// When the authority itself ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub fn trust_bundle(&self) -> TrustBundle {
        TrustBundle::from_der(&self.trust_domain, &self.roots)
            .expect("every root was checked when it was loaded")
    }

    pub(crate) fn sign_text(&self, text: &[u8]) -> Result<Vec<u8>, NoKey> {
        self.issuer.key().sign(text)
    }

    pub(crate) fn token_keys(&self) -> &[Vec<u8>] {
        &self.token_keys
    }

    fn root(&self) -> &CertificateDer<'static> {
        &self.chain[self.chain.len() - 1]
    }

    /// Signs for nobody and verifies as a peer would.
    fn probe(&self, now: SystemTime) -> Result<(), ProbeError> {
        let nobody = SpiffeId::new(&self.trust_domain, "outrigger", "probe").expect("both names are valid");
        let csr = KeyRequest::generate().and_then(|request| request.csr_der()).map_err(SignError::from)?;
        let chain = self.sign(&csr, &nobody, Duration::from_secs(60), now)?;
        let chain: Vec<_> = chain.into_iter().map(CertificateDer::from).collect();
        let trust = TrustBundle::from_der(&self.trust_domain, &[self.root().to_vec()])
            .map_err(|e| VerifyError::Chain(e.to_string()))?;
        for role in [Role::Client, Role::Server] {
            verify::verify(&chain, &trust, role, verify::unix(now))?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum ProbeError {
    #[error("{0}")]
    Sign(#[from] SignError),
    #[error("a certificate made with it {0}")]
    Verify(#[from] VerifyError),
}

/// The public key of a CSR that proves to hold the private one.
fn csr_key(csr_der: &[u8]) -> Result<rcgen::SubjectPublicKeyInfo, SignError> {
    const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
    const P256: &str = "1.2.840.10045.3.1.7";
    const ECDSA_SHA256: &str = "1.2.840.10045.4.3.2";
    if csr_der.len() > MAX_CSR_BYTES {
        return Err(SignError::TooLarge { bytes: csr_der.len() });
    }
    let (rest, csr) =
        X509CertificationRequest::from_der(csr_der).map_err(|e| SignError::Malformed(e.to_string()))?;
    if !rest.is_empty() {
        return Err(SignError::Malformed("bytes follow the request".to_owned()));
    }
    let spki = &csr.certification_request_info.subject_pki;
    let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p256 = spki.algorithm.algorithm.to_id_string() == EC_PUBLIC_KEY
        && curve.is_some_and(|curve| curve.to_id_string() == P256)
        && csr.signature_algorithm.algorithm.to_id_string() == ECDSA_SHA256;
    if !is_p256 {
        return Err(SignError::KeyType);
    }
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &spki.subject_public_key.data)
        .verify(csr.certification_request_info.raw, &csr.signature_value.data)
        .map_err(|_| SignError::Signature)?;
    rcgen::SubjectPublicKeyInfo::from_der(spki.raw).map_err(|e| SignError::Malformed(e.to_string()))
}

fn leaf_params(
    identity: &SpiffeId,
    now: SystemTime,
    end: SystemTime,
) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - BACKDATED).into();
    params.not_after = end.into();
    params.serial_number = Some(serial()?);
    // An empty subject makes the alternative name critical: whoever reads this certificate must read the SPIFFE id.
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().map_err(failed)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::Sha256;
    Ok(params)
}

fn root_params(trust_domain: &TrustDomain, now: SystemTime) -> Result<CertificateParams, SignError> {
    let mut params = CertificateParams::default();
    params.not_before = (now - ROOT_BACKDATED).into();
    params.not_after = (now + ROOT_LIFE).into();
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    // Unlike any other root's: verifiers find an issuer by its name.
    let mut unique = [0; 4];
    rand::fill(&mut unique).map_err(failed)?;
    let name = format!("Outrigger root {}", crate::inspect::hex(&unique));
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    // SPIFFE X.509-SVID, section 3.1: a signing certificate names its trust domain.
    let uri = format!("spiffe://{trust_domain}");
    params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(failed)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)); // it signs leaves itself
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::Sha256;
    Ok(params)
}

fn serial() -> Result<SerialNumber, SignError> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(failed)?;
    bytes[0] = bytes[0] & 0x7f | 0x40; // positive, and always 16 bytes long
    Ok(SerialNumber::from_slice(&bytes))
}

fn failed(error: impl ToString) -> SignError {
    SignError::Failed(error.to_string())
}
