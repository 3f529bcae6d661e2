//! What traffic there was, by who reported it and with whom it was: as fine as memory allows, exact at any grain.
//!
//! ```text
//!   report ──▶ marks: new? ──▶ series (reporter, side, service, route, peer)
//!                                │   slots of 1 s for 10 min ──coarsen──▶ slots of 10 s for 6 h ──▶ gone
//!                                └─▶ unsaved: what came since the last record, for the disk
//! ```
//!
//! Slots are sums of numbers and of histograms with the same buckets (`slot.rs`), so adding up slots, instances of a
//! workload or seconds loses nothing but when and where. Memory has a cap; what goes when it is reached:
//!
//! 1. where the names of series alone take half of it: the half of the series with the least traffic is folded into `other`;
//! 2. slots of 10 s that are older than 10 min, the oldest first;
//! 3. the resolution: slots of 1 s are kept for 5 min, then less, down to 1 min;
//! 4. slots of 10 s down to the last minute;
//! 5. again the series with the least traffic.
//!
//! A plain struct without clock, lock or IO. Times are milliseconds of a clock that never jumps (`recorder.rs` has it),
//! and whoever calls says what time it is. It persists nothing: it says what to save, and takes back what was saved.

mod marks;
mod memory;
mod outcomes;
pub mod query;
pub mod record;
mod series;
mod slot;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Duration};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{EdgeKey, EdgeTraffic, TrafficReport};
use serde::Serialize;

pub use self::{marks::Mark, outcomes::Outcome, series::SeriesKey};
use self::{
    marks::Marks,
    outcomes::Outcomes,
    record::Unsaved,
    series::{COARSE, Scratch, Series},
    slot::Parts,
};

/// How long slots of a second are kept apart, and slots of ten seconds at all. In seconds, multiples of ten.
pub const FINE: u64 = 600;
pub const KEPT: u64 = 6 * 3600;
/// Kinds of traffic that one workload may have: what is above counts as `other`. A proxy tells 500 a second.
const MAX_EDGES: usize = 5_000;
/// What waits for the disk at most; what is above is not saved, and that is said.
const MAX_UNSAVED: usize = 32 << 20;

pub struct History {
    /// Bytes that it may take, and takes, about.
    cap: usize,
    used: usize,
    /// Of that, series without their slots.
    names: usize,
    /// The latest time that anybody told.
    now: u64,
    series: Vec<Option<Series>>,
    free: Vec<u32>,
    by_key: HashMap<SpiffeId, HashMap<EdgeKey, Place>>,
    outcomes: Outcomes,
    marks: Marks,
    /// Seconds that slots of one second are kept.
    fine: u64,
    /// The seconds, multiples of ten, from which on slots are of one second, and from which on there are any.
    fine_from: u64,
    kept_from: u64,
    /// Nothing is known from before this second: nobody reported yet.
    begins: u64,
    /// Before this second, slots went for memory's sake.
    evicted_to: u64,
    /// Names that count as `other`, and what they take.
    folded: usize,
    folded_bytes: usize,
    /// Series that there ever were.
    serial: u64,
    /// Another one: series or slots are not where they were. Queries that look piece by piece begin again.
    generation: u64,
    saves: bool,
    unsaved: Unsaved,
    counts: Counts,
    /// Not to make room anew for each edge.
    parts: Parts,
    bytes: Vec<u8>,
    scratch: Scratch,
}

/// What one workload had of one kind of traffic in a second.
struct Traffic<'a> {
    second: u64,
    security: Option<&'a Arc<str>>,
    parts: &'a Parts,
    /// It is of others that there was no room to keep apart.
    is_folded: bool,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    series: u32,
    /// It counts there as `other`.
    is_folded: bool,
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    New,
    /// It counts already.
    Duplicate,
}

/// Since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub reports: u64,
    pub duplicates: u64,
    pub edges: u64,
    /// Edges of a time that is not kept any more.
    pub late: u64,
    /// Slots that went for memory's sake.
    pub evicted: u64,
    /// Seconds of traffic that could not wait for the disk.
    pub unsaved: u64,
}

/// As `/status` and `/metrics` show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    pub bytes: usize,
    pub cap_bytes: usize,
    pub series: usize,
    /// Series that count as `other` because there is no room for them.
    pub folded: usize,
    /// Lives of proxies whose reports are told apart, and such that were forgotten because there were too many.
    pub epochs: usize,
    pub epochs_forgotten: u64,
    /// How far back seconds, and anything, can be told.
    pub fine_seconds: u64,
    pub kept_seconds: u64,
}

impl History {
    /// `cap` in bytes. `saves`: [`Self::take_unsaved`] will be called.
    pub fn new(cap: usize, saves: bool, now: u64) -> Self {
        let second = now / 1000;
        Self {
            cap,
            used: 0,
            names: 0,
            now,
            series: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            outcomes: Outcomes::default(),
            marks: Marks::default(),
            fine: FINE,
            fine_from: second.saturating_sub(FINE) / COARSE * COARSE,
            kept_from: second.saturating_sub(KEPT) / COARSE * COARSE,
            begins: second,
            evicted_to: 0,
            folded: 0,
            folded_bytes: 0,
            serial: 0,
            generation: 0,
            saves,
            unsaved: Unsaved::default(),
            counts: Counts::default(),
            parts: Parts::default(),
            bytes: Vec::new(),
            scratch: Scratch::default(),
        }
    }

