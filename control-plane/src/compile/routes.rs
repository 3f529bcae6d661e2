//! The routes of a service's port, in the order in which the first match wins.
//!
//! The Gateway API orders *matches*, not rules: a rule with two matches may win by one and lose by the other.
//! So every match becomes a route of its own here, and the proxy needs no precedence at all.

use std::{cmp::Reverse, sync::Arc};

use outrigger_proto::spec::{PathMatch, Route, RouteMatch, WeightedBackend};

use crate::{
    config::{HttpRoute, Port, Rule, Service},
    index::Index,
};

pub(super) fn routes(index: &Index, namespace: &str, service: &Service, port: &Port) -> Vec<Arc<Route>> {
    let attached: Vec<_> = index
        .routes_of(&service.name)
        .iter()
        .filter(|route| {
            route.parents.iter().any(|parent| parent.service == service.name && parent.covers(port))
        })
        .collect();
    // A route in the caller's namespace, if that is not the service's, is the caller's own and replaces the
    // service's.
    let of = |namespace: &str| -> Vec<&HttpRoute> {
        attached.iter().map(|route| &***route).filter(|route| *route.name.namespace == *namespace).collect()
    };
    let mut chosen = of(namespace);
    if chosen.is_empty() {
        chosen = of(&service.name.namespace);
    }

    let everything = RouteMatch::default();
    let mut matches = Vec::new();
    for route in chosen {
        for (position, rule) in route.rules.iter().enumerate() {
            let alternatives =
                if rule.matches.is_empty() { std::slice::from_ref(&everything) } else { &rule.matches };
            for (alternative, matched) in alternatives.iter().enumerate() {
                matches.push((Precedence::of(route, matched, position, alternative), rule, matched));
            }
        }
    }
    matches.sort_by(|(a, ..), (b, ..)| a.cmp(b));
    matches.into_iter().map(|(_, rule, matched)| Arc::new(compiled(index, rule, matched))).collect()
}

/// The lowest wins. Fields in the order in which the Gateway API compares them.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Precedence<'a> {
    is_prefix: bool,
    path_length: Reverse<usize>,
    any_method: bool,
    headers: Reverse<usize>,
    undated: bool,
    created: Option<&'a str>,
    namespace: &'a str,
    name: &'a str,
    rule: usize,
    alternative: usize,
}

impl<'a> Precedence<'a> {
    fn of(route: &'a HttpRoute, matched: &RouteMatch, rule: usize, alternative: usize) -> Self {
        let (is_prefix, path_length) = match &matched.path {
            Some(PathMatch::Exact(path)) => (false, path.len()),
            Some(PathMatch::Prefix(path)) => (true, path.len()),
            None => (true, "/".len()),
        };
        Self {
            is_prefix,
            path_length: Reverse(path_length),
            any_method: matched.method.is_none(),
            headers: Reverse(matched.headers.len()),
            undated: route.created.is_none(),
            created: route.created.as_deref(),
            namespace: &route.name.namespace,
            name: &route.name.name,
            rule,
            alternative,
        }
    }
}

fn compiled(index: &Index, rule: &Rule, matched: &RouteMatch) -> Route {
    let backends = rule.backends.iter().filter_map(|backend| {
        let weight = backend.weight.try_into().ok()?;
        let service = index.config().services.get(&backend.service)?;
        Some(WeightedBackend { backend: service.backend(backend.resolve(service)?), weight })
    });
    let matches = if *matched == RouteMatch::default() { Vec::new() } else { vec![matched.clone()] };
    Route {
        name: rule.name.clone(),
        matches,
        backends: backends.collect(),
        request_timeout: rule.request_timeout,
    }
}
