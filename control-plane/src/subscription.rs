//! What one proxy holds, wants and is sent: the push machine of one stream. Sans-IO.
//!
//! ```text
//!                     on_subscribe, on_topics: more keys are dirty
//!                    ┌──────┐
//!                    ▼      │      poll: dirty keys compiled, something differs
//!             ┌─────────────┴┐ ───────────────────────────────────────────────▶ ┌──────────────┐
//!             │     Idle     │                                                  │  In flight   │──┐ more keys
//!             └──────────────┘ ◀─────────────────────────────────────────────── │  {nonce, …}  │◀─┘ are dirty
//!                              on_ack: held    on_nack: refused, the rest dirty └──────────────┘
//! ```
//!
//! One update is under way at most. What changes meanwhile only makes keys dirty, and a key's value is
//! compiled when it is sent: however many edits happen while a proxy is slow, it gets the newest and nothing
//! queues.
//!
//! A refused update was dropped whole by the proxy. The resources it names are not sent again until their
//! content changes; those sent beside them were not at fault and go again by themselves.
//!
//! Backends that a destination names go in the same update as the destination, and are removed in the same
//! update that makes the last destination stop naming them, so a proxy never holds a destination without its
//! backends.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use outrigger_proto::{
    convert, pb,
    spec::{BackendKey, Body, FieldError, Held, Key},
};
use prost::Message as _;
use serde::Serialize;

use crate::{compile, index::Topic};

/// Keys that one proxy may subscribe to. A sidecar has as many as its program has destinations.
pub const MAX_KEYS: usize = 10_000;
/// An update is closed once it has grown to this; what is left goes in the next.
const UPDATE_BYTES: usize = 1 << 20;

/// A resource ready to be sent.
#[derive(Debug)]
pub struct Compiled {
    pub resource: pb::Resource,
    /// The version of the content.
    pub version: Arc<str>,
    /// Backends that it names.
    pub backends: Vec<BackendKey>,
    bytes: usize,
}

/// What goes to the proxy.
#[derive(Debug)]
pub struct Outgoing {
    pub nonce: u64,
    pub resources: Vec<Arc<Compiled>>,
    pub removed: Vec<Key>,
}

/// What a proxy refused, while it has not accepted anything newer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub key: Key,
    pub version: Arc<str>,
    pub errors: Vec<FieldError>,
}

/// What a proxy may not say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    #[error("more than {MAX_KEYS} keys are subscribed")]
    TooManyKeys,
    #[error("{0} cannot be unsubscribed")]
    Essential(Key),
    #[error("nonce {0} is not the one that waits for an answer")]
    Nonce(u64),
}

#[derive(Debug)]
pub struct Subscription {
    namespace: Arc<str>,
    /// What was asked for.
    wanted: BTreeSet<Key>,
    /// What the proxy has, by its own word or because it acknowledged it.
    held: HashMap<Key, Arc<str>>,
    /// Keys whose form came with the greeting, from whoever the proxy got it.
    brought: HashSet<Key>,
    /// What destinations and backends name in the form in which the proxy has them. What is held and missing here came
    /// with the greeting and has not been compared yet: what it names is unknown.
    names: HashMap<Key, Vec<BackendKey>>,
    /// How many of `names` have the backend.
    named: HashMap<BackendKey, usize>,
    refused: HashMap<Key, Refusal>,
    /// Removals that the proxy would not take.
    kept: HashSet<Key>,
    /// Keys to look at again.
    dirty: BTreeSet<Key>,
    /// Whether some backend may have become unneeded.
    reconsider: bool,
    by_topic: HashMap<Topic, HashSet<Key>>,
    in_flight: Option<InFlight>,
    last_nonce: u64,
}

#[derive(Debug)]
struct InFlight {
    nonce: u64,
    /// In the order of the message, which refusals count by.
    sent: Vec<(Key, Arc<Compiled>)>,
    removed: Vec<Key>,
    /// Unsubscribed while it was under way: whether the proxy kept it cannot be told.
    abandoned: HashSet<Key>,
}

/// An update while it is put together.
#[derive(Default)]
struct Draft {
    settled: bool,
    sent: Vec<(Key, Arc<Compiled>)>,
    bytes: usize,
    /// Stays dirty.
    later: BTreeSet<Key>,
    /// Backends that this update's destinations name: they go along, even when the update is full.
    along: HashSet<Key>,
}

