//! `outrigger-proxy init`: the redirect rules that bring a network namespace's TCP connections to the proxy.
//!
//! - [`options`]: flags and variables, typed.
//! - [`rules`]: the rules as text, for nft and for iptables; pure.
//! - [`apply`]: puts them in force, removes them, and turns failures into advice.
//! - [`check`]: proves by real connections that they do what they should.
//!
//! What the rules leave alone, and what they cannot do (UDP, a program with CAP_NET_ADMIN), is in
//! `docs/interception.md`. Nothing here runs in the sidecar itself.

use std::process::ExitCode;

pub mod apply;
pub mod check;
mod netlink;
pub mod options;
pub mod rules;

use options::{Action, InitOptions};

/// Does what the options say and reports to the user.
pub fn main(options: &InitOptions) -> ExitCode {
    let done = match options.action {
        Action::Install => install(options),
        Action::Remove => apply::remove(options),
        Action::Check => check::everything(options),
        Action::Print => apply::print(options),
    };
    match done {
        Ok(report) => {
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("outrigger-proxy init: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Rules that were installed but do not work are worse than none: installing ends with a check of what can be checked
/// from here without changing anything.
fn install(options: &InitOptions) -> Result<String, String> {
    let mut report = apply::install(options)?;
    report.push_str(&check::outbound(options)?);
    Ok(report)
}
