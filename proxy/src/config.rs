//! `outrigger-proxy run`: its configuration, typed.
//!
//! Parsing is in `config/`: every value comes from a flag or from its `OUTRIGGER_*` variable, and all mistakes are
//! reported together. What is in [`Config`] is legal; what it names (files, ports) may still be missing or taken.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use outrigger_proto::spec::DestinationKey;

use crate::{access_log, metrics::merge};

mod args;
pub mod cli;
pub mod otel;
pub mod read;
pub mod settings;
pub(crate) mod variables;

#[cfg(test)]
mod tests;

pub use args::RunArgs;
pub use otel::Otel;

#[derive(Clone, Debug)]
pub struct Config {
    /// In the order of preference; never empty.
    pub control_planes: Vec<HostPort>,
    pub token: Token,
    /// `None` with `--no-capture`.
    pub capture: Option<Capture>,
    /// Loopback only.
    pub admin_port: NonZeroU16,
    pub status_address: SocketAddr,
    /// `SO_MARK` of own sockets; `None`: unmarked.
    pub mark: Option<NonZeroU32>,
    pub forwards: Vec<Forward>,
    pub serves: Vec<Serve>,
    /// Own addresses, canonical; empty only until `app.rs` has asked the interfaces.
    pub addresses: Vec<IpAddr>,
    pub zone: Arc<str>,
    /// `None`: nothing is kept on disk and there is no admin socket.
    pub state_dir: Option<PathBuf>,
    pub identity_dir: Option<PathBuf>,
    pub workers: NonZeroUsize,
    pub drain_grace: Duration,
    pub access_log: AccessLog,
    /// `None`: JSON.
    pub access_log_format: Option<access_log::Format>,
    pub access_log_only: access_log::Only,
    /// Lines of a scrape at most, but for merged ones.
    pub metrics_series: usize,
    /// How long a series stays that nobody counts in; `None`: for ever.
    pub metrics_idle: Option<Duration>,
    pub merge_metrics: Vec<merge::Source>,
    /// What is sent to a telemetry backend.
    pub otel: Otel,
    /// A filter of `tracing-subscriber`, such as `info` or `warn,outrigger_proxy::sync=debug`.
    pub log: String,
}

/// A host (name or address, an IPv6 one without brackets) and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub host: Arc<str>,
    pub port: NonZeroU16,
}

/// Where the join token comes from. Debug output hides it.
#[derive(Clone, PartialEq, Eq)]
pub enum Token {
    Text(Arc<str>),
    /// Read again each time it is needed.
    File(PathBuf),
}

/// Ports that redirect rules point to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capture {
    pub outbound_port: NonZeroU16,
    pub inbound_port: NonZeroU16,
}

/// A plain local listener that stands for a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    pub local: SocketAddr,
    pub destination: DestinationKey,
}

/// A mesh listener before a local program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Serve {
    pub mesh: SocketAddr,
    pub application: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Off,
    Stdout,
    File(PathBuf),
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(hidden)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}
