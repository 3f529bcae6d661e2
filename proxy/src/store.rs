//! The last good snapshot on disk: lets a proxy start while every control plane is away.
//!
//! `STATE_DIR/snapshot.pb` holds what the control plane sent (`Saved` in mesh.proto): no keys, mode 0600, replaced as a
//! whole 200 ms after the last change. What is read back at the start is checked like an update from the wire; a broken
//! file or one of another workload is reported and ignored. When it cannot be written (a full disk), that is reported
//! and counts in [`Store::is_failing`], and nothing else suffers.
//!
//! It is no cache of answers: only what the running proxy holds is in it.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use outrigger_certs::SpiffeId;
use outrigger_core::snapshot::Snapshot;
use outrigger_proto::{
    convert::{self, ConvertError},
    limits::MAX_MESSAGE_BYTES,
    pb,
    spec::{Resource, Update},
};
use prost::Message as _;
use tokio::{
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{disk, shared::Shared};

const FILE: &str = "snapshot.pb";
/// Changes come in flocks; the disk sees the last of them.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// A disk that was full is tried again, also when nothing changes.
const TRY_AGAIN: Duration = Duration::from_secs(60);
/// Given to content that is not what its version promises. No control plane has it, so that all of it is sent anew.
const UNVERIFIED: &str = "unverified";

pub struct Store {
    directory: PathBuf,
    identity: SpiffeId,
    failing: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it has {0} bytes, at most {MAX_MESSAGE_BYTES} are read")]
    TooLarge(u64),
    #[error("it is no snapshot: {0}")]
    Encoding(#[from] prost::DecodeError),
    #[error("it belongs to {0:?}")]
    Foreign(String),
    #[error("{0}")]
    Content(#[from] ConvertError),
}

impl Store {
    /// `identity` is whose snapshot this is.
    pub fn new(directory: &Path, identity: SpiffeId) -> Self {
        Self { directory: directory.to_owned(), identity, failing: AtomicBool::new(false) }
    }

    /// What an earlier process left, or the empty snapshot.
    pub fn load(&self) -> Snapshot {
        let path = self.directory.join(FILE);
        match self.read(&path) {
            Ok(Some(snapshot)) => {
                info!(path = %path.display(), resources = snapshot.held().len(), "starting from the last good snapshot");
                snapshot
            }
            Ok(None) => Snapshot::default(),
            Err(error) => {
                warn!(path = %path.display(), "the snapshot on disk is ignored: {error}");
                Snapshot::default()
            }
        }
    }

    fn read(&self, path: &Path) -> Result<Option<Snapshot>, LoadError> {
        let size = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?.len(),
        };
        if size > MAX_MESSAGE_BYTES as u64 {
            return Err(LoadError::TooLarge(size));
        }
        let saved = pb::Saved::decode(fs::read(path)?.as_slice())?;
        if saved.identity != self.identity.as_str() {
            return Err(LoadError::Foreign(saved.identity));
        }
        let response = pb::ConfigureResponse { nonce: 0, resources: saved.resources, removed: Vec::new() };
        let mut update = convert::update(response)?;
        update.resources.iter_mut().for_each(verify);
        Ok(Some(Snapshot::default().apply(update).map_err(ConvertError)?))
    }

    /// Keeps the disk up to date with what is published, for as long as it is polled.
    pub async fn keep(self: Arc<Self>, snapshot: Shared<Snapshot>) {
        let mut changes = snapshot.changes();
        loop {
            if self.is_failing() {
                // Either a change or the end of the wait is a reason to try.
                let _ = timeout(TRY_AGAIN, changes.changed()).await;
            } else {
                changes.changed().await;
            }
            sleep(DEBOUNCE).await;
            let (store, snapshot) = (Arc::clone(&self), snapshot.load());
            let saved = match spawn_blocking(move || store.save(&snapshot)).await {
                Ok(saved) => saved,
                Err(panicked) => Err(io::Error::other(panicked)),
            };
            self.report(saved);
        }
    }

    fn report(&self, saved: io::Result<()>) {
        let path = self.directory.join(FILE);
        let failed = self.failing.swap(saved.is_err(), Relaxed);
        match saved {
            Err(error) if !failed => warn!(
                path = %path.display(),
                "the snapshot cannot be kept on disk; this proxy could not restart without its control plane: {error}"
            ),
            Ok(()) if failed => info!(path = %path.display(), "the snapshot is kept on disk again"),
            Ok(()) | Err(_) => {}
        }
    }

    /// Whether the last attempt to write failed.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Relaxed)
    }

    /// Blocks.
    fn save(&self, snapshot: &Snapshot) -> io::Result<()> {
        let update = Update { nonce: 0, resources: snapshot.resources(), removed: Vec::new() };
        let resources = convert::response(&update).resources;
        let bytes = pb::Saved { resources, identity: self.identity.to_string() }.encode_to_vec();
        fs::DirBuilder::new().mode(0o700).recursive(true).create(&self.directory)?;
        disk::replace(&self.directory, FILE, |file| file.write_all(&bytes))
    }
}

/// Content is trusted to be what its version says only if it is. It is not when a control plane newer than the proxy
/// that saved it had said more than that proxy could read: this process would claim to hold what it never saw.
fn verify(resource: &mut Resource) {
    if convert::version_of(&convert::body_to_pb(&resource.body)) != *resource.version {
        resource.version = UNVERIFIED.into();
    }
}

#[cfg(test)]
mod tests;
