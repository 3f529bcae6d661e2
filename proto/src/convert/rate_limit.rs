//! How often.

use std::{
    collections::HashSet,
    num::{NonZeroU32, NonZeroU64},
};

use super::fields::{Fields, milliseconds};
use crate::{
    limits::{MAX_COUNTED_KEYS, MAX_RATE, MAX_RATE_KEYS, MAX_RATE_LIMITS},
    pb,
    spec::{RateAlgorithm, RateKey, RateLimit, Scope},
};

// === from the wire ===

/// The field `rate_limits`, on either side.
pub(super) fn list(fields: &mut Fields, from: Vec<pb::RateLimit>) -> Vec<RateLimit> {
    let mut seen = HashSet::new();
    fields.list("rate_limits", from, MAX_RATE_LIMITS, |fields, from| {
        let limit = from_pb(fields, from)?;
        if !seen.insert(limit.name.clone()) {
            fields.refuse_at("name", format!("{} is listed twice", limit.name));
        }
        Some(limit)
    })
}

fn from_pb(fields: &mut Fields, from: pb::RateLimit) -> Option<RateLimit> {
    let name = fields.at("name", |fields| fields.label(&from.name));
    let algorithm = fields.at("algorithm", |fields| {
        fields.kind(from.algorithm, |kind| match kind {
            pb::RateAlgorithm::Unspecified => None,
            pb::RateAlgorithm::TokenBucket => Some(RateAlgorithm::TokenBucket),
            pb::RateAlgorithm::SlidingWindow => Some(RateAlgorithm::SlidingWindow),
        })
    });
    let mut rate =
        |name, number| fields.at(name, |fields| NonZeroU64::new(fields.within(number, 1..=MAX_RATE)));
    let (requests, burst) = (rate("requests", from.requests), rate("burst", from.burst));
    let per = fields.at("per_ms", |fields| fields.time(from.per_ms));
    let key = fields.list("key", from.key, MAX_RATE_KEYS, key_from_pb);
    let scope = fields.at("scope", |fields| {
        fields.kind(from.scope, |kind| match kind {
            pb::RateScope::Unspecified => None,
            pb::RateScope::Local => Some(Scope::Local),
            pb::RateScope::Shared => Some(Scope::Shared),
        })
    });
    let max_keys =
        fields.at("max_keys", |fields| NonZeroU32::new(fields.within(from.max_keys, 1..=MAX_COUNTED_KEYS)));
    Some(RateLimit {
        name,
        algorithm: algorithm?,
        requests: requests?,
        per: per?,
        burst: burst?,
        key,
        scope: scope?,
        dry_run: from.dry_run,
        max_keys: max_keys?,
    })
}

fn key_from_pb(fields: &mut Fields, from: pb::RateKey) -> Option<RateKey> {
    use pb::rate_key::Kind;

    Some(match from.kind {
        Some(Kind::CallerIdentity(pb::Nothing {})) => RateKey::CallerIdentity,
        Some(Kind::ClientAddress(pb::Nothing {})) => RateKey::ClientAddress,
        Some(Kind::Path(pb::Nothing {})) => RateKey::Path,
        Some(Kind::Header(name)) => RateKey::Header(fields.at("header", |fields| fields.parse(&name))?),
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            return None;
        }
    })
}

// === to the wire ===

pub(super) fn to_pb(from: &RateLimit) -> pb::RateLimit {
    let algorithm = match from.algorithm {
        RateAlgorithm::TokenBucket => pb::RateAlgorithm::TokenBucket,
        RateAlgorithm::SlidingWindow => pb::RateAlgorithm::SlidingWindow,
    };
    let scope = match from.scope {
        Scope::Local => pb::RateScope::Local,
        Scope::Shared => pb::RateScope::Shared,
    };
    pb::RateLimit {
        name: from.name.to_string(),
        algorithm: algorithm.into(),
        requests: from.requests.get(),
        per_ms: milliseconds(Some(from.per)),
        burst: from.burst.get(),
        key: from.key.iter().map(key_to_pb).collect(),
        scope: scope.into(),
        dry_run: from.dry_run,
        max_keys: from.max_keys.get(),
    }
}

fn key_to_pb(from: &RateKey) -> pb::RateKey {
    use pb::rate_key::Kind;

    let kind = match from {
        RateKey::CallerIdentity => Kind::CallerIdentity(pb::Nothing {}),
        RateKey::ClientAddress => Kind::ClientAddress(pb::Nothing {}),
        RateKey::Path => Kind::Path(pb::Nothing {}),
        RateKey::Header(name) => Kind::Header(name.to_string()),
    };
    pb::RateKey { kind: Some(kind) }
}
