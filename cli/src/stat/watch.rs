//! The same question each second.
//!
//! On a terminal the table stays in place. Elsewhere each answer is a block of its own: the time, the table, an empty
//! line; or as JSON a line. A control plane that is away is told once, and once more when it is back; only one that
//! was never there is an error.

use std::{
    io::{IsTerminal, Write},
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Ask,
    table::{self, Before},
};
use crate::{
    api::{Answer, Stat},
    figures::{clock, now_ms, shorten},
    output::{Output, Present, is_dumb, json_line, say, write},
};

/// What is written on.
#[derive(Clone, Copy)]
pub(super) enum Paper {
    /// A terminal: its columns and lines, asked each time.
    Screen(fn() -> (usize, usize)),
    Blocks,
    Lines,
}

pub(super) struct Watch<'a> {
    ask: &'a Ask,
    paper: Paper,
    pace: Duration,
    before: Before,
    present: Present,
    /// What is on the screen.
    shown: Vec<String>,
}

// === impl Paper ===

impl Paper {
    pub(super) fn of(output: Output, out: &impl IsTerminal) -> Self {
        match output {
            Output::Json => Self::Lines,
            Output::Table if out.is_terminal() && !is_dumb() => Self::Screen(table::size),
            Output::Table => Self::Blocks,
        }
    }
}

// === impl Watch ===

impl<'a> Watch<'a> {
    pub(super) fn new(ask: &'a Ask, paper: Paper, pace: Duration) -> Self {
        Self { ask, paper, pace, before: Before::default(), present: Present::default(), shown: Vec::new() }
    }

    /// As long as `go_on` says, asked after each answer.
    pub(super) fn run(
        &mut self,
        out: &mut dyn Write,
        notes: &mut dyn Write,
        mut go_on: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        loop {
            let begun = Instant::now();
            match self.ask.control_plane.stat(&self.ask.query) {
                Ok(answer) => self.show(answer, out, notes)?,
                Err(error) if self.before.is_first() => return Err(error),
                Err(error) => self.miss(&error, out, notes)?,
            }
            if !go_on() {
                return Ok(());
            }
            sleep(self.pace.saturating_sub(begun.elapsed()));
        }
    }

    fn show(
        &mut self,
        mut answer: Answer<Stat>,
        out: &mut dyn Write,
        notes: &mut dyn Write,
    ) -> anyhow::Result<()> {
        self.ask.pick(&mut answer);
        let Answer { json, read: stat } = answer;
        let back = self.present.is_back(now_ms());
        if let (Some(back), Paper::Blocks | Paper::Lines) = (&back, self.paper) {
            say(notes, back)?;
        }
        let heading = table::heading(self.ask, &stat);
        let lines = |room| table::lines(self.ask, &stat, Some(&self.before), room);
        match self.paper {
            Paper::Lines => say(out, &json_line(&json))?,
            Paper::Blocks => {
                let space = if self.before.is_first() { "" } else { "\n" };
                say(out, &format!("{space}{heading}\n{}", lines(None).join("\n")))?;
            }
            Paper::Screen(size) => {
                let size = size();
                self.shown = [vec![heading], lines(Some(size.0))].concat();
                // What was on the screen moves up, where it can still be read.
                let up = if self.before.is_first() { "\n".repeat(size.1) } else { String::new() };
                write(out, &(up + &draw(&self.shown, None, size)))?;
            }
        }
        self.before.remember(&stat.rows);
        Ok(())
    }

    fn miss(
        &mut self,
        error: &anyhow::Error,
        out: &mut dyn Write,
        notes: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let gone = self.present.is_gone(now_ms(), self.ask.control_plane.reason(error));
        match self.paper {
            Paper::Screen(size) => {
                let (since, why) = self.present.away().unwrap_or_default();
                let note = format!("control plane away since {}: {why}", clock(since, Some(now_ms())));
                write(out, &draw(&self.shown, Some(&note), size()))
            }
            Paper::Blocks | Paper::Lines => gone.map_or(Ok(()), |gone| say(notes, &gone)),
        }
    }
}

/// From the upper left corner on; what does not fit is counted.
fn draw(lines: &[String], note: Option<&str>, (columns, most): (usize, usize)) -> String {
    // The last line stays free for the cursor.
    let most = most.saturating_sub(1 + usize::from(note.is_some())).max(1);
    let mut shown: Vec<&str> = lines.iter().take(most).map(String::as_str).collect();
    let hidden =
        format!("… {} more lines: a taller terminal or a NAME shows them", lines.len() + 1 - shown.len());
    if let (true, Some(last)) = (lines.len() > most, shown.last_mut()) {
        *last = &hidden;
    }
    shown.extend(note);
    let text: String = shown.iter().map(|line| format!("{}\x1b[K\n", shorten(line, columns))).collect();
    format!("\x1b[H{text}\x1b[J")
}
