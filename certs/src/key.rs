//! A P-256 private key that lives in memory only.
//!
//! The key material is AWS-LC's, which wipes it when freed; the only copies made outside are the PKCS #8 documents that
//! [`PrivateKey::pkcs8`] returns, and those wipe themselves. There is no `Debug`, so a key cannot reach a log.

use aws_lc_rs::{
    pkcs8::Document,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};

pub(crate) struct PrivateKey(EcdsaKeyPair);

/// The key is not what this mesh uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a P-256 private key in PKCS #8 or SEC 1 form")]
pub struct NotP256;

impl PrivateKey {
    pub(crate) fn generate() -> Result<Self, NoKey> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map(Self).map_err(|_| NoKey)
    }

    /// Reads PKCS #8 or SEC 1 (`BEGIN EC PRIVATE KEY`).
    pub(crate) fn from_der(der: &[u8]) -> Result<Self, NotP256> {
        EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .map(Self)
            .map_err(|_| NotP256)
    }

    pub(crate) fn pkcs8(&self) -> Result<Document, NoKey> {
        self.0.to_pkcs8v1().map_err(|_| NoKey)
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, NoKey> {
        Ok(self.0.sign(&SystemRandom::new(), message).map_err(|_| NoKey)?.as_ref().to_vec())
    }
}

/// The cryptographic library failed at something that only fails when memory or entropy is exhausted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cryptographic library could not make or use a key")]
pub struct NoKey;

// === for rcgen ===

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
