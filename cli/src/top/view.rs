//! Draws a state of `top` on so many columns and lines, and looks at nothing else.
//!
//! ```text
//!   outrigger top  http://…                     6 proxies  20:01:05
//!   1,234 rps  99.98 %  0.2 failures/s  12 services, last 10 s
//!   [services]  routes  edges    sorted by what hurts  filter: ord
//!   SERVICE            RPS  FAIL/S  SUCCESS   P50   P99
//!   …
//!   q quit  s sort  / filter  Tab view  space pause  ? help
//! ```
//!
//! On few lines the heading goes before the rows do. Colour only repeats what the figures say.

use ratatui::{
    buffer::Buffer,
    layout::Rect,
    style::{Color, Modifier, Style},
};

use super::state::State;
use crate::{
    api::{By, Row, Stat},
    columns::{Column, GAP, Grid},
    figures::{clock, duration, rate, shorten, success, width},
    output::roughly,
    stat::{
        remarks,
        table::{home, name_cells, names, rate_of, reporting},
    },
};

/// Shares of success and 99th percentiles from which on a figure is coloured: those of the alert rules.
const BAD: (f64, u64) = (0.95, 500_000);
const POOR: (f64, u64) = (0.99, 100_000);

const KEYS: &str = "q quit  s sort  / filter  Tab view  space pause  ? help";
const HELP: [&str; 9] = [
    "q, Esc, Ctrl-C  quit",
    "Tab, Shift-Tab  services, routes, edges",
    "s               sort: hurts (failures, p99), rps, success, …",
    "/               only names that contain what is typed",
    "space           hold the figures still",
    "arrows, j, k    scroll; PgUp, PgDn, Home, End too",
    "SUCCESS, P99    of all requests, exact over all proxies",
    "!               an edge with an end that has no identity",
    "any key         goes back",
];

pub(super) fn draw(state: &State, area: Rect, buffer: &mut Buffer) {
    let mut page = Page { area, buffer, line: 0, colour: state.colour };
    if state.help {
        page.text("outrigger top", Style::new().add_modifier(Modifier::BOLD));
        for line in HELP {
            page.text(line, Style::new());
        }
        return;
    }
    let rows = state.rows();
    let heading = match area.height {
        ..4 => 0,
        4..8 => 1,
        8.. => 3,
    };
    // The table's header, and the footer.
    let body = usize::from(area.height).saturating_sub(heading + 1 + usize::from(area.height > 2));
    let from = state.scroll.min(rows.len().saturating_sub(body));
    if heading > 0 {
        page.ends(
            &format!("outrigger top  {}", state.base.trim_start_matches("http://")),
            &right(state),
            Style::new().add_modifier(Modifier::BOLD),
        );
    }
    if heading > 1 {
        page.text(&totals(state, &rows), Style::new());
        page.text(&tabs(state, rows.len(), from, body), Style::new());
    }
    page.table(state, &rows, from, body);
    page.line = area.height.saturating_sub(1);
    if area.height > 2 {
        page.footer(state);
    }
}

fn right(state: &State) -> String {
    let paused = if state.paused { "PAUSED  " } else { "" };
    let proxies = state.stat.as_ref().map(reporting).unwrap_or_default();
    let proxies = proxies.trim_end_matches(" reporting");
    let at = state.stat.as_ref().map_or(state.now_ms, |stat| stat.to_ms);
    format!("{paused}{proxies}  {}", clock(at, Some(state.now_ms)))
}

fn totals(state: &State, rows: &[&Row]) -> String {
    let Some(stat) = &state.stat else { return "asking…".to_owned() };
    // Of rows that know theirs, each as much as it has requests.
    let known = rows.iter().filter_map(|row| Some((row.success?, row.requests as f64)));
    let (good, all) = known.fold((0.0, 0.0), |(good, all), (share, n)| (good + share * n, all + n));
    let share = (all > 0.0).then(|| good / all);
    let failures: f64 = rows.iter().map(|row| row.failed() as f64).sum();
    format!(
        "{} rps  {}  {} failures/s  {} {}, last {}",
        rate(rows.iter().map(|row| row.rate).sum()),
        success(share),
        rate(failures / stat.seconds()),
        rows.len(),
        what(state.by),
        roughly(state.window),
    )
}

fn tabs(state: &State, rows: usize, from: usize, body: usize) -> String {
    let tab = |by: By| if by == state.by { format!("[{}]", what(by)) } else { format!(" {} ", what(by)) };
    let tabs = [By::Service, By::Route, By::Edge].map(tab).join(" ");
    let filter = if state.filter.is_empty() { String::new() } else { format!("  filter: {}", state.filter) };
    let part = if rows > body {
        format!("  {}-{} of {rows}", from + 1, (from + body).min(rows))
    } else {
        String::new()
    };
    format!("{tabs}  sorted by {}{filter}{part}", state.sort.title())
}

fn what(by: By) -> &'static str {
    match by {
        By::Service => "services",
        By::Route => "routes",
        By::Edge => "edges",
    }
}

/// What a cell is coloured by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Not,
    Success,
    P99,
}

