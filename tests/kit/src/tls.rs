//! Mesh clients and servers that skip every check of ours, and so can misbehave.
//!
//! They believe any certificate, present any or none, and offer any protocol. A test that wants a *well-behaved* peer takes
//! the configurations of `outrigger_certs::tls` instead.

use std::{
    io::{ErrorKind, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use outrigger_certs::{SpiffeId, verify::peer_identity};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    version::TLS13,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::{pki::Issued, server::Server};

/// For a single connect, read or write; what takes longer hangs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What came back, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub end: End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// In good order, or without a word: TCP's end of stream.
    Closed,
    /// TCP's reset.
    Reset,
    /// A TLS alert, by rustls' name for it, e.g. `CertificateRequired`.
    Refused(String),
    /// Nothing more within [`PATIENCE`].
    Silent,
    /// Any other failure.
    Failed(String),
}

/// A connection to a mesh listener.
pub struct MeshClient(StreamOwned<ClientConnection, TcpStream>);

// --- client ----------------------------------------------------------------------------------------------------------

/// Connects, shakes hands, sends `bytes` and reads to the end. In TLS 1.3 a client learns only then that its certificate
/// was refused; wherever the refusal comes, it is in the answer. An error is a connection that was never made.
pub fn attempt(
    address: SocketAddr,
    certificate: Option<&Issued>,
    alpn: &[&[u8]],
    bytes: &[u8],
) -> Result<Answer> {
    let tcp = dial(address)?;
    Ok(match MeshClient::over(tcp, certificate, alpn) {
        Ok(mut client) => client.exchange(bytes),
        Err(error) => Answer { bytes: Vec::new(), end: end_of(&error) },
    })
}

/// Begins as a client that speaks TLS 1.2 and no more, and reads to the end.
pub fn attempt_tls_1_2(address: SocketAddr) -> Result<Answer> {
    let mut tcp = dial(address)?;
    let mut answer = Answer { bytes: Vec::new(), end: End::Closed };
    if let Err(error) = tcp.write_all(&client_hello_tls_1_2()) {
        answer.end = end_of(&error);
        return Ok(answer);
    }
    read_to_end(&mut tcp, &mut answer);
    // A fatal alert in the clear: record type 21, version, length 2, level 2, description.
    if let [0x15, 3, _, 0, 2, 2, description, ..] = answer.bytes.as_slice() {
        let description = rustls::AlertDescription::from(*description);
        answer = Answer { bytes: Vec::new(), end: End::Refused(format!("{description:?}")) };
    }
    Ok(answer)
}

impl MeshClient {
    pub fn connect(address: SocketAddr, certificate: Option<&Issued>, alpn: &[&[u8]]) -> Result<Self> {
        Ok(Self::over(dial(address)?, certificate, alpn)?)
    }

    /// Shakes hands on a connection made elsewhere.
    pub fn over(mut tcp: TcpStream, certificate: Option<&Issued>, alpn: &[&[u8]]) -> std::io::Result<Self> {
        let config = client_config(certificate, alpn).map_err(std::io::Error::other)?;
        let mut connection = ClientConnection::new(config, server_name()).map_err(std::io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp)?;
        }
        Ok(Self(StreamOwned::new(connection, tcp)))
    }

    /// Who answered, as its certificate says.
    pub fn identity(&self) -> Result<SpiffeId> {
        Ok(peer_identity(self.0.conn.peer_certificates().unwrap_or_default())?)
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        self.0.conn.alpn_protocol()
    }

    /// Sends, and reads until the other side ends.
    pub fn exchange(&mut self, bytes: &[u8]) -> Answer {
        let mut answer = Answer { bytes: Vec::new(), end: End::Closed };
        // The refusal, if there was one, is read below: it says more than the failed write.
        drop(self.0.write_all(bytes).and_then(|()| self.0.flush()));
        read_to_end(&mut self.0, &mut answer);
        answer
    }

    /// For whatever `exchange` is too simple for.
    pub fn stream(&mut self) -> &mut StreamOwned<ClientConnection, TcpStream> {
        &mut self.0
    }
}

