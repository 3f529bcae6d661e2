//! The stage for machines that forbid namespaces: every workload has an address of 127.0.0.0/8.
//!
//! ```text
//!   web ─▶ --forward ═mTLS═▶ --serve ─▶ orders ─▶ --forward ═mTLS═▶ relay ═▶ --serve ─▶ payments
//! ```
//!
//! Sidecars are told by flags what redirect rules would tell them. Packets on loopback belong to the system, so the
//! wire is recorded by a relay on the way to payments.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use outrigger_lab::{Binaries, Process, find_program, wait_for};
use tempfile::TempDir;

use super::{
    APP_PORT, CAST, PAYMENTS_ROLE, Place, Recording, Role, Stage, WEB, app_arguments, first_configuration,
    relay::Relay,
};
use crate::demo::{
    client::Client,
    interrupt::Interrupt,
    traces::{self, Backend, OTLP_PORT, QUERY_PORT, Query, Wish},
};

const MESH_PORT: u16 = 9443;
const FORWARD_PORT: u16 = 9001;
const STATUS_PORT: u16 = 15020;
const CONTROL_PLANE_PORT: u16 = 15012;
const CONTROL_PLANE_STATUS_PORT: u16 = 15014;
const READY: Duration = Duration::from_secs(20);

pub(crate) struct Loopback {
    workloads: Vec<Workload>,
    control_plane: Option<Process>,
    relay: Relay,
    backend: Option<Backend>,
    _jaeger: Option<Process>,
    plan: Plan,
}

struct Workload {
    app: Process,
    sidecar: Process,
    admin: SocketAddr,
}

/// Addresses, programs and directories, fixed from the start.
struct Plan {
    /// Second octet of all addresses, so that two demos can run side by side.
    network: u8,
    binaries: Binaries,
    directory: PathBuf,
    /// What sidecars are told of tracing.
    variables: Vec<(String, String)>,
    /// Removes the directory, unless it is to be kept.
    guard: Option<TempDir>,
}

impl Loopback {
    pub(crate) fn build(wish: &Wish, interrupt: &Interrupt) -> Result<Self> {
        let guard = tempfile::Builder::new().prefix("outrigger-demo-").tempdir()?;
        let network = 64 + (std::process::id() % 128) as u8;
        let directory = guard.path().to_owned();
        let binaries = Binaries::find()?;
        let mut plan = Plan { network, binaries, directory, variables: Vec::new(), guard: Some(guard) };
        let built =
            plan.start_traces(wish).and_then(|traces| Ok((traces, Self::build_in(&mut plan, interrupt)?)));
        match built {
            Ok(((backend, jaeger), (workloads, control_plane, relay))) => {
                let control_plane = Some(control_plane);
                Ok(Self { workloads, control_plane, relay, backend, _jaeger: jaeger, plan })
            }
            Err(error) => {
                plan.keep();
                Err(error)
            }
        }
    }

    fn build_in(plan: &mut Plan, interrupt: &Interrupt) -> Result<(Vec<Workload>, Process, Relay)> {
        fs::create_dir(plan.directory.join("config"))?;
        for (file, text) in first_configuration() {
            plan.configure(file, &text)?;
        }
        let relayed = include_str!("../config/payments-relayed.yaml");
        plan.configure("payments.yaml", &relayed.replace("@RELAY@", &plan.relay().ip().to_string()))?;
        let relay = Relay::start(plan.relay(), (plan.address(PAYMENTS_ROLE), MESH_PORT).into())?;
        let control_plane = plan.start_control_plane()?;
        let mut workloads = Vec::new();
        for (index, role) in CAST.iter().enumerate() {
            interrupt.check()?;
            workloads.push(plan.start_workload(index, role)?);
        }
        for (index, role) in CAST.iter().enumerate() {
            interrupt.check()?;
            let address = plan.address(index);
            wait_for(READY, &format!("a ready sidecar of {}", role.name), || {
                get((address, STATUS_PORT).into(), "/ready").is_ok()
            })?;
            wait_for(READY, &format!("the program of {}", role.name), || {
                TcpStream::connect((address, APP_PORT)).is_ok()
            })?;
        }
        Ok((workloads, control_plane, relay))
    }
}

