//! The stage of network namespaces: a pod with redirect rules and a sidecar for each workload.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use outrigger_lab::{Lab, Mesh, Process, Workload, enter::Inside};

use super::{
    APP_PORT, CAST, PAYMENTS_ROLE, Place, Recording, Stage, WEB, app_arguments, first_configuration,
};
use crate::demo::{
    gate,
    interrupt::Interrupt,
    traces::{self, Backend, OTLP_PORT, QUERY_PORT, Query, Wish},
};

const CONTROL_PLANE_STATUS_PORT: u16 = 15014;
const READY: Duration = Duration::from_secs(20);

pub(crate) struct Pods {
    // Entrances and workloads hold pods, so they go before the lab.
    entrances: Vec<gate::Open>,
    workloads: Vec<Workload>,
    backend: Option<Backend>,
    _jaeger: Option<Process>,
    mesh: Mesh,
    lab: Lab,
    inside: Inside,
}

impl Pods {
    pub(crate) fn build(inside: &Inside, wish: &Wish, interrupt: &Interrupt) -> Result<Self> {
        let lab = Lab::named("demo")?;
        let built = Self::build_in(&lab, inside, wish, interrupt);
        if built.is_err() {
            lab.keep_logs();
        }
        built
    }

    fn build_in(lab: &Lab, inside: &Inside, wish: &Wish, interrupt: &Interrupt) -> Result<Self> {
        let mut builder = Mesh::builder().file("payments.yaml", include_str!("../config/payments.yaml"));
        for (file, text) in first_configuration() {
            builder = builder.file(file, text);
        }
        let mesh = builder.start(lab)?;
        let traces = Traces::open(lab, inside, wish)?;
        let mut workloads = Vec::new();
        for role in &CAST {
            interrupt.check()?;
            let mut workload = mesh
                .workload(role.name)
                .service_account(role.service_account)
                .label("app", role.service_account)
                .label("version", role.version)
                .without_waiting();
            for (name, value) in &traces.variables {
                workload = workload.proxy_env(name, value);
            }
            workloads.push(workload.start()?);
        }
        for (role, workload) in CAST.iter().zip(&mut workloads) {
            let next = role.next.map(|next| next.address);
            let arguments = app_arguments(role, (Ipv4Addr::UNSPECIFIED, APP_PORT).into(), next);
            let mut command = workload.pod.command(mesh.binaries().outrigger());
            workload.run_app(command.args(arguments))?;
        }
        for workload in &mut workloads {
            interrupt.check()?;
            workload.wait_ready()?;
            workload.pod.wait_listening(APP_PORT)?;
        }
        if let Some(backend) = traces.backend.as_ref().filter(|backend| backend.ours) {
            backend.wait_ready(READY).context("Jaeger")?;
        }
        Ok(Self {
            entrances: traces.entrances,
            workloads,
            backend: traces.backend,
            _jaeger: traces.jaeger,
            mesh,
            lab: lab.clone(),
            inside: inside.clone(),
        })
    }
}

/// What there is for traces before the first sidecar starts.
#[derive(Default)]
struct Traces {
    variables: Vec<(String, String)>,
    backend: Option<Backend>,
    jaeger: Option<Process>,
    entrances: Vec<gate::Open>,
}

impl Traces {
    fn open(lab: &Lab, inside: &Inside, wish: &Wish) -> Result<Self> {
        if matches!(wish, Wish::None) {
            return Ok(Self::default());
        }
        let pod = lab.pod("traces")?;
        let (place, address) = (Place::Pod(pod.clone()), pod.ipv4());
        let variables = wish.variables(&format!("http://{address}:{OTLP_PORT}"));
        let mut this = Self { variables, ..Self::default() };
        this.backend = Some(match wish {
            Wish::Start(program) => {
                let config = traces::jaeger_config(lab.directory(), &address.to_string())?;
                let mut command = pod.command(program);
                this.jaeger = Some(pod.spawn(command.arg("--config").arg(config), "jaeger")?);
                let query = SocketAddr::from((address, QUERY_PORT));
                let entrance = gate::Open::new(inside.outer_pid, gate::TRACES, &place, query);
                let page = entrance.as_ref().map_or(query, |open| open.address);
                this.entrances.extend(entrance);
                Backend { query: Query::At(place, query), page: format!("http://{page}"), ours: true }
            }
            Wish::Use(outside) => {
                gate::open_exit(inside.outer_pid, gate::OTLP_EXIT, &place, (address, OTLP_PORT).into())?;
                let socket = gate::exit(inside.outer_pid, gate::QUERY_EXIT);
                Backend {
                    query: Query::Through(socket),
                    page: format!("http://{}", outside.query),
                    ours: false,
                }
            }
            Wish::None => return Ok(this),
        });
        Ok(this)
    }
}

