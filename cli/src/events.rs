//! `outrigger events`: what has happened in the mesh, in the order in which the control plane learned of it.
//!
//! With `--watch` it goes on with each new event, over restarts of the control plane: events have numbers, so it is
//! known what was missed, and said. Figures of traffic are `outrigger stat`.

use std::{
    io::{IsTerminal as _, Write, stderr, stdout},
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    api::{ControlPlane, Event, Events, Severity},
    figures::{NOTHING, clean, clock, now_ms, shorten, wrap},
    output::{Output, Present, json, json_line, or_dash, roughly, say},
    stat::table::room,
    when,
};

/// How long the control plane may hold a question that has no answer yet.
const WAIT: Duration = Duration::from_secs(25);
/// Answers with all that there are: a control plane holds 10 of them.
const ANSWERS: usize = 100;
/// Between two tries while it is away.
const PAUSE: Duration = Duration::from_secs(1);

/// All that there are. A kind that is not among them would never come, and `--watch` would not say so.
const KINDS: [&str; 17] = [
    "circuit-opened",
    "circuit-half-open",
    "circuit-closed",
    "certificate-near-end",
    "configuration-taken",
    "configuration-refused",
    "update-refused",
    "capture-broken",
    "capture-restored",
    "draining",
    "proxy-joined",
    "proxy-left",
    "root-changed",
    "authority-refused",
    "history-not-kept",
    "history-kept",
    "history-cut",
];

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// Go on with each new event
    #[arg(long)]
    watch: bool,
    /// Only these kinds (may be repeated)
    #[arg(long, value_name = "KIND", value_parser = KINDS)]
    kind: Vec<String>,
    /// Begin this long ago
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = when::duration)]
    since: Duration,
    /// Only events that are at least this bad
    #[arg(long, value_enum, default_value = "info")]
    severity: Severity,
    /// All that is known of each
    #[arg(long)]
    details: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    control_plane: ControlPlane,
}

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let room = stdout().is_terminal().then_some(room as fn() -> usize);
    let since_ms = now_ms() - i64::try_from(args.since.as_millis()).unwrap_or(i64::MAX);
    let mut stream = Stream { args, room, since_ms, after: 0, last_ms: i64::MIN, headed: false };
    if stream.args.watch {
        stream.watch(&mut stdout(), &mut stderr(), (WAIT, PAUSE), || true)?;
    } else {
        stream.list(&mut stdout(), &mut stderr())?;
    }
    Ok(ExitCode::SUCCESS)
}

struct Stream {
    args: Args,
    /// Columns of the terminal, if it is one; asked each time.
    room: Option<fn() -> usize>,
    since_ms: i64,
    /// The number of the last event that was heard of.
    after: u64,
    /// When the newest of them was.
    last_ms: i64,
    headed: bool,
}

impl Stream {
    /// What there is.
    fn list(&mut self, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
        let mut found = Vec::new();
        let mut missed = 0;
        for _ in 0..ANSWERS {
            let Events { events, next, missed: gone } =
                self.args.control_plane.events(self.after, Duration::ZERO)?.read;
            missed = gone.saturating_add(missed);
            let last = events.is_empty() || next <= self.after;
            found.extend(events.into_iter().filter(|event| self.wants(event)));
            self.after = next;
            if last {
                break;
            }
        }
        match self.args.output {
            Output::Json => {
                let events: Vec<Value> = found.into_iter().map(|event| event.json).collect();
                let all = serde_json::json!({"events": events, "next": self.after, "missed": missed});
                say(out, &json(&all))
            }
            Output::Table if found.is_empty() => say(
                notes,
                &format!("no such event within {} (--since goes further)", roughly(self.args.since)),
            ),
            Output::Table => found.iter().try_for_each(|event| self.tell(event, out)),
        }
    }

