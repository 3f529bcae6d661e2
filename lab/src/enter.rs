//! Starts the current program again inside namespaces of its own, without privileges where the kernel allows that.
//!
//! ```text
//!   outside ──probe──▶ new namespaces ──spawn──▶ init ──spawn──▶ inside
//!      │                                          │ private tmpfs on /run, loopback up
//!      └ waits, forwards SIGTERM                  └ process 1: forwards SIGTERM, reaps orphans
//! ```
//!
//! Where the kernel lets us mount a fresh /proc, the program also gets a process namespace: whatever it leaves behind
//! dies with it, even after SIGKILL. Root takes the same way, and only falls back to namespaces without a user
//! namespace where those are forbidden. The stage is carried in one environment variable and confirmed by a marker
//! file in the private /run, so a stale variable cannot make a program believe that it is inside.

use std::{
    env, fmt, fs,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getgid, getuid},
};

use crate::{binaries::search_path, find_program};

/// Carries the stage to the next incarnation: `init:OUTSIDE` or `inside:OUTSIDE`, see [`Inside::parse`].
pub(crate) const STAGE: &str = "OUTRIGGERLAB_STAGE";
const MARKER: &str = "/run/outrigger-lab";

/// What came of [`reexec_or_enter`].
#[derive(Debug)]
pub enum Entered {
    /// This process is inside: go on.
    Inside(Inside),
    /// This process only guarded the one inside, which has ended: return this from `main`.
    Finished(ExitCode),
}

#[derive(Clone, Debug)]
pub struct Inside {
    /// A process outside whose user, network and mount namespaces are ours: what `nsenter -t` wants.
    pub outer_pid: u32,
    /// Whether a user namespace was made too.
    pub user_namespace: bool,
}

/// Why there can be no laboratory here.
#[derive(Debug)]
pub enum Refusal {
    MissingTool {
        tool: &'static str,
        package: &'static str,
    },
    /// The kernel or a security module says no to namespaces; `hint` is what would change that.
    NamespacesForbidden {
        why: String,
        hint: String,
    },
    /// Namespaces are there, but redirect rules cannot be installed in them.
    NoRedirect {
        why: String,
    },
    /// The program could not start itself again.
    Restart {
        why: String,
    },
}

/// Which namespaces to make, beside network and mounts.
#[derive(Clone, Copy)]
struct Way {
    user: bool,
    process: bool,
}

/// Best first.
const WAYS: [Way; 4] = [
    Way { user: true, process: true },
    Way { user: true, process: false },
    Way { user: false, process: true },
    Way { user: false, process: false },
];

/// Fails with 40 + the step, so that the reason can be told.
const PROBE: &str = "mount -t tmpfs tmpfs /run || exit 41
ip link set lo up || exit 42
ip netns add probe || exit 43
ip link add name probe0 type veth peer name probe1 netns probe || exit 44
nft 'add table ip probe; add chain ip probe out { type nat hook output priority -100; }; \
add rule ip probe out tcp dport 1 redirect to :2' && exit 0
iptables -t nat -A OUTPUT -p tcp --dport 1 -j REDIRECT --to-ports 2 || exit 45";

/// Call it first thing in `main`, while the process has one thread. Outside, it returns when the inside has ended.
pub fn reexec_or_enter() -> Result<Entered, Refusal> {
    match env::var(STAGE).unwrap_or_default().split_once(':') {
        Some(("init", outer)) => init(outer),
        Some(("inside", outer)) if Path::new(MARKER).exists() => {
            guarded_signals().thread_unblock().map_err(|error| refuse("signals", error))?;
            Ok(Entered::Inside(Inside::parse(outer)))
        }
        Some(_) | None => outside(),
    }
}

/// Whether a laboratory could be made here; costs a few milliseconds and leaves nothing behind.
pub fn probe() -> Result<(), Refusal> {
    find_way().map(|_| ())
}

/// Whether this process is the one that the user started: [`reexec_or_enter`] would start the program again.
pub fn is_outside() -> bool {
    env::var_os(STAGE).is_none()
}

// === outside ===

fn find_way() -> Result<Way, Refusal> {
    for (tool, package) in [("unshare", "util-linux"), ("nsenter", "util-linux"), ("ip", "iproute2")] {
        if find_program(tool).is_none() {
            return Err(Refusal::MissingTool { tool, package });
        }
    }
    if find_program("nft").is_none() && find_program("iptables").is_none() {
        return Err(Refusal::MissingTool { tool: "nft", package: "nftables" });
    }
    let mut refusal = None;
    for way in WAYS {
        let tried = Command::new("unshare")
            .args(way.unshare_arguments())
            .args(["--", "sh", "-c", PROBE])
            .env("PATH", search_path())
            .env("LC_ALL", "C")
            .output()
            .map_err(|error| Refusal::Restart { why: format!("unshare: {error}") })?;
        if tried.status.success() {
            return Ok(way);
        }
        let why = String::from_utf8_lossy(&tried.stderr).trim().replace('\n', "; ");
        // The first refusal tells most: the later ways ask for privileges that an ordinary user never has.
        refusal.get_or_insert_with(|| match tried.status.code() {
            Some(45) => Refusal::NoRedirect { why },
            _ => Refusal::NamespacesForbidden { why, hint: hint() },
        });
    }
    Err(refusal.unwrap_or_else(|| Refusal::Restart { why: "no way to try".into() }))
}

