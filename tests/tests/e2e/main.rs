//! End-to-end tests: the shipped binaries in network namespaces, with real redirect rules and real peers.
//!
//! Each test has a lab, and most a mesh, of its own, so that they run side by side; those in `protocols` and `addresses`
//! share one shop, because they only look, and most of `resilience` one farm, where each has services of its own. A test
//! that cannot run here says why and counts as ignored. The long forms (outages of a minute instead of ten seconds) run
//! with `OUTRIGGER_LONG=1`.
//!
//! The process starts itself again inside namespaces (see `outrigger_lab::enter`), therefore `harness = false`.

use std::process::ExitCode;

use libtest_mimic::Arguments;
use outrigger_lab::{Entered, enter};

mod addresses;
mod control_plane;
mod credentials;
mod drain;
mod fleet;
mod limits;
mod policy;
mod protocols;
mod resilience;
mod rotation;
mod server_limits;
mod shared_limits;
mod support;
mod telemetry;
mod wire;

use support::Test;

/// More than cores: most tests wait for programs to start most of the time.
const THREADS: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(THREADS);
    let refusal = match enter::reexec_or_enter() {
        Ok(Entered::Finished(code)) => return code,
        Ok(Entered::Inside(_)) => None,
        Err(refusal) => Some(refusal.to_string()),
    };
    let tests = [
        // The longest first: the others fill the gaps.
        telemetry::tests(),
        shared_limits::tests(),
        rotation::tests(),
        control_plane::tests(),
        drain::tests(),
        policy::tests(),
        credentials::tests(),
        resilience::tests(),
        fleet::tests(),
        server_limits::tests(),
        limits::tests(),
        wire::tests(),
        addresses::tests(),
        protocols::tests(),
    ];
    let (quiet, together): (Vec<_>, Vec<_>) = tests.into_iter().flatten().partition(Test::is_quiet);
    let run = |arguments: &Arguments, tests: Vec<Test>| {
        let trials = tests.into_iter().map(|test| test.into_trial(refusal.clone())).collect();
        libtest_mimic::run(arguments, trials)
    };
    let first = run(&arguments, together);
    arguments.test_threads = Some(1);
    let then = run(&arguments, quiet);
    support::shop::close();
    support::farm::close();
    if first.has_failed() { first.exit_code() } else { then.exit_code() }
}
