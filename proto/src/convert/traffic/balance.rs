//! Which endpoint.

use super::super::fields::{Fields, milliseconds};
use crate::{
    limits::MAX_HASH_ON,
    pb,
    spec::{Algorithm, HashOn, LoadBalancer, Subset, Table, ZonePreference},
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::LoadBalancer) -> LoadBalancer {
    let given = from.hash_on.len();
    let hash_on: Vec<HashOn> = fields.list("hash_on", from.hash_on, MAX_HASH_ON, hash_on_from_pb);
    let algorithm = fields.at("algorithm", |fields| {
        fields.kind(from.algorithm, |kind| match kind {
            pb::Algorithm::Unspecified => None,
            pb::Algorithm::PeakEwma => Some(Algorithm::PeakEwma),
            pb::Algorithm::LeastRequest => Some(Algorithm::LeastRequest),
            pb::Algorithm::RoundRobin => Some(Algorithm::RoundRobin),
            pb::Algorithm::Random => Some(Algorithm::Random),
            pb::Algorithm::Maglev => Some(Algorithm::Consistent(Table::Maglev, hash_on)),
            pb::Algorithm::RingHash => Some(Algorithm::Consistent(Table::Ring, hash_on)),
        })
    });
    match (&algorithm, given) {
        (Some(Algorithm::Consistent(..)), 0) => {
            fields.refuse_at("hash_on", "is empty: this algorithm goes by a key");
        }
        (None | Some(Algorithm::Consistent(..)), _) | (Some(_), 0) => {}
        (Some(_), _) => fields.refuse_at("hash_on", "is there: this algorithm goes by no key"),
    }
    let zone = from.zone.map(|from| {
        fields.at("zone", |fields| ZonePreference {
            min_healthy_percent: fields
                .at("min_healthy_percent", |fields| fields.percent(from.min_healthy_percent, 1)),
        })
    });
    let slow_start = fields.at("slow_start_ms", |fields| fields.timeout(from.slow_start_ms));
    let panic_percent = fields.at("panic_percent", |fields| fields.percent(from.panic_percent, 0));
    let subset = from.subset.and_then(|from| {
        fields.at("subset", |fields| {
            let header = fields.at("header", |fields| fields.parse(&from.header));
            let label = fields.at("label", |fields| fields.label(&from.label));
            Some(Subset { header: header?, label, fallback_to_any: from.fallback_to_any })
        })
    });
    LoadBalancer { algorithm: algorithm.unwrap_or_default(), zone, slow_start, panic_percent, subset }
}

fn hash_on_from_pb(fields: &mut Fields, from: pb::HashOn) -> Option<HashOn> {
    use pb::hash_on::Kind;

    Some(match from.kind {
        Some(Kind::Header(name)) => HashOn::Header(fields.at("header", |fields| fields.parse(&name))?),
        Some(Kind::Cookie(pb::Cookie { name, ttl_ms })) => fields.at("cookie", |fields| {
            let name = fields.at("name", |fields| {
                if !HashOn::is_cookie_name(&name) {
                    fields.refuse(format!("{name:?} is not a cookie's name"));
                }
                fields.short_text(&name, 1_024)
            });
            HashOn::Cookie { name, ttl: fields.at("ttl_ms", |fields| fields.timeout(ttl_ms)) }
        }),
        Some(Kind::SourceIdentity(pb::Nothing {})) => HashOn::SourceIdentity,
        Some(Kind::SourceAddress(pb::Nothing {})) => HashOn::SourceAddress,
        Some(Kind::Path(pb::Nothing {})) => HashOn::Path,
        Some(Kind::QueryParameter(name)) => {
            HashOn::QueryParameter(fields.at("query_parameter", |fields| fields.label(&name)))
        }
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            return None;
        }
    })
}

// === to the wire ===

pub(super) fn to_pb(from: &LoadBalancer) -> pb::LoadBalancer {
    let (algorithm, hash_on) = match &from.algorithm {
        Algorithm::PeakEwma => (pb::Algorithm::PeakEwma, &[][..]),
        Algorithm::LeastRequest => (pb::Algorithm::LeastRequest, &[][..]),
        Algorithm::RoundRobin => (pb::Algorithm::RoundRobin, &[][..]),
        Algorithm::Random => (pb::Algorithm::Random, &[][..]),
        Algorithm::Consistent(Table::Maglev, on) => (pb::Algorithm::Maglev, &on[..]),
        Algorithm::Consistent(Table::Ring, on) => (pb::Algorithm::RingHash, &on[..]),
    };
    pb::LoadBalancer {
        algorithm: algorithm.into(),
        hash_on: hash_on.iter().map(hash_on_to_pb).collect(),
        zone: from
            .zone
            .map(|zone| pb::ZonePreference { min_healthy_percent: zone.min_healthy_percent.into() }),
        slow_start_ms: milliseconds(from.slow_start),
        panic_percent: from.panic_percent.into(),
        subset: from.subset.as_ref().map(|subset| pb::Subset {
            header: subset.header.to_string(),
            label: subset.label.to_string(),
            fallback_to_any: subset.fallback_to_any,
        }),
    }
}

fn hash_on_to_pb(from: &HashOn) -> pb::HashOn {
    use pb::hash_on::Kind;

    let kind = match from {
        HashOn::Header(name) => Kind::Header(name.to_string()),
        HashOn::Cookie { name, ttl } => {
            Kind::Cookie(pb::Cookie { name: name.to_string(), ttl_ms: milliseconds(*ttl) })
        }
        HashOn::SourceIdentity => Kind::SourceIdentity(pb::Nothing {}),
        HashOn::SourceAddress => Kind::SourceAddress(pb::Nothing {}),
        HashOn::Path => Kind::Path(pb::Nothing {}),
        HashOn::QueryParameter(name) => Kind::QueryParameter(name.to_string()),
    };
    pb::HashOn { kind: Some(kind) }
}
