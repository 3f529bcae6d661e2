//! The mesh that the tests of resilience share: one caller, five hosts, and for each test services of its own.
//!
//! ```text
//!   web ──▶ a service that nobody else uses     10.97.x.y:80, a policy, some of the hosts as its endpoints
//!             └─▶ host 0 … host 4               an application of the test's on a port of its own
//! ```
//!
//! Circuits, budgets and caches belong to a service, so tests that use different ones do not disturb each other.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use outrigger_lab::{Lab, Mesh, Pod, Workload, wait_for};
use serde_json::Value;

use super::{
    SOON,
    app::{App, Asked, Say},
    call::{Call, Told},
    raw,
    yaml::{document, policy},
};

pub(crate) struct Farm {
    // Dropped in this order: programs before the pods' network.
    pub(crate) hosts: Vec<Workload>,
    pub(crate) web: Workload,
    pub(crate) mesh: Mesh,
    next: AtomicU16,
}

pub(crate) const HOSTS: usize = 5;
/// The first port of an application; each service has the next one.
const FIRST_PORT: u16 = 9000;
/// The services of all tests together have more series than a proxy keeps apart by default.
const MANY_SERIES: &str = "20000";

enum State {
    Closed,
    Open(Arc<Farm>),
    /// It could not be opened: told to every test that wanted it.
    Failed(String),
}

static FARM: Mutex<State> = Mutex::new(State::Closed);

/// Opens the farm for the first test that wants it.
pub(crate) fn open() -> Result<Arc<Farm>, String> {
    let mut state = FARM.lock().unwrap_or_else(PoisonError::into_inner);
    if matches!(*state, State::Closed) {
        let opened = Lab::named("farm").and_then(|lab| {
            Farm::build(&lab).map_err(|error| {
                lab.keep_logs();
                error.context(lab.log_tails(25))
            })
        });
        *state = match opened {
            Ok(farm) => State::Open(Arc::new(farm)),
            Err(error) => State::Failed(format!("the farm did not open: {error:#}")),
        };
    }
    match &*state {
        State::Open(farm) => Ok(Arc::clone(farm)),
        State::Failed(why) => Err(why.clone()),
        State::Closed => Err("the farm is closed".to_owned()),
    }
}

/// After the last test.
pub(crate) fn close() {
    *FARM.lock().unwrap_or_else(PoisonError::into_inner) = State::Closed;
}

impl Farm {
    /// In zone `a`: web and the hosts with even numbers. In zone `b`: the others.
    fn build(lab: &Lab) -> Result<Self> {
        let mesh = Mesh::builder().start(lab)?;
        // All at once: most of it is waiting.
        let (hosts, web) = thread::scope(|scope| {
            let mesh = &mesh;
            let host = |number: usize| {
                let zone = zone(number);
                let name = format!("host-{number}");
                mesh.workload(&name)
                    .service_account("farm")
                    .label("app", "farm")
                    .label("host", &number.to_string())
                    .proxy_arg("--zone")
                    .proxy_arg(zone)
                    .proxy_env("OUTRIGGER_METRICS_SERIES", MANY_SERIES)
                    .start()
            };
            let mut hosts = Vec::new();
            for number in 0..HOSTS {
                hosts.push(scope.spawn(move || host(number)));
            }
            let web = mesh.workload("web").proxy_arg("--zone").proxy_arg("a");
            let web = web.proxy_env("OUTRIGGER_METRICS_SERIES", MANY_SERIES);
            let web = scope.spawn(|| web.start());
            let hosts = hosts.into_iter().map(|host| host.join().expect("host")).collect::<Result<Vec<_>>>();
            (hosts, web.join().expect("web"))
        });
        Ok(Self { hosts: hosts?, web: web?, mesh, next: AtomicU16::new(0) })
    }

    pub(crate) fn lab(&self) -> &Lab {
        self.mesh.lab()
    }

    /// A service of this test's own, on these hosts.
    pub(crate) fn stand(&self, hosts: &[usize]) -> Builder<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Builder {
            farm: self,
            number,
            hosts: hosts.to_vec(),
            protocol: "http",
            policy: String::new(),
            more: String::new(),
            endpoint: Box::new(|_| String::new()),
            strangers: Vec::new(),
        }
    }

    /// What the caller's proxy says of clusters and circuits.
    pub(crate) fn clusters(&self) -> Result<Value> {
        clusters(&self.web)
    }

    /// What the control plane says.
    pub(crate) fn status(&self) -> Result<Value> {
        let answer = self.mesh.control_plane_get(0, "/status")?;
        serde_json::from_str(&answer.body).with_context(|| answer.body)
    }
}

pub(crate) fn clusters(caller: &Workload) -> Result<Value> {
    let answer = caller.admin("/clusters")?;
    serde_json::from_str(&answer.body).with_context(|| answer.body)
}

pub(crate) fn zone(host: usize) -> &'static str {
    if host.is_multiple_of(2) { "a" } else { "b" }
}

