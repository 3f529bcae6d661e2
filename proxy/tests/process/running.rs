//! A running proxy, and questions to it.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use outrigger_certs::{Authority, JoinToken, SpiffeId, TrustDomain, token::Labels};
use tempfile::TempDir;

pub(crate) struct Proxy {
    process: Child,
    status: u16,
    admin: u16,
    forward: String,
    state: TempDir,
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-proxy"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A port that was free a moment ago, and that no other test was given.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// A join token that reads well; whether anybody would honour it does not matter here.
pub(crate) fn token() -> String {
    static TOKEN: OnceLock<String> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir().unwrap();
        let (now, trust_domain) = (SystemTime::now(), TrustDomain::parse("mesh.local").unwrap());
        let authority = Authority::load_or_create(directory.path(), &trust_domain, now).unwrap();
        let identity = SpiffeId::new(&trust_domain, "shop", "orders").unwrap();
        let life = Duration::from_secs(3600);
        let token = JoinToken::new(&authority, identity, Labels::default(), life, false, now).unwrap();
        token.sign(&authority).unwrap()
    };
    TOKEN.get_or_init(make).clone()
}

impl Proxy {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::spawn(command(), arguments)
    }

    /// With a limit of file descriptors.
    pub(crate) fn start_with_descriptors(limit: u64, arguments: &[&str]) -> Self {
        // A limit of this process would hold for all tests; the shell sets its own and becomes the proxy.
        let mut command = Command::new("sh");
        command.args([
            "-c",
            &format!("ulimit -n {limit} && exec \"$0\" \"$@\""),
            env!("CARGO_BIN_EXE_outrigger-proxy"),
        ]);
        command.stdin(Stdio::null());
        Self::spawn(command, arguments)
    }

    fn spawn(mut command: Command, arguments: &[&str]) -> Self {
        let (status, admin, state) = (free_port(), free_port(), tempfile::tempdir().unwrap());
        let forward = arguments.iter().skip_while(|flag| **flag != "--forward").nth(1);
        command
            .args(["run", "--control-plane", "127.0.0.1:1", "--address", "127.0.0.1", "--workers", "2"])
            .args(["--token", &token(), "--status-address", &format!("127.0.0.1:{status}")])
            .args(["--admin-port", &admin.to_string(), "--state-dir", state.path().to_str().unwrap()])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(File::create(state.path().join("log")).unwrap());
        let process = command.spawn().unwrap();
        let forward = forward.map(|forward| (*forward).to_owned()).unwrap_or_default();
        let proxy = Self { process, status, admin, forward, state };
        wait_for("it listens", || {
            TcpStream::connect(proxy.status_address()).is_ok()
                && !proxy.status("GET", "/ready").1.contains("listeners:")
        });
        proxy
    }

    pub(crate) fn forward(&self) -> String {
        self.forward.clone()
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// What it has said on standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.state.path().join("log")).unwrap()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state.path().join("admin.sock")
    }

    pub(crate) fn status_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.status))
    }

    pub(crate) fn status(&self, method: &str, path: &str) -> (u16, String) {
        ask(self.status_address(), method, path, "orders")
    }

    pub(crate) fn admin(&self, method: &str, path: &str) -> (u16, String) {
        ask(SocketAddr::from(([127, 0, 0, 1], self.admin)), method, path, "localhost")
    }

    pub(crate) fn on_socket(&self, method: &str, path: &str) -> (u16, String) {
        exchange(UnixStream::connect(self.socket()).unwrap(), method, path, "localhost")
    }

    pub(crate) fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    /// Waits for the end; the exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        wait_for("it ends", || match self.process.try_wait().unwrap() {
            Some(status) => {
                code = status.code();
                true
            }
            None => false,
        });
        code
    }

    /// CPU time spent so far.
    pub(crate) fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// One request; status and body. Status 0: there was no answer.
pub(crate) fn ask(to: SocketAddr, method: &str, path: &str, host: &str) -> (u16, String) {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    exchange(stream, method, path, host)
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, host: &str) -> (u16, String) {
    let mut answer = String::new();
    let asked = stream.write_all(format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes());
    if asked.is_err() || stream.read_to_string(&mut answer).is_err() {
        return (0, answer);
    }
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

pub(crate) fn wait_for(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_true() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
