//! Which reports were taken, so that each counts once, however often it comes.
//!
//! A proxy numbers its reports, rising, anew with every life (epoch), and sends those without an acknowledgement again
//! on its next stream. So of each epoch the highest number is remembered and, because an old stream may overlap a new
//! one, which of the 127 below it were taken; what is further below was. A proxy keeps 120 at most.

use std::collections::HashMap;

use outrigger_certs::SpiffeId;

/// Lives of one workload's proxies: replicas, and restarts.
const MAX_EPOCHS_EACH: usize = 1_000;
/// 64 bytes each.
const MAX_EPOCHS: usize = 100_000;

#[derive(Debug, Default)]
pub(super) struct Marks {
    by_reporter: HashMap<SpiffeId, Vec<Mark>>,
    count: usize,
    forgotten: u64,
}

/// What is remembered of one life of a proxy. Times as everywhere in here: milliseconds of the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub epoch: u64,
    pub highest: u64,
    /// Bit n: `highest - n` was taken.
    pub taken: u128,
    pub first: u64,
    pub last: u64,
    /// Not told since by [`Marks::changed`].
    changed: bool,
}

impl Mark {
    pub fn new(epoch: u64, highest: u64, taken: u128, first: u64, last: u64) -> Self {
        Self { epoch, highest, taken, first, last, changed: false }
    }

    fn take(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            let step = sequence - self.highest;
            let moved = u32::try_from(step).ok().and_then(|step| self.taken.checked_shl(step));
            self.taken = moved.unwrap_or(0) | 1;
            self.highest = sequence;
            return true;
        }
        let bit = u32::try_from(self.highest - sequence).ok().and_then(|below| 1u128.checked_shl(below));
        match bit {
            Some(bit) if self.taken & bit == 0 => {
                self.taken |= bit;
                true
            }
            Some(_) | None => false,
        }
    }
}

impl Marks {
    /// Whether this report is new; from now on it is not.
    pub(super) fn take(&mut self, reporter: &SpiffeId, epoch: u64, sequence: u64, now: u64) -> bool {
        if let Some(marks) = self.by_reporter.get_mut(reporter)
            && let Some(mark) = marks.iter_mut().find(|mark| mark.epoch == epoch)
        {
            mark.last = mark.last.max(now);
            mark.changed = true;
            return mark.take(sequence);
        }
        let mark = Mark { epoch, highest: sequence, taken: 1, first: now, last: now, changed: true };
        self.insert(reporter, mark);
        true
    }

    /// Takes over what an earlier process remembered.
    pub(super) fn restore(&mut self, reporter: &SpiffeId, mark: Mark) {
        let known = self
            .by_reporter
            .get_mut(reporter)
            .and_then(|marks| marks.iter_mut().find(|known| known.epoch == mark.epoch));
        match known {
            Some(known) => *known = Mark { first: known.first.min(mark.first), ..mark },
            None => self.insert(reporter, mark),
        }
    }

    fn insert(&mut self, reporter: &SpiffeId, mark: Mark) {
        if self.count >= MAX_EPOCHS {
            let oldest = self.by_reporter.iter().filter_map(|(reporter, marks)| {
                Some((marks.iter().map(|mark| mark.last).min()?, reporter.clone()))
            });
            if let Some((_, reporter)) = oldest.min_by_key(|(last, _)| *last) {
                self.forget_oldest(&reporter);
            }
        }
        if self.by_reporter.get(reporter).is_some_and(|marks| marks.len() >= MAX_EPOCHS_EACH) {
            self.forget_oldest(reporter);
        }
        self.by_reporter.entry(reporter.clone()).or_default().push(mark);
        self.count += 1;
    }

    fn forget_oldest(&mut self, reporter: &SpiffeId) {
        let Some(marks) = self.by_reporter.get_mut(reporter) else { return };
        let oldest = marks.iter().enumerate().min_by_key(|(_, mark)| mark.last).map(|(index, _)| index);
        if let Some(index) = oldest {
            marks.swap_remove(index);
            self.count -= 1;
            self.forgotten += 1;
        }
        if marks.is_empty() {
            self.by_reporter.remove(reporter);
        }
    }

    /// Forgets lives that were last heard of before then.
    pub(super) fn forget_before(&mut self, then: u64) {
        let count = &mut self.count;
        self.by_reporter.retain(|_, marks| {
            let before = marks.len();
            marks.retain(|mark| mark.last >= then);
            *count -= before - marks.len();
            !marks.is_empty()
        });
    }

    /// Proxies heard of between two times.
    pub(super) fn heard(&self, from: u64, to: u64) -> usize {
        self.iter().filter(|(_, mark)| mark.first <= to && mark.last >= from).count()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Lives that were forgotten because there were too many.
    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// All, or those that are new since the last call; they are not new any more then.
    pub(super) fn changed(&mut self, all: bool) -> Vec<(SpiffeId, Mark)> {
        let mut told = Vec::new();
        for (reporter, marks) in &mut self.by_reporter {
            for mark in marks.iter_mut().filter(|mark| all || mark.changed) {
                mark.changed = false;
                told.push((reporter.clone(), *mark));
            }
        }
        told
    }

    fn iter(&self) -> impl Iterator<Item = (&SpiffeId, &Mark)> {
        self.by_reporter.iter().flat_map(|(reporter, marks)| marks.iter().map(move |mark| (reporter, mark)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(name: &str) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap()
    }

    proptest! {
        /// Within the window it is a set.
        #[test]
        fn each_counts_once(sequences in proptest::collection::vec((1..3u64, 1..128u64), 0..300)) {
            let mut marks = Marks::default();
            let mut model = HashSet::new();
            for (epoch, sequence) in sequences {
                prop_assert_eq!(marks.take(&id("web"), epoch, sequence, 0), model.insert((epoch, sequence)));
            }
        }
    }

    #[test]
    fn what_is_far_below_was_taken() {
        let mut marks = Marks::default();
        assert!(marks.take(&id("web"), 1, 1, 0));
        assert!(marks.take(&id("web"), 1, 1_000, 0));
        assert!(!marks.take(&id("web"), 1, 2, 0));
        assert!(marks.take(&id("web"), 1, 873, 0));
        assert!(marks.take(&id("web"), 1, u64::MAX, 0));
        assert!(!marks.take(&id("web"), 1, 1_000, 0));
    }

    #[test]
    fn one_that_restarts_all_the_time_costs_the_others_nothing() {
        let mut marks = Marks::default();
        marks.take(&id("web"), 1, 5, 0);
        for epoch in 0..5_000 {
            marks.take(&id("mad"), epoch, 1, epoch);
        }
        assert_eq!(marks.len(), 1 + MAX_EPOCHS_EACH);
        assert_eq!(marks.forgotten(), 4_000);
        assert!(!marks.take(&id("web"), 1, 5, 0));
        assert!(!marks.take(&id("mad"), 4_999, 1, 0), "the latest are kept");
        assert_eq!(marks.heard(4_990, 4_995), 6);
        marks.forget_before(4_995);
        assert_eq!(marks.len(), 5);
    }

    #[test]
    fn what_changed_is_told_once_and_restored() {
        let mut marks = Marks::default();
        marks.take(&id("web"), 1, 5, 10);
        let told = marks.changed(false);
        assert_eq!(told.len(), 1);
        assert!(marks.changed(false).is_empty());
        assert_eq!(marks.changed(true).len(), 1);
        let mut again = Marks::default();
        for (reporter, mark) in told {
            again.restore(&reporter, mark);
        }
        assert!(!again.take(&id("web"), 1, 5, 20));
        assert!(again.take(&id("web"), 1, 6, 20));
    }
}
