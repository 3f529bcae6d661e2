//! What is sent to a telemetry backend, and how: the standard `OTEL_*` variables and the `--trace-*` flags.
//!
//! Nothing else in the process reads these variables, so what is in [`Otel`] is what happens. A variable of one signal
//! (`OTEL_EXPORTER_OTLP_TRACES_TIMEOUT`) wins over the one for all (`OTEL_EXPORTER_OTLP_TIMEOUT`), an empty one counts as
//! not given. Unlike the SDKs, which go on with a default, a proxy does not start with a value that cannot be.
//!
//! Without an endpoint nothing is sent; the SDKs' `localhost` is no guess to make for a sidecar.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, path::PathBuf, str::FromStr, time::Duration};

use http::{HeaderName, HeaderValue, Uri, header, uri::PathAndQuery};
use outrigger_core::trace::{Keep, Name, Policy, Propagators, Ratio};
use serde_json::{Value, json};

use super::{
    HostPort, RunArgs,
    settings::{self, Settings, Variables},
};

/// Standard variables begin with it.
pub const PREFIX: &str = "OTEL_";

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_DELAY: Duration = Duration::from_secs(5);
const DEFAULT_EXPORT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_QUEUE: u32 = 2_048;
const DEFAULT_BATCH: u32 = 512;
/// A span has about 2 KiB, so this is about 200 MiB.
const LARGEST_QUEUE: u32 = 100_000;
const LONGEST: Duration = Duration::from_secs(3_600);
const DEFAULT_PER_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();
const MOST_PER_SECOND: u32 = 1_000_000;

/// Fields that belong to the protocol itself.
const RESERVED: [HeaderName; 7] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::TRANSFER_ENCODING,
    header::CONNECTION,
    header::HOST,
    header::TE,
];

#[derive(Clone, Debug, Default)]
pub struct Otel {
    /// Attributes of whatever is sent, by name. What is not in here is known only later: see `otlp::resource`.
    pub resource: BTreeMap<String, String>,
    /// `None`: no spans are made.
    pub traces: Option<Traces>,
    /// `None`: metrics are only scraped.
    pub metrics: Option<Metrics>,
}

#[derive(Clone, Debug)]
pub struct Traces {
    pub export: Export,
    pub policy: Policy,
    pub keep: Keep,
    /// Of all workers together.
    pub max_per_second: NonZeroU32,
    pub propagators: Propagators,
    /// Connections that carry no requests get a span too.
    pub tcp: bool,
    /// Who calls in plaintext may name the parent and decide about recording.
    pub trust_outside: bool,
    /// Between batches.
    pub delay: Duration,
    pub queue: usize,
    pub batch: usize,
    /// A batch that nobody has taken for so long is dropped.
    pub patience: Duration,
}

#[derive(Clone, Debug)]
pub struct Metrics {
    pub export: Export,
    pub every: Duration,
}

/// Where to and how.
#[derive(Clone, Debug)]
pub struct Export {
    pub endpoint: Endpoint,
    pub protocol: Protocol,
    pub headers: Headers,
    /// Of one call.
    pub timeout: Duration,
    pub gzip: bool,
    /// Roots to trust; `None`: those of the system.
    pub certificate: Option<PathBuf>,
    /// Own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub tls: bool,
    pub at: HostPort,
    /// Of HTTP, with the signal's own path; `/` for gRPC.
    pub path: PathAndQuery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Grpc,
    /// `http/protobuf`.
    Http,
}

/// They hold keys and tokens: debug output has only their names.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(HeaderName, HeaderValue)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signal {
    Traces,
    Metrics,
}

/// Flags of `run` that are about traces.
pub(super) struct Flags {
    keep: Option<String>,
    max_per_second: Option<String>,
    tcp: bool,
    trust_outside: bool,
}

/// Reads variables, each mistake once although two signals may have looked at it.
struct Reader<'a, 's> {
    variables: &'a Variables,
    settings: &'a mut Settings<'s>,
    said: Vec<String>,
}

