//! A service `store` whose ports each have a section of one ServerPolicy, and a port without any beside them, so that a
//! test can show what a section does and that it is the section that does it.
//!
//! ```text
//!   caller ──▶ 10.96.0.10:80 + N ──▶ store:8080 + N     N = 0: a port without a section; then one for each section
//!   stranger (no sidecar) ─────────▶ store:8080 + N     every HTTP port takes plaintext too
//! ```

use std::{fmt::Write, net::SocketAddr};

use anyhow::{Context, Result};
use outrigger_lab::{Lab, Mesh, MeshBuilder, Pod, Workload, wait_for, wait_for_some};
use serde_json::Value;

use super::{
    SOON,
    ask::Ask,
    booth::Booth,
    yaml::{Service, policy},
};

pub(crate) struct Guarded {
    // Dropped in this order: programs before the pods' network.
    pub(crate) booths: Vec<Booth>,
    pub(crate) store: Workload,
    pub(crate) callers: Vec<Workload>,
    pub(crate) mesh: Mesh,
}

pub(crate) const VIRTUAL: [u8; 4] = [10, 96, 0, 10];
pub(crate) const FILE: &str = "server.yaml";

/// Callers that neither try again nor stop asking: what the store says is what a test sees.
pub(crate) const PLAIN_CALLERS: &str = "  targetRef: {kind: Service, name: store}\n  \
     retries: {attempts: 0}\n  outlierEjection: {enabled: false}\n";

/// The policy of the ports from 8081 on, a section each. What is written in a section is flow style, such as
/// `rateLimit: [...]`.
pub(crate) fn server_policy(sections: &[&str]) -> String {
    let mut spec = "  selector: {app: store}\n  ports:\n  - {port: 8080, mtls: permissive}\n".to_owned();
    for (number, section) in sections.iter().enumerate() {
        let _ = writeln!(spec, "  - {{port: {}, mtls: permissive, {section}}}", 8081 + number);
    }
    policy("ServerPolicy", "store", &spec)
}

/// What a rate limit of the policy is called outside of it.
pub(crate) fn full_name(limit: &str) -> String {
    format!("ServerPolicy/shop/store/{limit}")
}

/// The service, its policy, and callers that change nothing of what they are told.
pub(crate) fn files(sections: &[&str]) -> MeshBuilder {
    let mut service = Service::new("store").address("10.96.0.10");
    for (number, section) in (0..).zip([""].iter().chain(sections)) {
        let protocol = if section.contains("protocol: tcp") { "tcp" } else { "http" };
        service = service.port(80 + number, 8080 + number, protocol);
    }
    Mesh::builder()
        .file("store.yaml", service.yaml())
        .file("callers.yaml", policy("TrafficPolicy", "store", PLAIN_CALLERS))
        .file(FILE, server_policy(sections))
}

impl Guarded {
    /// With a [`Booth`] behind every port. A caller is a name, or `NAME:SERVICE_ACCOUNT` where they differ.
    pub(crate) fn open(lab: &Lab, callers: &[&str], sections: &[&str]) -> Result<Self> {
        Self::with_booths(lab, callers, sections, |pod, port| Booth::start(pod, port, "store"))
    }

    pub(crate) fn with_booths(
        lab: &Lab,
        callers: &[&str],
        sections: &[&str],
        booth: impl Fn(&Pod, u16) -> Result<Booth>,
    ) -> Result<Self> {
        let mesh = files(sections).start(lab)?;
        let store = mesh.workload("store").start()?;
        let ports = 8080..=8080 + sections.len() as u16;
        let booths = ports.map(|port| booth(&store.pod, port)).collect::<Result<_>>()?;
        let caller = |text: &&str| {
            let (name, account) = text.split_once(':').unwrap_or((text, text));
            mesh.workload(name).service_account(account).start()
        };
        let callers = callers.iter().map(caller).collect::<Result<_>>()?;
        let this = Self { booths, store, callers, mesh };
        for caller in &this.callers {
            wait_for(SOON, "an answer on the port without a section", || {
                this.ask(0, "/").once(&caller.pod).is_ok_and(|told| told.is_good())
            })?;
        }
        Ok(this)
    }

