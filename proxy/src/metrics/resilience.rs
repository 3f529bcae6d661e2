//! Counters and gauges of resilience: circuits, bulkheads, retries, limits, fallbacks, caches.
//!
//! What is counted under is a name that a policy or the configuration gives (a service, a limit) and words of our own;
//! nothing that a caller chooses. Names count against the budget like all label sets.

use std::{
    hash::BuildHasher,
    sync::{Arc, PoisonError},
};

use serde::Serialize;

use super::{Count, Family, OTHER, Observed, Registry, Shard, add, make_room, text, text::Page};
use crate::telemetry::RequestRecord;

/// Something that is counted under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// Of one endpoint, as one worker sees it; words: to what, and the cause.
    CircuitTransition,
    /// A bulkhead has refused; word: the reason.
    Shed,
    /// An attempt after the first; word: what became of the request.
    Retry,
    RetryBudgetExhausted,
    /// A second attempt beside the first; word: what became of it.
    Hedge,
    /// A rate limit has refused, or would have; word: whether it only would have.
    RateLimited,
    /// Something else was answered in place of a failure; word: what.
    Fallback,
    /// A cache was asked; word: what it had.
    Cache,
}

/// A bulkhead as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hall {
    pub name: String,
    pub in_flight: u64,
    /// `None`: no limit in all.
    pub limit: Option<u64>,
    pub queued: u64,
}

pub(super) const EVENTS: usize = Event::ALL.len();

pub(super) type EventFamilies = [Family<Count>; EVENTS];

pub(super) struct EventEntry {
    event: Event,
    name: Box<str>,
    words: [&'static str; 2],
    count: Arc<Count>,
}

/// Gauges of one kind that a page has at most; the rest are added up under `other`.
const MOST_GAUGES: usize = 500;

// === impl Event ===

impl Event {
    pub const ALL: [Self; 8] = [
        Self::CircuitTransition,
        Self::Shed,
        Self::Retry,
        Self::RetryBudgetExhausted,
        Self::Hedge,
        Self::RateLimited,
        Self::Fallback,
        Self::Cache,
    ];

