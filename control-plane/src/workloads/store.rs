//! Workloads on disk, so that a restart of the control plane withdraws nobody.
//!
//! What was attested is kept as plain text, not as the signed registration: whoever can write the state
//! directory can read the authority's key in it anyway, and registrations of a short-lived mesh would have
//! expired by the restart.

use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    num::{NonZeroU16, NonZeroU64},
    path::Path,
};

use outrigger_certs::SpiffeId;
use outrigger_proto::spec::{Serve, State};
use serde::{Deserialize, Serialize};

use super::{Entry, Presence};
use crate::{files, index::WorkloadId};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    identity: String,
    instance: String,
    labels: BTreeMap<String, String>,
    addresses: Vec<IpAddr>,
    zone: String,
    /// Mesh port, application port.
    serves: Vec<(NonZeroU16, NonZeroU16)>,
    version: String,
    ready: bool,
    #[serde(default)]
    ready_since: Option<NonZeroU64>,
}

impl Saved {
    /// Draining workloads are not worth remembering.
    pub fn of(entry: &Entry) -> Option<Self> {
        let Presence { id, labels, addresses, zone, serves, version } = entry.presence.clone();
        (!entry.state.draining).then(|| Self {
            identity: id.identity.to_string(),
            instance: id.instance.to_string(),
            labels,
            addresses,
            zone: zone.to_string(),
            serves: serves.iter().map(|serve| (serve.mesh_port, serve.application_port)).collect(),
            version,
            ready: entry.state.ready,
            ready_since: entry.state.ready_since,
        })
    }

    fn presence(self) -> Option<(Presence, State)> {
        let serve = |(mesh_port, application_port)| Serve { mesh_port, application_port };
        let presence = Presence {
            id: WorkloadId {
                identity: SpiffeId::parse(&self.identity).ok()?,
                instance: self.instance.into(),
            },
            labels: self.labels,
            addresses: self.addresses,
            zone: self.zone.into(),
            serves: self.serves.into_iter().map(serve).collect(),
            version: self.version,
        };
        let state = State { ready: self.ready, draining: false, ready_since: self.ready_since };
        Some((presence, state))
    }
}

pub fn save(path: &Path, workloads: &[Saved]) -> io::Result<()> {
    files::write_json(path, &workloads)
}

/// What was saved. Nobody, if there is no file.
pub fn load(path: &Path) -> io::Result<Vec<(Presence, State)>> {
    let saved: Vec<Saved> = files::read_json(path)?.unwrap_or_default();
    Ok(saved.into_iter().filter_map(Saved::presence).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::workloads::Workloads;

    #[test]
    fn workloads_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("workloads.json");
        assert_eq!(load(&path).unwrap(), []);

        let presence = Presence {
            id: WorkloadId {
                identity: SpiffeId::parse("spiffe://mesh.local/ns/shop/sa/orders").unwrap(),
                instance: "a".into(),
            },
            labels: BTreeMap::from([("app".into(), "orders".into())]),
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            zone: "z".into(),
            serves: vec![Serve {
                mesh_port: 9443.try_into().unwrap(),
                application_port: 8080.try_into().unwrap(),
            }],
            version: "1".into(),
        };
        let state = State { ready: true, draining: false, ready_since: NonZeroU64::new(1_767_225_600_000) };
        let mut machine = Workloads::default();
        machine.restore([(presence.clone(), state)], Instant::now());
        let saved: Vec<_> = machine.entries().filter_map(Saved::of).collect();
        save(&path, &saved).unwrap();
        save(&path, &saved).unwrap();
        assert_eq!(load(&path).unwrap(), [(presence, state)]);

        std::fs::write(&path, "{").unwrap();
        assert!(load(&path).is_err(), "a damaged file is told, not taken for an empty one");
    }
}
