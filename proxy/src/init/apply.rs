//! Puts the rules in force and takes them away, through nft or through iptables-restore; failures become advice.
//!
//! Every change is one transaction of the tool's own, so a failure (or a kill) half-way leaves what was there before.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use super::{
    options::{InitOptions, Ipv6, Wish},
    rules::{self, Family, TABLE},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Nft,
    Iptables,
}

/// Whoever installs rules on a machine is often there through this port.
const SSH: u16 = 22;

/// A tool that did not do what it was told.
#[derive(Debug)]
struct ToolError {
    program: &'static str,
    failure: Failure,
}

#[derive(Debug)]
enum Failure {
    Missing,
    Io(io::Error),
    /// It ran and said this.
    Refused(String),
}

/// Installs the rules; the report says what was done.
pub fn install(options: &InitOptions) -> Result<String, String> {
    may_change_rules()?;
    let families = families(options);
    let backend = match backend(options.backend) {
        Ok(backend) => backend,
        Err(error) => return Err(error.advice()),
    };
    if backend == Backend::Iptables && options.proxy_mark.is_none() && !uids_are_mapped(options) {
        return Err(format!(
            "this user namespace has no uid {}, so iptables cannot tell the proxy by it: give the proxy a mark \
             (--proxy-mark here, --mark there) or use --backend nft",
            options.proxy_uid
        ));
    }
    let mut report = match install_with(backend, options, &families) {
        Ok(report) => report,
        // nft is there, but this kernel does not do what it asks for: the older way may still work.
        Err(error) if backend == Backend::Nft && options.backend == Wish::Auto => {
            let with_iptables = install_with(Backend::Iptables, options, &families);
            with_iptables
                .map_err(|second| format!("{}\nand with iptables: {}", error.advice(), second.advice()))?
        }
        Err(error) => return Err(error.advice()),
    };
    if options.proxy_mark.is_some_and(|mark| mark.get() != crate::config::read::DEFAULT_MARK.get()) {
        report.push_str("Note: run the proxy with the same --mark.\n");
    }
    if !options.skip_inbound_ports.iter().any(|ports| ports.contains(&SSH)) && is_listening(SSH) {
        report.push_str(
            "Note: port 22 is captured, so new SSH sessions from outside the mesh will be refused; \
             --skip-inbound-ports 22 leaves it alone.\n",
        );
    }
    if families == [Family::V4] && options.ipv6 == Ipv6::Auto {
        report.push_str("IPv6 is off in this namespace: not captured.\n");
    }
    Ok(report)
}

fn install_with(backend: Backend, options: &InitOptions, families: &[Family]) -> Result<String, ToolError> {
    match backend {
        Backend::Nft => {
            run("nft", &["-f", "-"], &rules::nft(options, families))?;
            // Rules of an earlier installation with the other tool would capture first.
            remove_iptables_if_there();
        }
        Backend::Iptables => {
            for family in families {
                let saved = saved(*family)?;
                run(
                    restore(*family),
                    &RESTORE,
                    &rules::iptables(options, *family, &saved, uids_are_mapped(options)),
                )?;
            }
            remove_nft_if_there();
        }
    }
    let names: Vec<&str> = families.iter().map(|family| family.name()).collect();
    Ok(format!(
        "Installed with {}: {}, incoming to port {}, outgoing to port {}.\n",
        backend.name(),
        names.join(" and "),
        options.inbound_port,
        options.outbound_port
    ))
}

/// Removes the rules of either tool.
pub fn remove(options: &InitOptions) -> Result<String, String> {
    may_change_rules()?;
    let mut removed = Vec::new();
    if options.backend != Wish::Iptables {
        for family in nft_tables() {
            run("nft", &["-f", "-"], &rules::nft_removal(&[family])).map_err(|error| error.advice())?;
            removed.push(format!("nft table {} {TABLE}", family.nft()));
        }
    }
    if options.backend != Wish::Nft {
        for family in [Family::V4, Family::V6] {
            // No tool or no table `nat`: then there is nothing of ours in it.
            let Ok(saved) = saved(family) else { continue };
            if let Some(script) = rules::iptables_removal(&saved) {
                run(restore(family), &RESTORE, &script).map_err(|error| error.advice())?;
                removed.push(format!("iptables chains for {}", family.name()));
            }
        }
    }
    Ok(match removed.is_empty() {
        true => String::new(),
        false => format!("Removed: {}.\n", removed.join(", ")),
    })
}

