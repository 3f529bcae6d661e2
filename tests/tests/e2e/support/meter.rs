//! h2load: load from a program that is not ours, with every single latency written down.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use outrigger_lab::Pod;

/// One request as the caller saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) status: u16,
    pub(crate) micros: u64,
}

const PATIENCE: Duration = Duration::from_secs(900);

/// So many HTTP/1.1 requests over so many connections; every one of them must be answered. `name`: of this load among those of
/// its pod.
pub(crate) fn requests(
    pod: &Pod,
    target: SocketAddr,
    path: &str,
    number: usize,
    connections: usize,
    name: &str,
) -> Result<Vec<Taken>> {
    let log = pod.lab().directory().join(format!("{}-{name}.tsv", pod.name()));
    drop(fs::remove_file(&log));
    let mut command = pod.command("h2load");
    command
        .args(["--h1", "-t1", &format!("-c{connections}"), &format!("-n{number}")])
        .arg(format!("--log-file={}", log.display()))
        .arg(format!("http://{target}{path}"));
    let output = pod.run_within(PATIENCE, &mut command)?.success().context("h2load")?;
    let text = fs::read_to_string(&log).context("log of h2load")?;
    let line = |line: &str| {
        let mut fields = line.split('\t').skip(1);
        let status: i32 = fields.next()?.parse().ok()?;
        let micros = fields.next()?.parse().ok()?;
        Some(Taken { status: u16::try_from(status).ok()?, micros })
    };
    let taken: Vec<_> = text.lines().filter_map(line).collect();
    ensure!(taken.len() == number, "{} of {number} were answered: {output}", taken.len());
    Ok(taken)
}
