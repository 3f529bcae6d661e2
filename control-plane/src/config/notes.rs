//! Values that have a grammar: parsed, or noted under the path of their field.

use std::{
    net::IpAddr,
    num::{NonZeroU16, NonZeroU32},
    sync::Arc,
    time::Duration,
};

use outrigger_certs::{SpiffeId, TrustDomain};
use outrigger_proto::{limits::MAX_TIMEOUT, spec::Protocol};

use crate::{
    duration,
    kinds::{AppProtocol, OUTRIGGER_API},
    yaml::Path,
};

/// What is wrong with one document, while it is read.
pub(super) struct Notes<'a> {
    trust_domain: &'a TrustDomain,
    problems: Vec<(Path, String)>,
}

impl<'a> Notes<'a> {
    pub(super) fn new(trust_domain: &'a TrustDomain) -> Self {
        Self { trust_domain, problems: Vec::new() }
    }

    pub(super) fn note(&mut self, path: &Path, reason: impl Into<String>) {
        self.problems.push((path.clone(), reason.into()));
    }

    /// Whether anything was noted so far.
    pub(super) fn any(&self) -> bool {
        !self.problems.is_empty()
    }

    pub(super) fn into_problems(self) -> Vec<(Path, String)> {
        self.problems
    }

    pub(super) fn at_most(&mut self, path: &Path, count: usize, limit: usize) {
        if count > limit {
            self.note(path, format!("has {count} entries; at most {limit} are taken"));
        }
    }

    pub(super) fn port(&mut self, path: &Path, port: i64) -> Option<NonZeroU16> {
        let legal = u16::try_from(port).ok().and_then(NonZeroU16::new);
        if legal.is_none() {
            self.note(path, format!("{port} is not a port: want 1 to 65535"));
        }
        legal
    }

    pub(super) fn weight(&mut self, path: &Path, weight: Option<i64>, max: u32) -> Option<NonZeroU32> {
        let weight = weight.unwrap_or(1);
        let legal = u32::try_from(weight).ok().filter(|weight| *weight <= max).and_then(NonZeroU32::new);
        if legal.is_none() {
            self.note(path, format!("{weight} is not a weight: want 1 to {max}"));
        }
        legal
    }

    /// The address of one machine.
    pub(super) fn ip(&mut self, path: &Path, text: &str) -> Option<IpAddr> {
        let Ok(ip) = text.parse::<IpAddr>() else {
            let hint = match text.parse::<ipnet::IpNet>() {
                Ok(_) => ": this is a network, want a single address",
                Err(_) if text.parse::<std::net::SocketAddr>().is_ok() => ": leave the port out",
                Err(_) => "",
            };
            self.note(path, format!("{text:?} is not an IP address{hint}"));
            return None;
        };
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            self.note(path, format!("{ip} cannot be dialled"));
            return None;
        }
        Some(ip)
    }

    pub(super) fn identity(&mut self, path: &Path, text: &str) -> Option<SpiffeId> {
        let identity = match SpiffeId::parse(text) {
            Ok(identity) => identity,
            Err(reason) => {
                self.note(path, format!("{text:?} is not an identity: {reason}"));
                return None;
            }
        };
        if identity.trust_domain() != self.trust_domain.as_str() {
            let reason = format!(
                "{identity} is of trust domain {}; this mesh is {}, so nobody has it",
                identity.trust_domain(),
                self.trust_domain
            );
            self.note(path, reason);
            return None;
        }
        Some(identity)
    }

    /// Name of an object or a namespace: a DNS subdomain name, as in Kubernetes.
    pub(super) fn name(&mut self, path: &Path, text: &str) -> Option<Arc<str>> {
        if !is_subdomain(text) {
            let reason = format!(
                "{text:?} is not a name: want a-z, 0-9, - and . (not at the ends), at most 253 characters"
            );
            self.note(path, reason);
            return None;
        }
        Some(text.into())
    }

    /// A host name as clients write it; kept in lower case without trailing dot.
    pub(super) fn host(&mut self, path: &Path, text: &str) -> Option<Arc<str>> {
        let host = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let legal = |label: &str| {
            let byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(byte)
        };
        if host.len() > 253 || !host.split('.').all(legal) {
            let hint = match host.contains('*') {
                true => ": wildcards are not supported",
                false => "",
            };
            self.note(path, format!("{text:?} is not a host name{hint}"));
            return None;
        }
        if host.parse::<IpAddr>().is_ok() {
            self.note(path, format!("{text:?} is an IP address: it belongs in spec.addresses"));
            return None;
        }
        Some(host.into())
    }

    pub(super) fn label(&mut self, path: &Path, key: &str, value: &str) {
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        let legal = |text: &str| {
            let byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            text.len() <= 63 && text.bytes().all(byte)
        };
        if name.is_empty() || !legal(name) || !legal(value) || key.len() > 253 {
            self.note(&path.key(key), format!("{key:?}: {value:?} is not a label"));
        }
    }

    /// `1h30m`, `5s`, `300ms`. Zero is given back as such: what it means is the field's affair.
    pub(super) fn duration(&mut self, path: &Path, text: &str) -> Option<Duration> {
        let duration = duration::parse(text);
        match duration {
            None => {
                self.note(
                    path,
                    format!("{text:?} is not a duration: want for example \"5s\", \"300ms\" or \"1h30m\""),
                );
            }
            Some(duration) if duration > MAX_TIMEOUT => {
                self.note(path, format!("{text:?} is longer than a year; \"0s\" means no limit"));
                return None;
            }
            Some(_) => {}
        }
        duration
    }

    /// What kind of thing a reference names. `Service` and `MeshService` are the same where there is no
    /// Kubernetes.
    pub(super) fn service_kind(&mut self, path: &Path, group: Option<&str>, kind: &str) {
        let (outrigger_group, _) = OUTRIGGER_API.split_once('/').unwrap_or((OUTRIGGER_API, ""));
        let wanted = match kind {
            "Service" => ["", "core"],
            "MeshService" => [outrigger_group, outrigger_group],
            _ => {
                self.note(
                    &path.key("kind"),
                    format!("{kind:?} is not supported: want Service or MeshService"),
                );
                return;
            }
        };
        if let Some(group) = group.filter(|group| !wanted.contains(group)) {
            self.note(
                &path.key("group"),
                format!("{group:?} is not the group of {kind}, which is {:?}", wanted[0]),
            );
        }
    }
}

fn is_subdomain(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let label = |label: &str| {
        let bytes = label.as_bytes();
        match (bytes.first(), bytes.last()) {
            (Some(&first), Some(&last)) => {
                edge(first) && edge(last) && bytes.iter().all(|&b| edge(b) || b == b'-')
            }
            (None, _) | (_, None) => false,
        }
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl From<AppProtocol> for Protocol {
    fn from(protocol: AppProtocol) -> Self {
        match protocol {
            AppProtocol::Detect => Self::Detect,
            AppProtocol::Http => Self::Http,
            AppProtocol::Http2 => Self::Http2,
            AppProtocol::Grpc => Self::Grpc,
            AppProtocol::Tcp => Self::Tcp,
            AppProtocol::Tls => Self::Tls,
        }
    }
}