impl Plan {
    /// The address that a workload has to itself.
    fn address(&self, role: usize) -> Ipv4Addr {
        Ipv4Addr::new(127, self.network, 0, 10 + role as u8)
    }

    fn control_plane(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, self.network, 0, 1), port).into()
    }

    fn relay(&self) -> SocketAddr {
        (Ipv4Addr::new(127, self.network, 0, 2), MESH_PORT).into()
    }

    fn jaeger(&self, port: u16) -> SocketAddr {
        (Ipv4Addr::new(127, self.network, 0, 3), port).into()
    }

    /// The backend of the demo's traces, if there is to be one, and what sidecars have to know of it.
    fn start_traces(&mut self, wish: &Wish) -> Result<(Option<Backend>, Option<Process>)> {
        match wish {
            Wish::None => Ok((None, None)),
            Wish::Start(program) => {
                self.variables = wish.variables(&format!("http://{}", self.jaeger(OTLP_PORT)));
                let query = self.jaeger(QUERY_PORT);
                let config = traces::jaeger_config(&self.directory, &query.ip().to_string())?;
                let config = ["--config".to_owned(), config.display().to_string()];
                let jaeger = self.spawn(program, &config, "jaeger")?;
                let query_api = Query::At(Place::Here, query);
                let backend = Backend { query: query_api, page: format!("http://{query}"), ours: true };
                backend.wait_ready(READY).context("Jaeger")?;
                Ok((Some(backend), Some(jaeger)))
            }
            Wish::Use(outside) => {
                self.variables = wish.variables(&format!("http://{}", outside.otlp));
                let query = Query::Named(outside.query.clone());
                Ok((Some(Backend { query, page: format!("http://{}", outside.query), ours: false }), None))
            }
        }
    }

    fn state(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}-state"))
    }

    fn configure(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.directory.join(format!("{file}.draft"));
        fs::write(&draft, text)?;
        fs::rename(&draft, self.directory.join("config").join(file)).with_context(|| format!("write {file}"))
    }

    fn keep(&mut self) {
        if let Some(guard) = self.guard.take() {
            eprintln!("logs kept in {}", guard.keep().display());
        }
    }

    fn spawn(&self, program: &Path, arguments: &[String], name: &str) -> Result<Process> {
        // Where it is there, setpriv has the kernel end the program even if we are killed.
        let mut command = match find_program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.args(arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        Process::spawn(&mut command, name, &self.directory)
    }

    fn start_control_plane(&self) -> Result<Process> {
        let mut arguments =
            vec!["--config-dir".to_owned(), self.directory.join("config").display().to_string()];
        arguments.extend(["--state-dir".to_owned(), self.state("control-plane").display().to_string()]);
        arguments.extend(["--listen".to_owned(), self.control_plane(CONTROL_PLANE_PORT).to_string()]);
        let status = self.control_plane(CONTROL_PLANE_STATUS_PORT);
        arguments.extend(["--status-listen".to_owned(), status.to_string()]);
        let mut process = self.spawn(&self.binaries.control_plane(), &arguments, "control-plane")?;
        wait_for(READY, "a ready control plane", || !process.is_running() || get(status, "/readyz").is_ok())?;
        if !process.is_running() {
            bail!("the control plane ended: {}", process.log());
        }
        Ok(process)
    }

    fn start_workload(&self, index: usize, role: &Role) -> Result<Workload> {
        let address = self.address(index);
        let forward = SocketAddr::from((address, FORWARD_PORT));
        let application = SocketAddr::from((address, APP_PORT));
        let admin = free_port()?;
        let token = self.token(role)?;
        let token_file = self.directory.join(format!("{}-token", role.name));
        fs::write(&token_file, token)?;
        let mut arguments = vec!["run".to_owned(), "--no-capture".to_owned()];
        let mut flag = |name: &str, value: String| arguments.extend([format!("--{name}"), value]);
        flag("control-plane", self.control_plane(CONTROL_PLANE_PORT).to_string());
        flag("token-file", token_file.display().to_string());
        flag("address", address.to_string());
        flag("serve", format!("{address}:{MESH_PORT}={application}"));
        flag("admin-port", admin.port().to_string());
        flag("status-address", format!("{address}:{STATUS_PORT}"));
        flag("state-dir", self.state(role.name).display().to_string());
        flag("access-log", self.directory.join(format!("{}-access.log", role.name)).display().to_string());
        flag("workers", "1".to_owned());
        if let Some(next) = role.next {
            flag("forward", format!("{forward}={}:80", next.host));
        }
        let sidecar = self.spawn(&self.binaries.proxy(), &arguments, &format!("{}-proxy", role.name))?;
        let arguments = app_arguments(role, application, Some(&forward.to_string()));
        let app = self.spawn(&self.binaries.outrigger(), &arguments, &format!("{}-app", role.name))?;
        Ok(Workload { app, sidecar, admin })
    }

    fn token(&self, role: &Role) -> Result<String> {
        let output = Command::new(self.binaries.outrigger())
            .args(["token", "create", "--namespace", "shop", "--service-account", role.service_account])
            .args([
                "--label",
                &format!("app={}", role.service_account),
                "--label",
                &format!("version={}", role.version),
            ])
            .arg("--state-dir")
            .arg(self.state("control-plane"))
            .output()?;
        if !output.status.success() {
            bail!("outrigger token create: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Stage for Loopback {
    fn describe(&self) -> String {
        format!("{} workloads on loopback addresses, with --forward and --serve listeners", CAST.len())
    }

    fn wire(&self) -> &'static str {
        "pieces relayed between orders and payments"
    }

    fn directory(&self) -> &Path {
        &self.plan.directory
    }

    fn keep_directory(&mut self) {
        self.plan.keep();
    }

    fn shopfront(&self) -> (Place, SocketAddr) {
        (Place::Here, (self.plan.address(WEB), APP_PORT).into())
    }

    fn outside(&self) -> (Place, SocketAddr) {
        (Place::Here, self.plan.relay())
    }

    fn configure(&self, file: &str, text: &str) -> Result<()> {
        self.plan.configure(file, text)
    }

    fn record(&self) -> Result<Recording> {
        Ok(Recording::Relayed(self.relay.record()))
    }

    fn sidecar(&self, role: usize, path: &str) -> Result<String> {
        get(self.workloads[role].admin, path)
    }

    fn app_log(&self, role: usize) -> String {
        self.workloads[role].app.log()
    }

    fn kill(&mut self, role: usize) -> Result<()> {
        let workload = &mut self.workloads[role];
        workload.sidecar.signal(Signal::SIGKILL)?;
        workload.app.kill();
        workload.sidecar.kill();
        Ok(())
    }

    fn kill_control_plane(&mut self) -> Result<()> {
        self.control_plane = None;
        Ok(())
    }

    fn start_control_plane(&mut self) -> Result<()> {
        self.control_plane = Some(self.plan.start_control_plane()?);
        Ok(())
    }

    fn backend(&self) -> Option<&Backend> {
        self.backend.as_ref()
    }

    fn invitations(&mut self) -> Vec<(&'static str, String)> {
        let forward = (self.plan.address(WEB), FORWARD_PORT);
        let status = self.plan.control_plane(CONTROL_PLANE_STATUS_PORT);
        let outrigger = self.plan.binaries.outrigger();
        vec![
            ("the shop", format!("curl -si http://{}/", self.shopfront().1)),
            ("a call through the mesh", format!("curl -si http://{}:{}/", forward.0, forward.1)),
            ("a call that is refused", format!("curl -si http://{}/", self.plan.relay())),
            ("the mesh", format!("{} status --control-plane-status http://{status}", outrigger.display())),
            ("its traffic", format!("{} top --control-plane-status http://{status}", outrigger.display())),
            (
                "a sidecar's metrics",
                format!("curl -s http://{}:{STATUS_PORT}/metrics", self.plan.address(WEB)),
            ),
        ]
    }
}

/// The body of a page, when it is a 200.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let answer = Client::new(address).ask(path, None)?;
    if answer.status != 200 {
        bail!("{path}: {answer}");
    }
    Ok(answer.body)
}

/// A port of 127.0.0.1 that nobody used a moment ago.
fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}
