//! The one place where what travels ([`crate::pb`]) meets what is meant ([`crate::spec`]).
//!
//! | from the wire             | to the wire             |
//! |---------------------------|-------------------------|
//! | [`update`]                | [`response`], [`resource`] |
//! | [`hello`], [`state`]      | [`hello_to_pb`], [`state_to_pb`] |
//! | [`keys`]                  | `Key::to_string`        |
//! | [`observations`]          | [`observations_to_pb`]  |
//! | [`guidance`]              | [`guidance_to_pb`]      |
//! | [`report`]                | [`report_to_pb`]        |
//!
//! From the wire everything is checked, and *all* that is wrong with an update is told at once, each error under the
//! path of its field. To the wire nothing can fail. Spec -> pb -> spec is the identity (`tests.rs` has it as a property).
//!
//! It judges each resource by itself. Whether the backends that a destination names are there, whether a regular
//! expression compiles, and whether a root is a certificate, is found out by those who use them.

mod backend;
mod bulkhead;
mod destination;
mod durations;
mod fields;
mod hello;
mod inbound;
mod observe;
mod rate_limit;
mod report;
mod status;
#[cfg(test)]
mod tests;
mod traffic;

use std::{collections::HashSet, fmt, net::SocketAddr, sync::Arc};

use self::fields::Fields;
use crate::{
    limits::{MAX_RESOURCES, MAX_ROOTS, MAX_VERSION_BYTES},
    pb,
    spec::{BackendKey, Body, FieldError, Key, Resource, Trust, Update},
};

pub use hello::{hello, hello_to_pb, keys, state, state_to_pb};
pub use observe::{guidance, guidance_to_pb, observations, observations_to_pb};
pub use report::{report, report_to_pb};

/// Everything that is wrong with a message, in the order of its fields. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertError(pub Vec<FieldError>);

impl fmt::Display for ConvertError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConvertError {}

/// The version of a resource: the first 128 bits of the SHA-256 of its encoded body, in hex.
///
/// Equal content gives the same text in every process and on every machine, because prost writes fields in the order
/// of their numbers and the contract has no maps. It is a cryptographic hash because a proxy keeps what it has when the
/// version is the same: nobody who may write one piece of configuration should be able to make a change to it invisible.
pub fn version_of(body: &pb::resource::Body) -> String {
    let mut bytes = Vec::with_capacity(body.encoded_len());
    body.encode(&mut bytes);
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    digest.as_ref()[..16].iter().fold(String::with_capacity(32), |mut text, byte| {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
        }
        text
    })
}

// === from the wire ===

/// Checks an update as a whole: all of it or, with every reason, nothing.
pub fn update(from: pb::ConfigureResponse) -> Result<Update, ConvertError> {
    let mut fields = Fields::new();
    let mut seen = HashSet::new();

    let resources = fields.list("resources", from.resources, MAX_RESOURCES, |fields, from| {
        let body = resource_from_pb(fields, from)?;
        if !seen.insert(body.body.key()) {
            fields.refuse_at("key", format!("{} is in this update twice", body.body.key()));
        }
        Some(body)
    });
    let removed = fields.list("removed", from.removed, MAX_RESOURCES, |fields, text| {
        let key = fields.parse::<Key>(&text)?;
        match key {
            // Without them the proxy would fall back to defaults that are wider than what was configured.
            Key::Inbound | Key::Trust => fields.refuse(format!("{key} can be replaced but not removed")),
            Key::Destination(_) | Key::Backend(_) if !seen.insert(key.clone()) => {
                fields.refuse(format!("{key} is in this update twice"));
            }
            Key::Destination(_) | Key::Backend(_) => {}
        }
        Some(key)
    });
    fields.finish(Update { nonce: from.nonce, resources, removed })
}

