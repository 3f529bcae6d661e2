//! What the control plane's status port tells of traffic and events: `/stat` and `/events`, documented in
//! docs/control-plane.md. The one place that knows their shape.
//!
//! Fields that are not named here do not matter; one that is missing or of another type is an error that names it.

mod fields;

use std::time::Duration;

use ::http::StatusCode;
use anyhow::{anyhow, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};

use self::fields::Object;
use crate::{
    figures::{clean, count, shorten},
    http::{self, Bounds},
};

/// Every edge of 1,000 proxies, twice over.
const MAX_BODY: usize = 64 << 20;
/// At most, in one answer.
const EVENTS: usize = 1000;
const HINT: &str = " (--control-plane-status names its status port)";
/// The control plane answers from memory.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to ask.
#[derive(Clone, clap::Args)]
pub(crate) struct ControlPlane {
    /// The control plane's status port
    #[arg(
        long = "control-plane-status",
        env = "OUTRIGGER_CONTROL_PLANE_STATUS",
        default_value = "http://127.0.0.1:15014",
        value_name = "URL"
    )]
    pub(crate) base: String,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum By {
    #[value(name = "services", alias = "service")]
    Service,
    #[value(name = "routes", alias = "route")]
    Route,
    #[value(name = "edges", alias = "edge")]
    Edge,
}

/// Whose measurement: that of the caller's proxy or of the called one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    Outbound,
    Inbound,
}

#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) by: By,
    /// `None`: what callers measured, and of edges also those whose caller has no proxy.
    pub(crate) side: Option<Side>,
    pub(crate) namespace: Option<String>,
    /// With or without namespace and port.
    pub(crate) service: Option<String>,
    pub(crate) span: Span,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    /// Up to now.
    Window(Duration),
    Between {
        from_ms: i64,
        to_ms: i64,
    },
}

/// As it came, and as it is understood.
pub(crate) struct Answer<T> {
    pub(crate) json: Value,
    pub(crate) read: T,
}

#[derive(Clone, Debug)]
pub(crate) struct Stat {
    pub(crate) from_ms: i64,
    pub(crate) to_ms: i64,
    /// How many have reported: one without traffic does not.
    pub(crate) proxies: u64,
    /// How many are connected to the control plane now.
    pub(crate) connected: u64,
    /// Why figures of some of the time are missing.
    pub(crate) incomplete: Vec<String>,
    /// Before this time nothing is known of anybody.
    pub(crate) begins_ms: i64,
    /// Rows that the control plane has left out because there are too many.
    pub(crate) rows_cut: u64,
    pub(crate) rows: Vec<Row>,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) side: String,
    pub(crate) service: String,
    pub(crate) route: String,
    /// Identities, of edges.
    pub(crate) source: Option<String>,
    pub(crate) target: Option<String>,
    pub(crate) security: Option<String>,
    pub(crate) meshed: bool,
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    /// Requests a second.
    pub(crate) rate: f64,
    pub(crate) success: Option<f64>,
    pub(crate) p50_us: Option<u64>,
    pub(crate) p90_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
    pub(crate) p999_us: Option<u64>,
    pub(crate) max_us: Option<u64>,
    pub(crate) connections: u64,
    pub(crate) connections_failed: u64,
    pub(crate) outcomes: Vec<Outcome>,
}

/// Requests that ended alike.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// `2xx`; `none`: the caller left first.
    pub(crate) status: String,
    pub(crate) grpc_status: Option<u64>,
    /// Of an answer that a proxy made.
    pub(crate) reason: Option<String>,
    pub(crate) count: u64,
    /// Whether they count as failures, which the control plane alone decides.
    pub(crate) failed: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Events {
    pub(crate) events: Vec<Event>,
    /// What to say as `after` next.
    pub(crate) next: u64,
    /// After `after`, but gone already.
    pub(crate) missed: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) at_ms: i64,
    pub(crate) kind: String,
    pub(crate) severity: Severity,
    pub(crate) subject: String,
    pub(crate) message: String,
    pub(crate) details: Map<String, Value>,
    /// As it came.
    pub(crate) json: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Severity {
    Info,
    Warning,
    Error,
}

// === impl ControlPlane ===

impl ControlPlane {
    pub(crate) fn stat(&self, query: &Query) -> anyhow::Result<Answer<Stat>> {
        let outbound = query.side.unwrap_or(Side::Outbound);
        let mut answer = self.ask(&query.path(outbound), PATIENCE, Stat::read)?;
        if query.by == By::Edge && query.side.is_none() {
            // Who has no proxy is known to the called side only.
            let inbound = self.ask(&query.path(Side::Inbound), PATIENCE, Stat::read)?;
            answer.add_unmeshed(inbound);
        }
        Ok(answer)
    }

