//! How many certificates one identity may ask for. Sans-IO.
//!
//! A token bucket per identity: a deployment that restarts all at once passes, a workload that asks in a loop
//! is slowed down before it costs the others anything.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;

const BURST: u32 = 200;
const PER_SECOND: u32 = 50;
/// Identities remembered before those that are at rest are forgotten.
const MAX_REMEMBERED: usize = 10_000;

#[derive(Default)]
pub(super) struct SignLimit {
    /// When each bucket will be full again.
    full_at: HashMap<SpiffeId, Instant>,
}

impl SignLimit {
    /// Counts a request. `Err`: too many, try again after this long.
    pub(super) fn admit(&mut self, identity: &SpiffeId, now: Instant) -> Result<(), Duration> {
        let step = Duration::from_secs(1) / PER_SECOND;
        if self.full_at.len() >= MAX_REMEMBERED {
            self.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = self.full_at.get(identity).copied().unwrap_or(now).max(now) + step;
        let too_far = (full_at - now).saturating_sub(step * BURST);
        if !too_far.is_zero() {
            return Err(too_far);
        }
        self.full_at.insert(identity.clone(), full_at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_a_loop_is_slowed_down() {
        let mut limit = SignLimit::default();
        let id = |name: &str| SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{name}")).unwrap();
        let start = Instant::now();
        let admitted = (0..1000).filter(|_| limit.admit(&id("loop"), start).is_ok()).count();
        assert_eq!(admitted, BURST as usize);
        assert!(limit.admit(&id("other"), start).is_ok(), "others are unaffected");
        let wait = limit.admit(&id("loop"), start).unwrap_err();
        assert!(wait <= Duration::from_secs(1) / PER_SECOND);
        assert!(limit.admit(&id("loop"), start + wait).is_ok());
        let later = start + wait + Duration::from_secs(1);
        let admitted = (0..1000).filter(|_| limit.admit(&id("loop"), later).is_ok()).count();
        assert_eq!(admitted, PER_SECOND as usize);
    }

    #[test]
    fn memory_is_bounded_by_those_who_ask() {
        let mut limit = SignLimit::default();
        let start = Instant::now();
        for number in 0..3 * MAX_REMEMBERED {
            let id = SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/n{number}")).unwrap();
            limit.admit(&id, start + Duration::from_millis(number as u64)).unwrap();
        }
        assert!(limit.full_at.len() <= MAX_REMEMBERED);
    }
}
