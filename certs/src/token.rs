//! The two signed texts of the mesh: join tokens, and registrations.
//!
//! A *join token* lets a new machine in: it names one identity, its labels, and the fingerprint of the authority's root, so
//! that one string is all the machine needs. A *registration* goes with every certificate and carries what was attested
//! besides the identity, so that any control plane with the same authority knows a workload whose token it never saw.
//!
//! ```text
//!   or1.PAYLOAD.SIGNATURE     join token        PAYLOAD: JSON, SIGNATURE: ECDSA P-256 with SHA-256 (ASN.1 form) over
//!   orr1.PAYLOAD.SIGNATURE    registration      DOMAIN ‖ 0x00 ‖ "PAYLOAD" as it stands in the text; both base64url
//! ```
//!
//! The kind is in the prefix *and* in what is signed: neither text can be passed off as the other. The algorithm is fixed;
//! nothing in the text chooses it. Making and verifying both is feature `issue`. What a proxy may do is
//! [`JoinToken::read`]: learn from a token that its operator handed over whom to call and whom to trust. Replay of
//! single-use tokens is the control plane's to remember; there is no revocation list, tokens are short-lived.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{SpiffeError, SpiffeId, TrustDomain, inspect::hex, verify};

#[cfg(feature = "issue")]
mod issue;
#[cfg(test)]
#[cfg(feature = "issue")]
mod tests;

/// Longest text looked at, in bytes: a token travels in one header field.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// Most labels in a token, and the longest label key or value, in bytes.
pub const MAX_LABELS: usize = 64;
pub const MAX_LABEL_BYTES: usize = 253;

/// Attested key-value pairs of a workload, for endpoint selectors.
pub type Labels = BTreeMap<String, String>;

/// What a join token says. A secret until it has expired: its `Debug` leaves the id out.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    pub identity: SpiffeId,
    pub labels: Labels,
    /// Whole seconds count.
    pub expires: SystemTime,
    /// Random; what the use of a single-use token is remembered by.
    pub id: String,
    /// To be honoured for the first public key that comes with it only.
    pub single_use: bool,
    /// SHA-256 of the authority's root, DER.
    pub root_sha256: [u8; 32],
}

/// What was attested about the holder of a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub identity: SpiffeId,
    pub labels: Labels,
    /// Whole seconds count.
    pub expires: SystemTime,
}

/// Why a text is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the {kind} is {bytes} bytes long; {MAX_TOKEN_BYTES} are allowed")]
    TooLarge { kind: Kind, bytes: usize },
    #[error("this is a {got}, not a {expected}")]
    OtherKind { expected: Kind, got: Kind },
    #[error("the {kind} is malformed: {what}")]
    Malformed { kind: Kind, what: &'static str },
    #[error("the {kind} names no valid identity: it {reason}")]
    Identity { kind: Kind, reason: SpiffeError },
    #[error("the {kind} is for trust domain {got}, this is {expected}")]
    TrustDomain { kind: Kind, expected: String, got: String },
    #[error("the {kind} is not signed by this mesh's authority")]
    Signature { kind: Kind },
    #[error("the {kind} expired at {}", verify::rfc3339(*.at))]
    Expired { kind: Kind, at: SystemTime },
    #[error("the {kind} cannot be made: {what}")]
    Unmakable { kind: Kind, what: String },
}

/// Which of the two texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    JoinToken,
    Registration,
}

/// The signed JSON. Both kinds have the same fields but for the last three, which only a join token has.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    trust_domain: String,
    namespace: String,
    service_account: String,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    labels: Labels,
    /// Seconds since 1970.
    expires: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    single_use: Option<bool>,
    /// Hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root_sha256: Option<String>,
}

/// A text taken apart; nothing is verified yet.
struct Opened<'a> {
    payload: Payload,
    identity: SpiffeId,
    #[cfg_attr(not(feature = "issue"), expect(dead_code, reason = "only an authority can check signatures"))]
    signed: &'a str,
    #[cfg_attr(not(feature = "issue"), expect(dead_code, reason = "only an authority can check signatures"))]
    signature: Vec<u8>,
}

