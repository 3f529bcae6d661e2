//! Somebody outside the mesh who knocks at a workload's door: in plaintext, and with TLS but no certificate.
//!
//! The stranger accepts any certificate of the other side; being let in is what must not happen.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
    sync::Arc,
};

use anyhow::Result;
use outrigger_certs::alpn;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
};

use super::client::{self, Answer};

/// Written to an application's log if it ever gets there.
pub(crate) const PATH: &str = "/from-a-stranger";

/// How a knock ended.
pub(crate) enum Knock {
    /// The application itself answered.
    LetIn(Answer),
    /// Turned away, and how.
    Refused(String),
}

/// An HTTP request in plaintext, with a body.
pub(crate) fn in_plaintext(door: SocketAddr, path: &str, body: &str) -> Result<Knock> {
    let mut stream = client::connect(door)?;
    knock(client::exchange(&mut stream, &client::request(door, path, Some(body))))
}

/// The same inside TLS 1.3, as one proxy would speak to another, but without a certificate.
pub(crate) fn without_certificate(door: SocketAddr, path: &str, body: &str) -> Result<Knock> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![alpn::H1.to_vec()];
    let connection = ClientConnection::new(Arc::new(config), ServerName::IpAddress(door.ip().into()))?;
    let mut stream = StreamOwned::new(connection, client::connect(door)?);
    knock(client::exchange(&mut stream, &client::request(door, path, Some(body))))
}

fn knock(answer: io::Result<Answer>) -> Result<Knock> {
    match answer {
        Ok(answer) if answer.reason.is_some() => Ok(Knock::Refused(answer.to_string())),
        Ok(answer) => Ok(Knock::LetIn(answer)),
        // Not being able to tell is not a refusal.
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
            Err(error.into())
        }
        Err(error) => Ok(Knock::Refused(error.to_string())),
    }
}

#[derive(Debug)]
struct Gullible(Arc<CryptoProvider>);

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
