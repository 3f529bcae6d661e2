//! TLS configurations: the only place that names protocol versions, cipher suites and key exchange groups.
//!
//! - TLS 1.3 and nothing else; X25519MLKEM768 before X25519 before P-256.
//! - Both sides present a certificate. The exception is the control plane's server ([`server_config_optional`]), whose
//!   callers may come with a join token instead, and the client that holds such a token ([`pinned_client_config`]).
//! - No session resumption and no tickets, on either side: a resumed session skips the verifier, so a withdrawn root or an
//!   ended certificate would go on working. No 0-RTT.
//! - ALPN is mandatory. rustls refuses a client that offers only other protocols, but lets one through that offers none at
//!   all; here the server has no certificate for such a client, and [`peer`] refuses a server that chose none.
//! - No server name is sent: peers are found by identity, not by name. Dial with [`server_name`].
//!
//! A configuration is made once per use and lives as long as the process; certificates and roots come from
//! [`Credentials`] at every handshake. Nothing here reads or writes a socket.

use std::{
    io,
    net::Ipv4Addr,
    sync::{Arc, OnceLock},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, CommonState, Error, PeerIncompatible, ServerConfig,
    client::{ResolvesClientCert, Resumption},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
            default_provider,
            kx_group::{SECP256R1, X25519, X25519MLKEM768},
        },
    },
    pki_types::ServerName,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    time_provider::{DefaultTimeProvider, TimeProvider},
    version::TLS13,
};

use crate::{
    Credentials, OwnError, SpiffeId, VerifyError, alpn,
    verify::{self, ClientVerifier, ServerVerifier, TrustFrom},
};

/// The other side of an established connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: SpiffeId,
    /// SHA-256 of its leaf, DER.
    pub leaf_sha256: [u8; 32],
}

/// Why there is no connection. [`HandshakeError::reason`] is the short, bounded form for metrics and access logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Own(#[from] OwnError),
    #[error("the peer's certificate {0}")]
    Peer(#[from] VerifyError),
    #[error("the peer presented no certificate")]
    NoPeerCertificate,
    #[error("no application protocol in common: the peer offers or chose none of ours")]
    NoProtocol,
    #[error("the peer does not speak TLS 1.3")]
    Version,
    #[error("the peer refused us with the alert {0}")]
    Refused(String),
    #[error("the peer's bytes are not a TLS handshake: {0}")]
    Garbage(String),
    #[error("the connection broke during the handshake: {0}")]
    Io(String),
    #[error("the handshake failed: {0}")]
    Failed(String),
}

/// A mesh listener: a client certificate is mandatory.
pub fn server_config(credentials: &Arc<Credentials>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    server(credentials, alpn, true)
}

/// The control plane: a client certificate is verified if there is one. See [`peer_if_any`].
pub fn server_config_optional(credentials: &Arc<Credentials>, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    server(credentials, alpn, false)
}

/// Dials `expected` and nobody else.
pub fn client_config(
    credentials: &Arc<Credentials>,
    expected: SpiffeId,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let trust = TrustFrom::Live(Arc::clone(credentials));
    let mut config = client_builder(Arc::clone(credentials.clock()))
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, expected }))
        .with_client_cert_resolver(Arc::new(Presented(Arc::clone(credentials))));
    harden_client(&mut config, alpn);
    Arc::new(config)
}

/// Dials the control plane with nothing but a join token in hand: no certificate of our own, and of its authority only
/// the fingerprint.
pub fn pinned_client_config(root_sha256: [u8; 32], expected: SpiffeId) -> Arc<ClientConfig> {
    let trust = TrustFrom::PinnedRoot(root_sha256);
    let mut config = client_builder(Arc::new(DefaultTimeProvider))
        .with_custom_certificate_verifier(Arc::new(ServerVerifier { trust, expected }))
        .with_no_client_auth();
    harden_client(&mut config, &[alpn::GRPC]);
    Arc::new(config)
}

/// What to hand to a TLS connector as the name of the server. Not sent and not looked at.
pub fn server_name() -> ServerName<'static> {
    ServerName::from(Ipv4Addr::UNSPECIFIED)
}

/// Who is on the other side. To be asked after every handshake, on both sides, before the first byte is used.
pub fn peer(connection: &CommonState) -> Result<Peer, HandshakeError> {
    peer_if_any(connection)?.ok_or(HandshakeError::NoPeerCertificate)
}

/// The same where a client certificate is optional: `None` for a client without one.
pub fn peer_if_any(connection: &CommonState) -> Result<Option<Peer>, HandshakeError> {
    if connection.alpn_protocol().is_none() {
        return Err(HandshakeError::NoProtocol);
    }
    let Some(chain) = connection.peer_certificates().filter(|chain| !chain.is_empty()) else {
        return Ok(None);
    };
    let identity = verify::peer_identity(chain)?;
    Ok(Some(Peer { identity, leaf_sha256: verify::fingerprint(&chain[0]) }))
}

pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                TLS13_AES_128_GCM_SHA256,
                TLS13_AES_256_GCM_SHA384,
                TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![X25519MLKEM768, X25519, SECP256R1],
            ..default_provider()
        })
    })
}

