//! The series governor: which label sets have series of their own, which share one, and when they leave.
//!
//! **Budget.** The lines of a scrape are limited in number, as Prometheus counts series. What is always there is taken out
//! of the budget first, then a part for gauges and a part for what others are folded into; the rest goes to label sets as
//! they come:
//!
//! ```text
//! own ──no room──▶ other: services, routes and names are `other`, all else is kept
//!                    └──no room──▶ sink: one or a few lines a family, always admitted
//! ```
//!
//! **Leaving.** A series that nobody has counted in for long leaves, and its room is given back. Workers keep their own way
//! to the cells, so one of them could still count where nobody looks. Therefore it takes three steps:
//!
//! ```text
//! idle ─▶ marked, new generation ─▶ every worker has seen the generation ─▶ nothing was counted meanwhile: gone
//!            ▲                       (and forgotten its way to the cells)  └▶ something was: it stays
//!            └── a worker asks for it again: it stays
//! ```
//!
//! Until the last step it is in every scrape, so nothing is lost: a count is either in a scrape, or in the series that
//! comes back later and begins at 0.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;

use super::{
    cells::{Cells, ConnectionCells, Count, HISTOGRAM_LINES, Owned, RouteCells, Timing},
    families::{Distribution, Labels, Series, Value},
    kinds::{EVENTS, TIMINGS},
};

/// Lines that are there from the start and do not depend on traffic: control, process, gauges of the proxy itself.
/// `tests::the_budget_holds` counts them.
pub(super) const FIXED_LINES: usize = 100;
/// Lines of all sinks together: of requests by direction and status, of routes, connections and waits by direction.
const SINK_LINES: usize =
    2 * 6 + 2 * RouteCells::LINES + 2 * ConnectionCells::LINES + EVENTS + (TIMINGS + 1) * HISTOGRAM_LINES;
/// Folded label sets that are remembered by name.
const MAX_FOLDED: usize = 100;
/// What is kept of the labels of one.
const MAX_FOLDED_BYTES: usize = 400;

/// How far label sets are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tier {
    Own,
    Other,
    Sink,
}

/// Sorted, so that scrapes can be compared.
pub(super) type Family<C> = BTreeMap<Box<str>, Entry<C>>;

/// One series, or one for each of the lines that its cells have.
pub(super) struct Entry<C> {
    labels: Arc<Labels>,
    tier: Tier,
    created: SystemTime,
    workers: Vec<(usize, Arc<Owned<C>>)>,
    /// What was counted when it was last looked at.
    seen: u64,
    /// When that had changed; `None`: it was not looked at yet.
    active: Option<Instant>,
    /// The generation with which workers let go.
    leaves: Option<u64>,
}

/// A worker's way to its cells.
pub(super) struct Found<C> {
    pub(super) cells: Arc<Owned<C>>,
    /// It is not shared with label sets that found no room.
    own: bool,
}

pub(super) struct Governor {
    table: Mutex<Table>,
    generation: AtomicU64,
    folded: AtomicU64,
    evicted: AtomicU64,
    idle: Option<Duration>,
    budget: usize,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) requests: Family<Count>,
    pub(super) routes: Family<RouteCells>,
    pub(super) connections: Family<ConnectionCells>,
    pub(super) events: [Family<Count>; EVENTS],
    pub(super) timings: [Family<Timing>; TIMINGS],
    room: Room,
    /// The generation that each worker has seen; `u64::MAX` of those that have ended.
    workers: Vec<Arc<AtomicU64>>,
    folded: VecDeque<Folded>,
}

/// Lines taken, and how many there may be.
#[derive(Default)]
struct Room {
    own: usize,
    other: usize,
    most_own: usize,
    most_other: usize,
    sinks: usize,
}

/// A label set that found no room.
#[derive(Clone, Debug, Serialize)]
pub struct Folded {
    pub family: &'static str,
    pub labels: String,
    /// How often a worker met it; what it found is kept, so this is not how often it was counted.
    pub times: u64,
    /// The last time, in milliseconds since the epoch.
    pub last_ms: u64,
}

/// How it stands, for `/stats`.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    pub budget: usize,
    /// Lines of label sets that have their own, and how many those may be.
    pub own: usize,
    pub own_most: usize,
    /// The same of label sets folded into `other`.
    pub other: usize,
    pub other_most: usize,
    pub idle_ms: Option<u64>,
    pub folded_total: u64,
    pub evicted_total: u64,
    /// The latest first.
    pub folded: Vec<Folded>,
}

