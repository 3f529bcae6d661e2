//! What all streams share: the index, who is there, and who must be told what.
//!
//! The machines inside (index, workloads) know nothing of tasks; the hub puts one lock around them and wakes
//! the streams that an event may concern. A stream compiles what it sends under the same lock, so an update
//! is of one moment; results are kept until their topic changes, so a thousand subscribers of one backend
//! compile it once. The lock is never held across an await, and nothing in here touches a socket or a disk.

pub mod report;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Key, RateLimit, Scope, State, Trust};
use tokio::sync::{Notify, watch};

use crate::{
    compile,
    config_dir::Reading,
    events::{Events, Happened, Kind, Severity},
    index::{Index, Topic, Topics, Workload, WorkloadId},
    names::Names,
    observatory::SharedLimit,
    subscription::{Compiled, Outgoing, Refusal, Subscription},
    workloads::{Effect, Phase, Presence, StreamId, Workloads, store::Saved},
};
use report::{ConfigurationReport, ProxyRecord};

/// Right after a start with nothing to go by, proxies know more than we do: what they bring is left alone
/// this long.
const WARM_UP: Duration = Duration::from_secs(3);
/// Streams are woken at most this often. A rollout changes endpoints a hundred times a second, and each
/// change would compile the same backend again for the same proxies.
const BREATH: Duration = Duration::from_millis(10);
/// Compiled resources kept, all streams together.
const MAX_KEPT: usize = 100_000;

pub struct Hub {
    inner: Mutex<Inner>,
    /// Who comes and goes is told there.
    events: Arc<Events>,
    /// Counts changes that are worth saving.
    saving: watch::Sender<u64>,
    timer: Arc<Notify>,
}

struct Inner {
    index: Index,
    workloads: Workloads,
    kept: HashMap<Topic, Kept>,
    kept_count: usize,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    configuration: ConfigurationReport,
    /// When that configuration was taken.
    generation_since: Instant,
    settled_at: Instant,
    /// What streams have not been told yet, because they were woken a moment ago.
    untold: Topics,
    told_at: Option<Instant>,
    /// Wakes whoever sleeps until the next lease ends or the next streams are to be woken.
    timer: Arc<Notify>,
}

/// Compiled resources, by the namespace they are seen from and their key.
type Kept = HashMap<(Arc<str>, Key), Arc<Compiled>>;

struct Stream {
    handle: Arc<Handle>,
    record: ProxyRecord,
}

/// What became of a reading of the configuration directory.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// Another configuration is in force now.
    New,
    /// The one in force was found again, `after_errors` or just so.
    Same { after_errors: bool },
    /// The one in force stays.
    Refused { new_errors: bool },
}

/// The hub's end of a stream: how it is woken, and how it learns that it is over.
#[derive(Default)]
pub struct Handle {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Default)]
pub struct Pending {
    pub topics: Vec<Arc<Topics>>,
    /// Another stream speaks for the process now.
    pub replaced: bool,
}

impl Handle {
    /// Waits until there is something to look at.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    pub fn take(&self) -> Pending {
        std::mem::take(&mut *lock(&self.pending))
    }
}

impl Hub {
    pub fn new(now: Instant, events: Arc<Events>) -> Self {
        let timer = Arc::new(Notify::new());
        let inner = Inner {
            timer: timer.clone(),
            index: Index::default(),
            workloads: Workloads::default(),
            kept: HashMap::new(),
            kept_count: 0,
            streams: BTreeMap::new(),
            next_stream: 0,
            configuration: ConfigurationReport::default(),
            generation_since: now,
            settled_at: now + WARM_UP,
            untold: Topics::new(),
            told_at: None,
        };
        Self { inner: Mutex::new(inner), events, saving: watch::Sender::new(0), timer }
    }

    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Takes over what an earlier process knew of workloads, and with it the right to correct proxies at
    /// once.
    pub fn restore(&self, known: Vec<(Presence, State)>, now: Instant) {
        let mut inner = self.lock();
        if !known.is_empty() {
            inner.settled_at = now;
        }
        let effects = inner.workloads.restore(known, now);
        inner.apply(effects);
        self.timer.notify_one();
    }

    /// A reading of the configuration directory: taken whole, or its errors shown while the last good state
    /// stays.
    pub fn on_reading(&self, reading: Reading, at: std::time::SystemTime) -> Taken {
        let mut inner = self.lock();
        let Reading { files, version, result } = reading;
        match result {
            Ok(config) => {
                let topics = inner.index.reset_config(Arc::new(config));
                let taken = inner.configuration.on_taken(files, version, at);
                if taken == Taken::New {
                    inner.generation_since = Instant::now();
                }
                inner.spread(topics);
                taken
            }
            Err(errors) => inner.configuration.on_refused(errors),
        }
    }

