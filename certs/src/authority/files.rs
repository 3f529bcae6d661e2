//! The authority on disk: read from the files a user names, or kept in a state directory and made on first start.
//!
//! ```text
//!   DIR/ca.key      private key, mode 0600            written first; never overwritten
//!   DIR/ca.pem      issuing certificate … root
//!   DIR/trust.pem   every root to trust               the user's to edit; the current root counts without being in it
//! ```
//!
//! A file appears under its name complete or not at all, and the first process to put it there wins: several control planes
//! may start on one directory at once. A crash between key and certificate is healed by making the certificate from the
//! key that is there.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use zeroize::Zeroizing;

use super::{Authority, AuthorityCause, AuthorityError, load::Named, root_params};
use crate::{TrustDomain, credential::push_pem, inspect::hex, key::PrivateKey};

/// Which files make an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub chain: PathBuf,
    pub key: PathBuf,
    /// Further roots; need not exist.
    pub trust: Option<PathBuf>,
}

impl Files {
    /// The names inside a state directory's `ca/`.
    pub fn in_dir(dir: &Path) -> Self {
        Self { chain: dir.join("ca.pem"), key: dir.join("ca.key"), trust: Some(dir.join("trust.pem")) }
    }
}

impl Authority {
    /// Reads an authority, whoever made it. Called again after a change, it is how a root is replaced live.
    pub fn load(files: &Files, trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let chain = read(&files.chain)?;
        let key = read(&files.key)?;
        let trust = match &files.trust {
            Some(path) => read_if_there(path)?.unwrap_or_default(),
            None => Zeroizing::default(),
        };
        let (chain_name, key_name) = (files.chain.display().to_string(), files.key.display().to_string());
        let trust_name = files.trust.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
        Self::from_named(
            trust_domain,
            Named { name: &chain_name, text: &chain },
            Named { name: &key_name, text: &key },
            Named { name: &trust_name, text: &trust },
            now,
        )
    }

    /// Reads the authority kept in `dir` (a state directory's `ca/`), or makes one there.
    pub fn load_or_create(
        dir: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let files = Files::in_dir(dir);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| at(dir, &e))?;
        match (files.key.exists(), files.chain.exists()) {
            (false, true) => {
                return Err(AuthorityError {
                    file: files.key.display().to_string(),
                    cause: AuthorityCause::Missing { other: files.chain.display().to_string() },
                });
            }
            (false, false) => create_key(&files.key)?,
            (true, _) => {}
        }
        if !files.chain.exists() {
            create_root(&files, trust_domain, now)?;
        }
        let authority = Self::load(&files, trust_domain, now)?;
        if let Some(trust) = &files.trust
            && !trust.exists()
        {
            let mut pem = String::new();
            push_pem(&mut pem, "CERTIFICATE", &authority.roots[0]);
            put(trust, pem.as_bytes(), 0o644)?;
        }
        Ok(authority)
    }
}

fn create_key(path: &Path) -> Result<(), AuthorityError> {
    let unusable =
        |e: String| AuthorityError { file: path.display().to_string(), cause: AuthorityCause::Unusable(e) };
    let key = PrivateKey::generate().and_then(|key| key.pkcs8()).map_err(|e| unusable(e.to_string()))?;
    let mut pem = Zeroizing::new(String::with_capacity(1024)); // grown, it would leave copies of the key behind
    push_pem(&mut pem, "PRIVATE KEY", key.as_ref());
    put(path, pem.as_bytes(), 0o600)
}

/// Self-signs the key that lies there, which may be another process's.
fn create_root(files: &Files, trust_domain: &TrustDomain, now: SystemTime) -> Result<(), AuthorityError> {
    let key = read(&files.key)?;
    let bad_key = |cause| AuthorityError { file: files.key.display().to_string(), cause };
    let der = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| bad_key(AuthorityCause::Pem(e.to_string())))?;
    let der = Zeroizing::new(der);
    let key = PrivateKey::from_der(der.secret_der()).map_err(|e| bad_key(e.into()))?;
    let unusable = |e: String| AuthorityError {
        file: files.chain.display().to_string(),
        cause: AuthorityCause::Unusable(e),
    };
    let root = root_params(trust_domain, now)
        .and_then(|params| params.self_signed(&key).map_err(super::failed))
        .map_err(|e| unusable(e.to_string()))?;
    let mut pem = String::new();
    push_pem(&mut pem, "CERTIFICATE", root.der());
    put(&files.chain, pem.as_bytes(), 0o644)
}

/// Puts a whole file there unless there is one already: a link, unlike a rename, never replaces.
fn put(path: &Path, contents: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let mut unique = [0; 8];
    aws_lc_rs::rand::fill(&mut unique).map_err(|_| at(path, &io::Error::other("no random bytes")))?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", hex(&unique)));
    let temporary = path.with_file_name(name);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        match fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()), // another process was first; its file counts
            linked => linked,
        }
    })();
    let removed = fs::remove_file(&temporary);
    written.and(removed).map_err(|e| at(path, &e))?;
    if let Some(dir) = path.parent() {
        fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| at(dir, &e))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Zeroizing<String>, AuthorityError> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|e| at(path, &e))
}

fn read_if_there(path: &Path) -> Result<Option<Zeroizing<String>>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(Zeroizing::new(text))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(at(path, &e)),
    }
}

fn at(path: &Path, error: &io::Error) -> AuthorityError {
    AuthorityError { file: path.display().to_string(), cause: AuthorityCause::Io(error.to_string()) }
}