fn resource_from_pb(fields: &mut Fields, from: pb::Resource) -> Option<Resource> {
    use pb::resource::Body as Pb;

    let key = fields.at("key", |fields| fields.parse::<Key>(&from.key));
    let version = fields.at("version", |fields| {
        if from.version.is_empty() || from.version.len() > MAX_VERSION_BYTES {
            fields.refuse(format!("a version has 1 to {MAX_VERSION_BYTES} characters"));
        }
        Arc::<str>::from(from.version)
    });
    let Some(body) = from.body else {
        fields.refuse_at("body", "is missing, or of a kind this build does not know");
        return None;
    };
    // The body is looked at even if the key is wrong: all errors at once.
    let kind = match &body {
        Pb::Inbound(_) => "inbound",
        Pb::Trust(_) => "trust",
        Pb::Destination(_) => "destination",
        Pb::Backend(_) => "backend",
    };
    let agrees = matches!(
        (&key, &body),
        (None, _)
            | (Some(Key::Inbound), Pb::Inbound(_))
            | (Some(Key::Trust), Pb::Trust(_))
            | (Some(Key::Destination(_)), Pb::Destination(_))
            | (Some(Key::Backend(_)), Pb::Backend(_))
    );
    if let (false, Some(key)) = (agrees, &key) {
        fields
            .at("body", |fields| fields.refuse(format!("key {key} does not name a resource of kind {kind}")));
    }
    let body = match body {
        Pb::Inbound(body) => {
            let inbound = fields.at("inbound", |fields| inbound::from_pb(fields, body));
            (key? == Key::Inbound).then(|| Body::Inbound(Arc::new(inbound)))?
        }
        Pb::Trust(body) => {
            let trust = fields.at("trust", |fields| trust_from_pb(fields, body))?;
            (key? == Key::Trust).then(|| Body::Trust(Arc::new(trust)))?
        }
        Pb::Destination(body) => {
            let destination = fields.at("destination", |fields| destination::from_pb(fields, body))?;
            let Key::Destination(key) = key? else { return None };
            Body::Destination(key, Arc::new(destination))
        }
        Pb::Backend(body) => {
            let backend = fields.at("backend", |fields| backend::from_pb(fields, body));
            let Key::Backend(key) = key? else { return None };
            if backend.traffic.backup() == Some(&key) {
                fields.refuse_at("backend.traffic.fallback.backend", "is this backend itself");
            }
            Body::Backend(key, Arc::new(backend))
        }
    };
    Some(Resource { version, body })
}

fn trust_from_pb(fields: &mut Fields, from: pb::Trust) -> Option<Trust> {
    let trust_domain = fields.at("trust_domain", |fields| fields.parse(&from.trust_domain));
    if from.roots_der.is_empty() {
        fields.refuse_at("roots_der", "a trust bundle without roots would trust nobody");
    }
    let roots = fields.list("roots_der", from.roots_der, MAX_ROOTS, |fields, root| {
        fields.bytes(&root);
        Some(root)
    });
    Some(Trust { trust_domain: trust_domain?, roots })
}

fn backend_key(fields: &mut Fields, text: &str) -> Option<BackendKey> {
    match fields.parse::<Key>(text)? {
        Key::Backend(key) => Some(key),
        other @ (Key::Inbound | Key::Trust | Key::Destination(_)) => {
            fields.refuse(format!("{other} is not the key of a backend"));
            None
        }
    }
}

/// Where a connection can be made to.
fn dialled(fields: &mut Fields, text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = fields.parse(text)?;
    let ip = address.ip().to_canonical();
    if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
        fields.refuse(format!("{address} cannot be dialled"));
        return None;
    }
    Some(SocketAddr::new(ip, address.port()))
}

fn path_text(fields: &mut Fields, path: &str) -> Arc<str> {
    if !path.starts_with('/') {
        fields.refuse("does not begin with /");
    } else if path.bytes().any(|b| b <= b' ' || b == 0x7f || matches!(b, b'?' | b'#')) {
        fields.refuse("has a character that no path has: a space, a control character, ? or #");
    }
    fields.text(path)
}

// === to the wire ===

/// A resource as it is sent, with the version that its content gives it.
pub fn resource(body: &Body) -> pb::Resource {
    let key = body.key().to_string();
    let body = body_to_pb(body);
    pb::Resource { key, version: version_of(&body), body: Some(body) }
}

pub fn body_to_pb(body: &Body) -> pb::resource::Body {
    match body {
        Body::Inbound(body) => pb::resource::Body::Inbound(inbound::to_pb(body)),
        Body::Trust(body) => pb::resource::Body::Trust(pb::Trust {
            trust_domain: body.trust_domain.to_string(),
            roots_der: body.roots.clone(),
        }),
        Body::Destination(_, body) => pb::resource::Body::Destination(destination::to_pb(body)),
        Body::Backend(_, body) => pb::resource::Body::Backend(backend::to_pb(body)),
    }
}

/// An update with the versions it came with.
pub fn response(from: &Update) -> pb::ConfigureResponse {
    let resources = from.resources.iter().map(|resource| pb::Resource {
        key: resource.body.key().to_string(),
        version: resource.version.to_string(),
        body: Some(body_to_pb(&resource.body)),
    });
    pb::ConfigureResponse {
        nonce: from.nonce,
        resources: resources.collect(),
        removed: from.removed.iter().map(Key::to_string).collect(),
    }
}
