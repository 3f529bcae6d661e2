//! Notices that files in a directory may have changed.
//!
//! Three ways to notice, because each has a hole: inotify does not see past a directory that is replaced or
//! lies on a network file system, and runs out of watches; polling is slow; and both may hit a file that is
//! half written. So events wake at once and are let settle, a poll compares names, sizes and times every two
//! seconds, and whoever reads gets another chance with the next event.
//!
//! It says *that* something changed, never what: readers read everything again and compare.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout_at},
};

/// How long it must be quiet after an event, and how long a writer that never pauses is waited for.
const QUIET: Duration = Duration::from_millis(50);
const PATIENCE: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_secs(2);

/// Watches the directories of some files, not what lies below them.
pub struct Watch {
    dirs: Vec<PathBuf>,
    events: mpsc::Receiver<()>,
    wake: mpsc::Sender<()>,
    /// `None` where the kernel would not give us one: the poll has to do.
    watcher: Option<notify::RecommendedWatcher>,
    seen: Fingerprint,
}

/// What a directory looks like without opening its files.
#[derive(Debug, Default, PartialEq)]
struct Fingerprint(Vec<(PathBuf, u64, u64, u64, i64, i64)>);

impl Watch {
    /// Begins to watch; changes from now on are noticed.
    pub fn new<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Self {
        let dirs: BTreeSet<PathBuf> = dirs.into_iter().map(Path::to_owned).collect();
        let dirs: Vec<_> = dirs.into_iter().collect();
        // One waiting wake-up is enough: readers read everything.
        let (wake, events) = mpsc::channel(1);
        let watcher = watcher(&dirs, &wake);
        let seen = Fingerprint::of(&dirs);
        Self { dirs, events, wake, watcher, seen }
    }

    /// Waits until something may have changed since the last call (or since the beginning), and has settled.
    pub async fn changed(&mut self) {
        loop {
            let event = tokio::select! {
                Some(()) = self.events.recv() => true,
                () = sleep(POLL) => false,
            };
            if event {
                self.settle().await;
            }
            let now = Fingerprint::of(&self.dirs);
            let differs = now != self.seen;
            if differs && !event {
                // Inotify was silent: the directory itself may be another one now.
                self.watcher = watcher(&self.dirs, &self.wake);
            }
            self.seen = now;
            // An event counts even if nothing seems different: times are coarser than edits.
            if event || differs {
                return;
            }
        }
    }

    async fn settle(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let quiet = (Instant::now() + QUIET).min(deadline);
            if timeout_at(quiet, self.events.recv()).await.is_err() {
                return;
            }
        }
    }
}

fn watcher(dirs: &[PathBuf], wake: &mpsc::Sender<()>) -> Option<notify::RecommendedWatcher> {
    let wake = wake.clone();
    let told = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !is_reading(event.kind)) {
            // Full: a wake-up is waiting already.
            let _ = wake.try_send(());
        }
    })
    .and_then(|mut watcher| {
        for dir in dirs {
            watcher.watch(dir, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    });
    told.inspect_err(
        |error| tracing::warn!(%error, "no notice of file changes from the kernel, polling instead"),
    )
    .ok()
}

/// Our own reading makes events too, which must not wake us again.
fn is_reading(kind: EventKind) -> bool {
    matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

impl Fingerprint {
    fn of(dirs: &[PathBuf]) -> Self {
        let mut all = Vec::new();
        for dir in dirs {
            let files =
                fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|entry| entry.path());
            for path in files.chain([dir.clone()]) {
                // Through links, as a reader would go: a ConfigMap changes by moving one.
                let Ok(meta) = fs::metadata(&path) else { continue };
                let size = if meta.is_dir() { 0 } else { meta.len() };
                all.push((path, meta.dev(), meta.ino(), size, meta.mtime(), meta.mtime_nsec()));
            }
        }
        all.sort();
        Self(all)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    /// Far more than any of the waits involved.
    const DEADLINE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn edits_renames_and_removals_are_noticed_and_reading_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.yaml");
        let mut watch = Watch::new([dir.path()]);
        fs::write(&file, "a").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a new file");
        fs::write(&file, "b").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("an edit of the same size");
        fs::write(dir.path().join("new"), "c").unwrap();
        fs::rename(dir.path().join("new"), &file).unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a rename over the file");
        fs::remove_file(&file).unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a removal");

        fs::write(&file, "d").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a new file");
        for _ in 0..3 {
            fs::read_to_string(&file).unwrap();
        }
        assert!(timeout(QUIET * 4, watch.changed()).await.is_err(), "reading woke the reader");
    }

    #[tokio::test]
    async fn a_directory_that_is_replaced_or_comes_late_is_noticed() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("config");
        let mut watch = Watch::new([&*dir]);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), "a").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a directory that comes late");
        fs::rename(&dir, parent.path().join("old")).unwrap();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), "b").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a directory that is replaced");
        fs::write(dir.join("a.yaml"), "c").unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("an edit in the new directory");
    }

    #[tokio::test]
    async fn a_link_that_moves_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        for version in ["v1", "v2"] {
            fs::create_dir(dir.path().join(version)).unwrap();
            fs::write(dir.path().join(version).join("a.yaml"), version).unwrap();
        }
        std::os::unix::fs::symlink("v1", dir.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data/a.yaml", dir.path().join("a.yaml")).unwrap();
        let mut watch = Watch::new([dir.path()]);
        std::os::unix::fs::symlink("v2", dir.path().join("..tmp")).unwrap();
        fs::rename(dir.path().join("..tmp"), dir.path().join("..data")).unwrap();
        timeout(DEADLINE, watch.changed()).await.expect("a ConfigMap's update");
        assert_eq!(fs::read_to_string(dir.path().join("a.yaml")).unwrap(), "v2");
    }
}
