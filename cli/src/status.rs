//! `outrigger status`.

use std::process::ExitCode;

use crate::output::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the control plane answers /status
    #[arg(
        long,
        env = "OUTRIGGER_CONTROL_PLANE_STATUS",
        default_value = "http://127.0.0.1:15014",
        value_name = "URL"
    )]
    control_plane_status: String,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) fn run(_args: &Args) -> anyhow::Result<ExitCode> {
    Ok(ExitCode::SUCCESS)
}
