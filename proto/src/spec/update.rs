//! What travels on the configuration stream, validated.

use std::{
    fmt,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU64},
    sync::Arc,
};

use outrigger_certs::TrustDomain;
use serde::Serialize;

use super::{Backend, BackendKey, Destination, DestinationKey, Inbound, Key};

/// One atomic step of configuration: taken whole or refused whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub nonce: u64,
    pub resources: Vec<Resource>,
    pub removed: Vec<Key>,
}

/// A resource under its key. The variant of the body always agrees with the kind of the key.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    pub version: Arc<str>,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    Inbound(Arc<Inbound>),
    Trust(Arc<Trust>),
    Destination(DestinationKey, Arc<Destination>),
    Backend(BackendKey, Arc<Backend>),
}

/// Whom to believe: the roots of the trust domain. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    pub trust_domain: TrustDomain,
    /// DER; whether they are certificates is for the verifier that takes them to say.
    pub roots: Vec<Vec<u8>>,
}

/// First words of a proxy on the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version: String,
    pub registration: String,
    pub instance: String,
    pub addresses: Vec<IpAddr>,
    pub zone: Arc<str>,
    pub serves: Vec<Serve>,
    pub held: Vec<Held>,
    pub state: State,
    pub presence_only: bool,
}

/// An explicit mesh listener before a local program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Serve {
    pub mesh_port: NonZeroU16,
    pub application_port: NonZeroU16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub key: Key,
    pub version: Arc<str>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    pub ready: bool,
    pub draining: bool,
    /// Since when it is ready, in milliseconds since 1970 by the proxy's clock. `None`: it is not, or did not say.
    pub ready_since: Option<NonZeroU64>,
}

/// What is wrong with which field of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct FieldError {
    /// Path from the update, e.g. `resources[2].backend.endpoints[0].address`.
    pub field: String,
    pub reason: String,
}

impl Body {
    pub fn key(&self) -> Key {
        match self {
            Self::Inbound(_) => Key::Inbound,
            Self::Trust(_) => Key::Trust,
            Self::Destination(key, _) => Key::Destination(key.clone()),
            Self::Backend(key, _) => Key::Backend(key.clone()),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}
