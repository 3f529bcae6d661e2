//! What a simulation has seen, and the figures that are drawn from it.

use std::time::Duration;

/// One call of a caller, from its beginning to what its program was told.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Since the beginning of the simulation.
    pub began: Duration,
    pub took: Duration,
    pub good: bool,
    /// How often it was sent.
    pub attempts: u32,
}

/// Of one caller and one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    pub sent: u64,
    /// Requests sent before the first ejection; `None`: it was never ejected.
    pub sent_until_ejected: Option<u64>,
    pub failed: u64,
    /// Of the requests before the first ejection, those that failed.
    pub failed_until_ejected: Option<u64>,
    pub ejections: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order of their ends.
    pub calls: Vec<Call>,
    /// By caller, then endpoint.
    pub pairs: Vec<Vec<Pair>>,
    /// Promises that were broken, in words. A sound product has none, whatever the seed.
    pub broken: Vec<String>,
}

impl Report {
    /// Latency below which this share of the calls was answered; failed calls count with the time they took.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut took: Vec<Duration> = self.calls.iter().map(|call| call.took).collect();
        took.sort_unstable();
        let index = ((took.len() as f64 * share).ceil() as usize).clamp(1, took.len().max(1)) - 1;
        took.get(index).copied().unwrap_or_default()
    }

    /// Share of failed calls among those that began in this span, between 0 and 1.
    pub fn failed(&self, from: Duration, until: Duration) -> f64 {
        let (mut all, mut failed) = (0_u64, 0_u64);
        for call in self.calls.iter().filter(|call| from <= call.began && call.began < until) {
            all += 1;
            failed += u64::from(!call.good);
        }
        if all == 0 { 0.0 } else { failed as f64 / all as f64 }
    }

    /// Attempts per call among those that began in this span.
    pub fn amplification(&self, from: Duration, until: Duration) -> f64 {
        let (mut calls, mut attempts) = (0_u64, 0_u64);
        for call in self.calls.iter().filter(|call| from <= call.began && call.began < until) {
            calls += 1;
            attempts += u64::from(call.attempts);
        }
        if calls == 0 { 0.0 } else { attempts as f64 / calls as f64 }
    }

    /// Good answers per step of time, by when the calls began, over what was asked for: between 0 and 1.
    pub fn goodput(&self, step: Duration) -> Vec<f64> {
        let mut counts: Vec<(u64, u64)> = Vec::new();
        for call in &self.calls {
            let index = (call.began.as_nanos() / step.as_nanos().max(1)) as usize;
            if counts.len() <= index {
                counts.resize(index + 1, (0, 0));
            }
            counts[index].0 += 1;
            counts[index].1 += u64::from(call.good);
        }
        counts.into_iter().map(|(all, good)| if all == 0 { 1.0 } else { good as f64 / all as f64 }).collect()
    }
}
