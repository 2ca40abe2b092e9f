//! [`Store`]: checkpoints that are whole or absent.
//!
//! `DIR/step-N/` holds the files of one step and `manifest.json` (`manifest.rs`); `DIR/best` names
//! the best step. A save fills `DIR/.tmp-step-N-…`, syncs every file and the directory, renames
//! it to `step-N` and syncs `DIR`: at no moment, power cuts included, is there half a checkpoint
//! under a checkpoint's name, and no earlier one is touched. Saving a step that exists moves the
//! old one to `DIR/.old-step-N-…` first; [`Store::new`] moves it back if the new one never came.
//!
//! `writer.rs` fills, `checkpoint.rs` reads and verifies; `crash.rs` (tests) fails, kills and cuts
//! the power at every call.

mod checkpoint;
#[cfg(test)]
mod crash;
mod manifest;
mod writer;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, Result};
use serde::Serialize;

pub use checkpoint::{Checkpoint, Damage, Report};
pub(crate) use manifest::MANIFEST;
pub use manifest::{Crc, FORMAT_VERSION, FileEntry, Manifest, Parts};
pub use writer::CheckpointWriter;

use crate::atomic::{self, TEMPORARY, temporary_name, write_with};
use crate::disk::{Disk, OsDisk};
use manifest::Refusal;

/// What a checkpoint that is being replaced is called meanwhile.
const OLD: &str = ".old-";
const BEST: &str = "best";

/// A directory of checkpoints.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_io::Store;
/// # let dir = tempfile::tempdir().unwrap();
/// # let checkpoints = dir.path().join("checkpoints");
/// let store = Store::new(&checkpoints)?;
/// store.save(10, |writer| {
///     writer.tensors("model.safetensors", &[("weight", Array::scalar(1.5f32))])?;
///     writer.json("state.json", &[10, 3])
/// })?;
/// let found = store.latest()?.checkpoint.unwrap();
/// assert_eq!(found.step(), 10);
/// assert_eq!(found.tensors("model.safetensors")?.tensor("weight")?.item::<f32>()?, 1.5);
/// assert_eq!(found.json::<[u64; 2]>("state.json")?, [10, 3]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    cleaned: Vec<PathBuf>,
}

/// A `step-N` directory that is not a usable checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The directory.
    pub path: PathBuf,
    /// Its step, by its name.
    pub step: u64,
    /// Why it was passed over.
    pub reason: String,
}

/// The newest checkpoint and what was passed over on the way to it.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The newest that is complete.
    pub checkpoint: Option<Checkpoint>,
    /// Newer ones that are not, newest first.
    pub skipped: Vec<Skipped>,
}

impl Store {
    /// The store in `dir`, which is created where needed (`checkpoints` in a run directory).
    ///
    /// Removes what an interrupted save has left, unless another process is saving right now.
    ///
    /// # Errors
    /// When the directory cannot be created, read or cleaned.
    #[track_caller]
    pub fn new(dir: impl AsRef<Path>) -> Result<Store> {
        Self::with_disk(dir.as_ref(), Arc::new(OsDisk))
    }

    /// The store in `dir` as it is: nothing is created or cleaned, for readers of a directory
    /// that may belong to a running process. A directory that is absent holds no checkpoint.
    pub fn at(dir: impl AsRef<Path>) -> Store {
        Store {
            dir: dir.as_ref().to_path_buf(),
            disk: Arc::new(OsDisk),
            cleaned: Vec::new(),
        }
    }

