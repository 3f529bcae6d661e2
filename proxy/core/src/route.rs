//! Which rule takes a request, and which of its backends.
//!
//! Rules come in their order of precedence from the control plane; the first whose matches fit is taken. Everything
//! that can be refused (a regular expression, a path that has no normal form) is refused when a snapshot is compiled,
//! never while a request waits.
//!
//! It knows no endpoints (that is [`crate::balance`]) and rewrites nothing.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_proto::spec::{BackendKey, FieldError, HeaderValueMatch, PathMatch, Route, RouteMatch};
use regex::bytes::{Regex, RegexBuilder};

use crate::path_normal;

/// Longest source of a regular expression, in bytes.
const MAX_REGEX_BYTES: usize = 1024;
/// Memory of one compiled expression, and of its cache, in bytes. The engine does not backtrack; this bounds the rest.
const MAX_COMPILED_REGEX_BYTES: usize = 256 * 1024;

/// A rule, ready to be asked.
#[derive(Clone, Debug)]
pub struct CompiledRoute {
    spec: Arc<Route>,
    matches: Vec<Match>,
    /// Ends of the backends' shares, rising; the last is the total weight.
    ends: Vec<u64>,
}

/// What rules look at. `path` is in normal form and without query.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

#[derive(Clone, Debug)]
struct Match {
    method: Option<Method>,
    path: Path,
    headers: Vec<(HeaderName, Value)>,
}

#[derive(Clone, Debug)]
enum Path {
    Any,
    Exact(Box<str>),
    Prefix(Box<str>),
}

#[derive(Clone, Debug)]
enum Value {
    Exact(Arc<str>),
    Regex(Regex),
}

impl CompiledRoute {
    /// `field`: where the rule stands in the update, for errors.
    pub fn compile(spec: &Arc<Route>, field: &str) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let matches = spec
            .matches
            .iter()
            .enumerate()
            .filter_map(|(index, source)| {
                Match::compile(source, &format!("{field}.matches[{index}]"), &mut errors)
            })
            .collect();
        if spec.backends.is_empty() {
            errors.push(FieldError {
                field: format!("{field}.backends"),
                reason: "names no backend".to_owned(),
            });
        }
        let mut total = 0;
        let ends = spec
            .backends
            .iter()
            .map(|backend| {
                total += u64::from(backend.weight.get());
                total
            })
            .collect();
        if errors.is_empty() { Ok(Self { spec: Arc::clone(spec), matches, ends }) } else { Err(errors) }
    }

    pub fn spec(&self) -> &Arc<Route> {
        &self.spec
    }

    pub fn is_match(&self, request: &RequestView<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.is_match(request))
    }

    /// One of the backends, by weight. `random`: uniform over all of `u64`.
    pub fn choose(&self, random: u64) -> &BackendKey {
        let index = match self.ends.last() {
            Some(total) if self.ends.len() > 1 => {
                // The upper half of the product is uniform below `total` but for 2^-32, without a division.
                let point = ((u128::from(random) * u128::from(*total)) >> 64) as u64;
                self.ends.partition_point(|end| *end <= point)
            }
            Some(_) | None => 0,
        };
        &self.spec.backends[index].backend
    }
}

/// The first rule that matches.
pub fn find<'r>(
    routes: &'r [Arc<CompiledRoute>],
    request: &RequestView<'_>,
) -> Option<&'r Arc<CompiledRoute>> {
    routes.iter().find(|route| route.is_match(request))
}

impl Match {
    fn compile(source: &RouteMatch, field: &str, errors: &mut Vec<FieldError>) -> Option<Self> {
        let before = errors.len();
        let path = match &source.path {
            None => Path::Any,
            Some(PathMatch::Exact(path)) => {
                Path::Exact(normal(path, || format!("{field}.path.exact"), errors).unwrap_or_default())
            }
            Some(PathMatch::Prefix(path)) => {
                let path = normal(path, || format!("{field}.path.prefix"), errors).unwrap_or_default();
                match path.strip_suffix('/').unwrap_or(&path) {
                    "" => Path::Any,
                    prefix => Path::Prefix(prefix.into()),
                }
            }
        };
        let mut headers = Vec::with_capacity(source.headers.len());
        for (index, header) in source.headers.iter().enumerate() {
            let value = match &header.value {
                HeaderValueMatch::Exact(value) => Value::Exact(Arc::clone(value)),
                HeaderValueMatch::Regex(source) => match compile_regex(source) {
                    Ok(regex) => Value::Regex(regex),
                    Err(reason) => {
                        errors.push(FieldError { field: format!("{field}.headers[{index}].regex"), reason });
                        continue;
                    }
                },
            };
            headers.push((header.name.clone(), value));
        }
        (errors.len() == before).then(|| Self { method: source.method.clone(), path, headers })
    }

    fn is_match(&self, request: &RequestView<'_>) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method)
            && self.path.is_match(request.path)
            && self.headers.iter().all(|(name, value)| {
                // Each line alone: a proxy that joined them would let one line hide another.
                request.headers.get_all(name).iter().any(|line| value.is_match(line))
            })
    }
}

impl Path {
    fn is_match(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => {
                path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
        }
    }
}

impl Value {
    fn is_match(&self, line: &HeaderValue) -> bool {
        match self {
            Self::Exact(exact) => line.as_bytes() == exact.as_bytes(),
            Self::Regex(regex) => regex.is_match(line.as_bytes()),
        }
    }
}

/// A configured path in the form that requests are brought into, so that `/a%2Db` in a rule is `/a-b`.
fn normal(path: &str, field: impl FnOnce() -> String, errors: &mut Vec<FieldError>) -> Option<Box<str>> {
    match path_normal::normalise(path) {
        Ok(path) => Some(path.into()),
        Err(error) => {
            errors.push(FieldError { field: field(), reason: error.to_string() });
            None
        }
    }
}

/// The whole value must match, as the Gateway API means it; an expression that begins with `^` says so itself.
fn compile_regex(source: &str) -> Result<Regex, String> {
    if source.len() > MAX_REGEX_BYTES {
        return Err(format!("is longer than {MAX_REGEX_BYTES} bytes"));
    }
    RegexBuilder::new(&format!("^(?:{source})$"))
        .size_limit(MAX_COMPILED_REGEX_BYTES)
        .dfa_size_limit(MAX_COMPILED_REGEX_BYTES)
        .build()
        .map_err(|error| {
            if matches!(error, regex::Error::CompiledTooBig(_)) {
                return "compiles to more memory than one rule may hold".to_owned();
            }
            // The library draws the place over several lines; its last one says what is wrong.
            error.to_string().lines().last().unwrap_or_default().trim().to_owned()
        })
}

#[cfg(test)]
mod tests;