fn server(credentials: &Arc<Credentials>, alpn: &[&[u8]], mandatory: bool) -> Arc<ServerConfig> {
    let verifier = ClientVerifier { credentials: Arc::clone(credentials), mandatory };
    let presented = Presented(Arc::clone(credentials));
    let provider = Arc::clone(provider());
    let mut config = ServerConfig::builder_with_details(provider, Arc::clone(credentials.clock()))
        .with_protocol_versions(&[&TLS13])
        .expect("our provider has suites and groups for TLS 1.3")
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(presented));
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Arc::new(config)
}

fn client_builder(clock: Arc<dyn TimeProvider>) -> rustls::client::danger::DangerousClientConfigBuilder {
    ClientConfig::builder_with_details(Arc::clone(provider()), clock)
        .with_protocol_versions(&[&TLS13])
        .expect("our provider has suites and groups for TLS 1.3")
        .dangerous()
}

fn harden_client(config: &mut ClientConfig, alpn: &[&[u8]]) {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
}

/// Presents the credential of the moment, or none once it has ended.
#[derive(Debug)]
struct Presented(Arc<Credentials>);

impl ResolvesServerCert for Presented {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = hello.alpn().and_then(|_| self.0.usable().ok());
        usable.map(|credential| Arc::clone(credential.certified()))
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.usable().ok().map(|credential| Arc::clone(credential.certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

// === impl HandshakeError ===

impl HandshakeError {
    /// From what rustls says. `credentials` are the ones the configuration was made with, where there were any.
    pub fn explain(error: &Error, credentials: Option<&Credentials>) -> Self {
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "foreign and non-exhaustive; the rest is told in its own words"
        )]
        match error {
            Error::InvalidCertificate(error) => Self::Peer(peer_error(error)),
            Error::NoCertificatesPresented => Self::NoPeerCertificate,
            Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Self::NoProtocol
            }
            Error::AlertReceived(AlertDescription::ProtocolVersion)
            | Error::PeerIncompatible(
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled,
            ) => Self::Version,
            Error::AlertReceived(alert) => Self::Refused(format!("{alert:?}")),
            Error::InvalidMessage(what) => Self::Garbage(format!("{what:?}")),
            Error::Other(error) => match error.0.downcast_ref::<OwnError>() {
                Some(own) => Self::Own(*own),
                None => Self::Failed(error.to_string()),
            },
            // A resolver can only say "nothing to present": no credential, or no protocol offered.
            Error::General(what) if what == "no server certificate chain resolved" => {
                match credentials.map(Credentials::usable) {
                    Some(Err(own)) => Self::Own(own),
                    Some(Ok(_)) | None => Self::NoProtocol,
                }
            }
            other => Self::Failed(other.to_string()),
        }
    }

    /// From what tokio-rustls returns: rustls' error inside an IO error, or the socket's own.
    pub fn explain_io(error: &io::Error, credentials: Option<&Credentials>) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::explain(error, credentials),
            None => Self::Io(error.to_string()),
        }
    }

    pub fn reason(&self) -> &'static str {
        match self {
            Self::Own(OwnError::NoCertificate) => "own-no-certificate",
            Self::Own(OwnError::Expired { .. }) => "own-expired",
            Self::Own(OwnError::NotYetValid { .. }) => "own-not-yet-valid",
            Self::Own(OwnError::NoTrust) => "own-no-trust",
            Self::NoPeerCertificate | Self::Peer(VerifyError::NoCertificate) => "peer-no-certificate",
            Self::Peer(VerifyError::Malformed(_)) => "peer-malformed",
            Self::Peer(VerifyError::Expired { .. }) => "peer-expired",
            Self::Peer(VerifyError::NotYetValid { .. }) => "peer-not-yet-valid",
            Self::Peer(VerifyError::UnknownAuthority | VerifyError::PinnedRootMissing { .. }) => {
                "peer-unknown-authority"
            }
            Self::Peer(VerifyError::Chain(_)) => "peer-bad-chain",
            Self::Peer(VerifyError::IsAuthority) => "peer-is-authority",
            Self::Peer(VerifyError::Usage(_)) => "peer-wrong-usage",
            Self::Peer(VerifyError::NoUri) => "peer-no-identity",
            Self::Peer(VerifyError::ManyUris { .. }) => "peer-many-identities",
            Self::Peer(VerifyError::NotSpiffe { .. }) => "peer-not-spiffe",
            Self::Peer(VerifyError::TrustDomain { .. }) => "peer-trust-domain",
            Self::Peer(VerifyError::Identity { .. }) => "peer-wrong-identity",
            Self::NoProtocol => "no-protocol",
            Self::Version => "tls-version",
            Self::Refused(_) => "refused-by-peer",
            Self::Garbage(_) => "not-tls",
            Self::Io(_) => "connection-broke",
            Self::Failed(_) => "handshake-failed",
        }
    }
}

/// Undoes `verify::refusal`.
fn peer_error(error: &CertificateError) -> VerifyError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "foreign and non-exhaustive; the rest is told in its own words"
    )]
    match error {
        CertificateError::ExpiredContext { not_after, .. } => {
            VerifyError::Expired { at: verify::wall(*not_after) }
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            VerifyError::NotYetValid { from: verify::wall(*not_before) }
        }
        CertificateError::UnknownIssuer => VerifyError::UnknownAuthority,
        CertificateError::Other(other) => match other.0.downcast_ref::<VerifyError>() {
            Some(error) => error.clone(),
            None => VerifyError::Chain(other.to_string()),
        },
        other => VerifyError::Chain(other.to_string()),
    }
}
