//! A named network namespace, and running code inside it.

use std::{fs::File, os::fd::AsFd, panic, path::PathBuf, thread};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Made by `ip netns add`, removed on drop.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    pub(crate) fn create(name: String) -> Result<Self> {
        crate::ip::run(&[format!("netns add {name}")])?;
        Ok(Self { name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Runs `work` on a thread that has joined the namespace. Sockets made there stay there; a panic is passed on.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        thread::scope(|scope| {
            let joined = scope.spawn(move || {
                setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("setns")?;
                Ok(work())
            });
            joined.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// As [`Self::enter`], going on in the background.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        let file = File::open(self.path()).with_context(|| format!("namespace {}", self.name))?;
        let (entered, result) = std::sync::mpsc::channel();
        let handle = thread::spawn(move || {
            let joined = setns(file.as_fd(), CloneFlags::CLONE_NEWNET);
            let outside = joined.is_err();
            let _ = entered.send(joined);
            if outside {
                // Never runs `work` elsewhere. Nobody joins this: the caller has the error.
                panic::resume_unwind(Box::new("not in the namespace"));
            }
            work()
        });
        result.recv().context("thread")?.context("setns")?;
        Ok(handle)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Failing leaves a name in a private tmpfs that goes with the process.
        drop(crate::ip::run(&[format!("netns del {}", self.name)]));
    }
}
