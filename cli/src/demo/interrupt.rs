//! Ctrl-C and SIGTERM as a flag that is looked at wherever the demo waits, so that everything is taken down in order.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Interrupt {
    raised: Arc<AtomicBool>,
}

/// The user has had enough.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl Interrupt {
    /// Call it while the process has one thread: signals are blocked for all that follow. Programs started later are
    /// not concerned, the standard library unblocks signals for them.
    pub(crate) fn install() -> Result<Self> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let raised = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&raised);
        thread::spawn(move || {
            while signals.wait().is_ok() {
                seen.store(true, Ordering::Release);
            }
        });
        Ok(Self { raised })
    }

    pub(crate) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.is_raised() { Err(Interrupted.into()) } else { Ok(()) }
    }

    /// Lets `time` pass, or less.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}
