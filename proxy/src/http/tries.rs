//! The tries of one request at endpoints, kept for whoever looks at it afterwards: log, metrics, trace.
//!
//! One try costs no allocation. A try that is given up ends when it is dropped.

use std::{
    cell::{Cell, Ref, RefCell},
    net::SocketAddr,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    error::Error,
    path::pool::Lease,
    telemetry::{Ended, Try},
    worker::now,
};

/// So many are kept. Policies allow fewer; what a hedge adds to them comes on top.
const MAX_KEPT: usize = 16;

pub struct Tries {
    /// The request's head.
    since: Instant,
    kept: RefCell<SmallVec<[Try; 1]>>,
}

/// A try that is under way.
pub struct Trying<'a> {
    tries: &'a Tries,
    index: u8,
    over: Cell<bool>,
}

// === impl Tries ===

impl Tries {
    pub fn new(since: Instant) -> Self {
        Self { since, kept: RefCell::default() }
    }

    /// `hedge`: it begins beside another one.
    pub fn begin(&self, endpoint: SocketAddr, hedge: bool, now: Instant) -> Trying<'_> {
        let mut kept = self.kept.borrow_mut();
        let index = kept.len() as u8;
        if kept.len() < MAX_KEPT {
            kept.push(Try {
                endpoint,
                began: now.saturating_duration_since(self.since),
                connect: Duration::ZERO,
                lasted: Duration::ZERO,
                hedge,
                ended: Ended::Cancelled,
            });
        }
        Trying { tries: self, index, over: Cell::new(false) }
    }

    pub fn kept(&self) -> Ref<'_, [Try]> {
        Ref::map(self.kept.borrow(), SmallVec::as_slice)
    }
}

// === impl Trying ===

impl Trying<'_> {
    /// The wait for its connection is over.
    pub fn waited(&self, now: Instant) {
        self.change(now, |one, so_far| one.connect = so_far);
    }

    /// The same, if there was one, with its end if that was none.
    pub fn leased(&self, leased: Result<Lease, Error>) -> Result<Lease, Error> {
        if !leased.as_ref().is_ok_and(|lease| !lease.waited) {
            self.waited(now());
        }
        leased.inspect_err(|error| self.ends(Ended::Failed(error.reason()), now()))
    }

    /// There is an answer's head, or a failure.
    pub fn ends(&self, ended: Ended, now: Instant) {
        self.over.set(true);
        self.change(now, |one, so_far| {
            one.lasted = so_far;
            one.ended = ended;
        });
    }

    fn change(&self, now: Instant, change: impl FnOnce(&mut Try, Duration)) {
        if let Some(one) = self.tries.kept.borrow_mut().get_mut(usize::from(self.index)) {
            let so_far = now.saturating_duration_since(self.tries.since).saturating_sub(one.began);
            change(one, so_far);
        }
    }
}

impl Drop for Trying<'_> {
    fn drop(&mut self) {
        if !self.over.get() {
            self.ends(Ended::Cancelled, now());
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_core::verdict::Reason;

    use super::*;

    #[test]
    fn each_try_is_kept_up_to_a_limit() {
        let since = now();
        let at = |millis| since + Duration::from_millis(millis);
        let endpoint = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let tries = Tries::new(since);
        {
            let first = tries.begin(endpoint(1), false, at(5));
            let second = tries.begin(endpoint(2), true, at(7));
            first.waited(at(8));
            first.ends(Ended::Failed(Reason::UpstreamReset), at(9));
            second.ends(Ended::Status(200), at(10));
            // Dropped under way.
            tries.begin(endpoint(3), false, since);
        }
        let kept = tries.kept().to_vec();
        let told = |one: &Try| {
            (one.endpoint.port(), one.began.as_millis(), one.connect.as_millis(), one.lasted.as_millis())
        };
        assert_eq!((told(&kept[0]), told(&kept[1])), ((1, 5, 3, 4), (2, 7, 0, 3)));
        assert_eq!((kept[0].hedge, kept[0].ended), (false, Ended::Failed(Reason::UpstreamReset)));
        assert_eq!((kept[1].hedge, kept[1].ended), (true, Ended::Status(200)));
        assert_eq!((kept[2].endpoint.port(), kept[2].ended), (3, Ended::Cancelled));
        for _ in 0..100 {
            tries.begin(endpoint(4), false, at(11)).ends(Ended::Status(503), at(12));
        }
        assert_eq!(tries.kept().len(), MAX_KEPT);
        assert_eq!(told(&tries.kept()[0]), told(&kept[0]));
    }
}
