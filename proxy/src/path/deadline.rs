//! Outbound step: how long a request may take, and each of its attempts.
//!
//! The deadline is the caller's or the request timeout, whichever comes first; what is left of it goes on to the next hop.
//! An attempt has one timer for all its times. It is not moved when something happens: when it fires, whoever is not over
//! yet sets it anew.

use std::{
    future::Future,
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use futures_util::{FutureExt as _, future::Either};
use http::HeaderMap;
use outrigger_core::{
    deadline::{Deadline, Told},
    verdict::Reason,
};
use outrigger_proto::spec::Timeouts;
use tokio::time::{sleep_until, timeout_at};

use crate::{error::Error, http::exchange::Exchange, worker::now};

/// The deadline of a request and the limit of this hop that is in it.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    pub deadline: Deadline,
    told: Told,
    limit: Option<Duration>,
}

/// The times of one attempt.
pub struct Clock<'a> {
    exchange: &'a Exchange,
    due: &'a Due,
    timeouts: &'a Timeouts,
    dispatched: Instant,
    /// What had moved when it was looked at last, and when that was.
    moved: u64,
    since: Instant,
}

// === impl Due ===

impl Due {
    /// Fails at once if the caller's own deadline has passed already. `limit`: the request timeout.
    pub fn new(exchange: &Exchange, fields: &HeaderMap, limit: Option<Duration>) -> Result<Self, Error> {
        let told = Told::of(fields);
        let deadline = Deadline::new(told, limit, exchange.started);
        let this = Self { deadline, told, limit };
        if deadline.is_expired(exchange.started) { Err(this.error()) } else { Ok(this) }
    }

    /// The same caller's deadline, with another limit that begins now.
    pub fn with_limit(&self, limit: Option<Duration>, started: Instant, now: Instant) -> Self {
        let passed = now.saturating_duration_since(started);
        let left = |told: Option<Duration>| told.map(|told| told.saturating_sub(passed));
        let told = Told { mesh: left(self.told.mesh), grpc: left(self.told.grpc) };
        Self { deadline: Deadline::new(told, limit, now), told: self.told, limit }
    }

    pub fn check(&self, now: Instant) -> Result<(), Error> {
        if self.deadline.is_expired(now) { Err(self.error()) } else { Ok(()) }
    }

    fn error(&self) -> Error {
        match (self.deadline.reason(), self.limit) {
            (Reason::RequestTimeout, Some(limit)) => Error::RequestTimeout(limit),
            _ => Error::DeadlineExceeded,
        }
    }

    /// Lets something run until the deadline.
    ///
    /// No `async fn`, which would keep the future twice.
    pub fn wait<F: Future>(&self, future: F) -> impl Future<Output = Result<F::Output, Error>> + use<F> {
        match self.deadline.at() {
            None => Either::Left(future.map(Ok)),
            Some(at) => {
                let error = self.error();
                Either::Right(timeout_at(at.into(), future).map(|output| output.map_err(|_| error)))
            }
        }
    }
}

// === impl Clock ===

impl<'a> Clock<'a> {
    pub fn new(exchange: &'a Exchange, due: &'a Due, timeouts: &'a Timeouts, dispatched: Instant) -> Self {
        Self { exchange, due, timeouts, dispatched, moved: exchange.moved(), since: dispatched }
    }

    /// Lets the attempt run until one of its times is over.
    pub async fn run<F: Future>(mut self, mut attempt: Pin<&mut F>) -> Result<F::Output, Error> {
        let Ok(Some(first)) = self.look(self.dispatched) else { return Ok(attempt.await) };
        let mut timer = pin!(sleep_until(first.into()));
        loop {
            tokio::select! {
                biased;
                output = &mut attempt => return Ok(output),
                () = &mut timer => match self.look(now())? {
                    Some(next) => timer.as_mut().reset(next.into()),
                    None => return Ok(attempt.await),
                },
            }
        }
    }

    /// When to look next, or what is over. `None`: nothing limits it.
    fn look(&mut self, now: Instant) -> Result<Option<Instant>, Error> {
        let deadline = self.due.deadline.at();
        if deadline.is_some_and(|at| at <= now) {
            return Err(self.due.error());
        }
        let per_try = self.timeouts.per_try.map(|within| (self.dispatched + within, within));
        let header = self.timeouts.response_header.map(|within| {
            // Until the request is over the time does not begin.
            let from = self.exchange.request_over_since().map_or(now, |over| over.max(self.dispatched));
            (from + within, within)
        });
        for (at, within) in per_try.into_iter().chain(header) {
            if at <= now {
                return Err(Error::ResponseTimeout(within));
            }
        }
        // A deadline that comes first is limit enough.
        let counts = |idle: &Duration| deadline.is_none_or(|at| self.since + *idle < at);
        let idle = self.timeouts.stream_idle.filter(counts).map(|idle| {
            let moved = self.exchange.moved();
            if std::mem::replace(&mut self.moved, moved) != moved {
                self.since = now;
            }
            (self.since + idle, idle)
        });
        if let Some((at, idle)) = idle
            && at <= now
        {
            return Err(Error::StreamIdle(idle));
        }
        let times = [per_try, header, idle].into_iter().flatten().map(|(at, _)| at);
        Ok(times.chain(deadline).min())
    }
}
