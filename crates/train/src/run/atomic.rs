//! Writes a small file so that it is either the old one or the new one.
//!
//! Temporary file in the same directory, sync, rename, sync of the directory:
//! the order that survives a kill and, on file systems that keep their word, a
//! power cut. For the text files of a run; tensors are `entrenar-io`'s.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use entrenar_base::{Error, Result};

/// Replaces `path` by `bytes`, atomically.
///
/// # Errors
///
/// What the file system reports; the old file is then untouched.
///
/// # Examples
///
/// ```
/// let directory = tempfile::tempdir().unwrap();
/// let file = directory.path().join("a.txt");
/// entrenar_train::run::write_atomic(&file, b"one")?;
/// entrenar_train::run::write_atomic(&file, b"two")?;
/// assert_eq!(std::fs::read(&file).unwrap(), b"two");
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let fail = |error| Error::io(path, "cannot write the file", error);
    let name = path
        .file_name()
        .ok_or_else(|| Error::config(format!("{} names no file", path.display())))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    // One name a process: a file left by a killed run is overwritten, not collected.
    let temporary = directory.join(format!(".{}.tmp", name.to_string_lossy()));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| fs::rename(&temporary, path)) {
        // Best effort: the error that matters is the first one.
        drop(fs::remove_file(&temporary));
        return Err(fail(error));
    }
    sync_directory(directory).map_err(fail)
}

/// Makes a rename or a new entry durable.
#[cfg(unix)]
fn sync_directory(directory: &Path) -> std::io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Other systems do not open directories as files; their rename is as durable as it gets.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("taken");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("x"), "x").unwrap();
        assert!(write_atomic(&target, b"new").is_err());
        let names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["taken"]);
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(write_atomic(Path::new("/"), b"").is_err());
    }
}
