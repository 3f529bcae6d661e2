//! A `TrafficPolicy`, validated.
//!
//! Within one policy everything is judged here. What only shows beside other objects (whether a backup is there, whether
//! two policies of one service contradict each other once they are merged) is judged in `check/traffic.rs`.

mod balance;
mod fallback;
mod outlier;
mod retry;
mod timeouts;

use std::num::NonZeroU16;

use outrigger_proto::spec::{
    BackendKey, Bulkhead, Cache, Ejection, FallbackTo, HealthCheck, Hedging, LoadBalancer, RateLimit,
    Retries, Timeouts, Traffic,
};

use super::{ObjectName, Service, limits, notes::Notes, policy::target_ref};
use crate::{
    kinds::{self, Document, Kind},
    yaml::Path,
};

pub use fallback::{Fallback, Instead};
pub use timeouts::TimeoutsWritten;
pub(super) use timeouts::contradiction;

/// Callers' side of a service. What is `None` comes from a less specific policy, or is the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub load_balancer: Option<LoadBalancer>,
    pub timeouts: TimeoutsWritten,
    pub bulkhead: Option<Bulkhead>,
    pub outlier_ejection: Option<Ejection>,
    pub health_check: Option<HealthCheck>,
    pub retries: Option<Retries>,
    pub hedging: Option<Hedging>,
    pub rate_limits: Option<Vec<RateLimit>>,
    pub fallback: Option<Fallback>,
    pub cache: Option<Cache>,
    pub coalesce: Option<bool>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct TrafficPolicy {
    pub service: ObjectName,
    /// `None`: all ports.
    pub port: Option<NonZeroU16>,
    pub usage: Usage,
}

impl Usage {
    /// What is said here goes first: timeouts one by one, everything else as a whole section.
    pub fn or(&self, other: &Self) -> Self {
        let (this, other) = (self.clone(), other.clone());
        Self {
            load_balancer: this.load_balancer.or(other.load_balancer),
            timeouts: this.timeouts.or(other.timeouts),
            bulkhead: this.bulkhead.or(other.bulkhead),
            outlier_ejection: this.outlier_ejection.or(other.outlier_ejection),
            health_check: this.health_check.or(other.health_check),
            retries: this.retries.or(other.retries),
            hedging: this.hedging.or(other.hedging),
            rate_limits: this.rate_limits.or(other.rate_limits),
            fallback: this.fallback.or(other.fallback),
            cache: this.cache.or(other.cache),
            coalesce: this.coalesce.or(other.coalesce),
        }
    }

    /// With every default filled in. `key_of` finds the port of a backup; one that is not there (checked at the source)
    /// is left out.
    pub fn traffic(self, key_of: impl FnOnce(&super::BackendRef) -> Option<BackendKey>) -> Traffic {
        let fallback = self.fallback.and_then(|fallback| {
            let to = match fallback.to {
                Instead::Backend(backend) => FallbackTo::Backend(key_of(&backend)?),
                Instead::Answer(answer) => FallbackTo::Answer(answer),
            };
            Some(outrigger_proto::spec::Fallback { on: fallback.on, to })
        });
        Traffic {
            load_balancer: self.load_balancer.unwrap_or_default(),
            timeouts: self.timeouts.filled(),
            bulkhead: self.bulkhead.unwrap_or_default(),
            outlier_ejection: self.outlier_ejection.unwrap_or_default(),
            health_check: self.health_check,
            retries: self.retries.unwrap_or_default(),
            hedging: self.hedging,
            rate_limits: self.rate_limits.unwrap_or_default(),
            fallback,
            cache: self.cache,
            coalesce: self.coalesce.unwrap_or_default(),
        }
    }

    pub(super) fn timeouts(&self) -> Timeouts {
        self.timeouts.filled()
    }

    /// The service that stands in.
    pub(crate) fn backup(&self) -> Option<&super::BackendRef> {
        match &self.fallback.as_ref()?.to {
            Instead::Backend(backend) => Some(backend),
            Instead::Answer(_) => None,
        }
    }
}

impl TrafficPolicy {
    pub(crate) fn covers(&self, service: &Service, port: NonZeroU16) -> bool {
        self.service == service.name && self.port.is_none_or(|own| own == port)
    }
}

pub(super) fn from_kind(
    name: &ObjectName,
    document: Document<kinds::TrafficPolicySpec>,
    notes: &mut Notes<'_>,
) -> Option<TrafficPolicy> {
    let kinds::TrafficPolicySpec {
        target_ref: target,
        load_balancer,
        timeouts,
        bulkhead,
        outlier_ejection,
        health_check,
        retries,
        hedging,
        rate_limit,
        fallback,
        cache,
        coalesce,
    } = document.spec;
    let spec = Path::of("spec");
    let target = target_ref(&spec.key("targetRef"), name, target, notes);
    let at = |field| spec.key(field);
    let said_timeouts = timeouts.is_some();
    let usage = Usage {
        load_balancer: load_balancer.map(|it| balance::from_kind(&at("loadBalancer"), it, notes)),
        timeouts: timeouts.map(|it| timeouts::from_kind(&at("timeouts"), &it, notes)).unwrap_or_default(),
        bulkhead: bulkhead.map(|it| limits::bulkhead(&at("bulkhead"), it, notes)),
        outlier_ejection: outlier_ejection.map(|it| outlier::from_kind(&at("outlierEjection"), it, notes)),
        health_check: health_check.and_then(|it| outlier::check(&at("healthCheck"), it, notes)),
        retries: retries.map(|it| retry::from_kind(&at("retries"), it, notes)),
        hedging: hedging.map(|it| retry::hedging(&at("hedging"), &it, notes)),
        rate_limits: rate_limit
            .map(|it| limits::rate_limits(&at("rateLimit"), (Kind::TrafficPolicy, name), it, notes)),
        fallback: fallback.and_then(|it| fallback::from_kind(&at("fallback"), name, it, notes)),
        cache: cache.map(|it| fallback::cache(&at("cache"), &it, notes)),
        coalesce,
    };
    if usage == Usage::default() && !said_timeouts && !notes.any() {
        notes.note(&spec, "says nothing: want anything besides targetRef");
    }
    let (service, port) = target?;
    Some(TrafficPolicy { service, port, usage })
}