impl Flags {
    pub(super) fn take(args: &mut RunArgs) -> Self {
        Self {
            keep: args.trace_keep.take(),
            max_per_second: args.trace_max_per_second.take(),
            tcp: args.trace_tcp,
            trust_outside: args.trace_trust_outside,
        }
    }
}

/// What is returned is only good if no problem was noted.
pub(super) fn read(settings: &mut Settings<'_>, variables: &Variables, flags: Flags) -> Otel {
    let keep = settings.explained("trace-keep", flags.keep, |text| {
        Keep::parse(text, settings::duration).map_err(|error| error.to_string())
    });
    let a_rate = format!("a number from 1 to {MOST_PER_SECOND}");
    let max_per_second = settings.value("trace-max-per-second", flags.max_per_second, &a_rate, |text| {
        settings::number(text).filter(|rate| *rate <= MOST_PER_SECOND).and_then(NonZeroU32::new)
    });
    let tcp = settings.switch("trace-tcp", flags.tcp);
    let trust_outside = settings.switch("trace-trust-outside", flags.trust_outside);

    let mut reader = Reader { variables, settings, said: Vec::new() };
    let off = reader.switch("OTEL_SDK_DISABLED");
    let resource = reader.resource();
    let policy = reader.policy();
    let propagators = reader.parse("OTEL_PROPAGATORS").unwrap_or_default();
    let delay = reader.millis(&["OTEL_BSP_SCHEDULE_DELAY"], Duration::from_millis(1));
    let queue = reader.count("OTEL_BSP_MAX_QUEUE_SIZE", LARGEST_QUEUE);
    let batch = reader.count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", LARGEST_QUEUE);
    let patience = reader.millis(&["OTEL_BSP_EXPORT_TIMEOUT"], Duration::from_millis(1));
    let every = reader.millis(&["OTEL_METRIC_EXPORT_INTERVAL"], Duration::from_millis(100));
    // A batch can be as large as the queue; only who asks for more is told.
    let most = queue.unwrap_or(DEFAULT_QUEUE);
    if batch.is_some_and(|batch| batch > most) {
        reader
            .problem(format!("OTEL_BSP_MAX_EXPORT_BATCH_SIZE: want at most OTEL_BSP_MAX_QUEUE_SIZE, {most}"));
    }
    let traces = reader.export(Signal::Traces).map(|export| Traces {
        export,
        policy,
        keep: keep.unwrap_or_default(),
        max_per_second: max_per_second.unwrap_or(DEFAULT_PER_SECOND),
        propagators,
        tcp,
        trust_outside,
        delay: delay.unwrap_or(DEFAULT_DELAY),
        queue: most as usize,
        batch: batch.unwrap_or(DEFAULT_BATCH).min(most) as usize,
        patience: patience.unwrap_or(DEFAULT_EXPORT_TIMEOUT),
    });
    let metrics = reader
        .export(Signal::Metrics)
        .map(|export| Metrics { export, every: every.unwrap_or(DEFAULT_INTERVAL) });
    match off {
        true => Otel::default(),
        false => Otel { resource, traces, metrics },
    }
}

// === impl Reader ===

impl Reader<'_, '_> {
    /// The first of these variables that says something.
    fn first(&self, names: &[&str]) -> Option<(String, String)> {
        names.iter().find_map(|name| {
            let text = self.variables.get(*name)?.trim();
            (!text.is_empty()).then(|| ((*name).to_owned(), text.to_owned()))
        })
    }

    fn problem(&mut self, text: String) {
        if !self.said.contains(&text) {
            self.settings.problem(text.clone());
            self.said.push(text);
        }
    }

