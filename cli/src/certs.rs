//! `outrigger certs`.

use std::{path::PathBuf, process::ExitCode};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Show the certificates in a PEM file, or those that a proxy uses
    Show(Show),
}

#[derive(clap::Args)]
pub(crate) struct Show {
    /// PEM file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn run(_command: Command) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
