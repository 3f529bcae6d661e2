//! A span as OpenTelemetry has it, made of a record.
//!
//! Names and attributes are those of the semantic conventions, as far as there are any; what is ours begins with
//! `outrigger.`. Words of strangers (paths, names, methods) are cut, so that a span's size is bounded: what is queued is.
//!
//! It knows no clock but for the moment at which it is made: all times are counted back from there, so a clock that was
//! set meanwhile shifts a span but never makes it negative or huge.

use std::{
    borrow::Cow,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    KeyValue, Value,
    trace::{self as otel, Event, Link, SpanContext, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use opentelemetry_semantic_conventions::attribute as semconv;
use outrigger_certs::{Credential, SpiffeId};
use outrigger_core::trace::Context;
use outrigger_proto::spec::is_grpc_failure;

use super::{Extra, On, Place};
use crate::telemetry::{ConnectionRecord, Direction, Ended, Protocol, RequestRecord, Try};

/// Of a word of a stranger's.
const LONGEST_TEXT: usize = 1_024;

/// The methods that may be names of spans; anybody can invent others.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// gRPC's status codes, by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

// The crate has these marked as deprecated or experimental, and no others are known to backends.
const RPC_SYSTEM: &str = "rpc.system";
const RPC_SERVICE: &str = "rpc.service";
const RPC_METHOD: &str = "rpc.method";
const RPC_GRPC_STATUS: &str = "rpc.grpc.status_code";
// Their successors since version 1.39, where the names do not clash.
const RPC_SYSTEM_NAME: &str = "rpc.system.name";
const RPC_STATUS: &str = "rpc.response.status_code";

const SOURCE: &str = "outrigger.source";
const DESTINATION: &str = "outrigger.destination";
const SERVICE: &str = "outrigger.service";
const ROUTE: &str = "outrigger.route";
const SECURITY: &str = "outrigger.security";
const ATTEMPTS: &str = "outrigger.attempts";
const REASON: &str = "outrigger.reason";
const ID: &str = "outrigger.id";
const POLICY: &str = "outrigger.policy";
const DETAIL: &str = "outrigger.detail";
const RECEIVED: &str = "outrigger.received_bytes";
const SENT: &str = "outrigger.sent_bytes";

/// Attributes in the making.
struct Facts(Vec<KeyValue>);

/// When something began that has just ended.
struct Span {
    start: SystemTime,
    end: SystemTime,
}

pub(super) fn request(
    on: &On,
    own: Option<Arc<Credential>>,
    place: &Place,
    record: &RequestRecord<'_>,
    extra: &Extra<'_>,
) -> SpanData {
    let span = Span::lasted(record.duration);
    let path = record.path.split('?').next().unwrap_or_default();
    let rpc = rpc(record, path);
    let mut facts = Facts(Vec::with_capacity(32));
    let method = METHODS.into_iter().find(|known| *known == record.method);
    facts.add(semconv::HTTP_REQUEST_METHOD, method.unwrap_or("_OTHER"));
    if method.is_none() {
        facts.text(semconv::HTTP_REQUEST_METHOD_ORIGINAL, record.method);
    }
    facts.add(semconv::URL_SCHEME, "http");
    facts.text(semconv::URL_PATH, path);
    facts.authority(record.authority);
    facts.add(semconv::NETWORK_PROTOCOL_VERSION, if extra.http2 { "2" } else { "1.1" });
    facts.ends(own.as_deref(), record.direction, record.peer, record.caller, record.endpoint);
    if record.status != 0 {
        facts.add(semconv::HTTP_RESPONSE_STATUS_CODE, i64::from(record.status));
    }
    if record.attempts > 1 {
        facts.add(semconv::HTTP_REQUEST_RESEND_COUNT, i64::from(record.attempts - 1));
    }
    if let Some((service, method)) = rpc {
        facts.add(RPC_SYSTEM, "grpc");
        facts.add(RPC_SYSTEM_NAME, "grpc");
        facts.text(RPC_SERVICE, service);
        facts.text(RPC_METHOD, method);
    }
    if let Some(code) = record.grpc_status {
        facts.add(RPC_GRPC_STATUS, i64::from(code));
        facts.add(RPC_STATUS, grpc(code));
    }
    facts.text(SERVICE, record.service);
    facts.text(ROUTE, record.route);
    facts.text(SECURITY, record.security);
    facts.add(ATTEMPTS, i64::from(record.attempts));
    facts.bytes(record.received, record.sent);
    if let Some(policy) = extra.policy {
        facts.text(POLICY, policy);
    }
    facts.add(ID, format!("{:016x}", record.id));
    let failed = failed(record, record.direction);
    if let Some(reason) = record.reason {
        facts.add(REASON, reason.as_str());
    }
    if failed {
        facts.add(semconv::ERROR_TYPE, error_type(record));
    }
    let name: Cow<'static, str> = match (rpc, method, record.route) {
        (Some(_), _, _) => cut(path.trim_start_matches('/')).to_owned().into(),
        (None, method, "") => method.unwrap_or("HTTP").into(),
        (None, method, route) => format!("{} {}", method.unwrap_or("HTTP"), cut(route)).into(),
    };
    let mut data = span.data(on, place, record.direction, name, facts);
    data.events.events = events(&span, record, extra);
    if failed {
        let description = match record.reason {
            Some(reason) if record.detail.is_empty() => reason.as_str().into(),
            Some(reason) => format!("{}: {}", reason.as_str(), cut(record.detail)).into(),
            // The status says it already.
            None => "".into(),
        };
        data.status = Status::Error { description };
    }
    data
}

pub(super) fn connection(
    on: &On,
    own: Option<Arc<Credential>>,
    place: &Place,
    record: &ConnectionRecord<'_>,
) -> SpanData {
    let span = Span::lasted(record.duration);
    let mut facts = Facts(Vec::with_capacity(16));
    facts.add(semconv::NETWORK_TRANSPORT, "tcp");
    facts.authority(record.authority);
    facts.ends(own.as_deref(), record.direction, record.peer, record.caller, record.endpoint);
    facts.text(SERVICE, record.service);
    facts.text(SECURITY, record.security);
    facts.add(ATTEMPTS, i64::from(record.attempts));
    facts.bytes(record.received, record.sent);
    facts.add(ID, format!("{:016x}", record.id));
    if let Some(reason) = record.reason {
        facts.add(REASON, reason.as_str());
        facts.add(semconv::ERROR_TYPE, reason.as_str());
    }
    let mut data = span.data(on, place, record.direction, record.protocol.name().into(), facts);
    if record.attempts > 0 && !record.connected.is_zero() {
        data.events.events.push(span.event("connected", record.connected, Facts(Vec::new())));
    }
    if record.reason.is_some() {
        data.status = Status::Error { description: cut(record.detail).to_owned().into() };
    }
    data
}

/// Whether a request failed in a way that somebody may want to look at: not for what its caller did wrong.
pub(super) fn has_failed(record: &RequestRecord<'_>) -> bool {
    failed(record, Direction::Inbound)
}

/// As the conventions have it: what a caller did wrong is an error to itself and none to the server.
fn failed(record: &RequestRecord<'_>, side: Direction) -> bool {
    let outbound = side == Direction::Outbound;
    // A head came, and then the answer broke off; what was answered in place of a failure is none.
    let broken = record.reason.is_some() && record.status < 400 && record.handled.fallback.is_none();
    match (record.protocol, record.grpc_status) {
        (Protocol::Grpc, Some(code)) => match outbound {
            true => code != 0,
            false => is_grpc_failure(code),
        },
        (Protocol::Grpc | Protocol::Http1 | Protocol::Http2 | Protocol::Tcp | Protocol::Tls, _) => {
            record.status == 0 || broken || record.status >= if outbound { 400 } else { 500 }
        }
    }
}

fn error_type(record: &RequestRecord<'_>) -> Value {
    match (record.reason, record.grpc_status, record.status) {
        (Some(reason), _, _) => reason.as_str().into(),
        (None, Some(code), _) => grpc(code),
        (None, None, 0) => "_OTHER".into(),
        (None, None, status) => status.to_string().into(),
    }
}

fn grpc(code: u16) -> Value {
    GRPC.get(usize::from(code)).map_or_else(|| code.to_string().into(), |name| (*name).into())
}

/// Service and method of a gRPC call.
fn rpc<'a>(record: &RequestRecord<'_>, path: &'a str) -> Option<(&'a str, &'a str)> {
    if record.protocol != Protocol::Grpc {
        return None;
    }
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    (!service.is_empty() && !method.is_empty()).then_some((service, method))
}