    /// `wait`: for how long, if there is no event yet.
    pub(crate) fn events(&self, after: u64, wait: Duration) -> anyhow::Result<Answer<Events>> {
        let path = format!("/events?after={after}&limit={EVENTS}&wait={}s", wait.as_secs());
        self.ask(&path, PATIENCE + wait, Events::read)
    }

    /// The whole of `/status`, which has a reader of its own.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        self.json("/status", Bounds::default())
    }

    /// Why it does not answer, for those who know which one is meant.
    pub(crate) fn reason(&self, error: &anyhow::Error) -> String {
        let text = format!("{error:#}");
        let text = text.strip_suffix(HINT).unwrap_or(&text);
        let base = self.base.trim_end_matches('/');
        let known = [
            "cannot reach the control plane at",
            "no answer from the control plane at",
            "the control plane at",
        ];
        let said = known.iter().find_map(|known| text.strip_prefix(known)?.trim_start().strip_prefix(base));
        said.map_or(text, |said| said.trim_start_matches([':', ' '])).to_owned()
    }

    fn ask<T>(
        &self,
        path: &str,
        patience: Duration,
        read: impl FnOnce(Object<'_>) -> Result<T, String>,
    ) -> anyhow::Result<Answer<T>> {
        let json = self.json(path, Bounds { patience, body: MAX_BODY })?;
        let read = Object::of(&json).and_then(read).map_err(|error| {
            let base = self.base.trim_end_matches('/');
            anyhow!("what {base}{path} says is of another version or broken: {error}")
        })?;
        Ok(Answer { json, read })
    }

    fn json(&self, path: &str, bounds: Bounds) -> anyhow::Result<Value> {
        let base = self.base.trim_end_matches('/');
        let answer = http::get_within(bounds, "the control plane", base, path)
            .map_err(|error| anyhow!("{error:#}{HINT}"))?;
        let said = String::from_utf8_lossy(&answer.body[..answer.body.len().min(600)]);
        let said = shorten(&clean(&said.trim().lines().collect::<Vec<_>>().join("; ")), 300);
        match answer.status {
            status if status.is_success() => {}
            StatusCode::NOT_FOUND => {
                bail!(
                    "the control plane at {base} has no {path}: is it older than this command? It says: {said}"
                )
            }
            status if status.is_redirection() => {
                let elsewhere = clean(&answer.location.unwrap_or_else(|| "nowhere".to_owned()));
                bail!(
                    "the control plane at {base} answers {status}, to {}: not followed{HINT}",
                    shorten(&elsewhere, 300)
                )
            }
            status if said.is_empty() => bail!("the control plane at {base} answers {status}"),
            status => bail!("the control plane at {base} answers {status}: {said}"),
        }
        serde_json::from_slice(&answer.body)
            .map_err(|error| anyhow!("what {base}{path} says is not JSON: {error}"))
    }
}

// === impl Query ===

impl Query {
    fn path(&self, side: Side) -> String {
        let by = match self.by {
            By::Service => "service",
            By::Route => "route",
            By::Edge => "edge",
        };
        let side = match side {
            Side::Outbound => "outbound",
            Side::Inbound => "inbound",
        };
        let span = match self.span {
            Span::Window(window) => format!("window={}s", window.as_secs()),
            Span::Between { from_ms, to_ms } => format!("from={from_ms}&to={to_ms}"),
        };
        let only = [("namespace", &self.namespace), ("service", &self.service)];
        let only =
            only.map(|(name, value)| value.as_deref().map(|value| format!("&{name}={}", encode(value))));
        let only: String = only.into_iter().flatten().collect();
        format!("/stat?by={by}&side={side}&{span}{only}")
    }
}

fn encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let bytes = text.bytes();
    bytes
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

// === impl Answer ===

impl Answer<Stat> {
    fn add_unmeshed(&mut self, inbound: Self) {
        let Self { json: Value::Object(mut other), read } = inbound else { return };
        let Some(Value::Array(rows)) = other.remove("rows") else { return };
        self.read.rows_cut = self.read.rows_cut.saturating_add(read.rows_cut);
        self.json["rows_cut"] = self.read.rows_cut.into();
        let Some(Value::Array(all)) = self.json.get_mut("rows") else { return };
        for (json, row) in rows.into_iter().zip(read.rows) {
            if row.source.is_none() {
                all.push(json);
                self.read.rows.push(row);
            }
        }
    }

