//! Replaces a file whole or not at all, readable by its owner only.
//!
//! A reader (the next start of this program) finds the old content or the new one, never a part: the new content is
//! written beside, reaches the disk, and takes the name. What fails on the way leaves nothing behind.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Writes the file `name` in `directory` by `write`. Blocks: not for a worker's thread.
pub(crate) fn replace(
    directory: &Path,
    name: &str,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let beside = directory.join(format!(".{name}.new"));
    // Left by a process that was killed while writing; it may belong to nobody any more, so it is not written into.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = write(&mut file)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, directory.join(name)))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        // On a full disk, what was written so far must not stay. If this fails too, the first error says more.
        let _ = fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_new_content_takes_the_name_and_belongs_to_the_owner() {
        let directory = tempfile::tempdir().unwrap();
        for content in ["one", "another"] {
            replace(directory.path(), "f", |file| file.write_all(content.as_bytes())).unwrap();
            assert_eq!(fs::read_to_string(directory.path().join("f")).unwrap(), content);
        }
        assert_eq!(names(directory.path()), ["f"]);
        let mode = fs::metadata(directory.path().join("f")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_failed_write_leaves_the_old_content_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        replace(directory.path(), "f", |file| file.write_all(b"good")).unwrap();
        let error = replace(directory.path(), "f", |file| {
            file.write_all(b"half of the n")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(directory.path().join("f")).unwrap(), b"good");
        assert_eq!(names(directory.path()), ["f"]);
    }

    #[test]
    fn a_leftover_is_replaced_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let elsewhere = directory.path().join("elsewhere");
        std::os::unix::fs::symlink(&elsewhere, directory.path().join(".f.new")).unwrap();
        replace(directory.path(), "f", |file| file.write_all(b"x")).unwrap();
        assert!(!elsewhere.exists());
        assert_eq!(names(directory.path()), ["f"]);
    }
}
