//! [`CheckpointWriter`]: fills the temporary directory of a checkpoint that is being saved.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use entrenar_base::{Array, Error, Result};
use serde::Serialize;

use super::manifest::{Crc, FileEntry, Parts, file_name_refused};
use crate::atomic::create_synced;
use crate::disk::Disk;
use crate::names::Printable;
use crate::safetensors::write::Plan;

/// Adds files to a checkpoint; given to the closure of [`super::Store::save`].
pub struct CheckpointWriter<'a> {
    pub(super) disk: &'a dyn Disk,
    /// The temporary directory.
    pub(super) directory: PathBuf,
    /// Where it will be: what messages show.
    pub(super) destination: PathBuf,
    pub(super) files: Vec<FileEntry>,
}

impl CheckpointWriter<'_> {
    /// Adds a safetensors file.
    ///
    /// # Errors
    /// When the file name is taken or not plain, a tensor name appears twice, or writing fails.
    #[track_caller]
    pub fn tensors<S: AsRef<str>>(&mut self, file: &str, tensors: &[(S, Array)]) -> Result<()> {
        self.tensors_with(file, tensors, &BTreeMap::new())
    }

    /// Adds a safetensors file with metadata. Errors as [`CheckpointWriter::tensors`].
    #[track_caller]
    pub fn tensors_with<S: AsRef<str>>(
        &mut self,
        file: &str,
        tensors: &[(S, Array)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let plan = Plan::new(tensors, metadata)
            .map_err(|e| e.context(self.destination.join(file).display()))?;
        let written = self.add(file, |out| plan.stream(out))?;
        self.files.push(FileEntry {
            name: file.to_string(),
            bytes: written.bytes,
            crc32c: Crc(written.crc),
            safetensors: Some(Parts {
                header_crc32c: Crc(written.header_crc),
                tensors: written
                    .tensors
                    .into_iter()
                    .map(|(name, crc)| (name, Crc(crc)))
                    .collect(),
            }),
        });
        Ok(())
    }

    /// Adds `value` as JSON. Beware: JSON has no NaN and no infinity, serde writes them as
    /// `null`; store such a float as its bits or as an `Option`.
    ///
    /// # Errors
    /// When the file name is taken or not plain, the value has no JSON form, or writing fails.
    #[track_caller]
    pub fn json<T: Serialize + ?Sized>(&mut self, file: &str, value: &T) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(value)
            .map_err(|e| Error::other(format!("{}: {e}", self.destination.join(file).display())))?;
        text.push(b'\n');
        self.bytes(file, &text)
    }

    /// Adds a file of `bytes`.
    ///
    /// # Errors
    /// When the file name is taken or not plain, or writing fails.
    #[track_caller]
    pub fn bytes(&mut self, file: &str, bytes: &[u8]) -> Result<()> {
        self.add(file, |out| out.write_all(bytes))?;
        self.files.push(FileEntry {
            name: file.to_string(),
            bytes: bytes.len() as u64,
            crc32c: Crc(crc32c::crc32c(bytes)),
            safetensors: None,
        });
        Ok(())
    }

    #[track_caller]
    fn add<T>(
        &mut self,
        file: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<T>,
    ) -> Result<T> {
        let refused = file_name_refused(file).or_else(|| {
            let taken = self.files.iter().any(|f| f.name == file);
            taken.then_some("the checkpoint has it already")
        });
        if let Some(why) = refused {
            return Err(Error::argument(
                "checkpoint",
                "a new plain file name",
                format!("`{}`: {why}", Printable(file)),
            ));
        }
        create_synced(self.disk, &self.directory.join(file), fill)
            .map_err(|e| Error::io(self.destination.join(file), "cannot write", e))
    }
}
