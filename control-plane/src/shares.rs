//! Divides each shared rate limit among the proxies that hold it.
//!
//! Every proxy admits its share of the limit by itself; here the shares follow what each is asked for. Nobody waits for
//! an answer from here to admit a request, so a limit holds about as well as its shares are up to date, and not at all
//! worse than by a fixed part each when nothing is heard from here.
//!
//! # Who gets how much
//!
//! Each holder gets a reserve ([`RESERVE`]), so that one where traffic begins has something to begin with. Beyond it, who
//! asks for less than the others gets what it asks for, and the rest is divided equally among those who ask for more
//! (water is filled up to one level). What nobody asks for is spread equally. A limit with a count per key is divided by
//! demand in proportion instead: its demand is over all keys, and each key's is taken to be spread alike.
//!
//! # Taking before giving
//!
//! ```text
//!            lowered: sent                                raised: sent
//!   share A ────┐                                share B      ┌────────
//!               └────────────                          ───────┘
//!               ├── SETTLE ──┤ the old one may still be in force: nobody else gets it
//! ```
//!
//! A share counts as its holder's until a lower one was sent and had the time to arrive. That of a holder that is lost
//! counts until it has run out ([`VALID_FOR`] after it was last sent): its process may live on without us. So the shares
//! in force never sum up to more than the limit, as long as messages take less than [`SETTLE`]; one that takes longer is
//! in excess by what it should have given up, until the old share runs out.
//!
//! What is not bounded by shares: a new holder that has not heard from us goes by the whole limit, and a lost one that
//! lives goes by one part of so many holders once its share has run out.
//!
//! # Calling it
//!
//! [`Shares::divide`] after a join and every [`INTERVAL`]; what it returns is sent at once. It has no clock and sends
//! nothing.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use outrigger_proto::spec::{Demand, RateLimit, Share};

mod level;

/// Between two divisions, and between two reports of a proxy.
pub const INTERVAL: Duration = Duration::from_millis(250);
/// Of a share, after it was sent. Six intervals: one message may be late or lost without consequence.
pub const VALID_FOR: Duration = Duration::from_millis(1500);
/// What a lowered share takes to arrive, at most.
pub const SETTLE: Duration = INTERVAL;

/// All of a limit; shares are in millionths.
const WHOLE: u64 = 1_000_000;
/// Of each holder, whatever it asks for: 1 %; all of them together at most 10 %.
const RESERVE: u64 = WHOLE / 100;

/// The limits of the mesh and their holders. `H` names a proxy.
#[derive(Debug)]
pub struct Shares<H> {
    limits: BTreeMap<Arc<str>, Limit<H>>,
}

#[derive(Debug)]
struct Limit<H> {
    thousandths_per_second: u64,
    keyed: bool,
    holders: BTreeMap<H, Holder>,
}

#[derive(Debug)]
struct Holder {
    /// In millionths of the limit.
    demand: u64,
    /// The last that was sent, and until when it is good.
    share: u64,
    runs_out: Option<Instant>,
    /// Larger ones that may be in force still, and until when.
    before: VecDeque<(u64, Instant)>,
    lost: bool,
}

impl<H: Ord + Clone> Shares<H> {
    pub fn new() -> Self {
        Self { limits: BTreeMap::new() }
    }

    /// The proxy has this limit in its policy now, or has it with other numbers.
    pub fn on_join(&mut self, holder: H, limit: &RateLimit) {
        let divided = self.limits.entry(limit.name.clone()).or_insert_with(|| Limit {
            thousandths_per_second: 0,
            keyed: false,
            holders: BTreeMap::new(),
        });
        divided.thousandths_per_second = thousandths_per_second(limit);
        divided.keyed = !limit.key.is_empty();
        divided.holders.entry(holder).or_insert_with(Holder::new).lost = false;
    }

    /// The proxy does not have this limit any more, and has said so: what it held is free at once.
    pub fn on_left(&mut self, holder: &H, limit: &str) {
        if let Some(divided) = self.limits.get_mut(limit) {
            divided.holders.remove(holder);
        }
        self.limits.retain(|_, limit| !limit.holders.is_empty());
    }

    /// The proxy's stream has ended. It may live on: what it held is free when it has run out.
    pub fn on_lost(&mut self, holder: &H) {
        for limit in self.limits.values_mut() {
            if let Some(holder) = limit.holders.get_mut(holder) {
                holder.lost = true;
            }
        }
    }