struct Page<'a> {
    area: Rect,
    buffer: &'a mut Buffer,
    line: u16,
    colour: bool,
}

impl Page<'_> {
    /// A line; what does not fit is cut.
    fn text(&mut self, text: &str, style: Style) {
        self.put(0, text, style);
        self.line += 1;
    }

    /// One text on the left and one on the right; the left one gives way.
    fn ends(&mut self, left: &str, right: &str, style: Style) {
        let columns = usize::from(self.area.width);
        let room = columns.saturating_sub(width(right) + GAP);
        if room < 12 {
            return self.text(left, style);
        }
        self.put(0, &shorten(left, room), style);
        self.put(columns - width(right), right, style);
        self.line += 1;
    }

    fn put(&mut self, x: usize, text: &str, style: Style) {
        let Ok(x) = u16::try_from(x) else { return };
        if self.line < self.area.height && x < self.area.width {
            let room = usize::from(self.area.width - x);
            self.buffer.set_stringn(self.area.x + x, self.area.y + self.line, text, room, style);
        }
    }

    fn table(&mut self, state: &State, rows: &[&Row], from: usize, body: usize) {
        let Some(stat) = &state.stat else { return };
        if rows.is_empty() {
            let nothing = match state.filter.as_str() {
                "" => format!("nothing in the last {}", roughly(state.window)),
                filter => format!("nothing here contains {filter:?}"),
            };
            return self.text(&nothing, Style::new());
        }
        let (grid, judged) = grid(state.by, stat, rows);
        let placed = grid.place(Some(usize::from(self.area.width)));
        let titles: Vec<String> = grid.columns.iter().map(|column| column.title.to_owned()).collect();
        let reversed = Style::new().add_modifier(Modifier::REVERSED);
        self.put(0, &" ".repeat(usize::from(self.area.width)), reversed);
        let mut x = 0;
        for at in &placed {
            self.put(x, &grid.cell(&titles, *at), reversed);
            x += at.width + GAP;
        }
        self.line += 1;
        for (row, cells) in rows.iter().zip(&grid.rows).skip(from).take(body) {
            let mut x = 0;
            for at in &placed {
                let style = self.judge(row, judged[at.index]);
                self.put(x, &grid.cell(cells, *at), style);
                x += at.width + GAP;
            }
            self.line += 1;
        }
    }

    fn judge(&self, row: &Row, judged: Judged) -> Style {
        let beyond = |(share, micros): (f64, u64)| match judged {
            Judged::Not => false,
            Judged::Success => row.success.is_some_and(|success| success < share),
            Judged::P99 => row.p99_us.is_some_and(|p99| p99 > micros),
        };
        match (beyond(BAD), beyond(POOR)) {
            (true, _) => self.coloured(Color::Red).add_modifier(Modifier::BOLD),
            (false, true) => self.coloured(Color::Yellow),
            (false, false) => Style::new(),
        }
    }

    fn coloured(&self, colour: Color) -> Style {
        if self.colour { Style::new().fg(colour) } else { Style::new() }
    }

    fn footer(&mut self, state: &State) {
        if state.typing {
            return self.text(&format!("/{}_   Enter keeps it, Esc clears it", state.filter), Style::new());
        }
        if let Some((since, why)) = &state.away {
            let text = format!("control plane away since {}: {why}", clock(*since, Some(state.now_ms)));
            return self.text(&text, self.coloured(Color::Red).add_modifier(Modifier::BOLD));
        }
        match state.stat.as_ref().and_then(|stat| remarks(stat).into_iter().next()) {
            Some(remark) => self.text(&remark, self.coloured(Color::Yellow)),
            None => self.text(KEYS, Style::new().add_modifier(Modifier::DIM)),
        }
    }
}

fn grid(by: By, stat: &Stat, rows: &[&Row]) -> (Grid, Vec<Judged>) {
    let mut columns = names(by);
    let mut judged = vec![Judged::Not; columns.len()];
    for (title, goes, by) in [
        ("RPS", 3, Judged::Not),
        ("FAIL/S", 1, Judged::Success),
        ("SUCCESS", 2, Judged::Success),
        ("P50", 7, Judged::Not),
        ("P90", 9, Judged::Not),
        ("P99", 4, Judged::P99),
        ("P99.9", 8, Judged::Not),
        ("MAX", 6, Judged::Not),
    ] {
        columns.push(Column::figure(title, goes));
        judged.push(by);
    }
    columns.push(Column::name("MOSTLY", 13));
    judged.push(Judged::Not);
    let (seconds, home) = (stat.seconds(), home(&stat.rows));
    let cells = rows.iter().map(|row| {
        let mut cells = name_cells(by, row, home);
        if by == By::Edge && !row.meshed {
            cells[0].insert_str(0, "! ");
        }
        cells.push(rate_of(row));
        cells.push(rate(row.failed() as f64 / seconds));
        cells.push(success(row.success));
        cells.extend([row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us].map(duration));
        cells.push(row.why());
        cells
    });
    (Grid { columns, rows: cells.collect() }, judged)
}