    fn value<T>(&mut self, names: &[&str], legal: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let (name, text) = self.first(names)?;
        let value = read(&text);
        if value.is_none() {
            self.problem(format!("{name} {text:?}: want {legal}"));
        }
        value
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&mut self, name: &str) -> Option<T> {
        let (name, text) = self.first(&[name])?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{name} {text:?}: {error}"));
                None
            }
        }
    }

    fn switch(&mut self, name: &str) -> bool {
        self.value(&[name], "true or false", boolean).unwrap_or(false)
    }

    fn count(&mut self, name: &str, most: u32) -> Option<u32> {
        self.value(&[name], &format!("a number from 1 to {most}"), |text| {
            decimal(text).filter(|number| (1..=u64::from(most)).contains(number)).map(|number| number as u32)
        })
    }

    fn millis(&mut self, names: &[&str], least: Duration) -> Option<Duration> {
        let legal = format!("milliseconds, from {} to {}", least.as_millis(), LONGEST.as_millis());
        self.value(names, &legal, |text| {
            decimal(text).map(Duration::from_millis).filter(|time| (least..=LONGEST).contains(time))
        })
    }

    /// `NAME=VALUE` pairs, separated by commas, values percent-encoded. No text of theirs is repeated.
    fn pairs(&mut self, names: &[&str]) -> Vec<(String, String, Vec<u8>)> {
        let Some((from, text)) = self.first(names) else { return Vec::new() };
        let mut pairs = Vec::new();
        for (number, pair) in text.split(',').enumerate().filter(|(_, pair)| !pair.trim().is_empty()) {
            let read = pair.split_once('=').and_then(|(name, value)| {
                let name = name.trim();
                Some((name.to_owned(), unescaped(value.trim())?)).filter(|_| !name.is_empty())
            });
            match read {
                Some((name, value)) => pairs.push((format!("{from}: {name}"), name, value)),
                None => self.problem(format!(
                    "{from}: want NAME=VALUE pairs separated by commas, the values percent-encoded; number {} is none",
                    number + 1
                )),
            }
        }
        pairs
    }

    fn resource(&mut self) -> BTreeMap<String, String> {
        let mut resource = BTreeMap::new();
        for (from, name, value) in self.pairs(&["OTEL_RESOURCE_ATTRIBUTES"]) {
            match String::from_utf8(value) {
                Ok(value) => _ = resource.insert(name, value),
                Err(_) => self.problem(format!("{from}: want UTF-8")),
            }
        }
        if let Some((_, name)) = self.first(&["OTEL_SERVICE_NAME"]) {
            resource.insert("service.name".to_owned(), name);
        }
        resource
    }

    fn policy(&mut self) -> Policy {
        let name: Option<Name> = self.parse("OTEL_TRACES_SAMPLER");
        let ratio: Option<Ratio> = match name {
            // For the others an argument means nothing, whatever it is.
            None | Some(Name::TraceIdRatio | Name::ParentBasedTraceIdRatio) => {
                self.parse("OTEL_TRACES_SAMPLER_ARG")
            }
            Some(
                Name::AlwaysOn | Name::AlwaysOff | Name::ParentBasedAlwaysOn | Name::ParentBasedAlwaysOff,
            ) => None,
        };
        Policy::new(name, ratio)
    }

    /// `None`: this signal is not sent, or something is wrong.
    fn export(&mut self, signal: Signal) -> Option<Export> {
        let wanted = self.value(&[signal.exporter()], signal.exporters(), |text| {
            let words = text.split(',').map(str::trim);
            let legal = |word: &str| matches!(word, "otlp" | "none") || signal.also() == Some(word);
            words.clone().all(legal).then(|| words.clone().any(|word| word == "otlp"))
        });
        let names = |what: &str| {
            [format!("OTEL_EXPORTER_OTLP_{}_{what}", signal.name()), format!("OTEL_EXPORTER_OTLP_{what}")]
        };
        let [protocol, headers, timeout] = ["PROTOCOL", "HEADERS", "TIMEOUT"].map(names);
        let [compression, insecure, certificate] = ["COMPRESSION", "INSECURE", "CERTIFICATE"].map(names);
        let [client_certificate, client_key] = ["CLIENT_CERTIFICATE", "CLIENT_KEY"].map(names);
        let protocol = self.value(&both(&protocol), "grpc or http/protobuf", |text| match text {
            "grpc" => Some(Protocol::Grpc),
            "http/protobuf" => Some(Protocol::Http),
            _ => None,
        });
        let protocol = protocol.unwrap_or(Protocol::Grpc);
        let insecure = self.value(&both(&insecure), "true or false", boolean).unwrap_or(false);
        let headers = self.headers(&both(&headers));
        let timeout = self.millis(&both(&timeout), Duration::from_millis(1)).unwrap_or(DEFAULT_TIMEOUT);
        let gzip = self.value(&both(&compression), "gzip or none", |text| match text {
            "gzip" => Some(true),
            "none" => Some(false),
            _ => None,
        });
        let certificate = self.first(&both(&certificate)).map(|(_, path)| path.into());
        let client = match (self.first(&both(&client_certificate)), self.first(&both(&client_key))) {
            (Some((_, certificate)), Some((_, key))) => Some((certificate.into(), key.into())),
            (None, None) => None,
            (Some((name, _)), None) => {
                self.problem(format!("{name}: want the key too, in OTEL_EXPORTER_OTLP_CLIENT_KEY"));
                None
            }
            (None, Some((name, _))) => {
                self.problem(format!(
                    "{name}: want the certificate too, in OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
                ));
                None
            }
        };
        let endpoint = self.endpoint(signal, protocol, insecure)?;
        let gzip = gzip.unwrap_or(false);
        let export = Export { endpoint, protocol, headers, timeout, gzip, certificate, client };
        wanted.unwrap_or(true).then_some(export)
    }

    fn headers(&mut self, names: &[&str]) -> Headers {
        let mut headers = Vec::new();
        for (from, name, value) in self.pairs(names) {
            match (name.parse::<HeaderName>(), HeaderValue::from_maybe_shared(value)) {
                (Ok(name), _) if RESERVED.contains(&name) || name.as_str().starts_with("grpc-") => {
                    self.problem(format!("{from}: want a field that is not the protocol's own"));
                }
                (Ok(name), _) if name.as_str().ends_with("-bin") => {
                    self.problem(format!("{from}: want a field of text, binary ones are not supported"));
                }
                (Ok(name), Ok(mut value)) => {
                    value.set_sensitive(true);
                    headers.push((name, value));
                }
                (Err(_), _) | (_, Err(_)) => {
                    self.problem(format!("{from}: want a name and a value that a header field can have"));
                }
            }
        }
        Headers(headers)
    }

    fn endpoint(&mut self, signal: Signal, protocol: Protocol, insecure: bool) -> Option<Endpoint> {
        let own = format!("OTEL_EXPORTER_OTLP_{}_ENDPOINT", signal.name());
        let (name, text) = self.first(&[&own, "OTEL_EXPORTER_OTLP_ENDPOINT"])?;
        // The one for all signals is a base to which each adds its own path.
        let add = (name != own && protocol == Protocol::Http).then(|| signal.path());
        match endpoint(&text, protocol, insecure, add) {
            Ok(endpoint) => Some(endpoint),
            // Not repeated: it may have a password in it.
            Err(legal) => {
                self.problem(format!("{name}: want {legal}"));
                None
            }
        }
    }
}