impl JoinToken {
    /// What the token says, *unverified*: for the machine it was given to, which can check nothing yet but the server it
    /// leads to. A control plane uses `JoinToken::verify`.
    pub fn read(text: &str) -> Result<Self, TokenError> {
        Self::from_opened(open(text, Kind::JoinToken)?)
    }

    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain::parse(self.identity.trust_domain()).expect("part of an identity, which is valid")
    }

    fn from_opened(opened: Opened<'_>) -> Result<Self, TokenError> {
        let malformed = |what| TokenError::Malformed { kind: Kind::JoinToken, what };
        let Opened { payload, identity, .. } = opened;
        let root = payload.root_sha256.ok_or_else(|| malformed("it pins no root"))?;
        Ok(Self {
            identity,
            labels: payload.labels,
            expires: at(payload.expires).ok_or_else(|| malformed("its expiry is out of range"))?,
            id: payload.id.filter(|id| !id.is_empty()).ok_or_else(|| malformed("it has no id"))?,
            single_use: payload.single_use.unwrap_or(false),
            root_sha256: unhex(&root).ok_or_else(|| malformed("its root fingerprint is not SHA-256"))?,
        })
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("identity", &self.identity)
            .field("labels", &self.labels)
            .field("expires", &self.expires)
            .field("single_use", &self.single_use)
            .field("root_sha256", &hex(&self.root_sha256))
            .finish_non_exhaustive()
    }
}

// === impl Kind ===

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::JoinToken => "or1",
            Self::Registration => "orr1",
        }
    }

    /// Keeps what the authority signs here from meaning anything elsewhere.
    #[cfg(feature = "issue")]
    fn domain(self) -> &'static str {
        match self {
            Self::JoinToken => "outrigger join token v1",
            Self::Registration => "outrigger registration v1",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::JoinToken => "join token",
            Self::Registration => "registration",
        })
    }
}

fn open(text: &str, kind: Kind) -> Result<Opened<'_>, TokenError> {
    if text.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLarge { kind, bytes: text.len() });
    }
    let malformed = |what| TokenError::Malformed { kind, what };
    let mut parts = text.trim().split('.'); // a file's last line feed comes along
    let (Some(prefix), Some(signed), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed("it is not of the form or1.PAYLOAD.SIGNATURE"));
    };
    for known in [Kind::JoinToken, Kind::Registration] {
        if prefix == known.prefix() && known != kind {
            return Err(TokenError::OtherKind { expected: kind, got: known });
        }
    }
    if prefix != kind.prefix() {
        return Err(malformed("its prefix is unknown: made by another version?"));
    }
    let decode = |part, what| BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed(what));
    let json = decode(signed, "its payload is not base64url")?;
    let signature = decode(signature, "its signature is not base64url")?;
    let payload: Payload =
        serde_json::from_slice(&json).map_err(|_| malformed("its payload is not the JSON expected"))?;
    check_labels(&payload.labels).map_err(malformed)?;
    let identity = TrustDomain::parse(&payload.trust_domain)
        .and_then(|trust_domain| SpiffeId::new(&trust_domain, &payload.namespace, &payload.service_account))
        .map_err(|reason| TokenError::Identity { kind, reason })?;
    Ok(Opened { payload, identity, signed, signature })
}

fn check_labels(labels: &Labels) -> Result<(), &'static str> {
    if labels.len() > MAX_LABELS {
        return Err("it has more than 64 labels");
    }
    if labels.iter().any(|(key, value)| key.is_empty() || key.len().max(value.len()) > MAX_LABEL_BYTES) {
        return Err("a label's key is empty, or key or value are longer than 253 bytes");
    }
    Ok(())
}

/// `None` past the year 9999, which nothing can print.
fn at(seconds: u64) -> Option<SystemTime> {
    (seconds <= verify::END_OF_TIME.as_secs())
        .then(|| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |d: u8| char::from(d).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8; // at most 255
    }
    Some(out)
}