/// What happened on the way.
fn events(span: &Span, record: &RequestRecord<'_>, extra: &Extra<'_>) -> Vec<Event> {
    let handled = &record.handled;
    let began = record.tries.first().map_or(record.duration, |first| first.began);
    let answered = if record.first_byte.is_zero() { record.duration } else { record.first_byte };
    let mut events = Vec::with_capacity(record.tries.len() + 2);
    let mut add = |name, at, facts| events.push(span.event(name, at, facts));
    if let Some(policy) = extra.policy {
        add("policy", Duration::ZERO, Facts(vec![KeyValue::new(POLICY, cut(policy).to_owned())]));
    }
    if !handled.queued.is_zero() {
        let waited = KeyValue::new("outrigger.waited_us", micros(handled.queued));
        add("queued", began.saturating_sub(handled.queued), Facts(vec![waited]));
    }
    if extra.ejected > 0 {
        let count = KeyValue::new("outrigger.ejected", i64::from(extra.ejected));
        add("ejection", began, Facts(vec![count]));
    }
    for (index, one) in record.tries.iter().enumerate() {
        let name = match (index, one.hedge) {
            (_, true) => "hedge",
            (0, false) => "attempt",
            (_, false) => "retry",
        };
        add(name, one.began, tried(index, one));
    }
    if let Some(why) = handled.gave_up {
        add("gave-up", answered, Facts(vec![KeyValue::new("outrigger.why", why)]));
    }
    if !handled.limit.is_empty() {
        let limit = KeyValue::new("outrigger.limit", cut(handled.limit).to_owned());
        add("limit", Duration::ZERO, Facts(vec![limit]));
    }
    if let Some(cache) = handled.cache {
        add("cache", answered, Facts(vec![KeyValue::new("outrigger.cache", cache)]));
    }
    if let Some(fallback) = handled.fallback {
        add("fallback", answered, Facts(vec![KeyValue::new("outrigger.fallback", fallback)]));
    }
    if let Some(reason) = record.reason {
        let mut facts = Facts(Vec::with_capacity(3));
        facts.add(REASON, reason.as_str());
        facts.add(ID, format!("{:016x}", record.id));
        facts.text(DETAIL, record.detail);
        add("verdict", answered, facts);
    }
    events
}

