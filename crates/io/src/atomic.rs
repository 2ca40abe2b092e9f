//! [`write_atomic`]: a file is its old content or its new content, never a mixture.
//!
//! Temporary file in the same directory → write → fsync → rename → fsync of the directory. When
//! anything before the rename fails, the old file is as it was and the temporary one is removed.
//! The store (`store/`) does the same with whole directories.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use entrenar_base::{Error, Result};

use crate::disk::{Disk, OsDisk};

/// Temporary files and directories start with this, so that a start after a crash finds them.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Replaces the content of `path`, or creates it, in one step that survives a power cut.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("best");
/// entrenar_io::write_atomic(&path, b"step-120\n")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"step-120\n");
/// # Ok::<(), entrenar_base::Error>(())
/// ```
///
/// # Errors
/// When the directory does not exist or cannot be written, or the disk is full: the old file is
/// then unchanged. Only when the last step fails (fsync of the directory) is the new content in
/// place although an error is returned: a power cut might still undo it.
#[track_caller]
pub fn write_atomic(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    write_with(&OsDisk, path.as_ref(), |out| out.write_all(bytes))
}

/// [`write_atomic`] with the content streamed by `fill`.
#[track_caller]
pub(crate) fn write_with<T>(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> Result<T> {
    let name = path.file_name().ok_or_else(|| {
        Error::argument("write_atomic", "a path that names a file", path.display())
    })?;
    let parent = directory_of(path);
    let temporary = parent.join(temporary_name(&name.to_string_lossy()));
    let written = create_synced(disk, &temporary, fill)
        .map_err(|e| Error::io(path, "cannot write", e))
        .and_then(|value| {
            disk.rename(&temporary, path)
                .map_err(|e| Error::io(path, "cannot put in place", e))?;
            Ok(value)
        });
    if written.is_err() {
        // The first error is the one to tell; a leftover is removed at the store's next start.
        let _ = disk.remove_file(&temporary);
    }
    let value = written?;
    disk.sync_dir(&parent)
        .map_err(|e| Error::io(&parent, "cannot sync the directory", e))?;
    Ok(value)
}

/// A new file at `path`, filled and on the device when this returns.
pub(crate) fn create_synced<T>(
    disk: &dyn Disk,
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
) -> io::Result<T> {
    let mut out = BufWriter::with_capacity(1 << 20, disk.create(path)?);
    let value = fill(&mut out)?;
    out.flush()?;
    // After a failed fsync the kernel may have dropped the pages: never retry, throw away.
    out.get_mut().sync()?;
    Ok(value)
}

/// The directory that holds `path`.
pub(crate) fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// A name beside `name` that no other thread or process uses.
pub(crate) fn temporary_name(name: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    format!(
        "{TEMPORARY}{name}-{}-{number}-{nanoseconds}",
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::{Fault, FaultyDisk, entries};
    use std::fs;

    #[test]
    fn creates_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(entries(dir.path()), ["f"]);
    }

    #[test]
    fn impossible_targets_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let e = write_atomic(dir.path().join("no/f"), b"x").unwrap_err();
        assert!(e.to_string().contains("f: cannot write: "), "{e}");
        assert!(write_atomic("/", b"x").is_err());
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/x"), b"").unwrap();
        assert!(write_atomic(dir.path().join("d"), b"x").is_err());
        assert_eq!(entries(dir.path()), ["d"]);
    }

    /// Every call fails once: the file is whole, the temporary one is gone.
    #[test]
    fn a_failure_anywhere_leaves_a_whole_file() {
        let old = vec![1u8; 10];
        let new = vec![2u8; 5_000];
        let mut failures = 0;
        for n in 0.. {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            fs::write(&path, &old).unwrap();
            let disk = FaultyDisk::new(n, Fault::Error);
            let result = write_with(&disk, &path, |out| out.write_all(&new));
            let now = fs::read(&path).unwrap();
            assert_eq!(entries(dir.path()), ["f"], "call {n}: {:?}", disk.failed());
            match result {
                Ok(()) => {
                    assert!(disk.failed().is_none());
                    assert_eq!(now, new);
                    break;
                }
                Err(e) => {
                    failures += 1;
                    assert!(e.to_string().contains("No space left"), "{e}");
                    // Only the directory's fsync comes after the switch.
                    let switched = disk.failed() == Some("sync_dir");
                    assert_eq!(now, if switched { &new[..] } else { &old[..] });
                }
            }
        }
        // create, write, sync, rename, sync_dir
        assert_eq!(failures, 5);
    }

    #[test]
    fn a_kill_anywhere_leaves_a_whole_file() {
        for n in 0..8 {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            fs::write(&path, b"old").unwrap();
            let disk = FaultyDisk::new(n, Fault::Kill);
            let _ = write_with(&disk, &path, |out| out.write_all(b"newer"));
            let now = fs::read(&path).unwrap();
            assert!(now == b"old" || now == b"newer", "call {n}: {now:?}");
        }
    }
}
