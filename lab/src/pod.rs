//! A pod: a network namespace with its own addresses, in which programs and closures run.

use std::{
    ffi::OsStr,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Result;

use crate::{
    Lab, Output, Process,
    binaries::search_path,
    enter::{Inside, STAGE},
    namespace::Namespace,
    process, wait_for,
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pod {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Goes before the lab: the switch outlives what is plugged to it.
    namespace: Namespace,
    lab: Lab,
    name: String,
    ipv4: Ipv4Addr,
    ipv6: Ipv6Addr,
}

/// A program takes milliseconds to get ready; the machine may be busy with other tests.
pub(crate) const READY_DEADLINE: Duration = Duration::from_secs(60);
/// For [`Pod::run`]: longer than any command that ends by itself should take.
const RUN_DEADLINE: Duration = Duration::from_secs(60);

impl Pod {
    pub(crate) fn new(lab: Lab, name: &str, namespace: Namespace, ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Self {
        Self { inner: Arc::new(Inner { namespace, lab, name: name.to_owned(), ipv4, ipv6 }) }
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub fn ipv4(&self) -> Ipv4Addr {
        self.inner.ipv4
    }

    pub fn ipv6(&self) -> Ipv6Addr {
        self.inner.ipv6
    }

    pub fn lab(&self) -> &Lab {
        &self.inner.lab
    }

    /// A command that will run in the pod, under the process id that its `spawn` reports.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.inner.namespace.path());
        // The stage is ours: a program started here that makes a lab of its own must not take it for its own.
        command.arg(net).arg("--").arg(program).env("PATH", search_path()).env_remove(STAGE);
        // Settings of whoever runs the lab are not settings of the programs in it.
        let is_setting = |name: &OsStr| {
            let name = name.as_encoded_bytes();
            name.starts_with(b"OUTRIGGER_") || name.starts_with(b"OTEL_")
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_setting(name)) {
            command.env_remove(name);
        }
        command
    }

    /// Starts a program that goes on until its handle is dropped; output goes to `LAB/log_name.log`.
    pub fn spawn(&self, command: &mut Command, log_name: &str) -> Result<Process> {
        Process::spawn(command, log_name, self.inner.lab.directory())
    }

    /// Runs a program to its end, which has to come within a minute.
    pub fn run(&self, command: &mut Command) -> Result<Output> {
        process::run(command, RUN_DEADLINE)
    }

    /// Runs a program to its end; killed, and an error, when that takes longer than `deadline`.
    pub fn run_within(&self, deadline: Duration, command: &mut Command) -> Result<Output> {
        process::run(command, deadline)
    }

    /// Runs `work` on a thread inside the pod: sockets it makes belong to the pod.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.inner.namespace.enter(work)
    }

    /// Like [`Self::enter`], in the background.
    pub fn background<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<JoinHandle<T>> {
        self.inner.namespace.spawn(work)
    }

    /// Waits until a program listens on a port, asked over loopback, which redirect rules leave alone.
    pub fn wait_listening(&self, port: u16) -> Result<()> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.enter(|| {
            wait_for(READY_DEADLINE, &format!("a listener on port {port} of {}", self.name()), || {
                TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
            })
        })?
    }

    /// One more address, reachable from all pods of the lab: a host elsewhere in the world.
    pub fn add_address(&self, address: IpAddr) -> Result<()> {
        crate::ip::run_in(self.inner.namespace.name(), &[format!("addr add {address} dev lo")])?;
        self.inner.lab.route(address, self)
    }

    /// What to type before a command in another terminal to run it in this pod.
    pub fn shell_prefix(&self, inside: &Inside) -> String {
        let user = if inside.user_namespace { "-U --preserve-credentials " } else { "" };
        let path = self.inner.namespace.path();
        format!("nsenter -t {} {user}-m -- nsenter --net={} --", inside.outer_pid, path.display())
    }
}
