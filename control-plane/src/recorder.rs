//! The history with a clock, a lock and a disk: takes reports, acknowledges what is kept, answers questions.
//!
//! ```text
//!   Report streams ──take──▶ history ──each second: what is new──▶ log ──▶ acknowledgements up to then
//!                               ▲                                   │
//!                     questions ┘                       read back at the start, before the first report is taken
//! ```
//!
//! The lock is held while a report is added, while a batch is taken out, and for a few series of a question at a time;
//! never while a file is written. A disk that is full costs the history its life after a restart and nothing else: reports
//! go on being acknowledged, because a proxy could do nothing better with them.

mod clock;
mod log;

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Side, TrafficReport};
use serde::Serialize;
use tokio::{
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval},
};

pub use self::clock::wall;
use self::{clock::Clock, log::Log};
use crate::{
    events::{Events, Happened, Kind},
    history::{
        Counts, History, Size, Taken,
        query::{By, Query, Row, Sum},
    },
    metrics::Counter,
};

/// Between two records. A report waits for so long for its acknowledgement.
const EVERY: Duration = Duration::from_secs(1);
/// A window that ends now ends so much earlier: until then, all proxies have told.
const SETTLED: u64 = 1_000;
/// Questions at once. Each takes a processor for as long as it lasts.
const QUESTIONS: usize = 4;
/// Series added up under one lock.
const AT_ONCE: usize = 16;
/// Times that a question begins again because slots have moved; then it holds them.
const TRIES: usize = 3;

pub struct Recorder {
    clock: Clock,
    inner: Mutex<Inner>,
    /// `None`: there is no place for files.
    log: Mutex<Option<Log>>,
    disk: Mutex<DiskReport>,
    /// The last round that is kept.
    kept: watch::Sender<u64>,
    /// What an earlier process saved was read back.
    loaded: watch::Sender<bool>,
    questions: Semaphore,
    pub counts: RecorderCounts,
}

struct Inner {
    history: History,
    /// Batches that were taken out.
    rounds: u64,
}

#[derive(Default)]
pub struct RecorderCounts {
    pub questions: Counter,
    pub question_micros: Counter,
    pub saved: Counter,
    pub save_errors: Counter,
}

/// When what was just taken will be kept: [`Recorder::kept`] reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Round(u64);

#[derive(Clone, Debug, Default, Serialize)]
pub struct DiskReport {
    pub bytes: u64,
    pub cap_bytes: u64,
    /// Why the latest is not on disk: a restart loses it.
    pub error: Option<String>,
}

/// As `/status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryReport {
    pub loaded: bool,
    #[serde(flatten)]
    pub size: Size,
    #[serde(flatten)]
    pub counts: Counts,
    pub disk: DiskReport,
}

/// What is asked, in milliseconds since 1970 where it is a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    pub by: By,
    pub side: Side,
    pub span: Span,
    pub namespace: Option<String>,
    pub service: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    Last(Duration),
    Between { from: u64, to: u64 },
}

/// The answer of `/stat`.
#[derive(Clone, Debug, Serialize)]
pub struct Stat {
    pub from_ms: u64,
    pub to_ms: u64,
    pub resolution_ms: u64,
    /// Proxies that reported.
    pub proxies: usize,
    /// `false`: something of the time is missing, and `incomplete` says why.
    pub complete: bool,
    pub incomplete: Vec<String>,
    /// Before this time nothing is known of anybody.
    pub begins_ms: u64,
    /// Rows that there would be beyond those that are here.
    pub rows_cut: usize,
    pub rows: Vec<Row>,
}

impl Recorder {
    /// Over the files in `dir`, which are read by [`Self::load`]. `memory` and `room` are caps, in bytes. Where there can be
    /// no files, the history is in memory only, and says so.
    pub fn open(dir: &Path, memory: usize, room: u64, events: &Events) -> Self {
        let (log, last, error) = match Log::open(dir, room) {
            Ok((log, last)) => (Some(log), last, None),
            Err(error) => (None, None, Some(error)),
        };
        let clock = Clock::new(last, wall());
        let bytes = log.as_ref().map_or(0, Log::bytes);
        let history = History::new(memory, log.is_some(), clock.now());
        let this = Self {
            clock,
            inner: Mutex::new(Inner { history, rounds: 0 }),
            log: Mutex::new(log),
            disk: Mutex::new(DiskReport { bytes, cap_bytes: room, error: None }),
            kept: watch::Sender::new(0),
            loaded: watch::Sender::new(false),
            questions: Semaphore::new(QUESTIONS),
            counts: RecorderCounts::default(),
        };
        if let Some(error) = error {
            this.disk_failed(&error, events);
        }
        this
    }

