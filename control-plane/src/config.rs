//! Configuration as it is meant: validated objects, and everything that is wrong with the files they come
//! from.
//!
//! [`read`] takes the text of all files at once and gives either a whole [`Config`], in which every reference
//! resolves and nothing contradicts anything, or every error it can find, each with file, line, column and
//! field. There is no third outcome: a directory with one mistake in it changes nothing.
//!
//! ```text
//! text ──▶ yaml::parse ──▶ yaml::decode ──▶ service/route/… ──▶ check ──▶ Config
//!          syntax          shape            values                   references, conflicts
//! ```
//!
//! It reads no files (`config_dir.rs` does) and does not know who asks (`compile.rs` does).

mod check;
mod limits;
mod notes;
mod policy;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod traffic;
mod values;

use std::{collections::BTreeMap, fmt, sync::Arc};

use outrigger_certs::TrustDomain;
use serde::{Serialize, Serializer, de::DeserializeOwned};

use crate::{
    kinds::{DEFAULT_NAMESPACE, Document, Kind},
    yaml::{self, Node, Path, Place},
};
use notes::Notes;

pub use policy::{AuthorizationPolicy, Labels, ServerPolicy, ServerPort, Target};
pub use route::{BackendRef, HttpRoute, Parent, Rule};
pub use service::{Endpoint, Port, Service};
pub use traffic::{Fallback, Instead, TimeoutsWritten, TrafficPolicy, Usage};

/// What an object is called among those of its kind.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// A whole configuration without contradictions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    pub services: BTreeMap<ObjectName, Arc<Service>>,
    pub routes: BTreeMap<ObjectName, Arc<HttpRoute>>,
    pub traffic: BTreeMap<ObjectName, Arc<TrafficPolicy>>,
    pub authorization: BTreeMap<ObjectName, Arc<AuthorizationPolicy>>,
    pub server: BTreeMap<ObjectName, Arc<ServerPolicy>>,
}

#[derive(Clone, Debug)]
pub struct SourceFile {
    /// As errors show it: relative to the configuration directory.
    pub name: Arc<str>,
    /// Or why it cannot be read.
    pub text: Result<String, String>,
}

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ConfigError {
    pub file: Arc<str>,
    pub line: u64,
    pub column: u64,
    /// `MeshService shop/orders`; empty where the file as a whole is wrong.
    pub object: String,
    /// Path of the field; empty where it is the whole document.
    pub field: String,
    pub reason: String,
}

/// An object while it is checked: its value, unless that is broken, and where it was written.
struct Written<T> {
    value: Option<Arc<T>>,
    source: Source,
}

struct Source {
    file: Arc<str>,
    label: String,
    node: Node,
}

type Objects<T> = BTreeMap<ObjectName, Written<T>>;

/// Everything that was written, right or wrong.
#[derive(Default)]
struct Draft {
    services: Objects<Service>,
    routes: Objects<HttpRoute>,
    traffic: Objects<TrafficPolicy>,
    authorization: Objects<AuthorizationPolicy>,
    server: Objects<ServerPolicy>,
    errors: Vec<ConfigError>,
    /// Some document could not even be named: whether a reference dangles cannot be told.
    incomplete: bool,
}

/// Reads all files of a directory as one configuration.
pub fn read(files: &[SourceFile], trust_domain: &TrustDomain) -> Result<Config, Vec<ConfigError>> {
    let mut draft = Draft::default();
    for file in files {
        let text = file.text.as_ref().map_err(|reason| (Place::START, reason.clone()));
        match text.and_then(|text| yaml::parse(text)) {
            Ok(documents) => {
                for document in documents {
                    draft.document(file, document, trust_domain);
                }
            }
            Err((place, reason)) => {
                draft.incomplete = true;
                draft.errors.push(ConfigError::new(&file.name, place, "", "", reason));
            }
        }
    }
    check::check(&mut draft);
    if draft.errors.is_empty() {
        return Ok(Config {
            services: finished(draft.services),
            routes: finished(draft.routes),
            traffic: finished(draft.traffic),
            authorization: finished(draft.authorization),
            server: finished(draft.server),
        });
    }
    draft.errors.sort();
    Err(draft.errors)
}

fn finished<T>(objects: Objects<T>) -> BTreeMap<ObjectName, Arc<T>> {
    objects.into_iter().filter_map(|(name, written)| Some((name, written.value?))).collect()
}

