//! Rate limits that all workers share, each behind a short lock of its own.

use std::{
    hash::RandomState,
    sync::{Arc, Mutex},
    time::Instant,
};

use outrigger_core::{
    rate_limit::{Key, RateLimiter, Verdict},
    snapshot::Snapshot,
};
use outrigger_proto::spec::{Demand, RateLimit, Scope, Share};
use serde_json::{Value, json};

use super::{SharedLimits, lock};
use crate::worker::now;

/// One rate limit.
pub struct Limiter(Mutex<State>);

struct State {
    policy: RateLimit,
    machine: RateLimiter,
}

/// A rule of a policy, and what counts for it.
pub struct Rule {
    pub policy: RateLimit,
    pub limiter: Arc<Limiter>,
}

/// The rules of one policy, in its order. Found once per policy and kept.
#[derive(Default)]
pub struct Rules(Box<[Rule]>);

impl SharedLimits {
    /// The limiters of these rules, made or changed to what they say now. For when a policy is new, not for each request.
    pub fn rules(&self, policies: &[RateLimit]) -> Rules {
        let rules =
            policies.iter().map(|policy| Rule { policy: policy.clone(), limiter: self.limiter(policy) });
        Rules(rules.collect())
    }

    /// Makes the limiters of all shared limits of a configuration, so that this proxy has its share of each before
    /// somebody asks. One that has not heard of its share admits the whole limit. Whoever waits at a bulkhead is decided
    /// on anew.
    pub fn adopt(&self, snapshot: &Snapshot) {
        self.adjust(snapshot);
        let shared = |limit: &&RateLimit| limit.scope == Scope::Shared;
        for_each_policy(snapshot, |policies| {
            policies.iter().filter(shared).for_each(|policy| drop(self.limiter(policy)));
            false
        });
    }

    fn limiter(&self, policy: &RateLimit) -> Arc<Limiter> {
        let mut limiters = lock(&self.limiters);
        let made = || Arc::new(Limiter::new(policy.clone()));
        let limiter = Arc::clone(limiters.entry(Arc::clone(&policy.name)).or_insert_with(made));
        drop(limiters);
        limiter.set_policy(policy);
        limiter
    }

    /// How much shared limits are asked for, sorted by name.
    pub fn demands(&self) -> Vec<Demand> {
        let now = now();
        let limiters = lock(&self.limiters);
        let demand = |limiter: &Limiter| {
            let mut state = lock(&limiter.0);
            let thousandths_per_second = state.machine.demand(now);
            let limit = Arc::clone(&state.policy.name);
            (state.policy.scope == Scope::Shared).then_some(Demand { limit, thousandths_per_second })
        };
        let mut demands: Vec<_> = limiters.values().filter_map(|limiter| demand(limiter)).collect();
        demands.sort_by(|a, b| a.limit.cmp(&b.limit));
        demands
    }

    /// What the control plane says about a shared limit. One that this proxy does not know is none of its business.
    pub fn take_share(&self, share: &Share) {
        let limiter = lock(&self.limiters).get(&share.limit).cloned();
        if let Some(limiter) = limiter {
            let mut state = lock(&limiter.0);
            state.machine.set_share(share.parts_per_million, share.holders, share.valid_for, now());
        }
    }

    pub(super) fn prune_limiters(&self, snapshot: &Snapshot) {
        lock(&self.limiters)
            .retain(|name, limiter| Arc::strong_count(limiter) > 1 || is_configured(snapshot, name));
    }

    /// For `/limits`.
    pub fn limiters(&self) -> Vec<Value> {
        let mut limiters: Vec<_> = lock(&self.limiters).values().cloned().collect();
        limiters.sort_by_cached_key(|limiter| Arc::clone(&lock(&limiter.0).policy.name));
        limiters.iter().map(|limiter| limiter.dump(now())).collect()
    }
}

fn is_configured(snapshot: &Snapshot, name: &str) -> bool {
    for_each_policy(snapshot, |limits| limits.iter().any(|limit| &*limit.name == name))
}

/// Looks at all rate limits of a configuration until `found` says so; whether it did.
fn for_each_policy(snapshot: &Snapshot, mut found: impl FnMut(&[RateLimit]) -> bool) -> bool {
    let mut ports = snapshot.inbound().into_iter().flat_map(|inbound| inbound.spec.ports.values());
    ports.any(|port| port.limits.as_ref().is_some_and(|limits| found(&limits.rate_limits)))
        || snapshot.backends().any(|(_, backend)| found(&backend.traffic.rate_limits))
}

impl Limiter {
    fn new(policy: RateLimit) -> Self {
        // Keys are hashed with a secret of this process and this limit.
        let machine = RateLimiter::new(&policy, RandomState::new(), now());
        Self(Mutex::new(State { policy, machine }))
    }

    fn set_policy(&self, policy: &RateLimit) {
        let mut state = lock(&self.0);
        if state.policy != *policy {
            state.machine.set_policy(policy, now());
            state.policy = policy.clone();
        }
    }

    /// Asks for one request of whoever has these values, and counts it if it is admitted.
    pub fn check<'a>(
        &self,
        values: impl IntoIterator<Item = Option<&'a [u8]>>,
        now: Instant,
    ) -> (Key, Verdict) {
        let mut state = lock(&self.0);
        let key = state.machine.key(values);
        (key, state.machine.check(key, now))
    }

    /// Takes back one that was admitted just now and did not happen.
    pub fn undo(&self, key: Key, now: Instant) {
        lock(&self.0).machine.undo(key, now);
    }

    fn dump(&self, now: Instant) -> Value {
        let mut state = lock(&self.0);
        let State { policy, machine } = &mut *state;
        json!({
            "policy": policy,
            "keys": machine.keys(),
            "asked_per_second": machine.demand(now) as f64 / 1000.0,
            "share_parts_per_million": machine.share(now),
        })
    }
}

// === impl Rules ===

impl std::ops::Deref for Rules {
    type Target = [Rule];

    fn deref(&self) -> &[Rule] {
        &self.0
    }
}
