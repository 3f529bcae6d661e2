//! Which topics an event touches.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{Index, Topic, Topics, Workload};
use crate::config::{Config, HttpRoute, ObjectName, Service, Target};

/// What may look different after `old` was replaced by the configuration that `index` holds now.
pub(super) fn config(
    old: &Config,
    old_routes: &HashMap<ObjectName, Vec<Arc<HttpRoute>>>,
    index: &Index,
) -> Topics {
    let new = index.config();
    let mut topics = Topics::new();

    let names: BTreeSet<&ObjectName> = old.services.keys().chain(new.services.keys()).collect();
    for name in names {
        let versions = [old.services.get(name), new.services.get(name)];
        let routed = old_routes.get(name).map(Vec::as_slice).unwrap_or_default() != index.routes_of(name);
        for service in versions.into_iter().flatten() {
            if versions[0] != versions[1] {
                whole_service(service, index, &mut topics);
            } else if routed {
                names_of(service, &mut topics);
            }
        }
    }
    for policy in changed(&old.traffic, &new.traffic) {
        topics.insert(Topic::Backend(policy.service.clone()));
    }
    for policy in new.traffic.values() {
        // Which port of the backup is meant may hang on the backup.
        let backup = policy.usage.backup().map(|backup| &backup.service);
        if backup.is_some_and(|name| old.services.get(name) != new.services.get(name)) {
            topics.insert(Topic::Backend(policy.service.clone()));
        }
    }
    for policy in changed(&old.server, &new.server) {
        topics.insert(Topic::Inbound(policy.name.namespace.clone()));
        for workload in index.workloads_in(&policy.name.namespace) {
            addresses_of(workload, &mut topics);
        }
    }
    for policy in changed(&old.authorization, &new.authorization) {
        topics.insert(Topic::Inbound(policy.name.namespace.clone()));
        if let Target::Service { name, .. } = &policy.target {
            for service in [old.services.get(name), new.services.get(name)].into_iter().flatten() {
                inbound_of_listed(service, &mut topics);
            }
        }
    }
    topics
}

/// What depends on a workload, whether it comes, goes or changes.
pub(super) fn workload(workload: &Workload, index: &Index, topics: &mut Topics) {
    addresses_of(workload, topics);
    for service in index.config().services.values() {
        if workload.is_selected_by(service) {
            topics.insert(Topic::Backend(service.name.clone()));
        }
    }
    for address in &workload.addresses {
        for service in index.listed_at(*address) {
            topics.insert(Topic::Backend(service.name.clone()));
        }
    }
}

fn changed<'a, T: PartialEq>(
    old: &'a BTreeMap<ObjectName, Arc<T>>,
    new: &'a BTreeMap<ObjectName, Arc<T>>,
) -> impl Iterator<Item = &'a T> {
    let gone = old.iter().filter(|(name, value)| new.get(*name) != Some(value));
    let come = new.iter().filter(|(name, value)| old.get(*name) != Some(value));
    gone.chain(come).map(|(_, value)| &**value)
}

fn whole_service(service: &Service, index: &Index, topics: &mut Topics) {
    topics.insert(Topic::Backend(service.name.clone()));
    names_of(service, topics);
    // What its ports speak is part of its workloads' server side, and of what their own addresses mean.
    topics.insert(Topic::Inbound(service.name.namespace.clone()));
    inbound_of_listed(service, topics);
    topics.extend(service.endpoints.iter().map(|endpoint| Topic::Address(endpoint.address)));
    for workload in index.workloads_in(&service.name.namespace) {
        if workload.is_selected_by(service) {
            addresses_of(workload, topics);
        }
    }
}

fn names_of(service: &Service, topics: &mut Topics) {
    topics.extend(service.hosts.iter().cloned().map(Topic::Host));
    topics.insert(Topic::Host(service.implied_host()));
    topics.insert(Topic::Host(service.name.name.clone()));
    topics.extend(service.addresses.iter().copied().map(Topic::Address));
}

fn inbound_of_listed(service: &Service, topics: &mut Topics) {
    topics.extend(
        service.endpoints.iter().map(|endpoint| Topic::Inbound(endpoint.identity.namespace().into())),
    );
}

fn addresses_of(workload: &Workload, topics: &mut Topics) {
    topics.extend(workload.addresses.iter().copied().map(Topic::Address));
}
