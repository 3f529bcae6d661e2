//! One kind of traffic of one workload, over time: slots of a second, and behind them slots of ten.

use std::{collections::VecDeque, sync::Arc};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{EdgeKey, Side};

use super::slot::Parts;

/// Seconds that one slot of the coarse kind is about; they begin at multiples of it.
pub(super) const COARSE: u64 = 10;
/// What a slot costs besides its bytes: its place in the ring, half of which may be room for more, and what the allocator
/// adds.
const SLOT_COST: usize = 56;
/// A series without slots and texts, its places in the tables included.
const SERIES_COST: usize = 640;

/// What the service is called whose name there is no room for; proxies call it so too.
const OTHER: &str = "other";

/// Whose traffic, and which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SeriesKey {
    pub reporter: SpiffeId,
    pub edge: EdgeKey,
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) key: Arc<SeriesKey>,
    /// No other series of this process has or had it.
    pub(super) serial: u64,
    /// Of the latest connection that had any.
    pub(super) security: Option<Arc<str>>,
    /// Until this second traffic of others is in here that there was no room to keep apart.
    pub(super) folded_until: Option<u64>,
    /// By time. `fine` begins where `coarse` ends.
    fine: VecDeque<Slot>,
    coarse: VecDeque<Slot>,
    /// Requests and connections that are in the slots, about.
    weight: u64,
}

/// 24 bytes.
#[derive(Debug)]
struct Slot {
    /// The second with which it begins.
    at: u64,
    bytes: Box<[u8]>,
}

impl SeriesKey {
    /// What folds take the place of.
    pub(super) fn folded(reporter: &SpiffeId, side: Side) -> Self {
        let edge = EdgeKey { side, service: OTHER.into(), route: "".into(), peer: None };
        Self { reporter: reporter.clone(), edge }
    }

    pub(super) fn is_folded(&self) -> bool {
        let EdgeKey { side: _, service, route, peer } = &self.edge;
        (&**service, &**route, peer) == (OTHER, "", &None)
    }

    pub(super) fn cost(&self) -> usize {
        SERIES_COST + text_len(&self.reporter, &self.edge)
    }
}

pub(super) fn text_len(reporter: &SpiffeId, edge: &EdgeKey) -> usize {
    let EdgeKey { side: _, service, route, peer } = edge;
    let peer = peer.as_ref().map_or(0, |peer| peer.as_str().len());
    reporter.as_str().len() + service.len() + route.len() + peer
}

impl Series {
    pub(super) fn new(key: Arc<SeriesKey>, serial: u64) -> Self {
        let (fine, coarse) = (VecDeque::new(), VecDeque::new());
        Self { key, serial, security: None, folded_until: None, fine, coarse, weight: 0 }
    }

    /// Adds traffic of a second, of which `calls` say how much it is. Returns how much larger it is now.
    pub(super) fn add(
        &mut self,
        second: u64,
        fine_from: u64,
        traffic: &[u8],
        calls: u64,
        scratch: &mut Scratch,
    ) -> isize {
        self.weight = self.weight.saturating_add(calls);
        match second >= fine_from {
            true => put(&mut self.fine, second, traffic, scratch),
            false => put(&mut self.coarse, second / COARSE * COARSE, traffic, scratch),
        }
    }

    /// Makes coarse what is before then, which is a multiple of ten. Returns how much larger it is now.
    pub(super) fn coarsen(&mut self, fine_from: u64, scratch: &mut Scratch) -> isize {
        let mut grown = 0;
        while self.fine.front().is_some_and(|slot| slot.at < fine_from) {
            let Some(first) = self.fine.pop_front() else { break };
            grown -= first.cost();
            let at = first.at / COARSE * COARSE;
            let mut sum = first.bytes;
            if self.fine.front().is_some_and(|slot| slot.at < at + COARSE) {
                scratch.parts.clear();
                scratch.parts.add(&sum);
                while self.fine.front().is_some_and(|slot| slot.at < at + COARSE) {
                    let Some(next) = self.fine.pop_front() else { break };
                    grown -= next.cost();
                    scratch.parts.add(&next.bytes);
                }
                sum = scratch.written();
            }
            grown += put(&mut self.coarse, at, &sum, scratch);
        }
        if self.fine.capacity() > 4 * self.fine.len().max(16) {
            self.fine.shrink_to(2 * self.fine.len());
        }
        grown
    }

