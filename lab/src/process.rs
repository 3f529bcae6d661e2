//! Child processes that cannot be forgotten: killed with their handle, output kept in a file.

use std::{
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::wait_for_some;

/// A program that is running, or was.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

/// What a program said before it ended.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Process {
    /// Starts a program where the caller is; [`crate::Pod::spawn`] starts one in a pod. Output goes to `NAME.log`.
    pub fn spawn(command: &mut Command, name: &str, directory: &Path) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        // Appending: a program that is started again goes on in the same log.
        let output = File::options().create(true).append(true).open(&log).context("log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {name}"))?;
        Ok(Self { child, name: name.to_owned(), log })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything it has written so far, with what earlier processes of the same name wrote.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("{signal} to {}", self.name))
    }

    /// Ends it without asking (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    pub fn wait_deadline(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        wait_for_some(deadline, &what, || self.child.try_wait().transpose())?.context("wait")
    }

    /// Processor time it has used, all threads together.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        for task in fs::read_dir(format!("/proc/{}/task", self.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let nanos = text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0);
            total += Duration::from_nanos(nanos);
        }
        Ok(total)
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
        Ok(kib * 1024)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Output {
    /// The standard output of a success; an error with everything said otherwise.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("{self}");
        }
        Ok(self.stdout)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nstdout: {}\nstderr: {}", self.status, self.stdout.trim_end(), self.stderr.trim_end())
    }
}

pub(crate) fn run(command: &mut Command, deadline: Duration) -> Result<Output> {
    let what = format!("{:?} {:?}", command.get_program(), command.get_args().collect::<Vec<_>>());
    // Files, not pipes: nothing to drain, so nothing can block on us.
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| what.clone())?;
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            drop(child.kill());
            drop(child.wait());
            bail!("{what} did not end within {deadline:?}; it said: {} {}", text(stdout)?, text(stderr)?);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    Ok(Output { status, stdout: text(stdout)?, stderr: text(stderr)? })
}

fn text(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
