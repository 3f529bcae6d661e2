//! Destinations and their routes.

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};

use super::{
    backend, backend_key,
    fields::{Fields, milliseconds},
    inbound, path_text,
};
use crate::{
    limits::{MAX_HEADER_MATCHES, MAX_MATCHES, MAX_REGEX_BYTES, MAX_ROUTES, MAX_WEIGHTED_BACKENDS},
    pb,
    spec::{
        Destination, HeaderMatch, HeaderValueMatch, Key, PathMatch, Route, RouteMatch, ServicePort,
        WeightedBackend, Workload,
    },
};

// === from the wire ===

pub(super) fn from_pb(fields: &mut Fields, from: pb::Destination) -> Option<Destination> {
    use pb::destination::Kind;

    match from.kind {
        Some(Kind::Service(service)) => {
            fields.at("service", |fields| service_from_pb(fields, service)).map(Destination::Service)
        }
        Some(Kind::Workload(workload)) => {
            fields.at("workload", |fields| workload_from_pb(fields, &workload)).map(Destination::Workload)
        }
        Some(Kind::External(pb::External {})) => Some(Destination::External),
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            None
        }
    }
}

fn service_from_pb(fields: &mut Fields, from: pb::ServicePort) -> Option<ServicePort> {
    let namespace = fields.at("namespace", |fields| fields.name(&from.namespace));
    let name = fields.at("name", |fields| fields.name(&from.name));
    let port = fields.at("port", |fields| fields.port(from.port));
    let protocol = fields.at("protocol", |fields| inbound::protocol(fields, from.protocol));
    let routes = fields
        .list("routes", from.routes, MAX_ROUTES, |fields, from| Some(Arc::new(route_from_pb(fields, from))));
    let backend = fields.at("backend", |fields| backend_key(fields, &from.backend));
    Some(ServicePort { namespace, name, port: port?, protocol: protocol?, routes, backend: backend? })
}

fn workload_from_pb(fields: &mut Fields, from: &pb::Workload) -> Option<Workload> {
    let endpoint = fields.at("endpoint", |fields| match &from.endpoint {
        Some(endpoint) => backend::endpoint_from_pb(fields, endpoint),
        None => {
            fields.refuse("is missing");
            None
        }
    });
    let protocol = fields.at("protocol", |fields| inbound::protocol(fields, from.protocol));
    Some(Workload { endpoint: endpoint?, protocol: protocol? })
}

fn route_from_pb(fields: &mut Fields, from: pb::Route) -> Route {
    let name = fields.at("name", |fields| fields.label(&from.name));
    let matches = fields.list("matches", from.matches, MAX_MATCHES, match_from_pb);
    if from.backends.is_empty() {
        fields.refuse_at("backends", "a route needs a backend");
    }
    let backends = fields.list("backends", from.backends, MAX_WEIGHTED_BACKENDS, |fields, from| {
        let backend = fields.at("backend", |fields| backend_key(fields, &from.backend));
        let weight = fields.at("weight", |fields| backend::weight(fields, from.weight));
        Some(WeightedBackend { backend: backend?, weight: weight? })
    });
    let request_timeout = fields.at("request_timeout_ms", |fields| fields.timeout(from.request_timeout_ms));
    Route { name, matches, backends, request_timeout }
}

fn match_from_pb(fields: &mut Fields, from: pb::RouteMatch) -> Option<RouteMatch> {
    let path = fields.at("path", |fields| from.path.and_then(|path| path_from_pb(fields, path)));
    let headers = fields.list("headers", from.headers, MAX_HEADER_MATCHES, header_from_pb);
    let method = fields.at("method", |fields| match from.method.as_str() {
        "" => None,
        text => fields.parse::<Method>(text),
    });
    Some(RouteMatch { path, headers, method })
}

