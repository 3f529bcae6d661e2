//! The demo's traces: where the sidecars send their spans, and how one purchase is found again and shown.
//!
//! The backend is Jaeger, started with the stage (`--jaeger`), or one of the user's (`OTEL_EXPORTER_OTLP_ENDPOINT`) that
//! answers Jaeger's query API. The demo makes up a trace id, buys something with it, and asks the backend for that trace:
//! everything in it is what sidecars have said.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{client, screen::millis, stage::Place};
use crate::figures::{clean, width};

/// What the user wants of traces.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    None,
    /// This Jaeger is started with the stage.
    Start(PathBuf),
    /// One that runs already.
    Use(Outside),
}

/// A backend of the user's, as seen from the host.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outside {
    pub(crate) otlp: String,
    pub(crate) query: String,
}

/// A backend as the stage has it.
pub(crate) struct Backend {
    pub(crate) query: Query,
    /// Of its pages: from the host, or where that cannot be, from where it is.
    pub(crate) page: String,
    /// Whether it is ours: then it has to answer.
    pub(crate) ours: bool,
}

/// How its query API is reached.
#[derive(Clone)]
pub(crate) enum Query {
    At(Place, SocketAddr),
    /// Out of the namespaces.
    Through(PathBuf),
    /// A host's name and port, where there are no namespaces.
    Named(String),
}

struct Span {
    id: String,
    parent: Option<String>,
    service: String,
    name: String,
    kind: String,
    start: u64,
    duration: Duration,
}

/// Of Jaeger.
pub(crate) const OTLP_PORT: u16 = 4317;
pub(crate) const QUERY_PORT: u16 = 16686;
/// What is below it is drawn beside it.
const DEEPEST: usize = 20;
/// A client span and a server span for each of the two calls of a purchase.
const SPANS: usize = 4;
/// Sidecars send twice a second here; a backend may take its time.
const DEADLINE: Duration = Duration::from_secs(15);
/// A thousand traces are two.
const MAX_ANSWER: usize = 64 << 20;
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

impl Wish {
    pub(crate) fn new(jaeger: Option<PathBuf>, query: Option<String>) -> Result<Self> {
        if let Some(jaeger) = jaeger {
            ensure!(jaeger.is_file(), "--jaeger: there is no {}", jaeger.display());
            return Ok(Self::Start(jaeger.canonicalize()?));
        }
        let Some(endpoint) = env::var(ENDPOINT).ok().filter(|endpoint| !endpoint.is_empty()) else {
            ensure!(query.is_none(), "--traces-query is of use with {ENDPOINT} only");
            return Ok(Self::None);
        };
        let otlp = authority(&endpoint, OTLP_PORT).with_context(|| format!("{ENDPOINT}={endpoint}"))?;
        let query = match query {
            Some(query) => {
                authority(&query, QUERY_PORT).with_context(|| format!("--traces-query {query}"))?
            }
            // Where Jaeger has it.
            None => format!("{}:{QUERY_PORT}", otlp.rsplit_once(':').map_or(&*otlp, |(host, _)| host)),
        };
        Ok(Self::Use(Outside { otlp, query }))
    }

    /// What sidecars are told beside the endpoint: all that the user has said.
    pub(crate) fn variables(&self, endpoint: &str) -> Vec<(String, String)> {
        if matches!(self, Self::None) {
            return Vec::new();
        }
        let said = env::vars().filter(|(name, _)| name.starts_with("OTEL_") && !name.ends_with("_ENDPOINT"));
        let mut variables: BTreeMap<String, String> =
            if matches!(self, Self::Use(_)) { said.collect() } else { BTreeMap::new() };
        // The demo is over in half a minute: nobody waits five seconds for a batch.
        variables.entry("OTEL_BSP_SCHEDULE_DELAY".to_owned()).or_insert_with(|| "500".to_owned());
        variables.insert(ENDPOINT.to_owned(), endpoint.to_owned());
        variables.into_iter().collect()
    }
}

/// Host and port of an `http://` URL.
fn authority(url: &str, port: u16) -> Result<String> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("the demo reaches backends by http:// only");
    };
    let authority = rest.split('/').next().unwrap_or_default();
    ensure!(!authority.is_empty(), "no host");
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    Ok(if has_port { authority.to_owned() } else { format!("{authority}:{port}") })
}

/// Jaeger's configuration, listening on one address, as a file in a directory.
pub(crate) fn jaeger_config(directory: &Path, address: &str) -> Result<PathBuf> {
    let file = directory.join("jaeger.yaml");
    let text = include_str!("../../../tests/backends/jaeger.yaml");
    fs::write(&file, text.replace("ADDRESS", address)).with_context(|| file.display().to_string())?;
    Ok(file)
}

// === one purchase ===

