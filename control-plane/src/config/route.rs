//! An `HTTPRoute`, validated.
//!
//! Positions are kept: the n-th parent, rule or backend here is the n-th in the file, so that later checks
//! can point at it. What has weight 0 is left out only when routes are compiled.

use std::{num::NonZeroU16, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use outrigger_proto::{
    limits::{MAX_HEADER_MATCHES, MAX_REGEX_BYTES, MAX_TEXT_BYTES, MAX_WEIGHTED_BACKENDS},
    spec::{HeaderMatch, HeaderValueMatch, PathMatch, RouteMatch},
};

use super::{ObjectName, notes::Notes, service::each};
use crate::{
    kinds::{self, Document, HeaderMatchType, HttpRouteSpec, Method, PathMatchType},
    yaml::Path,
};

const MAX_WEIGHT: i64 = 1_000_000;

#[derive(Clone, Debug, PartialEq)]
pub struct HttpRoute {
    pub name: ObjectName,
    /// RFC 3339 in UTC, which sorts as text.
    pub created: Option<String>,
    pub parents: Vec<Parent>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parent {
    pub service: ObjectName,
    pub port: Option<NonZeroU16>,
    /// A port by its name.
    pub section: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// `NAMESPACE/NAME/RULE`.
    pub name: Arc<str>,
    /// Empty: every request.
    pub matches: Vec<RouteMatch>,
    /// Never empty, and not all of weight 0.
    pub backends: Vec<BackendRef>,
    pub request_timeout: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct BackendRef {
    pub service: ObjectName,
    /// Absent: the service's only port.
    pub port: Option<NonZeroU16>,
    pub weight: u32,
}

pub(super) fn from_kind(
    name: &ObjectName,
    document: Document<HttpRouteSpec>,
    notes: &mut Notes<'_>,
) -> Option<HttpRoute> {
    let HttpRouteSpec { parent_refs, rules } = document.spec;
    let spec = Path::of("spec");
    let created = document.metadata.creation_timestamp;
    if created.as_deref().is_some_and(|time| !is_rfc3339_utc(time)) {
        let path = Path::of("metadata").key("creationTimestamp");
        notes.note(&path, "is not a time such as \"2026-01-31T12:00:00Z\"");
    }
    for (field, empty) in [("parentRefs", parent_refs.is_empty()), ("rules", rules.is_empty())] {
        if empty {
            notes.note(&spec.key(field), "is empty: the route would do nothing");
        }
    }
    let parents = each(&spec.key("parentRefs"), parent_refs, |path, parent| {
        parent_from_kind(path, name, parent, notes)
    });
    let rules = each(&spec.key("rules"), rules, |path, rule| rule_from_kind(path, name, rule, notes));
    let mut rules = rules?;
    for (index, rule) in rules.iter_mut().enumerate() {
        let label = if rule.name.is_empty() { index.to_string() } else { rule.name.to_string() };
        rule.name = format!("{name}/{label}").into();
    }
    for (index, rule) in rules.iter().enumerate() {
        if rules[..index].iter().any(|other| other.name == rule.name) {
            notes.note(&spec.key("rules").index(index).key("name"), "is the name of another rule already");
        }
    }
    Some(HttpRoute { name: name.clone(), created, parents: parents?, rules })
}

fn parent_from_kind(
    path: &Path,
    route: &ObjectName,
    written: kinds::ParentRef,
    notes: &mut Notes<'_>,
) -> Option<Parent> {
    let kinds::ParentRef { group, kind, namespace, name, section_name, port } = written;
    match kind {
        Some(kind) => notes.service_kind(path, group.as_deref(), &kind),
        // The Gateway API's own default is Gateway.
        None => notes.note(&path.key("kind"), "is required: want Service or MeshService"),
    }
    let service = service_name(path, route, &name, namespace.as_deref(), notes);
    let port = match port {
        Some(port) => Some(notes.port(&path.key("port"), port)?),
        None => None,
    };
    Some(Parent { service: service?, port, section: section_name.map(Arc::from) })
}

fn service_name(
    path: &Path,
    route: &ObjectName,
    name: &str,
    namespace: Option<&str>,
    notes: &mut Notes<'_>,
) -> Option<ObjectName> {
    let namespace = match namespace {
        Some(namespace) => notes.name(&path.key("namespace"), namespace),
        None => Some(route.namespace.clone()),
    };
    Some(ObjectName { name: notes.name(&path.key("name"), name)?, namespace: namespace? })
}

fn rule_from_kind(
    path: &Path,
    route: &ObjectName,
    written: kinds::HttpRouteRule,
    notes: &mut Notes<'_>,
) -> Option<Rule> {
    let kinds::HttpRouteRule { name, matches, backend_refs, timeouts } = written;
    let name = match &name {
        Some(name) => notes.name(&path.key("name"), name),
        None => Some(Arc::default()),
    };
    let matches = each(&path.key("matches"), matches, |path, written| match_from_kind(path, written, notes));

    let refs = path.key("backendRefs");
    notes.at_most(&refs, backend_refs.len(), MAX_WEIGHTED_BACKENDS);
    if backend_refs.is_empty() {
        notes.note(&refs, "is empty: matching requests have nowhere to go");
    } else if backend_refs.iter().all(|backend| backend.weight == Some(0)) {
        notes.note(&refs, "all have weight 0: matching requests have nowhere to go");
    }
    let backends = each(&refs, backend_refs, |path, written| backend_from_kind(path, route, written, notes));

    let request = path.key("timeouts").key("request");
    let request_timeout = match timeouts.and_then(|timeouts| timeouts.request) {
        Some(text) => Some(notes.duration(&request, &text)?),
        None => None,
    };
    if request_timeout.is_some_and(|timeout| timeout.is_zero()) {
        notes.note(
            &request,
            "cannot be 0s here: \"no limit\" is said in a TrafficPolicy, for the whole service",
        );
    }
    Some(Rule { name: name?, matches: matches?, backends: backends?, request_timeout })
}

fn backend_from_kind(
    path: &Path,
    route: &ObjectName,
    written: kinds::BackendRef,
    notes: &mut Notes<'_>,
) -> Option<BackendRef> {
    let kinds::BackendRef { group, kind, name, namespace, port, weight } = written;
    notes.service_kind(path, group.as_deref(), kind.as_deref().unwrap_or("Service"));
    let service = service_name(path, route, &name, namespace.as_deref(), notes);
    let port = match port {
        Some(port) => Some(notes.port(&path.key("port"), port)?),
        None => None,
    };
    let weight = weight.unwrap_or(1);
    let legal = u32::try_from(weight).ok().filter(|_| weight <= MAX_WEIGHT);
    if legal.is_none() {
        notes.note(&path.key("weight"), format!("{weight} is not a weight: want 0 to {MAX_WEIGHT}"));
    }
    Some(BackendRef { service: service?, port, weight: legal? })
}

fn match_from_kind(path: &Path, written: kinds::RouteMatch, notes: &mut Notes<'_>) -> Option<RouteMatch> {
    let kinds::RouteMatch { path: path_match, headers, method } = written;
    let path_match = match path_match {
        Some(written) => Some(path_from_kind(&path.key("path"), written, notes)?),
        None => None,
    };
    notes.at_most(&path.key("headers"), headers.len(), MAX_HEADER_MATCHES);
    let headers =
        each(&path.key("headers"), headers, |path, written| header_from_kind(path, written, notes))?;
    for (index, header) in headers.iter().enumerate() {
        if headers[..index].iter().any(|other| other.name == header.name) {
            let path = path.key("headers").index(index).key("name");
            notes.note(&path, format!("{} is matched twice", header.name));
        }
    }
    Some(RouteMatch { path: path_match, headers, method: method.map(http_method) })
}

fn path_from_kind(path: &Path, written: kinds::PathMatch, notes: &mut Notes<'_>) -> Option<PathMatch> {
    let value = written.value.as_deref().unwrap_or("/");
    let at = path.key("value");
    // Requests are compared after normalisation, so none would ever match these.
    let odd = ["//", "/./", "/../", "%2f", "%2F"].into_iter().find(|part| value.contains(part));
    let odd_end = ["/.", "/.."].into_iter().find(|end| value.ends_with(end));
    let reason = if !value.starts_with('/') {
        "does not begin with /".to_owned()
    } else if let Some(part) = odd.or(odd_end) {
        format!("has {part:?}, which no normalised path has")
    } else if value.bytes().any(|b| b <= b' ' || b == 0x7f || matches!(b, b'?' | b'#')) {
        "has a character that no path has: a space, a control character, ? or #".to_owned()
    } else if value.len() > MAX_TEXT_BYTES {
        format!("is longer than {MAX_TEXT_BYTES} bytes")
    } else {
        return Some(match written.kind {
            PathMatchType::Exact => PathMatch::Exact(value.into()),
            PathMatchType::PathPrefix => {
                // /a and /a/ mean the same as prefixes, because whole elements are compared.
                let trimmed = value.strip_suffix('/').unwrap_or(value);
                PathMatch::Prefix(if trimmed.is_empty() { "/" } else { trimmed }.into())
            }
        });
    };
    notes.note(&at, format!("{value:?} {reason}"));
    None
}

fn header_from_kind(path: &Path, written: kinds::HeaderMatch, notes: &mut Notes<'_>) -> Option<HeaderMatch> {
    let kinds::HeaderMatch { kind, name, value } = written;
    let header = HeaderName::from_bytes(name.as_bytes()).ok();
    if header.is_none() {
        notes.note(&path.key("name"), format!("{name:?} is not the name of a header"));
    }
    let at = path.key("value");
    let value = match kind {
        HeaderMatchType::Exact if HeaderValue::from_str(&value).is_err() || value.len() > MAX_TEXT_BYTES => {
            notes.note(&at, "has a character that no header value has, or is too long");
            return None;
        }
        HeaderMatchType::Exact => HeaderValueMatch::Exact(value.into()),
        HeaderMatchType::RegularExpression => {
            if value.is_empty() || value.len() > MAX_REGEX_BYTES {
                notes.note(&at, format!("is empty or longer than {MAX_REGEX_BYTES} bytes"));
                return None;
            }
            if let Err(error) = compiles(&value) {
                // The engine's message spans lines, with a caret under the culprit; its last line says what
                // it is.
                let text = error.to_string();
                let reason = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                notes.note(&at, format!("{value:?} is not a regular expression: {reason}"));
                return None;
            }
            HeaderValueMatch::Regex(value.into())
        }
    };
    Some(HeaderMatch { name: header?, value })
}

/// As the proxy will: by itself, so that brackets are its own, and between anchors.
fn compiles(source: &str) -> Result<(), regex::Error> {
    for pattern in [source, &format!("^(?:{source})$")] {
        regex::bytes::RegexBuilder::new(pattern)
            .size_limit(REGEX_BYTES)
            .dfa_size_limit(REGEX_BYTES)
            .build()?;
    }
    Ok(())
}

/// Memory that one compiled expression may take, here as in the proxy.
const REGEX_BYTES: usize = 256 * 1024;

fn http_method(method: Method) -> http::Method {
    match method {
        Method::Get => http::Method::GET,
        Method::Head => http::Method::HEAD,
        Method::Post => http::Method::POST,
        Method::Put => http::Method::PUT,
        Method::Delete => http::Method::DELETE,
        Method::Connect => http::Method::CONNECT,
        Method::Options => http::Method::OPTIONS,
        Method::Trace => http::Method::TRACE,
        Method::Patch => http::Method::PATCH,
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ` as Kubernetes writes it: only this spelling sorts as text.
fn is_rfc3339_utc(text: &str) -> bool {
    let pattern = "dddd-dd-ddTdd:dd:ddZ";
    text.len() == pattern.len()
        && text.bytes().zip(pattern.bytes()).all(|(b, p)| if p == b'd' { b.is_ascii_digit() } else { b == p })
}
