//! Where the demo plays: the shop's workloads with their sidecars, and what can be done to them.
//!
//! [`pods`] is the real thing, a network namespace with redirect rules for each workload. [`loopback`] stands in where
//! namespaces are forbidden: the same programs on addresses of 127.0.0.0/8, explicit listeners instead of redirects,
//! and a relay instead of a packet capture. The play does not know which of them it is on.

pub(crate) mod loopback;
pub(crate) mod pods;
mod relay;

use std::{net::SocketAddr, path::Path};

use anyhow::Result;
use outrigger_lab::{Captured, Lab, Pod};

use super::traces::Backend;

/// One workload of the shop.
pub(crate) struct Role {
    pub(crate) name: &'static str,
    pub(crate) service_account: &'static str,
    pub(crate) version: &'static str,
    /// The service that it calls, with the virtual address of that service.
    next: Option<Next>,
}

#[derive(Clone, Copy)]
struct Next {
    host: &'static str,
    address: &'static str,
}

const ORDERS: Option<Next> = Some(Next { host: "orders.shop", address: "10.96.0.10:80" });
const PAYMENTS: Option<Next> = Some(Next { host: "payments.shop", address: "10.96.0.11:80" });

/// The workloads; each is one pod.
pub(crate) const CAST: [Role; 5] = [
    Role { name: "web", service_account: "web", version: "v1", next: ORDERS },
    Role { name: "orders-v1-a", service_account: "orders", version: "v1", next: PAYMENTS },
    Role { name: "orders-v1-b", service_account: "orders", version: "v1", next: PAYMENTS },
    Role { name: "orders-v2", service_account: "orders", version: "v2", next: PAYMENTS },
    Role { name: "payments", service_account: "payments", version: "v1", next: None },
];

pub(crate) const WEB: usize = 0;
/// The instance that dies: its version has another one.
pub(crate) const VICTIM: usize = 2;
pub(crate) const PAYMENTS_ROLE: usize = 4;

/// Where the shop's programs listen.
const APP_PORT: u16 = 8080;

/// Roles are named by their index in [`CAST`].
pub(crate) trait Stage {
    /// What this stage is, for the first line.
    fn describe(&self) -> String;

    /// What is recorded on this stage: `packets` and where.
    fn wire(&self) -> &'static str;

    /// Configuration, state and logs of everything.
    fn directory(&self) -> &Path;

    /// Keeps the directory after the end.
    fn keep_directory(&mut self);

    /// Where visitors are, and where they find the shop.
    fn shopfront(&self) -> (Place, SocketAddr);

    /// Where strangers are, and the door of payments that is open to them; the way to it is recorded.
    fn outside(&self) -> (Place, SocketAddr);

    /// Puts a configuration file in place, in one step.
    fn configure(&self, file: &str, text: &str) -> Result<()>;

    fn record(&self) -> Result<Recording>;

    /// The body of a page of a sidecar's admin port.
    fn sidecar(&self, role: usize, path: &str) -> Result<String>;

    /// What a program of the shop has written so far.
    fn app_log(&self, role: usize) -> String;

    /// Kills program and sidecar of a workload, as a crash would.
    fn kill(&mut self, role: usize) -> Result<()>;

    fn kill_control_plane(&mut self) -> Result<()>;

    /// Starts it again; it is ready when this returns.
    fn start_control_plane(&mut self) -> Result<()>;

    /// Where the sidecars' spans are found, if anywhere.
    fn backend(&self) -> Option<&Backend>;

    /// What a visitor of the demo can try: a purpose and a command.
    fn invitations(&mut self) -> Vec<(&'static str, String)>;
}

/// A point in the network that code can be run at.
#[derive(Clone)]
pub(crate) enum Place {
    Here,
    Pod(Pod),
    /// Between the pods.
    Bridge(Lab),
}

impl Place {
    /// Runs `work` there; threads that it starts stay there.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        match self {
            Self::Here => Ok(work()),
            Self::Pod(pod) => pod.enter(work),
            Self::Bridge(lab) => lab.enter(work),
        }
    }
}

/// A recording of the wire that is going on.
pub(crate) enum Recording {
    Packets(outrigger_lab::Capture),
    Relayed(relay::Recording),
}

/// What was recorded.
pub(crate) enum Recorded {
    Packets(Captured),
    Relayed(relay::Recorded),
}

impl Recording {
    pub(crate) fn stop(self) -> Result<Recorded> {
        Ok(match self {
            Self::Packets(capture) => Recorded::Packets(capture.stop()?),
            Self::Relayed(recording) => Recorded::Relayed(recording.stop()),
        })
    }
}

impl Recorded {
    /// How often the bytes were seen.
    pub(crate) fn count(&self, needle: &str) -> usize {
        match self {
            Self::Packets(captured) => captured.count(needle.as_bytes()),
            Self::Relayed(recorded) => recorded.count(needle.as_bytes()),
        }
    }

    pub(crate) fn pieces(&self) -> u64 {
        match self {
            Self::Packets(captured) => captured.packets,
            Self::Relayed(recorded) => recorded.pieces,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Self::Packets(captured) => captured.bytes,
            Self::Relayed(recorded) => recorded.bytes(),
        }
    }

    /// What could not be searched.
    pub(crate) fn unsearched(&self) -> u64 {
        match self {
            Self::Packets(captured) => captured.unsearched(),
            Self::Relayed(_) => 0,
        }
    }
}

/// The configuration that both stages begin with.
fn first_configuration() -> [(&'static str, String); 3] {
    [
        ("services.yaml", include_str!("config/services.yaml").to_owned()),
        ("policies.yaml", strict().to_owned()),
        (SPLIT_FILE, split(90)),
    ]
}

pub(crate) const POLICIES_FILE: &str = "policies.yaml";
pub(crate) const SPLIT_FILE: &str = "split.yaml";

/// The routes of orders, with this percentage for version 1.
pub(crate) fn split(v1: u32) -> String {
    let text = include_str!("config/split.yaml");
    text.replace("@V1@", &v1.to_string()).replace("@V2@", &(100 - v1).to_string())
}

pub(crate) fn strict() -> &'static str {
    include_str!("config/policies.yaml")
}

pub(crate) fn permissive() -> &'static str {
    include_str!("config/policies-permissive.yaml")
}

/// The workloads' programs as arguments of `outrigger`.
fn app_arguments(role: &Role, listen: SocketAddr, next: Option<&str>) -> Vec<String> {
    let mut arguments = vec!["demo-app".to_owned(), "--listen".to_owned(), listen.to_string()];
    arguments.extend(["--name".to_owned(), format!("{} {}", role.service_account, role.version)]);
    if let (Some(next), Some(address)) = (&role.next, next) {
        arguments.extend(["--next", address, "--next-host", next.host].map(str::to_owned));
    }
    arguments
}
