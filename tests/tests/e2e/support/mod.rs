//! What the tests have in common: how one is declared and run, the shared shop and farm, calls and load, applications
//! that do as they are told, raw bytes.

pub(crate) mod app;
pub(crate) mod ask;
pub(crate) mod booth;
pub(crate) mod call;
pub(crate) mod collector;
pub(crate) mod farm;
pub(crate) mod guarded;
pub(crate) mod jaeger;
pub(crate) mod link;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod meter;
pub(crate) mod origin;
pub(crate) mod peers;
pub(crate) mod prometheus;
pub(crate) mod raw;
pub(crate) mod server;
pub(crate) mod shop;
pub(crate) mod test;
pub(crate) mod yaml;

pub(crate) use test::{Need, Test, long};

/// How long a test waits for what should come at once: a deadline, not a measure. The machine may be ten times too busy.
pub(crate) const SOON: std::time::Duration = std::time::Duration::from_secs(90);

/// Starts a server on a port whose last server has just ended. Another test may be starting a program right now: until
/// that has replaced itself it holds a copy of the old listener, and the port is taken.
pub(crate) fn bind_again<T>(mut start: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut last = None;
    let started = outrigger_lab::wait_for_some(std::time::Duration::from_secs(5), "a free port", || {
        start().map_err(|error| last = Some(error)).ok()
    });
    started.map_err(|error| last.unwrap_or(error))
}

/// Says what was measured, with `OUTRIGGER_FIGURES=1`.
pub(crate) fn figure(text: &str) {
    if std::env::var("OUTRIGGER_FIGURES").is_ok_and(|value| value == "1") {
        eprintln!("figure: {text}");
    }
}
