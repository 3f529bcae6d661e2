//! How much at a time and how often, of either side.

use std::{
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use outrigger_proto::{
    limits::{MAX_COUNTED_KEYS, MAX_PERCENT, MAX_QUEUE, MAX_RATE, MAX_RATE_KEYS, MAX_RATE_LIMITS},
    spec::{Adaptive, Bulkhead, Limits, Queue, RateAlgorithm, RateKey, RateLimit, Scope, ServerBulkhead},
};

use super::{ObjectName, notes::Notes};
use crate::{
    kinds::{self, Kind},
    yaml::Path,
};

/// Latency above the floor that is healthy, as Netflix's gradient2 has it.
const TOLERANCE_PERCENT: u32 = 150;
const MAX_KEYS: u32 = 10_000;

pub(super) fn bulkhead(path: &Path, written: kinds::Bulkhead, notes: &mut Notes<'_>) -> Bulkhead {
    let kinds::Bulkhead { upstream, endpoint, route, queue: waiting, adaptive: moving } = written;
    let bulkhead = Bulkhead {
        upstream: limits(&path.key("upstream"), upstream, notes),
        endpoint: limits(&path.key("endpoint"), endpoint, notes),
        route_requests: route
            .and_then(|route| notes.limit(&path.key("route").key("maxRequests"), Some(route.max_requests))),
        queue: waiting.map(|waiting| queue(&path.key("queue"), &waiting, notes)),
        adaptive: moving.map(|moving| adaptive(&path.key("adaptive"), &moving, notes)),
    };
    let most = Most::of(path, ("upstream", bulkhead.upstream), bulkhead.adaptive, notes);
    most.above(path, ("endpoint", bulkhead.endpoint), notes);
    most.above(path, ("route", Limits { connections: None, requests: bulkhead.route_requests }), notes);
    let requests = [bulkhead.upstream.requests, bulkhead.endpoint.requests, bulkhead.route_requests];
    let connections = [bulkhead.upstream.connections, bulkhead.endpoint.connections];
    let limited = requests.iter().chain(&connections).any(Option::is_some) || bulkhead.adaptive.is_some();
    if !limited && bulkhead.queue.is_some() {
        let reason = "has nothing to wait for: want upstream, endpoint, route or adaptive beside it";
        notes.note(&path.key("queue"), reason);
    } else if !limited {
        notes.note(path, "says nothing: want upstream, endpoint, route or adaptive");
    }
    bulkhead
}

pub(super) fn server_bulkhead(
    path: &Path,
    written: kinds::ServerBulkhead,
    notes: &mut Notes<'_>,
) -> ServerBulkhead {
    let kinds::ServerBulkhead { total, per_caller, queue: waiting, adaptive: moving } = written;
    let bulkhead = ServerBulkhead {
        total: limits(&path.key("total"), total, notes),
        per_caller: limits(&path.key("perCaller"), per_caller, notes),
        queue: waiting.map(|waiting| queue(&path.key("queue"), &waiting, notes)),
        adaptive: moving.map(|moving| adaptive(&path.key("adaptive"), &moving, notes)),
    };
    let most = Most::of(path, ("total", bulkhead.total), bulkhead.adaptive, notes);
    most.above(path, ("perCaller", bulkhead.per_caller), notes);
    let has = |of: fn(&Limits) -> Option<NonZeroU32>| {
        [bulkhead.total, bulkhead.per_caller].iter().any(|limits| of(limits).is_some())
    };
    let requests = has(|limits| limits.requests) || bulkhead.adaptive.is_some();
    if bulkhead.queue.is_some() && !requests {
        let reason = "has nothing to wait for, connections do not: want maxRequests or adaptive beside it";
        notes.note(&path.key("queue"), reason);
    } else if !requests && !has(|limits| limits.connections) {
        notes.note(path, "says nothing: want total, perCaller or adaptive");
    }
    bulkhead
}

fn limits(path: &Path, written: Option<kinds::Limits>, notes: &mut Notes<'_>) -> Limits {
    let Some(kinds::Limits { max_connections, max_requests }) = written else { return Limits::default() };
    if max_connections.is_none() && max_requests.is_none() {
        notes.note(path, "says nothing: want maxConnections or maxRequests");
    }
    Limits {
        connections: notes.limit(&path.key("maxConnections"), max_connections),
        requests: notes.limit(&path.key("maxRequests"), max_requests),
    }
}

/// The most that the whole may have, and the fields that say so.
struct Most {
    connections: Option<(String, NonZeroU32)>,
    requests: Option<(String, NonZeroU32)>,
}

impl Most {
    fn of(
        path: &Path,
        (whole, limits): (&str, Limits),
        adaptive: Option<Adaptive>,
        notes: &mut Notes<'_>,
    ) -> Self {
        if adaptive.is_some() && limits.requests.is_some() {
            let reason = "does not count beside adaptive, which moves this limit: leave one of the two out";
            notes.note(&path.key(whole).key("maxRequests"), reason);
        }
        let requests = limits.requests.map(|most| (format!("{whole}.maxRequests"), most));
        let adaptive = adaptive.map(|adaptive| ("adaptive.maxRequests".to_owned(), adaptive.max));
        Self {
            connections: limits.connections.map(|most| (format!("{whole}.maxConnections"), most)),
            requests: adaptive.or(requests),
        }
    }

    /// A part may not have more than the whole: its limit would never be reached.
    fn above(&self, path: &Path, (part, limits): (&str, Limits), notes: &mut Notes<'_>) {
        for (field, inner, most) in [
            ("maxConnections", limits.connections, &self.connections),
            ("maxRequests", limits.requests, &self.requests),
        ] {
            if let (Some(inner), Some((whole, most))) = (inner, most)
                && inner > *most
            {
                let reason = format!("{inner} is above {whole}, {most}: it would never matter");
                notes.note(&path.key(part).key(field), reason);
            }
        }
    }
}

fn queue(path: &Path, written: &kinds::Queue, notes: &mut Notes<'_>) -> Queue {
    let size = notes.number(&path.key("size"), Some(written.size), 1, (1, MAX_QUEUE.into()));
    Queue {
        size: NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN),
        timeout: notes.time(&path.key("timeout"), Some(&written.timeout), Duration::from_millis(1)),
    }
}