/// A `POST /buy` with a trace id of its own, which is returned.
pub(crate) fn buy(place: &Place, shop: SocketAddr, body: &str) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // Unique is enough: process and time.
    let id = format!("{:08x}{:024x}", std::process::id(), now & ((1 << 96) - 1));
    let length = body.len();
    let request = format!(
        "POST /buy HTTP/1.1\r\nHost: {shop}\r\nContent-Length: {length}\r\n\
         traceparent: 00-{id}-{:016x}-01\r\n\r\n{body}",
        now as u64 | 1,
    );
    let answer = place.enter(|| client::exchange(&mut client::connect(shop)?, &request))??;
    ensure!(answer.status == 200, "the purchase got {answer}");
    Ok(id)
}

impl Backend {
    /// Until it answers at all.
    pub(crate) fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            match self.get("/api/services") {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The tree of a trace, once the backend has all of it.
    pub(crate) fn tree(&self, id: &str, mut wait: impl FnMut() -> Result<()>) -> Result<String> {
        let end = Instant::now() + DEADLINE;
        loop {
            let spans = self.get(&format!("/api/traces/{id}")).map(|told| read(&told));
            match spans {
                Ok(spans) if spans.len() >= SPANS => return Ok(draw(id, &spans)),
                Ok(spans) if Instant::now() > end => bail!("{} of {SPANS} spans of {id} came", spans.len()),
                Err(error) if Instant::now() > end => return Err(error),
                Ok(_) | Err(_) => wait()?,
            }
        }
    }

    /// How many traces a service has, of the last hour.
    pub(crate) fn count(&self, service: &str) -> Result<usize> {
        let told = self.get(&format!("/api/traces?service={service}&limit=1000&lookback=1h"))?;
        Ok(told["data"].as_array().map_or(0, Vec::len))
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = match &self.query {
            Query::At(place, address) => place.enter(|| ask(&mut client::connect(*address)?, path))??,
            Query::Through(socket) => {
                let mut stream = UnixStream::connect(socket)?;
                stream.set_read_timeout(Some(DEADLINE))?;
                ask(&mut stream, path)?
            }
            Query::Named(name) => {
                let mut stream = TcpStream::connect(name).with_context(|| name.clone())?;
                stream.set_read_timeout(Some(DEADLINE))?;
                ask(&mut stream, path)?
            }
        };
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer from the query API")?;
        let status = head.lines().next().unwrap_or_default();
        ensure!(status.contains(" 200"), "{path}: {status}");
        serde_json::from_str(body).with_context(|| format!("{path} is no JSON"))
    }
}

/// HTTP/1.0: the answer ends with the connection.
fn ask(stream: &mut (impl Read + Write), path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: traces\r\n\r\n").as_bytes())?;
    let end = Instant::now() + DEADLINE;
    let mut answer = Vec::new();
    let mut part = [0; 16 << 10];
    loop {
        match stream.read(&mut part)? {
            0 => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            read => answer.extend_from_slice(&part[..read]),
        }
        if answer.len() > MAX_ANSWER || Instant::now() > end {
            return Err(io::Error::other("the answer of the query API has no end"));
        }
    }
}

/// The spans of the first trace of an answer.
fn read(told: &Value) -> Vec<Span> {
    let trace = &told["data"][0];
    // Whoever sends spans chooses what is in them.
    let text = |value: &Value| clean(value.as_str().unwrap_or_default());
    let tag = |span: &Value, key: &str| {
        let tags = span["tags"].as_array().into_iter().flatten();
        tags.filter(|tag| tag["key"] == key).map(|tag| text(&tag["value"])).next().unwrap_or_default()
    };
    let of = |span: &Value| Span {
        id: text(&span["spanID"]),
        parent: span["references"].as_array().into_iter().flatten().map(|one| text(&one["spanID"])).next(),
        service: text(&trace["processes"][span["processID"].as_str().unwrap_or_default()]["serviceName"]),
        name: text(&span["operationName"]),
        kind: tag(span, "span.kind"),
        start: span["startTime"].as_u64().unwrap_or_default(),
        duration: Duration::from_micros(span["duration"].as_u64().unwrap_or_default()),
    };
    trace["spans"].as_array().into_iter().flatten().map(of).collect()
}

/// A line for each span, indented below the one that it is part of.
fn draw(id: &str, spans: &[Span]) -> String {
    let mut services: Vec<_> = spans.iter().map(|span| &span.service).collect();
    services.sort();
    services.dedup();
    let mut text = format!("purchase {id}: {} spans of {} services", spans.len(), services.len());
    let is_known =
        |id: &Option<String>| id.as_ref().is_some_and(|id| spans.iter().any(|span| span.id == *id));
    // Each is drawn once, and taken out: a backend could tell of a ring, or of many with the same id.
    let (mut open, mut below): (Vec<_>, Vec<_>) = spans.iter().partition(|span| !is_known(&span.parent));
    open.sort_by_key(|span| span.start);
    let mut open: Vec<_> = open.into_iter().rev().map(|root| (1, root)).collect();
    while let Some((depth, span)) = open.pop() {
        let what = format!("{:indent$}{}  {}", "", span.service, span.name, indent = 2 * depth.min(DEEPEST));
        let space = " ".repeat(44_usize.saturating_sub(width(&what)));
        // Writing to a String cannot fail.
        let _ = write!(text, "\n{what}{space} {:<7} {:>8}", span.kind, millis(span.duration));
        let (mut children, others): (Vec<_>, Vec<_>) =
            below.into_iter().partition(|child| child.parent.as_deref() == Some(&span.id));
        below = others;
        children.sort_by_key(|child| child.start);
        open.extend(children.into_iter().rev().map(|child| (depth + 1, child)));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_tree_is_drawn_from_what_the_backend_says() {
        let span = |id: &str,
                    parent: &str,
                    process: &str,
                    name: &str,
                    kind: &str,
                    start: u64,
                    micros: u64| {
            json!({"spanID": id, "operationName": name, "processID": process, "startTime": start, "duration": micros,
                "references": [{"refType": "CHILD_OF", "spanID": parent}],
                "tags": [{"key": "span.kind", "value": kind}]})
        };
        let told = json!({"data": [{
            "spans": [
                span("c", "b", "p2", "POST", "client", 30, 900),
                span("a", "visitor", "p1", "POST", "client", 10, 12_345),
                span("b", "a", "p2", "POST shop/orders/split", "server", 20, 1_000),
            ],
            "processes": {"p1": {"serviceName": "web"}, "p2": {"serviceName": "orders"}},
        }]});
        assert_eq!(
            draw("07", &read(&told)),
            "purchase 07: 3 spans of 2 services\n\
             \x20 web  POST                                  client     12 ms\n\
             \x20   orders  POST shop/orders/split           server    1.0 ms\n\
             \x20     orders  POST                           client    0.9 ms"
        );
        // Two spans that are each other's parent have no root; nothing hangs.
        let ring = json!({"data": [{"spans": [span("a", "b", "p", "x", "client", 1, 1), span("b", "a", "p", "y", "client", 1, 1)]}]});
        assert_eq!(draw("08", &read(&ring)).lines().count(), 1);
        // So many that are alike are as many lines.
        let mut alike = vec![span("a", "visitor", "p1", "x", "client", 1, 1)];
        alike.extend((0..100).map(|_| span("a", "a", "p1", "x", "client", 1, 1)));
        let alike = json!({"data": [{"spans": alike}]});
        assert_eq!(draw("09", &read(&alike)).lines().count(), 1 + 101);
        assert!(read(&json!({"errors": [{"msg": "trace not found"}]})).is_empty());
    }

    #[test]
    fn names_are_harmless_and_in_line() {
        let span = |name: &str| json!({"spanID": name, "operationName": name, "processID": "p", "tags": [{"key": "span.kind", "value": "client"}]});
        let told = json!({"data": [{"spans": [span("\u{1b}]0;x\u{7}\u{9b}2J\n"), span("日本")],
            "processes": {"p": {"serviceName": "web\r"}}}]});
        let drawn = draw("07", &read(&told));
        let lines: Vec<_> = drawn.lines().skip(1).collect();
        assert!(lines[0].starts_with("  web\u{fffd}  \u{fffd}]0;x\u{fffd}\u{fffd}2J\u{fffd} "), "{drawn}");
        assert_eq!(lines.iter().map(|line| width(line)).collect::<Vec<_>>(), [61, 61], "{drawn}");
    }

    #[test]
    fn an_answer_without_end_ends() {
        struct Endless;
        impl Read for Endless {
            fn read(&mut self, part: &mut [u8]) -> io::Result<usize> {
                part.fill(b'x');
                Ok(part.len())
            }
        }
        impl Write for Endless {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        assert!(ask(&mut Endless, "/").unwrap_err().to_string().contains("no end"));
    }

    #[test]
    fn urls_say_host_and_port() {
        for (url, wanted) in [
            ("http://localhost:4317", "localhost:4317"),
            ("http://10.0.0.1", "10.0.0.1:4317"),
            ("http://[::1]:9/v1", "[::1]:9"),
            ("http://traces.example/path", "traces.example:4317"),
        ] {
            assert_eq!(authority(url, 4317).unwrap(), wanted, "{url}");
        }
        assert!(authority("https://localhost:4317", 1).is_err());
        assert!(authority("localhost:4317", 1).is_err());
        assert!(authority("http:///x", 1).is_err());
    }
}
