//! One workload's certificate with its key: how it is asked for, and what it says.
//!
//! The key is made here ([`KeyRequest`]), leaves only as a CSR signed by it, and meets its certificate again in
//! [`KeyRequest::into_credential`]. It reaches a disk only through [`Credential::to_pem`], which exists for
//! `--identity-dir`. Whether anyone trusts the certificate is not asked here: that is `verify.rs`.

use std::{fmt, sync::Arc};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use zeroize::Zeroizing;

use crate::{SpiffeId, Validity, VerifyError, key::PrivateKey, verify};

pub use crate::key::{NoKey, NotP256};

/// A new key that waits for its certificate.
pub struct KeyRequest(PrivateKey);

/// A certificate chain (leaf first), its key, and what the leaf says.
pub struct Credential {
    certified: Arc<CertifiedKey>,
    key: PrivateKey,
    identity: SpiffeId,
    validity: Validity,
}

/// Why chain and key make no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    #[error("{0}")]
    Key(#[from] NoKey),
    #[error("the certificate request could not be made: {0}")]
    Request(String),
    #[error("there is no certificate")]
    NoChain,
    #[error("the certificate {0}")]
    Leaf(VerifyError),
    #[error("the certificate belongs to another key")]
    OtherKey,
    #[error("the PEM text cannot be read: {0}")]
    Pem(String),
    #[error("the key in the PEM text {0}")]
    PemKey(#[from] NotP256),
    #[error("the certificate is for trust domain {got}, not {expected}")]
    TrustDomain { expected: String, got: String },
}

// === impl KeyRequest ===

impl KeyRequest {
    pub fn generate() -> Result<Self, CredentialError> {
        Ok(Self(PrivateKey::generate()?))
    }

    /// PKCS #10, DER. Names nobody: the authority takes the identity from what it attested.
    pub fn csr_der(&self) -> Result<Vec<u8>, CredentialError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&self.0).map_err(|e| CredentialError::Request(e.to_string()))?;
        Ok(csr.der().to_vec())
    }

    /// Joins the key with the chain that was issued for it, leaf first, DER.
    pub fn into_credential(self, chain: Vec<Vec<u8>>) -> Result<Credential, CredentialError> {
        Credential::new(chain.into_iter().map(CertificateDer::from).collect(), self.0)
    }
}

// === impl Credential ===

impl Credential {
    fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKey) -> Result<Self, CredentialError> {
        let leaf = chain.first().ok_or(CredentialError::NoChain)?;
        let (identity, validity) = verify::read_leaf(leaf).map_err(CredentialError::Leaf)?;
        let document = key.pkcs8()?;
        let signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&PrivateKeyDer::Pkcs8(
            PrivatePkcs8KeyDer::from(document.as_ref()),
        ))
        .map_err(|_| NoKey)?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(|_| CredentialError::OtherKey)?;
        Ok(Self { certified: Arc::new(certified), key, identity, validity })
    }

    /// Reads what [`Credential::to_pem`] wrote: one private key and a chain, leaf first.
    pub fn from_pem(pem: &str) -> Result<Self, CredentialError> {
        let unreadable = |e: rustls::pki_types::pem::Error| CredentialError::Pem(e.to_string());
        let chain =
            CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(unreadable)?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(unreadable)?;
        let key = Zeroizing::new(key);
        Self::new(chain, PrivateKey::from_der(key.secret_der())?)
    }

    /// Key and chain as PEM. The only way a key leaves the process; the text wipes itself.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, CredentialError> {
        let mut pem = Zeroizing::new(String::with_capacity(8 * 1024)); // grown, it would leave copies of the key behind
        push_pem(&mut pem, "PRIVATE KEY", self.key.pkcs8()?.as_ref());
        for certificate in self.chain() {
            push_pem(&mut pem, "CERTIFICATE", certificate);
        }
        Ok(pem)
    }

    pub fn identity(&self) -> &SpiffeId {
        &self.identity
    }

    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certified: _, key: _, identity, validity } = self;
        f.debug_struct("Credential")
            .field("identity", identity)
            .field("validity", validity)
            .finish_non_exhaustive()
    }
}

pub(crate) fn push_pem(out: &mut String, label: &str, der: &[u8]) {
    let text = Zeroizing::new(BASE64_STANDARD.encode(der));
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64)); // base64 is ASCII
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str("-----END ");
    out.push_str(label);
    out.push_str("-----\n");
}