fn tried(index: usize, one: &Try) -> Facts {
    let outcome: Value = match one.ended {
        Ended::Cancelled => "cancelled".into(),
        Ended::Status(status) => status.to_string().into(),
        Ended::Grpc(code) => grpc(code),
        Ended::Failed(reason) => reason.as_str().into(),
    };
    let mut facts = Facts(Vec::with_capacity(5));
    facts.add("outrigger.attempt", index as i64 + 1);
    facts.add("outrigger.endpoint", one.endpoint.to_string());
    facts.add("outrigger.outcome", outcome);
    facts.add("outrigger.connect_us", micros(one.connect));
    facts.add("outrigger.lasted_us", micros(one.lasted));
    facts
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_TEXT)]
}

// === impl Facts ===

impl Facts {
    fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    /// Nothing, if it is empty.
    fn text(&mut self, name: &'static str, text: &str) {
        if !text.is_empty() {
            self.add(name, cut(text).to_owned());
        }
    }

    fn authority(&mut self, authority: &str) {
        let (host, port) = match authority.rsplit_once(':') {
            // The colon of a bare IPv6 address is none before a port.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, port.parse().ok()),
            Some(_) | None => (authority, None::<u16>),
        };
        self.text(semconv::SERVER_ADDRESS, host);
        if let Some(port) = port {
            self.add(semconv::SERVER_PORT, i64::from(port));
        }
    }

