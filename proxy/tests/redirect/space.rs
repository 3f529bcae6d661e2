//! A network namespace per test, with one interface besides loopback, and commands run inside it.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::Failed;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{getegid, geteuid},
};
use socket2::{Domain, SockRef, Socket, Type};

pub(crate) const OWN4: &str = "10.9.0.1";
pub(crate) const OWN6: &str = "fd00:9::1";
/// For anything that should take no time at all.
const SOON: Duration = Duration::from_secs(5);

/// The test's own network.
pub(crate) struct Space(());

/// Enters a user namespace in which this user is root. Before any thread is started.
pub(crate) fn enter() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

pub(crate) fn has(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    std::env::split_paths(&path).chain(system).any(|directory| directory.join(tool).is_file())
}

fn command(tool: &str) -> Command {
    let system = ["/usr/sbin", "/sbin"].map(|directory| Path::new(directory).join(tool));
    match system.into_iter().find(|path| path.is_file()) {
        Some(path) => Command::new(path),
        None => Command::new(tool),
    }
}

impl Space {
    /// For the calling thread and what it starts.
    pub(crate) fn new() -> Result<Self, Failed> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let space = Self(());
        space.run("ip", &["link", "set", "lo", "up"])?;
        space.run("ip", &["link", "add", "own0", "type", "veth", "peer", "name", "own1"])?;
        space.run("ip", &["address", "add", &format!("{OWN4}/24"), "dev", "own0"])?;
        space.run("ip", &["address", "add", &format!("{OWN6}/64"), "dev", "own0", "nodad"])?;
        space.run("ip", &["link", "set", "own1", "up"])?;
        space.run("ip", &["link", "set", "own0", "up"])?;
        Ok(space)
    }

    /// Runs a tool that must succeed; gives what it printed.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str]) -> Result<String, Failed> {
        let output = command(tool).args(arguments).stdin(Stdio::null()).output()?;
        succeeded(&format!("{tool} {}", arguments.join(" ")), &output)
    }

    pub(crate) fn init(&self, arguments: &str) -> Result<Output, Failed> {
        Ok(self.proxy().arg("init").args(arguments.split_ascii_whitespace()).output()?)
    }

    /// `init` that must succeed; gives its report.
    pub(crate) fn installed(&self, arguments: &str) -> Result<String, Failed> {
        succeeded(&format!("init {arguments}"), &self.init(arguments)?)
    }

    pub(crate) fn proxy(&self) -> Command {
        Command::new(env!("CARGO_BIN_EXE_outrigger-proxy"))
    }

    /// All rules of this namespace, as the kernel has them, without counters.
    pub(crate) fn rules(&self) -> Result<String, Failed> {
        self.run("nft", &["--stateless", "list", "ruleset"])
    }
}

fn succeeded(what: &str, output: &Output) -> Result<String, Failed> {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    Err(format!("{what}: {}\n{said}{}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

// ---- connections ----------------------------------------------------------------------------------------------------

pub(crate) fn listen(address: &str) -> Result<TcpListener, Failed> {
    let listener = TcpListener::bind(address).map_err(|error| format!("{address}: {error}"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Connects, with a mark if one is given. Returns the caller's end.
pub(crate) fn connect(to: &str, mark: Option<u32>) -> Result<TcpStream, Failed> {
    let to: SocketAddr = to.parse()?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.connect_timeout(&to.into(), SOON).map_err(|error| format!("connecting to {to}: {error}"))?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

/// Accepts the connection whose caller is `client`, and gives its original destination if it was redirected.
pub(crate) fn accept(
    listener: &TcpListener,
    client: &TcpStream,
) -> Result<(TcpStream, Option<SocketAddr>), Failed> {
    let deadline = Instant::now() + SOON;
    let caller = client.local_addr()?;
    loop {
        match listener.accept() {
            Ok((stream, peer)) if peer == caller => {
                let socket = SockRef::from(&stream);
                let found = if peer.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
                return Ok((stream, found.ok().and_then(|address| address.as_socket())));
            }
            Ok((_, peer)) => return Err(format!("{peer} came instead of {caller}").into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error) => return Err(format!("{caller} did not arrive: {error}").into()),
        }
    }
}

/// Tries until it is true.
pub(crate) fn wait_for(what: &str, is_true: impl FnMut() -> bool) -> Result<(), Failed> {
    wait_long(what, Duration::from_secs(20), Duration::from_millis(5), is_true)
}

/// The same for what takes its time, looked at now and then.
pub(crate) fn wait_long(
    what: &str,
    most: Duration,
    pause: Duration,
    mut is_true: impl FnMut() -> bool,
) -> Result<(), Failed> {
    let deadline = Instant::now() + most;
    while !is_true() {
        if Instant::now() > deadline {
            return Err(format!("waited in vain: {what}").into());
        }
        thread::sleep(pause);
    }
    Ok(())
}
