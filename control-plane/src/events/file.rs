//! Events on disk: a JSON object per line, in a file of at most 8 MiB and the one before it.
//!
//! A line that is not whole (the last one, after a crash) is cut off; any other that cannot be read is left out.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{Event, KEPT};

const MAX_BYTES: u64 = 8 << 20;

pub(super) struct File {
    path: PathBuf,
    file: fs::File,
    bytes: u64,
    max_bytes: u64,
}

impl File {
    /// Also the latest events that it and the one before it hold.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Vec<Event>)> {
        let before = read(&old(path))?.0;
        let (events, good) = read(path)?;
        let file = open(path)?;
        file.set_len(good)?;
        let mut all: Vec<_> = before.into_iter().chain(events).collect();
        // Whoever edited the files must not make numbers come twice.
        all.sort_by_key(|event| event.seq);
        all.dedup_by_key(|event| event.seq);
        all.drain(..all.len().saturating_sub(KEPT));
        Ok((Self { path: path.to_owned(), file, bytes: good, max_bytes: MAX_BYTES }, all))
    }

    pub(super) fn append(&mut self, events: &[Event]) -> io::Result<()> {
        for event in events {
            let mut line = serde_json::to_vec(event)?;
            line.push(b'\n');
            if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
                fs::rename(&self.path, old(&self.path))?;
                self.file = open(&self.path)?;
                self.bytes = 0;
            }
            if let Err(error) = self.file.write_all(&line) {
                // Half a line would spoil the next one too.
                let _ = self.file.set_len(self.bytes);
                return Err(error);
            }
            self.bytes += line.len() as u64;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn limit(&mut self, max_bytes: u64) {
        self.max_bytes = max_bytes;
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn old(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Also how many bytes are whole lines.
fn read(path: &Path) -> io::Result<(Vec<Event>, u64)> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let good = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let lines = bytes[..good].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let mut broken = 0;
    let events =
        lines.filter_map(|line| serde_json::from_slice(line).inspect_err(|_| broken += 1).ok()).collect();
    if broken > 0 {
        tracing::warn!(file = %path.display(), lines = broken, "lines that are no events are left out");
    }
    Ok((events, good as u64))
}