    /// Forgets what began before then. Returns how many slots, and how much smaller it is now.
    pub(super) fn forget_before(&mut self, then: u64) -> (u64, isize) {
        let (mut slots, mut shrunk) = (0, 0);
        for ring in [&mut self.coarse, &mut self.fine] {
            while ring.front().is_some_and(|slot| slot.at < then) {
                shrunk += ring.pop_front().map_or(0, |slot| slot.cost());
                slots += 1;
            }
            if ring.capacity() > 4 * ring.len().max(16) {
                ring.shrink_to(2 * ring.len());
            }
        }
        // As if traffic were the same in all of them: it is to say who has little, not how much.
        let left = (self.fine.len() + self.coarse.len()) as u64;
        self.weight =
            u64::try_from(u128::from(self.weight) * u128::from(left) / u128::from((left + slots).max(1)))
                .unwrap_or(u64::MAX);
        (slots, shrunk)
    }

    /// Takes in what another one has. Returns how much larger it is now.
    pub(super) fn fold(&mut self, other: &Self, scratch: &mut Scratch) -> isize {
        self.weight = self.weight.saturating_add(other.weight);
        let mut grown = 0;
        let rings = [(&mut self.fine, &other.fine), (&mut self.coarse, &other.coarse)];
        for (ring, others) in rings {
            for slot in others {
                grown += put(ring, slot.at, &slot.bytes, scratch);
            }
        }
        grown
    }

    /// The slots that begin within `from..to`, in seconds.
    pub(super) fn slots(&self, from: u64, to: u64) -> impl Iterator<Item = &[u8]> {
        let within = move |ring: &VecDeque<Slot>| {
            ring.partition_point(|slot| slot.at < from)..ring.partition_point(|slot| slot.at < to)
        };
        let (coarse, fine) = (within(&self.coarse), within(&self.fine));
        // A window that ends before it begins is empty.
        let range = |ring: &VecDeque<Slot>, within: std::ops::Range<usize>| {
            within.start..within.end.max(within.start).min(ring.len())
        };
        let coarse = self.coarse.range(range(&self.coarse, coarse));
        coarse.chain(self.fine.range(range(&self.fine, fine))).map(|slot| &*slot.bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.fine.is_empty() && self.coarse.is_empty()
    }

    pub(super) fn weight(&self) -> u64 {
        self.weight
    }

    /// The oldest second, the coarse ones' first.
    pub(super) fn first(&self) -> Option<u64> {
        self.coarse.front().or_else(|| self.fine.front()).map(|slot| slot.at)
    }

    pub(super) fn cost(&self) -> usize {
        let slots = self.fine.iter().chain(&self.coarse).map(Slot::cost).sum::<isize>();
        self.key.cost().saturating_add_signed(slots)
    }
}

impl Slot {
    fn cost(&self) -> isize {
        (SLOT_COST + self.bytes.len()) as isize
    }
}

/// Room for sums, that is not made anew for each.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    parts: Parts,
    bytes: Vec<u8>,
}

impl Scratch {
    /// The parts as a slot.
    fn written(&mut self) -> Box<[u8]> {
        self.bytes.clear();
        self.parts.write(&mut self.bytes);
        self.bytes.as_slice().into()
    }
}

fn put(ring: &mut VecDeque<Slot>, at: u64, traffic: &[u8], scratch: &mut Scratch) -> isize {
    // Nearly always the last one, or one after it.
    let place = match ring.back() {
        None => 0,
        Some(last) if last.at < at => ring.len(),
        Some(_) => ring.partition_point(|slot| slot.at < at),
    };
    if let Some(slot) = ring.get_mut(place)
        && slot.at == at
    {
        let before = slot.cost();
        scratch.parts.clear();
        scratch.parts.add(&slot.bytes);
        scratch.parts.add(traffic);
        slot.bytes = scratch.written();
        return slot.cost() - before;
    }
    let slot = Slot { at, bytes: traffic.into() };
    let cost = slot.cost();
    ring.insert(place, slot);
    cost
}
