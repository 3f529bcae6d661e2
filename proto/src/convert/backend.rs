//! Backends and endpoints.

use std::{
    collections::HashSet,
    num::{NonZeroU32, NonZeroU64},
    sync::Arc,
};

use super::{dialled, fields::Fields, traffic};
use crate::{
    limits::MAX_ENDPOINTS,
    pb,
    spec::{Backend, Endpoint},
};

pub(super) fn from_pb(fields: &mut Fields, from: pb::Backend) -> Backend {
    let mut seen = HashSet::new();
    let mut endpoints: Vec<Endpoint> =
        fields.list("endpoints", from.endpoints, MAX_ENDPOINTS, |fields, from| {
            let endpoint = endpoint_from_pb(fields, &from)?;
            if !seen.insert(endpoint.address) {
                fields.refuse_at("address", format!("{} is in this backend twice", endpoint.address));
            }
            Some(endpoint)
        });
    endpoints.sort_by_key(|endpoint| endpoint.address);
    let traffic = from.traffic.map(|from| fields.at("traffic", |fields| traffic::from_pb(fields, from)));
    Backend { endpoints, traffic: Arc::new(traffic.unwrap_or_default()) }
}

pub(super) fn endpoint_from_pb(fields: &mut Fields, from: &pb::Endpoint) -> Option<Endpoint> {
    let address = fields.at("address", |fields| dialled(fields, &from.address));
    let identity = fields.at("identity", |fields| fields.parse(&from.identity));
    let zone = fields.at("zone", |fields| fields.text(&from.zone));
    let weight = fields.at("weight", |fields| weight(fields, from.weight));
    let subset = fields.at("subset", |fields| fields.text(&from.subset));
    Some(Endpoint {
        address: address?,
        identity: identity?,
        zone,
        weight: weight?,
        subset,
        ready_since: NonZeroU64::new(from.ready_since_ms),
    })
}

pub(super) fn weight(fields: &mut Fields, weight: u32) -> Option<NonZeroU32> {
    let legal = NonZeroU32::new(weight);
    if legal.is_none() {
        fields.refuse("is 0: what gets nothing is left out");
    }
    legal
}

pub(super) fn to_pb(from: &Backend) -> pb::Backend {
    pb::Backend {
        endpoints: from.endpoints.iter().map(endpoint_to_pb).collect(),
        traffic: Some(traffic::to_pb(&from.traffic)),
    }
}

pub(super) fn endpoint_to_pb(from: &Endpoint) -> pb::Endpoint {
    pb::Endpoint {
        address: from.address.to_string(),
        identity: from.identity.to_string(),
        zone: from.zone.to_string(),
        weight: from.weight.get(),
        subset: from.subset.to_string(),
        ready_since_ms: from.ready_since.map_or(0, NonZeroU64::get),
    }
}
