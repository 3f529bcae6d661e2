//! The command line: subcommands, `--help`, and what to do about flags that do not exist.
//!
//! clap stops at its first complaint. Here every unknown flag is noted with the nearest known one and parsing goes on, so
//! that the mistakes of a command line are reported together with those of its values and variables.

use std::{collections::BTreeSet, ffi::OsString, fmt::Write as _};

use clap::{
    Args as _, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{
    Config, RunArgs, otel,
    settings::{PREFIX, Problem, Problems, Variables, variable_of},
    variables::without_service_links,
};
use crate::init::options::{InitArgs, InitOptions};

/// The sidecar of the Outrigger service mesh.
#[derive(Parser, Debug)]
#[command(name = "outrigger-proxy", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand, Debug)]
enum Sub {
    Run(Box<RunArgs>),
    Init(Box<InitArgs>),
}

/// What the user wants, fully read.
#[derive(Debug)]
pub enum Wanted {
    Run(Box<Config>),
    Init(Box<InitOptions>),
}

/// Text to print instead of doing anything.
#[derive(Debug)]
pub enum Instead {
    /// `--help` or `--version`: standard output, exit code 0.
    Said(String),
    /// Standard error, exit code 2.
    Wrong(String),
}

/// Reads a command line. `variables` are those of the process that begin with `OUTRIGGER_` or `OTEL_`.
pub fn read(arguments: Vec<OsString>, variables: Variables, cpus: usize) -> Result<Wanted, Instead> {
    let variables = without_service_links(variables);
    let (cli, mut problems) = parse(arguments)?;
    let known = known_variables();
    let (name, read) = match cli.command {
        Sub::Run(args) => {
            ("run", Config::read(*args, &variables, &known, cpus).map(|config| Wanted::Run(config.into())))
        }
        Sub::Init(args) => {
            ("init", InitOptions::read(*args, &variables, &known).map(|options| Wanted::Init(options.into())))
        }
    };
    match read {
        Ok(wanted) if problems.is_empty() => return Ok(wanted),
        Ok(_) => {}
        Err(more) => problems.extend(more.0),
    }
    Err(Instead::Wrong(report(name, Problems(problems))))
}

fn report(name: &str, problems: Problems) -> String {
    let count = match problems.0.len() {
        1 => "1 setting is wrong".to_owned(),
        many => format!("{many} settings are wrong"),
    };
    format!(
        "outrigger-proxy {name}: {count}:\n{problems}\n`outrigger-proxy {name} --help` lists all settings.\n"
    )
}

/// Parses, noting unknown flags instead of stopping at them.
fn parse(mut arguments: Vec<OsString>) -> Result<(Cli, Vec<Problem>), Instead> {
    let mut problems = Vec::new();
    loop {
        let error = match command().try_get_matches_from(&arguments).and_then(|m| Cli::from_arg_matches(&m)) {
            Ok(cli) => return Ok((cli, problems)),
            Err(error) => error,
        };
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return Err(Instead::Said(error.render().to_string()));
        }
        if error.kind() == ErrorKind::UnknownArgument
            && let Some(problem) = unknown(&error, &mut arguments)
        {
            problems.push(problem);
        } else {
            return Err(wrong(&error, problems));
        }
    }
}

/// Takes an unknown flag (and what looks like its value) out of the arguments.
fn unknown(error: &clap::Error, arguments: &mut Vec<OsString>) -> Option<Problem> {
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else { return None };
    let is_it = |argument: &OsString| {
        let text = argument.to_string_lossy();
        text == flag.as_str() || text.split_once('=').is_some_and(|(name, _)| name == flag)
    };
    let at = arguments.iter().skip(1).position(is_it)? + 1;
    let removed = arguments.remove(at);
    let has_own_value = removed.to_string_lossy().contains('=');
    let looks_like_value = |next: &OsString| !next.to_string_lossy().starts_with('-');
    if flag.starts_with("--") && !has_own_value && arguments.get(at).is_some_and(looks_like_value) {
        arguments.remove(at);
    }
    let mut text = format!("{flag}: there is no such flag");
    if let Some(ContextValue::String(near)) = error.get(ContextKind::SuggestedArg) {
        // Writing to a String cannot fail.
        let _ = write!(text, "; did you mean {near}?");
    }
    Some(Problem(text))
}

fn wrong(error: &clap::Error, problems: Vec<Problem>) -> Instead {
    let mut text = error.render().to_string();
    if !problems.is_empty() {
        let _ = write!(text, "\nAlso wrong:\n{}\n", Problems(problems));
    }
    Instead::Wrong(text)
}

/// The command with the variable of each flag added to its help, and lines of a length that can be read.
fn command() -> Command {
    let name_variable = |sub: Command| {
        sub.mut_args(|arg| {
            let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else {
                return arg;
            };
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let variable = variable_of(long);
            // A space that does not break, until the lines are made.
            let text = wrapped(&format!("{help} [env:\u{a0}{variable}]"), 90);
            arg.help(text.replace('\u{a0}', " "))
        })
    };
    let name_variable = |sub: Command| {
        let about = sub.get_long_about().map(ToString::to_string).unwrap_or_default();
        name_variable(sub).long_about(wrapped(&about, 100))
    };
    let mut command = Cli::command();
    for name in ["run", "init"] {
        command = command.mut_subcommand(name, name_variable);
    }
    command
}

/// Breaks the paragraphs of a text into lines. clap could, with a feature that asks the terminal for its width.
fn wrapped(text: &str, width: usize) -> String {
    let paragraph = |text: &str| {
        let mut lines = String::new();
        let mut column = 0;
        for word in text.split(' ') {
            let length = word.chars().count();
            if column > 0 {
                let fits = column + 1 + length <= width;
                lines.push(if fits { ' ' } else { '\n' });
                column = if fits { column + 1 } else { 0 };
            }
            lines.push_str(word);
            column += length;
        }
        lines
    };
    text.split('\n').map(paragraph).collect::<Vec<_>>().join("\n")
}

/// The variables of all subcommands.
fn known_variables() -> Vec<String> {
    let of = |command: Command| -> Vec<String> {
        command.get_arguments().filter_map(|arg| arg.get_long()).map(variable_of).collect()
    };
    let names: BTreeSet<String> =
        [RunArgs::augment_args(Command::new("run")), InitArgs::augment_args(Command::new("init"))]
            .into_iter()
            .flat_map(of)
            .collect();
    names.into_iter().collect()
}

/// The variables of this process that concern us. What is not text is made text; it is then a wrong value, and said so.
pub fn variables_of_process() -> Variables {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .filter(|(name, _)| name.starts_with(PREFIX) || name.starts_with(otel::PREFIX))
        .collect()
}
