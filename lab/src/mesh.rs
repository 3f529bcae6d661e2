//! A mesh in a lab: control planes in pods of their own, a directory of configuration, workloads with sidecars.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::{
    Answer, Binaries, Lab, Output, Pod, Process, WorkloadBuilder, pod::READY_DEADLINE, process, wait_for,
};

const GRPC_PORT: u16 = 15012;
const STATUS_PORT: u16 = 15014;
#[derive(Debug)]
pub struct Mesh {
    lab: Lab,
    binaries: Binaries,
    config: PathBuf,
    control_planes: Vec<ControlPlane>,
}

#[derive(Clone, Debug, Default)]
pub struct MeshBuilder {
    files: Vec<(String, String)>,
    arguments: Vec<String>,
    replicas: usize,
}

#[derive(Debug)]
struct ControlPlane {
    pod: Pod,
    name: String,
    state: PathBuf,
    arguments: Vec<String>,
    process: Mutex<Option<Process>>,
}

impl MeshBuilder {
    /// A configuration file that is there from the start.
    #[must_use]
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// A flag for the control planes, with its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.arguments.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// How many control planes share configuration and authority; one unless told otherwise.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Starts the control planes in the lab; they are ready when this returns.
    pub fn start(self, lab: &Lab) -> Result<Mesh> {
        let binaries = Binaries::find()?;
        let config = lab.directory().join("config");
        fs::create_dir_all(&config)?;
        let mut mesh = Mesh { lab: lab.clone(), binaries, config, control_planes: Vec::new() };
        for (name, text) in &self.files {
            mesh.write(name, text)?;
        }
        for number in 0..self.replicas.max(1) {
            let name = format!("control-plane-{number}");
            let state = lab.directory().join(format!("{name}-state"));
            let mut arguments = self.arguments.clone();
            if let Some(first) = mesh.control_planes.first() {
                for (flag, file) in
                    [("--ca-cert", "ca.pem"), ("--ca-key", "ca.key"), ("--trust-roots", "trust.pem")]
                {
                    arguments.push(flag.into());
                    arguments.push(first.state.join("ca").join(file).display().to_string());
                }
            }
            let pod = lab.pod(&name)?;
            mesh.control_planes.push(ControlPlane { pod, name, state, arguments, process: Mutex::new(None) });
            mesh.start_control_plane(number)?;
        }
        Ok(mesh)
    }
}

impl Mesh {
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    // --- configuration ---

    pub fn config_dir(&self) -> &Path {
        &self.config
    }

    /// Puts a configuration file in place, in one step.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let draft = self.lab.directory().join(format!("{name}.draft"));
        fs::write(&draft, text)?;
        fs::rename(&draft, self.config.join(name)).with_context(|| format!("write {name}"))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.config.join(name)).with_context(|| format!("remove {name}"))
    }

    // --- control plane ---

    /// Of the first control plane: authority, tokens used, workloads.
    pub fn state_dir(&self) -> &Path {
        &self.control_planes[0].state
    }

    /// What a proxy is given as `--control-plane`.
    pub fn control_plane_list(&self) -> String {
        let of = |c: &ControlPlane| SocketAddr::new(c.pod.ipv4().into(), GRPC_PORT).to_string();
        self.control_planes.iter().map(of).collect::<Vec<_>>().join(",")
    }

    /// The pod of a control plane.
    pub fn control_plane_pod(&self, number: usize) -> &Pod {
        &self.control_planes[number].pod
    }

    /// Kills a control plane, as a power cut would.
    pub fn kill_control_plane(&self, number: usize) {
        drop(self.slot(number).take());
    }

    /// Starts a control plane (again); it is ready when this returns.
    pub fn start_control_plane(&self, number: usize) -> Result<()> {
        let this = &self.control_planes[number];
        let process = this.pod.spawn(
            this.pod
                .command(self.binaries.control_plane())
                .arg("--config-dir")
                .arg(&self.config)
                .arg("--state-dir")
                .arg(&this.state)
                .args(&this.arguments),
            &this.name,
        )?;
        *self.slot(number) = Some(process);
        wait_for(READY_DEADLINE, "a ready control plane", || {
            self.has_ended(number) || self.control_plane_get(number, "/readyz").is_ok_and(|a| a.status == 200)
        })?;
        if self.has_ended(number) {
            bail!("the control plane ended: {}", self.lab.log_tails(30));
        }
        Ok(())
    }

    /// Asks an endpoint of a control plane's status port.
    pub fn control_plane_get(&self, number: usize, path: &str) -> Result<Answer> {
        let pod = &self.control_planes[number].pod;
        self.lab.get(SocketAddr::new(pod.ipv4().into(), STATUS_PORT), path)
    }

    fn slot(&self, number: usize) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.control_planes[number].process.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn has_ended(&self, number: usize) -> bool {
        self.slot(number).as_mut().is_none_or(|process| !process.is_running())
    }

    // --- command line ---

    /// Runs `outrigger` in the pod of the first control plane.
    pub fn outrigger(&self, arguments: &[&str]) -> Result<Output> {
        process::run(self.outrigger_command().args(arguments), Duration::from_secs(20))
    }

    /// `outrigger status`, from wherever the lab is.
    pub fn status(&self, arguments: &[&str]) -> Result<Output> {
        let all: Vec<_> = ["status"].into_iter().chain(arguments.iter().copied()).collect();
        self.outrigger(&all)
    }

    /// A join token of the first control plane's authority.
    pub fn token(&self, namespace: &str, service_account: &str, arguments: &[&str]) -> Result<String> {
        let output = process::run(
            self.outrigger_command()
                .args(["token", "create", "--namespace", namespace, "--service-account", service_account])
                .arg("--state-dir")
                .arg(self.state_dir())
                .args(arguments),
            Duration::from_secs(20),
        )?;
        Ok(output.success().context("outrigger token create")?.trim().to_owned())
    }

    fn outrigger_command(&self) -> Command {
        self.control_planes[0].pod.command(self.binaries.outrigger())
    }

    // --- workloads ---

    /// A workload in namespace `shop`, with service account `name` and label `app=name` unless told otherwise.
    pub fn workload(&self, name: &str) -> WorkloadBuilder<'_> {
        WorkloadBuilder::new(self, name)
    }
}
