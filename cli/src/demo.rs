//! `outrigger demo`: a small shop in the mesh, and what the mesh does for it, shown live.
//!
//! `web` calls `orders` (two versions), `orders` calls `payments`. Each is a plain program ([`app`]) that knows nothing
//! of the mesh, in a pod of its own with its own sidecar and real redirect rules ([`stage`]). Visitors keep coming
//! ([`load`]) while the acts of the [`play`] go on.
//!
//! It needs no privileges, and everything it starts ends with it.

pub(crate) mod app;
mod client;
pub(crate) mod gate;
pub(crate) mod interrupt;
mod load;
mod play;
mod screen;
mod split;
mod stage;
mod stranger;
mod traces;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use outrigger_lab::{Entered, enter};

use self::{
    interrupt::{Interrupt, Interrupted},
    play::Play,
    screen::Screen,
    stage::{Stage, loopback::Loopback, pods::Pods},
    traces::Wish,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// End after the last act, also on a terminal
    #[arg(long)]
    once: bool,
    /// Use listeners on loopback, as where network namespaces are forbidden
    #[arg(long)]
    loopback: bool,
    /// Start this Jaeger with the shop and show the trace of a purchase; without it, a backend that
    /// OTEL_EXPORTER_OTLP_ENDPOINT names is used
    #[arg(long, value_name = "PATH")]
    jaeger: Option<PathBuf>,
    /// Jaeger's query API, if it is not at port 16686 beside OTEL_EXPORTER_OTLP_ENDPOINT
    #[arg(long, value_name = "URL", env = "OUTRIGGER_TRACES_QUERY")]
    traces_query: Option<String>,
}

/// What a shell reports for a program that was ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// 0 only if everything held. Call it while the process has one thread.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut screen = Screen::new();
    let stays = screen.is_terminal() && !args.once;
    let wish = Wish::new(args.jaeger.clone(), args.traces_query.clone())?;
    let needs_gate = stays || !matches!(wish, Wish::None);
    if needs_gate && !args.loopback && enter::is_outside() && enter::probe().is_ok() {
        let exits = match &wish {
            Wish::Use(outside) => {
                vec![(gate::OTLP_EXIT, &*outside.otlp), (gate::QUERY_EXIT, &*outside.query)]
            }
            Wish::None | Wish::Start(_) => Vec::new(),
        };
        // Without it there are no addresses on the host; the other ways in remain.
        drop(gate::start(&exits));
    }
    let (inside, refusal) = if args.loopback {
        (None, None)
    } else {
        match enter::reexec_or_enter() {
            Ok(Entered::Inside(inside)) => (Some(inside), None),
            Ok(Entered::Finished(code)) => return Ok(code),
            Err(refusal) => (None, Some(refusal)),
        }
    };
    let interrupt = Interrupt::install()?;
    if let Some(refusal) = refusal {
        screen.say(format_args!("No pods here: {refusal}."));
        screen.say("Going on with --forward and --serve listeners on loopback instead.");
    }
    let done = match inside {
        Some(inside) => Pods::build(&inside, &wish, &interrupt)
            .and_then(|mut stage| show(stays, &mut stage, &mut screen, &interrupt)),
        None => Loopback::build(&wish, &interrupt)
            .and_then(|mut stage| show(stays, &mut stage, &mut screen, &interrupt)),
    };
    match done {
        Err(error) if error.is::<Interrupted>() => {
            screen.say("interrupted; everything is taken down");
            Ok(ExitCode::from(INTERRUPTED))
        }
        other => other,
    }
}

fn show(stays: bool, stage: &mut dyn Stage, screen: &mut Screen, interrupt: &Interrupt) -> Result<ExitCode> {
    screen.step(format_args!("ready: {}", stage.describe()));
    match perform(stays, stage, screen, interrupt) {
        Ok(true) => {
            screen.say(format_args!("Everything held, in {:.0} s.", screen.elapsed().as_secs_f64()));
            Ok(ExitCode::SUCCESS)
        }
        Ok(false) => {
            screen.say("Not everything held.");
            stage.keep_directory();
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            if !error.is::<Interrupted>() {
                stage.keep_directory();
            }
            Err(error)
        }
    }
}

/// Whether everything held. On a terminal a good end is not the end: the shop stays open until the user closes it.
fn perform(stays: bool, stage: &mut dyn Stage, screen: &mut Screen, interrupt: &Interrupt) -> Result<bool> {
    let mut play = Play::open(stage, screen, interrupt)?;
    let held = play.perform()?;
    if held && stays {
        play.stay();
    }
    Ok(held)
}