/// A service to be.
#[must_use]
pub(crate) struct Builder<'f> {
    farm: &'f Farm,
    number: u16,
    hosts: Vec<usize>,
    protocol: &'static str,
    policy: String,
    more: String,
    endpoint: Box<dyn Fn(usize) -> String + 'f>,
    strangers: Vec<IpAddr>,
}

/// A service with its endpoints' applications.
pub(crate) struct Stand<'f> {
    pub(crate) farm: &'f Farm,
    pub(crate) name: String,
    /// What callers dial.
    pub(crate) target: SocketAddr,
    /// Where the applications listen.
    pub(crate) port: u16,
    /// In the order of the hosts that were asked for; empty for a service without applications of ours.
    pub(crate) apps: Vec<App>,
    hosts: Vec<usize>,
}

impl<'f> Builder<'f> {
    pub(crate) fn protocol(self, protocol: &'static str) -> Self {
        Self { protocol, ..self }
    }

    /// What the TrafficPolicy says after its target: lines of YAML, each indented by two. Empty: there is no policy.
    pub(crate) fn policy(self, lines: &str) -> Self {
        Self { policy: lines.to_owned(), ..self }
    }

    /// More documents; `NAME` stands for the service's name.
    pub(crate) fn documents(self, text: &str) -> Self {
        Self { more: text.to_owned(), ..self }
    }

    /// More of each endpoint, by the number of its host, such as `, weight: 4`.
    pub(crate) fn endpoints(self, more: impl Fn(usize) -> String + 'f) -> Self {
        Self { endpoint: Box::new(more), ..self }
    }

    /// One more endpoint, which is no workload of the mesh.
    pub(crate) fn stranger(mut self, address: IpAddr) -> Self {
        self.strangers.push(address);
        self
    }

    /// Where the applications will listen.
    pub(crate) fn port(&self) -> u16 {
        FIRST_PORT + self.number
    }

    /// Without applications of ours.
    pub(crate) fn empty(self) -> Result<Stand<'f>> {
        let Self { farm, number, hosts, protocol, policy: lines, more, endpoint, strangers } = self;
        let [high, low] = (number + 1).to_be_bytes();
        let target = SocketAddr::from((Ipv4Addr::new(10, 97, high, low), 80));
        let name = format!("stand-{number}");
        let port = FIRST_PORT + number;
        let mut text = document("outrigger.dev/v1alpha1", "MeshService", &name);
        let _ = writeln!(text, "  addresses: [{}]", target.ip());
        let _ = writeln!(text, "  ports: [{{port: 80, targetPort: {port}, appProtocol: {protocol}}}]");
        let endpoints = hosts.iter().map(|host| (IpAddr::V4(farm.hosts[*host].pod.ipv4()), endpoint(*host)));
        let endpoints: Vec<_> =
            endpoints.chain(strangers.into_iter().map(|stranger| (stranger, String::new()))).collect();
        if !endpoints.is_empty() {
            text.push_str("  endpoints:\n");
        }
        for (address, more) in endpoints {
            let identity = "spiffe://mesh.local/ns/shop/sa/farm";
            let _ = writeln!(text, "  - {{address: \"{address}\", identity: \"{identity}\"{more}}}");
        }
        if !lines.is_empty() {
            let target = format!("  targetRef: {{kind: Service, name: {name}}}\n");
            let _ = write!(text, "---\n{}", policy("TrafficPolicy", &name, &(target + &lines)));
        }
        if !more.is_empty() {
            let _ = write!(text, "\n---\n{}", more.replace("NAME", &name));
        }
        farm.mesh.write(&format!("{name}.yaml"), &text)?;
        let stand = Stand { farm, name, target, port, apps: Vec::new(), hosts };
        stand.wait_known(&farm.web)?;
        Ok(stand)
    }

    /// With an application on each host: what it says, given the place of its host in the list.
    pub(crate) fn apps<H>(self, handler: H) -> Result<Stand<'f>>
    where
        H: Fn(usize, &Asked) -> Say + Clone + Send + Sync + 'static,
    {
        let (farm, port) = (self.farm, self.port());
        let start = |place: usize, host: usize| {
            let handler = handler.clone();
            App::start(&farm.hosts[host].pod, port, move |asked| handler(place, asked))
        };
        let apps = self.hosts.iter().enumerate().map(|(place, host)| start(place, *host));
        let apps = apps.collect::<Result<_>>()?;
        Ok(Stand { apps, ..self.empty()? })
    }
}

