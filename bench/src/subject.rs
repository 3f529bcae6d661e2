//! Who is compared: two pods each, a load generator in one and nginx in the other, with or without sidecars between.
//!
//! All subjects are up at the same time and idle while another one is measured.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use outrigger_lab::{Lab, Mesh, Pod, Process, Workload, wait_for};
use serde_json::Value;

use crate::{closed_loop, envoy_config, open_loop, origin, pki, stream};

/// What the client dials where a sidecar captures it; nobody has this address.
const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

const READY: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// No sidecars: what client, server and the virtual network cost by themselves.
    Direct,
    Envoy,
    Outrigger,
}

/// What sidecars tell of their work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Metrics and an access log, as in all rows but one.
    Usual,
    /// As little as they can be told to. Ours goes on counting: its metrics have no switch.
    Off,
    /// As usual, and one request in a hundred traced; the spans go there.
    On { backend: Ipv4Addr },
}

/// How much a subject is to tell, before it is known where to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tells {
    Least,
    Usual,
    All,
}

pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) client: Pod,
    server: Pod,
    sidecars: Sidecars,
    nginx: Process,
    _backend: Option<Process>,
}

enum Sidecars {
    None,
    Envoy { client: Process, server: Process },
    Outrigger(Box<Ours>),
}

struct Ours {
    client: Workload,
    server: Workload,
    // Goes last: it holds the control plane.
    _mesh: Mesh,
}

/// Processor time of both sidecars.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) client: Duration,
    pub(crate) server: Duration,
}

/// Resident bytes of both sidecars.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    pub(crate) client: f64,
    pub(crate) server: f64,
}

impl Subject {
    /// Starts everything in a lab of its own and sends a request of each kind through it.
    pub(crate) fn start(kind: Kind, envoy: &Path) -> Result<Self> {
        Self::start_telling(kind, envoy, Tells::Usual)
    }

    /// A pair that differs from the other one in what it tells of its work: all that it can, or as little.
    pub(crate) fn start_pair(kind: Kind, envoy: &Path) -> Result<[Self; 2]> {
        Ok([Self::start_telling(kind, envoy, Tells::Least)?, Self::start_telling(kind, envoy, Tells::All)?])
    }

    fn start_telling(kind: Kind, envoy: &Path, tells: Tells) -> Result<Self> {
        let lab = Lab::named(&format!("bench-{}", kind.name()))?;
        let subject = Self::start_in(&lab, kind, envoy, tells)
            .and_then(|subject| subject.try_each_protocol().map(|()| subject))
            .with_context(|| format!("{}\n{}", kind.name(), lab.log_tails(10)));
        if subject.is_err() {
            lab.keep_logs();
        }
        subject
    }

    fn start_in(lab: &Lab, kind: Kind, envoy: &Path, tells: Tells) -> Result<Self> {
        let mut watch = if tells == Tells::Least { Watch::Off } else { Watch::Usual };
        let mut backend = None;
        if tells == Tells::All {
            let pod = lab.pod("backend")?;
            let config = origin::write_backend(lab.directory())?;
            backend = Some(pod.spawn(pod.command("nginx").arg("-c").arg(config), "backend")?);
            pod.wait_listening(origin::OTLP_PORT)?;
            watch = Watch::On { backend: pod.ipv4() };
        }
        let (client, server, sidecars) = match kind {
            Kind::Direct => (lab.pod("client")?, lab.pod("server")?, Sidecars::None),
            Kind::Envoy => start_envoy(lab, envoy, watch)?,
            Kind::Outrigger => start_ours(lab, watch)?,
        };
        for pod in [&client, &server] {
            allow_many_connections(pod)?;
        }
        let nginx_config = origin::write(lab.directory())?;
        let nginx = server.spawn(server.command("nginx").arg("-c").arg(nginx_config), "nginx")?;
        stream::serve(&server)?;
        Ok(Self { kind, client, server, sidecars, nginx, _backend: backend })
    }

    /// Where the client finds a port of the server.
    pub(crate) fn target(&self, port: u16) -> SocketAddr {
        let address = if self.kind == Kind::Direct { self.server.ipv4() } else { VIRTUAL };
        (address, port).into()
    }

