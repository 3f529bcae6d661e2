//! Which rule takes a request, and which of its backends.

use std::sync::Arc;

use http::{HeaderMap, Method};
use outrigger_proto::spec::{self, BackendKey, FieldError};

/// A rule, compiled.
#[derive(Clone, Debug)]
pub struct CompiledRoute {
    spec: Arc<spec::Route>,
}

/// What rules look at. `path` is normalised and without query.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    pub method: &'a Method,
    pub path: &'a str,
    pub headers: &'a HeaderMap,
}

impl CompiledRoute {
    /// `field`: path of this route in the update, for errors.
    pub fn compile(_spec: &Arc<spec::Route>, _field: &str) -> Result<Self, Vec<FieldError>> {
        unimplemented!()
    }
    pub fn spec(&self) -> &Arc<spec::Route> {
        &self.spec
    }
}

/// The first rule that matches.
pub fn find<'r>(_routes: &'r [Arc<CompiledRoute>], _request: &RequestView<'_>) -> Option<&'r Arc<CompiledRoute>> {
    unimplemented!()
}

/// One of the rule's backends, by weight. `random`: uniform over all of `u64`.
pub fn choose(_route: &CompiledRoute, _random: u64) -> &BackendKey {
    unimplemented!()
}
