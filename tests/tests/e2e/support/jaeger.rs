//! A real tracing backend: Jaeger as tests/backends/jaeger.sh built it, asked through its own query API.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result, ensure};
use outrigger_lab::{Lab, Pod, Process, wait_for, wait_for_some};
use serde_json::Value;

use super::SOON;

pub(crate) struct Jaeger {
    pod: Pod,
    process: Mutex<Option<Process>>,
}

/// A span as the backend has it.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    pub(crate) service: String,
    pub(crate) name: String,
    /// Microseconds.
    pub(crate) start: u64,
    pub(crate) duration: u64,
    pub(crate) tags: BTreeMap<String, Value>,
    pub(crate) events: Vec<Event>,
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) fields: BTreeMap<String, Value>,
}

pub(crate) const GRPC_PORT: u16 = 4317;
pub(crate) const HTTP_PORT: u16 = 4318;
const QUERY_PORT: u16 = 16686;

/// Where tests/backends/jaeger.sh has put it.
pub(crate) fn binary() -> Option<PathBuf> {
    let path = repository().join("target/backends/jaeger");
    path.is_file().then_some(path)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

impl Jaeger {
    /// In a pod of its own, which is no part of the mesh.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let jaeger = Self { pod: lab.pod("jaeger")?, process: Mutex::new(None) };
        jaeger.run()?;
        Ok(jaeger)
    }

    /// Starts it, for the first time or again: it remembers nothing of its last life.
    pub(crate) fn run(&self) -> Result<()> {
        let lab = self.pod.lab();
        let config = fs::read_to_string(repository().join("tests/backends/jaeger.yaml"))?;
        let file = lab.directory().join("jaeger.yaml");
        fs::write(&file, config.replace("ADDRESS", &self.pod.ipv4().to_string()))?;
        let mut command = self.pod.command(binary().context("no Jaeger")?);
        let process = self.pod.spawn(command.arg("--config").arg(&file), "jaeger")?;
        *self.slot() = Some(process);
        wait_for(SOON, "Jaeger's query API", || self.get("/api/services").is_ok())
            .with_context(|| self.slot().as_ref().map_or_else(String::new, Process::log))
    }

    /// Kills it; its ports refuse connections from now on.
    pub(crate) fn stop(&self) {
        drop(self.slot().take());
    }

    /// What proxies are given as `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub(crate) fn endpoint(&self, port: u16) -> String {
        format!("http://{}:{port}", self.pod.ipv4())
    }

    pub(crate) fn get(&self, path: &str) -> Result<Value> {
        let answer = self.pod.lab().get(SocketAddr::from((self.pod.ipv4(), QUERY_PORT)), path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).with_context(|| answer.body)
    }

    /// The spans of a trace, once there are so many.
    pub(crate) fn trace(&self, id: &str, spans: usize) -> Result<Vec<Span>> {
        let mut last = String::new();
        let found = wait_for_some(SOON, &format!("{spans} spans of trace {id}"), || {
            let told = self.get(&format!("/api/traces/{id}"));
            let found = told.and_then(|told| read(&told));
            last = format!("{found:#?}");
            found.ok().filter(|found| found.len() >= spans)
        });
        found.context(last)
    }

    /// Whether it knows anything of a trace.
    pub(crate) fn has(&self, id: &str) -> Result<bool> {
        let path = format!("/api/traces/{id}");
        let answer = self.pod.lab().get(SocketAddr::from((self.pod.ipv4(), QUERY_PORT)), &path)?;
        ensure!([200, 404].contains(&answer.status), "{path}: {answer:?}");
        Ok(answer.status == 200)
    }

    /// Traces of a service, the spans of each.
    pub(crate) fn traces_of(&self, service: &str) -> Result<Vec<Vec<Span>>> {
        let told = self.get(&format!("/api/traces?service={service}&limit=1000&lookback=1h"))?;
        let traces = told["data"].as_array().with_context(|| told.to_string())?;
        traces.iter().map(read_one).collect()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(told: &Value) -> Result<Vec<Span>> {
    read_one(&told["data"][0])
}

fn read_one(trace: &Value) -> Result<Vec<Span>> {
    let processes = &trace["processes"];
    let spans = trace["spans"].as_array().with_context(|| format!("no spans in {trace}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let fields = |list: &Value| -> BTreeMap<String, Value> {
        let list = list.as_array().cloned().unwrap_or_default();
        list.into_iter().map(|tag| (text(&tag["key"]), tag["value"].clone())).collect()
    };
    let span = |span: &Value| {
        let references = span["references"].as_array().cloned().unwrap_or_default();
        let logs = span["logs"].as_array().cloned().unwrap_or_default();
        let event = |log: &Value| {
            let mut fields = fields(&log["fields"]);
            let name = fields.remove("event").map(|name| text(&name)).unwrap_or_default();
            Event { name, fields }
        };
        Ok(Span {
            id: text(&span["spanID"]),
            parent: references
                .iter()
                .filter(|one| one["refType"] == "CHILD_OF")
                .map(|one| text(&one["spanID"]))
                .next(),
            service: text(&processes[text(&span["processID"])]["serviceName"]),
            name: text(&span["operationName"]),
            start: span["startTime"].as_u64().context("startTime")?,
            duration: span["duration"].as_u64().context("duration")?,
            tags: fields(&span["tags"]),
            events: logs.iter().map(event).collect(),
        })
    };
    spans.iter().map(span).collect()
}

impl Span {
    pub(crate) fn kind(&self) -> &str {
        self.text("span.kind")
    }

    /// A tag's text; empty where there is none.
    pub(crate) fn text(&self, tag: &str) -> &str {
        self.tags.get(tag).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn number(&self, tag: &str) -> Option<i64> {
        self.tags.get(tag).and_then(Value::as_i64)
    }

    pub(crate) fn is_error(&self) -> bool {
        self.tags.get("error") == Some(&Value::Bool(true))
    }

    pub(crate) fn event(&self, name: &str) -> Option<&Event> {
        self.events.iter().find(|event| event.name == name)
    }
}

/// The spans that are children of one, in the order in which they began.
pub(crate) fn children<'a>(spans: &'a [Span], parent: &Span) -> Vec<&'a Span> {
    let mut children: Vec<_> = spans.iter().filter(|span| span.parent.as_ref() == Some(&parent.id)).collect();
    children.sort_by_key(|span| span.start);
    children
}

/// The one span whose parent is not among them.
pub(crate) fn root(spans: &[Span]) -> Result<&Span> {
    let is_root = |span: &&Span| !spans.iter().any(|other| Some(&other.id) == span.parent.as_ref());
    let roots: Vec<_> = spans.iter().filter(is_root).collect();
    ensure!(roots.len() == 1, "{} roots in {spans:#?}", roots.len());
    Ok(roots[0])
}