    pub(crate) fn url(&self, port: u16, path: &str) -> String {
        format!("http://{}{path}", self.target(port))
    }

    pub(crate) fn has_sidecars(&self) -> bool {
        self.kind != Kind::Direct
    }

    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Ok(match self.processes() {
            Some((client, server)) => Cpu { client: client.cpu_time()?, server: server.cpu_time()? },
            None => Cpu::default(),
        })
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        let bytes = |process: &Process| process.resident_bytes().map(|bytes| bytes as f64);
        Ok(match self.processes() {
            Some((client, server)) => Memory { client: bytes(client)?, server: bytes(server)? },
            None => Memory::default(),
        })
    }

    /// The cipher suites and key exchanges that Envoy counted on the hop.
    pub(crate) fn envoy_tls(&self) -> Result<Option<String>> {
        if self.kind != Kind::Envoy {
            return Ok(None);
        }
        let stats =
            self.server.run(self.server.command("curl").args(["-s", "127.0.0.1:15000/stats?filter=ssl"]))?;
        let names: Vec<_> = stats
            .success()?
            .lines()
            .filter_map(|line| {
                let (name, count) = line.split_once(": ")?;
                let (_, kind) = name.split_once(".ssl.")?;
                let (what, value) = kind.split_once('.')?;
                (["ciphers", "curves"].contains(&what) && count != "0").then(|| value.to_owned())
            })
            .collect();
        Ok(Some(names.join(", ")))
    }

    /// A request to each of many services, so that there is as much to tell as there can be.
    pub(crate) fn ask_many(&self) -> Result<()> {
        if self.kind != Kind::Outrigger {
            return Ok(());
        }
        let request = b"GET /1k HTTP/1.1\r\nHost: server.bench\r\n\r\n";
        self.client.enter(|| {
            for number in 0..MANY {
                let target = (one_of_many(number), origin::H1_PORT).into();
                wait_for(READY, "an answer of one of many services", || {
                    open_loop::exchange(&mut None, target, request).is_ok()
                })?;
            }
            Ok(())
        })?
    }

    /// The page with the metrics of the caller's sidecar, and where it is as seen from its pod.
    pub(crate) fn metrics_page(&self) -> Option<(SocketAddr, &'static str)> {
        match self.kind {
            Kind::Direct => None,
            Kind::Envoy => Some((([127, 0, 0, 1], 15000).into(), "/stats/prometheus")),
            Kind::Outrigger => Some((([127, 0, 0, 1], 15020).into(), "/metrics")),
        }
    }

    fn processes(&self) -> Option<(&Process, &Process)> {
        match &self.sidecars {
            Sidecars::None => None,
            Sidecars::Envoy { client, server } => Some((client, server)),
            Sidecars::Outrigger(ours) => Some((&ours.client.proxy, &ours.server.proxy)),
        }
    }

    fn try_each_protocol(&self) -> Result<()> {
        let brief = Duration::from_secs(1);
        let mut last = String::new();
        for (what, port) in
            [("HTTP/1.1", origin::H1_PORT), ("HTTP/2", origin::H2_PORT), ("TCP", origin::TCP_PORT)]
        {
            wait_for(READY, what, || {
                let load = match port {
                    origin::H1_PORT => closed_loop::wrk(&self.client, &self.url(port, "/1k"), 1, &[], brief),
                    origin::H2_PORT => closed_loop::h2load(&self.client, &self.url(port, "/1k"), 1, 1, brief),
                    _ => stream::connects(&self.client, self.target(port), 1, brief),
                };
                last = format!("{load:?}");
                load.is_ok_and(|load| load.done > 0 && load.failed == 0)
            })
            .with_context(|| format!("no answer through the pair: {last}"))?;
        }
        Ok(())
    }

    /// An error when one of the processes has ended meanwhile.
    pub(crate) fn check(&mut self) -> Result<()> {
        let mut processes = vec![&mut self.nginx];
        match &mut self.sidecars {
            Sidecars::None => {}
            Sidecars::Envoy { client, server } => processes.extend([client, server]),
            Sidecars::Outrigger(ours) => {
                processes.extend([&mut ours.client.proxy, &mut ours.server.proxy]);
            }
        }
        for process in processes {
            if !process.is_running() {
                bail!("{} of {} ended: {}", process.name(), self.kind.name(), process.log());
            }
        }
        Ok(())
    }
}

