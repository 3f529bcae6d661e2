//! `outrigger-control-plane`: read the command line, then hand over to [`App`].

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use outrigger_control_plane::{
    app::App,
    args::{Args, Settings},
    kinds,
};
use tracing_subscriber::{layer::SubscriberExt as _, util::SubscriberInitExt as _};

fn main() -> ExitCode {
    let args = Args::parse();
    if args.wants_schema() {
        println!("{:#}", kinds::schema());
        return ExitCode::SUCCESS;
    }
    let settings = match args.settings() {
        Ok(settings) => settings,
        Err(wrong) => {
            for line in wrong {
                eprintln!("outrigger-control-plane: {line}");
            }
            return ExitCode::from(2);
        }
    };
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("outrigger-control-plane: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut settings: Settings) -> anyhow::Result<()> {
    let filter = std::mem::take(&mut settings.log);
    let ansi = std::io::stderr().is_terminal();
    let format = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    tracing_subscriber::registry().with(filter).with(format).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async { App::build(settings).await?.run().await })
}
