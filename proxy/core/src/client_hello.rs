//! What a TLS client says about itself before anything is secret.

/// Result of looking at the first bytes of a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// Not complete: give the same prefix again, longer.
    NeedMore,
    Hello(ClientHello),
    Malformed(HelloError),
}

/// The parts of a ClientHello that decide where a connection goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// `server_name`, lower case; a legal host name.
    pub server_name: Option<Box<str>>,
    /// `application_layer_protocol_negotiation`, in the client's order.
    pub alpn: Vec<Box<[u8]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a TLS handshake record")]
    Record,
    #[error("the first message is not a ClientHello")]
    NotAClientHello,
    #[error("longer than {} bytes", crate::limits::MAX_CLIENT_HELLO_BYTES)]
    TooLong,
    #[error("lengths inside it disagree")]
    Lengths,
    #[error("server name is not a legal host name")]
    ServerName,
    #[error("an extension stands twice")]
    Duplicate,
}

impl ClientHello {
    /// The client offers one of the mesh's protocols (`or-h1`, `or-h2`, `or-tcp`): it is another proxy.
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|protocol| protocol.starts_with(b"or-"))
    }
}

/// Parses the prefix of a connection, from its first byte on.
pub fn parse(_prefix: &[u8]) -> Parsed {
    unimplemented!()
}
