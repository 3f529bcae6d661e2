//! Every decision of the proxy, and nothing else: no IO, no clock, no randomness of its own, no async, no locks.
//!
//! What comes in from the world is a parameter: bytes, `now: Instant`, a random number or a generator. What should
//! happen to the world goes out as a value. So everything here runs in microseconds under a table test, a property test
//! or a simulator, and the shell around it (`outrigger-proxy`) only reads sockets, asks, and does what it was told.
//!
//! # Invariants of absence
//!
//! This crate depends on neither tokio, hyper nor rustls; `clippy.toml` bans clocks and the environment; the generator
//! traits come from `rand_core`, never a constructor. CI checks the dependencies with `cargo tree`.
//!
//! # How machines are called
//!
//! All machines (those with state: [`pool`], [`race`], [`framing`], [`balance`], [`retry`], [`hedge`],
//! [`coalesce`]) follow one naming contract:
//!
//! | name | meaning |
//! |---|---|
//! | `new(config, …)` | makes one, takes `now` where time matters |
//! | `on_*(&mut self, …, now)` | something happened; what follows from it is returned or queued |
//! | `poll_event(&mut self)` | the next queued effect; call until `None` after every other call that may queue one |
//! | `handle_timeout(&mut self, now)` | the time of `poll_timeout` has come |
//! | `poll_timeout(&self)` | when to call `handle_timeout`; ask again after every call |
//! | getters `&self` | change nothing |
//!
//! Time given to one machine never goes backwards by more than it can bear: differences saturate at zero.
//!
//! # Code map, in the order a connection meets it
//!
//! - [`limits`]: the numbers that bound what a stranger may cost, with their sources.
//! - [`detect`], [`client_hello`], [`race`]: what the first bytes say, and who speaks first.
//! - [`framing`]: what HTTP/1 parsers let pass and we do not.
//! - [`authority`], [`path_normal`], [`headers`]: one spelling of host and path, hop-by-hop and forged headers.
//! - [`identity`], [`authorize`]: who calls, and whether it may.
//! - [`snapshot`]: the configuration in force, compiled; [`route`]: which backend a request goes to.
//! - [`rate_limit`]: how often; [`bulkhead`]: how many at once, and who waits for a place.
//! - [`balance`], [`pool`]: which endpoint, over which connection.
//! - [`outlier`]: which endpoints are out, and how they come back; [`health`]: when they are checked.
//! - [`deadline`]: how long it may still take; [`retry`], [`backoff`]: whether and when to try again; [`hedge`]: when to
//!   try twice at once.
//! - [`cache`], [`coalesce`]: what is answered from memory, and what is asked once for many; [`fallback`]: what there is
//!   instead of an answer.
//! - [`verdict`]: every answer the proxy makes itself.
//! - [`trace`]: which trace it belongs to, and whether that is recorded.

pub mod authority;
pub mod authorize;
pub mod backoff;
pub mod balance;
pub mod bulkhead;
pub mod cache;
pub mod client_hello;
pub mod coalesce;
pub mod deadline;
pub mod detect;
pub mod fallback;
pub mod framing;
pub mod headers;
pub mod health;
pub mod hedge;
pub mod identity;
pub mod limits;
pub mod outlier;
pub mod path_normal;
pub mod pool;
pub mod race;
pub mod rate_limit;
pub mod retry;
pub mod route;
pub mod snapshot;
pub mod trace;
pub mod verdict;

#[cfg(test)]
mod testing {
    use std::time::Instant;

    /// Some instant for virtual time to begin at: an `Instant` cannot be made any other way.
    #[expect(clippy::disallowed_methods, reason = "the only clock of this crate, and only tests see it")]
    pub(crate) fn start() -> Instant {
        Instant::now()
    }
}