// === Envoy ===

fn start_envoy(lab: &Lab, envoy: &Path, watch: Watch) -> Result<(Pod, Pod, Sidecars)> {
    let (client, server) = (lab.pod("client")?, lab.pod("server")?);
    let certs = pki::write(&lab.directory().join("certs"))?;
    let log = |side: &str| lab.directory().join(format!("access-{side}.log"));
    let client_config = envoy_config::client(server.ipv4(), &certs, &log("client"), watch);
    let server_config = envoy_config::server(server.ipv4(), &certs, &log("server"), watch);
    let sidecars = Sidecars::Envoy {
        client: run_envoy(&client, envoy, &client_config)?,
        server: run_envoy(&server, envoy, &server_config)?,
    };
    Ok((client, server, sidecars))
}

fn run_envoy(pod: &Pod, envoy: &Path, config: &Value) -> Result<Process> {
    let directory = pod.lab().directory();
    let rules = directory.join("redirect.nft");
    fs::write(&rules, redirect_rules())?;
    pod.run(pod.command("nft").arg("-f").arg(&rules))?.success().context("redirect rules for Envoy")?;
    let path = directory.join(format!("envoy-{}.json", pod.name()));
    fs::write(&path, serde_json::to_vec_pretty(config)?)?;
    let mut command = pod.command(envoy);
    command.arg("-c").arg(path).args([
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
    ]);
    let process = pod.spawn(&mut command, &format!("envoy-{}", pod.name()))?;
    let admin = || -> Result<()> { pod.run(&mut admin_ready(pod))?.success().map(drop) };
    wait_for(READY, "a ready Envoy", || admin().is_ok()).with_context(|| process.log())?;
    Ok(process)
}

fn admin_ready(pod: &Pod) -> Command {
    let mut command = pod.command("curl");
    command.args(["-sf", "127.0.0.1:15000/ready"]);
    command
}

/// The same capture as `outrigger-proxy init` makes, without its skip lists.
fn redirect_rules() -> String {
    let (outbound, inbound, mark) =
        (envoy_config::OUTBOUND_PORT, envoy_config::INBOUND_PORT, envoy_config::MARK);
    format!(
        "table ip bench {{\n\
         \x20 chain output {{\n\
         \x20   type nat hook output priority -100;\n\
         \x20   meta mark {mark} return\n\
         \x20   oif lo return\n\
         \x20   meta l4proto tcp redirect to :{outbound}\n\
         \x20 }}\n\
         \x20 chain prerouting {{\n\
         \x20   type nat hook prerouting priority -100;\n\
         \x20   iif lo return\n\
         \x20   meta l4proto tcp redirect to :{inbound}\n\
         \x20 }}\n\
         }}\n"
    )
}

// === ours ===

const SERVICE: &str = "apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: server, namespace: bench}
spec:
  hosts: [server.bench.svc.cluster.local]
  addresses: [@ADDRESS@]
  ports:
  - {name: h1, port: @H1@, targetPort: @H1@, appProtocol: http}
  - {name: h2, port: @H2@, targetPort: @H2@, appProtocol: http2}
  - {name: policies, port: @POLICIES@, targetPort: @POLICIES@, appProtocol: http}
  - {name: tcp, port: @TCP@, targetPort: @TCP@, appProtocol: tcp}
  selector: {app: server}
