//! What happened in the mesh that an operator wants to know of: one list, numbered, that only grows at its end.
//!
//! The latest 10,000 are kept in memory, and more of them in a file (`events/file.rs`), which is read back at a start, so
//! that numbers go on. A thousand circuits that open in one second are one event: of one kind 100 a second are told one by
//! one, and what is above as a sum.
//!
//! It hears of what others decide and decides nothing itself; a line of the log says most of it too.

pub mod circuit;
mod file;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{ProxyEvent, ProxyEventKind, Transition};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::{sync::watch, time::timeout};

use self::file::File;
use crate::recorder::wall;

/// In memory.
pub const KEPT: usize = 10_000;
/// Of one kind, in one second, one by one.
const FLOOD: u64 = 100;
const FLOOD_TIME: Duration = Duration::from_secs(1);
/// Transitions of circuits that are told apart, so that one that is told again is no event.
const TOLD: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    CircuitOpened,
    CircuitHalfOpen,
    CircuitClosed,
    CertificateNearEnd,
    ConfigurationTaken,
    ConfigurationRefused,
    UpdateRefused,
    CaptureBroken,
    CaptureRestored,
    Draining,
    ProxyJoined,
    ProxyLeft,
    RootChanged,
    AuthorityRefused,
    HistoryNotKept,
    HistoryKept,
    HistoryCut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Info,
    Warning,
    Error,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// From 1, without gaps, also over restarts.
    pub seq: u64,
    /// Milliseconds since 1970, when it happened as far as we know.
    pub at_ms: u64,
    pub kind: Kind,
    pub severity: Severity,
    /// What it is about: a workload, a service's endpoint, a file.
    pub subject: String,
    /// The identity of the proxy that told it; `None`: this control plane.
    pub reporter: Option<String>,
    pub message: String,
    pub details: Map<String, Value>,
}

/// An event without number.
#[derive(Clone, Debug)]
pub struct Happened {
    at_ms: u64,
    kind: Kind,
    severity: Severity,
    subject: String,
    reporter: Option<String>,
    message: String,
    details: Map<String, Value>,
}

/// Which events are wanted.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub after: u64,
    pub limit: usize,
    /// Empty: all.
    pub kinds: Vec<Kind>,
    pub since_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    pub events: Vec<Event>,
    /// What to say as `after` next.
    pub next: u64,
    /// After `after`, but gone already.
    pub missed: u64,
}

/// As `/status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct EventsReport {
    pub last: u64,
    pub held: usize,
    /// Why the latest are not on disk.
    pub error: Option<String>,
}

pub struct Events {
    inner: Mutex<Inner>,
    /// Taken by whoever writes, never together with the other one by whoever tells.
    file: Mutex<Option<File>>,
    last: watch::Sender<u64>,
}

struct Inner {
    ring: VecDeque<Event>,
    last: u64,
    floods: BTreeMap<Kind, Flood>,
    told: HashSet<String>,
    told_order: VecDeque<String>,
    unsaved: Vec<Event>,
    counts: BTreeMap<Kind, u64>,
    error: Option<String>,
}

struct Flood {
    since: Instant,
    count: u64,
    /// The last one that was not told.
    last: Option<Happened>,
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 17] = [
        Self::CircuitOpened,
        Self::CircuitHalfOpen,
        Self::CircuitClosed,
        Self::CertificateNearEnd,
        Self::ConfigurationTaken,
        Self::ConfigurationRefused,
        Self::UpdateRefused,
        Self::CaptureBroken,
        Self::CaptureRestored,
        Self::Draining,
        Self::ProxyJoined,
        Self::ProxyLeft,
        Self::RootChanged,
        Self::AuthorityRefused,
        Self::HistoryNotKept,
        Self::HistoryKept,
        Self::HistoryCut,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::CircuitOpened => "circuit-opened",
            Self::CircuitHalfOpen => "circuit-half-open",
            Self::CircuitClosed => "circuit-closed",
            Self::CertificateNearEnd => "certificate-near-end",
            Self::ConfigurationTaken => "configuration-taken",
            Self::ConfigurationRefused => "configuration-refused",
            Self::UpdateRefused => "update-refused",
            Self::CaptureBroken => "capture-broken",
            Self::CaptureRestored => "capture-restored",
            Self::Draining => "draining",
            Self::ProxyJoined => "proxy-joined",
            Self::ProxyLeft => "proxy-left",
            Self::RootChanged => "root-changed",
            Self::AuthorityRefused => "authority-refused",
            Self::HistoryNotKept => "history-not-kept",
            Self::HistoryKept => "history-kept",
            Self::HistoryCut => "history-cut",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    fn severity(self) -> Severity {
        match self {
            Self::CircuitHalfOpen
            | Self::CircuitClosed
            | Self::ConfigurationTaken
            | Self::CaptureRestored
            | Self::Draining
            | Self::ProxyJoined
            | Self::ProxyLeft
            | Self::RootChanged
            | Self::HistoryKept => Severity::Info,
            Self::CircuitOpened | Self::CertificateNearEnd | Self::HistoryNotKept | Self::HistoryCut => {
                Severity::Warning
            }
            Self::ConfigurationRefused
            | Self::UpdateRefused
            | Self::CaptureBroken
            | Self::AuthorityRefused => Severity::Error,
        }
    }
}

