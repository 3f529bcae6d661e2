//! What is known of the members of a backend beside their load: weight, admission, age, and their order.
//!
//! Members are laid out so that whoever may be chosen together lies together: own zone first, then by subset. A *position*
//! is a place in that order, an *index* the caller's number. Without zones and subsets they are the same, and nothing is
//! kept for it.

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use hashbrown::HashMap;

use super::Member;

/// Share of its weight that an endpoint begins with. Envoy's and Istio's `min_weight_percent`: 10 %.
pub(super) const SLOW_START_FROM: f64 = 0.1;

#[derive(Debug)]
pub(super) struct Fleet {
    /// `None`: positions are indices.
    order: Option<Order>,
    pub(super) admitted: Bits,
    /// By position. `None`: all are equal.
    weights: Option<Box<[NonZeroU32]>>,
    /// One over the mean weight.
    per_mean: f64,
    pub(super) ramp: Option<Ramp>,
}

#[derive(Debug)]
struct Order {
    /// By position.
    indices: Box<[u32]>,
    /// By index.
    positions: Box<[u32]>,
}

/// Where what lies: the order of [`Fleet`], cut into ranges.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Ends of: the own zone and the others, then (if there are subsets) the same of each subset, all own zones first.
    pub(super) ranges: Vec<(u32, u32)>,
    /// The number of each value of the subset's label.
    pub(super) subsets: HashMap<Arc<str>, u32>,
    pub(super) indices: Option<Box<[u32]>>,
}

/// A set of positions.
#[derive(Debug)]
pub(super) struct Bits(Box<[u64]>);

/// Who is in slow start.
#[derive(Debug)]
pub(super) struct Ramp {
    /// What `starts` are counted from: one window before the picker was made.
    base: Instant,
    /// One over the window, in milliseconds.
    per_window: f64,
    /// When it became ready, in milliseconds, by position; 0: so long ago that it does not matter.
    starts: Box<[u32]>,
    /// After this everybody has its full share.
    until: Instant,
}

// === impl Fleet ===

impl Fleet {
    pub(super) fn new(members: &[Member], layout: &mut Layout, ramp: Option<Ramp>) -> Self {
        let order = layout.indices.take().map(|indices| {
            let mut positions = vec![0; indices.len()].into_boxed_slice();
            for (position, index) in (0..).zip(&indices) {
                positions[*index as usize] = position;
            }
            Order { indices, positions }
        });
        let mut fleet =
            Self { order, admitted: Bits::full(members.len()), weights: None, per_mean: 1.0, ramp };
        if members.windows(2).any(|pair| pair[0].weight != pair[1].weight) {
            let total: u64 = members.iter().map(|member| u64::from(member.weight.get())).sum();
            fleet.per_mean = members.len() as f64 / total as f64;
            let by_position = |position| members[fleet.index(position)].weight;
            fleet.weights = Some((0..members.len()).map(by_position).collect());
        }
        fleet
    }

    pub(super) fn index(&self, position: usize) -> usize {
        self.order.as_ref().map_or(position, |order| order.indices[position] as usize)
    }

    pub(super) fn position(&self, index: usize) -> usize {
        self.order.as_ref().map_or(index, |order| order.positions[index] as usize)
    }

    /// The weights of the members at `start..end`. `None`: they are equal.
    pub(super) fn uneven(&self, start: u32, end: u32) -> Option<&[NonZeroU32]> {
        let weights = &self.weights.as_ref()?[start as usize..end as usize];
        weights.windows(2).any(|pair| pair[0] != pair[1]).then_some(weights)
    }

    /// The sum of the weights of the members at `start..end`.
    pub(super) fn capacity(&self, start: u32, end: u32) -> u64 {
        match &self.weights {
            Some(weights) => {
                weights[start as usize..end as usize].iter().map(|weight| u64::from(weight.get())).sum()
            }
            None => u64::from(end - start),
        }
    }

    /// When the oldest of the members at `start..end` became ready, for [`Ramp::accepts`].
    pub(super) fn oldest(&self, start: u32, end: u32) -> u32 {
        let starts = self.ramp.as_ref().map(|ramp| &ramp.starts[start as usize..end as usize]);
        starts.and_then(|starts| starts.iter().copied().min()).unwrap_or(0)
    }

    /// Its weight over the mean weight.
    pub(super) fn weight(&self, position: usize) -> f64 {
        match &self.weights {
            Some(weights) => f64::from(weights[position].get()) * self.per_mean,
            None => 1.0,
        }
    }

    /// The same, less while it is in slow start.
    pub(super) fn share(&self, position: usize, clock: f64) -> f64 {
        self.weight(position)
            * self.ramp.as_ref().map_or(1.0, |ramp| ramp.factor(ramp.starts[position], clock))
    }
}

// === impl Layout ===

