//! What goes when time passes, and what when memory is full: the order is in `history.rs`.

use std::collections::HashSet;

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::EdgeKey;

use super::{
    COARSE, FINE, History, Place,
    series::{Series, SeriesKey, text_len},
};

/// Slots of a second are kept for so long, whatever there is of them.
const FINE_LEAST: u64 = 60;
/// So few series are not the reason why there is no room.
const FEW: usize = 64;
/// What remains of a series that was folded: its names, in one table.
const FOLDED_COST: usize = 200;
/// The part of the cap, 1 of so many, that such names may take.
const FOLDED_PART: usize = 8;

impl History {
    /// Makes slots coarse whose time has come.
    pub(super) fn coarsen(&mut self) {
        let fine_from = (self.now / 1000).saturating_sub(self.fine) / COARSE * COARSE;
        if fine_from <= self.fine_from {
            return;
        }
        self.fine_from = fine_from;
        self.generation += 1;
        for series in self.series.iter_mut().flatten() {
            let grown = series.coarsen(fine_from, &mut self.scratch);
            self.used = self.used.saturating_add_signed(grown);
        }
    }

    /// Forgets what began before `kept_from`, and series of which nothing is left. Returns how many slots.
    pub(super) fn forget(&mut self) -> u64 {
        self.generation += 1;
        let mut gone = HashSet::new();
        let mut all = 0;
        for (number, place) in self.series.iter_mut().enumerate() {
            let Some(series) = place else { continue };
            let (slots, shrunk) = series.forget_before(self.kept_from);
            all += slots;
            self.used = self.used.saturating_add_signed(-shrunk);
            if series.is_empty() {
                let cost = series.key.cost();
                self.used = self.used.saturating_sub(cost);
                self.names = self.names.saturating_sub(cost);
                *place = None;
                self.free.push(number as u32);
                gone.insert(number as u32);
            }
        }
        if !gone.is_empty() {
            self.release(|place| gone.contains(&place.series));
        }
        all
    }

    /// With much room again: what was folded may have a series of its own, and seconds may stay longer.
    pub(super) fn relax(&mut self) {
        if self.used > self.cap / 2 {
            return;
        }
        self.fine = (self.fine * 2).min(FINE);
        if self.folded > 0 {
            self.release(|place| place.is_folded);
        }
    }

    /// Lets go of names.
    fn release(&mut self, which: impl Fn(Place) -> bool) {
        let (used, folded, folded_bytes) = (&mut self.used, &mut self.folded, &mut self.folded_bytes);
        self.by_key.retain(|reporter, edges| {
            edges.retain(|edge, place| {
                let stays = !which(*place);
                if !stays && place.is_folded {
                    let cost = folded_cost(reporter, edge);
                    *used = used.saturating_sub(cost);
                    *folded_bytes = folded_bytes.saturating_sub(cost);
                    *folded -= 1;
                }
                stays
            });
            !edges.is_empty()
        });
    }

    /// Makes room, if there is too little.
    pub(super) fn fit(&mut self) {
        if self.used <= self.cap {
            return;
        }
        // Some more than needed, so that it is not needed again at once.
        let goal = self.cap - self.cap / 10;
        let second = self.now / 1000;
        while self.names > self.cap / 2 && self.fold_half() {}
        self.evict(goal, second.saturating_sub(FINE));
        while self.used > goal && self.fine > FINE_LEAST {
            self.fine = (self.fine / 2).max(FINE_LEAST);
            self.coarsen();
        }
        self.evict(goal, self.fine_from);
        while self.used > goal && self.fold_half() {}
        // What is left is not much, but a cap is a cap.
        self.evict(goal, second);
    }

    /// Gives up the oldest slots, those that begin before then, until there is room.
    fn evict(&mut self, goal: usize, then: u64) {
        let then = then / COARSE * COARSE;
        while self.used > goal && self.kept_from < then {
            let first = self.series.iter().flatten().filter_map(Series::first).min().unwrap_or(then);
            let first = first.max(self.kept_from) / COARSE * COARSE;
            if first >= then {
                return;
            }
            let step = ((then - first) / 20 / COARSE * COARSE).max(COARSE);
            self.kept_from = (first + step).min(then);
            self.fine_from = self.fine_from.max(self.kept_from);
            self.evicted_to = self.kept_from;
            self.counts.evicted += self.forget();
        }
    }

    /// Folds the half of the series with the least traffic. `false`: there are too few.
    fn fold_half(&mut self) -> bool {
        let is_own = |series: &Series| !series.key.is_folded();
        let all = self.series.iter().enumerate().filter_map(|(number, series)| {
            let series = series.as_ref().filter(|series| is_own(series))?;
            Some((series.weight(), number))
        });
        let mut all: Vec<_> = all.collect();
        if all.len() <= FEW {
            return false;
        }
        let half = all.len() / 2;
        all.select_nth_unstable(half);
        self.generation += 1;
        for (_, number) in &all[..half] {
            self.fold(*number);
        }
        true
    }

    fn fold(&mut self, number: usize) {
        let Some(series) = self.series[number].take() else { return };
        self.used = self.used.saturating_sub(series.cost());
        self.names = self.names.saturating_sub(series.key.cost());
        let folded = SeriesKey::folded(&series.key.reporter, series.key.edge.side);
        let known = self.by_key.get(&folded.reporter).and_then(|edges| edges.get(&folded.edge)).copied();
        let into = known.unwrap_or_else(|| self.insert(folded)).series;
        // Only now, so that it is not taken for the one it goes into.
        self.free.push(number as u32);
        let second = self.now / 1000;
        if let Some(target) = self.series[into as usize].as_mut() {
            let grown = target.fold(&series, &mut self.scratch);
            target.folded_until = Some(second);
            self.used = self.used.saturating_add_signed(grown);
        }
        let SeriesKey { reporter, edge } = &*series.key;
        let cost = folded_cost(reporter, edge);
        let Some(edges) = self.by_key.get_mut(reporter) else { return };
        if self.folded_bytes + cost > self.cap / FOLDED_PART {
            // It begins anew when there is traffic, and may be folded again.
            edges.remove(edge);
            return;
        }
        edges.insert(edge.clone(), Place { series: into, is_folded: true });
        self.used += cost;
        self.folded_bytes += cost;
        self.folded += 1;
    }

    /// What `used` has to be, counted anew.
    #[cfg(test)]
    pub(super) fn recount(&self) -> usize {
        let series: usize = self.series.iter().flatten().map(Series::cost).sum();
        let folded = self.by_key.iter().flat_map(|(reporter, edges)| {
            let folded = edges.iter().filter(|(_, place)| place.is_folded);
            folded.map(|(edge, _)| folded_cost(reporter, edge))
        });
        series + folded.sum::<usize>()
    }
}

fn folded_cost(reporter: &SpiffeId, edge: &EdgeKey) -> usize {
    FOLDED_COST + text_len(reporter, edge)
}
