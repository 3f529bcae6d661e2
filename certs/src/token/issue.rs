//! Making and verifying tokens and registrations: what only an authority can do.

use std::time::{Duration, SystemTime};

use aws_lc_rs::{
    rand,
    signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use super::{
    JoinToken, Kind, Labels, MAX_TOKEN_BYTES, Opened, Payload, Registration, TokenError, at, check_labels,
    open,
};
use crate::{Authority, SpiffeId, inspect::hex, verify};

impl JoinToken {
    /// A token for `identity` that any control plane of this authority honours for `life`.
    pub fn new(
        authority: &Authority,
        identity: SpiffeId,
        labels: Labels,
        life: Duration,
        single_use: bool,
        now: SystemTime,
    ) -> Result<Self, TokenError> {
        let unmakable = |what: &str| TokenError::Unmakable { kind: Kind::JoinToken, what: what.to_owned() };
        let mut id = [0; 16];
        rand::fill(&mut id).map_err(|_| unmakable("no random bytes"))?;
        let seconds = verify::unix(now).as_secs().saturating_add(life.as_secs());
        Ok(Self {
            identity,
            labels,
            expires: at(seconds).ok_or_else(|| unmakable("its life reaches past the year 9999"))?,
            id: hex(&id),
            single_use,
            root_sha256: authority.root_fingerprint(),
        })
    }

    pub fn sign(&self, authority: &Authority) -> Result<String, TokenError> {
        let mut payload = payload(&self.identity, &self.labels, self.expires);
        payload.id = Some(self.id.clone());
        payload.single_use = Some(self.single_use);
        payload.root_sha256 = Some(hex(&self.root_sha256));
        seal(&payload, Kind::JoinToken, authority)
    }

    /// Takes a token of this authority that is still good. Whether a single-use one was used is for the caller to know.
    pub fn verify(text: &str, authority: &Authority, now: SystemTime) -> Result<Self, TokenError> {
        Self::from_opened(verify_signed(text, Kind::JoinToken, authority, now)?)
    }
}

impl Registration {
    pub fn sign(&self, authority: &Authority) -> Result<String, TokenError> {
        seal(&payload(&self.identity, &self.labels, self.expires), Kind::Registration, authority)
    }

    /// Takes a registration of this authority. Whose it is must still be compared with the connection's certificate.
    pub fn verify(text: &str, authority: &Authority, now: SystemTime) -> Result<Self, TokenError> {
        let Opened { payload, identity, .. } = verify_signed(text, Kind::Registration, authority, now)?;
        let expires = at(payload.expires)
            .ok_or(TokenError::Malformed { kind: Kind::Registration, what: "its expiry is out of range" })?;
        Ok(Self { identity, labels: payload.labels, expires })
    }
}

fn payload(identity: &SpiffeId, labels: &Labels, expires: SystemTime) -> Payload {
    Payload {
        trust_domain: identity.trust_domain().to_owned(),
        namespace: identity.namespace().to_owned(),
        service_account: identity.service_account().to_owned(),
        labels: labels.clone(),
        expires: verify::unix(expires).as_secs(),
        id: None,
        single_use: None,
        root_sha256: None,
    }
}

fn seal(payload: &Payload, kind: Kind, authority: &Authority) -> Result<String, TokenError> {
    let unmakable = |what: String| TokenError::Unmakable { kind, what };
    check_labels(&payload.labels).map_err(|what| unmakable(what.to_owned()))?;
    if payload.trust_domain != authority.trust_domain().as_str() {
        return Err(unmakable(format!("its trust domain {} is not the authority's", payload.trust_domain)));
    }
    let json = serde_json::to_vec(payload).map_err(|e| unmakable(e.to_string()))?;
    let signed = BASE64_URL_SAFE_NO_PAD.encode(json);
    let signature = authority.sign_text(&message(kind, &signed)).map_err(|e| unmakable(e.to_string()))?;
    let text = format!("{}.{signed}.{}", kind.prefix(), BASE64_URL_SAFE_NO_PAD.encode(signature));
    if text.len() > MAX_TOKEN_BYTES {
        return Err(TokenError::TooLarge { kind, bytes: text.len() });
    }
    Ok(text)
}

fn verify_signed<'a>(
    text: &'a str,
    kind: Kind,
    authority: &Authority,
    now: SystemTime,
) -> Result<Opened<'a>, TokenError> {
    let opened = open(text, kind)?;
    // Before the signature, only so that a token of another mesh is told as that: it is refused either way.
    if opened.identity.trust_domain() != authority.trust_domain().as_str() {
        return Err(TokenError::TrustDomain {
            kind,
            expected: authority.trust_domain().to_string(),
            got: opened.identity.trust_domain().to_owned(),
        });
    }
    let message = message(kind, opened.signed);
    let signed_by = |key: &Vec<u8>| {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key).verify(&message, &opened.signature).is_ok()
    };
    if !authority.token_keys().iter().any(signed_by) {
        return Err(TokenError::Signature { kind });
    }
    match at(opened.payload.expires) {
        Some(at) if at <= now => Err(TokenError::Expired { kind, at }),
        Some(_) => Ok(opened),
        None => Err(TokenError::Malformed { kind, what: "its expiry is out of range" }),
    }
}

fn message(kind: Kind, signed: &str) -> Vec<u8> {
    [kind.domain().as_bytes(), b"\0", signed.as_bytes()].concat()
}
