//! The shop that `protocols` and `addresses` share: a caller and a store, each with a sidecar, the store full of programs.
//!
//! ```text
//!   web ──▶ store   10.96.0.10 (and fd96::10) by the service `store`
//!                    port → target   what runs there
//!                      80 → 8080     the test origin: HTTP/1.1, HTTP/2, gRPC echo (declared http)
//!                      81 → 8081     nginx, HTTP/1.1 (declared http)
//!                      82 → 8082     nginx, HTTP/2 with prior knowledge (declared http2)
//!                      83 → 8083     nginx with TLS of its own (declared tls)
//!                      84 → 8084     WebSocket in Python (declared http)
//!                      85 → 8085     gRPC in Python (declared grpc)
//!                      86 → 8086     TCP that is closed half by half (declared tcp)
//!                      88 → 8080     the test origin again, undeclared
//!                    6379 → 6379     Redis (undeclared)
//!                    3306 → 3306     MariaDB, which speaks first (undeclared)
//!                    3307 → 3306     MariaDB (declared tcp)
//!   outside          192.0.2.7       a host that is not in the mesh
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, anyhow};
use outrigger_lab::{Lab, Mesh, Pod, Workload, find_program};

use super::{origin::Origin, peers, yaml::Service};

pub(crate) struct Shop {
    // Dropped in this order: programs before the pods' network.
    pub(crate) origin: Origin,
    pub(crate) store: Workload,
    pub(crate) web: Workload,
    pub(crate) outside_origin: Origin,
    pub(crate) outside: Pod,
    pub(crate) mesh: Mesh,
}

pub(crate) const VIRTUAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
pub(crate) const VIRTUAL6: &str = "fd96::10";
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

enum State {
    Closed,
    Open(Arc<Shop>),
    /// It could not be opened: told to every test that wanted it.
    Failed(String),
}

static SHOP: Mutex<State> = Mutex::new(State::Closed);

/// Opens the shop for the first test that wants it.
pub(crate) fn open() -> Result<Arc<Shop>, String> {
    let mut state = SHOP.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, State::Closed) {
        *state = match build() {
            Ok(shop) => State::Open(Arc::new(shop)),
            Err(error) => State::Failed(format!("the shop did not open: {error}")),
        };
    }
    match &*state {
        State::Open(shop) => Ok(Arc::clone(shop)),
        State::Failed(why) => Err(why.clone()),
        State::Closed => Err("the shop is closed".to_owned()),
    }
}

/// After the last test.
pub(crate) fn close() {
    *SHOP.lock().unwrap_or_else(PoisonError::into_inner) = State::Closed;
}

fn build() -> Result<Shop, String> {
    let lab = Lab::named("shop").map_err(|error| format!("{error:#}"))?;
    furnish(&lab).map_err(|error| {
        lab.keep_logs();
        format!("{error:#}\n{}", lab.log_tails(25))
    })
}

fn furnish(lab: &Lab) -> Result<Shop> {
    let service = Service::new("store")
        .address(&VIRTUAL.to_string())
        .address(VIRTUAL6)
        .port(80, 8080, "http")
        .port(81, 8081, "http")
        .port(82, 8082, "http2")
        .port(83, 8083, "tls")
        .port(84, 8084, "http")
        .port(85, 8085, "grpc")
        .port(86, 8086, "tcp")
        .port(88, 8080, "")
        .port(6379, 6379, "")
        .port(3306, 3306, "")
        .port(3307, 3306, "tcp");
    let mesh = Mesh::builder().file("store.yaml", service.yaml()).start(lab)?;
    let outside = lab.pod("outside")?;
    outside.add_address(IpAddr::V4(OUTSIDE))?;
    let outside_origin = Origin::start(&outside, 8080, "outside")?;
    let store_pod = lab.pod("store")?;
    let origin = Origin::start(&store_pod, 8080, "store")?;
    let mut store = mesh.workload("store").on(&store_pod).start()?;
    let web = mesh.workload("web").start()?;
    stock(lab, &mut store)?;
    Ok(Shop { origin, store, web, outside_origin, outside, mesh })
}

/// Starts the real programs that this machine has.
fn stock(lab: &Lab, store: &mut Workload) -> Result<()> {
    let pod = store.pod.clone();
    let mut ports = Vec::new();
    if find_program("nginx").is_some() && find_program("openssl").is_some() {
        let certificate = own_certificate(lab, &pod)?;
        let http = format!(
            "  server {{ listen 8081; }}
  server {{ listen 8082 http2; location /nginx {{ return 200 \"nginx $server_protocol\\n\"; }} }}
  server {{ listen 8083 ssl; ssl_certificate {certificate}.crt; ssl_certificate_key {certificate}.key;
    location / {{ return 200 \"own tls $ssl_server_name\\n\"; }} }}"
        );
        store.run_app(&mut peers::nginx(lab, &pod, &http)?)?;
        ports.extend([8081, 8082, 8083]);
    }
    if peers::python().is_some() {
        store.run_app(peers::script(&pod, "websocket_peer.py").args(["serve", "0.0.0.0", "8084"]))?;
        store.run_app(peers::script(&pod, "grpc_peer.py").args(["serve", "0.0.0.0:8085", "store"]))?;
        ports.extend([8084, 8085]);
    }
    if find_program("redis-server").is_some() {
        let mut redis = pod.command("redis-server");
        redis.args(["--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""]);
        store.run_app(redis.current_dir(lab.directory()))?;
        ports.push(6379);
    }
    if find_program("mariadbd").is_some() {
        store.run_app(&mut peers::mariadb(lab, &pod, 3306)?)?;
        ports.push(3306);
    }
    ports.into_iter().try_for_each(|port| pod.wait_listening(port))
}

/// Of the application's own, for TLS that the mesh must leave alone; the path without its ending.
fn own_certificate(lab: &Lab, pod: &Pod) -> Result<String> {
    let path = lab.directory().join("own").display().to_string();
    pod.run(
        pod.command("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"])
            .args(["-days", "1", "-subj", "/CN=own.example", "-addext", "subjectAltName=DNS:own.example"])
            .args(["-keyout", &format!("{path}.key"), "-out", &format!("{path}.crt")]),
    )?
    .success()?;
    Ok(path)
}

impl Shop {
    /// A port of the store under its virtual address.
    pub(crate) fn store(&self, port: u16) -> SocketAddr {
        SocketAddr::from((VIRTUAL, port))
    }

    pub(crate) fn lab(&self) -> &Lab {
        self.mesh.lab()
    }

    /// Runs curl in the caller's pod; its output when it succeeds.
    pub(crate) fn curl(&self, arguments: &[&str]) -> Result<String> {
        let pod = &self.web.pod;
        let output =
            pod.run(pod.command("curl").args(["-sS", "--noproxy", "*", "--max-time", "30"]).args(arguments))?;
        let told = output.to_string();
        output.success().map_err(|_| anyhow!("curl {arguments:?}: {told}"))
    }
}
