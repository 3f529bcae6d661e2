//! Adds edges up, and keeps their number and the number of their outcomes within what a report may have.

use std::{cmp::Reverse, collections::HashMap, sync::Arc};

use outrigger_proto::{
    limits::MAX_REPORT_OUTCOMES,
    spec::{EdgeKey, EdgeTraffic, OutcomeCount, Side},
};

use super::OTHER;

/// Classes of a status, 0 included.
const CLASSES: usize = 6;

/// One edge for each key. Of more than `most` the busiest stay and the rest becomes one edge for each side.
pub(super) fn edges(all: impl Iterator<Item = EdgeTraffic>, most: usize) -> Vec<EdgeTraffic> {
    let mut by_key = HashMap::<EdgeKey, EdgeTraffic>::new();
    for edge in all {
        add(&mut by_key, edge);
    }
    if by_key.len() > most {
        let mut sorted: Vec<_> = by_key.drain().map(|(_, edge)| edge).collect();
        // The key makes it the same for the same traffic.
        sorted.sort_by_cached_key(|edge| (Reverse(edge.requests() + edge.connections), edge.key.clone()));
        let rest = sorted.split_off(most.saturating_sub(2));
        by_key.extend(sorted.into_iter().map(|edge| (edge.key.clone(), edge)));
        for edge in rest {
            add(&mut by_key, EdgeTraffic { key: other(edge.key.side), security: None, ..edge });
        }
    }
    by_key.into_values().map(with_few_outcomes).collect()
}

fn add(by_key: &mut HashMap<EdgeKey, EdgeTraffic>, edge: EdgeTraffic) {
    match by_key.get_mut(&edge.key) {
        Some(known) => known.add(&edge),
        None => _ = by_key.insert(edge.key.clone(), edge),
    }
}

pub(super) fn other(side: Side) -> EdgeKey {
    EdgeKey { side, service: OTHER.into(), route: OTHER.into(), peer: None }
}

fn with_few_outcomes(mut edge: EdgeTraffic) -> EdgeTraffic {
    if edge.outcomes.len() > MAX_REPORT_OUTCOMES {
        edge.outcomes.sort_by_key(|outcome| Reverse(outcome.count));
        let rest = edge.outcomes.split_off(MAX_REPORT_OUTCOMES - CLASSES);
        let reason: Arc<str> = OTHER.into();
        let outcomes = rest
            .into_iter()
            .map(|outcome| OutcomeCount { grpc_status: None, reason: Arc::clone(&reason), ..outcome })
            .collect();
        edge.add(&EdgeTraffic { outcomes, ..EdgeTraffic::new(edge.key.clone()) });
    }
    edge
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn edge(service: &str, requests: u64) -> EdgeTraffic {
        let key = EdgeKey { side: Side::Outbound, service: service.into(), route: "".into(), peer: None };
        let mut edge = EdgeTraffic { security: Some("TLSv1_3".into()), ..EdgeTraffic::new(key) };
        let outcome = OutcomeCount { status_class: 2, grpc_status: None, reason: "".into(), count: requests };
        edge.outcomes.push(outcome);
        (0..requests).for_each(|_| edge.durations.record(Duration::from_millis(1)));
        edge
    }

    #[test]
    fn the_busiest_stay_and_nothing_is_lost() {
        let all = (1..=10u64).flat_map(|n| [edge(&format!("s{n}"), n), edge(&format!("s{n}"), 1)]);
        let mut folded = edges(all, 5);
        folded.sort_by(|a, b| a.key.cmp(&b.key));
        let told: Vec<_> = folded.iter().map(|edge| (&*edge.key.service, edge.requests())).collect();
        assert_eq!(told, [("other", 35), ("s10", 11), ("s8", 9), ("s9", 10)]);
        assert!(folded.iter().all(|edge| edge.durations.count() == edge.requests()));
        assert_eq!(folded[0].security, None);
        // Once more with one that is `other` already.
        let again = edges(folded.into_iter(), 3);
        assert_eq!(again.iter().map(EdgeTraffic::requests).sum::<u64>(), 65);
        assert!(again.len() <= 3);
    }

    #[test]
    fn outcomes_beyond_the_limit_keep_their_class() {
        let mut one = edge("s", 1);
        for code in 0..200u8 {
            let outcome =
                OutcomeCount { status_class: 5, grpc_status: Some(code), reason: "".into(), count: 2 };
            one.outcomes.push(outcome);
        }
        let folded = edges([one].into_iter(), 5).remove(0);
        assert_eq!(folded.outcomes.len(), MAX_REPORT_OUTCOMES - CLASSES + 2);
        let of_class = |class| -> u64 {
            folded.outcomes.iter().filter(|one| one.status_class == class).map(|one| one.count).sum()
        };
        assert_eq!((of_class(2), of_class(5)), (1, 400));
    }
}