// === impl Happened ===

impl Happened {
    /// Now, to nobody in particular, with the severity of its kind.
    pub fn new(kind: Kind, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            at_ms: wall(),
            kind,
            severity: kind.severity(),
            subject: subject.into(),
            reporter: None,
            message: message.into(),
            details: Map::new(),
        }
    }

    pub fn severe(mut self, severity: Severity) -> Self {
        self.severity = severity;
        self
    }

    pub fn by(mut self, reporter: &SpiffeId) -> Self {
        self.reporter = Some(reporter.to_string());
        self
    }

    pub fn at(mut self, at_ms: u64) -> Self {
        self.at_ms = at_ms;
        self
    }

    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }
}

// === impl Events ===

impl Default for Events {
    fn default() -> Self {
        Self::with(None, Vec::new())
    }
}

impl Events {
    /// Goes on with what is in the file, if there is one.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (file, events) = File::open(path)?;
        Ok(Self::with(Some(file), events))
    }

    /// Without a file, because of this.
    pub fn without_file(error: &io::Error) -> Self {
        let this = Self::default();
        this.lock().error = Some(error.to_string());
        this
    }

    fn with(file: Option<File>, events: Vec<Event>) -> Self {
        let mut inner = Inner {
            ring: VecDeque::new(),
            last: 0,
            floods: BTreeMap::new(),
            told: HashSet::new(),
            told_order: VecDeque::new(),
            unsaved: Vec::new(),
            counts: BTreeMap::new(),
            error: None,
        };
        for event in events {
            if let Some(id) = event.details.get(circuit::ID).and_then(Value::as_str) {
                inner.is_news(id);
            }
            inner.last = inner.last.max(event.seq);
            inner.push(event);
        }
        let last = watch::Sender::new(inner.last);
        Self { inner: Mutex::new(inner), file: Mutex::new(file), last }
    }

    pub fn tell(&self, happened: Happened) {
        self.tell_at(happened, Instant::now());
    }

    fn tell_at(&self, happened: Happened, now: Instant) {
        let last = {
            let mut inner = self.lock();
            inner.tell(happened, now);
            inner.last
        };
        self.announce(last);
    }

    /// A circuit of this proxy has changed. A proxy tells all that are not closed again on each new stream.
    pub fn tell_transition(&self, reporter: &SpiffeId, transition: &Transition) {
        let (id, happened) = circuit::event(reporter, transition);
        if self.lock().is_news(&id) {
            self.tell(happened);
        }
    }

    /// Something that a proxy has told in a report.
    pub fn tell_of_proxy(&self, reporter: &SpiffeId, event: &ProxyEvent) {
        let kind = match event.kind {
            // Its configuration stream says so too, and to us first.
            ProxyEventKind::Draining => return,
            ProxyEventKind::CertificateNearEnd => Kind::CertificateNearEnd,
            ProxyEventKind::CaptureBroken => Kind::CaptureBroken,
            ProxyEventKind::CaptureRestored => Kind::CaptureRestored,
        };
        let ago = u64::try_from(event.ago.as_millis()).unwrap_or(u64::MAX);
        let happened = Happened::new(kind, reporter.as_str(), &*event.message).by(reporter);
        let at = happened.at_ms.saturating_sub(ago);
        self.tell(happened.at(at));
    }

    pub fn page(&self, wanted: &Wanted) -> Page {
        self.lock().page(wanted)
    }

    /// As [`Self::page`]; while there is nothing, waits for so long.
    pub async fn wait(&self, wanted: &Wanted, patience: Duration) -> Page {
        let mut wanted = wanted.clone();
        let mut last = self.last.subscribe();
        let mut missed = 0;
        let found = timeout(patience, async {
            loop {
                last.mark_unchanged();
                let page = self.page(&wanted);
                // Whoever knows more than we do is told so at once.
                if !page.events.is_empty() || page.next < wanted.after {
                    return page;
                }
                missed += page.missed;
                wanted.after = page.next;
                if last.changed().await.is_err() {
                    return page;
                }
            }
        })
        .await;
        let mut page = found.unwrap_or(Page { events: Vec::new(), next: wanted.after, missed: 0 });
        page.missed += missed;
        page
    }

    /// Ends floods and writes what is new. Blocking; due about once a second.
    pub fn save(&self) {
        let (unsaved, last) = {
            let mut inner = self.lock();
            inner.end_floods(Instant::now());
            (std::mem::take(&mut inner.unsaved), inner.last)
        };
        self.announce(last);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = file.as_mut().filter(|_| !unsaved.is_empty()) else { return };
        let error = file.append(&unsaved).err().map(|error| error.to_string());
        let mut inner = self.lock();
        if let Some(error) = &error
            && inner.error.as_ref() != Some(error)
        {
            tracing::warn!(error, "events cannot be written: a restart loses them");
        }
        inner.error = error;
    }

    pub fn report(&self) -> EventsReport {
        let inner = self.lock();
        EventsReport { last: inner.last, held: inner.ring.len(), error: inner.error.clone() }
    }

    /// Since the start, by kind; those that were told as a sum as well.
    pub fn counts(&self) -> Vec<(Kind, u64)> {
        let inner = self.lock();
        Kind::ALL.into_iter().map(|kind| (kind, inner.counts.get(&kind).copied().unwrap_or(0))).collect()
    }

    fn announce(&self, last: u64) {
        self.last.send_if_modified(|known| {
            let is_new = *known < last;
            *known = last.max(*known);
            is_new
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn tell(&mut self, happened: Happened, now: Instant) {
        *self.counts.entry(happened.kind).or_default() += 1;
        self.end_floods(now);
        let flood = self.floods.entry(happened.kind);
        let flood = flood.or_insert_with(|| Flood { since: now, count: 0, last: None });
        flood.count += 1;
        if flood.count > FLOOD {
            flood.last = Some(happened);
        } else {
            self.append(happened);
        }
    }

    /// Sums of what was not told one by one, where a second is over.
    fn end_floods(&mut self, now: Instant) {
        let is_over = |flood: &mut Flood| now.saturating_duration_since(flood.since) >= FLOOD_TIME;
        let over: Vec<_> = self.floods.extract_if(.., |_, flood| is_over(flood)).collect();
        for (_, flood) in over {
            let Some(last) = flood.last else { continue };
            let count = flood.count - FLOOD;
            let message =
                format!("{count} more within a second; the last: {}: {}", last.subject, last.message);
            let sum = Happened { message, subject: "many".to_owned(), reporter: None, ..last };
            self.append(Happened { details: Map::new(), ..sum }.with("count", count));
        }
    }

    fn append(&mut self, happened: Happened) {
        let Happened { at_ms, kind, severity, subject, reporter, message, details } = happened;
        self.last += 1;
        let event = Event { seq: self.last, at_ms, kind, severity, subject, reporter, message, details };
        if self.unsaved.len() < KEPT {
            self.unsaved.push(event.clone());
        }
        self.push(event);
    }

    fn push(&mut self, event: Event) {
        if self.ring.len() >= KEPT {
            self.ring.pop_front();
        }
        self.ring.push_back(event);
    }

    /// Whether a transition was not told before; from now on it was.
    fn is_news(&mut self, id: &str) -> bool {
        if !self.told.insert(id.to_owned()) {
            return false;
        }
        self.told_order.push_back(id.to_owned());
        if self.told_order.len() > TOLD
            && let Some(oldest) = self.told_order.pop_front()
        {
            self.told.remove(&oldest);
        }
        true
    }

    fn page(&self, wanted: &Wanted) -> Page {
        let Wanted { after, limit, kinds, since_ms } = wanted;
        let start = self.ring.partition_point(|event| event.seq <= *after);
        let is_wanted =
            |event: &&Event| (kinds.is_empty() || kinds.contains(&event.kind)) && event.at_ms >= *since_ms;
        let events: Vec<_> = self.ring.range(start..).filter(is_wanted).take(*limit).cloned().collect();
        let next = match events.last() {
            Some(last) if events.len() == *limit => last.seq,
            Some(_) | None => self.last,
        };
        // Who begins asks for what there is.
        let first = self.ring.front().map_or(self.last + 1, |event| event.seq);
        let missed = if *after == 0 { 0 } else { first.saturating_sub(after + 1) };
        Page { events, next, missed }
    }
}
