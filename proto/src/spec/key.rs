//! Names of resources: parsed from, and printed as, the text keys of the wire contract.

use std::{fmt, net::SocketAddr, num::NonZeroU16, str::FromStr, sync::Arc};

use serde::{Serialize, Serializer};

/// The name of one resource.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// The subscriber's own [`super::Inbound`].
    Inbound,
    Trust,
    Destination(DestinationKey),
    Backend(BackendKey),
}

/// How a caller named what it wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DestinationKey {
    /// The original destination of a captured connection. IPv4-mapped addresses are written as IPv4.
    Address(SocketAddr),
    Authority(Authority),
}

/// A host name in lower case without trailing dot, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Authority {
    host: Arc<str>,
    port: NonZeroU16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendKey {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: NonZeroU16,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("unknown kind of key {0:?}: want self, trust, address/…, authority/… or backend/…")]
    Kind(String),
    #[error("{0:?} is not IP:PORT with a port above 0")]
    Address(String),
    #[error("{0:?} is not HOST:PORT with a legal host name and a port above 0")]
    Authority(String),
    #[error("{0:?} is not NAMESPACE/NAME:PORT")]
    Backend(String),
}

// === impl Authority ===

impl Authority {
    /// Takes a host in any case, with or without a trailing dot.
    pub fn new(host: &str, port: NonZeroU16) -> Result<Self, KeyError> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        let labels = host.split('.').all(|label| !label.is_empty());
        if host.len() > 253 || !labels || !host.bytes().all(legal) {
            return Err(KeyError::Authority(format!("{host}:{port}")));
        }
        Ok(Self { host: host.into(), port })
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    pub fn port(&self) -> NonZeroU16 {
        self.port
    }
}

impl FromStr for Authority {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError::Authority(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        Self::new(host, port.parse().map_err(|_| wrong())?)
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

// === impl BackendKey ===

impl FromStr for BackendKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let parts = || {
            let (namespace, rest) = text.split_once('/')?;
            let (name, port) = rest.split_once(':')?;
            let legal = |part: &str| !part.is_empty() && part.len() <= 253 && !part.contains(['/', ':']);
            (legal(namespace) && legal(name)).then_some((namespace, name, port.parse().ok()?))
        };
        let (namespace, name, port) = parts().ok_or_else(|| KeyError::Backend(text.to_owned()))?;
        Ok(Self { namespace: namespace.into(), name: name.into(), port })
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.namespace, self.name, self.port)
    }
}

impl Serialize for BackendKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl DestinationKey ===

impl DestinationKey {
    /// The key of an address as a socket reports it: an IPv4 peer of a dual-stack listener becomes IPv4 again.
    pub fn address(address: SocketAddr) -> Self {
        Self::Address(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl fmt::Display for DestinationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "address/{address}"),
            Self::Authority(authority) => write!(f, "authority/{authority}"),
        }
    }
}

// === impl Key ===

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        match text.split_once('/') {
            None if text == "self" => Ok(Self::Inbound),
            None if text == "trust" => Ok(Self::Trust),
            Some(("address", rest)) => {
                let address: SocketAddr = rest.parse().map_err(|_| KeyError::Address(rest.to_owned()))?;
                if address.port() == 0 {
                    return Err(KeyError::Address(rest.to_owned()));
                }
                Ok(Self::Destination(DestinationKey::address(address)))
            }
            Some(("authority", rest)) => Ok(Self::Destination(DestinationKey::Authority(rest.parse()?))),
            Some(("backend", rest)) => Ok(Self::Backend(rest.parse()?)),
            None | Some(_) => Err(KeyError::Kind(text.chars().take(64).collect())),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inbound => f.write_str("self"),
            Self::Trust => f.write_str("trust"),
            Self::Destination(key) => key.fmt(f),
            Self::Backend(key) => write!(f, "backend/{key}"),
        }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_their_text() {
        for text in [
            "self",
            "trust",
            "address/10.96.0.10:80",
            "address/[fd00::1]:80",
            "authority/orders.shop:80",
            "backend/shop/orders:80",
        ] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn one_spelling_per_key() {
        for (text, canonical) in [
            ("authority/Orders.Shop.:80", "authority/orders.shop:80"),
            ("address/[::ffff:10.0.0.1]:80", "address/10.0.0.1:80"),
        ] {
            assert_eq!(text.parse::<Key>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn bad_keys_say_what_is_wrong() {
        for text in ["", "selfish", "other/x", "self/"] {
            assert!(matches!(text.parse::<Key>(), Err(KeyError::Kind(_))), "{text}");
        }
        for text in ["address/10.0.0.1", "address/10.0.0.1:0", "address/orders:80", "address/10.0.0.1:65536"]
        {
            assert!(matches!(text.parse::<Key>(), Err(KeyError::Address(_))), "{text}");
        }
        for text in [
            "authority/orders",
            "authority/orders:0",
            "authority/or ders:80",
            "authority/:80",
            "authority/a..:80",
            "authority/a..b:80",
        ] {
            assert!(matches!(text.parse::<Key>(), Err(KeyError::Authority(_))), "{text}");
        }
        for text in ["backend/orders:80", "backend/shop/orders", "backend/shop/:80", "backend/a/b/c:1"] {
            assert!(matches!(text.parse::<Key>(), Err(KeyError::Backend(_))), "{text}");
        }
    }
}
