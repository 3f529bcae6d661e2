//! Runs `ip` in batches: one process for many changes.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::binaries::search_path;

/// Applies the lines in the current network namespace.
pub(crate) fn run<L: AsRef<str>>(lines: &[L]) -> Result<()> {
    batch(&[], lines)
}

/// Applies the lines in a named network namespace.
pub(crate) fn run_in<L: AsRef<str>>(namespace: &str, lines: &[L]) -> Result<()> {
    batch(&["-netns", namespace], lines)
}

fn batch<L: AsRef<str>>(options: &[&str], lines: &[L]) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-batch", "-"])
        .env("PATH", search_path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        // An early end shows in the status below, with the reason on standard error.
        let text = lines.iter().map(|line| format!("{}\n", line.as_ref())).collect::<String>();
        drop(stdin.write_all(text.as_bytes()));
    }
    let output = child.wait_with_output().context("ip")?;
    if !output.status.success() {
        bail!("ip {}: {}", options.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
