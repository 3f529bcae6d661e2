//! One workload: a pod, its redirect rules, its sidecar, its programs.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{Answer, Mesh, Pod, Process, pod::READY_DEADLINE, wait_for};

const STATUS_PORT: u16 = 15020;

/// What a workload will be.
#[must_use]
#[derive(Debug)]
pub struct WorkloadBuilder<'m> {
    mesh: &'m Mesh,
    name: String,
    namespace: String,
    service_account: String,
    labels: Vec<(String, String)>,
    token_arguments: Vec<String>,
    pod: Option<Pod>,
    capture: bool,
    init_arguments: Vec<String>,
    proxy_arguments: Vec<String>,
    variables: Vec<(String, String)>,
    identity: bool,
    wait: bool,
}

/// A workload with its sidecar running.
#[derive(Debug)]
pub struct Workload {
    pub pod: Pod,
    pub proxy: Process,
    /// Programs started with [`Self::run_app`]; dropping one ends it.
    pub apps: Vec<Process>,
    name: String,
    binary: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

impl<'m> WorkloadBuilder<'m> {
    pub(crate) fn new(mesh: &'m Mesh, name: &str) -> Self {
        Self {
            mesh,
            name: name.to_owned(),
            namespace: "shop".to_owned(),
            service_account: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            token_arguments: Vec::new(),
            pod: None,
            capture: true,
            init_arguments: Vec::new(),
            proxy_arguments: Vec::new(),
            variables: Vec::new(),
            identity: false,
            wait: true,
        }
    }

    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    pub fn service_account(mut self, service_account: &str) -> Self {
        service_account.clone_into(&mut self.service_account);
        self
    }

    /// Sets a label, over one of the same name.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.retain(|(present, _)| present != key);
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// An argument for `outrigger token create`.
    pub fn token_argument(mut self, argument: &str) -> Self {
        self.token_arguments.push(argument.to_owned());
        self
    }

    /// In a pod that is already there, instead of a new one.
    pub fn on(mut self, pod: &Pod) -> Self {
        self.pod = Some(pod.clone());
        self
    }

    /// Without redirect rules: connections come and go through `--serve` and `--forward` listeners.
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self.proxy_arg("--no-capture")
    }

    pub fn init_arg(mut self, argument: impl Into<String>) -> Self {
        self.init_arguments.push(argument.into());
        self
    }

    pub fn proxy_arg(mut self, argument: impl Into<String>) -> Self {
        self.proxy_arguments.push(argument.into());
        self
    }

    /// A variable of the sidecar's environment.
    pub fn proxy_env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Keeps key and certificate across restarts of the proxy.
    pub fn with_identity_dir(mut self) -> Self {
        self.identity = true;
        self
    }

    /// Does not wait until the sidecar is ready.
    pub fn without_waiting(mut self) -> Self {
        self.wait = false;
        self
    }

