//! The history on disk: files of ten minutes, records that are appended, each with its length and checksum.
//!
//! ```text
//!   0000000017.log = ORHIST01, then records: length (4 bytes, big-endian), CRC-32 (4), content (history/record.rs)
//! ```
//!
//! What was written to a file survives the death of this process, however it dies; only a machine that loses its power
//! may lose the last seconds, because nothing waits for the disk (no fsync). A file that ends in the middle of a record,
//! or has a byte wrong, is good up to there and cut there. Each file can be read without the others, so the oldest go one
//! by one.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::history::{
    KEPT,
    record::{self, Batch, Decoder, Encoder, Saved},
};

const MAGIC: &[u8; 8] = b"ORHIST01";
const HEAD: usize = 8;
/// Of a file, in milliseconds.
const LENGTH: u64 = 600_000;
/// A file has at most this part of all the room, so that little goes at a time.
const PARTS: u64 = 8;
/// Far above any record of ours: what says more is broken.
const MAX_RECORD: usize = 256 << 20;

pub(super) struct Log {
    dir: PathBuf,
    cap: u64,
    /// All but the one that is written, the oldest first.
    files: VecDeque<File>,
    open: Option<Open>,
    next: u64,
}

struct File {
    path: PathBuf,
    bytes: u64,
    /// Of its last record. Unknown until it is read: of the latest, so that it stays.
    last_at: u64,
}

struct Open {
    file: fs::File,
    path: PathBuf,
    bytes: u64,
    encoder: Encoder,
    began_at: u64,
    last_at: u64,
}

/// Where a file was not good any more.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    pub(super) file: String,
    pub(super) at: u64,
    pub(super) lost: u64,
}

impl Log {
    /// Looks at what is there. Also the times of the last record, the history's and the machine's.
    pub(super) fn open(dir: &Path, cap: u64) -> io::Result<(Self, Option<(u64, u64)>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<u64>().ok());
            if let Some(number) = number {
                found.push((
                    number,
                    File { path: entry.path(), bytes: entry.metadata()?.len(), last_at: u64::MAX },
                ));
            }
        }
        found.sort_by_key(|(number, _)| *number);
        let next = found.last().map_or(1, |(number, _)| number + 1);
        let files: VecDeque<_> = found.into_iter().map(|(_, file)| file).collect();
        let mut last = None;
        for file in files.iter().rev() {
            let bytes = fs::read(&file.path)?;
            last = records(&bytes).last().and_then(|record| record::times(record).ok());
            if last.is_some() {
                break;
            }
        }
        Ok((Self { dir: dir.to_owned(), cap, files, open: None, next }, last))
    }

    /// Reads everything back, the oldest first, and cuts off what is broken.
    pub(super) fn read(&mut self, mut take: impl FnMut(&Saved, &Decoder)) -> io::Result<Vec<Cut>> {
        let mut cuts = Vec::new();
        for file in &mut self.files {
            let mut bytes = Vec::new();
            fs::File::open(&file.path)?.read_to_end(&mut bytes)?;
            // One without a record is good for nothing.
            file.last_at = 0;
            let mut decoder = Decoder::default();
            let mut all = records(&bytes);
            let mut good = all.good;
            while let Some(content) = all.next() {
                let Ok(saved) = decoder.decode(content) else { break };
                file.last_at = saved.at;
                take(&saved, &decoder);
                good = all.good;
            }
            if good < bytes.len() {
                let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                cuts.push(Cut { file: name, at: good as u64, lost: (bytes.len() - good) as u64 });
                fs::OpenOptions::new().write(true).open(&file.path)?.set_len(good as u64)?;
                file.bytes = good as u64;
            }
        }
        Ok(cuts)
    }

    /// Whether what is appended next begins a file, and so has to say everything.
    pub(super) fn begins_file(&self, at: u64) -> bool {
        self.open
            .as_ref()
            .is_none_or(|open| at.saturating_sub(open.began_at) >= LENGTH || open.bytes >= self.cap / PARTS)
    }

    /// Appends a record. After an error the next one has to begin a file: [`Self::begins_file`] says so.
    pub(super) fn append(&mut self, batch: Batch, wall: u64) -> io::Result<()> {
        let at = batch.at();
        if self.begins_file(at) {
            self.close();
            self.open = Some(self.create(at)?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let content = open.encoder.encode(batch, wall);
        let mut bytes = Vec::with_capacity(HEAD + content.len());
        bytes.extend_from_slice(&u32::try_from(content.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(&checksum(&content).to_be_bytes());
        bytes.extend_from_slice(&content);
        if let Err(error) = open.file.write_all(&bytes) {
            // Numbers that the record gave to series are not in the file now.
            let _ = open.file.set_len(open.bytes);
            self.close();
            return Err(error);
        }
        open.bytes += bytes.len() as u64;
        open.last_at = at;
        self.clean(at);
        Ok(())
    }

    /// Of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum::<u64>()
            + self.open.as_ref().map_or(0, |open| open.bytes)
    }

    fn create(&mut self, at: u64) -> io::Result<Open> {
        let path = self.dir.join(format!("{:010}.log", self.next));
        let mut file = fs::OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path)?;
        self.next += 1;
        if let Err(error) = file.write_all(MAGIC) {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let (bytes, encoder) = (MAGIC.len() as u64, Encoder::default());
        Ok(Open { file, path, bytes, encoder, began_at: at, last_at: at })
    }

    fn close(&mut self) {
        let Some(Open { path, bytes, last_at, .. }) = self.open.take() else { return };
        if bytes <= MAGIC.len() as u64 {
            let _ = fs::remove_file(&path);
            return;
        }
        self.files.push_back(File { path, bytes, last_at });
    }

    /// Files that are too old, or too much, go.
    fn clean(&mut self, at: u64) {
        while let Some(oldest) = self.files.front() {
            let is_old = at.saturating_sub(oldest.last_at) > KEPT * 1000;
            if !is_old && self.bytes() <= self.cap {
                return;
            }
            if let Err(error) = fs::remove_file(&oldest.path) {
                tracing::warn!(file = %oldest.path.display(), %error, "an old file of the history cannot be removed");
            }
            self.files.pop_front();
        }
    }
}

/// The records of a file, as long as they are whole.
struct Records<'a> {
    bytes: &'a [u8],
    /// So much of it is good.
    good: usize,
}

fn records(bytes: &[u8]) -> Records<'_> {
    Records { bytes, good: if bytes.starts_with(MAGIC) { MAGIC.len() } else { 0 } }
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.good == 0 {
            return None;
        }
        let (head, rest) = self.bytes[self.good..].split_at_checked(HEAD)?;
        let number = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(number(0)).ok().filter(|length| *length <= MAX_RECORD)?;
        let content = rest.get(..length)?;
        if checksum(content) != number(4) {
            return None;
        }
        self.good += HEAD + length;
        Some(content)
    }
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests;
