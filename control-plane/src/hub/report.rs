//! What `/status` says of configuration, proxies and services: plain data, made from the hub at one moment.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use outrigger_proto::spec::{BackendKey, Endpoint, Protocol, Serve, Traffic};
use serde::Serialize;

use super::{Hub, Inner, Taken};
use crate::{
    compile,
    config::ConfigError,
    subscription::{Outgoing, Refusal, Subscription},
    workloads::{Entry, Phase, Presence},
};

/// The state of the configuration directory.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ConfigurationReport {
    /// Counts the configurations that were taken since the start; 0: none yet.
    pub generation: u64,
    /// Of the configuration in force: equal for equal files, on every control plane.
    pub version: String,
    /// Seconds since 1970.
    pub taken_at: u64,
    pub files: Vec<Arc<str>>,
    /// Why the directory as it is now is not in force. Empty: it is.
    pub errors: Vec<ConfigError>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ProxyReport {
    pub identity: String,
    pub instance: Arc<str>,
    pub version: String,
    pub labels: BTreeMap<String, String>,
    pub addresses: Vec<IpAddr>,
    pub zone: Arc<str>,
    pub serves: Vec<Serve>,
    pub ready: bool,
    pub draining: bool,
    /// Whether it has a stream here; otherwise it is remembered until its lease ends.
    pub connected: bool,
    /// Its configuration comes from another control plane.
    pub presence_only: bool,
    pub remote: Option<SocketAddr>,
    pub connected_seconds: Option<u64>,
    /// Keys it asked for.
    pub subscriptions: usize,
    /// It holds everything in its newest form.
    pub in_sync: bool,
    /// The generation of the configuration that it has acknowledged.
    pub acked_generation: u64,
    /// Updates that it acknowledged on this stream.
    pub acked_updates: u64,
    /// What it refused and has not got a newer form of.
    pub refused: Vec<Refusal>,
    /// The last refusal on this stream, even if it was made good since.
    pub last_nack: Option<Vec<Refusal>>,
}

#[derive(Clone, Debug, Serialize)]
pub struct ServiceReport {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub hosts: Vec<Arc<str>>,
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<PortReport>,
}

#[derive(Clone, Debug, Serialize)]
pub struct PortReport {
    pub port: NonZeroU16,
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub traffic: Arc<Traffic>,
    pub routes: Vec<Arc<str>>,
    pub endpoints: Vec<Endpoint>,
}

/// What a stream has to say for its proxy.
pub(super) struct ProxyRecord {
    instance: Arc<str>,
    presence_only: bool,
    remote: SocketAddr,
    since: Instant,
    subscriptions: usize,
    in_sync: bool,
    acked_generation: u64,
    acked_updates: u64,
    /// The generation from which the update under way was made.
    sent_generation: u64,
    refused: Vec<Refusal>,
    last_nack: Option<Vec<Refusal>>,
}

/// For `/metrics`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub streams: usize,
    pub presence_only: usize,
    pub out_of_sync: usize,
    pub refused: usize,
    pub workloads: usize,
    pub serving: usize,
    pub services: usize,
    pub generation: u64,
    pub configuration_errors: usize,
    /// Proxies with a stream, and such that are remembered until their lease ends.
    pub connected: usize,
    pub away: usize,
    /// Proxies that still have not acknowledged the configuration in force, though it is [`OLD_AFTER`] old.
    pub on_old_generation: usize,
}

/// How long a proxy has to take a new configuration until it counts as behind: a slow one takes some seconds.
pub const OLD_AFTER: Duration = Duration::from_secs(60);

impl ConfigurationReport {
    pub(super) fn on_taken(&mut self, files: Vec<Arc<str>>, version: String, at: SystemTime) -> Taken {
        let after_errors = !std::mem::take(&mut self.errors).is_empty();
        if self.generation > 0 && self.version == version {
            return Taken::Same { after_errors };
        }
        self.generation += 1;
        self.version = version;
        self.taken_at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.files = files;
        Taken::New
    }

    pub(super) fn on_refused(&mut self, errors: Vec<ConfigError>) -> Taken {
        let new_errors = self.errors != errors;
        self.errors = errors;
        Taken::Refused { new_errors }
    }
}

impl ProxyRecord {
    pub(super) fn new(presence: &Presence, presence_only: bool, remote: SocketAddr) -> Self {
        Self {
            instance: presence.id.instance.clone(),
            presence_only,
            remote,
            since: Instant::now(),
            subscriptions: 0,
            in_sync: presence_only,
            acked_generation: 0,
            acked_updates: 0,
            sent_generation: 0,
            refused: Vec::new(),
            last_nack: None,
        }
    }

    pub(super) fn on_poll(
        &mut self,
        subscription: &Subscription,
        update: Option<&Outgoing>,
        generation: u64,
    ) {
        self.look(subscription);
        if update.is_some() {
            self.sent_generation = generation;
        } else if !subscription.is_waiting() {
            // Nothing to send: what it has is what this generation means for it.
            self.acked_generation = generation;
        }
    }