/// What one look at the series needs to know and finds out.
struct Sweep {
    now: Instant,
    idle: Duration,
    /// Every worker has seen this one.
    acknowledged: u64,
    next: u64,
    marked: bool,
    /// Lines given back.
    own: usize,
    other: usize,
    gone: u64,
}

// === impl Governor ===

impl Governor {
    /// `budget`: lines of a scrape. `idle`: how long a series stays that nobody counts in; `None`: for ever.
    pub(super) fn new(budget: usize, idle: Option<Duration>) -> Self {
        let room = Room::within(budget);
        Self {
            table: Mutex::new(Table { room, ..Table::default() }),
            generation: AtomicU64::new(0),
            folded: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            idle,
            budget,
        }
    }

    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    pub(super) fn folded(&self) -> u64 {
        self.folded.load(Relaxed)
    }

    pub(super) fn evicted(&self) -> u64 {
        self.evicted.load(Relaxed)
    }

    /// A new worker's number, and where it says which generation it has seen.
    pub(super) fn enlist(&self) -> (usize, Arc<AtomicU64>) {
        let mut table = self.table();
        let seen = Arc::new(AtomicU64::new(self.generation.load(Acquire)));
        table.workers.push(Arc::clone(&seen));
        (table.workers.len() - 1, seen)
    }

    /// Changes when a worker has to let go of something.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Acquire)
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker's cells of a label set, or of what it is folded into.
    pub(super) fn find<C: Cells>(
        &self,
        worker: usize,
        family: impl Fn(&mut Table) -> &mut Family<C>,
        name: &'static str,
        labels: impl Fn(Tier) -> Labels,
    ) -> Found<C> {
        let mut table = self.table();
        for tier in [Tier::Own, Tier::Other, Tier::Sink] {
            let set = labels(tier);
            let there = family(&mut table).contains_key(&set.text);
            if there || table.room.take(tier, C::LINES) {
                let own = tier == Tier::Own;
                let entry = family(&mut table)
                    .entry(set.text.clone())
                    .or_insert_with(|| Entry::new(set, tier, SystemTime::now()));
                return Found { cells: entry.of(worker), own };
            }
            if tier == Tier::Own {
                self.folded.fetch_add(1, Relaxed);
                table.note_folded(name, &set.text);
            }
        }
        // Not reached: a sink always has room. Counting where nobody looks is better than not going on.
        Found { cells: Arc::default(), own: false }
    }

    /// Lets series go that have been idle for too long: marks them now, and takes out those that all workers have let go
    /// of since. To be called now and then; says whether workers have something to let go of.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let Some(idle) = self.idle else { return false };
        let mut table = self.table();
        let generation = self.generation.load(Relaxed);
        // Read before the cells are: whatever a worker counted before it let go is seen below.
        let seen = table.workers.iter().map(|seen| seen.load(Acquire));
        let mut sweep = Sweep {
            now,
            idle,
            acknowledged: seen.min().unwrap_or(u64::MAX),
            next: generation + 1,
            marked: false,
            own: 0,
            other: 0,
            gone: 0,
        };
        let Table { requests, routes, connections, events, timings, .. } = &mut *table;
        sweep.family(requests);
        sweep.family(routes);
        sweep.family(connections);
        events.iter_mut().for_each(|family| sweep.family(family));
        timings.iter_mut().for_each(|family| sweep.family(family));
        let Sweep { marked, own, other, gone, .. } = sweep;
        table.room.own -= own;
        table.room.other -= other;
        self.evicted.fetch_add(gone, Relaxed);
        // Also when there is room again: who was folded may have its own then.
        if marked || gone > 0 {
            self.generation.store(generation + 1, Release);
        }
        table.workers.iter().any(|seen| seen.load(Relaxed) < self.generation.load(Relaxed))
    }

    pub(super) fn standing(&self) -> Standing {
        let table = self.table();
        Standing {
            budget: self.budget,
            own: table.room.own,
            own_most: table.room.most_own,
            other: table.room.other,
            other_most: table.room.most_other,
            idle_ms: self.idle.map(|idle| idle.as_millis() as u64),
            folded_total: self.folded(),
            evicted_total: self.evicted(),
            folded: table.folded.iter().rev().cloned().collect(),
        }
    }
}

// === impl Table ===

impl Table {
    /// Lines of all label sets.
    pub(super) fn lines(&self) -> usize {
        self.room.own + self.room.other + self.room.sinks
    }

    fn note_folded(&mut self, family: &'static str, labels: &str) {
        let labels = &labels[..labels.floor_char_boundary(MAX_FOLDED_BYTES)];
        let known = self.folded.iter().position(|folded| folded.family == family && folded.labels == labels);
        let times = known.and_then(|at| self.folded.remove(at)).map_or(0, |folded| folded.times) + 1;
        if self.folded.len() == MAX_FOLDED {
            self.folded.pop_front();
        }
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.folded.push_back(Folded {
            family,
            labels: labels.to_owned(),
            times,
            last_ms: at.as_millis() as u64,
        });
    }
}

