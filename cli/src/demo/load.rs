//! Visitors of the shop: a steady stream of requests, every one of them accounted for.
//!
//! Each visitor keeps one connection and asks at planned moments; one that is late asks at once. Most requests read
//! (`GET /`); every fourth buys (`POST /buy`, with a card number that must never be seen on the wire). Reads and
//! purchases fail the same way: any answer but a 200, and no answer.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Result;
use hdrhistogram::Histogram;

use super::{client::Client, split::Version, stage::Place};

/// In the body of every purchase: what the packet capture is searched for.
pub(crate) const CARD: &str = "4000-1234-5678-9010";
/// In the body of every answer between the sidecars.
pub(crate) const RECEIPT: &str = "payments v1";

const VISITORS: u32 = 8;
/// Different reasons of failures that are kept to be shown.
const REASONS_KEPT: usize = 5;

/// Visitors at work; they leave when this is dropped.
pub(crate) struct Load {
    shared: Arc<Shared>,
    visitors: Vec<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    /// Requests per second, of all visitors together.
    rate: AtomicU32,
    buying: AtomicBool,
    closing: AtomicBool,
    tally: Mutex<Tally>,
}

struct Tally {
    counts: Counts,
    latencies: Histogram<u64>,
    answers: Vec<(Instant, Version)>,
    /// With how often each was given.
    reasons: Vec<(String, u64)>,
}

/// Differences of two say what happened between them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    pub(crate) bought: u64,
}

/// Over the whole time.
pub(crate) struct Latency {
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Load {
    /// Starts the visitors at `place`, where the shop answers at `target`.
    pub(crate) fn start(place: &Place, target: SocketAddr, rate: u32) -> Result<Self> {
        let tally = Tally {
            counts: Counts::default(),
            latencies: Histogram::new(3)?,
            answers: Vec::new(),
            reasons: Vec::new(),
        };
        let shared = Arc::new(Shared {
            target,
            rate: AtomicU32::new(rate),
            buying: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            tally: Mutex::new(tally),
        });
        let visitors = place.enter(|| {
            (0..VISITORS)
                .map(|number| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || visit(&shared, number))
                })
                .collect()
        })?;
        Ok(Self { shared, visitors })
    }

    /// From now on, or no more, every fourth request is a purchase. Returns when requests under way have ended.
    pub(crate) fn set_buying(&self, buying: bool) {
        self.shared.buying.store(buying, Ordering::Release);
        thread::sleep(
            Duration::from_secs(2 * u64::from(VISITORS)) / self.shared.rate.load(Ordering::Relaxed).max(1),
        );
    }

    pub(crate) fn set_rate(&self, rate: u32) {
        self.shared.rate.store(rate, Ordering::Release);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.tally().counts
    }

    pub(crate) fn latency(&self) -> Latency {
        let tally = self.tally();
        let at = |quantile| Duration::from_micros(tally.latencies.value_at_quantile(quantile));
        Latency { p50: at(0.5), p99: at(0.99) }
    }

    /// Which version answered, since a moment, in the order of the answers.
    pub(crate) fn answers_since(&self, moment: Instant) -> Vec<(Instant, Version)> {
        let tally = self.tally();
        let from = tally.answers.partition_point(|(at, _)| *at < moment);
        tally.answers[from..].to_vec()
    }

    /// Why requests failed, the first kinds of reasons.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.tally().reasons.iter().map(|(reason, times)| format!("{times} x {reason}")).collect()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.shared.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::Release);
        for visitor in self.visitors.drain(..) {
            // One that panicked has nothing left to stop.
            let _ = visitor.join();
        }
    }
}

fn visit(shared: &Shared, number: u32) {
    let mut client = Client::new(shared.target);
    let mut turn = number;
    let mut due = Instant::now();
    while !shared.closing.load(Ordering::Acquire) {
        let now = Instant::now();
        if now < due {
            // Short naps, so that a new rate and the end are noticed.
            thread::sleep((due - now).min(Duration::from_millis(100)));
            continue;
        }
        let rate = shared.rate.load(Ordering::Acquire).max(1);
        due = (due + Duration::from_secs(u64::from(VISITORS)) / rate).max(now);
        turn = turn.wrapping_add(1);
        let buys = turn.is_multiple_of(4) && shared.buying.load(Ordering::Acquire);
        ask(shared, &mut client, buys);
    }
}

