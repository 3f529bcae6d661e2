use std::{collections::HashMap, num::NonZeroU32};

use outrigger_proto::spec::{HeaderMatch, WeightedBackend};
use proptest::prelude::*;

use super::*;

fn backend(name: &str) -> BackendKey {
    format!("shop/{name}:80").parse().unwrap()
}

fn route(matches: Vec<RouteMatch>, weights: &[u32]) -> Arc<Route> {
    let backends = weights.iter().enumerate().map(|(index, weight)| WeightedBackend {
        backend: backend(&format!("b{index}")),
        weight: NonZeroU32::new(*weight).unwrap(),
    });
    Arc::new(Route { name: "shop/r/0".into(), matches, backends: backends.collect(), request_timeout: None })
}

fn compiled(matches: Vec<RouteMatch>) -> CompiledRoute {
    CompiledRoute::compile(&route(matches, &[1]), "r").unwrap()
}

fn on_path(path: PathMatch) -> RouteMatch {
    RouteMatch { path: Some(path), ..RouteMatch::default() }
}

fn on_header(value: HeaderValueMatch) -> RouteMatch {
    let header = HeaderMatch { name: HeaderName::from_static("x-user"), value };
    RouteMatch { headers: vec![header], ..RouteMatch::default() }
}

fn matches_request(route: &CompiledRoute, method: &Method, path: &str, users: &[&str]) -> bool {
    let mut headers = HeaderMap::new();
    for user in users {
        headers.append("x-user", user.parse().unwrap());
    }
    route.is_match(&RequestView { method, path, headers: &headers })
}

#[test]
fn paths_match_by_whole_elements() {
    for (source, path, want) in [
        (PathMatch::Exact("/a".into()), "/a", true),
        (PathMatch::Exact("/a".into()), "/a/", false),
        (PathMatch::Exact("/a".into()), "/A", false),
        (PathMatch::Exact("/%61%2db".into()), "/a-b", true),
        (PathMatch::Prefix("/a".into()), "/a", true),
        (PathMatch::Prefix("/a".into()), "/a/", true),
        (PathMatch::Prefix("/a".into()), "/a/b", true),
        (PathMatch::Prefix("/a".into()), "/ab", false),
        (PathMatch::Prefix("/a/".into()), "/a", true),
        (PathMatch::Prefix("/a/".into()), "/ab", false),
        (PathMatch::Prefix("/".into()), "/anything", true),
        (PathMatch::Prefix("/".into()), "*", true),
    ] {
        let route = compiled(vec![on_path(source.clone())]);
        assert_eq!(matches_request(&route, &Method::GET, path, &[]), want, "{source:?} {path}");
    }
}

#[test]
fn headers_match_line_by_line_and_as_a_whole() {
    let exact = compiled(vec![on_header(HeaderValueMatch::Exact("anna".into()))]);
    let regex = compiled(vec![on_header(HeaderValueMatch::Regex("an+a|bob".into()))]);
    for (users, by_exact, by_regex) in [
        (&[][..], false, false),
        (&["anna"], true, true),
        (&["eve", "anna"], true, true),
        (&["eve, anna"], false, false),
        (&["Anna"], false, false),
        (&["ana"], false, true),
        (&["bobby"], false, false),
        (&["xbob"], false, false),
    ] {
        assert_eq!(matches_request(&exact, &Method::GET, "/", users), by_exact, "exact {users:?}");
        assert_eq!(matches_request(&regex, &Method::GET, "/", users), by_regex, "regex {users:?}");
    }
}

#[test]
fn all_conditions_of_one_match_and_any_match_of_a_rule() {
    let both = RouteMatch {
        method: Some(Method::POST),
        path: Some(PathMatch::Prefix("/a".into())),
        ..on_header(HeaderValueMatch::Exact("anna".into()))
    };
    let route = compiled(vec![both, on_path(PathMatch::Exact("/b".into()))]);
    assert!(matches_request(&route, &Method::POST, "/a/1", &["anna"]));
    assert!(!matches_request(&route, &Method::GET, "/a/1", &["anna"]));
    assert!(!matches_request(&route, &Method::POST, "/a/1", &["bob"]));
    assert!(matches_request(&route, &Method::GET, "/b", &[]));
    assert!(matches_request(&compiled(vec![]), &Method::GET, "/any", &[]));
}

#[test]
fn the_first_rule_wins() {
    let routes: Vec<_> = [vec![on_path(PathMatch::Prefix("/a".into()))], vec![]]
        .into_iter()
        .map(|matches| Arc::new(compiled(matches)))
        .collect();
    let headers = HeaderMap::new();
    let view = |path| RequestView { method: &Method::GET, path, headers: &headers };
    assert!(Arc::ptr_eq(find(&routes, &view("/a/b")).unwrap(), &routes[0]));
    assert!(Arc::ptr_eq(find(&routes, &view("/b")).unwrap(), &routes[1]));
    assert!(find(&routes[..1], &view("/b")).is_none());
}

#[test]
fn what_cannot_be_compiled_is_refused_with_its_field() {
    let long = "a".repeat(MAX_REGEX_BYTES + 1);
    for (source, field, reason) in [
        (on_header(HeaderValueMatch::Regex("(".into())), "r.matches[0].headers[0].regex", "unclosed group"),
        (
            on_header(HeaderValueMatch::Regex(r"\w{1000}{1000}".into())),
            "r.matches[0].headers[0].regex",
            "memory",
        ),
        (
            on_header(HeaderValueMatch::Regex(long.into())),
            "r.matches[0].headers[0].regex",
            "longer than 1024",
        ),
        (on_path(PathMatch::Exact("/a%2fb".into())), "r.matches[0].path.exact", "slash"),
        (on_path(PathMatch::Prefix("a".into())), "r.matches[0].path.prefix", "begin with /"),
    ] {
        let errors = CompiledRoute::compile(&route(vec![source.clone()], &[1]), "r").unwrap_err();
        assert_eq!(errors.len(), 1, "{source:?}: {errors:?}");
        assert_eq!(errors[0].field, field);
        assert!(errors[0].reason.contains(reason), "{errors:?}");
    }
    let errors = CompiledRoute::compile(&route(vec![], &[]), "r").unwrap_err();
    assert_eq!(errors[0].field, "r.backends");
}

#[test]
fn weights_are_shares_of_all_random_numbers() {
    let route = CompiledRoute::compile(&route(vec![], &[90, 10]), "r").unwrap();
    assert_eq!(*route.choose(0), backend("b0"));
    assert_eq!(*route.choose(u64::MAX), backend("b1"));
    let tenth = u64::MAX / 10;
    assert_eq!(*route.choose(tenth * 9 - 1), backend("b0"));
    assert_eq!(*route.choose(tenth * 9 + 10), backend("b1"));
}

proptest! {
    #[test]
    fn evenly_spread_numbers_give_exact_shares(weights in prop::collection::vec(1..50_u32, 1..6)) {
        let total: u32 = weights.iter().sum();
        let route = CompiledRoute::compile(&route(vec![], &weights), "r").unwrap();
        let mut counts: HashMap<BackendKey, u32> = HashMap::new();
        for step in 0..total {
            // The middle of each of `total` equal parts of the range.
            let random = ((u128::from(step) * 2 + 1) << 63) / u128::from(total);
            *counts.entry(route.choose(random as u64).clone()).or_default() += 1;
        }
        for (index, weight) in weights.iter().enumerate() {
            prop_assert_eq!(counts.get(&backend(&format!("b{index}"))), Some(weight));
        }
    }
}
