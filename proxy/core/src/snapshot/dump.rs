//! A snapshot as text, for `/config_dump`: everything in force with its versions, sorted by key. Roots are counted,
//! not printed (`/certs` describes them); keys are no part of a snapshot.

use std::collections::BTreeMap;

use outrigger_proto::spec::{Backend, Destination, Inbound, Trust};
use serde::{Serialize, Serializer};

use super::{Entry, Snapshot};

#[derive(Serialize)]
struct Dump<'a> {
    inbound: Option<Versioned<'a, &'a Inbound>>,
    trust: Option<Versioned<'a, Roots<'a>>>,
    destinations: BTreeMap<String, Versioned<'a, &'a Destination>>,
    backends: BTreeMap<String, Versioned<'a, &'a Backend>>,
}

#[derive(Serialize)]
struct Versioned<'a, T> {
    version: &'a str,
    #[serde(rename = "resource")]
    value: T,
}

#[derive(Serialize)]
struct Roots<'a> {
    trust_domain: &'a str,
    roots: usize,
}

fn versioned<'a, T, U>(entry: &'a Entry<T>, view: impl FnOnce(&'a T) -> U) -> Versioned<'a, U> {
    Versioned { version: &entry.version, value: view(&entry.value) }
}

fn roots(trust: &Trust) -> Roots<'_> {
    Roots { trust_domain: trust.trust_domain.as_str(), roots: trust.roots.len() }
}

impl Serialize for Snapshot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let destinations = self.destinations.iter();
        let backends = self.backends.iter();
        Dump {
            inbound: self.inbound.as_ref().map(|entry| versioned(entry, |inbound| &*inbound.spec)),
            trust: self.trust.as_ref().map(|entry| versioned(entry, roots)),
            destinations: destinations
                .map(|(key, entry)| (key.to_string(), versioned(entry, |destination| &*destination.spec)))
                .collect(),
            backends: backends
                .map(|(key, entry)| (format!("backend/{key}"), versioned(entry, |backend| backend)))
                .collect(),
        }
        .serialize(serializer)
    }
}
