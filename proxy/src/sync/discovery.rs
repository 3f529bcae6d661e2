//! What the data path holds of the control side: ask for a destination, say that one is in use.
//!
//! Every worker thread calls it, none ever waits in it. [`Discovery::want`] is for what the snapshot does not know (a
//! short lock, off the hot path). [`Discovery::touch`] is for every request: one hash and one atomic load, because uses
//! are kept as bits of a table that the sweep reads and clears each minute. Two destinations may share a bit; then one of
//! them stays subscribed for longer than it must.
//!
//! It gives no answers: those come with the next snapshot (`Shared::changes`).

use std::{
    hash::BuildHasher as _,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hashbrown::HashSet;
use outrigger_core::limits::RESOLVE_TIMEOUT;
use outrigger_proto::spec::DestinationKey;
use serde::Serialize;
use tokio::sync::Notify;

/// Destinations that one proxy follows at most. What is asked for above it takes the place of the longest unused. Below
/// what a control plane lets one proxy subscribe to.
pub const MAX_DESTINATIONS: usize = 8_192;
/// Bits of the table of uses; 8 KiB.
const BITS: usize = 65_536;

/// A handle; clones share everything.
#[derive(Clone)]
pub struct Discovery(Arc<Inner>);

struct Inner {
    hasher: foldhash::fast::FixedState,
    used: Box<[AtomicU64]>,
    asked: Mutex<Asked>,
    control_planes: Mutex<Vec<ControlPlane>>,
    news: Notify,
    connected: AtomicBool,
    began: Instant,
    /// Milliseconds after `began` when the last connection was lost; 0: none was.
    lost: AtomicU64,
}

/// How we stand with one control plane, for the admin pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ControlPlane {
    pub address: String,
    pub standing: Standing,
    /// Why the last stream or attempt ended; empty if none has.
    pub last_error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    Away,
    /// Knows of this workload, sends no configuration.
    Standby,
    /// Sends the configuration.
    Active,
}

#[derive(Default)]
struct Asked {
    /// Asked for and not forgotten since: there is no need to ask again.
    known: HashSet<DestinationKey, foldhash::fast::RandomState>,
    /// Not yet seen by the driver.
    queue: Vec<DestinationKey>,
    /// Somebody was turned away since the driver looked.
    full: bool,
}

/// What the driver finds when it looks.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    pub(super) wanted: Vec<DestinationKey>,
    /// The table is full: make room.
    pub(super) full: bool,
}

/// Uses since the last sweep.
pub(super) struct Uses {
    hasher: foldhash::fast::FixedState,
    bits: Box<[u64]>,
}

// === impl Discovery ===