fn ask(shared: &Shared, client: &mut Client, buys: bool) {
    let body = format!("item=canoe&card={CARD}");
    let start = Instant::now();
    let answer = if buys { client.ask("/buy", Some(&body)) } else { client.ask("/", None) };
    let end = Instant::now();
    let failure = match &answer {
        Ok(answer) if answer.status == 200 => None,
        Ok(answer) => Some(format!("{answer}: {}", answer.body.trim())),
        Err(error) => Some(error.to_string()),
    };
    let version = answer.ok().and_then(|answer| version(&answer.body));
    let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failure {
        tally.counts.failed += 1;
        let reason = format!("{}: {failure}", if buys { "POST /buy" } else { "GET /" });
        match tally.reasons.iter().position(|(known, _)| *known == reason) {
            Some(known) => tally.reasons[known].1 += 1,
            None if tally.reasons.len() < REASONS_KEPT => tally.reasons.push((reason, 1)),
            None => {}
        }
        return;
    }
    tally.counts.done += 1;
    tally.counts.bought += u64::from(buys);
    // A latency beyond the histogram's range cannot be: its range grows with the values.
    let _ = tally.latencies.record((end - start).as_micros() as u64);
    if let Some(version) = version {
        // Taken under the lock, so that the moments are in order.
        tally.answers.push((Instant::now(), version));
    }
}

fn version(body: &str) -> Option<Version> {
    if body.contains("orders v1") {
        Some(Version::V1)
    } else if body.contains("orders v2") {
        Some(Version::V2)
    } else {
        None
    }
}

impl std::ops::Sub for Counts {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            done: self.done - earlier.done,
            failed: self.failed - earlier.failed,
            bought: self.bought - earlier.bought,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    /// A server whose answers say what it was asked.
    fn shop(answer: fn(&str) -> &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
                        stream.write_all(answer(&asked).as_bytes()).unwrap();
                    }
                });
            }
        });
        address
    }

    fn wait_for(load: &Load, condition: impl Fn(Counts) -> bool) -> Counts {
        let end = Instant::now() + Duration::from_secs(10);
        while !condition(load.counts()) {
            assert!(Instant::now() < end, "{:?}", load.counts());
            thread::sleep(Duration::from_millis(5));
        }
        load.counts()
    }

    #[test]
    fn counts_what_visitors_got() {
        let target = shop(|asked| {
            if asked.starts_with("POST /buy") {
                assert!(asked.contains(CARD));
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\norders v2"
            } else {
                "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\norders v1"
            }
        });
        let start = Instant::now();
        let load = Load::start(&Place::Here, target, 2000).unwrap();
        let counts = wait_for(&load, |counts| counts.done >= 100);
        assert_eq!(counts.failed, 0);
        assert!(counts.bought > 0 && counts.bought < counts.done / 2);
        let answers = load.answers_since(start);
        assert!(answers.is_sorted_by_key(|(at, _)| *at));
        assert!(answers.iter().any(|(_, version)| *version == Version::V2));
    }

    #[test]
    fn every_bad_end_is_a_failure_with_its_reason() {
        let target =
            shop(|_| "HTTP/1.1 503 No\r\noutrigger-reason: no-endpoints\r\ncontent-length: 3\r\n\r\nno\n");
        let load = Load::start(&Place::Here, target, 2000).unwrap();
        assert_eq!(wait_for(&load, |counts| counts.failed >= 20).done, 0);
        assert!(load.failures()[0].contains("503 (no-endpoints): no"), "{:?}", load.failures());
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let load = Load::start(&Place::Here, nobody, 2000).unwrap();
        assert_eq!(wait_for(&load, |counts| counts.failed >= 20).done, 0);
    }
}