    /// Adds a report, unless it counts already.
    pub fn take(&mut self, reporter: &SpiffeId, report: &TrafficReport, now: u64) -> Taken {
        self.advance(now);
        if !self.marks.take(reporter, report.epoch, report.sequence, self.now) {
            self.counts.duplicates += 1;
            return Taken::Duplicate;
        }
        self.counts.reports += 1;
        // A report about several seconds counts in the middle of them.
        let ago = millis(report.ended_ago).saturating_add(millis(report.length) / 2);
        let second = self.now.saturating_sub(ago) / 1000;
        let mut parts = std::mem::take(&mut self.parts);
        for edge in &report.edges {
            self.counts.edges += 1;
            self.take_apart(edge, &mut parts);
            let security = edge.security.as_ref();
            self.add(reporter, &edge.key, Traffic { second, security, parts: &parts, is_folded: false });
        }
        self.parts = parts;
        self.fit();
        Taken::New
    }

    /// Lets time pass: slots become coarse, and go. Due every few seconds.
    pub fn advance(&mut self, now: u64) {
        let before = self.now;
        self.now = before.max(now);
        let second = self.now / 1000;
        if before / 1000 / COARSE != second / COARSE {
            self.relax();
            self.coarsen();
            let kept_from = second.saturating_sub(KEPT) / COARSE * COARSE;
            if kept_from > self.kept_from {
                self.kept_from = kept_from;
                self.forget();
            }
            self.marks.forget_before(self.now.saturating_sub(KEPT * 1000));
        }
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    pub fn size(&self) -> Size {
        let second = self.now / 1000;
        Size {
            bytes: self.used,
            cap_bytes: self.cap,
            series: self.series.len() - self.free.len(),
            folded: self.folded,
            epochs: self.marks.len(),
            epochs_forgotten: self.marks.forgotten(),
            fine_seconds: second.saturating_sub(self.fine_from.max(self.begins)),
            kept_seconds: second.saturating_sub(self.kept_from.max(self.begins)),
        }
    }

    fn take_apart(&mut self, edge: &EdgeTraffic, parts: &mut Parts) {
        let EdgeTraffic { outcomes, durations, received, sent, connections, connections_failed, .. } = edge;
        parts.clear();
        parts.numbers = [*received, *sent, *connections, *connections_failed];
        for outcome in outcomes {
            let number = self.outcomes.number(outcome);
            match parts.outcomes.iter_mut().find(|(known, _)| *known == number) {
                Some((_, count)) => *count = count.saturating_add(outcome.count),
                None => parts.outcomes.push((number, outcome.count)),
            }
        }
        parts.outcomes.sort_unstable();
        parts.buckets.extend(durations.buckets());
    }

    fn add(&mut self, reporter: &SpiffeId, edge: &EdgeKey, traffic: Traffic<'_>) {
        let Traffic { second, security, parts, is_folded } = traffic;
        if second < self.kept_from {
            self.counts.late += 1;
            return;
        }
        self.begins = self.begins.min(second);
        let place = self.place(reporter, edge);
        let Some(series) = self.series.get_mut(place.series as usize).and_then(Option::as_mut) else {
            return;
        };
        if let Some(security) = security
            && series.security.as_ref() != Some(security)
        {
            series.security = Some(security.clone());
        }
        let is_folded = is_folded || place.is_folded;
        if is_folded {
            series.folded_until = series.folded_until.max(Some(second));
        }
        let bytes = &mut self.bytes;
        bytes.clear();
        parts.write(bytes);
        let grown = series.add(second, self.fine_from, bytes, parts.calls(), &mut self.scratch);
        self.used = self.used.saturating_add_signed(grown);
        if !self.saves {
            return;
        }
        if self.unsaved.bytes() > MAX_UNSAVED {
            self.counts.unsaved += 1;
        } else {
            self.unsaved.push(series, security.cloned(), second, is_folded, bytes);
        }
    }

    /// Where traffic counts; made if it is new.
    fn place(&mut self, reporter: &SpiffeId, edge: &EdgeKey) -> Place {
        let edges = self.by_key.get(reporter);
        if let Some(place) = edges.and_then(|edges| edges.get(edge)) {
            return *place;
        }
        let folded = SeriesKey::folded(reporter, edge.side);
        let is_folded = edges.is_some_and(|edges| edges.len() >= MAX_EDGES) && folded.edge != *edge;
        if is_folded && let Some(place) = edges.and_then(|edges| edges.get(&folded.edge)) {
            return Place { is_folded, ..*place };
        }
        let key =
            if is_folded { folded } else { SeriesKey { reporter: reporter.clone(), edge: edge.clone() } };
        Place { is_folded, ..self.insert(key) }
    }

    fn insert(&mut self, key: SeriesKey) -> Place {
        self.used += key.cost();
        self.names += key.cost();
        self.serial += 1;
        let SeriesKey { reporter, edge } = key.clone();
        let series = Some(Series::new(Arc::new(key), self.serial));
        let number = match self.free.pop() {
            Some(number) => {
                self.series[number as usize] = series;
                number
            }
            None => {
                self.series.push(series);
                (self.series.len() - 1) as u32
            }
        };
        let place = Place { series: number, is_folded: false };
        self.by_key.entry(reporter).or_default().insert(edge, place);
        place
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
