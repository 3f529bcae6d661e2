//! The entries: found by URL and selection, bounded in bytes, the least recently used one goes first.
//!
//! All variants of a URL depend on the same fields. An answer with another Vary than the one before is the
//! origin's newest word on that, so what was stored under the old one goes.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use hashbrown::HashMap;
use http::HeaderMap;
use smallvec::SmallVec;

use super::{
    select::{Keys, Selection, Vary},
    stored::Stored,
};

/// Of one URL. The least recently used one makes room.
pub const MAX_VARIANTS: usize = 16;
/// What an entry takes beside what it holds: its places in the map and the list, allocations, and their
/// rounding.
pub(super) const ENTRY_BYTES: u64 = 1024;

const NONE: u32 = u32::MAX;

/// The id of an entry that is gone never comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryId {
    slot: u32,
    generation: u32,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    urls: HashMap<Arc<str>, Url, RandomState>,
    keys: Keys,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Ends of the list by use.
    newest: Option<u32>,
    oldest: Option<u32>,
    bytes: u64,
}

#[derive(Debug)]
struct Url {
    vary: Vary,
    variants: SmallVec<[u32; 2]>,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    /// Neighbours in the list by use.
    newer: u32,
    older: u32,
    /// Rises with every use of any entry.
    used: u64,
    entry: Option<Entry>,
}

#[derive(Debug)]
struct Entry {
    url: Arc<str>,
    selection: Selection,
    stored: Arc<Stored>,
    bytes: u64,
}

impl Store {
    pub(super) fn find(&self, url: &str, request: &HeaderMap) -> Option<(EntryId, &Arc<Stored>)> {
        let known = self.urls.get(url)?;
        let wanted = self.keys.select(&known.vary, request);
        known.variants.iter().find_map(|slot| {
            let Slot { generation, entry: Some(entry), .. } = self.slots.get(*slot as usize)? else {
                return None;
            };
            let id = EntryId { slot: *slot, generation: *generation };
            (entry.selection == wanted).then_some((id, &entry.stored))
        })
    }

    /// Puts it in the place of the one that the same requests would find.
    pub(super) fn insert(&mut self, url: &str, vary: Vary, request: &HeaderMap, stored: Arc<Stored>) {
        if self.urls.get(url).is_some_and(|known| known.vary != vary) {
            self.remove_url(url);
        }
        if let Some((same, _)) = self.find(url, request) {
            self.remove(same);
        }
        if self.urls.get(url).is_some_and(|known| known.variants.len() >= MAX_VARIANTS) {
            self.remove_least_used_of(url);
        }
        let selection = self.keys.select(&vary, request);
        let key: Arc<str> = match self.urls.get_key_value(url) {
            Some((key, _)) => Arc::clone(key),
            None => url.into(),
        };
        let bytes = cost(url, &stored);
        let entry = Entry { url: Arc::clone(&key), selection, stored, bytes };
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, newer: NONE, older: NONE, used: 0, entry: None });
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize].entry = Some(entry);
        self.bytes += bytes;
        let known = self.urls.entry(key).or_insert_with(|| Url { vary, variants: SmallVec::new() });
        known.variants.push(slot);
        self.link(slot);
    }

    /// Same entry, newer head. False if it is gone.
    pub(super) fn replace(&mut self, id: EntryId, stored: Arc<Stored>) -> bool {
        let Some(entry) = self.entry_mut(id) else { return false };
        let bytes = cost(&entry.url, &stored);
        let before = std::mem::replace(&mut entry.bytes, bytes);
        entry.stored = stored;
        self.bytes = self.bytes - before + bytes;
        true
    }

    pub(super) fn touch(&mut self, id: EntryId) {
        if self.newest != Some(id.slot) && self.entry_mut(id).is_some() {
            self.unlink(id.slot);
            self.link(id.slot);
        }
    }

    pub(super) fn remove(&mut self, id: EntryId) {
        if self.entry_mut(id).is_some() {
            self.remove_slot(id.slot);
        }
    }

    pub(super) fn remove_url(&mut self, url: &str) {
        let variants = self.urls.get(url).map(|known| known.variants.clone()).unwrap_or_default();
        for slot in variants {
            self.remove_slot(slot);
        }
    }

    /// The number of entries that had to go.
    pub(super) fn shrink_to(&mut self, max_bytes: u64) -> u64 {
        let mut evicted = 0;
        while self.bytes > max_bytes {
            let Some(oldest) = self.oldest else { break };
            self.remove_slot(oldest);
            evicted += 1;
        }
        evicted
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn hash(&self, url: &str) -> u64 {
        self.urls.hasher().hash_one(url)
    }

    /// That the map, the list and the sums say the same.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let live = || self.slots.iter().filter_map(|slot| slot.entry.as_ref());
        assert_eq!(self.bytes, live().map(|entry| entry.bytes).sum::<u64>());
        assert_eq!(self.bytes, live().map(|entry| cost(&entry.url, &entry.stored)).sum::<u64>());
        assert_eq!(self.urls.values().map(|url| url.variants.len()).sum::<usize>(), self.len());
        assert!(self.urls.values().all(|url| (1..=MAX_VARIANTS).contains(&url.variants.len())));
        let (mut at, mut listed) = (self.oldest, Vec::new());
        while let Some(slot) = at {
            listed.push(self.slots[slot as usize].used);
            assert!(listed.len() <= self.len(), "the list is a circle");
            at = Some(self.slots[slot as usize].newer).filter(|newer| *newer != NONE);
        }
        assert_eq!(listed.len(), self.len());
        assert!(listed.is_sorted());
    }

    fn entry_mut(&mut self, id: EntryId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        slot.entry.as_mut().filter(|_| slot.generation == id.generation)
    }

    fn remove_least_used_of(&mut self, url: &str) {
        let Some(known) = self.urls.get(url) else { return };
        let least = known.variants.iter().copied().min_by_key(|slot| self.slots[*slot as usize].used);
        if let Some(slot) = least {
            self.remove_slot(slot);
        }
    }

    fn remove_slot(&mut self, slot: u32) {
        self.unlink(slot);
        let gone = &mut self.slots[slot as usize];
        gone.generation = gone.generation.wrapping_add(1);
        let Some(entry) = gone.entry.take() else { return };
        self.free.push(slot);
        self.bytes -= entry.bytes;
        if let Some(known) = self.urls.get_mut(&*entry.url) {
            known.variants.retain(|variant| *variant != slot);
            if known.variants.is_empty() {
                self.urls.remove(&*entry.url);
            }
        }
    }

    fn link(&mut self, slot: u32) {
        let used = self.newest.map_or(0, |newest| self.slots[newest as usize].used + 1);
        let older = self.newest.replace(slot).unwrap_or(NONE);
        let linked = &mut self.slots[slot as usize];
        (linked.older, linked.newer, linked.used) = (older, NONE, used);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = slot,
            None => self.oldest = Some(slot),
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, .. } = self.slots[slot as usize];
        let some = |slot: u32| (slot != NONE).then_some(slot);
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = some(newer),
        }
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = some(older),
        }
    }
}

fn cost(url: &str, stored: &Stored) -> u64 {
    stored.bytes() + url.len() as u64 + ENTRY_BYTES
}