    /// Who was at either end.
    fn ends(
        &mut self,
        own: Option<&Credential>,
        direction: Direction,
        peer: Option<&SpiffeId>,
        caller: SocketAddr,
        endpoint: Option<SocketAddr>,
    ) {
        let own = own.map(|own| own.identity().as_str());
        let peer = peer.map(SpiffeId::as_str);
        let (source, destination, other) = match direction {
            Direction::Outbound => (own, peer, endpoint),
            Direction::Inbound => (peer, own, Some(caller)),
        };
        self.text(SOURCE, source.unwrap_or_default());
        self.text(DESTINATION, destination.unwrap_or_default());
        if let Some(other) = other {
            self.add(semconv::NETWORK_PEER_ADDRESS, other.ip().to_string());
            self.add(semconv::NETWORK_PEER_PORT, i64::from(other.port()));
        }
        if direction == Direction::Inbound {
            self.add(semconv::CLIENT_ADDRESS, caller.ip().to_string());
        }
    }

    fn bytes(&mut self, received: u64, sent: u64) {
        self.add(RECEIVED, i64::try_from(received).unwrap_or(i64::MAX));
        self.add(SENT, i64::try_from(sent).unwrap_or(i64::MAX));
    }
}

// === impl Span ===

impl Span {
    fn lasted(duration: Duration) -> Self {
        let end = SystemTime::now();
        Self { start: end.checked_sub(duration).unwrap_or(end), end }
    }

    fn event(&self, name: &'static str, at: Duration, facts: Facts) -> Event {
        let at = self.start.checked_add(at).unwrap_or(self.end).min(self.end);
        Event::new(name, at, facts.0, 0)
    }

    fn data(
        &self,
        on: &On,
        place: &Place,
        direction: Direction,
        name: Cow<'static, str>,
        facts: Facts,
    ) -> SpanData {
        let parent = place.own.as_ref().and_then(|own| own.parent);
        let mut links = SpanLinks::default();
        if let Some(link) = place.own.as_ref().and_then(|own| own.link) {
            links.links.push(Link::new(context(&link, link.sampled.unwrap_or(false), true), Vec::new(), 0));
        }
        SpanData {
            span_context: context(&place.context, true, false),
            parent_span_id: parent
                .map_or(otel::SpanId::INVALID, |parent| otel::SpanId::from_bytes(parent.to_bytes())),
            parent_span_is_remote: parent.is_some(),
            span_kind: match direction {
                Direction::Outbound => SpanKind::Client,
                Direction::Inbound => SpanKind::Server,
            },
            name,
            start_time: self.start,
            end_time: self.end,
            attributes: facts.0,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links,
            status: Status::Unset,
            instrumentation_scope: on.scope.clone(),
        }
    }
}

fn context(of: &Context, sampled: bool, remote: bool) -> SpanContext {
    let flags = TraceFlags::new(u8::from(sampled) | u8::from(of.random) << 1);
    let trace = otel::TraceId::from_bytes(of.trace.to_bytes());
    SpanContext::new(trace, otel::SpanId::from_bytes(of.span.to_bytes()), flags, remote, TraceState::NONE)
}
