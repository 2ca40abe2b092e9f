//! [`Checkpoint`]: one saved step, read back and verified.
//!
//! Opening checks the manifest and that every file is there at its length; reading a file checks
//! its checksums, so that damage is an error which names the tensor, never a wrong number.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use entrenar_base::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::manifest::{Crc, FileEntry, MANIFEST, Manifest, Refusal};
use crate::names::Printable;
use crate::safetensors::SafeTensors;

/// A complete checkpoint directory.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    path: PathBuf,
    manifest: Manifest,
}

impl Checkpoint {
    /// Opens a checkpoint directory.
    ///
    /// # Errors
    /// When the manifest is absent, damaged or of a later format version, or a file is missing or
    /// has another length than the manifest says.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = path.as_ref();
        Self::try_open(path).map_err(|refusal| refusal.into_error(path))
    }

    pub(super) fn try_open(path: &Path) -> std::result::Result<Checkpoint, Refusal> {
        let text = fs::read(path.join(MANIFEST))
            .map_err(|e| Refusal::Damaged(format!("{MANIFEST}: {e}")))?;
        let manifest = Manifest::parse(&text)?;
        for file in &manifest.files {
            let found = fs::metadata(path.join(&file.name))
                .map_err(|e| Refusal::Damaged(format!("file `{}`: {e}", file.name)))?;
            if !found.is_file() || found.len() != file.bytes {
                return Err(Refusal::Damaged(format!(
                    "file `{}`: {} bytes, the manifest says {}",
                    file.name,
                    found.len(),
                    file.bytes
                )));
            }
        }
        Ok(Checkpoint {
            path: path.to_path_buf(),
            manifest,
        })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The training step.
    pub fn step(&self) -> u64 {
        self.manifest.step
    }

    /// What it holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Names of its files.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.iter().map(|f| f.name.as_str())
    }

    /// True when it holds a file of that name.
    pub fn contains(&self, file: &str) -> bool {
        self.manifest.file(file).is_some()
    }

    /// A safetensors file of it, every checksum verified; tensors share the mapped pages.
    ///
    /// # Errors
    /// When there is no such file, or it is damaged: the message names the tensor.
    #[track_caller]
    pub fn tensors(&self, file: &str) -> Result<SafeTensors> {
        let entry = self.entry(file)?;
        let path = self.path.join(file);
        if entry.safetensors.is_none() {
            return Err(Error::format(&path, "was not saved as a safetensors file"));
        }
        let (damage, opened) = check_tensors(&path, entry);
        match (damage.into_iter().next(), opened) {
            (None, Some(opened)) => Ok(opened),
            (Some(first), _) => Err(Error::format(&path, first.what())),
            (None, None) => Err(Error::format(&path, "cannot be read")),
        }
    }

    /// The bytes of a file, its checksum verified.
    ///
    /// # Errors
    /// When there is no such file or it is damaged.
    #[track_caller]
    pub fn bytes(&self, file: &str) -> Result<Vec<u8>> {
        let entry = self.entry(file)?;
        let path = self.path.join(file);
        let bytes = fs::read(&path).map_err(|e| Error::io(&path, "cannot read", e))?;
        match check_bytes(entry, &bytes) {
            Some(damage) => Err(Error::format(&path, damage.what())),
            None => Ok(bytes),
        }
    }

    /// A JSON file, its checksum verified.
    ///
    /// # Errors
    /// When there is no such file, it is damaged, or its content does not fit `T`.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self, file: &str) -> Result<T> {
        let bytes = self.bytes(file)?;
        serde_json::from_slice(&bytes).map_err(|e| Error::format(self.path.join(file), e))
    }

    /// Reads everything and compares it with the manifest.
    pub fn verify(&self) -> Report {
        let mut report = Report::default();
        for entry in &self.manifest.files {
            report.files += 1;
            report.bytes += entry.bytes;
            report.damage.extend(self.check(entry));
            report.tensors += entry.safetensors.as_ref().map_or(0, |p| p.tensors.len());
        }
        report
    }

    /// Compares one file with the manifest; `None` when there is no such file.
    pub fn verify_file(&self, file: &str) -> Option<Report> {
        let entry = self.manifest.file(file)?;
        Some(Report {
            files: 1,
            tensors: entry.safetensors.as_ref().map_or(0, |p| p.tensors.len()),
            bytes: entry.bytes,
            damage: self.check(entry),
        })
    }

    fn check(&self, entry: &FileEntry) -> Vec<Damage> {
        let path = self.path.join(&entry.name);
        if entry.safetensors.is_some() {
            return check_tensors(&path, entry).0;
        }
        match fs::read(&path) {
            Ok(bytes) => check_bytes(entry, &bytes).into_iter().collect(),
            Err(e) => vec![Damage::of(entry, format!("cannot be read: {e}"))],
        }
    }

    #[track_caller]
    fn entry(&self, file: &str) -> Result<&FileEntry> {
        self.manifest.file(file).ok_or_else(|| {
            Error::argument(
                "checkpoint",
                format!(
                    "a file of {} ({})",
                    self.path.display(),
                    self.files().collect::<Vec<_>>().join(", ")
                ),
                format!("`{}`", Printable(file)),
            )
        })
    }
}