    /// As long as `go_on` says, asked after each answer.
    fn watch(
        &mut self,
        out: &mut dyn Write,
        notes: &mut dyn Write,
        (wait, pause): (Duration, Duration),
        mut go_on: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let mut present = Present::default();
        // The first answer comes at once: what is there is shown before anything is waited for.
        let mut wait_now = Duration::ZERO;
        let mut begun = false;
        loop {
            let asked = Instant::now();
            match self.args.control_plane.events(self.after, wait_now) {
                Ok(answer) => {
                    // One that has too many who wait answers at once, and who says nothing new is not to be asked at once.
                    let idle = begun && answer.read.next <= self.after;
                    if let Some(back) = present.is_back(now_ms()) {
                        say(notes, &back)?;
                    }
                    self.take(answer.read, begun, out, notes)?;
                    begun = true;
                    wait_now = wait;
                    if idle {
                        sleep(pause.saturating_sub(asked.elapsed()));
                    }
                }
                Err(error) if !begun => return Err(error),
                Err(error) => {
                    if let Some(gone) = present.is_gone(now_ms(), self.args.control_plane.reason(&error)) {
                        say(notes, &gone)?;
                    }
                    // The next answer is the sign that it is back.
                    wait_now = Duration::ZERO;
                    sleep(pause);
                }
            }
            if !go_on() {
                return Ok(());
            }
        }
    }

    fn take(
        &mut self,
        answer: Events,
        begun: bool,
        out: &mut dyn Write,
        notes: &mut dyn Write,
    ) -> anyhow::Result<()> {
        let Events { events, next, missed } = answer;
        if next < self.after {
            // Another control plane, or one that lost its state. What is newer than the last event is new.
            say(
                notes,
                &format!(
                    "event numbers have begun again: the control plane is at {next}, not {}",
                    self.after
                ),
            )?;
            self.since_ms = self.since_ms.max(self.last_ms.saturating_add(1));
            self.after = 0;
            return Ok(());
        }
        if begun && missed > 0 {
            let (first, last) = (self.after.saturating_add(1), self.after.saturating_add(missed));
            say(notes, &format!("events {first}..{last} missed"))?;
        }
        // One that was heard of is not new, whatever the control plane says.
        let heard_of = self.after;
        for event in events.iter().filter(|event| event.seq > heard_of) {
            self.last_ms = self.last_ms.max(event.at_ms);
            if self.wants(event) {
                match self.args.output {
                    Output::Json => say(out, &json_line(&event.json))?,
                    Output::Table => self.tell(event, out)?,
                }
            }
        }
        self.after = next;
        Ok(())
    }

    fn wants(&self, event: &Event) -> bool {
        let kinds = &self.args.kind;
        event.at_ms >= self.since_ms
            && event.severity >= self.args.severity
            && (kinds.is_empty() || kinds.contains(&event.kind))
    }

    fn tell(&mut self, event: &Event, out: &mut dyn Write) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        let room = self.room.map(|room| room());
        if !std::mem::replace(&mut self.headed, true) {
            let time = if room.is_some() { "TIME (UTC)" } else { "TIME" };
            let header = self.columns(time, "SEVERITY", "KIND") + "SUBJECT  MESSAGE";
            lines.push(shorten(&header, room.unwrap_or(usize::MAX)));
        }
        let today = room.map(|_| now_ms());
        let severity = match event.severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let subject = if event.subject.is_empty() { NOTHING } else { &event.subject };
        let columns = self.columns(&clock(event.at_ms, today), severity, &event.kind);
        let line = format!("{columns}{subject}  {}", event.message);
        match room {
            Some(room) => lines.extend(wrap(&line, room, 4)),
            None => lines.push(line),
        }
        if self.args.details {
            for (name, value) in &event.details {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let line = format!("    {}: {}", clean(name), or_dash(clean(&value)));
                match room {
                    Some(room) => lines.extend(wrap(&line, room, 6)),
                    None => lines.push(line),
                }
            }
        }
        say(out, &lines.join("\n"))
    }

    /// The times of a terminal are short, those of a file whole.
    fn columns(&self, time: &str, severity: &str, kind: &str) -> String {
        let room = if self.room.is_some() { 11 } else { 20 };
        format!("{time:<room$}  {severity:<8}  {kind:<21}  ")
    }
}

#[cfg(test)]
mod tests;
