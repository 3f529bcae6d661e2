//! Backends and endpoints.

use std::{collections::HashSet, net::SocketAddr, num::NonZeroU32, sync::Arc};

use super::fields::{Fields, milliseconds};
use crate::{
    limits::MAX_ENDPOINTS,
    pb,
    spec::{Algorithm, Backend, Endpoint, LoadBalancer, Timeouts, Traffic},
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
    let load_balancer = fields.at("load_balancer", |fields| {
        fields.kind(from.load_balancer, |kind| match kind {
            pb::LoadBalancer::Unspecified => None,
            pb::LoadBalancer::PeakEwma => Some(Algorithm::PeakEwma),
            pb::LoadBalancer::LeastRequest => Some(Algorithm::LeastRequest),
            pb::LoadBalancer::RoundRobin => Some(Algorithm::RoundRobin),
            pb::LoadBalancer::Random => Some(Algorithm::Random),
        })
    });
    let timeouts = fields.at("timeouts", |fields| from.timeouts.map(|from| timeouts_from_pb(fields, from)));
    let load_balancer =
        LoadBalancer { algorithm: load_balancer.unwrap_or_default(), ..LoadBalancer::default() };
    let traffic = Traffic { load_balancer, timeouts: timeouts.unwrap_or_default(), ..Traffic::default() };
    Backend { endpoints, traffic: Arc::new(traffic) }
}

pub(super) fn endpoint_from_pb(fields: &mut Fields, from: &pb::Endpoint) -> Option<Endpoint> {
    let address = fields.at("address", |fields| {
        let address: SocketAddr = fields.parse(&from.address)?;
        let ip = address.ip().to_canonical();
        if address.port() == 0 || ip.is_unspecified() || ip.is_multicast() {
            fields.refuse(format!("{address} cannot be dialled"));
            return None;
        }
        Some(SocketAddr::new(ip, address.port()))
    });
    let identity = fields.at("identity", |fields| fields.parse(&from.identity));
    let zone = fields.at("zone", |fields| fields.text(&from.zone));
    let weight = fields.at("weight", |fields| weight(fields, from.weight));
    Some(Endpoint {
        address: address?,
        identity: identity?,
        zone,
        weight: weight?,
        subset: Arc::default(),
        ready_since: None,
    })
}

pub(super) fn weight(fields: &mut Fields, weight: u32) -> Option<NonZeroU32> {
    let legal = NonZeroU32::new(weight);
    if legal.is_none() {
        fields.refuse("is 0: what gets nothing is left out");
    }
    legal
}

fn timeouts_from_pb(fields: &mut Fields, from: pb::Timeouts) -> Timeouts {
    let connect = fields.at("connect_ms", |fields| {
        if from.connect_ms == 0 {
            fields.refuse("is 0: a connection attempt needs an end");
        }
        fields.timeout(from.connect_ms)
    });
    Timeouts {
        connect: connect.unwrap_or_else(|| Timeouts::default().connect),
        request: fields.at("request_ms", |fields| fields.timeout(from.request_ms)),
        idle: fields.at("idle_ms", |fields| fields.timeout(from.idle_ms)),
        ..Timeouts::default()
    }
}

pub(super) fn to_pb(from: &Backend) -> pb::Backend {
    let load_balancer = match from.traffic.load_balancer.algorithm {
        Algorithm::PeakEwma | Algorithm::Consistent(..) => pb::LoadBalancer::PeakEwma,
        Algorithm::LeastRequest => pb::LoadBalancer::LeastRequest,
        Algorithm::RoundRobin => pb::LoadBalancer::RoundRobin,
        Algorithm::Random => pb::LoadBalancer::Random,
    };
    pb::Backend {
        endpoints: from.endpoints.iter().map(endpoint_to_pb).collect(),
        load_balancer: load_balancer.into(),
        timeouts: Some(pb::Timeouts {
            connect_ms: milliseconds(Some(from.traffic.timeouts.connect)),
            request_ms: milliseconds(from.traffic.timeouts.request),
            idle_ms: milliseconds(from.traffic.timeouts.idle),
        }),
    }
}

pub(super) fn endpoint_to_pb(from: &Endpoint) -> pb::Endpoint {
    pb::Endpoint {
        address: from.address.to_string(),
        identity: from.identity.to_string(),
        zone: from.zone.to_string(),
        weight: from.weight.get(),
    }
}