/// Or what would be legal.
fn endpoint(
    text: &str,
    protocol: Protocol,
    insecure: bool,
    add: Option<&str>,
) -> Result<Endpoint, &'static str> {
    const URL: &str = "http://HOST:PORT or https://HOST:PORT";
    const PLAIN: &str = "a URL without user, password and fragment: keys go into OTEL_EXPORTER_OTLP_HEADERS";
    let scheme = if insecure { "http" } else { "https" };
    let text = match (text.contains("://"), protocol) {
        (true, _) => text.to_owned(),
        (false, Protocol::Grpc) => format!("{scheme}://{text}"),
        (false, Protocol::Http) => return Err(URL),
    };
    if text.contains('#') {
        return Err(PLAIN);
    }
    let uri: Uri = text.parse().map_err(|_| URL)?;
    let tls = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        Some(_) | None => return Err(URL),
    };
    let authority = uri.authority().ok_or(URL)?;
    if authority.as_str().contains('@') {
        return Err(PLAIN);
    }
    let port = match (authority.as_str().rsplit_once(':'), authority.port_u16()) {
        (_, Some(port)) => port,
        // `host:` or `host:99999`
        (Some((_, after)), None) if !after.ends_with(']') => return Err("a port from 1 to 65535"),
        (_, None) if tls => 443,
        (_, None) => 80,
    };
    let port = port.try_into().map_err(|_| "a port from 1 to 65535")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(URL);
    }
    let at = HostPort { host: host.into(), port };
    let path = match (protocol, add) {
        (Protocol::Grpc, _) if uri.path() != "/" || uri.query().is_some() => {
            return Err("a URL without a path for gRPC; with one, OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf");
        }
        (_, Some(_)) if uri.query().is_some() => {
            return Err("a URL without a query, because the path of each signal is added to it");
        }
        (_, Some(add)) => format!("{}{add}", uri.path().trim_end_matches('/')).parse(),
        (_, None) => uri.path_and_query().map_or("/", PathAndQuery::as_str).parse(),
    };
    Ok(Endpoint { tls, at, path: path.map_err(|_| URL)? })
}

