//! The closed-loop rows: `wrk` for HTTP/1.1 and `h2load` for HTTP/2, run inside the caller's pod.
//!
//! In a closed loop the load follows the answers, so it finds the highest rate; latencies under it say little about a
//! steady service, which is what [`crate::open_loop`] is for.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use outrigger_lab::Pod;
use serde::Deserialize;

use crate::load::Load;

/// Given to `wrk -s`: the summary as one line of JSON instead of text with rounded units.
const WRK_SUMMARY: &str = r#"done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format(
    'SUMMARY {"requests":%d,"micros":%d,"bytes":%d,"errors":%d,"p50":%f,"p99":%f}',
    summary.requests, summary.duration, summary.bytes,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
"#;

#[derive(Deserialize)]
struct WrkSummary {
    requests: u64,
    micros: u64,
    bytes: u64,
    errors: u64,
    p50: f64,
    p99: f64,
}

/// `wrk` with one thread; whole seconds only.
pub(crate) fn wrk(
    pod: &Pod,
    url: &str,
    connections: u32,
    headers: &[&str],
    duration: Duration,
) -> Result<Load> {
    let script = pod.lab().directory().join("summary.lua");
    fs::write(&script, WRK_SUMMARY)?;
    let mut command = pod.command("wrk");
    command.args([
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{}", duration.as_secs()),
        "--timeout",
        "5s",
    ]);
    for header in headers {
        command.args(["-H", header]);
    }
    let output = pod.run(command.arg("-s").arg(&script).arg(url))?.success().context("wrk")?;
    parse_wrk(&output)
}

fn parse_wrk(output: &str) -> Result<Load> {
    let line =
        output.lines().find_map(|line| line.strip_prefix("SUMMARY ")).context("no summary from wrk")?;
    let summary: WrkSummary = serde_json::from_str(line).context("summary of wrk")?;
    Ok(Load {
        done: summary.requests,
        failed: summary.errors,
        bytes: summary.bytes,
        elapsed: Duration::from_micros(summary.micros),
        p50_us: Some(summary.p50),
        p99_us: Some(summary.p99),
        p999_us: None,
    })
}

/// `h2load` with one thread, prior knowledge; whole seconds only.
pub(crate) fn h2load(
    pod: &Pod,
    url: &str,
    connections: u32,
    streams: u32,
    duration: Duration,
) -> Result<Load> {
    let log = pod.lab().directory().join("h2load.tsv");
    drop(fs::remove_file(&log));
    let output = pod
        .run(
            pod.command("h2load")
                .args(["-t1", &format!("-c{connections}"), &format!("-m{streams}")])
                .arg(format!("-D{}", duration.as_secs()))
                .arg(format!("--log-file={}", log.display()))
                .arg(url),
        )?
        .success()
        .context("h2load")?;
    let mut load = parse_h2load(&output, duration)?;
    let latencies = read_log(&fs::read_to_string(&log).context("log of h2load")?)?;
    load.p50_us = Some(latencies.value_at_quantile(0.50) as f64);
    load.p99_us = Some(latencies.value_at_quantile(0.99) as f64);
    Ok(load)
}

/// From `requests: 9 total, 9 started, 9 done, 9 succeeded, 0 failed, 0 errored, 0 timeout`.
fn parse_h2load(output: &str, duration: Duration) -> Result<Load> {
    let line =
        output.lines().find_map(|line| line.strip_prefix("requests: ")).context("no summary from h2load")?;
    let field = |name: &str| -> Result<u64> {
        let part =
            line.split(", ").find_map(|part| part.strip_suffix(name)).with_context(|| line.to_owned())?;
        Ok(part.trim().parse()?)
    };
    // Streams cut off by the end of the time are neither done nor failed: they are in none of these.
    let failed = field("failed")? + field("errored")? + field("timeout")?;
    let done = field("succeeded")?;
    if done == 0 {
        bail!("h2load: no request succeeded: {line}");
    }
    Ok(Load { done, failed, bytes: 0, elapsed: duration, p50_us: None, p99_us: None, p999_us: None })
}

fn read_log(log: &str) -> Result<Histogram<u64>> {
    let mut latencies = Histogram::new(3)?;
    for micros in log.lines().filter_map(|line| line.split('\t').nth(2)?.parse::<u64>().ok()) {
        latencies.record(micros)?;
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_wrk_says() {
        let output = "Running 1s test\nSUMMARY {\"requests\":3,\"micros\":1500000,\"bytes\":9,\"errors\":1,\"p50\":20.5,\"p99\":30}\n";
        let load = parse_wrk(output).unwrap();
        assert_eq!((load.done, load.failed, load.per_second()), (3, 1, 2.0));
        assert!(parse_wrk("nothing").is_err());
    }

    #[test]
    fn reads_what_h2load_says() {
        let output = "finished\nrequests: 12 total, 14 started, 12 done, 11 succeeded, 1 failed, 0 errored, 2 timeout\n";
        let load = parse_h2load(output, Duration::from_secs(1)).unwrap();
        assert_eq!((load.done, load.failed), (11, 3));
        assert!(
            parse_h2load(
                "requests: 0 total, 0 succeeded, 0 failed, 0 errored, 0 timeout",
                Duration::from_secs(1)
            )
            .is_err()
        );
        assert_eq!(read_log("1\t200\t40\n2\t200\t50\n").unwrap().len(), 2);
    }
}
