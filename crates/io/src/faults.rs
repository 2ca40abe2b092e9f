//! Tests only: a disk whose n-th call fails, or at whose n-th call the process "dies".

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, OsDisk, Sink};

/// What happens at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails as on a full disk; later calls work.
    Error,
    /// It and every later call fail: nothing can be tidied up, as after a kill.
    Kill,
}

#[derive(Debug)]
struct State {
    fault: Fault,
    /// Calls left until the fault.
    left: usize,
    failed: Option<&'static str>,
}

/// Counts calls over [`OsDisk`]. A write that fails has written half of its
/// bytes, a removal of a directory that fails has removed one file.
#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk(Arc<Mutex<State>>);

impl FaultyDisk {
    /// Fails at call number `n`, from 0.
    pub(crate) fn new(n: usize, fault: Fault) -> FaultyDisk {
        FaultyDisk(Arc::new(Mutex::new(State {
            fault,
            left: n,
            failed: None,
        })))
    }

    /// The call that failed first.
    pub(crate) fn failed(&self) -> Option<&'static str> {
        self.0.lock().unwrap().failed
    }

    fn call(&self, name: &'static str) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let dead = state.fault == Fault::Kill && state.failed.is_some();
        if state.failed.is_none() && state.left == 0 {
            state.failed = Some(name);
        } else if !dead {
            state.left = state.left.saturating_sub(1);
            return Ok(());
        }
        Err(io::Error::from_raw_os_error(28)) // ENOSPC
    }
}

struct FaultySink(FaultyDisk, Box<dyn Sink>);

impl Write for FaultySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let was_fine = self.0.failed().is_none();
        match self.0.call("write") {
            Ok(()) => self.1.write(bytes),
            Err(e) => {
                if was_fine {
                    self.1.write_all(&bytes[..bytes.len() / 2])?;
                }
                Err(e)
            }
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

impl Sink for FaultySink {
    fn sync(&mut self) -> io::Result<()> {
        self.0.call("sync")?;
        self.1.sync()
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call("create_dir")?;
        OsDisk.create_dir(path)
    }
    fn create(&self, path: &Path) -> io::Result<Box<dyn Sink>> {
        self.call("create")?;
        Ok(Box::new(FaultySink(self.clone(), OsDisk.create(path)?)))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call("rename")?;
        OsDisk.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.call("sync_dir")?;
        OsDisk.sync_dir(path)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call("remove_file")?;
        OsDisk.remove_file(path)
    }
    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let was_fine = self.failed().is_none();
        self.call("remove_dir_all").inspect_err(|_| {
            if was_fine
                && let Some(Ok(first)) = std::fs::read_dir(path).ok().and_then(|mut d| d.next())
            {
                let _ = std::fs::remove_file(first.path());
            }
        })?;
        OsDisk.remove_dir_all(path)
    }
}

/// Names in a directory, sorted.
pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