impl Compiled {
    pub fn new(body: &Body) -> Self {
        let resource = convert::resource(body);
        let (version, bytes) = (resource.version.as_str().into(), resource.encoded_len());
        Self { resource, version, backends: compile::backends_of(body), bytes }
    }
}

impl Subscription {
    /// For a proxy of the namespace that says what it holds. The destinations among that count as subscribed.
    pub fn new(namespace: Arc<str>, held: Vec<Held>) -> Result<Self, Misuse> {
        let mut this = Self {
            namespace,
            wanted: BTreeSet::new(),
            held: HashMap::new(),
            brought: held.iter().map(|held| held.key.clone()).collect(),
            names: HashMap::new(),
            named: HashMap::new(),
            refused: HashMap::new(),
            kept: HashSet::new(),
            dirty: BTreeSet::new(),
            reconsider: true,
            by_topic: HashMap::new(),
            in_flight: None,
            last_nonce: 0,
        };
        let destinations = held.iter().map(|held| &held.key).filter(|key| matches!(key, Key::Destination(_)));
        let keys = [Key::Trust, Key::Inbound].into_iter().chain(destinations.cloned()).collect();
        this.on_subscribe(keys)?;
        this.held = held.into_iter().map(|held| (held.key, held.version)).collect();
        Ok(this)
    }

    pub fn on_subscribe(&mut self, keys: Vec<Key>) -> Result<(), Misuse> {
        for key in keys {
            if self.wanted.contains(&key) {
                continue;
            }
            if self.wanted.len() >= MAX_KEYS {
                return Err(Misuse::TooManyKeys);
            }
            self.watch(&key);
            self.dirty.insert(key.clone());
            self.wanted.insert(key);
        }
        Ok(())
    }

    /// Keys that are not subscribed are passed over: the proxy may have been told of their end meanwhile.
    pub fn on_unsubscribe(&mut self, keys: Vec<Key>) -> Result<(), Misuse> {
        for key in keys {
            match key {
                Key::Inbound | Key::Trust => return Err(Misuse::Essential(key)),
                Key::Destination(_) => {
                    if let Some(in_flight) = &mut self.in_flight {
                        in_flight.abandoned.insert(key.clone());
                    }
                    if self.wanted.remove(&key) {
                        self.forget(&key);
                    }
                }
                // A destination may still name it.
                Key::Backend(_) => {
                    self.wanted.remove(&key);
                }
            }
            self.reconsider = true;
        }
        Ok(())
    }

