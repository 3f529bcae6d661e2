//! Two TLS connections joined in memory, and sides that skip every check of ours.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
};

use outrigger_certs::{
    Credentials, HandshakeError,
    tls::{self, Peer},
};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{SupportedKxGroup, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    version::TLS13,
};

use crate::pki::Issued;

pub(crate) struct Pair {
    pub(crate) client: ClientConnection,
    pub(crate) server: ServerConnection,
    client_error: Option<Error>,
    server_error: Option<Error>,
}

impl Pair {
    pub(crate) fn new(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Self {
        Self {
            client: ClientConnection::new(Arc::clone(client), tls::server_name()).unwrap(),
            server: ServerConnection::new(Arc::clone(server)).unwrap(),
            client_error: None,
            server_error: None,
        }
    }

    /// Moves bytes, alerts included, until neither side has any more to say.
    pub(crate) fn shake(&mut self) {
        loop {
            let (mut to_server, mut to_client) = (Vec::new(), Vec::new());
            while self.client.wants_write() {
                self.client.write_tls(&mut to_server).unwrap();
            }
            while self.server.wants_write() {
                self.server.write_tls(&mut to_client).unwrap();
            }
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            let mut to_server = to_server.as_slice();
            while !to_server.is_empty() && self.server_error.is_none() {
                self.server.read_tls(&mut to_server).unwrap();
                self.server_error = self.server.process_new_packets().err();
            }
            let mut to_client = to_client.as_slice();
            while !to_client.is_empty() && self.client_error.is_none() {
                self.client.read_tls(&mut to_client).unwrap();
                self.client_error = self.client.process_new_packets().err();
            }
        }
    }

    pub(crate) fn client_peer(&mut self, credentials: &Credentials) -> Result<Peer, HandshakeError> {
        match &self.client_error {
            Some(error) => Err(HandshakeError::explain(error, Some(credentials))),
            None => tls::peer(&self.client),
        }
    }

    pub(crate) fn server_peer(&mut self, credentials: &Credentials) -> Result<Peer, HandshakeError> {
        self.server_peer_if_any(credentials)?.ok_or(HandshakeError::NoPeerCertificate)
    }

    pub(crate) fn server_peer_if_any(
        &mut self,
        credentials: &Credentials,
    ) -> Result<Option<Peer>, HandshakeError> {
        match &self.server_error {
            Some(error) => Err(HandshakeError::explain(error, Some(credentials))),
            None => tls::peer_if_any(&self.server),
        }
    }

    pub(crate) fn client_error(&self) -> Option<HandshakeError> {
        self.client_error.as_ref().map(|error| HandshakeError::explain(error, None))
    }

    pub(crate) fn server_error(&self) -> Option<HandshakeError> {
        self.server_error.as_ref().map(|error| HandshakeError::explain(error, None))
    }

    /// What arrives of something the client sends.
    pub(crate) fn delivered_to_server(&mut self, sent: &[u8]) -> Vec<u8> {
        let _ = self.client.writer().write_all(sent); // a client that was refused may not be able to
        self.shake();
        let mut delivered = Vec::new();
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = self.server.reader().read(&mut buffer) {
            delivered.extend_from_slice(&buffer[..read]);
        }
        delivered
    }
}

pub(crate) fn any_group() -> Vec<&'static dyn SupportedKxGroup> {
    aws_lc_rs::default_provider().kx_groups
}

/// A client that believes everyone and presents what it is given.
pub(crate) fn raw_client(
    issued: Option<Issued>,
    alpn: &[&[u8]],
    kx_groups: Vec<&'static dyn SupportedKxGroup>,
) -> Arc<ClientConfig> {
    let provider = rustls::crypto::CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match issued {
        Some(Issued { chain, key }) => builder.with_client_auth_cert(chain, private(&key)).unwrap(),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A server that asks everyone for a certificate, believes whatever comes, and presents what it is given.
pub(crate) fn raw_server(issued: Issued, alpn: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_client_cert_verifier(Arc::new(Credulous))
        .with_single_cert(issued.chain, private(&issued.key))
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

fn private(key: &rcgen::KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(key.serialized_der().to_vec().into())
}

#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
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
        Ok(HandshakeSignatureValid::assertion())
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
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl rustls::server::danger::ClientCertVerifier for Credulous {
    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<rustls::server::danger::ClientCertVerified, Error> {
        Ok(rustls::server::danger::ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// What a client that knows TLS 1.2 and no more begins with (RFC 5246, section 7.4.1.2).
pub(crate) fn client_hello_tls_1_2() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x17][..], // supported_groups: secp256r1
        &[0x00, 0x0b, 0, 2, 1, 0],                 // ec_point_formats: uncompressed
        &[0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03],     // signature_algorithms: ecdsa_secp256r1_sha256
        &[0x00, 0x10, 0, 8, 0, 6, 5, b'o', b'r', b'-', b'h', b'1'], // ALPN: or-h1
        &[0x00, 0x17, 0, 0],                       // extended_master_secret
    ]
    .concat();
    // Suites: ECDHE-ECDSA with AES-GCM; compression: null.
    let mut body = [&[0x03, 0x03][..], &[7; 32], &[0], &[0, 4, 0xc0, 0x2b, 0xc0, 0x2c], &[1, 0]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    record(1, &body)
}

/// What a server that knows TLS 1.2 and no more answers with (RFC 5246, section 7.4.1.3).
pub(crate) fn server_hello_tls_1_2() -> Vec<u8> {
    record(2, &[&[0x03, 0x03][..], &[9; 32], &[0], &[0xc0, 0x2b], &[0], &[0, 0]].concat())
}

fn record(handshake_type: u8, body: &[u8]) -> Vec<u8> {
    let length = |bytes: usize| (bytes as u16).to_be_bytes();
    let mut record = vec![0x16, 0x03, 0x03];
    record.extend(length(body.len() + 4));
    record.extend([handshake_type, 0]);
    record.extend(length(body.len()));
    record.extend(body);
    record
}
