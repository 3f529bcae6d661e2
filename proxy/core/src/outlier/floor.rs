//! How many endpoints may be out; and policies and endpoints as they come and go.

use std::time::Instant;

use outrigger_proto::spec::{Circuit, Ejection};

use super::{
    Breakers,
    endpoint::{Endpoint, GONE, NEVER},
    policy::{Policy, Why},
    window::At,
};

/// Of so many endpoints, how many may be ejected at once: the share rounded up, so that 1 of 2 can be.
pub fn most_ejected(endpoints: usize, percent: u8) -> usize {
    (endpoints * usize::from(percent.min(100))).div_ceil(100)
}

impl Breakers {
    /// Applies to the next request. Counters, windows and open circuits stay, an open one to the end it has; but the
    /// floor may need some back, and a policy turned off closes what detectors have opened.
    pub fn set_policy(&mut self, policy: &Ejection, now: Instant) {
        if self.policy.as_ref().map(|policy| &policy.spec) == policy.0.as_ref() {
            return;
        }
        let at = self.at(now);
        match (self.policy.take(), policy.0.as_ref().map(Policy::new)) {
            (_, None) => self.turn_off(at),
            (None, Some(new)) => self.policy = Some(new),
            (Some(old), Some(new)) => {
                if old.widths != new.widths {
                    for learned in
                        self.slots.iter_mut().filter_map(|endpoint| endpoint.learned.as_deref_mut())
                    {
                        learned.adopt(&old.widths, &new.widths, &new.spec, at);
                    }
                }
                self.next_comparison = new
                    .compare_every
                    .and_then(|every| (!self.recent.is_empty()).then(|| at.saturating_add(every)));
                self.policy = Some(new);
            }
        }
        self.restore(at);
        self.settle(at);
    }

    /// The endpoints are now these: of each, which it was before. What is known of those that stay stays; events of
    /// those that went are dropped.
    pub fn relink(&mut self, before: &[Option<usize>], now: Instant) {
        self.reorder(before);
        let at = self.at(now);
        self.restore(at);
        self.settle(at);
    }

    /// Whether one more closed circuit may be opened by a detector.
    pub(super) fn may_eject(&self) -> bool {
        self.ejected < self.share() && self.admitted > self.min_ready()
    }

    fn share(&self) -> usize {
        self.policy.as_ref().map_or(0, |it| most_ejected(self.order.len(), it.spec.max_ejected_percent))
    }

    /// Takes out whom active checks want out, as far as `min_ready` allows.
    pub(super) fn settle(&mut self, at: At) {
        if self.held == 0 || self.admitted <= self.min_ready() {
            return;
        }
        for index in 0..self.order.len() {
            if self.held == 0 || self.admitted <= self.min_ready() {
                return;
            }
            let slot = self.order[index];
            let endpoint = &self.slots[slot as usize];
            if endpoint.sick && endpoint.circuit == Circuit::Closed {
                self.enter(slot, Circuit::Open, NEVER, Why::ChecksFail, at);
            }
        }
    }

    /// Takes back whom the floor does not allow to be out: those under probation first, then who would be back soonest,
    /// those that fail active checks last.
    pub(super) fn restore(&mut self, at: At) {
        let (most, least) = (self.share(), self.min_ready().min(self.order.len()));
        let mut over = self.ejected.saturating_sub(most);
        let mut short = least.saturating_sub(self.admitted);
        if over == 0 && short == 0 {
            return;
        }
        let mut out: Vec<_> = self
            .order
            .iter()
            .map(|slot| (*slot, &self.slots[*slot as usize]))
            .filter(|(_, endpoint)| endpoint.circuit != Circuit::Closed)
            .map(|(slot, endpoint)| (endpoint.sick, endpoint.circuit == Circuit::Open, endpoint.due, slot))
            .collect();
        out.sort_unstable();
        for (sick, _, _, slot) in out {
            let ejected = self.slots[slot as usize].ejected;
            if short == 0 && (over == 0 || !ejected) {
                continue;
            }
            if short == 0 && sick {
                self.pardon(slot);
            } else {
                let why = match short {
                    0 => Why::Share { most, endpoints: self.order.len() },
                    _ => Why::MinReady(least),
                };
                self.enter(slot, Circuit::Closed, NEVER, why, at);
                short = short.saturating_sub(1);
            }
            over -= usize::from(ejected && over > 0);
        }
    }

    /// Gives the endpoints new places; forgets those that have none, and makes those that are new.
    pub(super) fn reorder(&mut self, before: &[Option<usize>]) {
        let mut old: Vec<Option<u32>> = std::mem::take(&mut self.order).into_iter().map(Some).collect();
        // Who is named twice is the first of them.
        let stays: Vec<Option<u32>> =
            before.iter().map(|from| from.and_then(|from| old.get_mut(from)?.take())).collect();
        let mut forgotten = false;
        for slot in old.into_iter().flatten() {
            self.forget(slot);
            forgotten = true;
        }
        if forgotten {
            self.recent.retain(|slot| self.slots[*slot as usize].listed);
            self.events.retain(|(slot, _)| self.slots[*slot as usize].index != GONE);
        }
        self.gates.clear();
        for (index, stays) in stays.into_iter().enumerate() {
            let slot = stays.unwrap_or_else(|| self.make());
            let endpoint = &mut self.slots[slot as usize];
            endpoint.index = index as u32;
            self.order.push(slot);
            self.gates.push(match endpoint.circuit {
                Circuit::Closed => true,
                Circuit::Open => false,
                Circuit::HalfOpen => !endpoint.probing,
            });
        }
    }

    fn make(&mut self) -> u32 {
        self.admitted += 1;
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Endpoint::new(GONE, 0));
            self.slots.len() as u32 - 1
        })
    }

    fn forget(&mut self, slot: u32) {
        let endpoint = &mut self.slots[slot as usize];
        self.timers.remove(&(endpoint.due, slot));
        self.waiting.remove(&(endpoint.due, slot));
        if endpoint.circuit == Circuit::Closed {
            self.admitted -= 1;
            self.held -= usize::from(endpoint.sick);
        }
        self.ejected -= usize::from(endpoint.ejected);
        *endpoint = Endpoint::new(GONE, endpoint.round.wrapping_add(1));
        self.free.push(slot);
    }
}