    pub fn set_trust(&self, trust: Trust) {
        let mut inner = self.lock();
        let topics = inner.index.reset_trust(Arc::new(trust));
        inner.spread(topics);
    }

    /// A proxy has introduced itself on a new stream.
    pub fn on_hello(
        &self,
        presence: Presence,
        state: State,
        presence_only: bool,
        remote: std::net::SocketAddr,
    ) -> (StreamId, Arc<Handle>) {
        let mut inner = self.lock();
        inner.next_stream += 1;
        let stream = StreamId(inner.next_stream);
        let handle = Arc::new(Handle::default());
        let record = ProxyRecord::new(&presence, presence_only, remote);
        inner.streams.insert(stream, Stream { handle: handle.clone(), record });
        let joined = (!inner.workloads.knows(&presence.id)).then(|| joined(&presence));
        let effects = inner.workloads.on_hello(stream, presence, state);
        let left = gone(&effects, "another process has taken its place", Severity::Info);
        inner.apply(effects);
        drop(inner);
        left.into_iter().chain(joined).for_each(|happened| self.events.tell(happened));
        self.changed();
        (stream, handle)
    }

    pub fn on_state(&self, stream: StreamId, state: State) {
        let mut inner = self.lock();
        let begun = inner.workloads.begins_to_drain(stream, &state).cloned();
        let effects = inner.workloads.on_state(stream, state);
        inner.apply(effects);
        drop(inner);
        if let Some(id) = begun {
            let message = "draining: it gets no new requests";
            self.events.tell(about(Kind::Draining, &id, message).by(&id.identity));
        }
        self.changed();
    }

    pub fn on_disconnected(&self, stream: StreamId, now: Instant) {
        let mut inner = self.lock();
        inner.streams.remove(&stream);
        let effects = inner.workloads.on_disconnected(stream, now);
        let left = gone(&effects, "it has drained", Severity::Info);
        inner.apply(effects);
        drop(inner);
        left.into_iter().for_each(|happened| self.events.tell(happened));
        self.timer.notify_one();
        self.changed();
    }

    /// The next update of a stream, compiled from the present state.
    pub fn poll(
        &self,
        stream: StreamId,
        subscriber: &Workload,
        subscription: &mut Subscription,
        now: Instant,
    ) -> Option<Outgoing> {
        let mut inner = self.lock();
        let settled = now >= inner.settled_at;
        let update = subscription.poll(settled, |key| inner.compile(subscriber, key));
        let generation = inner.configuration.generation;
        if let Some(stream) = inner.streams.get_mut(&stream) {
            stream.record.on_poll(subscription, update.as_ref(), generation);
        }
        update
    }

    /// A shared rate limit of the configuration in force, and how many connected workloads it is for. Those of callers are for
    /// whoever calls, so nobody can say of how many.
    pub fn shared_limit(&self, name: &str) -> Option<SharedLimit> {
        let inner = self.lock();
        let config = inner.index.config();
        let shared = |limit: &&RateLimit| limit.scope == Scope::Shared && *limit.name == *name;
        let traffic = || {
            config.traffic.values().flat_map(|policy| policy.usage.rate_limits.iter().flatten()).find(shared)
        };
        let mut server = config.server.values().flat_map(|policy| {
            let limits = policy.ports.iter().flat_map(|port| port.rate_limits.iter().flatten());
            limits.map(move |limit| (policy, limit))
        });
        if let Some((policy, limit)) = server.find(|(_, limit)| shared(limit)) {
            // Who is only remembered may be dead, and holds nothing back then.
            let live = inner.workloads.entries().filter(|entry| {
                let Presence { id, labels, .. } = &entry.presence;
                let connected = matches!(entry.phase, Phase::Connected { .. });
                connected
                    && id.identity.namespace() == &*policy.name.namespace
                    && policy.selector.select(labels)
            });
            let live = live.count();
            return Some(SharedLimit { limit: limit.clone(), live: u32::try_from(live).unwrap_or(u32::MAX) });
        }
        traffic().map(|limit| SharedLimit { limit: limit.clone(), live: 0 })
    }

    /// Whether a proxy of this identity has a configuration stream.
    pub fn has_stream(&self, identity: &SpiffeId) -> bool {
        self.lock().workloads.is_connected(identity)
    }

    /// What ports are called, as of now.
    pub fn names(&self) -> Names {
        let inner = self.lock();
        Names::new(inner.index.config().clone(), inner.index.workloads().cloned())
    }

    /// When streams that were held back by the warm-up are to look again.
    pub fn settles_in(&self, now: Instant) -> Duration {
        self.lock().settled_at.saturating_duration_since(now)
    }

    pub fn on_answer(&self, stream: StreamId, subscription: &Subscription, refusals: Option<&[Refusal]>) {
        if let Some(stream) = self.lock().streams.get_mut(&stream) {
            stream.record.on_answer(subscription, refusals);
        }
    }

