//! Finds our own binaries beside the running program, and other programs on the search path.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

/// Where `outrigger`, `outrigger-proxy` and `outrigger-control-plane` were built to.
#[derive(Clone, Debug)]
pub struct Binaries {
    directory: PathBuf,
}

const NAMES: [&str; 3] = ["outrigger", "outrigger-proxy", "outrigger-control-plane"];
/// Not on the search path of an ordinary user on many distributions, yet home of `ip`, `nft` and `nginx`.
const ADMIN_DIRECTORIES: &str = "/usr/local/sbin:/usr/sbin:/sbin";

impl Binaries {
    /// In the directory that `OUTRIGGER_BIN_DIR` names, else beside the running program or one level up
    /// (test executables live in `target/PROFILE/deps`).
    pub fn find() -> Result<Self> {
        if let Some(directory) = env::var_os("OUTRIGGER_BIN_DIR") {
            return Self::in_directory(Path::new(&directory));
        }
        let program = env::current_exe()?;
        let beside = program.parent().unwrap_or_else(|| Path::new("/"));
        let Some(above) = beside.parent() else { return Self::in_directory(beside) };
        Self::in_directory(beside).or_else(|error| Self::in_directory(above).map_err(|_| error))
    }

    pub fn in_directory(directory: &Path) -> Result<Self> {
        let missing: Vec<_> = NAMES.into_iter().filter(|name| !directory.join(name).is_file()).collect();
        if !missing.is_empty() {
            bail!(
                "{} not in {}: build them with `cargo build --bins`, or name their directory in OUTRIGGER_BIN_DIR",
                missing.join(", "),
                directory.display()
            );
        }
        Ok(Self { directory: directory.to_owned() })
    }

    pub fn outrigger(&self) -> PathBuf {
        self.directory.join("outrigger")
    }

    pub fn proxy(&self) -> PathBuf {
        self.directory.join("outrigger-proxy")
    }

    pub fn control_plane(&self) -> PathBuf {
        self.directory.join("outrigger-control-plane")
    }
}

/// The full path of a program, searched for as [`search_path`] says.
pub fn find_program(name: &str) -> Option<PathBuf> {
    env::split_paths(&search_path()).map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// `PATH` and the directories of administration programs.
pub(crate) fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    path.push(":");
    path.push(ADMIN_DIRECTORIES);
    path
}
