//! `--identity-dir`: key, certificate and registration across a restart of the container. Off by default.
//!
//! Meant for a memory-backed directory that outlives the process but not the pod. One file, `identity.pem`, mode 0600,
//! replaced as a whole, so that key and certificate always belong together:
//!
//! ```text
//! registration: or1.…                 what the authority attested, to be shown again
//! root: MIIB…                         one line per trusted root (DER, base64)
//! -----BEGIN PRIVATE KEY-----         then the chain, leaf first
//! ```
//!
//! Tools that read PEM skip the first lines. A directory that others may enter is refused at the start: a key that they
//! could read is worse than none. It does not judge the certificate beyond its end; peers do.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use outrigger_certs::{Credential, CredentialError, rotation::Held};
use zeroize::Zeroizing;

use crate::disk;

const FILE: &str = "identity.pem";
const REGISTRATION: &str = "registration: ";
const ROOT: &str = "root: ";

/// A directory that was found safe to keep a key in.
pub struct IdentityDir(PathBuf);

/// What was kept.
pub struct Kept {
    pub credential: Credential,
    pub registration: String,
    /// DER.
    pub roots: Vec<Vec<u8>>,
}

/// Why a directory cannot keep a key. The program does not start with it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("--identity-dir: {path}: {error}", path = .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("--identity-dir: {path} is not a directory", path = .path.display())]
    NotADirectory { path: PathBuf },
    #[error(
        "--identity-dir: {path} is open to other users (mode {mode:04o}); a private key is kept there: chmod 700 {path}",
        path = .path.display()
    )]
    OpenToOthers { path: PathBuf, mode: u32 },
    #[error("--identity-dir: {path} belongs to user {owner}, who could replace the key", path = .path.display())]
    OtherOwner { path: PathBuf, owner: u32 },
}

/// Why what was kept is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is readable by other users (mode {mode:04o}): its key counts as known to them")]
    OpenToOthers { mode: u32 },
    #[error("line {line} is neither a registration nor a root")]
    Line { line: usize },
    #[error("it has no {0}")]
    Missing(&'static str),
    #[error("{0}")]
    Credential(#[from] CredentialError),
    #[error("its certificate has ended or not yet begun")]
    NotValidNow,
}

impl IdentityDir {
    /// Makes the directory if it is not there.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Io { path: path.to_owned(), error };
        match fs::DirBuilder::new().mode(0o700).recursive(true).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(OpenError::NotADirectory { path: path.to_owned() });
            }
            result => result.map_err(failed)?,
        }
        let found = fs::metadata(path).map_err(failed)?;
        let mode = found.mode() & 0o7777;
        if mode & 0o007 != 0 {
            return Err(OpenError::OpenToOthers { path: path.to_owned(), mode });
        }
        let owner = found.uid();
        if owner != nix::unistd::geteuid().as_raw() && owner != 0 {
            return Err(OpenError::OtherOwner { path: path.to_owned(), owner });
        }
        Ok(Self(path.to_owned()))
    }

    pub fn file(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// What an earlier process kept, if there is something and it is still valid.
    pub fn load(&self, now: SystemTime) -> Result<Option<Kept>, LoadError> {
        let path = self.file();
        let found = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result?,
        };
        if found.mode() & 0o077 != 0 {
            return Err(LoadError::OpenToOthers { mode: found.mode() & 0o7777 });
        }
        let text = Zeroizing::new(fs::read_to_string(path)?);
        let mut registration = None;
        let mut roots = Vec::new();
        let begin = text.find("-----BEGIN").ok_or(LoadError::Missing("key"))?;
        let (head, pem) = text.split_at(begin);
        for (number, line) in head.lines().enumerate() {
            let wrong = LoadError::Line { line: number + 1 };
            if let Some(text) = line.strip_prefix(REGISTRATION) {
                registration = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix(ROOT) {
                roots.push(BASE64_STANDARD.decode(text).map_err(|_| wrong)?);
            } else {
                return Err(wrong);
            }
        }
        let registration = registration.ok_or(LoadError::Missing("registration"))?;
        if roots.is_empty() {
            return Err(LoadError::Missing("root"));
        }
        let credential = Credential::from_pem(pem)?;
        match credential.validity().at(now) {
            Held::Valid { .. } => Ok(Some(Kept { credential, registration, roots })),
            Held::Nothing | Held::NotYet { .. } | Held::Expired { .. } => Err(LoadError::NotValidNow),
        }
    }

    /// Blocks: not for a worker's thread.
    pub fn save<'a>(
        &self,
        credential: &Credential,
        registration: &str,
        roots: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        let pem = credential.to_pem().map_err(io::Error::other)?;
        disk::replace(&self.0, FILE, |file| {
            writeln!(file, "{REGISTRATION}{registration}")?;
            for root in roots {
                writeln!(file, "{ROOT}{}", BASE64_STANDARD.encode(root))?;
            }
            file.write_all(pem.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests;