    /// Reads back what an earlier process saved. Blocking. Until it is done no report is to be taken.
    pub fn load(&self, events: &Events) {
        let begun = Instant::now();
        let mut records = 0u64;
        let mut log = lock(&self.log);
        let read = log.as_mut().map(|log| {
            let read = log.read(|saved, of| {
                records += 1;
                lock(&self.inner).history.restore(saved, of);
            });
            lock(&self.disk).bytes = log.bytes();
            read
        });
        drop(log);
        match read {
            Some(Ok(cuts)) => {
                for cut in cuts {
                    tracing::warn!(
                        file = cut.file,
                        at = cut.at,
                        lost = cut.lost,
                        "the history on disk is cut"
                    );
                    let message =
                        format!("cut at byte {}, where it is broken: {} bytes are lost", cut.at, cut.lost);
                    events.tell(
                        Happened::new(Kind::HistoryCut, cut.file, message).with("lost_bytes", cut.lost),
                    );
                }
            }
            Some(Err(error)) => self.disk_failed(&error, events),
            None => {}
        }
        self.loaded.send_replace(true);
        if records > 0 {
            let Size { series, kept_seconds, .. } = self.lock().history.size();
            tracing::info!(records, series, kept_seconds, took = ?begun.elapsed(), "the history is read back");
        }
    }

    /// Returns once [`Self::load`] is done.
    pub async fn loaded(&self) {
        // Nobody left to say so: nothing is to come.
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    /// Adds a report, unless it counts already, and says when it will be kept.
    pub fn take(&self, reporter: &SpiffeId, report: &TrafficReport) -> (Taken, Round) {
        let now = self.clock.now();
        let mut inner = self.lock();
        let taken = inner.history.take(reporter, report, now);
        (taken, Round(inner.rounds + 1))
    }

    /// When what would be taken now will be kept.
    pub fn next(&self) -> Round {
        Round(self.lock().rounds + 1)
    }

    /// The last round that is kept, now and whenever that changes.
    pub fn kept(&self) -> watch::Receiver<u64> {
        self.kept.subscribe()
    }

    /// Keeps what comes, for ever.
    pub async fn run(self: Arc<Self>, events: Arc<Events>) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.loaded().await;
        loop {
            ticks.tick().await;
            let (this, events) = (self.clone(), events.clone());
            // A panic in there has ended one round; its reports are acknowledged by the next one.
            let _ = tokio::task::spawn_blocking(move || {
                this.save(&events);
                events.save();
            })
            .await;
        }
    }

    /// Writes what is new. Blocking.
    pub fn save(&self, events: &Events) {
        let mut log = lock(&self.log);
        let now = self.clock.now();
        let (batch, round) = {
            let mut inner = self.lock();
            inner.history.advance(now);
            inner.rounds += 1;
            let begins_file = log.as_ref().is_some_and(|log| log.begins_file(now));
            (inner.history.take_unsaved(begins_file), inner.rounds)
        };
        if let (Some(log), Some(batch)) = (log.as_mut(), batch) {
            match log.append(batch, wall()) {
                Ok(()) => {
                    self.counts.saved.add_one();
                    let had = {
                        let mut disk = lock(&self.disk);
                        disk.bytes = log.bytes();
                        disk.error.take()
                    };
                    if had.is_some() {
                        tracing::info!("the history is written to disk again");
                        let message = "written to disk again; what came meanwhile is in memory only";
                        events.tell(Happened::new(Kind::HistoryKept, "history", message));
                    }
                }
                Err(error) => self.disk_failed(&error, events),
            }
        }
        drop(log);
        self.kept.send_replace(round);
    }

    fn disk_failed(&self, error: &io::Error, events: &Events) {
        self.counts.save_errors.add_one();
        let text = error.to_string();
        let had = lock(&self.disk).error.replace(text.clone());
        if had.is_none() {
            tracing::error!(
                error = text,
                "the history cannot be kept on disk: a restart loses what comes now"
            );
            let message = format!("not kept on disk, so a restart loses what comes now: {text}");
            events.tell(Happened::new(Kind::HistoryNotKept, "history", message));
        }
    }

