//! The detectors that judge an endpoint by the others: whoever stands out, the worst first.

use outrigger_proto::spec::{Circuit, LatencyOutlier, SuccessRate};
use rand_core::Rng;

use super::{
    Breakers,
    policy::{Policy, Why, rate_limit},
    window::{At, Counts, Latencies},
};

/// Among flawless endpoints a deviation is next to nothing and one failure in twenty would be far outside it. So an
/// outlier has also failed so often, and is so many points of a per cent below the mean.
const LEAST_FAILED: u32 = 2;
const LEAST_GAP: f64 = 5.0;

/// Differences below this are noise whatever the ratio, in microseconds.
const LEAST_LATENCY_GAP: f64 = 1000.0;

impl Breakers {
    /// Lets the endpoints that had traffic lately be judged by each other.
    pub(super) fn compare(&mut self, at: At, rng: &mut impl Rng) {
        let Some(Policy { spec, widths, compare_every, .. }) = &self.policy else { return };
        let (mut rates, mut latencies) = (Vec::new(), Vec::new());
        let slots = &mut self.slots;
        self.recent.retain(|slot| {
            let endpoint = &mut slots[*slot as usize];
            let Some(learned) = endpoint.learned.as_deref_mut() else { return false };
            let (rate, latency) = (learned.rates(widths, at), learned.latencies(widths, at));
            if endpoint.circuit == Circuit::Closed {
                rates.push((*slot, rate));
                latencies.push((*slot, latency));
            }
            endpoint.listed = rate.total > 0 || latency.total > 0;
            endpoint.listed
        });
        let rates = spec.success_rate.as_ref().map(|policy| unreliable(&rates, policy));
        let latencies = spec.latency.as_ref().map(|policy| slow(&latencies, policy));
        self.next_comparison =
            compare_every.filter(|_| !self.recent.is_empty()).map(|every| at.saturating_add(every));
        for (slot, why) in rates.into_iter().chain(latencies).flatten() {
            self.eject(slot, why, at, rng);
        }
    }
}

/// Those below the mean minus so many standard deviations.
pub(super) fn unreliable(seen: &[(u32, Counts)], policy: &SuccessRate) -> Vec<(u32, Why)> {
    let enough = |counts: &Counts| counts.total >= policy.min_requests.get();
    let rates: Vec<_> = seen.iter().filter(|(_, counts)| enough(counts)).collect();
    if rates.len() < policy.min_endpoints.get() as usize || rates.len() < 2 {
        return Vec::new();
    }
    let count = rates.len() as f64;
    let rate = |counts: &Counts| 100.0 - counts.failed_percent();
    let mean = rates.iter().map(|(_, counts)| rate(counts)).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, counts)| (rate(counts) - mean).powi(2)).sum::<f64>() / count;
    let (deviation, thousandths) = (variance.sqrt(), policy.deviations_thousandths);
    let limit = rate_limit(mean, deviation, thousandths).min(mean - LEAST_GAP);
    let mut out: Vec<_> = rates
        .iter()
        .filter(|(_, counts)| counts.failed >= LEAST_FAILED && rate(counts) < limit)
        .map(|(slot, counts)| (rate(counts), *slot))
        .collect();
    out.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let endpoints = rates.len();
    out.into_iter()
        .map(|(rate, slot)| (slot, Why::Rate { rate, mean, deviation, thousandths, endpoints }))
        .collect()
}

/// Those that take so many times the median of the others.
pub(super) fn slow(seen: &[(u32, Latencies)], policy: &LatencyOutlier) -> Vec<(u32, Why)> {
    let enough = |latencies: &Latencies| latencies.total >= policy.min_requests.get();
    let mut means: Vec<_> = seen
        .iter()
        .filter(|(_, latencies)| enough(latencies))
        .map(|(slot, latencies)| (latencies.mean(), *slot))
        .collect();
    if means.len() < 2 {
        return Vec::new();
    }
    means.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
    let others = means.len() - 1;
    // The others, in order, are all but the one at `left_out`.
    let other = |left_out: usize, n: usize| means[if n < left_out { n } else { n + 1 }].0;
    let median = |left_out| f64::midpoint(other(left_out, (others - 1) / 2), other(left_out, others / 2));
    means
        .iter()
        .enumerate()
        .rev()
        .map(|(place, (latency, slot))| (*slot, *latency, median(place)))
        .filter(|(_, latency, median)| {
            *latency > *median * f64::from(policy.percent) / 100.0 && latency - median >= LEAST_LATENCY_GAP
        })
        .map(|(slot, latency, median)| (slot, Why::Slow { latency, median, limit: policy.percent, others }))
        .collect()
}
