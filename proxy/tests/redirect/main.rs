//! `outrigger-proxy init` for real: rules in network namespaces of our own, and real connections through them.
//!
//! The program enters a user namespace before it has a second thread; each test then takes a network namespace for its
//! thread and the processes it starts. No root is needed. Where the kernel forbids this, or a tool is missing, the tests
//! are reported ignored and say why.

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

mod cases;
mod space;

use cases::Backend;
use space::Space;

type Case = fn(&mut Space) -> Result<(), Failed>;
/// A case that is tried with nft and with iptables.
type CaseWith = fn(&mut Space, Backend) -> Result<(), Failed>;
type AnyCase = Box<dyn Fn(&mut Space) -> Result<(), Failed> + Send>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let refusal = space::enter().err().map(|error| format!("no user namespace: {error}"));
    let mut trials = Vec::new();
    let mut add = |name: String, tools: &[&str], case: AnyCase| {
        let missing =
            tools.iter().find(|tool| !space::has(tool)).map(|tool| format!("{tool} is not installed"));
        let why = refusal.clone().or(missing);
        let kind = why.clone().unwrap_or_default();
        let trial = Trial::test(name, move || case(&mut Space::new()?));
        trials.push(trial.with_kind(kind).with_ignored_flag(why.is_some()));
    };
    for backend in [Backend::Nft, Backend::Iptables] {
        let each: [(&str, CaseWith); 7] = [
            ("connections_are_captured_both_ways_in_both_families", cases::captured),
            ("installing_twice_is_installing_once", cases::idempotent),
            ("removal_leaves_nothing_of_ours_and_all_of_others", cases::removed),
            ("what_is_exempt_is_left_alone", cases::exempt),
            ("connections_from_before_go_on", cases::established),
            ("a_dry_run_changes_nothing", cases::dry_run),
            ("the_check_fails_without_rules", cases::check_can_fail),
        ];
        for (name, case) in each {
            let name = format!("{backend:?}_{name}").to_lowercase();
            add(name, backend.tools(), Box::new(move |space| case(space, backend)));
        }
    }
    let both: [(&str, Case); 5] = [
        ("one_tool_replaces_the_rules_of_the_other", cases::replaced),
        ("without_the_capability_it_says_what_is_needed", cases::no_capability),
        ("ipv6_can_be_left_out", cases::without_ipv6),
        ("a_running_proxy_is_used_by_the_check", cases::running_proxy),
        ("a_running_proxy_notices_that_the_rules_are_lost", cases::capture_is_watched),
    ];
    for (name, case) in both {
        add(name.to_owned(), &["ip", "nft", "iptables-restore", "ip6tables-restore"], Box::new(case));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}