/// The setting of this machine that forbids namespaces, when one is known to.
fn hint() -> String {
    let setting =
        |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        "allow it with: sysctl -w kernel.unprivileged_userns_clone=1".into()
    } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "allow it with: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0".into()
    } else if setting("/proc/sys/user/max_user_namespaces") == "0" {
        "allow it with: sysctl -w user.max_user_namespaces=10000".into()
    } else {
        "a container needs CAP_SYS_ADMIN or a seccomp profile that permits unshare".into()
    }
}

fn outside() -> Result<Entered, Refusal> {
    let way = find_way()?;
    let inside = Inside { outer_pid: std::process::id(), user_namespace: way.user };
    let signals = block_signals()?;
    way.unshare()?;
    spawn_and_guard(&format!("init:{inside}"), &signals)
}

impl Way {
    /// For unshare(1), which only probes: it ignores SIGTERM while it waits, so it cannot stand between us.
    fn unshare_arguments(self) -> Vec<&'static str> {
        let mut arguments = vec!["--net", "--mount", "--fork"];
        if self.user {
            arguments.extend(["--user", "--map-root-user"]);
        }
        if self.process {
            arguments.extend(["--pid", "--mount-proc"]);
        }
        arguments
    }

    fn unshare(self) -> Result<(), Refusal> {
        let (uid, gid) = (getuid(), getgid());
        let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
        flags.set(CloneFlags::CLONE_NEWUSER, self.user);
        flags.set(CloneFlags::CLONE_NEWPID, self.process);
        unshare(flags).map_err(|error| refuse("namespaces", error))?;
        if self.user {
            let write = |file: &str, text: String| {
                fs::write(format!("/proc/self/{file}"), text).map_err(|error| refuse(file, error))
            };
            write("setgroups", "deny".into())?;
            write("uid_map", format!("0 {uid} 1"))?;
            write("gid_map", format!("0 {gid} 1"))?;
        }
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .map_err(|error| refuse("private mounts", error))
    }
}

fn guarded_signals() -> SigSet {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals
}

/// Before there are children, so that no signal is lost. They inherit it, and the innermost one takes it back.
fn block_signals() -> Result<SigSet, Refusal> {
    let signals = guarded_signals();
    signals.thread_block().map_err(|error| refuse("signals", error))?;
    Ok(signals)
}

/// Starts the next stage and stays with it to its end.
fn spawn_and_guard(stage: &str, signals: &SigSet) -> Result<Entered, Refusal> {
    let program = env::current_exe().map_err(|error| refuse("own program", error))?;
    let child = Command::new(program)
        .args(env::args_os().skip(1))
        .env("PATH", search_path())
        .env(STAGE, stage)
        .spawn()
        .map_err(|error| refuse("start", error))?;
    let main = Pid::from_raw(child.id().cast_signed());
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(main) {
                    return Ok(Entered::Finished(exit_code(status)));
                }
            }
            // The terminal sends its interrupt to the whole foreground group, the child included.
            Ok(Signal::SIGINT) => {}
            Ok(signal) => drop(kill(main, signal)),
            Err(error) => return Err(refuse("signals", error)),
        }
    }
}

fn refuse(what: &str, error: impl fmt::Display) -> Refusal {
    Refusal::Restart { why: format!("{what}: {error}") }
}

// === init ===

fn init(outer: &str) -> Result<Entered, Refusal> {
    // What kills the outside shall end the inside.
    set_pdeathsig(Signal::SIGKILL).map_err(|error| refuse("tie to the parent", error))?;
    let signals = block_signals()?;
    if std::process::id() == 1 {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
        mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>)
            .map_err(|error| refuse("/proc", error))?;
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755"))
        .map_err(|error| refuse("tmpfs on /run", error))?;
    fs::write(MARKER, outer).map_err(|error| refuse(MARKER, error))?;
    // Adding a first namespace prepares /run/netns for all, which two at once would race for.
    crate::ip::run(&["link set lo up", "netns add base", "netns del base"])
        .map_err(|error| refuse("network", format!("{error:#}")))?;
    spawn_and_guard(&format!("inside:{outer}"), &signals)
}

/// Buries every child that has ended (orphans come to process 1); the status of `main` if it is among them.
fn reap(main: Pid) -> Option<ExitStatus> {
    let mut ended = None;
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        match status {
            WaitStatus::Exited(pid, code) if pid == main => ended = Some(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) if pid == main => {
                ended = Some(ExitStatus::from_raw(signal as i32));
            }
            WaitStatus::StillAlive => break,
            WaitStatus::Exited(..)
            | WaitStatus::Signaled(..)
            | WaitStatus::Stopped(..)
            | WaitStatus::PtraceEvent(..)
            | WaitStatus::PtraceSyscall(..)
            | WaitStatus::Continued(..) => {}
        }
    }
    ended
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

// === impl Inside ===

impl Inside {
    /// `PID,user` with a user namespace, `PID` without.
    fn parse(text: &str) -> Self {
        let (pid, user) = text.split_once(',').unwrap_or((text, ""));
        Self { outer_pid: pid.parse().unwrap_or_default(), user_namespace: user == "user" }
    }
}

impl fmt::Display for Inside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.outer_pid, if self.user_namespace { ",user" } else { "" })
    }
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingTool { tool, package } => write!(f, "{tool} is missing (package {package})"),
            Self::NamespacesForbidden { why, hint } => {
                write!(f, "network namespaces are forbidden here ({why}); {hint}")
            }
            Self::NoRedirect { why } => {
                write!(f, "redirect rules cannot be installed in a namespace ({why})")
            }
            Self::Restart { why } => write!(f, "cannot start again inside namespaces ({why})"),
        }
    }
}

impl std::error::Error for Refusal {}
