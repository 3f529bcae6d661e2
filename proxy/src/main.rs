//! The binary: reads the command line, then runs the sidecar or installs redirect rules.

use std::{process::ExitCode, thread};

use outrigger_proxy::{
    app,
    config::cli::{self, Instead, Wanted},
    init,
};

fn main() -> ExitCode {
    // Honours CPU quotas of cgroups.
    let cpus = thread::available_parallelism().map_or(1, Into::into);
    match cli::read(std::env::args_os().collect(), cli::variables_of_process(), cpus) {
        Ok(Wanted::Run(config)) => app::run(*config),
        Ok(Wanted::Init(options)) => init::main(&options),
        Err(Instead::Said(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(Instead::Wrong(text)) => {
            eprint!("{text}");
            ExitCode::from(2)
        }
    }
}
