//! What a TLS client says about itself before anything is secret: the name it wants and the protocols it offers.
//!
//! A bounded reader of exactly what routing needs. It takes hellos that arrive in pieces and in several records (a
//! post-quantum key share does not fit one packet), allocates only for what it returns, and refuses what servers
//! could read in two ways: a second server name, an extension that stands twice, lengths that disagree.
//!
//! It does not judge the rest of the hello (rustls does, or the application whose TLS is passed through), and nothing
//! here proves anything: a server name is a wish.

use std::borrow::Cow;

use crate::limits::MAX_CLIENT_HELLO_BYTES;

/// Records that one hello may be spread over. Real ones use one or two.
const MAX_RECORDS: usize = 32;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

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
    /// In lower case, without trailing dot.
    pub server_name: Option<Box<str>>,
    /// In the client's order of preference.
    pub alpn: Vec<Box<[u8]>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    #[error("not a TLS handshake record")]
    Record,
    #[error("the first message is not a ClientHello")]
    NotAClientHello,
    #[error("longer than {MAX_CLIENT_HELLO_BYTES} bytes or {MAX_RECORDS} records")]
    TooLong,
    #[error("lengths inside it disagree")]
    Lengths,
    #[error("server name is not one legal host name")]
    ServerName,
    #[error("an extension stands twice")]
    Duplicate,
}

impl ClientHello {
    /// Offers one of the mesh's protocols (`or-h1`, `or-h2`, `or-tcp`): it is another proxy of a mesh.
    pub fn is_mesh(&self) -> bool {
        self.alpn.iter().any(|protocol| protocol.starts_with(b"or-"))
    }
}

/// Parses the prefix of a connection, from its first byte on.
pub fn parse(prefix: &[u8]) -> Parsed {
    match message(prefix) {
        Ok(Some(message)) => match hello(&message) {
            Ok(hello) => Parsed::Hello(hello),
            Err(error) => Parsed::Malformed(error),
        },
        Ok(None) => Parsed::NeedMore,
        Err(error) => Parsed::Malformed(error),
    }
}

/// The body of the first handshake message, put together from its records; `None` while it is incomplete.
fn message(prefix: &[u8]) -> Result<Option<Cow<'_, [u8]>>, HelloError> {
    let mut rest = prefix;
    let mut gathered: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    for _ in 0..MAX_RECORDS {
        // Each byte is judged as soon as it is there: garbage is not waited for.
        if rest.first().is_some_and(|kind| *kind != HANDSHAKE) || rest.get(1).is_some_and(|major| *major != 3)
        {
            return Err(HelloError::Record);
        }
        let Some((&[_, _, _, high, low], body)) = rest.split_first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length == 0 || length > 1 << 14 {
            return Err(HelloError::Record);
        }
        let (fragment, after) = body.split_at(length.min(body.len()));
        if gathered.is_empty() {
            gathered = Cow::Borrowed(fragment);
        } else {
            gathered.to_mut().extend_from_slice(fragment);
        }
        if gathered.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
            return Err(HelloError::NotAClientHello);
        }
        if let Some((&[_, high, middle, low], _)) = gathered.split_first_chunk() {
            let wanted = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            if wanted > MAX_CLIENT_HELLO_BYTES {
                return Err(HelloError::TooLong);
            }
            if gathered.len() >= 4 + wanted {
                return Ok(Some(match gathered {
                    Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[4..4 + wanted]),
                    Cow::Owned(bytes) => Cow::Owned(bytes[4..4 + wanted].to_vec()),
                }));
            }
        }
        if fragment.len() < length {
            return Ok(None);
        }
        rest = after;
    }
    Err(HelloError::TooLong)
}

fn hello(message: &[u8]) -> Result<ClientHello, HelloError> {
    let mut reader = Reader(message);
    reader.take(2 + 32)?; // version, random
    reader.vector8()?; // session id
    reader.vector16()?; // cipher suites
    reader.vector8()?; // compression methods
    let mut found = ClientHello::default();
    if reader.0.is_empty() {
        return Ok(found); // before extensions were invented
    }
    let mut extensions = Reader(reader.vector16()?);
    if !reader.0.is_empty() {
        return Err(HelloError::Lengths);
    }
    let (mut seen_name, mut seen_alpn) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let body = Reader(extensions.vector16()?);
        let seen = match kind {
            SERVER_NAME => {
                found.server_name = server_name(body)?;
                &mut seen_name
            }
            ALPN => {
                found.alpn = alpn(body)?;
                &mut seen_alpn
            }
            _ => continue,
        };
        if std::mem::replace(seen, true) {
            return Err(HelloError::Duplicate);
        }
    }
    Ok(found)
}

/// RFC 6066 section 3: a list of names by kind, of which only host names (0) exist, at most one of a kind.
fn server_name(mut body: Reader<'_>) -> Result<Option<Box<str>>, HelloError> {
    let mut list = Reader(body.vector16()?);
    if !body.0.is_empty() {
        return Err(HelloError::Lengths);
    }
    let mut found = None;
    while !list.0.is_empty() {
        let kind = list.take(1)?;
        let name = list.vector16()?;
        if kind == [0] && found.replace(host_name(name)?).is_some() {
            return Err(HelloError::ServerName);
        }
    }
    Ok(found)
}

fn host_name(name: &[u8]) -> Result<Box<str>, HelloError> {
    let name = name.strip_suffix(b".").unwrap_or(name);
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let labels = name.split(|byte| *byte == b'.').all(|label| !label.is_empty());
    if name.len() > 253 || !labels || !name.iter().all(legal) {
        return Err(HelloError::ServerName);
    }
    Ok(name.iter().map(|byte| char::from(byte.to_ascii_lowercase())).collect())
}

fn alpn(mut body: Reader<'_>) -> Result<Vec<Box<[u8]>>, HelloError> {
    let mut list = Reader(body.vector16()?);
    let mut found = Vec::new();
    while !list.0.is_empty() {
        let protocol = list.vector8()?;
        if protocol.is_empty() {
            return Err(HelloError::Lengths);
        }
        found.push(protocol.into());
    }
    if body.0.is_empty() && !found.is_empty() { Ok(found) } else { Err(HelloError::Lengths) }
}

/// What is left to read. Every length is checked against it.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HelloError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(HelloError::Lengths)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, HelloError> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], HelloError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests;