fn dial(address: SocketAddr) -> Result<TcpStream> {
    let tcp =
        TcpStream::connect_timeout(&address, PATIENCE).with_context(|| format!("connect to {address}"))?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    tcp.set_write_timeout(Some(PATIENCE))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

fn read_to_end(from: &mut impl std::io::Read, answer: &mut Answer) {
    let mut buffer = [0; 16 * 1024];
    answer.end = loop {
        match from.read(&mut buffer) {
            Ok(0) => break End::Closed,
            Ok(read) => answer.bytes.extend_from_slice(&buffer[..read]),
            Err(error) => break end_of(&error),
        }
    };
}

fn end_of(error: &std::io::Error) -> End {
    if let Some(Error::AlertReceived(alert)) = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>())
    {
        return End::Refused(format!("{alert:?}"));
    }
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "foreign and non-exhaustive; the rest is told in its own words"
    )]
    match error.kind() {
        ErrorKind::UnexpectedEof => End::Closed,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => End::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => End::Silent,
        _ => End::Failed(error.to_string()),
    }
}

// --- server ----------------------------------------------------------------------------------------------------------

/// A mesh listener that echoes, with whatever certificate it was given. Asks for a client certificate and takes any.
pub struct MeshServer {
    server: Server,
    seen: Arc<Mutex<Seen>>,
}

/// What reached a [`MeshServer`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Handshakes completed; in TLS 1.3 that needs the client's consent to our certificate.
    pub handshakes: u64,
    /// Handshakes that failed, each with its reason.
    pub refusals: Vec<String>,
    /// Identities that clients showed.
    pub clients: Vec<SpiffeId>,
    /// Bytes inside TLS.
    pub bytes: u64,
}

impl MeshServer {
    pub fn start(address: SocketAddr, certificate: &Issued, alpn: &[&[u8]]) -> Result<Self> {
        let acceptor = TlsAcceptor::from(server_config(certificate, alpn)?);
        let seen = Arc::new(Mutex::new(Seen::default()));
        let recorded = Arc::clone(&seen);
        let server = Server::start(address, move |tcp, _| {
            let (acceptor, seen) = (acceptor.clone(), Arc::clone(&recorded));
            async move {
                let note =
                    |edit: &dyn Fn(&mut Seen)| edit(&mut seen.lock().unwrap_or_else(PoisonError::into_inner));
                let mut stream = match acceptor.accept(tcp).await {
                    Ok(stream) => stream,
                    Err(error) => return note(&|seen| seen.refusals.push(error.to_string())),
                };
                let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
                let client = peer_identity(chain).ok();
                note(&|seen| {
                    seen.handshakes += 1;
                    seen.clients.extend(client.clone());
                });
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    note(&|seen| seen.bytes += read as u64);
                    if stream.write_all(&buffer[..read]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
                drop(stream.shutdown().await); // the client may be gone
            }
        })?;
        Ok(Self { server, seen })
    }

    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

// --- configurations --------------------------------------------------------------------------------------------------

/// Believes everyone; for async clients. Dial with [`server_name`].
pub fn client_config(certificate: Option<&Issued>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match certificate {
        Some(issued) => builder.with_client_auth_cert(issued.chain.clone(), issued.key.clone_key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Asks for a certificate and believes whatever comes.
pub fn server_config(certificate: &Issued, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(Credulous))
        .with_single_cert(certificate.chain.clone(), certificate.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

pub fn server_name() -> ServerName<'static> {
    outrigger_certs::tls::server_name()
}

/// What a client that knows TLS 1.2 and no more begins with (RFC 5246, section 7.4.1.2), offering `or-h1`.
pub fn client_hello_tls_1_2() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0, 4, 0, 2, 0x00, 0x17][..], // supported_groups: secp256r1
        &[0x00, 0x0b, 0, 2, 1, 0],                 // ec_point_formats: uncompressed
        &[0x00, 0x0d, 0, 4, 0, 2, 0x04, 0x03],     // signature_algorithms: ecdsa_secp256r1_sha256
        &[0x00, 0x10, 0, 8, 0, 6, 5, b'o', b'r', b'-', b'h', b'1'],
        &[0x00, 0x17, 0, 0], // extended_master_secret
    ]
    .concat();
    // Version, random, no session, ECDHE-ECDSA with AES-GCM, no compression.
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 4, 0xc0, 0x2b, 0xc0, 0x2c], &[1, 0]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let length = |bytes: usize| (bytes as u16).to_be_bytes();
    [&[0x16, 3, 1][..], &length(body.len() + 4), &[1, 0], &length(body.len()), &body].concat()
}

/// Believes everyone.
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
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Credulous {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

#[cfg(test)]
mod tests;
