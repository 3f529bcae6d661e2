//! The ways in which requests end, by number: a slot names them with a byte or two.

use std::{collections::HashMap, sync::Arc};

use outrigger_proto::spec::{OutcomeCount, is_failure};

/// Six classes, gRPC's codes and a few dozen reasons do not make so many.
const MAX_OUTCOMES: usize = 4_096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct OutcomeId(pub(super) u16);

/// As in a report, without the count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Outcome {
    pub status_class: u8,
    pub grpc_status: Option<u8>,
    /// Empty: no proxy made the answer.
    pub reason: Arc<str>,
}

/// Numbers are given in order and never taken back.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    all: Vec<Outcome>,
    numbers: HashMap<Outcome, OutcomeId>,
}

impl Outcome {
    pub fn is_failure(&self) -> bool {
        is_failure(self.status_class, self.grpc_status.map(u16::from), &self.reason)
    }
}

impl Outcomes {
    pub(super) fn number(&mut self, outcome: &OutcomeCount) -> OutcomeId {
        let &OutcomeCount { status_class, grpc_status, ref reason, count: _ } = outcome;
        self.number_of(Outcome { status_class, grpc_status, reason: reason.clone() })
    }

    pub(super) fn number_of(&mut self, mut outcome: Outcome) -> OutcomeId {
        if let Some(number) = self.numbers.get(&outcome) {
            return *number;
        }
        if self.all.len() >= MAX_OUTCOMES {
            // Of the six classes at least these are distinguished; 18 places for each were left for them.
            outcome.reason = "other".into();
            outcome.grpc_status = outcome.grpc_status.map(|status| status.min(17));
            if let Some(number) = self.numbers.get(&outcome) {
                return *number;
            }
        }
        let number = OutcomeId(u16::try_from(self.all.len()).unwrap_or(u16::MAX));
        self.all.push(outcome.clone());
        self.numbers.insert(outcome, number);
        number
    }

    pub(super) fn get(&self, number: OutcomeId) -> Option<&Outcome> {
        self.all.get(usize::from(number.0))
    }

    pub(super) fn all(&self) -> &[Outcome] {
        &self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_bounded_and_what_is_above_keeps_its_class() {
        let mut outcomes = Outcomes::default();
        for number in 0..20_000u32 {
            let outcome = OutcomeCount {
                status_class: (number % 6) as u8,
                grpc_status: (number % 7 == 0).then_some(number as u8),
                reason: format!("r{number}").into(),
                count: 1,
            };
            let known = outcomes.number(&outcome);
            assert_eq!(outcomes.number(&outcome), known);
            let kept = outcomes.get(known).unwrap();
            assert_eq!(kept.status_class, outcome.status_class);
        }
        assert!(outcomes.all().len() <= MAX_OUTCOMES + 6 * 19, "{}", outcomes.all().len());
    }
}
