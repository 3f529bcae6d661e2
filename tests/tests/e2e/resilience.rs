//! Every feature of a TrafficPolicy, with the proxies as they are shipped.
//!
//! Each check runs twice: with the feature, where it has to hold, and without, where it must not hold (see
//! [`crate::support::farm::with_and_without`]). So a test fails both when a feature is missing and when it has stopped
//! noticing that.

use crate::support::Test;

mod balancing;
mod cache;
mod client_limits;
mod ejection;
mod fallback;
mod health;
mod retries;
mod timeouts;

pub(crate) fn tests() -> Vec<Test> {
    [
        ejection::tests(),
        health::tests(),
        balancing::tests(),
        client_limits::tests(),
        timeouts::tests(),
        retries::tests(),
        fallback::tests(),
        cache::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
