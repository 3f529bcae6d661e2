//! What the port of a workload is called: reports of the called side know its number only.
//!
//! A snapshot of configuration and workloads, made for one question. Pure.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    num::NonZeroU16,
    sync::Arc,
};

use outrigger_certs::SpiffeId;

use crate::{
    config::{Config, Service},
    index::Workload,
};

pub struct Names {
    config: Arc<Config>,
    workloads: HashMap<SpiffeId, Vec<Arc<Workload>>>,
    known: RefCell<HashMap<(SpiffeId, String), Arc<str>>>,
}

impl Names {
    pub fn new(config: Arc<Config>, all: impl Iterator<Item = Arc<Workload>>) -> Self {
        let mut workloads: HashMap<SpiffeId, Vec<Arc<Workload>>> = HashMap::new();
        for workload in all {
            workloads.entry(workload.id.identity.clone()).or_default().push(workload);
        }
        Self { config, workloads, known: RefCell::default() }
    }

    /// The service port that leads to the port of a workload, `NAMESPACE/NAME:PORT`, if it is the only one; otherwise
    /// `NAMESPACE/SERVICE-ACCOUNT:PORT`.
    pub fn name(&self, workload: &SpiffeId, port: &str) -> Arc<str> {
        let place = (workload.clone(), port.to_owned());
        if let Some(name) = self.known.borrow().get(&place) {
            return name.clone();
        }
        let mut found = port.parse().map(|port| self.leading_to(workload, port)).unwrap_or_default();
        let name: Arc<str> = match (found.pop_first(), found.is_empty()) {
            (Some(only), true) => only.into(),
            _ => format!("{}/{}:{port}", workload.namespace(), workload.service_account()).into(),
        };
        self.known.borrow_mut().insert(place, name.clone());
        name
    }

    fn leading_to(&self, identity: &SpiffeId, port: NonZeroU16) -> BTreeSet<String> {
        let workloads = self.workloads.get(identity).map_or(&[][..], Vec::as_slice);
        let is_selected =
            |service: &Service| workloads.iter().any(|workload| workload.is_selected_by(service));
        let mut found = BTreeSet::new();
        for service in self.config.services.values() {
            let is_selected = is_selected(service);
            for candidate in &service.ports {
                let is_listed = || {
                    service.endpoints.iter().any(|it| it.identity == *identity && it.port(candidate) == port)
                };
                if (is_selected && candidate.target == port) || is_listed() {
                    found.insert(service.backend(candidate.port).to_string());
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use outrigger_certs::TrustDomain;

    use super::*;
    use crate::{
        config::{self, SourceFile},
        index::WorkloadId,
    };

    const FILE: &str = "
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: orders, namespace: shop}
spec: {ports: [{name: a, port: 80, targetPort: 8080}, {name: b, port: 90}], selector: {app: orders}}
---
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: twice, namespace: shop}
spec: {ports: [{port: 91, targetPort: 90}], selector: {app: orders}}
---
apiVersion: outrigger.dev/v1alpha1
kind: MeshService
metadata: {name: listed, namespace: bank}
spec:
  ports: [{port: 443, targetPort: 8443}]
  endpoints: [{address: 10.0.0.9, identity: spiffe://mesh.local/ns/shop/sa/legacy}]
";

    fn workload(name: &str, app: &str) -> Arc<Workload> {
        let identity = SpiffeId::new(&TrustDomain::parse("mesh.local").unwrap(), "shop", name).unwrap();
        Arc::new(Workload {
            id: WorkloadId { identity, instance: app.into() },
            labels: BTreeMap::from([("app".into(), app.into())]),
            addresses: vec![],
            zone: "".into(),
            serves: vec![],
            serving: true,
            ready_since: None,
            registered: 1,
        })
    }

    #[test]
    fn a_port_is_called_by_the_one_service_that_leads_there() {
        let files = [SourceFile { name: "a.yaml".into(), text: Ok(FILE.into()) }];
        let config = config::read(&files, &TrustDomain::parse("mesh.local").unwrap()).unwrap();
        let all = [workload("a", "orders"), workload("a", "other"), workload("b", "other")];
        let names = Names::new(Arc::new(config), all.into_iter());
        for (workload, port, expected) in [
            ("a", "8080", "shop/orders:80"),
            ("a", "90", "shop/a:90"),
            ("a", "80", "shop/a:80"),
            ("b", "8080", "shop/b:8080"),
            ("legacy", "8443", "bank/listed:443"),
            ("legacy", "443", "shop/legacy:443"),
            ("gone", "x", "shop/gone:x"),
        ] {
            let id = SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/{workload}")).unwrap();
            assert_eq!(&*names.name(&id, port), expected);
            assert_eq!(&*names.name(&id, port), expected, "asked again");
        }
    }
}