// === impl Room ===

impl Room {
    /// How the lines of a scrape are divided.
    fn within(budget: usize) -> Self {
        let most_other = budget / 16;
        let most_own = budget.saturating_sub(FIXED_LINES + SINK_LINES + most_other + least_gauges(budget));
        Self { most_own, most_other, ..Self::default() }
    }

    fn take(&mut self, tier: Tier, lines: usize) -> bool {
        let (taken, most) = match tier {
            Tier::Own => (&mut self.own, self.most_own),
            Tier::Other => (&mut self.other, self.most_other),
            Tier::Sink => (&mut self.sinks, usize::MAX),
        };
        let fits = *taken + lines <= most;
        if fits {
            *taken += lines;
        }
        fits
    }
}

/// Lines that gauges by name may have, however much else there is.
fn least_gauges(budget: usize) -> usize {
    budget / 16
}

/// Lines that gauges by name may have beside `dynamic` lines of label sets.
pub(super) fn gauges(budget: usize, dynamic: usize) -> usize {
    budget.saturating_sub(FIXED_LINES + dynamic).max(least_gauges(budget))
}

// === impl Entry ===

impl<C: Cells> Entry<C> {
    fn new(labels: Labels, tier: Tier, created: SystemTime) -> Self {
        let labels = Arc::new(labels);
        Self { labels, tier, created, workers: Vec::new(), seen: 0, active: None, leaves: None }
    }

    fn of(&mut self, worker: usize) -> Arc<Owned<C>> {
        // Whoever asks for it is about to count in it.
        self.stay();
        if let Some((_, cells)) = self.workers.iter().find(|(of, _)| *of == worker) {
            return Arc::clone(cells);
        }
        let cells = Arc::<Owned<C>>::default();
        self.workers.push((worker, Arc::clone(&cells)));
        cells
    }

    fn stay(&mut self) {
        self.active = None;
        if self.leaves.take().is_some() {
            self.mark(false);
        }
    }

    fn mark(&self, leaving: bool) {
        for (_, cells) in &self.workers {
            cells.leaving.store(leaving, Relaxed);
        }
    }

    pub(super) fn cells(&self) -> impl Iterator<Item = &C> {
        self.workers.iter().map(|(_, cells)| &***cells)
    }

    pub(super) fn series(&self, value: Value) -> Series {
        Series { labels: Arc::clone(&self.labels), created: Some(self.created), value }
    }

    /// The sum over workers of one count.
    pub(super) fn sum(&self, of: impl Fn(&C) -> &Count) -> Series {
        self.series(Value::Whole(self.cells().map(|cells| of(cells).get()).fold(0, u64::wrapping_add)))
    }

    pub(super) fn timing(&self, of: impl Fn(&C) -> &Timing) -> Series {
        let mut sum = Box::<Distribution>::default();
        self.cells().for_each(|cells| of(cells).add_to(&mut sum));
        self.series(Value::Distribution(sum))
    }
}

// === impl Sweep ===

impl Sweep {
    fn family<C: Cells>(&mut self, family: &mut Family<C>) {
        family.retain(|_, entry| {
            let stays = self.stays(entry);
            if !stays {
                self.gone += 1;
                match entry.tier {
                    Tier::Own => self.own += C::LINES,
                    Tier::Other | Tier::Sink => self.other += C::LINES,
                }
            }
            stays
        });
    }

    fn stays<C: Cells>(&mut self, entry: &mut Entry<C>) -> bool {
        if entry.tier == Tier::Sink {
            return true;
        }
        let counted = entry.cells().map(Cells::activity).fold(0, u64::wrapping_add);
        let active = entry.active.filter(|_| counted == entry.seen);
        let Some(active) = active else {
            entry.stay();
            (entry.seen, entry.active) = (counted, Some(self.now));
            return true;
        };
        match entry.leaves {
            Some(generation) => self.acknowledged < generation,
            None => {
                if self.now.saturating_duration_since(active) >= self.idle {
                    entry.leaves = Some(self.next);
                    entry.mark(true);
                    self.marked = true;
                }
                true
            }
        }
    }
}

// === impl Found ===

impl<C> Found<C> {
    /// `false`: the worker is to ask for it again. So is what shares, because there may be room now.
    pub(super) fn lasts(&self) -> bool {
        self.own && !self.cells.leaving.load(Relaxed)
    }
}