/// What an installation would run, as text.
pub fn print(options: &InitOptions) -> Result<String, String> {
    let families = families(options);
    // Without either tool, the rules can still be shown.
    let backend = backend(options.backend).unwrap_or(Backend::Nft);
    Ok(match backend {
        Backend::Nft => format!("# nft -f -\n{}", rules::nft(options, &families)),
        Backend::Iptables => families.iter().fold(String::new(), |mut text, family| {
            let saved = saved(*family).unwrap_or_default();
            let script = rules::iptables(options, *family, &saved, uids_are_mapped(options));
            let _ = write!(text, "# {} {}\n{script}", restore(*family), RESTORE.join(" "));
            text
        }),
    })
}

/// Whether rules of ours are in this namespace, by either tool.
pub(super) fn installed() -> bool {
    let chains = |family| saved(family).is_ok_and(|saved| rules::iptables_removal(&saved).is_some());
    !nft_tables().is_empty() || chains(Family::V4) || chains(Family::V6)
}

pub(super) fn families(options: &InitOptions) -> Vec<Family> {
    let ipv6 = match options.ipv6 {
        Ipv6::On => true,
        Ipv6::Off => false,
        Ipv6::Auto => fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6")
            .is_ok_and(|disabled| disabled.trim() == "0"),
    };
    if ipv6 { vec![Family::V4, Family::V6] } else { vec![Family::V4] }
}

// ---- choosing -------------------------------------------------------------------------------------------------------

impl Backend {
    fn name(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Iptables => "iptables",
        }
    }
}

fn backend(wish: Wish) -> Result<Backend, ToolError> {
    let nft = || run("nft", &["list", "tables"], "").map(|_| Backend::Nft);
    let iptables = || run("iptables-restore", &["--version"], "").map(|_| Backend::Iptables);
    match wish {
        Wish::Nft => nft(),
        Wish::Iptables => iptables(),
        Wish::Auto => nft().or_else(|of_nft| iptables().map_err(|_| of_nft)),
    }
}

/// Without the capability every tool fails in its own words; this says it once and plainly.
fn may_change_rules() -> Result<(), String> {
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()) {
        Some(capabilities) if capabilities & (1 << CAP_NET_ADMIN) == 0 => Err(NO_CAPABILITY.to_owned()),
        _ => Ok(()),
    }
}

/// Whether a program of this namespace listens on `port`, according to the kernel's table of sockets.
fn is_listening(port: u16) -> bool {
    const LISTEN: &str = "0A";
    ["/proc/self/net/tcp", "/proc/self/net/tcp6"].into_iter().any(|table| {
        let table = fs::read_to_string(table).unwrap_or_default();
        table.lines().skip(1).any(|line| {
            // Number, local address and port in hexadecimal, remote ones, state.
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().and_then(|address| address.rsplit_once(':'));
            let is_port = local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port));
            is_port && fields.nth(1) == Some(LISTEN)
        })
    })
}

/// iptables refuses a rule with a uid that this user namespace does not know; then nobody can run under it either.
fn uids_are_mapped(options: &InitOptions) -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let known = |uid: u32| {
        map.lines().any(|line| {
            let mut numbers = line.split_ascii_whitespace().filter_map(|number| number.parse::<u64>().ok());
            match (numbers.next(), numbers.nth(1)) {
                (Some(first), Some(count)) => (first..first + count).contains(&u64::from(uid)),
                _ => false,
            }
        })
    };
    [options.proxy_uid].iter().chain(&options.skip_uids).all(|uid| known(*uid))
}

// ---- the tools ------------------------------------------------------------------------------------------------------

/// `-w`: wait for whoever else is changing the tables (only the legacy variant locks).
const RESTORE: [&str; 3] = ["--noflush", "-w", "10"];

fn restore(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables-restore",
        Family::V6 => "ip6tables-restore",
    }
}

fn saved(family: Family) -> Result<String, ToolError> {
    let program = match family {
        Family::V4 => "iptables-save",
        Family::V6 => "ip6tables-save",
    };
    run(program, &["-t", "nat"], "")
}

fn nft_tables() -> Vec<Family> {
    let listed = run("nft", &["list", "tables"], "").unwrap_or_default();
    let is_there =
        |family: &Family| listed.lines().any(|line| line.trim() == format!("table {} {TABLE}", family.nft()));
    [Family::V4, Family::V6].into_iter().filter(is_there).collect()
}

fn remove_nft_if_there() {
    let tables = nft_tables();
    if !tables.is_empty() {
        // What fails here shows in the check that follows.
        let _ = run("nft", &["-f", "-"], &rules::nft_removal(&tables));
    }
}