impl Stage for Pods {
    fn describe(&self) -> String {
        format!("{} pods, each a network namespace with redirect rules and a sidecar", CAST.len())
    }

    fn wire(&self) -> &'static str {
        "packets between the pods"
    }

    fn directory(&self) -> &Path {
        self.lab.directory()
    }

    fn keep_directory(&mut self) {
        self.lab.keep_logs();
    }

    fn shopfront(&self) -> (Place, SocketAddr) {
        (Place::Pod(self.workloads[WEB].pod.clone()), (Ipv4Addr::LOCALHOST, APP_PORT).into())
    }

    fn outside(&self) -> (Place, SocketAddr) {
        let door = (self.workloads[PAYMENTS_ROLE].pod.ipv4(), APP_PORT).into();
        (Place::Bridge(self.lab.clone()), door)
    }

    fn configure(&self, file: &str, text: &str) -> Result<()> {
        self.mesh.write(file, text)
    }

    fn record(&self) -> Result<Recording> {
        Ok(Recording::Packets(self.lab.capture()?))
    }

    fn sidecar(&self, role: usize, path: &str) -> Result<String> {
        let answer = self.workloads[role].admin(path)?;
        if answer.status != 200 {
            bail!("{path} of {}: {}", CAST[role].name, answer.status);
        }
        Ok(answer.body)
    }

    fn app_log(&self, role: usize) -> String {
        self.workloads[role].apps.iter().map(Process::log).collect()
    }

    fn kill(&mut self, role: usize) -> Result<()> {
        let workload = &mut self.workloads[role];
        workload.proxy.signal(Signal::SIGKILL)?;
        for app in &mut workload.apps {
            app.kill();
        }
        workload.proxy.kill();
        Ok(())
    }

    fn kill_control_plane(&mut self) -> Result<()> {
        self.mesh.kill_control_plane(0);
        Ok(())
    }

    fn start_control_plane(&mut self) -> Result<()> {
        self.mesh.start_control_plane(0).context("control plane")
    }

    fn backend(&self) -> Option<&Backend> {
        self.backend.as_ref()
    }

    fn invitations(&mut self) -> Vec<(&'static str, String)> {
        let web = self.workloads[WEB].pod.shell_prefix(&self.inside);
        // The pod of the control plane has neither rules nor identity: from there, anybody is a stranger.
        let bridge = self.mesh.control_plane_pod(0).shell_prefix(&self.inside);
        let outrigger = self.mesh.binaries().outrigger();
        let mut invitations = Vec::new();
        let (place, shop) = self.shopfront();
        if let Some(open) = gate::Open::new(self.inside.outer_pid, gate::SHOP, &place, shop) {
            invitations.push(("the shop, from here", format!("curl -si http://{}/", open.address)));
            self.entrances.push(open);
        }
        let control = Place::Pod(self.mesh.control_plane_pod(0).clone());
        let status = (Ipv4Addr::LOCALHOST, CONTROL_PLANE_STATUS_PORT).into();
        if let Some(open) = gate::Open::new(self.inside.outer_pid, gate::STATUS, &control, status) {
            let ask = |what| {
                format!("{} {what} --control-plane-status http://{}", outrigger.display(), open.address)
            };
            invitations.extend([("the mesh", ask("status")), ("its traffic", ask("top"))]);
            self.entrances.push(open);
        }
        invitations.extend([
            ("a call through the mesh, in the pod of web", format!("{web} curl -si http://10.96.0.10/")),
            ("a call that is refused", format!("{bridge} curl -si http://{}/", self.outside().1)),
            ("a sidecar's metrics", format!("{web} curl -s http://127.0.0.1:15020/metrics")),
        ]);
        invitations
    }
}