impl Stand<'_> {
    /// `NAMESPACE/NAME:PORT`, as admin pages name it.
    pub(crate) fn key(&self) -> String {
        format!("shop/{}:80", self.name)
    }

    /// Until a caller's proxy has the service with its policy.
    pub(crate) fn wait_known(&self, caller: &Workload) -> Result<()> {
        let mut last = Value::Null;
        let mut refused = Vec::new();
        let file = format!("{}.yaml", self.name);
        wait_for(SOON, &format!("{} in the control plane", self.name), || {
            last = self.farm.status().unwrap_or_default();
            let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
            refused = list(&last["configuration"]["errors"]);
            refused.retain(|error| error["file"] == file.as_str());
            !refused.is_empty() || list(&last["services"]).iter().any(|one| one["name"] == self.name.as_str())
        })
        .with_context(|| last["configuration"].to_string())?;
        if !refused.is_empty() {
            // Nobody else's configuration is taken as long as this is there.
            self.farm.mesh.remove(&file)?;
            bail!("{refused:?}");
        }
        // Asking for the address makes the proxy subscribe to it.
        drop(raw::connect(&caller.pod, self.target));
        wait_for(SOON, &format!("{} in the proxy of {}", self.name, caller.name()), || {
            let clusters = clusters(caller).unwrap_or_default();
            clusters["backends"].get(self.key()).is_some()
        })
    }

    pub(crate) fn get(&self, path: &str) -> Call {
        Call::get(self.target, path)
    }

    pub(crate) fn post(&self, path: &str, body: impl Into<Vec<u8>>) -> Call {
        Call::post(self.target, path, body)
    }

    /// Sends a call from the caller's pod.
    pub(crate) fn send(&self, call: &Call) -> Result<Told> {
        call.send(&self.farm.web.pod)
    }

    pub(crate) fn web(&self) -> &Pod {
        &self.farm.web.pod
    }

    /// The workload at a place of the list of hosts.
    pub(crate) fn host(&self, place: usize) -> &Workload {
        &self.farm.hosts[self.hosts[place]]
    }

    /// Requests by host so far.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.apps.iter().map(App::count).collect()
    }

    pub(crate) fn total(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// What the proxy of the caller tells of this service's circuits, the oldest first.
    pub(crate) fn transitions(&self) -> Result<Vec<Value>> {
        self.transitions_at(&self.farm.web)
    }

    pub(crate) fn transitions_at(&self, caller: &Workload) -> Result<Vec<Value>> {
        let clusters = clusters(caller)?;
        let all = clusters["circuits"]["transitions"].as_array().context("transitions")?.clone();
        Ok(all.into_iter().filter(|one| one["backend"] == self.key().as_str()).collect())
    }

    /// Waits for a transition of the endpoint at a place of the list.
    pub(crate) fn wait_for_circuit(&self, place: usize, to: &str) -> Result<Value> {
        let endpoint = SocketAddr::from((self.host(place).pod.ipv4(), self.port)).to_string();
        let mut last = Vec::new();
        let found = outrigger_lab::wait_for_some(SOON, &format!("{to} of {endpoint}"), || {
            last = self.transitions().unwrap_or_default();
            let mine = last.iter().rev().find(|one| one["endpoint"] == endpoint.as_str());
            mine.filter(|one| one["to"] == to).cloned()
        });
        found.with_context(|| format!("transitions: {last:?}"))
    }

    /// Endpoints, by place in the list, whose circuits are not closed now.
    pub(crate) fn not_closed(&self) -> Result<Vec<usize>> {
        let clusters = self.farm.clusters()?;
        let all = clusters["circuits"]["not_closed"].as_array().context("not_closed")?;
        let address = |place: &usize| SocketAddr::from((self.host(*place).pod.ipv4(), self.port)).to_string();
        let is_out = |place: &usize| {
            all.iter().any(|one| {
                one["backend"] == self.key().as_str() && one["endpoint"] == address(place).as_str()
            })
        };
        Ok((0..self.hosts.len()).filter(is_out).collect())
    }
}

/// What a check has found: that the feature is at work, or why it is not.
pub(crate) type Found = Result<(), String>;

/// Ends a check with what is not as it should be.
macro_rules! hold {
    ($condition:expr, $($words:tt)+) => {
        if !$condition {
            return Ok(Err(format!($($words)+)));
        }
    };
}
pub(crate) use hold;

/// Runs a check against a service that has the feature and against one that is the same but for the feature. It must hold
/// for the first and must not hold for the second, or it would not notice that the feature is gone.
pub(crate) fn with_and_without<'f>(
    with: &str,
    without: &str,
    stand: impl Fn(&str) -> Result<Stand<'f>> + Sync,
    check: impl Fn(&Stand<'f>) -> Result<Found> + Sync,
) -> Result<()> {
    with_and_without_of(&[with, without], |lines| stand(lines), check)
}

/// The same of two scenes that differ in something else than a policy.
pub(crate) fn with_and_without_of<T: Sync + ?Sized, S>(
    variants: &[&T; 2],
    stand: impl Fn(&T) -> Result<S> + Sync,
    check: impl Fn(&S) -> Result<Found> + Sync,
) -> Result<()> {
    let run = |variant: &T| check(&stand(variant)?);
    let run = &run;
    let [with, without] = thread::scope(|scope| {
        let runs = variants.map(|variant| scope.spawn(move || run(variant)));
        runs.map(|run| run.join().map_err(|_| anyhow!("a check panicked")).and_then(|found| found))
    });
    if let Err(why) = with.context("with the feature")? {
        bail!("{why}");
    }
    let found = without.context("without the feature")?;
    ensure!(found.is_err(), "the check cannot fail: it holds without the feature, too");
    Ok(())
}