---
apiVersion: outrigger.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: bench}
spec:
  targetRef: {group: outrigger.dev, kind: MeshService, name: server}
  action: allow
  rules:
  - from: {identities: [\"@CLIENT@\"]}
---
apiVersion: outrigger.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: everything, namespace: bench}
spec:
  targetRef: {group: outrigger.dev, kind: MeshService, name: server, port: @POLICIES@}
  loadBalancer: {algorithm: peak-ewma, slowStart: 30s, panicPercent: 20}
  timeouts: {connect: 5s, request: 30s, perTry: 10s, responseHeader: 10s, streamIdle: 60s, maxConnectionAge: 1h}
  bulkhead:
    upstream: {maxConnections: 1000, maxRequests: 1000}
    endpoint: {maxConnections: 1000, maxRequests: 1000}
    route: {maxRequests: 1000}
    queue: {size: 100, timeout: 1s}
  outlierEjection: {latency: {percent: 500, minRequests: 20, window: 10s}}
  healthCheck: {http: {path: /1k}, interval: 1s}
  retries: {attempts: 3, unsafeMethods: true}
  hedging: {delay: p95}
  rateLimit:
  - {name: all, requests: 1000000, per: 1s, burst: 1000000}
  - {name: by-path, requests: 1000000, per: 1s, burst: 1000000, key: [{path: {}}]}
  fallback: {on: [breaker, no-endpoints, timeout, failure, \"500-599\"], answer: {status: 503}}
---
apiVersion: outrigger.dev/v1alpha1
kind: ServerPolicy
metadata: {name: everything, namespace: bench}
spec:
  selector: {app: server}
  ports:
  - port: @POLICIES@
    bulkhead:
      total: {maxConnections: 1000, maxRequests: 1000}
      perCaller: {maxConnections: 1000, maxRequests: 1000}
      queue: {size: 100, timeout: 1s}
    rateLimit:
    - {name: all, requests: 1000000, per: 1s, burst: 1000000}
    - {name: by-caller, requests: 1000000, per: 1s, burst: 1000000, key: [{caller: identity}]}
";

fn start_ours(lab: &Lab, watch: Watch) -> Result<(Pod, Pod, Sidecars)> {
    let service = SERVICE
        .replace("@ADDRESS@", &VIRTUAL.to_string())
        .replace("@H1@", &origin::H1_PORT.to_string())
        .replace("@H2@", &origin::H2_PORT.to_string())
        .replace("@POLICIES@", &origin::POLICIES_PORT.to_string())
        .replace("@TCP@", &origin::TCP_PORT.to_string())
        .replace("@CLIENT@", pki::CLIENT_ID);
    let mut mesh = Mesh::builder().file("server.yaml", service);
    if let Watch::On { .. } = watch {
        mesh = mesh.file("many.yaml", many_services());
    }
    let mesh = mesh.start(lab)?;
    let workload = |name: &str| {
        let workload = mesh.workload(name).namespace("bench");
        match watch {
            Watch::Usual => workload,
            Watch::Off => workload.proxy_arg("--access-log").proxy_arg("off"),
            Watch::On { backend } => workload
                .proxy_env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{backend}:{}", origin::OTLP_PORT))
                .proxy_env("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
                .proxy_env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
                .proxy_env("OTEL_TRACES_SAMPLER_ARG", "0.01")
                .proxy_arg("--trace-max-per-second")
                .proxy_arg("100000"),
        }
        .start()
    };
    let (server, client) = (workload("server")?, workload("client")?);
    let pods = (client.pod.clone(), server.pod.clone());
    Ok((pods.0, pods.1, Sidecars::Outrigger(Box::new(Ours { client, server, _mesh: mesh }))))
}

/// Services enough to fill the budget of series; all are the same server.
const MANY: u8 = 150;

fn many_services() -> String {
    let service = |number| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshService\nmetadata: {{name: server-{number}, namespace: bench}}\n\
             spec:\n  addresses: [{}]\n  ports: [{{port: {port}, targetPort: {port}, appProtocol: http}}]\n  \
             selector: {{app: server}}\n",
            one_of_many(number),
            port = origin::H1_PORT,
        )
    };
    (0..MANY).map(service).collect::<Vec<_>>().join("---\n")
}

fn one_of_many(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 96, 1, number)
}

/// Short connections by the ten thousand need all ports, and used ones again at once.
fn allow_many_connections(pod: &Pod) -> Result<()> {
    pod.enter(|| {
        fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16384 65535")?;
        fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
    })?
    .context("settings of the pod's network")
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Direct, Self::Envoy, Self::Outrigger];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Envoy => "Envoy",
            Self::Outrigger => "Outrigger",
        }
    }
}