    /// What a proxy is asked for now. Without effect on a limit that it has not joined.
    pub fn on_demand(&mut self, holder: &H, demand: &Demand) {
        let Some(limit) = self.limits.get_mut(&demand.limit) else { return };
        let Some(holder) = limit.holders.get_mut(holder) else { return };
        let whole = u128::from(limit.thousandths_per_second.max(1));
        let parts = u128::from(demand.thousandths_per_second) * u128::from(WHOLE) / whole;
        holder.demand = u64::try_from(parts).unwrap_or(u64::MAX).min(WHOLE * WHOLE);
    }

    /// Divides every limit anew. `live` says how many live holders of a limit are known in the mesh, those that report
    /// to another control plane included: of the whole, only the fraction of those that report here is divided.
    pub fn divide(&mut self, live: impl Fn(&str) -> u32, now: Instant) -> Vec<(H, Share)> {
        let mut shares = Vec::new();
        for (name, limit) in &mut self.limits {
            limit.divide(live(name), now);
            let live = limit.live(live(name));
            shares.extend(limit.holders.iter().filter(|(_, holder)| !holder.lost).map(|(id, holder)| {
                let share = Share {
                    limit: name.clone(),
                    parts_per_million: u32::try_from(holder.share).unwrap_or(u32::MAX),
                    holders: live,
                    valid_for: VALID_FOR,
                };
                (id.clone(), share)
            }));
        }
        self.limits.retain(|_, limit| !limit.holders.is_empty());
        shares
    }

    /// Of one limit: who holds it, what each is asked for and its share, both in millionths of the limit.
    pub fn holders(&self, limit: &str) -> impl Iterator<Item = (&H, u64, u64)> {
        let holders = self.limits.get(limit).into_iter().flat_map(|limit| &limit.holders);
        holders.map(|(id, holder)| (id, holder.demand, holder.share))
    }
}

impl<H: Ord + Clone> Default for Shares<H> {
    fn default() -> Self {
        Self::new()
    }
}

impl<H: Ord> Limit<H> {
    fn reporting(&self) -> u64 {
        self.holders.values().filter(|holder| !holder.lost).count() as u64
    }

    /// At least those that we see ourselves.
    fn live(&self, known: u32) -> u32 {
        u32::try_from(self.reporting()).unwrap_or(u32::MAX).max(known).max(1)
    }

    fn divide(&mut self, live: u32, now: Instant) {
        self.holders.retain(|_, holder| !(holder.lost && holder.runs_out.is_none_or(|end| end <= now)));
        let capacity = WHOLE * self.reporting() / u64::from(self.live(live));
        let present = || self.holders.values().filter(|holder| !holder.lost);
        let reserve = RESERVE.min(capacity / 10 / (present().count() as u64).max(1));
        let wanted: Vec<_> = present().map(|holder| holder.demand.max(reserve)).collect();
        let targets = if self.keyed {
            level::in_proportion(&wanted, reserve, capacity)
        } else {
            level::fill(&wanted, capacity)
        };

        for (holder, &target) in present_mut(&mut self.holders).zip(&targets) {
            holder.before.retain(|(_, until)| *until > now);
            if target < holder.share {
                holder.before.push_back((holder.share, now + SETTLE));
                holder.share = target;
            }
            // What may be in force anyhow is free to be given again.
            holder.share = target.min(holder.in_force());
            holder.runs_out = Some(now + VALID_FOR);
        }
        let held: u64 = self.holders.values().map(Holder::in_force).sum();
        let free = capacity.saturating_sub(held);
        let missing: Vec<_> = present_mut(&mut self.holders)
            .zip(&targets)
            .map(|(holder, target)| target - holder.share)
            .collect();
        let sum = missing.iter().sum::<u64>().max(1);
        for (holder, missing) in present_mut(&mut self.holders).zip(missing) {
            holder.share += missing.min((u128::from(missing) * u128::from(free) / u128::from(sum)) as u64);
        }
    }
}

fn present_mut<H>(holders: &mut BTreeMap<H, Holder>) -> impl Iterator<Item = &mut Holder> {
    holders.values_mut().filter(|holder| !holder.lost)
}

impl Holder {
    fn new() -> Self {
        Self { demand: 0, share: 0, runs_out: None, before: VecDeque::new(), lost: false }
    }

    /// The largest share that it may go by now.
    fn in_force(&self) -> u64 {
        self.before.iter().map(|(share, _)| *share).fold(self.share, u64::max)
    }
}

fn thousandths_per_second(limit: &RateLimit) -> u64 {
    let thousandths = u128::from(limit.requests.get()) * 1_000_000_000_000 / limit.per.as_nanos().max(1);
    u64::try_from(thousandths).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests;
