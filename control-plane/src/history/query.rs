//! Questions to the history: rates, outcomes and percentiles of any window, by service, route or edge.
//!
//! Looking takes as long as there are bytes in the window (64 MiB: some tenths of a second), and whoever reports must
//! not wait for so long. So it goes in pieces: first the series that the question is about are listed, then each row is
//! added up a few series at a time. What says that slots are not where they were ([`History::generation`]) makes the
//! asker begin again.
//!
//! Percentiles are those of the proxies' histograms added up, never of percentiles.

use std::{collections::BTreeMap, sync::Arc};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Durations, Side};
use serde::Serialize;

use super::{
    COARSE, History,
    outcomes::{Outcome, OutcomeId},
    series::SeriesKey,
    slot::{self, Visit},
};

/// Rows of an answer.
pub const MAX_ROWS: usize = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Service,
    Route,
    Edge,
}

#[derive(Clone, Debug)]
pub struct Query {
    pub by: By,
    pub side: Side,
    pub window: Window,
    /// Of the service; of the reporting workload where the service has none (`external`, `other`).
    pub namespace: Option<String>,
    /// `NAMESPACE/NAME:PORT`, `NAMESPACE/NAME`, `NAME:PORT` or `NAME`.
    pub service: Option<String>,
}

/// Whole seconds `from..to`. Where it begins among slots of ten seconds, a multiple of ten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub from: u64,
    pub to: u64,
    pub resolution_ms: u64,
}

/// A series as a question sees it.
#[derive(Clone, Debug)]
pub struct Listed {
    number: u32,
    pub key: Arc<SeriesKey>,
    security: Option<Arc<str>>,
    is_incomplete: bool,
}

/// Series that make one row.
#[derive(Debug)]
pub struct Group {
    row: RowKey,
    series: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct RowKey {
    service: Arc<str>,
    route: Arc<str>,
    source: Option<SpiffeId>,
    target: Option<SpiffeId>,
}

/// What is added up. Used for one row after the other, because of its size.
#[derive(Default)]
pub struct Sum {
    numbers: [u64; 4],
    outcomes: BTreeMap<OutcomeId, u64>,
    durations: Durations,
}

/// Figures are over the whole window; times in microseconds, `None` without requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub side: Side,
    pub service: Arc<str>,
    pub route: Arc<str>,
    pub source: Option<String>,
    pub target: Option<String>,
    pub security: Option<String>,
    /// Both sides have proven who they are.
    pub meshed: bool,
    pub requests: u64,
    pub failures: u64,
    /// Requests per second.
    pub rate: f64,
    pub success: Option<f64>,
    pub p50_us: Option<u64>,
    pub p90_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub p999_us: Option<u64>,
    pub max_us: Option<u64>,
    pub received: u64,
    pub sent: u64,
    pub connections: u64,
    pub connections_failed: u64,
    pub outcomes: Vec<OutcomeRow>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutcomeRow {
    /// `2xx`; `none`: the caller left before there was an answer.
    pub status: String,
    pub grpc_status: Option<u8>,
    pub reason: Option<Arc<str>>,
    pub count: u64,
    /// They are among the row's failures.
    pub failed: bool,
}

// === impl History ===

impl History {
    /// The window of whole seconds, as they are kept, that covers `from..to` (milliseconds of the history's clock).
    pub fn window(&self, from: u64, to: u64) -> Window {
        let (mut from, mut to) = (from / 1000, to.div_ceil(1000));
        let is_coarse = from < self.fine_from;
        if is_coarse {
            from = from / COARSE * COARSE;
            // Up to there slots are of ten seconds, and beyond it of one.
            if to < self.fine_from {
                to = to.div_ceil(COARSE) * COARSE;
            }
        }
        Window { from, to, resolution_ms: if is_coarse { COARSE * 1000 } else { 1000 } }
    }

    /// Anything of the window went for memory's sake.
    pub fn is_evicted(&self, window: Window) -> bool {
        window.from < self.evicted_to
    }

    /// The first second of which anything could be known.
    pub fn begins(&self) -> u64 {
        self.begins.max(self.kept_from)
    }

    /// Proxies (not workloads) that reported within the window or since.
    pub fn reporters(&self, window: Window) -> usize {
        // What a report is about ended before it came.
        self.marks.heard(window.from * 1000, window.to.saturating_add(2) * 1000)
    }

    /// Changes when series or slots move.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    pub fn list(&self, side: Side, window: Window) -> Vec<Listed> {
        let all = self.series.iter().enumerate().filter_map(|(number, series)| {
            let series = series.as_ref().filter(|series| series.key.edge.side == side)?;
            let is_incomplete = series.folded_until.is_some_and(|until| until >= window.from);
            let (key, security) = (series.key.clone(), series.security.clone());
            Some(Listed { number: number as u32, key, security, is_incomplete })
        });
        all.collect()
    }

    /// Adds a listed series to a sum. Only as long as the generation is that of the list.
    pub fn add_up(&self, listed: &Listed, window: Window, sum: &mut Sum) {
        let Some(Some(series)) = self.series.get(listed.number as usize) else { return };
        for slot in series.slots(window.from, window.to) {
            slot::read(slot, sum);
        }
    }

    /// What a sum amounts to. `None`: nothing. The sum is empty then.
    pub fn row(&self, group: &Group, query: &Query, sum: &mut Sum) -> Option<Row> {
        let row = sum.row(group, query, |number| self.outcomes.get(number));
        sum.clear();
        row
    }
}

// === impl Query ===

