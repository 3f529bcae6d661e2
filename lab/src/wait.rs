//! Waiting for a condition with a deadline: what tests do instead of sleeping.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Asks again and again until `condition` holds; an error that says what was waited for after `deadline`.
pub fn wait_for(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for_some(deadline, what, || condition().then_some(()))
}

/// Like [`wait_for`], handing on what was found.
pub fn wait_for_some<T>(deadline: Duration, what: &str, mut find: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain for: {what}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}
