//! Which endpoint.

use outrigger_proto::{
    limits::MAX_HASH_ON,
    spec::{Algorithm, HashOn, LoadBalancer, Subset, Table, ZonePreference},
};

use super::super::notes::Notes;
use crate::{
    kinds::{self, Otherwise, Source},
    yaml::Path,
};

/// Envoy's overprovisioning factor of 1.4 is 71.
const MIN_HEALTHY_PERCENT: u8 = 70;

pub(super) fn from_kind(path: &Path, written: kinds::LoadBalancer, notes: &mut Notes<'_>) -> LoadBalancer {
    let kinds::LoadBalancer { algorithm, hash_on, zone, slow_start, panic_percent, subset } = written;
    let by_key = matches!(algorithm, Some(kinds::Algorithm::Maglev | kinds::Algorithm::RingHash));
    let at = path.key("hashOn");
    match &hash_on {
        Some(_) if !by_key => {
            notes.note(&at, "is for maglev and ring-hash alone: this algorithm goes by no key");
        }
        None if by_key => notes.note(path, "hashOn is required: this algorithm goes by a key"),
        Some(list) if list.is_empty() => notes.note(&at, "is empty: this algorithm goes by a key"),
        Some(list) => notes.at_most(&at, list.len(), MAX_HASH_ON),
        None => {}
    }
    let mut keys = Vec::new();
    for (index, written) in hash_on.unwrap_or_default().into_iter().enumerate() {
        let path = at.index(index);
        let Some(key) = hash_key(&path, &written, notes) else { continue };
        if keys.contains(&key) {
            notes.note(&path, "is listed twice");
        }
        keys.push(key);
    }
    LoadBalancer {
        algorithm: match algorithm {
            None | Some(kinds::Algorithm::PeakEwma) => Algorithm::PeakEwma,
            Some(kinds::Algorithm::LeastRequest) => Algorithm::LeastRequest,
            Some(kinds::Algorithm::RoundRobin) => Algorithm::RoundRobin,
            Some(kinds::Algorithm::Random) => Algorithm::Random,
            Some(kinds::Algorithm::Maglev) => Algorithm::Consistent(Table::Maglev, keys),
            Some(kinds::Algorithm::RingHash) => Algorithm::Consistent(Table::Ring, keys),
        },
        zone: zone.map(|zone| {
            let path = path.key("zone").key("minHealthyPercent");
            let min_healthy_percent = notes.percent(&path, zone.min_healthy_percent, MIN_HEALTHY_PERCENT, 1);
            ZonePreference { min_healthy_percent }
        }),
        slow_start: notes.optional_time(&path.key("slowStart"), slow_start.as_deref()),
        panic_percent: notes.percent(&path.key("panicPercent"), panic_percent, 0, 0),
        subset: subset.and_then(|written| {
            let path = path.key("subset");
            let kinds::Subset { label, header, otherwise } = written;
            notes.label(&path, "label", &label);
            let header = notes.header(&path.key("header"), &header)?;
            let fallback_to_any = otherwise.is_none_or(|otherwise| otherwise == Otherwise::Any);
            Some(Subset { header, label: label.into(), fallback_to_any })
        }),
    }
}

fn hash_key(path: &Path, written: &kinds::HashOn, notes: &mut Notes<'_>) -> Option<HashOn> {
    let kinds::HashOn { header, cookie, source, path: by_path, query } = written;
    let given = [
        ("header", header.is_some()),
        ("cookie", cookie.is_some()),
        ("source", source.is_some()),
        ("path", by_path.is_some()),
        ("query", query.is_some()),
    ];
    if !notes.exactly_one(path, &given) {
        return None;
    }
    if let Some(name) = header {
        return notes.header(&path.key("header"), name).map(HashOn::Header);
    }
    if let Some(kinds::Cookie { name, ttl }) = cookie {
        let path = path.key("cookie");
        if !HashOn::is_cookie_name(name) {
            notes.note(&path.key("name"), format!("{name:?} is not the name of a cookie"));
        }
        let ttl = notes.optional_time(&path.key("ttl"), ttl.as_deref());
        return Some(HashOn::Cookie { name: name.as_str().into(), ttl });
    }
    if let Some(name) = query {
        if name.is_empty() || name.chars().any(char::is_control) {
            notes.note(&path.key("query"), "is empty or has a control character");
        }
        return Some(HashOn::QueryParameter(name.as_str().into()));
    }
    Some(match source {
        Some(Source::Identity) => HashOn::SourceIdentity,
        Some(Source::Address) => HashOn::SourceAddress,
        None => HashOn::Path,
    })
}
