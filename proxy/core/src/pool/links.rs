//! Connections as slots of one vector, and lists threaded through them: no allocation per move.

use std::time::Instant;

pub(super) const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) generation: u32,
    pub(super) open: bool,
    /// May get new leases.
    pub(super) accepting: bool,
    pub(super) leases: u32,
    pub(super) streams: u32,
    pub(super) idle_since: Instant,
    /// The list it is in.
    pub(super) list: Place,
    prev: u32,
    next: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Unlisted,
    /// Nothing leased.
    Idle,
    /// Leased, with room for more.
    Spare,
}

/// A list of slots by index. A slot is in at most one list.
#[derive(Debug)]
pub(super) struct List {
    pub(super) head: u32,
    pub(super) tail: u32,
    pub(super) len: usize,
}

impl Slot {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            generation: 0,
            open: false,
            accepting: false,
            leases: 0,
            streams: 1,
            idle_since: now,
            list: Place::Unlisted,
            prev: NONE,
            next: NONE,
        }
    }

    pub(super) fn open(&mut self, streams: u32) {
        self.open = true;
        self.accepting = true;
        self.streams = streams;
    }

    pub(super) fn close(&mut self) {
        self.open = false;
        self.generation = self.generation.wrapping_add(1);
    }

    pub(super) fn has_room(&self) -> bool {
        self.accepting && self.leases < self.streams
    }

    /// The list it should be in.
    pub(super) fn belongs(&self) -> Place {
        match (self.has_room(), self.leases) {
            (false, _) => Place::Unlisted,
            (true, 0) => Place::Idle,
            (true, _) => Place::Spare,
        }
    }
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }
}

impl List {
    /// To the tail.
    pub(super) fn push(&mut self, slots: &mut [Slot], index: u32) {
        slots[index as usize].prev = self.tail;
        slots[index as usize].next = NONE;
        match slots.get_mut(self.tail as usize) {
            Some(tail) => tail.next = index,
            None => self.head = index,
        }
        self.tail = index;
        self.len += 1;
    }

    pub(super) fn remove(&mut self, slots: &mut [Slot], index: u32) {
        let Slot { prev, next, .. } = slots[index as usize];
        match slots.get_mut(prev as usize) {
            Some(before) => before.next = next,
            None => self.head = next,
        }
        match slots.get_mut(next as usize) {
            Some(after) => after.prev = prev,
            None => self.tail = prev,
        }
        self.len -= 1;
    }
}
