//! A way into the demo from the host's own network, so that a browser can visit the shop.
//!
//! Namespaces keep the shop apart from the host, and that is the point of them. What crosses the border is a Unix
//! socket, which is reached by its path whatever the network namespace:
//!
//! ```text
//!   browser ─▶ 127.0.0.1:8080, gate process ─▶ DIR/shop.sock ─▶ demo ─▶ pod "web"
//!   (host's network, started before the namespaces are entered)   (inside)
//! ```
//!
//! The other way round it leads sidecars to a tracing backend of the host's:
//!
//! ```text
//!   sidecar ─▶ pod "traces" ─▶ demo ─▶ DIR/otlp.sock ─▶ gate process ─▶ localhost:4317
//! ```
//!
//! Only for a demo that stays up, or that shows traces. Without a gate everything works but this.

use std::{
    fs::{self, DirBuilder},
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::{
        fs::DirBuilderExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::unistd::{Pid, getppid};

use super::{interrupt::Interrupt, stage::Place};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the sockets are
    #[arg(long, value_name = "DIR")]
    directory: PathBuf,
    /// A way out: the name of its socket and where it leads
    #[arg(long, value_name = "NAME=HOST:PORT")]
    exit: Vec<String>,
}

/// What can be visited: the name of its socket and the port that is tried first.
pub(crate) const SHOP: Entrance = Entrance { name: "shop", port: 8080 };
pub(crate) const STATUS: Entrance = Entrance { name: "status", port: 15014 };
pub(crate) const TRACES: Entrance = Entrance { name: "traces", port: 16686 };

/// Where spans go, and where they are asked for.
pub(crate) const OTLP_EXIT: &str = "otlp";
pub(crate) const QUERY_EXIT: &str = "query";

#[derive(Clone, Copy)]
pub(crate) struct Entrance {
    name: &'static str,
    port: u16,
}

// === outside ===

/// Starts the gate's process; it ends with the calling process, whatever that becomes by `exec`. Each of `exits` is a name
/// and a host with a port.
pub(crate) fn start(exits: &[(&str, &str)]) -> Result<()> {
    let directory = directory_of(std::process::id());
    // Fails where somebody else has made it.
    DirBuilder::new().mode(0o700).create(&directory).with_context(|| directory.display().to_string())?;
    Command::new(std::env::current_exe()?)
        .args(["demo-gate", "--directory"])
        .arg(&directory)
        .args(exits.iter().flat_map(|(name, target)| ["--exit".to_owned(), format!("{name}={target}")]))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(())
}

/// The gate's process.
pub(crate) fn run(args: &Args) -> Result<()> {
    // Ctrl-C reaches the whole terminal; the gate goes when the demo is gone, and then cleans up.
    let _interrupt = Interrupt::install()?;
    let parent = getppid();
    for exit in &args.exit {
        let (name, target) = exit.split_once('=').context("--exit is NAME=HOST:PORT")?;
        let listener = UnixListener::bind(exit_socket(&args.directory, name))?;
        let target = target.to_owned();
        thread::spawn(move || {
            for leaving in listener.incoming().flatten() {
                if let Ok(outside) = TcpStream::connect(&target) {
                    join(leaving, outside);
                }
            }
        });
    }
    for entrance in [SHOP, STATUS, TRACES] {
        let listener = listen(entrance.port)?;
        let address = listener.local_addr()?;
        let socket = socket(&args.directory, entrance);
        thread::spawn(move || {
            for visitor in listener.incoming().flatten() {
                if let Ok(inside) = UnixStream::connect(&socket) {
                    join(visitor, inside);
                }
            }
        });
        fs::write(args.directory.join(entrance.name), address.to_string())?;
    }
    while getppid() == parent && parent != Pid::from_raw(1) {
        thread::sleep(Duration::from_millis(200));
    }
    fs::remove_dir_all(&args.directory).with_context(|| args.directory.display().to_string())
}

fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
}

// === inside ===

/// An entrance that is open until this is dropped.
pub(crate) struct Open {
    /// Where it is on the host.
    pub(crate) address: SocketAddr,
    socket: PathBuf,
    closing: Arc<AtomicBool>,
    usher: Option<JoinHandle<()>>,
}