    #[track_caller]
    pub(crate) fn with_disk(dir: &Path, disk: Arc<dyn Disk>) -> Result<Store> {
        create_durably(&*disk, dir)?;
        let mut store = Store {
            dir: dir.to_path_buf(),
            disk,
            cleaned: Vec::new(),
        };
        store.clean()?;
        Ok(store)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leftovers of interrupted saves that [`Store::new`] removed.
    pub fn cleaned(&self) -> &[PathBuf] {
        &self.cleaned
    }

    /// Saves the checkpoint of `step`: the files that `fill` adds. A checkpoint of the same step
    /// is replaced. Another save into the same directory, from any process, waits for this one:
    /// do not save from inside `fill`.
    ///
    /// # Errors
    /// When `fill` fails or anything cannot be written (a full disk): the temporary directory is
    /// removed and the checkpoints are those of before. Only when the very last call fails (fsync
    /// of the store's directory) is the new checkpoint in place although an error is returned.
    #[track_caller]
    pub fn save(
        &self,
        step: u64,
        fill: impl FnOnce(&mut CheckpointWriter<'_>) -> Result<()>,
    ) -> Result<Checkpoint> {
        let _lock = self.lock();
        let name = directory_name(step);
        let destination = self.dir.join(&name);
        let temporary = Temporary {
            disk: &*self.disk,
            path: self.dir.join(temporary_name(&name)),
        };
        self.disk
            .create_dir(&temporary.path)
            .map_err(|e| Error::io(&destination, "cannot create", e))?;
        let mut writer = CheckpointWriter {
            disk: &*self.disk,
            directory: temporary.path.clone(),
            destination: destination.clone(),
            files: Vec::new(),
        };
        fill(&mut writer)?;
        let text = Manifest::new(step, writer.files).to_text()?;
        let manifest = temporary.path.join(MANIFEST);
        atomic::create_synced(&*self.disk, &manifest, |out| out.write_all(text.as_bytes()))
            .map_err(|e| Error::io(destination.join(MANIFEST), "cannot write", e))?;
        self.disk
            .sync_dir(&temporary.path)
            .map_err(|e| Error::io(&destination, "cannot sync the directory", e))?;
        let replaced = self.put_in_place(&temporary, &destination, step)?;
        self.sync()?;
        if let Some(old) = replaced {
            // The new checkpoint is safe; a leftover is removed at the next start.
            let _ = self.discard(&old);
        }
        Checkpoint::open(&destination)
    }

    /// Renames the filled directory to its name; returns where a replaced one went.
    #[track_caller]
    fn put_in_place(
        &self,
        temporary: &Temporary<'_>,
        destination: &Path,
        step: u64,
    ) -> Result<Option<PathBuf>> {
        let failed = |e| Error::io(destination, "cannot put in place", e);
        if fs::symlink_metadata(destination).is_err() {
            self.disk
                .rename(&temporary.path, destination)
                .map_err(failed)?;
            return Ok(None);
        }
        let unique = temporary_name(&directory_name(step));
        let old = self
            .dir
            .join(format!("{OLD}{}", &unique[TEMPORARY.len()..]));
        self.disk.rename(destination, &old).map_err(failed)?;
        if let Err(e) = self.disk.rename(&temporary.path, destination) {
            // Should this fail as well, the next start does it.
            let _ = self.disk.rename(&old, destination);
            return Err(failed(e));
        }
        Ok(Some(old))
    }

    /// The newest complete checkpoint: its manifest is sound and its files have their lengths.
    /// Contents are verified when they are read; [`Store::latest_intact`] verifies them now.
    ///
    /// # Errors
    /// When the directory cannot be read, or a newer checkpoint has a later format version:
    /// continuing from an older one would lose it silently.
    #[track_caller]
    pub fn latest(&self) -> Result<Found> {
        self.newest(|_| None)
    }

    /// The newest checkpoint whose every byte is as it was saved. Errors as [`Store::latest`].
    #[track_caller]
    pub fn latest_intact(&self) -> Result<Found> {
        self.newest(|checkpoint| {
            let damage = checkpoint.verify().damage;
            damage.first().map(|d| d.to_string())
        })
    }

    #[track_caller]
    fn newest(&self, refused: impl Fn(&Checkpoint) -> Option<String>) -> Result<Found> {
        let mut found = Found::default();
        for step in self.steps()?.into_iter().rev() {
            let path = self.path_of(step);
            let reason = match self.try_open(step) {
                Ok(checkpoint) => match refused(&checkpoint) {
                    None => {
                        found.checkpoint = Some(checkpoint);
                        break;
                    }
                    Some(reason) => reason,
                },
                Err(Refusal::Damaged(reason)) => reason,
                Err(newer @ Refusal::Newer(_)) => return Err(newer.into_error(&path)),
            };
            found.skipped.push(Skipped { path, step, reason });
        }
        Ok(found)
    }

    /// The checkpoint of `step`.
    ///
    /// # Errors
    /// When it is absent, damaged or of a later format version.
    #[track_caller]
    pub fn open(&self, step: u64) -> Result<Checkpoint> {
        self.try_open(step)
            .map_err(|refusal| refusal.into_error(&self.path_of(step)))
    }

    fn try_open(&self, step: u64) -> std::result::Result<Checkpoint, Refusal> {
        let checkpoint = Checkpoint::try_open(&self.path_of(step))?;
        if checkpoint.step() != step {
            return Err(Refusal::Damaged(format!(
                "the manifest is that of step {}",
                checkpoint.step()
            )));
        }
        Ok(checkpoint)
    }

    /// Steps that have a directory, complete or not, in ascending order.
    ///
    /// # Errors
    /// When the directory cannot be read.
    #[track_caller]
    pub fn steps(&self) -> Result<Vec<u64>> {
        let names = self.entries()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|name| step_of(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Removes all but the newest `keep` complete checkpoints; those in `protect`, the best and
    /// the newest always stay. Damaged ones are neither counted nor removed. Returns the removed
    /// steps.
    ///
    /// # Errors
    /// When the directory cannot be read or changed; no half checkpoint is left even then.
    #[track_caller]
    pub fn prune(&self, keep: usize, protect: &[u64]) -> Result<Vec<u64>> {
        let best = self.best()?;
        let complete: Vec<u64> = self
            .steps()?
            .into_iter()
            .filter(|&step| self.try_open(step).is_ok())
            .collect();
        let mut removed = Vec::new();
        for &step in complete.iter().rev().skip(keep.max(1)) {
            if protect.contains(&step) || best == Some(step) {
                continue;
            }
            let path = self.path_of(step);
            self.discard(&path)
                .map_err(|e| Error::io(&path, "cannot remove", e))?;
            removed.push(step);
        }
        if !removed.is_empty() {
            self.sync()?;
        }
        removed.reverse();
        Ok(removed)
    }

    /// Records `step` as the best one, in the file `best`.
    ///
    /// # Errors
    /// When there is no complete checkpoint of that step, or the file cannot be written.
    #[track_caller]
    pub fn set_best(&self, step: u64) -> Result<()> {
        self.open(step)?;
        let text = format!("{}\n", directory_name(step));
        write_with(&*self.disk, &self.dir.join(BEST), |out| {
            out.write_all(text.as_bytes())
        })
    }

    /// The step recorded as the best, if any.
    ///
    /// # Errors
    /// When the file `best` cannot be read or does not name a step.
    #[track_caller]
    pub fn best(&self) -> Result<Option<u64>> {
        let path = self.dir.join(BEST);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, "cannot read", e)),
        };
        std::str::from_utf8(&text)
            .ok()
            .and_then(|text| step_of(text.trim_end()))
            .map(Some)
            .ok_or_else(|| Error::format(&path, "expected a name like `step-120`"))
    }

    /// The directory of a step, existing or not.
    pub fn path_of(&self, step: u64) -> PathBuf {
        self.dir.join(directory_name(step))
    }

    /// Names in the directory; none when it is absent.
    #[track_caller]
    fn entries(&self) -> Result<Vec<String>> {
        let failed = |e| Error::io(&self.dir, "cannot list", e);
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not text is none of ours.
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    /// Restores replaced checkpoints whose successor never came, then removes leftovers.
    #[track_caller]
    fn clean(&mut self) -> Result<()> {
        let Some(_lock) = self.try_lock() else {
            return Ok(());
        };
        let mut changed = false;
        for name in self.entries()? {
            let path = self.dir.join(&name);
            let failed = |e| {
                Error::io(
                    &path,
                    "cannot remove the leftover of an interrupted save",
                    e,
                )
            };
            if let Some(step) = name.strip_prefix(OLD).and_then(step_of_replaced)
                && !self.path_of(step).exists()
            {
                self.disk
                    .rename(&path, &self.path_of(step))
                    .map_err(|e| Error::io(&path, "cannot restore", e))?;
            } else if !name.starts_with(TEMPORARY) && !name.starts_with(OLD) {
                continue;
            } else {
                if !path.is_dir() {
                    self.disk.remove_file(&path).map_err(failed)?;
                } else if name.starts_with(TEMPORARY) {
                    self.disk.remove_dir_all(&path).map_err(failed)?;
                } else {
                    self.discard(&path).map_err(failed)?;
                }
                self.cleaned.push(path);
            }
            changed = true;
        }
        if changed {
            self.sync()?;
        }
        Ok(())
    }

    /// Removes a checkpoint directory. It gets a temporary name first, so that an interruption
    /// leaves a leftover and never half a checkpoint under a name that counts.
    fn discard(&self, path: &Path) -> io::Result<()> {
        let away = self.dir.join(temporary_name("removed"));
        self.disk.rename(path, &away)?;
        self.disk.remove_dir_all(&away)
    }

    #[track_caller]
    fn sync(&self) -> Result<()> {
        self.disk
            .sync_dir(&self.dir)
            .map_err(|e| Error::io(&self.dir, "cannot sync the directory", e))
    }

    /// Held while saving, so that another process does not clean the save away. The lock is on
    /// the directory itself and dies with the process. File systems without locks do without.
    fn lock(&self) -> Option<File> {
        let file = self.lockable()?;
        file.lock().ok()?;
        Some(file)
    }

    /// The lock for cleaning; `None` while somebody saves.
    fn try_lock(&self) -> Option<Option<File>> {
        let Some(file) = self.lockable() else {
            return Some(None);
        };
        match file.try_lock() {
            Ok(()) => Some(Some(file)),
            Err(fs::TryLockError::WouldBlock) => None,
            Err(fs::TryLockError::Error(_)) => Some(None),
        }
    }

    fn lockable(&self) -> Option<File> {
        if cfg!(unix) {
            File::open(&self.dir).ok()
        } else {
            None // a directory cannot be opened as a file there
        }
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.dir.display())
    }
}

/// A temporary directory; removed when dropped, a no-op once it was renamed.
struct Temporary<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.path.exists() {
            // The error that led here is the one to tell; the next start cleans.
            let _ = self.disk.remove_dir_all(&self.path);
        }
    }
}

/// Creates `dir` and its parents, each entry on the device when this returns.
#[track_caller]
fn create_durably(disk: &dyn Disk, dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = atomic::directory_of(dir);
    create_durably(disk, &parent)?;
    match disk.create_dir(dir) {
        Err(e) if !(e.kind() == ErrorKind::AlreadyExists && dir.is_dir()) => {
            return Err(Error::io(dir, "cannot create", e));
        }
        _ => {}
    }
    disk.sync_dir(&parent)
        .map_err(|e| Error::io(&parent, "cannot sync the directory", e))
}

fn directory_name(step: u64) -> String {
    format!("step-{step}")
}

/// The step of a directory name, `None` for any other name (`step-07` is not how we write 7).
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (directory_name(step) == name).then_some(step)
}

/// The step of `step-N-pid-…`.
fn step_of_replaced(name: &str) -> Option<u64> {
    let (number, _) = name.strip_prefix("step-")?.split_once('-')?;
    number.parse().ok()
}