fn path_from_pb(fields: &mut Fields, from: pb::PathMatch) -> Option<PathMatch> {
    use pb::path_match::Kind;

    match from.kind {
        Some(Kind::Exact(path)) => {
            fields.at("exact", |fields| Some(PathMatch::Exact(path_text(fields, &path))))
        }
        Some(Kind::Prefix(path)) => fields.at("prefix", |fields| {
            if path.len() > 1 && path.ends_with('/') {
                fields.refuse("ends with /: a prefix matches by whole elements, write it without");
            }
            Some(PathMatch::Prefix(path_text(fields, &path)))
        }),
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            None
        }
    }
}

fn header_from_pb(fields: &mut Fields, from: pb::HeaderMatch) -> Option<HeaderMatch> {
    use pb::header_match::Kind;

    let name = fields.at("name", |fields| fields.parse::<HeaderName>(&from.name));
    let value = match from.kind {
        Some(Kind::Exact(value)) => fields.at("exact", |fields| {
            if HeaderValue::from_str(&value).is_err() {
                fields.refuse("has a character that no header value has");
            }
            HeaderValueMatch::Exact(fields.text(&value))
        }),
        Some(Kind::Regex(source)) => fields.at("regex", |fields| {
            if source.is_empty() {
                fields.refuse("is empty");
            } else if source.len() > MAX_REGEX_BYTES {
                fields.refuse(format!("has {} bytes, at most {MAX_REGEX_BYTES} are taken", source.len()));
            }
            HeaderValueMatch::Regex(source.into())
        }),
        None => {
            fields.refuse_at("kind", "is missing, or unknown to this build");
            return None;
        }
    };
    Some(HeaderMatch { name: name?, value })
}

// === to the wire ===

pub(super) fn to_pb(from: &Destination) -> pb::Destination {
    use pb::destination::Kind;

    pb::Destination {
        kind: Some(match from {
            Destination::Service(service) => Kind::Service(service_to_pb(service)),
            Destination::Workload(workload) => Kind::Workload(pb::Workload {
                endpoint: Some(backend::endpoint_to_pb(&workload.endpoint)),
                protocol: inbound::protocol_to_pb(workload.protocol).into(),
            }),
            Destination::External => Kind::External(pb::External {}),
        }),
    }
}

fn service_to_pb(from: &ServicePort) -> pb::ServicePort {
    pb::ServicePort {
        namespace: from.namespace.to_string(),
        name: from.name.to_string(),
        port: from.port.get().into(),
        protocol: inbound::protocol_to_pb(from.protocol).into(),
        routes: from.routes.iter().map(|route| route_to_pb(route)).collect(),
        backend: Key::Backend(from.backend.clone()).to_string(),
    }
}

fn route_to_pb(from: &Route) -> pb::Route {
    let backends = from.backends.iter().map(|weighted| pb::WeightedBackend {
        backend: Key::Backend(weighted.backend.clone()).to_string(),
        weight: weighted.weight.get(),
    });
    pb::Route {
        name: from.name.to_string(),
        matches: from.matches.iter().map(match_to_pb).collect(),
        backends: backends.collect(),
        request_timeout_ms: milliseconds(from.request_timeout),
    }
}

fn match_to_pb(from: &RouteMatch) -> pb::RouteMatch {
    let path = from.path.as_ref().map(|path| pb::PathMatch {
        kind: Some(match path {
            PathMatch::Exact(path) => pb::path_match::Kind::Exact(path.to_string()),
            PathMatch::Prefix(path) => pb::path_match::Kind::Prefix(path.to_string()),
        }),
    });
    let headers = from.headers.iter().map(|header| pb::HeaderMatch {
        name: header.name.to_string(),
        kind: Some(match &header.value {
            HeaderValueMatch::Exact(value) => pb::header_match::Kind::Exact(value.to_string()),
            HeaderValueMatch::Regex(source) => pb::header_match::Kind::Regex(source.to_string()),
        }),
    });
    pb::RouteMatch {
        path,
        headers: headers.collect(),
        method: from.method.as_ref().map(Method::to_string).unwrap_or_default(),
    }
}
