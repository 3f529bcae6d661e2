//! What `top` knows and shows, and what keys do to it.

use std::time::Duration;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::Told;
use crate::{
    api::{By, Row, Stat},
    stat::order::{self, Sort},
};

const MAX_FILTER: usize = 64;
/// Rows that PgUp and PgDn move.
const PAGE: usize = 10;

pub(super) struct State {
    pub(super) base: String,
    pub(super) by: By,
    pub(super) sort: Sort,
    pub(super) window: Duration,
    pub(super) colour: bool,
    /// The time at which it is drawn.
    pub(super) now_ms: i64,
    pub(super) filter: String,
    /// Keys go into the filter.
    pub(super) typing: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// Rows above the first one that is shown; the view stops at the last.
    pub(super) scroll: usize,
    /// The last answer about `by`; its rows are in order.
    pub(super) stat: Option<Stat>,
    /// Since when there is none, and why.
    pub(super) away: Option<(i64, String)>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    /// Something else than so far.
    Ask(By),
}

impl State {
    pub(super) fn new(base: &str, by: By, sort: Sort, window: Duration, colour: bool) -> Self {
        Self {
            base: base.to_owned(),
            by,
            sort,
            window,
            colour,
            now_ms: 0,
            filter: String::new(),
            typing: false,
            paused: false,
            help: false,
            scroll: 0,
            stat: None,
            away: None,
        }
    }

    pub(super) fn take(&mut self, (by, told): Told, now_ms: i64) {
        if by != self.by {
            // Asked before Tab was pressed.
            return;
        }
        match told {
            Ok(stat) => {
                self.away = None;
                if !self.paused || self.stat.is_none() {
                    self.stat = Some(stat);
                    self.arrange();
                }
            }
            Err(why) => {
                let since = self.away.take().map_or(now_ms, |(since, _)| since);
                self.away = Some((since, why));
            }
        }
    }

    /// The rows that the filter lets through.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let wanted = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        let rows = self.stat.iter().flat_map(|stat| &stat.rows);
        rows.filter(|row| {
            has(&row.service)
                || (self.by != By::Service && has(&row.route))
                || [&row.source, &row.target].into_iter().flatten().any(|id| has(id))
        })
        .collect()
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "there are many keys")]
    pub(super) fn press(&mut self, key: KeyEvent) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Action::Quit } else { Action::None };
        }
        if self.typing {
            self.write(key.code);
            return Action::None;
        }
        if self.help {
            self.help = false;
            return if key.code == KeyCode::Char('q') { Action::Quit } else { Action::None };
        }
        let last = self.rows().len().saturating_sub(1);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Char('s') => {
                self.sort = self.sort.next();
                self.arrange();
            }
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Tab => return self.turn(1),
            KeyCode::BackTab => return self.turn(2),
            KeyCode::Down | KeyCode::Char('j') => self.scroll = (self.scroll + 1).min(last),
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll = (self.scroll + PAGE).min(last),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = last,
            _ => {}
        }
        Action::None
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "there are many keys")]
    fn write(&mut self, key: KeyCode) {
        self.scroll = 0;
        match key {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.len() < MAX_FILTER && !c.is_control() => self.filter.push(c),
            _ => {}
        }
    }

    fn turn(&mut self, steps: usize) -> Action {
        const ALL: [By; 3] = [By::Service, By::Route, By::Edge];
        let at = ALL.iter().position(|by| *by == self.by).unwrap_or_default();
        self.by = ALL[(at + steps) % ALL.len()];
        self.scroll = 0;
        self.stat = None;
        Action::Ask(self.by)
    }

    fn arrange(&mut self) {
        if let Some(stat) = &mut self.stat {
            order::sort(&mut stat.rows, self.sort);
        }
    }
}
