//! What the mesh tells of itself, judged by the programs that users look at it with: a tracing backend, Prometheus, a
//! terminal; and numbers that have to be the same whoever tells them.

use std::time::Duration;

use anyhow::{Context, Result};
use outrigger_lab::{Mesh, Workload, wait_for, wait_for_some};
use serde_json::Value;

use crate::support::{SOON, Test, long};

mod command;
mod distinct;
mod events;
mod outage;
mod percentiles;
mod prometheus;
mod totals;
mod traces;

pub(crate) fn tests() -> Vec<Test> {
    [
        percentiles::tests(),
        totals::tests(),
        outage::tests(),
        prometheus::tests(),
        traces::tests(),
        distinct::tests(),
        events::tests(),
        command::tests(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The long number with `OUTRIGGER_LONG=1`.
fn many(short: usize, whole: usize) -> usize {
    if long() { whole } else { short }
}

/// How long a state lasts that has to be borne.
fn a_while() -> Duration {
    Duration::from_secs(if long() { 60 } else { 10 })
}

/// A page of the first control plane's status port.
fn page(mesh: &Mesh, path: &str) -> Result<Value> {
    let answer = mesh.control_plane_get(0, path)?;
    anyhow::ensure!(answer.status == 200, "{path}: {answer:?}");
    serde_json::from_str(&answer.body).with_context(|| answer.body)
}

/// Rows of `/stat` over the whole life of the mesh.
fn stat(mesh: &Mesh, by: &str, side: &str) -> Result<Value> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis();
    page(mesh, &format!("/stat?by={by}&side={side}&from={}&to={}", now - 3_600_000, now + 5_000))
}

/// Requests in the rows of one service; of all with an empty name.
fn requests(stat: &Value, service: &str) -> u64 {
    let rows = stat["rows"].as_array().into_iter().flatten();
    rows.filter(|row| service.is_empty() || row["service"] == service)
        .map(|row| row["requests"].as_u64().unwrap_or(0))
        .sum()
}

/// `/stat` once it has so many requests of a service: proxies report about once a second.
fn stat_of(mesh: &Mesh, by: &str, side: &str, service: &str, number: u64) -> Result<Value> {
    let mut last = String::new();
    let found = wait_for_some(SOON, &format!("{number} requests of {service:?} in /stat ({side})"), || {
        let told = stat(mesh, by, side);
        last = format!("{told:?}");
        told.ok().filter(|told| requests(told, service) >= number)
    });
    found.context(last)
}

/// Until a sidecar has seen its redirect rules at work: only then can it miss them.
fn wait_captured(workload: &Workload) -> Result<()> {
    wait_for(SOON, &format!("{} to see its redirect rules at work", workload.name()), || {
        workload.status("/metrics").is_ok_and(|page| page.body.contains("\noutrigger_capture_ok 1"))
    })
}
