//! The run directory: where it is, who may use it, what lies where.
//!
//! A non-empty directory is refused unless the run resumes; a lock keeps two
//! processes out of the same directory and vanishes with its process, however
//! that ends. Neighbours: `metrics.rs` and `plot.rs` write into it; the
//! checkpoint store of `entrenar-io` owns what is below `checkpoints/`.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use entrenar_base::{Error, Result};
use entrenar_io::{Store, write_atomic};

const LOCK: &str = ".lock";

/// Where a run is to happen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunPlace {
    /// In this directory (`--run-dir`).
    At(PathBuf),
    /// In `<runs>/<name>-N`: the next free N, or the last one when resuming.
    Numbered {
        /// The directory of runs, usually `runs`.
        runs: PathBuf,
        /// The config's name, usually the stem of its file.
        name: String,
    },
}

/// The resolved config.
pub(crate) const CONFIG_FILE: &str = "config.yaml";

/// An open run directory, locked until dropped.
///
/// # Examples
///
/// ```
/// use entrenar_train::run::{RunDirectory, RunPlace};
///
/// let parent = tempfile::tempdir().unwrap();
/// let place = RunPlace::Numbered { runs: parent.path().join("runs"), name: "gpt".into() };
/// let first = RunDirectory::open(&place, false)?;
/// let second = RunDirectory::open(&place, false)?;
/// assert!(first.path().ends_with("runs/gpt-1") && second.path().ends_with("runs/gpt-2"));
///
/// first.write_config("seed: 1\n")?;
/// let again = RunPlace::At(first.path().to_path_buf());
/// drop(first);
/// assert!(RunDirectory::open(&again, false).is_err()); // not empty
/// assert!(RunDirectory::open(&again, true).is_ok()); // resumed
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    // Held for its lock, which goes when the file is closed.
    _lock: File,
}

impl RunDirectory {
    /// Creates or, with `resume`, takes up a run directory.
    ///
    /// # Errors
    ///
    /// A non-empty directory without `resume` (kind `Config`: the command line exits with 2); a
    /// directory that another process is using; what the file system reports.
    pub fn open(place: &RunPlace, resume: bool) -> Result<Self> {
        match place {
            RunPlace::At(path) => {
                if path.exists() && !path.is_dir() {
                    return Err(Error::config(format!(
                        "{}: expected a run directory, this is a file",
                        path.display()
                    )));
                }
                fs::create_dir_all(path)
                    .map_err(|error| Error::io(path, "cannot create the run directory", error))?;
                let run = Self::lock(path.clone())?;
                if !resume && !run.is_empty()? {
                    return Err(Error::config(format!(
                        "{}: expected an empty run directory; --resume continues the run in it",
                        path.display()
                    )));
                }
                Ok(run)
            }
            RunPlace::Numbered { runs, name } => {
                if name.is_empty() || name.contains(['/', '\\']) {
                    return Err(Error::config(format!("{name:?} is no name for a run")));
                }
                let last = last_number(runs, name)?;
                match last {
                    Some(number) if resume => Self::lock(runs.join(format!("{name}-{number}"))),
                    _ => Self::create_next(runs, name, last.unwrap_or(0)),
                }
            }
        }
    }

    fn create_next(runs: &Path, name: &str, last: u64) -> Result<Self> {
        fs::create_dir_all(runs)
            .map_err(|error| Error::io(runs, "cannot create the directory of runs", error))?;
        let mut number = last;
        loop {
            number = number.checked_add(1).ok_or_else(|| {
                Error::config(format!("{}: no number is left for {name}", runs.display()))
            })?;
            let path = runs.join(format!("{name}-{number}"));
            // Creating is the test: two runs started together get different numbers.
            match fs::create_dir(&path) {
                Ok(()) => return Self::lock(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Error::io(&path, "cannot create the run directory", error));
                }
            }
        }
    }

    fn lock(path: PathBuf) -> Result<Self> {
        let file = path.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(|error| Error::io(&file, "cannot lock the run directory", error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::config(format!(
                "{}: another process is using this run directory",
                path.display()
            ))),
            // Some network file systems know no locks: the run is worth more than the guard.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                Ok(Self { path, _lock: lock })
            }
            Err(TryLockError::Error(error)) => {
                Err(Error::io(&file, "cannot lock the run directory", error))
            }
        }
    }

    fn is_empty(&self) -> Result<bool> {
        let fail = |error| Error::io(&self.path, "cannot list the run directory", error);
        for entry in fs::read_dir(&self.path).map_err(fail)? {
            if entry.map_err(fail)?.file_name() != LOCK {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.yaml`: the resolved config.
    pub fn config_file(&self) -> PathBuf {
        self.path.join(CONFIG_FILE)
    }

    /// `metrics.jsonl`.
    pub fn metrics_file(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `loss.svg`.
    pub fn plot_file(&self) -> PathBuf {
        self.path.join("loss.svg")
    }

    /// `checkpoints/`, with one `step-N/` each.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// `model/`: the final weights.
    pub fn model(&self) -> PathBuf {
        self.path.join("model")
    }

    /// Writes `config.yaml`, atomically.
    ///
    /// # Errors
    ///
    /// What the file system reports.
    pub fn write_config(&self, yaml: &str) -> Result<()> {
        write_atomic(self.config_file(), yaml.as_bytes())
    }

    /// The config of the run that is resumed, if it got as far as writing one.
    ///
    /// # Errors
    ///
    /// What the file system reports.
    pub fn read_config(&self) -> Result<Option<String>> {
        let file = self.config_file();
        match fs::read_to_string(&file) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(&file, "cannot read the config of the run", error)),
        }
    }

    /// Draws `loss.svg` from `metrics.jsonl` and `checkpoints/best`; nothing to draw, nothing written.
    ///
    /// # Errors
    ///
    /// Metrics that cannot be read; what the file system reports.
    pub fn write_plot(&self) -> Result<()> {
        let records = super::read_metrics(&self.metrics_file())?;
        if records.is_empty() {
            return Ok(());
        }
        let best = Store::at(self.checkpoints()).best()?;
        write_atomic(
            self.plot_file(),
            super::loss_plot(&records, best).as_bytes(),
        )
    }
}

/// The greatest N of the directories `<name>-N`.
fn last_number(runs: &Path, name: &str) -> Result<Option<u64>> {
    let entries = match fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(runs, "cannot list the runs", error)),
    };
    let mut last = None;
    for entry in entries {
        let entry = entry.map_err(|error| Error::io(runs, "cannot list the runs", error))?;
        let file_name = entry.file_name();
        let number = file_name
            .to_str()
            .and_then(|text| text.strip_prefix(name)?.strip_prefix('-'))
            // `gpt-01` and `gpt-+1` are not names that this program gives.
            .filter(|digits| {
                digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.starts_with('0')
            })
            .and_then(|digits| digits.parse().ok());
        last = last.max(number);
    }
    Ok(last)
}