fn remove_iptables_if_there() {
    for family in [Family::V4, Family::V6] {
        let script = saved(family).ok().and_then(|saved| rules::iptables_removal(&saved));
        if let Some(script) = script {
            // What fails here shows in the check that follows.
            let _ = run(restore(family), &RESTORE, &script);
        }
    }
}

/// Runs a tool with `input` and returns what it printed.
fn run(program: &'static str, arguments: &[&str], input: &str) -> Result<String, ToolError> {
    let failed = |failure| ToolError { program, failure };
    let mut child = command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            let missing = error.kind() == io::ErrorKind::NotFound;
            failed(if missing { Failure::Missing } else { Failure::Io(error) })
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended before it had read everything: its message says why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                return Err(failed(Failure::Io(error)));
            }
            Ok(()) | Err(_) => {}
        }
    }
    let output = child.wait_with_output().map_err(|error| failed(Failure::Io(error)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(Failure::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())))
}

/// The tools live in directories that are often not in the path of an ordinary user.
fn command(program: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).any(|directory| directory.join(program).is_file());
    if !in_path {
        for directory in ["/usr/sbin", "/sbin"] {
            let candidate = Path::new(directory).join(program);
            if candidate.is_file() {
                return Command::new(candidate);
            }
        }
    }
    Command::new(program)
}

// === impl ToolError ===

const NO_CAPABILITY: &str = "changing redirect rules needs CAP_NET_ADMIN in this network namespace: run as root, \
    give the init container `capabilities: {add: [NET_ADMIN]}`, or use `docker run --cap-add NET_ADMIN`";

impl ToolError {
    /// The error and what to do about it.
    fn advice(&self) -> String {
        let program = self.program;
        match &self.failure {
            Failure::Missing => {
                let (package, other) = match program {
                    "nft" => ("nftables", "iptables"),
                    _ => ("iptables", "nft"),
                };
                format!("{program} is not installed: install the package {package}, or use --backend {other}")
            }
            Failure::Io(error) => format!("{program} cannot be run: {error}"),
            Failure::Refused(said) => format!("{program} failed: {said}\n  {}", advice_on(program, said)),
        }
    }
}

fn advice_on(program: &str, said: &str) -> &'static str {
    let has = |text: &str| said.contains(text);
    if has("Operation not permitted") || has("Permission denied") {
        return NO_CAPABILITY;
    }
    let unknown =
        has("No such file or directory") || has("not supported") || has("does not exist") || has("No chain");
    match program {
        "nft" if unknown => {
            "The kernel lacks a module for these rules: load nft_chain_nat, nft_redir and nft_fib_ipv4/ipv6 on the \
             host (modprobe), or use --backend iptables; without IPv6 NAT use --ipv6 off"
        }
        _ if unknown || has("can't initialize") || has("Could not fetch") => {
            "The kernel lacks a module for these rules: load iptable_nat and ip6table_nat (or the nf_tables ones) and \
             xt_REDIRECT, xt_owner, xt_mark, xt_addrtype on the host (modprobe), or use --backend nft; without IPv6 \
             NAT use --ipv6 off"
        }
        _ => "`outrigger-proxy init --dry-run` prints the rules that were refused",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = run("no-such-tool-of-outrigger", &[], "").unwrap_err();
        assert!(error.advice().contains("is not installed"), "{}", error.advice());
        let error = ToolError { program: "nft", failure: Failure::Missing };
        assert!(error.advice().contains("nftables") && error.advice().contains("--backend iptables"));
    }

    #[test]
    fn listeners_are_seen_and_other_sockets_are_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        assert!(is_listening(port));
        assert!(!is_listening(connection.local_addr().unwrap().port()));
    }

    #[test]
    fn what_a_tool_said_leads_to_advice() {
        for (program, said, advice) in [
            ("nft", "Error: Could not process rule: Operation not permitted", "CAP_NET_ADMIN"),
            ("nft", "Error: Could not process rule: No such file or directory", "nft_chain_nat"),
            (
                "iptables-restore",
                "iptables-restore v1.8.9 (legacy): can't initialize iptables table `nat'",
                "iptable_nat",
            ),
            ("iptables-restore", "Permission denied (you must be root)", "CAP_NET_ADMIN"),
            ("nft", "something else", "--dry-run"),
        ] {
            assert!(advice_on(program, said).contains(advice), "{said}");
        }
    }
}
