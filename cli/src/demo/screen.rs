//! What the user sees: a line for each act as it ends, a live line of the traffic while one goes on, a summary.

use std::{
    fmt::{self, Display},
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use super::load::{Counts, Load};

pub(crate) struct Screen {
    terminal: bool,
    start: Instant,
    /// For the rate on the live line.
    last: Option<(Instant, Counts)>,
}

/// Something that was shown, or failed to be.
pub(crate) struct Fact {
    pub(crate) holds: bool,
    pub(crate) title: &'static str,
    pub(crate) text: String,
}

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), start: Instant::now(), last: None }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn say(&self, line: impl Display) {
        self.clear();
        tell(format_args!("{line}\n"));
    }

    /// The line of something that has just been done.
    pub(crate) fn step(&self, line: impl Display) {
        self.clear();
        tell(format_args!("[{:4.1} s] {line}\n", self.elapsed().as_secs_f64()));
    }

    /// Rewrites the live line, a few times a second at most.
    pub(crate) fn tick(&mut self, load: &Load, what: &str) {
        let now = Instant::now();
        let counts = load.counts();
        let Some((then, before)) = self.last else {
            self.last = Some((now, counts));
            return;
        };
        let passed = now - then;
        if !self.terminal || passed < Duration::from_millis(500) {
            return;
        }
        self.last = Some((now, counts));
        let rate = (counts - before).done as f64 / passed.as_secs_f64();
        let failed = counts.failed;
        tell(format_args!("\r\x1b[K         {what}: {rate:.0} requests/s, {failed} failed"));
    }

    pub(crate) fn summary(&self, facts: &[Fact]) {
        self.clear();
        tell(format_args!("\n"));
        let width = facts.iter().map(|fact| fact.title.len()).max().unwrap_or_default();
        for fact in facts {
            let mark = if fact.holds { "ok    " } else { "FAILED" };
            let mut lines = fact.text.lines();
            let first = lines.next().unwrap_or_default();
            tell(format_args!("{mark}  {:width$}  {first}\n", fact.title));
            for line in lines {
                tell(format_args!("{:indent$}{line}\n", "", indent = width + 10));
            }
        }
        tell(format_args!("\n"));
    }

    fn clear(&self) {
        if self.terminal {
            tell(format_args!("\r\x1b[K"));
        }
    }
}

/// A reader that is gone costs its lines: what was begun is taken down in order all the same.
fn tell(text: fmt::Arguments<'_>) {
    let mut out = io::stdout();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}

/// With a comma between thousands.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub(crate) fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (12_345_678, "12,345,678")] {
            assert_eq!(thousands(number), text);
        }
    }
}
