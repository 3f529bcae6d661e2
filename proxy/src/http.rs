//! hyper as this proxy uses it: connections served with a plain async function, bodies passed through, streams watched.
//!
//! - [`serve`]: an HTTP/1 or HTTP/2 connection that a peer has opened, from its first request to its goodbye.
//! - [`exchange`], [`body`]: one request on its way, and its two bodies; [`tries`]: at which endpoints it was tried.
//! - [`replay`]: a body that can be sent again.
//! - [`request`]: what is checked and changed in every message, on either side.
//! - [`watched`]: the stream beneath, with the checks that hyper does not make.
//! - [`upgrade`]: requests that turn a connection into something else.
//!
//! What a request means and where it goes is decided in the recipes, `inbound.rs` and `outbound.rs`.

pub mod body;
pub mod exchange;
pub mod replay;
pub mod request;
pub mod serve;
pub mod tries;
pub mod upgrade;
pub mod watched;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_http2;

use std::future::Future;

use hyper::rt::Executor;
use tokio::task;

/// Runs hyper's tasks on the worker's own thread.
#[derive(Clone, Copy, Default)]
pub struct Tasks;

impl<F: Future<Output: 'static> + 'static> Executor<F> for Tasks {
    fn execute(&self, future: F) {
        task::spawn_local(future);
    }
}
