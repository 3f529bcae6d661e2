//! What a proxy says: its greeting, its state, the keys it asks for.

use std::{collections::HashSet, net::IpAddr, num::NonZeroU64, sync::Arc};

use super::{ConvertError, fields::Fields};
use crate::{
    limits::{MAX_ADDRESSES, MAX_PORTS, MAX_RESOURCES, MAX_VERSION_BYTES},
    pb,
    spec::{Held, Hello, Key, Serve, State},
};

pub fn hello(from: pb::Hello) -> Result<Hello, ConvertError> {
    let mut fields = Fields::new();
    let version = fields.at("version", |fields| fields.label(&from.version).to_string());
    let registration = fields.at("registration", |fields| fields.label(&from.registration).to_string());
    let instance = fields.at("instance", |fields| {
        if from.instance.len() > MAX_VERSION_BYTES {
            fields
                .refuse(format!("has {} bytes, at most {MAX_VERSION_BYTES} are taken", from.instance.len()));
        }
        fields.label(&from.instance).to_string()
    });
    let mut seen = HashSet::new();
    let addresses = fields.list("addresses", from.addresses, MAX_ADDRESSES, |fields, text| {
        let address = fields.parse::<IpAddr>(&text)?.to_canonical();
        if address.is_unspecified() || address.is_multicast() {
            fields.refuse(format!("{address} is not the address of a workload"));
        } else if !seen.insert(address) {
            fields.refuse(format!("{address} is listed twice"));
        }
        Some(address)
    });
    let zone = fields.at("zone", |fields| fields.text(&from.zone));
    let serves = fields.list("serves", from.serves, MAX_PORTS, |fields, from| {
        let mesh_port = fields.at("mesh_port", |fields| fields.port(from.mesh_port));
        let application_port = fields.at("application_port", |fields| fields.port(from.application_port));
        Some(Serve { mesh_port: mesh_port?, application_port: application_port? })
    });
    let held = fields.list("held", from.held, MAX_RESOURCES, |fields, from| {
        let key = fields.at("key", |fields| fields.parse(&from.key));
        let version: Arc<str> = fields.at("version", |fields| fields.label(&from.version));
        Some(Held { key: key?, version })
    });
    // A greeting without a state is that of a proxy which is not ready.
    let state = from.state.map(state).unwrap_or_default();
    let presence_only = from.presence_only;
    fields.finish(Hello {
        version,
        registration,
        instance,
        addresses,
        zone,
        serves,
        held,
        state,
        presence_only,
    })
}

pub fn state(from: pb::State) -> State {
    State {
        ready: from.ready,
        draining: from.draining,
        ready_since: NonZeroU64::new(from.ready_since_ms).filter(|_| from.ready),
    }
}

/// The keys of a `Subscribe` or `Unsubscribe`.
///
/// A proxy asks for `self`, `trust` and destinations. Backends come with the destinations that name them; asking for
/// one is legal and changes nothing.
pub fn keys(from: Vec<String>) -> Result<Vec<Key>, ConvertError> {
    let mut fields = Fields::new();
    let keys = fields.list("keys", from, MAX_RESOURCES, |fields, text| fields.parse(&text));
    fields.finish(keys)
}

pub fn hello_to_pb(from: &Hello) -> pb::Hello {
    let serves = from.serves.iter().map(|serve| pb::Serve {
        mesh_port: serve.mesh_port.get().into(),
        application_port: serve.application_port.get().into(),
    });
    let held = from
        .held
        .iter()
        .map(|held| pb::Held { key: held.key.to_string(), version: held.version.to_string() });
    pb::Hello {
        version: from.version.clone(),
        registration: from.registration.clone(),
        instance: from.instance.clone(),
        addresses: from.addresses.iter().map(ToString::to_string).collect(),
        zone: from.zone.to_string(),
        serves: serves.collect(),
        held: held.collect(),
        state: Some(state_to_pb(from.state)),
        presence_only: from.presence_only,
    }
}

pub fn state_to_pb(from: State) -> pb::State {
    pb::State {
        ready: from.ready,
        draining: from.draining,
        ready_since_ms: from.ready_since.map_or(0, NonZeroU64::get),
    }
}
