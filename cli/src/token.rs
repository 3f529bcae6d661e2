//! `outrigger token`.

use std::{path::PathBuf, process::ExitCode};

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make a join token, signed by the authority in the control plane's state directory
    Create(Create),
}

#[derive(clap::Args)]
pub(crate) struct Create {
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    state_dir: PathBuf,
}

pub(crate) fn run(_command: Command) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