impl Open {
    /// Opens an entrance to `target` as seen from `place`, if there is a gate.
    pub(crate) fn new(outer_pid: u32, entrance: Entrance, place: &Place, target: SocketAddr) -> Option<Self> {
        let directory = directory_of(outer_pid);
        let address = fs::read_to_string(directory.join(entrance.name)).ok()?.parse().ok()?;
        let socket = socket(&directory, entrance);
        let listener = UnixListener::bind(&socket).ok()?;
        let closing = Arc::new(AtomicBool::new(false));
        let (place, closed) = (place.clone(), Arc::clone(&closing));
        let usher = thread::spawn(move || {
            for visitor in listener.incoming().flatten() {
                if closed.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(Ok(inside)) = place.enter(|| TcpStream::connect(target)) {
                    join(visitor, inside);
                }
            }
        });
        Some(Self { address, socket, closing, usher: Some(usher) })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Release);
        // Wakes the usher; if that cannot be, the usher ends with the program.
        if let (Ok(_), Some(usher)) = (UnixStream::connect(&self.socket), self.usher.take()) {
            let _ = usher.join();
        }
    }
}

/// The way out of this name; there may be none.
pub(crate) fn exit(outer_pid: u32, name: &str) -> PathBuf {
    exit_socket(&directory_of(outer_pid), name)
}

/// Lets whoever connects to an address at `place` out by that way, until the program ends.
pub(crate) fn open_exit(outer_pid: u32, name: &str, place: &Place, address: SocketAddr) -> Result<()> {
    let listener = place.enter(|| TcpListener::bind(address))?.with_context(|| address.to_string())?;
    let socket = exit(outer_pid, name);
    thread::spawn(move || {
        for leaving in listener.incoming().flatten() {
            if let Ok(outside) = UnixStream::connect(&socket) {
                join(leaving, outside);
            }
        }
    });
    Ok(())
}

// === both ===

fn directory_of(outer_pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("outrigger-demo-gate-{outer_pid}"))
}

fn socket(directory: &Path, entrance: Entrance) -> PathBuf {
    directory.join(format!("{}.sock", entrance.name))
}

fn exit_socket(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}-exit.sock"))
}

/// What TCP and Unix streams have in common here.
trait Stream: io::Read + io::Write + Send + Sized + 'static {
    fn again(&self) -> io::Result<Self>;
    fn end(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn again(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn again(&self) -> io::Result<Self> {
        self.try_clone()
    }

    fn end(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Carries both directions in the background; each ends by itself.
fn join(one: impl Stream, other: impl Stream) {
    if let (Ok(one_again), Ok(other_again)) = (one.again(), other.again()) {
        carry(one_again, other);
        carry(other_again, one);
    }
}

fn carry(mut from: impl Stream, mut to: impl Stream) {
    thread::spawn(move || {
        // A cut connection ends like a closed one: there is nobody to tell.
        let _ = io::copy(&mut from, &mut to);
        let _ = to.end();
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn an_entrance_leads_inside() {
        let inside = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = inside.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = inside.accept().unwrap();
            let mut asked = String::new();
            stream.read_to_string(&mut asked).unwrap();
            stream.write_all(asked.to_uppercase().as_bytes()).unwrap();
        });
        // No process has this id: it is beyond the kernel's largest.
        let outer_pid = u32::MAX - std::process::id();
        assert!(Open::new(outer_pid, SHOP, &Place::Here, target).is_none());
        let directory = directory_of(outer_pid);
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("shop"), "127.0.0.1:1").unwrap();
        let open = Open::new(outer_pid, SHOP, &Place::Here, target).unwrap();
        assert_eq!(open.address.port(), 1);
        let mut visitor = UnixStream::connect(directory.join("shop.sock")).unwrap();
        visitor.write_all(b"hello").unwrap();
        visitor.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        visitor.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "HELLO");
        drop(open);
        assert!(UnixStream::connect(directory.join("shop.sock")).is_err());
        fs::remove_dir_all(directory).unwrap();
    }
}
