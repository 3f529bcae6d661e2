//! The checks of [`verify`](super) in the form rustls calls: one verifier for clients, one for servers.
//!
//! Both read the trust bundle of the moment, so a configuration outlives any number of rotations. They keep no state.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::verify_tls13_signature,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};

use super::{Role, VerifyError, fingerprint, unix, verify_split, wall};
use crate::{Credentials, OwnError, SpiffeId, TrustBundle, TrustDomain, inspect::hex, tls::provider};

/// Verifies clients.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) credentials: Arc<Credentials>,
    pub(crate) mandatory: bool,
}

/// Verifies a server, and that it is the one that was dialled.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    pub(crate) trust: TrustFrom,
    pub(crate) expected: SpiffeId,
}

/// Whom a client trusts.
#[derive(Debug)]
pub(crate) enum TrustFrom {
    Live(Arc<Credentials>),
    /// Only the SHA-256 of the root is known: the server must send that root along.
    PinnedRoot([u8; 32]),
}

impl ServerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let refused = |e| refusal(e, now);
        let identity = match &self.trust {
            TrustFrom::Live(credentials) => {
                // Our own certificate is sent after this: one that has ended is told here, not by the peer's alert.
                credentials.usable_at(wall(now)).map_err(own)?;
                let trust = credentials.trust().ok_or(OwnError::NoTrust).map_err(own)?;
                verify_split(leaf, sent, &trust, Role::Server, now).map_err(refused)?
            }
            TrustFrom::PinnedRoot(pin) => {
                let trust = self.pinned(pin, sent).map_err(refused)?;
                verify_split(leaf, sent, &trust, Role::Server, now).map_err(refused)?
            }
        };
        if identity == self.expected {
            return Ok(());
        }
        Err(refused(VerifyError::Identity { expected: self.expected.clone(), got: identity }))
    }

    fn pinned(&self, pin: &[u8; 32], sent: &[CertificateDer<'_>]) -> Result<TrustBundle, VerifyError> {
        let root = sent.iter().find(|sent| fingerprint(sent) == *pin);
        let root = root.ok_or_else(|| VerifyError::PinnedRootMissing { pinned: hex(pin) })?;
        let trust_domain =
            TrustDomain::parse(self.expected.trust_domain()).expect("part of an identity, which is valid");
        TrustBundle::from_der(&trust_domain, &[root.to_vec()]).map_err(|e| VerifyError::Chain(e.to_string()))
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // no hints: they would tell strangers our authorities and grow every handshake
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let trust = self.credentials.trust().ok_or(OwnError::NoTrust).map_err(own)?;
        verify_split(leaf, intermediates, &trust, Role::Client, now).map_err(|e| refusal(e, now))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls_1_2())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(tls_1_2())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Cannot happen with our configurations, which know no other version than 1.3.
fn tls_1_2() -> Error {
    Error::PeerIncompatible(PeerIncompatible::SupportedVersionsExtensionRequired)
}

fn own(error: OwnError) -> Error {
    Error::Other(OtherError(Arc::new(error)))
}

/// As rustls carries it: where an alert says more than "certificate unknown" to the peer, it is chosen.
/// `tls::HandshakeError` turns it back.
fn refusal(error: VerifyError, now: UnixTime) -> Error {
    Error::InvalidCertificate(match error {
        VerifyError::Expired { at } => CertificateError::ExpiredContext { time: now, not_after: unix(at) },
        VerifyError::NotYetValid { from } => {
            CertificateError::NotValidYetContext { time: now, not_before: unix(from) }
        }
        VerifyError::UnknownAuthority => CertificateError::UnknownIssuer,
        error @ (VerifyError::NoCertificate
        | VerifyError::Malformed(_)
        | VerifyError::PinnedRootMissing { .. }
        | VerifyError::Chain(_)
        | VerifyError::IsAuthority
        | VerifyError::Usage(_)
        | VerifyError::NoUri
        | VerifyError::ManyUris { .. }
        | VerifyError::NotSpiffe { .. }
        | VerifyError::TrustDomain { .. }
        | VerifyError::Identity { .. }) => CertificateError::Other(OtherError(Arc::new(error))),
    })
}