fn adaptive(path: &Path, written: &kinds::Adaptive, notes: &mut Notes<'_>) -> Adaptive {
    let min = notes.count(&path.key("minRequests"), Some(written.min_requests), NonZeroU32::MIN);
    let max = notes.count(&path.key("maxRequests"), Some(written.max_requests), NonZeroU32::MAX);
    if min > max {
        notes.note(&path.key("minRequests"), format!("{min} is above maxRequests, {max}"));
    }
    let tolerance = path.key("tolerancePercent");
    let tolerance_percent =
        notes.number(&tolerance, written.tolerance_percent, TOLERANCE_PERCENT, (100, MAX_PERCENT.into()));
    Adaptive { min, max, tolerance_percent }
}

/// Named `KIND/NAMESPACE/NAME/RULE`: unique in the mesh as long as rules are unique in their object.
pub(super) fn rate_limits(
    path: &Path,
    (kind, object): (Kind, &ObjectName),
    written: Vec<kinds::RateLimit>,
    notes: &mut Notes<'_>,
) -> Vec<RateLimit> {
    notes.at_most(path, written.len(), MAX_RATE_LIMITS);
    let mut limits: Vec<RateLimit> = Vec::new();
    for (index, written) in written.into_iter().enumerate() {
        let path = path.index(index);
        let Some(rule) = notes.name(&path.key("name"), &written.name) else { continue };
        let name = format!("{kind}/{object}/{rule}").into();
        if limits.iter().any(|limit| limit.name == name) {
            notes.note(&path.key("name"), format!("{rule} is the name of another limit already"));
        }
        limits.push(RateLimit { name, ..rate_limit(&path, written, notes) });
    }
    limits
}

fn rate_limit(path: &Path, written: kinds::RateLimit, notes: &mut Notes<'_>) -> RateLimit {
    let kinds::RateLimit { name: _, requests, per, burst, algorithm, key, scope, dry_run, max_keys } =
        written;
    let max_rate = i64::try_from(MAX_RATE).unwrap_or(i64::MAX);
    let requests: u64 = notes.number(&path.key("requests"), Some(requests), 1, (1, max_rate));
    let algorithm = match algorithm {
        None | Some(kinds::RateAlgorithm::TokenBucket) => RateAlgorithm::TokenBucket,
        Some(kinds::RateAlgorithm::SlidingWindow) => RateAlgorithm::SlidingWindow,
    };
    if burst.is_some() && algorithm == RateAlgorithm::SlidingWindow {
        notes
            .note(&path.key("burst"), "a sliding window has none: it admits requests within any span of per");
    }
    let burst = notes.number(&path.key("burst"), burst, requests, (1, max_rate));
    notes.at_most(&path.key("key"), key.len(), MAX_RATE_KEYS);
    let mut keys: Vec<RateKey> = Vec::new();
    for (index, written) in key.into_iter().enumerate() {
        let path = path.key("key").index(index);
        let Some(key) = rate_key(&path, &written, notes) else { continue };
        if keys.contains(&key) {
            notes.note(&path, "is part of the key already");
        }
        keys.push(key);
    }
    if keys.is_empty() && max_keys.is_some() {
        notes.note(&path.key("maxKeys"), "is of no use without key: there is one count for all");
    }
    let max_keys = notes.number(&path.key("maxKeys"), max_keys, MAX_KEYS, (1, MAX_COUNTED_KEYS.into()));
    RateLimit {
        name: "".into(),
        algorithm,
        requests: NonZeroU64::new(requests).unwrap_or(NonZeroU64::MIN),
        per: notes.time(&path.key("per"), per.as_deref(), Duration::from_secs(1)),
        burst: NonZeroU64::new(burst).unwrap_or(NonZeroU64::MIN),
        key: keys,
        scope: match scope {
            None | Some(kinds::Scope::Local) => Scope::Local,
            Some(kinds::Scope::Shared) => Scope::Shared,
        },
        dry_run,
        max_keys: NonZeroU32::new(max_keys).unwrap_or(NonZeroU32::MIN),
    }
}

fn rate_key(path: &Path, written: &kinds::RateKey, notes: &mut Notes<'_>) -> Option<RateKey> {
    let kinds::RateKey { header, caller, client, path: by_path } = written;
    let given = [
        ("header", header.is_some()),
        ("caller", caller.is_some()),
        ("client", client.is_some()),
        ("path", by_path.is_some()),
    ];
    if !notes.exactly_one(path, &given) {
        return None;
    }
    Some(match (header, caller, client) {
        (Some(name), _, _) => RateKey::Header(notes.header(&path.key("header"), name)?),
        (None, Some(kinds::Caller::Identity), _) => RateKey::CallerIdentity,
        (None, None, Some(kinds::Client::Address)) => RateKey::ClientAddress,
        (None, None, None) => RateKey::Path,
    })
}