    /// Ends leases and wakes streams, now and whenever that is due.
    pub async fn run_timers(&self) {
        loop {
            let next = {
                let now = Instant::now();
                let mut inner = self.lock();
                let effects = inner.workloads.handle_timeout(now);
                let any = !effects.is_empty();
                let left = gone(
                    &effects,
                    "its stream ended without a word, and it did not come back",
                    Severity::Warning,
                );
                inner.apply(effects);
                inner.tell(now);
                let next = [inner.workloads.poll_timeout(), inner.tells_at()].into_iter().flatten().min();
                drop(inner);
                left.into_iter().for_each(|happened| self.events.tell(happened));
                if any {
                    self.changed();
                }
                next
            };
            match next {
                Some(at) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.timer.notified() => {}
                    }
                }
                None => self.timer.notified().await,
            }
        }
    }

    /// Changes whenever there is something new to save.
    pub fn saving(&self) -> watch::Receiver<u64> {
        self.saving.subscribe()
    }

    pub fn to_save(&self) -> Vec<Saved> {
        self.lock().workloads.entries().filter_map(Saved::of).collect()
    }

    fn changed(&self) {
        self.saving.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn about(kind: Kind, id: &WorkloadId, message: impl Into<String>) -> Happened {
    Happened::new(kind, id.identity.as_str(), message).with("instance", &*id.instance)
}

fn joined(presence: &Presence) -> Happened {
    let Presence { id, addresses, zone, version, .. } = presence;
    let addresses: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    about(Kind::ProxyJoined, id, format!("joined from {}", addresses.join(", ")))
        .with("addresses", addresses)
        .with("zone", &**zone)
        .with("version", version.as_str())
}

fn gone(effects: &[Effect], why: &str, severity: Severity) -> Vec<Happened> {
    let gone = effects.iter().filter_map(|effect| match effect {
        Effect::Gone(id) => Some(id),
        Effect::Changed(_) | Effect::Replaced(_) => None,
    });
    gone.map(|id| about(Kind::ProxyLeft, id, format!("left: {why}")).severe(severity).with("why", why))
        .collect()
}

/// A panic under one of these locks has ended one stream; the others go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn apply(&mut self, effects: Vec<Effect>) {
        let mut topics = Topics::new();
        for effect in effects {
            match effect {
                Effect::Changed(workload) => topics.extend(self.index.apply_workload(workload)),
                Effect::Gone(id) => topics.extend(self.index.delete_workload(&id)),
                Effect::Replaced(stream) => {
                    if let Some(stream) = self.streams.get(&stream) {
                        lock(&stream.handle.pending).replaced = true;
                        stream.handle.wake.notify_one();
                    }
                }
            }
        }
        self.spread(topics);
    }

    fn spread(&mut self, topics: Topics) {
        if topics.is_empty() {
            return;
        }
        for topic in &topics {
            self.kept_count -= self.kept.remove(topic).map_or(0, |kept| kept.len());
        }
        self.untold.extend(topics);
        if !self.tell(Instant::now()) {
            self.timer.notify_one();
        }
    }

    /// Wakes the streams, unless they were woken a moment ago: then it is to be called again at `tells_at`.
    fn tell(&mut self, now: Instant) -> bool {
        if self.tells_at().is_some_and(|at| at > now) {
            return false;
        }
        if self.untold.is_empty() {
            return true;
        }
        self.told_at = Some(now);
        let topics = Arc::new(std::mem::take(&mut self.untold));
        for stream in self.streams.values() {
            lock(&stream.handle.pending).topics.push(topics.clone());
            stream.handle.wake.notify_one();
        }
        true
    }

    /// When what is untold may be told; `None`: nothing is, or at once.
    fn tells_at(&self) -> Option<Instant> {
        self.told_at.map(|at| at + BREATH).filter(|_| !self.untold.is_empty())
    }

    fn compile(&mut self, subscriber: &Workload, key: &Key) -> Option<Arc<Compiled>> {
        let seen_from = match key {
            // One of its kind: nobody else would use it.
            Key::Inbound => {
                return Some(Arc::new(Compiled::new(&compile::body(&self.index, subscriber, key)?)));
            }
            Key::Destination(_) => subscriber.namespace().into(),
            Key::Trust | Key::Backend(_) => "".into(),
        };
        let topic = Topic::of(key, &seen_from);
        let place = (seen_from, key.clone());
        if let Some(found) = self.kept.get(&topic).and_then(|kept| kept.get(&place)) {
            return Some(found.clone());
        }
        let compiled = Arc::new(Compiled::new(&compile::body(&self.index, subscriber, key)?));
        if self.kept_count >= MAX_KEPT {
            self.kept.clear();
            self.kept_count = 0;
        }
        self.kept.entry(topic).or_default().insert(place, compiled.clone());
        self.kept_count += 1;
        Some(compiled)
    }
}
