//! Which destinations this proxy follows, and for how long: what nobody uses is given up after ten minutes.
//!
//! A table and its clockwork, nothing else: what giving up means is the session's business.

use std::time::{Duration, Instant};

use hashbrown::HashMap;
use outrigger_proto::spec::DestinationKey;

/// A destination that was not used for this long is given up.
pub(super) const UNUSED: Duration = Duration::from_secs(600);
/// How often uses are looked at: a destination is given up this much too late at most.
pub(super) const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Interest {
    followed: HashMap<DestinationKey, Use, foldhash::fast::RandomState>,
    next_sweep: Instant,
}

struct Use {
    last: Instant,
    /// Followed for as long as the process lives: somebody configured it.
    pinned: bool,
}

impl Interest {
    pub(super) fn new(now: Instant) -> Self {
        Self { followed: HashMap::default(), next_sweep: now + SWEEP }
    }

    pub(super) fn pin(&mut self, key: DestinationKey, now: Instant) {
        self.followed.insert(key, Use { last: now, pinned: true });
    }

    /// Says whether this is new.
    pub(super) fn follow(&mut self, key: DestinationKey, now: Instant) -> bool {
        let mut new = false;
        let entry = self.followed.entry(key).or_insert_with(|| {
            new = true;
            Use { last: now, pinned: false }
        });
        entry.last = now;
        new
    }

    pub(super) fn contains(&self, key: &DestinationKey) -> bool {
        self.followed.contains_key(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &DestinationKey> {
        self.followed.keys()
    }

    pub(super) fn poll_timeout(&self) -> Instant {
        self.next_sweep
    }

    /// Takes down what was used. To be called at the time of `poll_timeout` and before anything is given up.
    pub(super) fn on_uses(&mut self, used: impl Fn(&DestinationKey) -> bool, now: Instant) {
        for (key, entry) in &mut self.followed {
            if used(key) {
                entry.last = now;
            }
        }
    }

    /// Gives up nothing this time.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.next_sweep = now + SWEEP;
    }

    /// Gives up what was not used for too long.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<DestinationKey> {
        self.next_sweep = now + SWEEP;
        let idle =
            |_: &DestinationKey, entry: &mut Use| !entry.pinned && now.duration_since(entry.last) >= UNUSED;
        self.followed.extract_if(idle).map(|(key, _)| key).collect()
    }

    /// Gives up the `count` that were not used for the longest time.
    pub(super) fn make_room(&mut self, count: usize) -> Vec<DestinationKey> {
        let mut candidates: Vec<_> = self
            .followed
            .iter()
            .filter(|(_, entry)| !entry.pinned)
            .map(|(key, entry)| (entry.last, key.clone()))
            .collect();
        if candidates.len() > count {
            candidates.select_nth_unstable(count);
            candidates.truncate(count);
        }
        let given_up: Vec<_> = candidates.into_iter().map(|(_, key)| key).collect();
        for key in &given_up {
            self.followed.remove(key);
        }
        given_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(port: u16) -> DestinationKey {
        DestinationKey::address(([10, 0, 0, 1], port).into())
    }

    #[test]
    fn what_nobody_uses_is_given_up_after_ten_minutes() {
        let start = Instant::now();
        let mut interest = Interest::new(start);
        assert!(
            interest.follow(key(1), start)
                && interest.follow(key(2), start)
                && !interest.follow(key(2), start)
        );
        interest.pin(key(3), start);
        let mut given_up = Vec::new();
        let mut now = start;
        while now < start + UNUSED + SWEEP {
            now = interest.poll_timeout();
            interest.on_uses(|used| *used == key(2), now);
            for key in interest.sweep(now) {
                given_up.push((key, now.duration_since(start)));
            }
        }
        assert_eq!(given_up, [(key(1), UNUSED)]);
        assert!(interest.contains(&key(2)) && interest.contains(&key(3)));
    }

    #[test]
    fn room_is_made_among_the_longest_unused() {
        let start = Instant::now();
        let mut interest = Interest::new(start);
        interest.pin(key(100), start);
        for n in 1..=8 {
            interest.follow(key(n), start + Duration::from_secs(n.into()));
        }
        let mut given_up = interest.make_room(3);
        given_up.sort();
        assert_eq!(given_up, [key(1), key(2), key(3)]);
        assert_eq!(interest.make_room(100).len(), 5);
        assert!(interest.contains(&key(100)), "pinned");
    }
}