impl Query {
    /// Arranges listed series by row, in the order of their names: at most [`MAX_ROWS`], and how many there would be.
    ///
    /// `name` says what the port of a workload is called, of which only the number was reported.
    pub fn groups(
        &self,
        listed: Vec<Listed>,
        name: impl Fn(&SpiffeId, &str) -> Arc<str>,
    ) -> (Vec<Group>, usize) {
        let mut rows: BTreeMap<RowKey, Vec<Listed>> = BTreeMap::new();
        for listed in listed {
            let SeriesKey { reporter, edge } = &*listed.key;
            let service = match (edge.side, edge.service.strip_prefix(':')) {
                (Side::Inbound, Some(port)) => name(reporter, port),
                _ => edge.service.clone(),
            };
            if !self.wants(&service, reporter) {
                continue;
            }
            let (source, target) = match (self.by, edge.side) {
                (By::Service | By::Route, _) => (None, None),
                (By::Edge, Side::Outbound) => (Some(reporter.clone()), edge.peer.clone()),
                (By::Edge, Side::Inbound) => (edge.peer.clone(), Some(reporter.clone())),
            };
            let route = match self.by {
                By::Route => edge.route.clone(),
                By::Service | By::Edge => Arc::default(),
            };
            rows.entry(RowKey { service, route, source, target }).or_default().push(listed);
        }
        let all = rows.len();
        let groups = rows.into_iter().take(MAX_ROWS).map(|(row, series)| Group { row, series });
        (groups.collect(), all)
    }

    fn wants(&self, service: &str, reporter: &SpiffeId) -> bool {
        let (namespace, name) = match service.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, service),
        };
        let wanted_namespace = self.namespace.as_deref();
        let in_namespace =
            wanted_namespace.is_none_or(|wanted| namespace.unwrap_or_else(|| reporter.namespace()) == wanted);
        let is_name = |wanted: &str| {
            let without_port = |text: &str| text.rsplit_once(':').map(|(name, _)| name.to_owned());
            wanted == service
                || wanted == name
                || without_port(service).is_some_and(|it| it == wanted)
                || without_port(name).is_some_and(|it| it == wanted)
        };
        in_namespace && self.service.as_deref().is_none_or(is_name)
    }
}

// === impl Group ===

impl Group {
    pub fn series(&self) -> &[Listed] {
        &self.series
    }

    /// Traffic of others is in it that should have rows of its own.
    pub fn is_incomplete(&self) -> bool {
        self.series.iter().any(|listed| listed.is_incomplete)
    }
}

// === impl Sum ===

impl Visit for Sum {
    fn numbers(&mut self, numbers: [u64; 4]) {
        for (sum, number) in self.numbers.iter_mut().zip(numbers) {
            *sum = sum.saturating_add(number);
        }
    }

    fn outcome(&mut self, outcome: OutcomeId, count: u64) {
        let sum = self.outcomes.entry(outcome).or_default();
        *sum = sum.saturating_add(count);
    }

    fn bucket(&mut self, bucket: u16, count: u64) {
        self.durations.add_bucket(bucket, count);
    }
}

impl Sum {
    fn clear(&mut self) {
        self.numbers = [0; 4];
        self.outcomes.clear();
        self.durations.reset();
    }

    fn row<'a>(
        &self,
        group: &Group,
        query: &Query,
        outcome: impl Fn(OutcomeId) -> Option<&'a Outcome>,
    ) -> Option<Row> {
        let [received, sent, connections, connections_failed] = self.numbers;
        let outcomes =
            || self.outcomes.iter().filter_map(|(number, count)| Some((outcome(*number)?, *count)));
        let requests = outcomes().fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        if requests == 0 && self.numbers == [0; 4] {
            return None;
        }
        let failed = outcomes().filter(|(outcome, _)| outcome.is_failure());
        let failures = failed.fold(0u64, |sum, (_, count)| sum.saturating_add(count));
        let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let quantile = |quantile| self.durations.quantile(quantile).map(micros);
        let RowKey { service, route, source, target } = &group.row;
        let seconds = query.window.to.saturating_sub(query.window.from).max(1);
        let mut ended: Vec<_> = outcomes().collect();
        ended.sort_unstable();
        Some(Row {
            side: query.side,
            service: service.clone(),
            route: route.clone(),
            source: source.as_ref().map(ToString::to_string),
            target: target.as_ref().map(ToString::to_string),
            security: security(&group.series),
            meshed: group.series.iter().all(|listed| listed.key.edge.peer.is_some()),
            requests,
            failures,
            rate: requests as f64 / seconds as f64,
            success: (requests > 0).then(|| 1.0 - failures as f64 / requests as f64),
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: self.durations.max().map(micros),
            received,
            sent,
            connections,
            connections_failed,
            outcomes: ended.into_iter().map(|(outcome, count)| OutcomeRow::new(outcome, count)).collect(),
        })
    }
}

impl OutcomeRow {
    fn new(outcome: &Outcome, count: u64) -> Self {
        let Outcome { status_class, grpc_status, reason } = outcome;
        Self {
            status: match status_class {
                0 => "none".to_owned(),
                class => format!("{class}xx"),
            },
            grpc_status: *grpc_status,
            reason: (!reason.is_empty()).then(|| reason.clone()),
            count,
            failed: outcome.is_failure(),
        }
    }
}

/// How the connections of a row were secured; where it was in several ways, all of them.
fn security(series: &[Listed]) -> Option<String> {
    let mut all: Vec<&str> = series.iter().filter_map(|listed| listed.security.as_deref()).collect();
    all.sort_unstable();
    all.dedup();
    (!all.is_empty()).then(|| all.join(", "))
}
