//! Configuration documents, as short as the tests that write them.

use std::fmt::Write;

/// A service in namespace `shop` whose endpoints are the workloads labelled `app: NAME`.
pub(crate) struct Service {
    name: String,
    addresses: Vec<String>,
    ports: Vec<String>,
    selector: Vec<(String, String)>,
}

impl Service {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            addresses: Vec::new(),
            ports: Vec::new(),
            selector: vec![("app".to_owned(), name.to_owned())],
        }
    }

    /// A virtual address.
    pub(crate) fn address(mut self, address: &str) -> Self {
        self.addresses.push(address.to_owned());
        self
    }

    /// A port that clients dial, where the application listens, and what it speaks (empty: undeclared).
    pub(crate) fn port(mut self, port: u16, target: u16, protocol: &str) -> Self {
        let protocol = if protocol.is_empty() { String::new() } else { format!(", appProtocol: {protocol}") };
        self.ports.push(format!("{{name: p{port}, port: {port}, targetPort: {target}{protocol}}}"));
        self
    }

    /// Sets a label of the endpoints, over one of the same name.
    pub(crate) fn select(mut self, key: &str, value: &str) -> Self {
        self.selector.retain(|(present, _)| present != key);
        self.selector.push((key.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn yaml(&self) -> String {
        let Self { name, addresses, ports, selector } = self;
        let mut text = document("outrigger.dev/v1alpha1", "MeshService", name);
        let _ = writeln!(text, "  hosts: [{name}.shop.svc.cluster.local]");
        if !addresses.is_empty() {
            let quoted: Vec<_> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            let _ = writeln!(text, "  addresses: [{}]", quoted.join(", "));
        }
        text.push_str("  ports:\n");
        for port in ports {
            let _ = writeln!(text, "  - {port}");
        }
        let labels: Vec<_> = selector.iter().map(|(key, value)| format!("{key}: {value}")).collect();
        let _ = writeln!(text, "  selector: {{{}}}", labels.join(", "));
        text
    }
}

/// A route of one port of service `parent`, with one rule that splits by weight.
pub(crate) fn split(name: &str, parent: &str, port: u16, weights: &[(&str, u32)]) -> String {
    let mut text = document("gateway.networking.k8s.io/v1", "HTTPRoute", name);
    let _ = writeln!(text, "  parentRefs: [{{kind: Service, group: \"\", name: {parent}, port: {port}}}]");
    text.push_str("  rules:\n  - backendRefs:\n");
    for (backend, weight) in weights {
        let _ = writeln!(text, "    - {{name: {backend}, port: {port}, weight: {weight}}}");
    }
    text
}

/// Head of a document in namespace `shop`, up to `spec:`.
pub(crate) fn document(api: &str, kind: &str, name: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n")
}

/// A policy document of ours; `spec` is indented by two.
pub(crate) fn policy(kind: &str, name: &str, spec: &str) -> String {
    document("outrigger.dev/v1alpha1", kind, name) + spec
}