impl Discovery {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner {
            hasher: foldhash::fast::FixedState::default(),
            used: (0..BITS / 64).map(|_| AtomicU64::new(0)).collect(),
            asked: Mutex::default(),
            control_planes: Mutex::default(),
            news: Notify::new(),
            connected: AtomicBool::new(false),
            began: Instant::now(),
            lost: AtomicU64::new(0),
        }))
    }

    /// Asks the control plane about a destination. Returns at once; asking again costs little and changes nothing.
    ///
    /// `false`: too many destinations are followed already. Room is being made; ask again a little later.
    pub fn want(&self, key: &DestinationKey) -> bool {
        self.touch(key);
        let mut asked = self.asked();
        if asked.known.contains(key) {
            return true;
        }
        let room = asked.known.len() < MAX_DESTINATIONS;
        if room {
            asked.known.insert(key.clone());
            asked.queue.push(key.clone());
        } else {
            asked.full = true;
        }
        drop(asked);
        self.0.news.notify_one();
        room
    }

    /// Notes that a destination is in use. What is not used for ten minutes is forgotten.
    pub fn touch(&self, key: &DestinationKey) {
        let (word, bit) = place(&self.0.hasher, key);
        // Mostly set already: reading does not take the cache line away from the other workers.
        if self.0.used[word].load(Relaxed) & bit == 0 {
            self.0.used[word].fetch_or(bit, Relaxed);
        }
    }

    /// Whether a control plane is answering: if not, an unknown destination will stay unknown for now.
    /// Whether an answer may come within [`RESOLVE_TIMEOUT`]: there is a connection, or there was one a moment ago and the
    /// next control plane, or a restarted one, is about to take over.
    pub fn may_answer(&self) -> bool {
        let since_lost = || match self.0.lost.load(Relaxed) {
            0 => None,
            lost => Some(self.0.began.elapsed().saturating_sub(Duration::from_millis(lost))),
        };
        self.0.connected.load(Relaxed) || since_lost().is_some_and(|since| since < RESOLVE_TIMEOUT)
    }

    /// In the order of the list that was configured.
    pub fn control_planes(&self) -> Vec<ControlPlane> {
        self.0.control_planes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ---- the driver's side

    pub(super) fn update_control_planes<T>(&self, update: impl FnOnce(&mut Vec<ControlPlane>) -> T) -> T {
        update(&mut self.0.control_planes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_connected(&self, connected: bool) {
        if self.0.connected.swap(connected, Relaxed) && !connected {
            let lost = self.0.began.elapsed().as_millis();
            self.0.lost.store(u64::try_from(lost).unwrap_or(u64::MAX).max(1), Relaxed);
        }
    }

    /// Waits until there may be news.
    pub(super) async fn has_news(&self) {
        self.0.news.notified().await;
    }

    pub(super) fn take_news(&self) -> News {
        let mut asked = self.asked();
        News { wanted: mem::take(&mut asked.queue), full: mem::take(&mut asked.full) }
    }

    /// These are followed without having been asked for (they were on disk).
    pub(super) fn know<'a>(&self, keys: impl IntoIterator<Item = &'a DestinationKey>) {
        self.asked().known.extend(keys.into_iter().cloned());
    }

    /// These are followed no longer: whoever misses one has to ask again.
    ///
    /// To be called *before* a snapshot without them is published. The other way round, a worker that misses one would
    /// be told that it was asked for already, and nobody would ask.
    pub(super) fn forget(&self, keys: &[DestinationKey]) {
        let mut asked = self.asked();
        for key in keys {
            asked.known.remove(key);
        }
    }

    pub(super) fn take_uses(&self) -> Uses {
        Uses {
            hasher: self.0.hasher.clone(),
            bits: self.0.used.iter().map(|word| word.swap(0, Relaxed)).collect(),
        }
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.0.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Uses ===

impl Uses {
    pub(super) fn contains(&self, key: &DestinationKey) -> bool {
        let (word, bit) = place(&self.hasher, key);
        self.bits[word] & bit != 0
    }
}

fn place(hasher: &foldhash::fast::FixedState, key: &DestinationKey) -> (usize, u64) {
    let place = hasher.hash_one(key) as usize % BITS;
    (place / 64, 1 << (place % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> DestinationKey {
        DestinationKey::address(([10, 0, 0, 1], port).into())
    }

    #[test]
    fn asking_twice_is_asking_once() {
        let discovery = Discovery::new();
        assert!(discovery.want(&key(1)) && discovery.want(&key(2)) && discovery.want(&key(1)));
        assert_eq!(discovery.take_news(), News { wanted: vec![key(1), key(2)], full: false });
        assert!(discovery.want(&key(1)));
        assert_eq!(discovery.take_news(), News::default());
    }

    #[test]
    fn what_was_forgotten_can_be_asked_for_again() {
        let discovery = Discovery::new();
        discovery.know([&key(1)]);
        discovery.want(&key(1));
        assert_eq!(discovery.take_news(), News::default());
        discovery.forget(&[key(1)]);
        discovery.want(&key(1));
        assert_eq!(discovery.take_news().wanted, [key(1)]);
    }

    #[test]
    fn a_full_table_turns_away_and_says_so() {
        let discovery = Discovery::new();
        let keys: Vec<_> = (0..MAX_DESTINATIONS).map(|n| key(n as u16 + 1)).collect();
        assert!(keys.iter().all(|key| discovery.want(key)));
        assert!(!discovery.take_news().full);
        assert!(!discovery.want(&key(60_000)), "one too many");
        assert!(discovery.want(&keys[0]), "those that are in stay in");
        assert_eq!(discovery.take_news(), News { wanted: vec![], full: true });
        discovery.forget(&keys[..1]);
        assert!(discovery.want(&key(60_000)));
    }

    #[test]
    fn uses_are_seen_once() {
        let discovery = Discovery::new();
        discovery.touch(&key(1));
        let uses = discovery.take_uses();
        assert!(uses.contains(&key(1)));
        assert_eq!((1..1_000).filter(|port| uses.contains(&key(*port))).count(), 1);
        assert!(!discovery.take_uses().contains(&key(1)));
    }

    #[test]
    fn an_answer_may_come_while_connected_and_for_a_moment_after() {
        let discovery = Discovery::new();
        assert!(!discovery.may_answer(), "it was never connected");
        discovery.set_connected(true);
        assert!(discovery.may_answer());
        discovery.set_connected(false);
        assert!(discovery.may_answer());
        // As if it had been lost when the proxy started, long ago.
        discovery.0.lost.store(1, Relaxed);
        let end = Instant::now() + 2 * RESOLVE_TIMEOUT;
        while discovery.may_answer() {
            assert!(Instant::now() < end, "it goes on for ever");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[tokio::test]
    async fn news_wake_the_driver_from_another_thread() {
        let discovery = Discovery::new();
        let worker = std::thread::spawn({
            let discovery = discovery.clone();
            move || discovery.want(&key(1))
        });
        discovery.has_news().await;
        assert!(worker.join().unwrap());
        assert_eq!(discovery.take_news().wanted, [key(1)]);
    }
}
