//! Traffic policies beside services and beside each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU16,
};

use outrigger_proto::spec::BackendKey;

use super::{
    super::{
        ConfigError, Draft, ObjectName, Objects, Path, Service, Source, TrafficPolicy, traffic::contradiction,
    },
    find_port, whole,
};

type Policies<'a> = BTreeMap<(&'a ObjectName, Option<NonZeroU16>), (&'a TrafficPolicy, &'a Source)>;

pub(super) fn check(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let mut policies = Policies::new();
    let path = Path::of("spec").key("targetRef");
    for (policy, source) in whole(&draft.traffic) {
        if let Err(dangling) = find_port(&draft.services, &policy.service, policy.port) {
            errors.push(dangling.error(source, &path));
        }
        if let Some((_, other)) = policies.insert((&policy.service, policy.port), (policy, source)) {
            let reason = format!("{} has the same target already ({})", other.label, other.at(&path));
            errors.push(source.error(&(path.clone(), reason)));
        }
    }
    for (policy, source) in policies.values() {
        merged(policy, source, &policies, errors);
        backup(policy, source, &draft.services, errors);
    }
    circles(&draft.services, &policies, errors);
}

/// A policy for one port and that for the whole service, each sound by itself, may contradict each other.
fn merged(policy: &TrafficPolicy, source: &Source, policies: &Policies<'_>, errors: &mut Vec<ConfigError>) {
    if policy.port.is_none() {
        return;
    }
    let Some((whole, other)) = policies.get(&(&policy.service, None)) else { return };
    let both = policy.usage.or(&whole.usage);
    let Some((field, reason)) = contradiction(&policy.usage.timeouts, &both.timeouts()) else { return };
    let path = Path::of("spec").key("timeouts");
    let reason = format!("with {} ({}): {reason}", other.label, other.at(&path));
    errors.push(source.error(&(path.key(field), reason)));
}

/// The service that stands in has to be there, to speak HTTP, and to be another one.
fn backup(
    policy: &TrafficPolicy,
    source: &Source,
    services: &Objects<Service>,
    errors: &mut Vec<ConfigError>,
) {
    let Some(backup) = policy.usage.backup() else { return };
    let path = Path::of("spec").key("fallback").key("backend");
    let (service, port) = match find_port(services, &backup.service, backup.port) {
        Err(dangling) => return errors.push(dangling.error(source, &path)),
        Ok(None) => return,
        Ok(Some(found)) => found,
    };
    if port.is_none() && service.ports.len() > 1 {
        let reason = format!("is required: MeshService {} has several ports", backup.service);
        return errors.push(source.error(&(path.key("port"), reason)));
    }
    let Some(port) = port.or_else(|| service.ports.first()) else { return };
    if !port.may_be_http() {
        let reason = format!(
            "port {} of MeshService {} carries no HTTP: see its appProtocol",
            port.port, service.name
        );
        errors.push(source.error(&(path, reason)));
    } else if policy.covers(service, port.port) {
        errors.push(source.error(&(path, "is the service itself: nothing would stand in for it".to_owned())));
    }
}

/// Backups that stand in for each other: with all of them away nobody would ever answer.
fn circles(services: &Objects<Service>, policies: &Policies<'_>, errors: &mut Vec<ConfigError>) {
    let mut next: BTreeMap<BackendKey, (BackendKey, &Source)> = BTreeMap::new();
    for (service, _) in whole(services) {
        for port in &service.ports {
            let said =
                [Some(port.port), None].into_iter().filter_map(|at| policies.get(&(&service.name, at)));
            let Some((policy, source)) = said.into_iter().find(|(policy, _)| policy.usage.fallback.is_some())
            else {
                continue;
            };
            let Some(backup) = policy.usage.backup() else { continue };
            let Ok(Some((other, _))) = find_port(services, &backup.service, backup.port) else { continue };
            let Some(at) = backup.resolve(other) else { continue };
            next.insert(service.backend(port.port), (other.backend(at), *source));
        }
    }
    for (start, (_, source)) in &next {
        let mut seen = BTreeSet::from([start]);
        let mut at = start;
        while let Some((backup, _)) = next.get(at) {
            // Told once, at its first member; a circle of one is told as what it is.
            if backup == start && seen.len() > 1 && seen.first() == Some(&start) {
                let names: Vec<_> = seen.iter().map(ToString::to_string).collect();
                let path = Path::of("spec").key("fallback").key("backend");
                let reason = format!("stands in a circle: {} are backups of each other", names.join(", "));
                errors.push(source.error(&(path, reason)));
            }
            if !seen.insert(backup) {
                break;
            }
            at = backup;
        }
    }
}
