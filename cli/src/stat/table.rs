//! Rows as tables.

use std::collections::HashMap;

use crate::{
    api::{By, Row, Stat},
    columns::{Column, Grid},
    figures::{self, NOTHING, change, clock, count, duration, rate, success},
    output::or_dash,
    stat::{
        Ask,
        order::{self, Name},
        remarks,
    },
};

/// What is assumed of a terminal that does not say.
const ASSUMED: (usize, usize) = (80, 24);

/// The width of the terminal.
pub(crate) fn room() -> usize {
    size().0
}

/// Columns and lines of the terminal. One that does not know them, as behind a serial line, says 0.
pub(crate) fn size() -> (usize, usize) {
    let (columns, lines) = crossterm::terminal::size().unwrap_or_default();
    let or = |said: u16, assumed| if said == 0 { assumed } else { usize::from(said) };
    (or(columns, ASSUMED.0), or(lines, ASSUMED.1))
}

/// The rates of the answer before, if there was one.
#[derive(Default)]
pub(super) struct Before(Option<HashMap<Name, f64>>);

impl Before {
    pub(super) fn is_first(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn remember(&mut self, rows: &[Row]) {
        self.0 = Some(rows.iter().map(|row| (order::name(row), row.rate)).collect());
    }

    fn change(&self, row: &Row) -> String {
        let Some(rates) = &self.0 else { return String::new() };
        match rates.get(&order::name(row)) {
            Some(then) if row.requests > 0 || *then > 0.0 => change(*then, row.rate),
            None if row.requests > 0 => change(0.0, row.rate),
            Some(_) | None => String::new(),
        }
    }
}

pub(super) fn lines(ask: &Ask, stat: &Stat, before: Option<&Before>, room: Option<usize>) -> Vec<String> {
    let mut lines = match stat.rows.as_slice() {
        [] => vec![format!("nothing ({}; {})", ask.about(), reporting(stat))],
        rows if ask.security => security(rows, before).lines(room),
        rows => figures(ask.query.by, rows, before).lines(room),
    };
    let mut remarks = remarks(stat);
    if stat.connected > stat.proxies {
        remarks.push(format!("{}; the others had no traffic, or are late", reporting(stat)));
    }
    match room {
        Some(room) => lines.extend(remarks.iter().flat_map(|remark| figures::wrap(remark, room, 2))),
        None => lines.extend(remarks),
    }
    if let Some(room) = room {
        for line in &mut lines {
            *line = figures::shorten(line, room);
        }
    }
    lines
}

/// How many proxies the figures are of. One that has left since counts, one without traffic does not.
pub(crate) fn reporting(stat: &Stat) -> String {
    match (stat.proxies, stat.connected) {
        (proxies, connected) if connected > proxies => format!("{proxies} of {connected} proxies reporting"),
        (1, _) => "1 proxy reporting".to_owned(),
        (proxies, _) => format!("{proxies} proxies reporting"),
    }
}

/// Names, and how much they matter where there is little room.
pub(crate) fn names(by: By) -> Vec<Column> {
    match by {
        By::Service => vec![Column::name("SERVICE", 0)],
        By::Route => vec![Column::name("ROUTE", 0), Column::name("SERVICE", 5)],
        By::Edge => vec![Column::name("SOURCE", 0), Column::name("SERVICE", 0), Column::name("TARGET", 10)],
    }
}

pub(crate) fn name_cells(by: By, row: &Row, home: Option<&str>) -> Vec<String> {
    match by {
        By::Service => vec![or_dash(row.service.as_str())],
        By::Route => vec![or_dash(row.route.as_str()), or_dash(row.service.as_str())],
        By::Edge => {
            vec![identity(&row.source, home), or_dash(row.service.as_str()), identity(&row.target, home)]
        }
    }
}

pub(crate) fn identity(id: &Option<String>, home: Option<&str>) -> String {
    id.as_deref().map_or_else(|| NOTHING.to_owned(), |id| figures::identity(id, home))
}

/// The trust domain that need not be said.
pub(crate) fn home(rows: &[Row]) -> Option<&str> {
    let ids = rows.iter().flat_map(|row| [row.source.as_deref(), row.target.as_deref()]);
    figures::trust_domain(ids.flatten())
}

/// Where only connections were, there is no rate of requests.
pub(crate) fn rate_of(row: &Row) -> String {
    if row.requests == 0 { NOTHING.to_owned() } else { rate(row.rate) }
}

fn figures(by: By, rows: &[Row], before: Option<&Before>) -> Grid {
    let failed = rows.iter().any(|row| row.failed() > 0);
    let connected = rows.iter().any(|row| row.connections > 0);
    let mut columns = names(by);
    columns.push(Column::figure("RPS", 3));
    columns.extend(before.map(|_| Column::figure("+/-", 5)));
    columns.push(Column::figure("SUCCESS", 2));
    columns.extend(
        [("P50", 7), ("P90", 9), ("P99", 4), ("P99.9", 8), ("MAX", 6)]
            .map(|(title, goes)| Column::figure(title, goes)),
    );
    columns.extend(connected.then(|| Column::figure("CONNS", 12)));
    columns.extend(failed.then(|| Column::figure("FAILED", 1)));
    columns.extend(failed.then(|| Column::name("MOSTLY", 13)));
    let home = home(rows);
    let cells = rows.iter().map(|row| {
        let mut cells = name_cells(by, row, home);
        cells.push(rate_of(row));
        cells.extend(before.map(|before| before.change(row)));
        cells.push(success(row.success));
        cells.extend([row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us].map(duration));
        cells.extend(connected.then(|| count(row.connections)));
        cells.extend(failed.then(|| count(row.failed())));
        cells.extend(failed.then(|| row.why()));
        cells
    });
    Grid { columns, rows: cells.collect() }
}

fn security(rows: &[Row], before: Option<&Before>) -> Grid {
    let mut columns = vec![
        Column::name("SOURCE", 0),
        Column::name("TARGET", 0),
        // Mostly what the target is called anyway.
        Column::name("SERVICE", 5),
        Column::name("SECURITY", 0),
        Column::figure("RPS", 3),
    ];
    columns.extend(before.map(|_| Column::figure("+/-", 5)));
    columns.extend([Column::figure("SUCCESS", 2), Column::figure("P99", 4)]);
    let home = home(rows);
    let cells = rows.iter().map(|row| {
        let mut cells = vec![
            identity(&row.source, home),
            match row.target {
                Some(_) => identity(&row.target, home),
                None => format!("({})", or_dash(row.service.as_str())),
            },
            or_dash(row.service.as_str()),
            protection(row),
            rate_of(row),
        ];
        cells.extend(before.map(|before| before.change(row)));
        cells.extend([success(row.success), duration(row.p99_us)]);
        cells
    });
    Grid { columns, rows: cells.collect() }
}

/// Cipher and group; `!` before what is not between two proven identities.
pub(crate) fn protection(row: &Row) -> String {
    match (&row.security, row.meshed) {
        (Some(security), true) => figures::security(security),
        (Some(security), false) => format!("! {}", figures::security(security)),
        (None, false) => "! PLAINTEXT".to_owned(),
        // Of proven identities, but nothing was opened: refused, or answered from memory.
        (None, true) => NOTHING.to_owned(),
    }
}

/// The heading of one of several tables.
pub(super) fn heading(ask: &Ask, stat: &Stat) -> String {
    format!("{}  {}  {}", clock(stat.to_ms, None), ask.about(), reporting(stat))
}