    /// A request to the service's port of this number.
    #[expect(clippy::unused_self, reason = "reads as what it is: asking this store")]
    pub(crate) fn ask(&self, number: usize, path: &str) -> Ask {
        Ask::new(SocketAddr::from((VIRTUAL, 80 + number as u16)), path)
    }

    /// The same past the service, for pods without a sidecar.
    pub(crate) fn ask_directly(&self, number: usize, path: &str) -> Ask {
        Ask::new(SocketAddr::from((self.store.pod.ipv4(), 8080 + number as u16)), path)
    }

    /// `/limits` of the store's proxy.
    pub(crate) fn limits(&self) -> Result<Value> {
        let answer = self.store.admin("/limits")?;
        serde_json::from_str(&answer.body).context("/limits")
    }

    /// The rate limit of this name, once a request has come to it.
    pub(crate) fn rate_limit(&self, name: &str) -> Result<Value> {
        let (limits, name) = (self.limits()?, full_name(name));
        let all = limits["rate_limits"].as_array().context("rate_limits")?;
        all.iter().find(|limit| limit["policy"]["name"] == *name).cloned().with_context(|| limits.to_string())
    }

    /// A sample of the store's metrics; 0 where there is none yet.
    pub(crate) fn metric(&self, sample: &str) -> Result<u64> {
        let page = self.store.status("/metrics")?.body;
        let value = page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
        value.map_or(Ok(0), |value| value.trim().parse().with_context(|| format!("{sample} {value}")))
    }

    /// The bulkhead of the port of this number, once a request has come to it.
    pub(crate) fn hall(&self, number: usize) -> Result<Value> {
        let (limits, name) = (self.limits()?, format!("port/{}", 8080 + number));
        let halls = limits["bulkheads"].as_array().context("bulkheads")?;
        halls.iter().find(|hall| hall["name"] == name).cloned().with_context(|| format!("{name} in {limits}"))
    }

    /// Waits until so many requests to the port of this number wait for a place.
    pub(crate) fn wait_queued(&self, number: usize, queued: u64) -> Result<()> {
        let mut last = None;
        wait_for(SOON, &format!("{queued} requests in the queue"), || {
            last = self.hall(number).ok();
            last.as_ref().is_some_and(|hall| hall["queued"] == queued)
        })
        .with_context(|| format!("{last:?}"))
    }

    /// Waits until so many requests to the port of this number are at the application.
    pub(crate) fn wait_inside(&self, number: usize, inside: u64) -> Result<()> {
        let booth = &self.booths[number];
        wait_for(SOON, &format!("{inside} requests inside"), || booth.inside() == inside)
            .with_context(|| format!("{} inside of {} that came", booth.inside(), booth.requests()))
    }

    /// Puts other sections in force and waits until the store's proxy has them.
    pub(crate) fn change(&self, sections: &[&str]) -> Result<()> {
        let generation = || -> Option<(u64, Value)> {
            let status = self.mesh.status(&["-o", "json"]).ok()?;
            let status: Value = serde_json::from_str(&status.stdout).ok()?;
            Some((status["configuration"]["generation"].as_u64()?, status))
        };
        let (before, _) = wait_for_some(SOON, "a status", generation)?;
        self.mesh.write(FILE, &server_policy(sections))?;
        let identity = "spiffe://mesh.local/ns/shop/sa/store";
        let mut last = None;
        wait_for(SOON, "the change to be acknowledged", || {
            last = generation();
            last.as_ref().is_some_and(|(generation, status)| {
                let proxies = status["proxies"].as_array();
                *generation > before
                    && proxies.into_iter().flatten().any(|proxy| {
                        proxy["identity"] == identity
                            && proxy["acked_generation"].as_u64().is_some_and(|acked| acked > before)
                    })
            })
        })
        .with_context(|| format!("{last:?}"))
    }
}