    /// Leaves only the rows that `keep` says, in the order that `arrange` gives them.
    pub(crate) fn pick(&mut self, keep: impl Fn(&Row) -> bool, arrange: impl FnOnce(&mut [(Row, Value)])) {
        let Some(Value::Array(json)) = self.json.get_mut("rows") else { return };
        let rows = std::mem::take(&mut self.read.rows).into_iter().zip(std::mem::take(json));
        let mut rows: Vec<_> = rows.filter(|(row, _)| keep(row)).collect();
        arrange(&mut rows);
        (self.read.rows, *json) = rows.into_iter().unzip();
    }
}

// === reading ===

impl Stat {
    fn read(answer: Object<'_>) -> Result<Self, String> {
        Ok(Self {
            from_ms: answer.millis("from_ms")?,
            to_ms: answer.millis("to_ms")?,
            proxies: answer.whole("proxies")?,
            connected: answer.whole("connected")?,
            incomplete: answer.texts("incomplete")?.iter().map(|why| clean(why)).collect(),
            begins_ms: answer.millis("begins_ms")?,
            rows_cut: answer.whole("rows_cut")?,
            rows: answer.list("rows", Row::read)?,
        })
    }

    /// How long the time is that the figures are of.
    pub(crate) fn seconds(&self) -> f64 {
        (self.to_ms.saturating_sub(self.from_ms).max(1)) as f64 / 1000.0
    }
}

impl Row {
    fn read(row: Object<'_>) -> Result<Self, String> {
        Ok(Self {
            side: clean(&row.text("side")?),
            service: clean(&row.text("service")?),
            route: clean(&row.text_or_null("route")?.unwrap_or_default()),
            source: row.text_or_null("source")?.map(|id| clean(&id)),
            target: row.text_or_null("target")?.map(|id| clean(&id)),
            security: row.text_or_null("security")?.map(|text| clean(&text)),
            meshed: row.flag("meshed")?,
            requests: row.whole("requests")?,
            failures: row.whole("failures")?,
            rate: row.number("rate")?,
            success: row.number_or_null("success")?,
            p50_us: row.whole_or_null("p50_us")?,
            p90_us: row.whole_or_null("p90_us")?,
            p99_us: row.whole_or_null("p99_us")?,
            p999_us: row.whole_or_null("p999_us")?,
            max_us: row.whole_or_null("max_us")?,
            connections: row.whole("connections")?,
            connections_failed: row.whole("connections_failed")?,
            outcomes: row.list("outcomes", Outcome::read)?,
        })
    }
}

impl Outcome {
    fn read(outcome: Object<'_>) -> Result<Self, String> {
        Ok(Self {
            status: clean(&outcome.text("status")?),
            grpc_status: outcome.whole_or_null("grpc_status")?,
            reason: outcome.text_or_null("reason")?.map(|reason| clean(&reason)),
            count: outcome.whole("count")?,
            failed: outcome.flag("failed")?,
        })
    }

    fn name(&self) -> String {
        match (&self.reason, self.grpc_status) {
            (Some(reason), _) if !reason.is_empty() => reason.clone(),
            (_, Some(code)) => format!("grpc {code}"),
            (_, None) => self.status.clone(),
        }
    }
}

impl Row {
    /// Requests and connections.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.saturating_add(self.connections_failed)
    }

    /// What most of the failures were: `circuit-open 12`.
    pub(crate) fn why(&self) -> String {
        let failures = self.outcomes.iter().filter(|outcome| outcome.failed);
        let most = failures.max_by_key(|outcome| outcome.count);
        most.map(|outcome| format!("{} {}", outcome.name(), count(outcome.count))).unwrap_or_default()
    }
}

impl Events {
    fn read(answer: Object<'_>) -> Result<Self, String> {
        Ok(Self {
            events: answer.list("events", Event::read)?,
            next: answer.whole("next")?,
            missed: answer.whole("missed")?,
        })
    }
}

impl Event {
    fn read(event: Object<'_>) -> Result<Self, String> {
        let severity = match event.text("severity")?.as_str() {
            "info" => Severity::Info,
            "warning" => Severity::Warning,
            // One that is not known is rather shown than hidden.
            _ => Severity::Error,
        };
        Ok(Self {
            seq: event.whole("seq")?,
            at_ms: event.millis("at_ms")?,
            kind: clean(&event.text("kind")?),
            severity,
            subject: clean(&event.text("subject")?),
            message: clean(&event.text("message")?),
            details: event.map("details")?.clone(),
            json: event.json(),
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
