//! What is remembered of each key: bounded, the one idle for longest is forgotten first.
//!
//! A table of indices into a slab of slots, which are linked in the order of their last use. No allocation once it is
//! full, none for a key that is known. Keys are hashes already.

use hashbrown::HashTable;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Counts<T> {
    max: usize,
    table: HashTable<u32>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Slot<T> {
    key: u64,
    newer: u32,
    older: u32,
    count: T,
}

impl<T> Counts<T> {
    pub(super) fn new(max: u32) -> Self {
        Self {
            max: max as usize,
            table: HashTable::new(),
            slots: Vec::new(),
            free: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    pub(super) fn set_max(&mut self, max: u32) {
        self.max = max as usize;
        while self.table.len() > self.max {
            self.forget_oldest();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    pub(super) fn known(&mut self, key: u64) -> Option<&mut T> {
        let slot = self.find(key)?;
        Some(&mut self.slots[slot as usize].count)
    }

    /// Its count, made by `new` if there is none. It is the newest then.
    pub(super) fn touch(&mut self, key: u64, new: impl FnOnce() -> T) -> &mut T {
        let slot = match self.find(key) {
            Some(slot) if slot == self.newest => slot,
            Some(slot) => {
                self.unlink(slot);
                self.link(slot);
                slot
            }
            None => self.insert(key, new()),
        };
        &mut self.slots[slot as usize].count
    }

    /// Those forgotten and not yet replaced come, too.
    pub(super) fn for_each(&mut self, change: impl FnMut(&mut T)) {
        self.slots.iter_mut().map(|slot| &mut slot.count).for_each(change);
    }

    fn find(&self, key: u64) -> Option<u32> {
        self.table.find(key, |&slot| self.slots[slot as usize].key == key).copied()
    }

    fn insert(&mut self, key: u64, count: T) -> u32 {
        if self.table.len() >= self.max {
            self.forget_oldest();
        }
        let new = Slot { key, newer: NONE, older: NONE, count };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = new;
                slot
            }
            None => {
                self.slots.push(new);
                self.slots.len() as u32 - 1
            }
        };
        self.table.insert_unique(key, slot, |&slot| self.slots[slot as usize].key);
        self.link(slot);
        slot
    }

    fn forget_oldest(&mut self) {
        let slot = self.oldest;
        let Some(&Slot { key, .. }) = self.slots.get(slot as usize) else { return };
        if let Ok(entry) = self.table.find_entry(key, |&other| other == slot) {
            entry.remove();
        }
        self.unlink(slot);
        self.free.push(slot);
    }

    fn link(&mut self, slot: u32) {
        let older = self.newest;
        self.slots[slot as usize].older = older;
        self.slots[slot as usize].newer = NONE;
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { newer, older, .. } = self.slots[slot as usize];
        match self.slots.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        match self.slots.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_idle_for_longest_is_forgotten() {
        let mut counts = Counts::new(3);
        for key in [1, 2, 3, 1, 4] {
            *counts.touch(key, || 0) += 1;
        }
        assert_eq!(counts.known(2), None);
        assert_eq!([1, 3, 4].map(|key| counts.known(key).copied()), [Some(2), Some(1), Some(1)]);
        counts.set_max(1);
        assert_eq!((counts.len(), counts.known(4).copied()), (1, Some(1)));
        *counts.touch(5, || 7) += 1;
        assert_eq!((counts.len(), counts.known(4).copied(), counts.known(5).copied()), (1, None, Some(8)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut counts = Counts::new(100);
        for key in 0..100_000_u64 {
            counts.touch(key.wrapping_mul(0x9e37_79b9_7f4a_7c15), || ());
        }
        assert_eq!(counts.len(), 100);
        assert!(counts.slots.len() <= 100 && counts.table.capacity() < 400 && counts.free.is_empty());
    }
}