    /// Makes the token and the pod, installs the rules, starts the sidecar and waits until it is ready.
    pub fn start(self) -> Result<Workload> {
        let Self { mesh, name, namespace, service_account, labels, pod, .. } = self;
        let lab = mesh.lab();
        let mut token_arguments = self.token_arguments;
        for (key, value) in &labels {
            token_arguments.extend(["--label".to_owned(), format!("{key}={value}")]);
        }
        let borrowed: Vec<_> = token_arguments.iter().map(String::as_str).collect();
        let token = mesh.token(&namespace, &service_account, &borrowed)?;
        let pod = match pod {
            Some(pod) => pod,
            None => lab.pod(&name)?,
        };
        let scratch = |suffix: &str| lab.directory().join(format!("{name}-{suffix}")).display().to_string();
        let token_file = scratch("token");
        fs::write(&token_file, token)?;
        let mut arguments: Vec<String> =
            ["run", "--control-plane", &mesh.control_plane_list(), "--token-file", &token_file]
                .map(str::to_owned)
                .into();
        for (flag, value) in [
            ("--state-dir", scratch("state")),
            ("--access-log", scratch("access.log")),
            // No more threads than needed: tests run side by side.
            ("--workers", "1".to_owned()),
        ] {
            if !self.proxy_arguments.iter().any(|argument| argument == flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        if self.identity {
            arguments.extend(["--identity-dir".to_owned(), scratch("identity")]);
        }
        arguments.extend(self.proxy_arguments);

        let binary = mesh.binaries().proxy();
        if self.capture {
            // In a user namespace there is one uid only: the proxy's own connections are told by their mark.
            pod.run(pod.command(&binary).arg("init").args(&self.init_arguments))?
                .success()
                .with_context(|| format!("outrigger-proxy init in {name}"))?;
        }
        let variables = self.variables;
        let mut command = pod.command(&binary);
        command.args(&arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        let proxy = pod.spawn(&mut command, &format!("{name}-proxy"))?;
        let mut workload = Workload { pod, proxy, apps: Vec::new(), name, binary, arguments, variables };
        if self.wait {
            workload.wait_ready()?;
        }
        Ok(workload)
    }
}

impl Workload {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Starts a program in the pod; it ends with this workload.
    pub fn run_app(&mut self, command: &mut Command) -> Result<&mut Process> {
        let log_name = format!("{}-app{}", self.name, self.apps.len());
        let app = self.pod.spawn(command, &log_name)?;
        self.apps.push(app);
        self.apps.last_mut().context("just pushed")
    }

    pub fn wait_ready(&mut self) -> Result<()> {
        let proxy = &mut self.proxy;
        let pod = &self.pod;
        let mut last = String::new();
        let waited = wait_for(READY_DEADLINE, &format!("a ready sidecar of {}", self.name), || {
            let answer = status(pod, "/ready");
            last = format!("{answer:?}");
            !proxy.is_running() || answer.is_ok_and(|answer| answer.status == 200)
        });
        waited.with_context(|| format!("last answer: {last}"))?;
        if !proxy.is_running() {
            bail!("the sidecar of {} ended: {}", self.name, tail(&proxy.log()));
        }
        Ok(())
    }

    /// Asks the sidecar's status port (`/live`, `/ready`, `/metrics`) from outside the pod.
    pub fn status(&self, path: &str) -> Result<Answer> {
        status(&self.pod, path)
    }

    /// Asks the sidecar's admin port (`/config_dump`, `/stats`, …) from inside the pod.
    pub fn admin(&self, path: &str) -> Result<Answer> {
        self.pod.enter(|| crate::http::get(SocketAddr::from(([127, 0, 0, 1], 15000)), path))?
    }

    /// Starts the sidecar again with the same arguments, after it has ended or been killed.
    pub fn restart_proxy(&mut self) -> Result<()> {
        self.proxy.kill();
        let log_name = self.proxy.name().to_owned();
        let mut command = self.pod.command(&self.binary);
        command.args(&self.arguments).envs(self.variables.iter().map(|(name, value)| (name, value)));
        self.proxy = self.pod.spawn(&mut command, &log_name)?;
        Ok(())
    }

    /// The access log so far.
    pub fn access_log(&self) -> String {
        let path = self.value_of("--access-log").unwrap_or_default();
        fs::read_to_string(path).unwrap_or_default()
    }

    pub fn state_dir(&self) -> &Path {
        Path::new(self.value_of("--state-dir").unwrap_or_default())
    }

    pub fn identity_dir(&self) -> Option<&Path> {
        self.value_of("--identity-dir").map(Path::new)
    }

    fn value_of(&self, flag: &str) -> Option<&str> {
        let at = self.arguments.iter().position(|argument| argument == flag)?;
        self.arguments.get(at + 1).map(String::as_str)
    }
}

fn status(pod: &Pod, path: &str) -> Result<Answer> {
    pod.lab().get(SocketAddr::new(pod.ipv4().into(), STATUS_PORT), path)
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