fn check_bytes(entry: &FileEntry, bytes: &[u8]) -> Option<Damage> {
    if bytes.len() as u64 != entry.bytes {
        let reason = format!("{} bytes, saved were {}", bytes.len(), entry.bytes);
        return Some(Damage::of(entry, reason));
    }
    let found = Crc(crc32c::crc32c(bytes));
    (found != entry.crc32c).then(|| Damage::of(entry, mismatch(found, entry.crc32c)))
}

fn mismatch(found: Crc, saved: Crc) -> String {
    format!("checksum {found}, saved with {saved}")
}

/// The damage of a safetensors file, and the file where it can be opened at all.
fn check_tensors(path: &Path, entry: &FileEntry) -> (Vec<Damage>, Option<SafeTensors>) {
    let Some(parts) = &entry.safetensors else {
        return (Vec::new(), None);
    };
    let file = match SafeTensors::open(path) {
        Ok(file) => file,
        Err(e) => {
            let message = e.to_string();
            let path = format!("{}: ", path.display());
            let reason = message.strip_prefix(&path).unwrap_or(&message);
            return (vec![Damage::of(entry, reason.to_string())], None);
        }
    };
    let mut damage = Vec::new();
    let header = Crc(crc32c::crc32c(file.header_bytes()));
    if header != parts.header_crc32c {
        // Names and positions are not to be trusted: blame no tensor.
        let reason = format!("header: {}", mismatch(header, parts.header_crc32c));
        return (vec![Damage::of(entry, reason)], Some(file));
    }
    for (name, &saved) in &parts.tensors {
        let reason = match file.tensor_bytes(name) {
            Err(_) => "not in the file".to_string(),
            Ok(bytes) => match Crc(crc32c::crc32c(bytes)) {
                found if found == saved => continue,
                found => mismatch(found, saved),
            },
        };
        damage.push(Damage {
            tensor: Some(name.clone()),
            ..Damage::of(entry, reason)
        });
    }
    if damage.is_empty() && file.len() != parts.tensors.len() {
        let reason = format!("{} tensors, saved were {}", file.len(), parts.tensors.len());
        damage.push(Damage::of(entry, reason));
    }
    (damage, Some(file))
}

/// One damaged part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The file's name.
    pub file: String,
    /// The tensor, where the damage lies in one.
    pub tensor: Option<String>,
    /// What is wrong.
    pub reason: String,
}

impl Damage {
    fn of(entry: &FileEntry, reason: String) -> Damage {
        Damage {
            file: entry.name.clone(),
            tensor: None,
            reason,
        }
    }

    /// The message without the file's name.
    fn what(&self) -> String {
        match &self.tensor {
            Some(tensor) => format!("tensor `{}` is damaged: {}", Printable(tensor), self.reason),
            None => format!("damaged: {}", self.reason),
        }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Printable(&self.file), self.what())
    }
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files compared.
    pub files: usize,
    /// Tensors compared.
    pub tensors: usize,
    /// Bytes compared.
    pub bytes: u64,
    /// What differs; empty when all is well.
    pub damage: Vec<Damage>,
}

impl Report {
    /// True when nothing is damaged.
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty()
    }
}

/// `1 file`, `2 files`.
fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.is_intact() {
            "intact"
        } else {
            "damaged"
        };
        write!(
            f,
            "{state}: {}, {}, {} bytes compared",
            counted(self.files, "file"),
            counted(self.tensors, "tensor"),
            self.bytes
        )?;
        for damage in &self.damage {
            write!(f, "\n  {damage}")?;
        }
        Ok(())
    }
}