    /// Answers a question, among four at a time. `names` is asked once, off the tasks that carry streams, and returns who
    /// says what the port of a workload is called.
    pub async fn ask<N>(
        self: &Arc<Self>,
        ask: Ask,
        names: impl FnOnce() -> N + Send + 'static,
    ) -> Result<Stat, tokio::task::JoinError>
    where
        N: Fn(&SpiffeId, &str) -> Arc<str>,
    {
        // It is never closed.
        let _permit = self.questions.acquire().await;
        let begun = Instant::now();
        let this = self.clone();
        let stat = tokio::task::spawn_blocking(move || this.answer(&ask, names())).await;
        self.counts.questions.add_one();
        self.counts.question_micros.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        stat
    }

    fn answer(&self, ask: &Ask, name: impl Fn(&SpiffeId, &str) -> Arc<str>) -> Stat {
        let mut sum = Sum::default();
        for _ in 0..TRIES {
            if let Some(stat) = self.try_answer(ask, &name, &mut sum, false) {
                return stat;
            }
            // What was half added up goes with it.
            sum = Sum::default();
        }
        let held = self.try_answer(ask, &name, &mut sum, true);
        held.unwrap_or_else(|| unreachable!("nothing moves while the lock is held"))
    }

    /// `None`: slots have moved. `holds`: the lock is held all the time.
    fn try_answer(
        &self,
        ask: &Ask,
        name: &impl Fn(&SpiffeId, &str) -> Arc<str>,
        sum: &mut Sum,
        holds: bool,
    ) -> Option<Stat> {
        let now = self.clock.now();
        let mut held = Some(self.lock());
        let history = &mut held.as_mut()?.history;
        history.advance(now);
        let (from, to) = match ask.span {
            Span::Last(length) => {
                let to = now.saturating_sub(SETTLED) / 1000 * 1000;
                (to.saturating_sub(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)), to)
            }
            Span::Between { from, to } => (self.clock.of_wall(from), self.clock.of_wall(to).min(now)),
        };
        let window = history.window(from, to.max(from));
        let query = Query {
            by: ask.by,
            side: ask.side,
            window,
            namespace: ask.namespace.clone(),
            service: ask.service.clone(),
        };
        let listed = history.list(ask.side, window);
        let generation = history.generation();
        let (is_evicted, begins, proxies) =
            (history.is_evicted(window), history.begins(), history.reporters(window));
        if !holds {
            held = None;
        }
        let (groups, all) = query.groups(listed, name);
        let mut rows = Vec::with_capacity(groups.len());
        let mut is_folded = false;
        for group in &groups {
            for some in group.series().chunks(AT_ONCE) {
                let inner = held.take().unwrap_or_else(|| self.lock());
                if inner.history.generation() != generation {
                    return None;
                }
                for listed in some {
                    inner.history.add_up(listed, window, sum);
                }
                if holds {
                    held = Some(inner);
                } else {
                    drop(inner);
                }
            }
            let inner = held.take().unwrap_or_else(|| self.lock());
            if let Some(row) = inner.history.row(group, &query, sum) {
                is_folded |= group.is_incomplete();
                rows.push(row);
            }
            if holds {
                held = Some(inner);
            }
        }
        drop(held);
        let mut incomplete = Vec::new();
        let begins_ms = self.clock.to_wall(begins * 1000);
        if is_evicted {
            incomplete.push("the oldest of it had to go: --history-memory is reached".to_owned());
        }
        if is_folded {
            incomplete.push("some of it counts as `other`: --history-memory is reached".to_owned());
        }
        if !*self.loaded.borrow() {
            incomplete.push("what was saved before the start is being read".to_owned());
        }
        Some(Stat {
            from_ms: self.clock.to_wall(window.from * 1000),
            to_ms: self.clock.to_wall(window.to * 1000),
            resolution_ms: window.resolution_ms,
            proxies,
            complete: incomplete.is_empty(),
            incomplete,
            begins_ms,
            rows_cut: all - groups.len(),
            rows,
        })
    }

    pub fn report(&self) -> HistoryReport {
        let (size, counts) = {
            let inner = self.lock();
            (inner.history.size(), inner.history.counts())
        };
        HistoryReport { loaded: *self.loaded.borrow(), size, counts, disk: lock(&self.disk).clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Round {
    /// Whether everything up to the last kept round has it.
    pub fn is_kept(self, last: u64) -> bool {
        self.0 <= last
    }
}

/// A panic under one of these locks has ended one task; the others go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