impl Layout {
    /// `own_zone` and `by_subset` say whether to go by them.
    pub(super) fn new(members: &[Member], own_zone: Option<&str>, by_subset: bool) -> Self {
        let is_own = |member: &Member| own_zone.is_some_and(|zone| *member.zone == *zone);
        let own = members.iter().filter(|member| is_own(member)).count();
        let ends = |own: usize, all: usize| vec![(0, own as u32), (own as u32, all as u32)];
        if !by_subset && (own == 0 || own == members.len()) {
            return Self { ranges: ends(own, members.len()), ..Self::default() };
        }
        let mut subsets = HashMap::new();
        let mut classes = Vec::with_capacity(members.len());
        for member in members {
            let subset = match (by_subset, subsets.get(&member.subset)) {
                (false, _) => 0,
                (true, Some(known)) => *known,
                (true, None) => {
                    let next = subsets.len() as u32;
                    subsets.insert(Arc::clone(&member.subset), next);
                    next
                }
            };
            classes.push((!is_own(member), subset));
        }
        // A counting sort: it keeps the order within a class, and 100,000 cost a millisecond.
        let count = subsets.len().max(1);
        let class = |(other, subset): (bool, u32)| usize::from(other) * count + subset as usize;
        let mut sizes = vec![0_u32; 2 * count];
        classes.iter().for_each(|of| sizes[class(*of)] += 1);
        let mut start = 0;
        let ranges: Vec<_> = sizes
            .iter()
            .map(|size| {
                start += size;
                (start - size, start)
            })
            .collect();
        let mut free: Vec<_> = ranges.iter().map(|(start, _)| *start).collect();
        let mut indices = vec![0; members.len()].into_boxed_slice();
        for (index, of) in (0..).zip(classes) {
            let place = &mut free[class(of)];
            indices[*place as usize] = index;
            *place += 1;
        }
        let mut all = ends(own, members.len());
        if by_subset {
            all.extend(ranges);
        }
        Self { ranges: all, subsets, indices: Some(indices) }
    }

    /// The index at a position.
    pub(super) fn index(&self, position: usize) -> usize {
        self.indices.as_ref().map_or(position, |indices| indices[position] as usize)
    }
}

// === impl Bits ===

impl Bits {
    fn full(count: usize) -> Self {
        Self(vec![u64::MAX; count.div_ceil(64)].into_boxed_slice())
    }

    pub(super) fn has(&self, position: usize) -> bool {
        self.0[position / 64] >> (position % 64) & 1 == 1
    }

    /// Whether that changed anything.
    pub(super) fn set(&mut self, position: usize, value: bool) -> bool {
        let changes = self.has(position) != value;
        self.0[position / 64] ^= u64::from(changes) << (position % 64);
        changes
    }

    /// The first one in `from..to`.
    pub(super) fn next(&self, from: usize, to: usize) -> Option<usize> {
        let mut at = from;
        while at < to {
            let rest = self.0[at / 64] >> (at % 64);
            if rest != 0 {
                let found = at + rest.trailing_zeros() as usize;
                return (found < to).then_some(found);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }
}

// === impl Ramp ===

impl Ramp {
    /// `None` if nobody is in slow start.
    pub(super) fn new(members: &[Member], layout: &Layout, window: Duration, now: Instant) -> Option<Self> {
        let base = now.checked_sub(window)?;
        let start = |member: &Member| {
            // Whoever became ready in the future has a clock that is ahead: it became so now.
            let ready = member.ready_since.map(|ready| ready.min(now));
            let start = ready.and_then(|ready| ready.checked_duration_since(base));
            start.map_or(0, |start| u32::try_from(start.as_millis()).unwrap_or(u32::MAX))
        };
        let starts: Box<[u32]> =
            (0..members.len()).map(|position| start(&members[layout.index(position)])).collect();
        let latest = starts.iter().copied().max().filter(|latest| *latest > 0)?;
        let until = base + Duration::from_millis(u64::from(latest)) + window;
        Some(Self { base, per_window: 1.0 / millis(window).max(1.0), starts, until })
    }

    /// What the other calls take for the time.
    pub(super) fn clock(&self, now: Instant) -> f64 {
        millis(now.saturating_duration_since(self.base))
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// Whether one that was drawn is to be taken, given that the oldest one always is. `random` is uniform below 1.
    pub(super) fn accepts(&self, position: usize, oldest: u32, random: f64, clock: f64) -> bool {
        let start = self.starts[position];
        start <= oldest || random * self.factor(oldest, clock) < self.factor(start, clock)
    }

    /// Between [`SLOW_START_FROM`] and 1.
    fn factor(&self, start: u32, clock: f64) -> f64 {
        if start == 0 {
            return 1.0;
        }
        let grown = ((clock - f64::from(start)) * self.per_window).clamp(0.0, 1.0);
        SLOW_START_FROM + (1.0 - SLOW_START_FROM) * grown
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
