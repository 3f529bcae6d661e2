//! `outrigger top`: the figures of `outrigger stat`, full screen and live, what hurts first.
//!
//! Three parts: [`state`] is what is known and what keys do to it, [`view`] draws a state and knows nothing else, and
//! here are the terminal, the clock and the thread that asks the control plane. However it ends, the terminal is as it
//! was.

mod state;
mod view;

use std::{
    io::{IsTerminal as _, stdout},
    process::ExitCode,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel, sync_channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use crossterm::event::{self, Event, KeyEventKind};
use ratatui::DefaultTerminal;

use self::state::{Action, State};
use crate::{
    api::{By, ControlPlane, Query, Span, Stat},
    demo::interrupt::Interrupt,
    figures::now_ms,
    output::{Output, is_dumb},
    stat::{self, order::Sort},
    when,
};

/// Between two questions.
const PACE: Duration = Duration::from_secs(1);
/// How long a key, a signal or an answer may wait to be seen.
const TICK: Duration = Duration::from_millis(100);
/// How long giving back the terminal may take.
const GRACE: Duration = Duration::from_secs(1);
/// What a shell reports for a program that was ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

#[derive(Clone, clap::Args)]
pub(crate) struct Args {
    /// What the rows are at first
    #[arg(value_enum, default_value = "services")]
    by: By,
    /// Only services of this namespace
    #[arg(long, value_name = "NAME")]
    namespace: Option<String>,
    /// The time up to now that the figures are of
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = when::window)]
    window: Duration,
    /// Which rows stand first
    #[arg(long, value_enum, default_value = "hurt")]
    sort: Sort,
    /// json: a line of figures each second, for programs
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    control_plane: ControlPlane,
}

/// An answer, and what it is about.
type Told = (By, Result<Stat, String>);

pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { by, namespace, window, sort, output, control_plane } = args;
    let query = Query { by, side: None, namespace, service: None, span: Span::Window(window) };
    if output == Output::Json {
        return stat::follow(&stat::Ask { control_plane, query, name: None, sort, output, security: false });
    }
    if !stdout().is_terminal() || is_dumb() {
        bail!("top draws on a terminal, and here is none: see `outrigger stat --watch` (or `top -o json`)");
    }
    // Who asks at the wrong address wants to read so in the place where it was typed.
    let first = control_plane.stat(&query)?.read;
    // Before there is a second thread.
    let interrupt = Interrupt::install()?;
    let mut state = State::new(&control_plane.base, by, sort, window, has_colour());
    state.take((by, Ok(first)), now_ms());
    let (ask, asked) = channel();
    // One answer at most waits to be seen.
    let (tell, told) = sync_channel(1);
    let start = query.clone();
    thread::Builder::new()
        .name("ask".to_owned())
        .spawn(move || fetch(&control_plane, start, &asked, &tell))?;
    let mut screen = Screen::open().context("cannot take over the terminal")?;
    end_anyway(interrupt.clone())?;
    let done = show(&mut screen.0, &mut state, &query, &interrupt, &ask, &told);
    drop(screen);
    done
}

/// Ends the process if it was told to end and does not. The library that reads the keyboard never returns from a read once
/// the terminal is gone (crossterm 0.29, `source/unix/mio.rs`: an end or an error other than "not now" is read again).
#[expect(
    clippy::disallowed_methods,
    reason = "main cannot return, and there is no terminal left to give back"
)]
fn end_anyway(interrupt: Interrupt) -> std::io::Result<()> {
    let watch = move || {
        while !interrupt.is_raised() {
            thread::sleep(TICK);
        }
        thread::sleep(GRACE);
        std::process::exit(INTERRUPTED.into());
    };
    thread::Builder::new().name("end".to_owned()).spawn(watch).map(drop)
}

/// <https://no-color.org>
fn has_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn show(
    terminal: &mut DefaultTerminal,
    state: &mut State,
    query: &Query,
    interrupt: &Interrupt,
    ask: &Sender<Query>,
    told: &Receiver<Told>,
) -> anyhow::Result<ExitCode> {
    loop {
        match told.try_recv() {
            Ok(told) => state.take(told, now_ms()),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => bail!("the thread that asks the control plane has ended"),
        }
        state.now_ms = now_ms();
        terminal.draw(|frame| view::draw(state, frame.area(), frame.buffer_mut()))?;
        if interrupt.is_raised() {
            return Ok(ExitCode::from(INTERRUPTED));
        }
        if !event::poll(TICK).context("cannot read the keyboard")? {
            continue;
        }
        // Anything else than a key, such as another size, is seen by drawing again.
        let Event::Key(key) = event::read().context("cannot read the keyboard")? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match state.press(key) {
            Action::None => {}
            Action::Quit => return Ok(ExitCode::SUCCESS),
            Action::Ask(by) => {
                // If nobody hears it, the next turn says so.
                let _ = ask.send(Query { by, ..query.clone() });
            }
        }
    }
}

/// Asks each second, and at once if there is something else to ask. Ends when nobody listens.
fn fetch(control_plane: &ControlPlane, mut query: Query, asked: &Receiver<Query>, tell: &SyncSender<Told>) {
    loop {
        let next = Instant::now() + PACE;
        let answer = control_plane.stat(&query);
        let told = answer.map(|answer| answer.read).map_err(|error| control_plane.reason(&error));
        if tell.send((query.by, told)).is_err() {
            return;
        }
        match asked.recv_timeout(next.saturating_duration_since(Instant::now())) {
            // Of several keys the last counts.
            Ok(other) => query = asked.try_iter().last().unwrap_or(other),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// The terminal, taken over; given back when dropped, and by ratatui's hook before a panic is told.
struct Screen(DefaultTerminal);

impl Screen {
    fn open() -> std::io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Self(terminal)),
            Err(error) => {
                // It may have come half way.
                let _ = ratatui::try_restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.0.show_cursor();
        let _ = ratatui::try_restore();
    }
}

#[cfg(test)]
mod tests;