fn both(names: &[String; 2]) -> [&str; 2] {
    [&names[0], &names[1]]
}

fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" => Some(true),
        "false" => Some(false),
        _ => None,
    }
}

fn decimal(text: &str) -> Option<u64> {
    // `parse` would take a sign.
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Percent-encoding undone.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let (byte, left) = match (first, more) {
            (b'%', [high, low, left @ ..]) => {
                let digit = |byte: &u8| char::from(*byte).to_digit(16);
                ((digit(high)? << 4 | digit(low)?) as u8, left)
            }
            (b'%', _) => return None,
            (byte, left) => (*byte, left),
        };
        bytes.push(byte);
        rest = left;
    }
    Some(bytes)
}

// === impl Signal ===

impl Signal {
    fn name(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    fn exporter(self) -> &'static str {
        match self {
            Self::Traces => "OTEL_TRACES_EXPORTER",
            Self::Metrics => "OTEL_METRICS_EXPORTER",
        }
    }

    fn exporters(self) -> &'static str {
        match self {
            Self::Traces => "otlp or none",
            Self::Metrics => "otlp, prometheus (which is always there), none",
        }
    }

    fn also(self) -> Option<&'static str> {
        match self {
            Self::Traces => None,
            Self::Metrics => Some("prometheus"),
        }
    }
}

// === impl Otel ===

impl Otel {
    /// For the admin page: no values of headers.
    pub fn describe(&self) -> Value {
        let traces = self.traces.as_ref().map(|traces| {
            json!({
                "export": traces.export.describe(),
                "sampler": traces.policy.to_string(),
                "propagators": traces.propagators.to_string(),
                "keep_errors": traces.keep.errors,
                "keep_slower_ms": traces.keep.slower.map(|slower| slower.as_millis() as u64),
                "max_per_second": traces.max_per_second,
                "tcp": traces.tcp,
                "trust_outside": traces.trust_outside,
                "delay_ms": traces.delay.as_millis() as u64,
                "queue": traces.queue,
                "batch": traces.batch,
                "export_timeout_ms": traces.patience.as_millis() as u64,
            })
        });
        let metrics = self.metrics.as_ref().map(|metrics| {
            json!({ "export": metrics.export.describe(), "every_ms": metrics.every.as_millis() as u64 })
        });
        json!({ "resource": self.resource, "traces": traces, "metrics": metrics })
    }
}

impl Export {
    fn describe(&self) -> Value {
        json!({
            "endpoint": self.endpoint.to_string(),
            "protocol": match self.protocol {
                Protocol::Grpc => "grpc",
                Protocol::Http => "http/protobuf",
            },
            "headers": self.headers.0.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            "timeout_ms": self.timeout.as_millis() as u64,
            "gzip": self.gzip,
            "certificate": self.certificate,
            "client_certificate": self.client.as_ref().map(|(certificate, _)| certificate),
        })
    }
}

/// Without its query, which may hold a key.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.at, self.path.path())
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

#[cfg(test)]
mod tests;