    /// Its metric, what that says, and the labels of the name and the words.
    fn metric(self) -> (&'static str, &'static str, [&'static str; 3]) {
        match self {
            Self::CircuitTransition => (
                "outrigger_circuit_transitions_total",
                "Circuits of endpoints that opened, half-opened or closed, in each worker.",
                ["service", "to", "cause"],
            ),
            Self::Shed => {
                ("outrigger_bulkhead_shed_total", "What a bulkhead has refused.", ["name", "reason", ""])
            }
            Self::Retry => {
                ("outrigger_retries_total", "Attempts after the first.", ["service", "outcome", ""])
            }
            Self::RetryBudgetExhausted => (
                "outrigger_retry_budget_exhausted_total",
                "Requests not sent again because the budget was spent.",
                ["service", "", ""],
            ),
            Self::Hedge => {
                ("outrigger_hedges_total", "Second attempts beside the first.", ["service", "outcome", ""])
            }
            Self::RateLimited => (
                "outrigger_rate_limited_total",
                "What a rate limit has refused, or would have.",
                ["limit", "dry_run", ""],
            ),
            Self::Fallback => {
                ("outrigger_fallbacks_total", "Answers in place of a failure.", ["service", "to", ""])
            }
            Self::Cache => {
                ("outrigger_cache_total", "Requests that asked a cache.", ["service", "result", ""])
            }
        }
    }

    fn labels(self, name: &str, words: [&'static str; 2]) -> String {
        let (_, _, [of_name, first, second]) = self.metric();
        text::labels(&[(of_name, name), (first, words[0]), (second, words[1])])
    }
}

// === impl Shard ===

impl Shard {
    /// Counts under a name of the configuration's, never of a caller's.
    pub fn event(&mut self, event: Event, name: &str, words: [&'static str; 2], times: u64) {
        let hash = self.hasher.hash_one((event, name, words));
        let is = |entry: &EventEntry| entry.event == event && *entry.name == *name && entry.words == words;
        let entry = match self.events.find(hash, is) {
            Some(entry) => entry,
            None => {
                make_room(&mut self.events, self.registry.budget);
                let count = self.registry.cells(
                    self.worker,
                    |families| &mut families.events[event as usize],
                    &event.labels(name, words),
                    || event.labels(OTHER, words),
                );
                let entry = EventEntry { event, name: name.into(), words, count };
                let hasher = &self.hasher;
                let rehash = |entry: &EventEntry| hasher.hash_one((entry.event, &*entry.name, entry.words));
                self.events.insert_unique(hash, entry, rehash).into_mut()
            }
        };
        add(&entry.count.0, times);
    }

    /// What a request that has ended says about retries, hedges, fallbacks and caches.
    pub(super) fn handled(&mut self, record: &RequestRecord<'_>, service: &str) {
        let handled = &record.handled;
        let more =
            u64::from(record.attempts.saturating_sub(1)).saturating_sub(handled.hedged.is_some().into());
        if more > 0 {
            let good = record.reason.is_none() && (1..500).contains(&record.status);
            let outcome = if good { "succeeded" } else { "failed" };
            self.event(Event::Retry, service, [outcome, ""], more);
        }
        if handled.gave_up == Some("budget") {
            self.event(Event::RetryBudgetExhausted, service, ["", ""], 1);
        }
        let said = [
            (Event::Hedge, handled.hedged),
            (Event::Fallback, handled.fallback),
            (Event::Cache, handled.cache),
        ];
        for (event, word) in said {
            if let Some(word) = word {
                self.event(event, service, [word, ""], 1);
            }
        }
    }
}

// === impl Registry ===

impl Registry {
    pub(super) fn render_resilience(&self, page: &mut Page, observed: &Observed) {
        let events: Vec<_> = {
            let families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
            families.events.iter().map(text::copy).collect()
        };
        for (event, family) in Event::ALL.into_iter().zip(&events) {
            let (name, help, _) = event.metric();
            page.head(name, "counter", help);
            page.counts(name, family);
        }
        page.head("outrigger_endpoints_ejected", "gauge", "Endpoints that at least one worker has ejected.");
        page.gauges(
            "outrigger_endpoints_ejected",
            "service",
            observed.ejected.iter().map(|(n, v)| (&**n, *v)),
        );
        let halls = &observed.halls;
        page.head("outrigger_bulkhead_in_flight", "gauge", "What a bulkhead has admitted and not yet ended.");
        let in_flight = halls.iter().map(|hall| (&*hall.name, hall.in_flight));
        page.gauges("outrigger_bulkhead_in_flight", "name", in_flight);
        page.head("outrigger_bulkhead_limit", "gauge", "What a bulkhead admits at a time, as of now.");
        let limit = halls.iter().filter_map(|hall| Some((&*hall.name, hall.limit?)));
        page.gauges("outrigger_bulkhead_limit", "name", limit);
        page.head("outrigger_bulkhead_queued", "gauge", "What waits to be admitted by a bulkhead.");
        page.gauges("outrigger_bulkhead_queued", "name", halls.iter().map(|hall| (&*hall.name, hall.queued)));
    }
}

impl Page {
    fn gauges<'a>(&mut self, metric: &str, label: &str, values: impl Iterator<Item = (&'a str, u64)>) {
        let mut other = None;
        for (index, (name, value)) in values.enumerate() {
            if index < MOST_GAUGES {
                self.line(metric, &text::labels(&[(label, name)]), value);
            } else {
                other = Some(other.unwrap_or(0) + value);
            }
        }
        if let Some(value) = other {
            self.line(metric, &text::labels(&[(label, OTHER)]), value);
        }
    }
}