    pub(super) fn on_answer(&mut self, subscription: &Subscription, refusals: Option<&[Refusal]>) {
        self.look(subscription);
        match refusals {
            None => {
                self.acked_updates += 1;
                self.acked_generation = self.sent_generation;
            }
            Some(refusals) => self.last_nack = Some(refusals.to_vec()),
        }
    }

    fn look(&mut self, subscription: &Subscription) {
        self.subscriptions = subscription.key_count();
        self.in_sync = subscription.is_in_sync();
        self.refused = subscription.refusals().cloned().collect();
        self.refused.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

impl Hub {
    pub fn configuration(&self) -> ConfigurationReport {
        self.lock().configuration.clone()
    }

    pub fn proxies(&self, now: Instant) -> Vec<ProxyReport> {
        let inner = self.lock();
        inner.workloads.entries().map(|entry| inner.proxy(entry, now)).collect()
    }

    pub fn services(&self) -> Vec<ServiceReport> {
        let inner = self.lock();
        let services = inner.index.config().services.values();
        services
            .map(|service| ServiceReport {
                namespace: service.name.namespace.clone(),
                name: service.name.name.clone(),
                hosts: service.hosts.iter().cloned().chain([service.implied_host()]).collect(),
                addresses: service.addresses.clone(),
                ports: service
                    .ports
                    .iter()
                    .map(|port| inner.port(&service.backend(port.port), port))
                    .collect(),
            })
            .collect()
    }

    pub fn totals(&self, now: Instant) -> Totals {
        let inner = self.lock();
        let mut totals = Totals {
            streams: inner.streams.len(),
            services: inner.index.config().services.len(),
            generation: inner.configuration.generation,
            configuration_errors: inner.configuration.errors.len(),
            ..Totals::default()
        };
        for stream in inner.streams.values() {
            totals.presence_only += usize::from(stream.record.presence_only);
            totals.out_of_sync += usize::from(!stream.record.in_sync);
            totals.refused += stream.record.refused.len();
            let record = &stream.record;
            let since = record.since.max(inner.generation_since);
            let is_old = !record.presence_only && record.acked_generation < inner.configuration.generation;
            totals.on_old_generation +=
                usize::from(is_old && now.saturating_duration_since(since) >= OLD_AFTER);
        }
        for entry in inner.workloads.entries() {
            match entry.phase {
                Phase::Connected { .. } => totals.connected += 1,
                Phase::Leased { .. } => totals.away += 1,
            }
        }
        for workload in inner.index.workloads() {
            totals.workloads += 1;
            totals.serving += usize::from(workload.serving);
        }
        totals
    }
}

impl Inner {
    fn proxy(&self, entry: &Entry, now: Instant) -> ProxyReport {
        let Presence { id, labels, addresses, zone, serves, version } = entry.presence.clone();
        let record = match entry.phase {
            Phase::Connected { stream } => self.streams.get(&stream).map(|stream| &stream.record),
            Phase::Leased { .. } => None,
        };
        let seconds = |since: Instant| now.saturating_duration_since(since).max(Duration::ZERO).as_secs();
        debug_assert!(record.is_none_or(|record| record.instance == id.instance));
        ProxyReport {
            identity: id.identity.to_string(),
            instance: id.instance,
            version,
            labels,
            addresses,
            zone,
            serves,
            ready: entry.state.ready,
            draining: entry.state.draining,
            connected: record.is_some(),
            presence_only: record.is_some_and(|record| record.presence_only),
            remote: record.map(|record| record.remote),
            connected_seconds: record.map(|record| seconds(record.since)),
            subscriptions: record.map_or(0, |record| record.subscriptions),
            in_sync: record.is_some_and(|record| record.in_sync),
            acked_generation: record.map_or(0, |record| record.acked_generation),
            acked_updates: record.map_or(0, |record| record.acked_updates),
            refused: record.map(|record| record.refused.clone()).unwrap_or_default(),
            last_nack: record.and_then(|record| record.last_nack.clone()),
        }
    }

    fn port(&self, key: &BackendKey, port: &crate::config::Port) -> PortReport {
        let backend = compile::backend(&self.index, key);
        let name = crate::config::ObjectName { namespace: key.namespace.clone(), name: key.name.clone() };
        let routes =
            self.index.routes_of(&name).iter().filter(|route| {
                route.parents.iter().any(|parent| parent.service == name && parent.covers(port))
            });
        PortReport {
            port: port.port,
            name: port.name.clone(),
            protocol: port.protocol,
            traffic: Arc::clone(&backend.traffic),
            routes: routes.map(|route| route.name.to_string().into()).collect(),
            endpoints: backend.endpoints,
        }
    }
}