impl Draft {
    fn document(&mut self, file: &SourceFile, node: Node, trust_domain: &TrustDomain) {
        let kind = match kind_of(&node) {
            Ok(kind) => kind,
            Err((field, reason)) => {
                self.incomplete = true;
                let place = node.place_of(&Path::of(field));
                self.errors.push(ConfigError::new(&file.name, place, "", field, reason));
                return;
            }
        };
        let mut notes = Notes::new(trust_domain);
        let Some(name) = name_of(&node, &mut notes) else {
            self.incomplete = true;
            let source = Source { file: file.name.clone(), label: kind.to_string(), node };
            // The shape may say more about what the metadata looks like than "no name" does.
            self.errors.extend(notes.into_problems().into_iter().map(|problem| source.error(&problem)));
            return;
        };
        let source = Source { file: file.name.clone(), label: format!("{kind} {name}"), node };
        let errors = &mut self.errors;
        match kind {
            Kind::MeshService => put(&mut self.services, errors, source, name, notes, service::from_kind),
            Kind::HttpRoute => put(&mut self.routes, errors, source, name, notes, route::from_kind),
            Kind::TrafficPolicy => put(&mut self.traffic, errors, source, name, notes, traffic::from_kind),
            Kind::AuthorizationPolicy => {
                put(&mut self.authorization, errors, source, name, notes, policy::authorization);
            }
            Kind::ServerPolicy => put(&mut self.server, errors, source, name, notes, policy::server),
        }
    }
}

/// Reads one document into the table of its kind.
fn put<Spec: DeserializeOwned, T>(
    objects: &mut Objects<T>,
    errors: &mut Vec<ConfigError>,
    source: Source,
    name: ObjectName,
    mut notes: Notes<'_>,
    convert: fn(&ObjectName, Document<Spec>, &mut Notes<'_>) -> Option<T>,
) {
    let value = match yaml::decode::<Document<Spec>>(&source.node) {
        Ok(document) => convert(&name, document, &mut notes),
        Err(problems) => {
            errors.extend(problems.iter().map(|problem| {
                let path = problem.path.to_string();
                ConfigError::new(&source.file, problem.place, &source.label, &path, problem.reason.clone())
            }));
            None
        }
    };
    let problems = notes.into_problems();
    let value = value.filter(|_| problems.is_empty()).map(Arc::new);
    errors.extend(problems.iter().map(|problem| source.error(problem)));
    if let Some(first) = objects.get(&name) {
        let reason =
            format!("{} is defined in {} already", source.label, first.source.at(&Path::of("metadata")));
        errors.push(source.error(&(Path::of("metadata").key("name"), reason)));
        return;
    }
    objects.insert(name, Written { value, source });
}

fn kind_of(node: &Node) -> Result<Kind, (&'static str, String)> {
    let text = |field: &'static str| {
        node.get(field).and_then(Node::as_text).ok_or_else(|| (field, "is required".to_owned()))
    };
    let written = text("kind")?;
    let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.as_str() == written) else {
        let known = Kind::ALL.map(Kind::as_str);
        return Err(("kind", yaml::unknown(written, &known)));
    };
    let api_version = text("apiVersion")?;
    if api_version != kind.api_version() {
        let reason =
            format!("{api_version:?} is not the version of {kind}, which is {:?}", kind.api_version());
        return Err(("apiVersion", reason));
    }
    Ok(kind)
}

/// Taken from the tree, so that an object with a broken spec is still known to exist.
fn name_of(node: &Node, notes: &mut Notes<'_>) -> Option<ObjectName> {
    let metadata = Path::of("metadata");
    let given = node.get("metadata").and_then(|metadata| metadata.get("name")).and_then(Node::as_text);
    let Some(name) = given else {
        notes.note(&metadata.key("name"), "is required");
        return None;
    };
    let namespace =
        node.get("metadata").and_then(|metadata| metadata.get("namespace")).and_then(Node::as_text);
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    Some(ObjectName {
        namespace: notes.name(&metadata.key("namespace"), namespace)?,
        name: notes.name(&metadata.key("name"), name)?,
    })
}

// === impl Source ===

impl Source {
    fn error(&self, (path, reason): &(Path, String)) -> ConfigError {
        let place = self.node.place_of(path);
        ConfigError::new(&self.file, place, &self.label, &path.to_string(), reason.clone())
    }

    /// `FILE:LINE`, to point at it from elsewhere.
    fn at(&self, path: &Path) -> String {
        format!("{}:{}", self.file, self.node.place_of(path).line)
    }
}

// === impl ConfigError ===

impl ConfigError {
    pub fn new(file: &Arc<str>, place: Place, object: &str, field: &str, reason: String) -> Self {
        let Place { line, column } = place;
        Self { file: file.clone(), line, column, object: object.to_owned(), field: field.to_owned(), reason }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.reason)
    }
}

// === impl ObjectName ===

impl ObjectName {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ObjectName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
