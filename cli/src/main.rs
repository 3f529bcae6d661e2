//! `outrigger`: look at a mesh and its traffic, make tokens, read certificates, run the demo.
//!
//! One file per subcommand; each has `Args` (what the user may say) and `run` (what happens), and answers
//! with an [`ExitCode`]: 0 when all is well, 1 when what was asked about is not, 2 when the question itself
//! failed.

use std::{
    io::{Write as _, stderr},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

mod api;
mod certs;
mod columns;
mod demo;
mod events;
mod figures;
mod http;
mod output;
mod stat;
mod status;
mod token;
mod top;
mod when;

#[derive(Parser)]
#[command(name = "outrigger", version, about = "A light service mesh: look at it, join it, try it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What the control plane runs: configuration errors first, then proxies and services
    Status(status::Args),
    /// Rate, success and percentiles of services, routes or edges
    Stat(stat::Args),
    /// The same, full screen and live: what hurts comes first
    Top(top::Args),
    /// Who talks to whom, with which identities and ciphers
    Edges(stat::EdgesArgs),
    /// What has happened: circuits, certificates, configuration, proxies
    Events(events::Args),
    /// Make and read the tokens that workloads join with
    #[command(subcommand)]
    Token(token::Command),
    /// Read certificates
    #[command(subcommand)]
    Certs(certs::Command),
    /// A small shop in a mesh of its own, and what the mesh does for it; needs no privileges
    Demo(demo::Args),
    /// One program of the demo's shop
    #[command(hide = true)]
    DemoApp(demo::app::Args),
    /// The demo's entrance from the host's network
    #[command(hide = true)]
    DemoGate(demo::gate::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Status(args) => status::run(&args),
        Command::Stat(args) => stat::run(args),
        Command::Top(args) => top::run(args),
        Command::Edges(args) => stat::edges(args),
        Command::Events(args) => events::run(args),
        Command::Token(command) => token::run(command),
        Command::Certs(command) => certs::run(command),
        Command::Demo(args) => demo::run(&args),
        Command::DemoGate(args) => demo::gate::run(&args).map(|()| ExitCode::SUCCESS),
        Command::DemoApp(args) => demo::app::run(args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        if error.is::<output::ReaderGone>() {
            return ExitCode::SUCCESS;
        }
        // Where even that reader is gone, the code says it.
        let _ = writeln!(stderr(), "outrigger: {error:#}");
        ExitCode::from(2)
    })
}