    /// Something changed. Says whether that matters here.
    pub fn on_topics<'a>(&mut self, topics: impl IntoIterator<Item = &'a Topic>) -> bool {
        let mut any = false;
        for topic in topics {
            for key in self.by_topic.get(topic).into_iter().flatten() {
                self.dirty.insert(key.clone());
                any = true;
            }
        }
        any
    }

    pub fn on_ack(&mut self, nonce: u64) -> Result<(), Misuse> {
        let InFlight { sent, removed, abandoned, .. } = self.answered(nonce)?;
        for key in removed {
            self.held.remove(&key);
            let named = self.names.remove(&key);
            self.unname(named.as_deref());
            self.unwatch(&key);
        }
        for (key, compiled) in sent {
            if !abandoned.contains(&key) {
                self.refused.remove(&key);
                self.hold(key, &compiled);
            } else if self.wanted.contains(&key) {
                // Subscribed again since: it is sent again, and until then its backends stay in case it was
                // kept.
                self.name(&key, &compiled);
            }
        }
        Ok(())
    }

    /// Remembers what the proxy will not have. Returns the refusals with the keys they are about.
    pub fn on_nack(&mut self, nonce: u64, errors: &[FieldError]) -> Result<Vec<Refusal>, Misuse> {
        let InFlight { sent, removed, abandoned, .. } = self.answered(nonce)?;
        let blamed: HashSet<usize> = errors.iter().filter_map(|error| position(&error.field)).collect();
        let removals = errors.iter().any(|error| error.field.starts_with("removed"));
        // An answer that blames nothing in particular blames everything: sending it again would go on for
        // ever.
        let everything = !removals && !blamed.iter().any(|position| *position < sent.len());
        if removals || everything {
            self.kept.extend(removed);
        }
        let mut refusals = Vec::new();
        for (index, (key, compiled)) in sent.into_iter().enumerate() {
            if abandoned.contains(&key) {
                continue;
            }
            if !everything && !blamed.contains(&index) {
                self.dirty.insert(key);
                continue;
            }
            let of_this = |error: &&FieldError| everything || position(&error.field) == Some(index);
            let errors = errors.iter().filter(of_this).cloned().collect();
            let refusal = Refusal { key: key.clone(), version: compiled.version.clone(), errors };
            refusals.push(refusal.clone());
            self.refused.insert(key, refusal);
        }
        self.reconsider = true;
        Ok(refusals)
    }

    /// The next update, if one is due. `settled` is false while the control plane has only just started and
    /// may know less than the proxy: what the proxy brought along is not replaced then.
    pub fn poll(
        &mut self,
        settled: bool,
        mut compile: impl FnMut(&Key) -> Option<Arc<Compiled>>,
    ) -> Option<Outgoing> {
        if self.in_flight.is_some() {
            return None;
        }
        let mut draft = Draft { settled, ..Draft::default() };
        // Destinations first: they decide which backends are needed.
        let (backends, others): (BTreeSet<Key>, BTreeSet<Key>) =
            std::mem::take(&mut self.dirty).into_iter().partition(|key| matches!(key, Key::Backend(_)));
        self.dirty = backends;
        for key in others {
            self.consider(key, &mut draft, &mut compile);
        }
        // A backend may bring along the one that stands in for it.
        let mut considered = HashSet::new();
        while let Some(key) = self.dirty.pop_first() {
            if considered.insert(key.clone()) {
                self.consider(key, &mut draft, &mut compile);
            }
        }
        let removed = self.unneeded(&draft.sent);
        draft.sent.retain(|(key, _)| !removed.contains(key));
        self.dirty = draft.later;
        if draft.sent.is_empty() && removed.is_empty() {
            return None;
        }
        self.last_nonce += 1;
        let nonce = self.last_nonce;
        let resources = draft.sent.iter().map(|(_, compiled)| compiled.clone()).collect();
        self.in_flight =
            Some(InFlight { nonce, sent: draft.sent, removed: removed.clone(), abandoned: HashSet::new() });
        Some(Outgoing { nonce, resources, removed })
    }

    /// Puts a dirty key into the update, or leaves it for later, or finds that the proxy has it.
    fn consider(
        &mut self,
        key: Key,
        draft: &mut Draft,
        compile: &mut impl FnMut(&Key) -> Option<Arc<Compiled>>,
    ) {
        let along = draft.along.contains(&key);
        if !along && !self.is_needed(&key) {
            return;
        }
        let Some(compiled) = compile(&key) else { return };
        if self.refused.get(&key).is_some_and(|refusal| refusal.version == compiled.version) {
            return;
        }
        let held = self.held.get(&key) == Some(&compiled.version);
        let too_soon = !draft.settled && !held && self.brought.contains(&key);
        let full = draft.bytes >= UPDATE_BYTES && !held && !along;
        let names: Vec<Key> = compiled.backends.iter().cloned().map(Key::Backend).collect();
        if full || too_soon || self.lacks(&names, compile) {
            draft.later.insert(key);
            return;
        }
        for name in names {
            self.watch(&name);
            self.dirty.insert(name.clone());
            draft.along.insert(name);
        }
        if held {
            self.hold(key, &compiled);
        } else {
            draft.bytes += compiled.bytes;
            draft.sent.push((key, compiled));
        }
    }

    /// Whoever names one of these has to wait: the proxy refused it, or one that it names itself, and has it in no
    /// earlier form.
    fn lacks(&self, names: &[Key], compile: &mut impl FnMut(&Key) -> Option<Arc<Compiled>>) -> bool {
        let mut open: Vec<Key> = names.to_vec();
        let mut seen = HashSet::new();
        while let Some(name) = open.pop() {
            if self.held.contains_key(&name) || !seen.insert(name.clone()) {
                continue;
            }
            let Some(compiled) = compile(&name) else { continue };
            if self.refused.get(&name).is_some_and(|refusal| refusal.version == compiled.version) {
                return true;
            }
            open.extend(compiled.backends.iter().cloned().map(Key::Backend));
        }
        false
    }

    /// The proxy has everything in its newest form.
    pub fn is_in_sync(&self) -> bool {
        self.in_flight.is_none() && self.dirty.is_empty() && self.refused.is_empty()
    }

    pub fn is_waiting(&self) -> bool {
        self.in_flight.is_some()
    }

    pub fn refusals(&self) -> impl Iterator<Item = &Refusal> {
        self.refused.values()
    }

    pub fn key_count(&self) -> usize {
        self.wanted.len()
    }

    fn answered(&mut self, nonce: u64) -> Result<InFlight, Misuse> {
        let in_flight = self.in_flight.take_if(|in_flight| in_flight.nonce == nonce);
        in_flight.ok_or(Misuse::Nonce(nonce))
    }

    /// The proxy has this form of the key now.
    fn hold(&mut self, key: Key, compiled: &Compiled) {
        self.name(&key, compiled);
        self.brought.remove(&key);
        self.held.insert(key, compiled.version.clone());
    }

    fn name(&mut self, key: &Key, compiled: &Compiled) {
        for name in &compiled.backends {
            *self.named.entry(name.clone()).or_default() += 1;
        }
        let before = self.names.insert(key.clone(), compiled.backends.clone());
        self.unname(before.as_deref());
    }

    fn forget(&mut self, key: &Key) {
        let before = self.names.remove(key);
        self.unname(before.as_deref());
        self.held.remove(key);
        self.brought.remove(key);
        self.refused.remove(key);
        self.dirty.remove(key);
        self.unwatch(key);
    }

    fn unname(&mut self, names: Option<&[BackendKey]>) {
        for name in names.unwrap_or_default() {
            if let Some(count) = self.named.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(name);
                    self.reconsider = true;
                }
            }
        }
    }

    fn is_needed(&self, key: &Key) -> bool {
        match key {
            Key::Inbound | Key::Trust | Key::Destination(_) => self.wanted.contains(key),
            Key::Backend(name) => self.wanted.contains(key) || self.named.contains_key(name),
        }
    }

    /// Held backends to which nothing will lead, from the destinations on, once `sent` has arrived.
    fn unneeded(&mut self, sent: &[(Key, Arc<Compiled>)]) -> Vec<Key> {
        if !self.reconsider && sent.is_empty() {
            return Vec::new();
        }
        let coming: HashMap<&Key, &[BackendKey]> =
            sent.iter().map(|(key, compiled)| (key, &*compiled.backends)).collect();
        let names = |key: &Key| match coming.get(key) {
            Some(names) => Some(*names),
            None => self.names.get(key).map(Vec::as_slice),
        };
        let destinations = self.held.keys().chain(coming.keys().copied());
        let mut open: Vec<Key> =
            destinations.filter(|key| matches!(key, Key::Destination(_))).cloned().collect();
        let mut needed = HashSet::new();
        while let Some(key) = open.pop() {
            if !needed.insert(key.clone()) {
                continue;
            }
            match names(&key) {
                Some(names) => open.extend(names.iter().cloned().map(Key::Backend)),
                // In a form that only the proxy knows.
                None if self.held.contains_key(&key) => return Vec::new(),
                None => {}
            }
        }
        self.reconsider = false;
        let unneeded = |key: &&Key| match key {
            Key::Backend(_) => {
                !needed.contains(*key) && !self.wanted.contains(*key) && !self.kept.contains(*key)
            }
            Key::Inbound | Key::Trust | Key::Destination(_) => false,
        };
        let mut removed: Vec<Key> = self.held.keys().filter(unneeded).cloned().collect();
        removed.sort();
        removed
    }

    fn watch(&mut self, key: &Key) {
        self.by_topic.entry(Topic::of(key, &self.namespace)).or_default().insert(key.clone());
    }

    fn unwatch(&mut self, key: &Key) {
        let topic = Topic::of(key, &self.namespace);
        if let Some(keys) = self.by_topic.get_mut(&topic) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_topic.remove(&topic);
            }
        }
    }
}

/// The index of the resource that a field path begins with: `resources[2].backend.endpoints[0]` is about 2.
fn position(field: &str) -> Option<usize> {
    field.strip_prefix("resources[")?.split_once(']')?.0.parse().ok()
}
