//! What one run of a load generator found.

use std::time::Duration;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Load {
    /// Requests (or connections) that came to a good end.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Payload carried, where the row counts it.
    pub(crate) bytes: u64,
    pub(crate) elapsed: Duration,
    pub(crate) p50_us: Option<f64>,
    pub(crate) p99_us: Option<f64>,
    pub(crate) p999_us: Option<f64>,
}

impl Load {
    pub(crate) fn per_second(&self) -> f64 {
        self.done as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64()
    }
}
