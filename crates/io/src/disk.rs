//! The few calls an atomic write is made of, behind a trait so that tests can make each one fail.
//!
//! [`OsDisk`] is the real one. Tests have one that fails or dies at the n-th call (`faults.rs`) and
//! one that knows what would survive a power cut (`power.rs`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

/// A file being written.
pub(crate) trait Sink: Write {
    /// Returns once content and length are on the device.
    fn sync(&mut self) -> io::Result<()>;
}

/// What [`crate::atomic`] and [`crate::store`] ask of the file system.
pub(crate) trait Disk: Send + Sync {
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// A new, empty file; an error when the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Returns once the directory's entries are on the device.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
}

/// The operating system.
pub(crate) struct OsDisk;

impl Sink for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_all()
    }
}

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Box::new(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        if !cfg!(unix) {
            // Elsewhere a directory cannot be opened as a file; renames are journaled there.
            return Ok(());
        }
        match File::open(path)?.sync_all() {
            // Some network and FUSE file systems have no fsync for directories; there is nothing
            // more to ask of them.
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {
                Ok(())
            }
            other => other,
        }
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }
}
