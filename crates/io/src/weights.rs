//! [`Weights`]: the tensors of a model, in one file or spread over shards, of either format.
//!
//! A sharded model has `model.safetensors.index.json` (or `pytorch_model.bin.index.json`):
//! `{"metadata": …, "weight_map": {tensor: file}}`. The map decides: tensors that a shard holds besides are not seen. File names in it
//! must be plain: an index cannot point outside its directory (a symbolic link in the directory
//! may; the hub's cache is built of them).

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use entrenar_base::{Array, Error, Result};
use serde::Deserialize;

use crate::names::{Printable, not_a_plain_file_name};
use crate::pytorch::{self, PyTorch};
use crate::safetensors::header::UniqueStrings;
use crate::safetensors::{SafeTensors, TensorInfo, no_such_tensor};

/// Weight files of a directory, in the order in which they are looked for: where both formats are
/// there, safetensors.
const IN_DIRECTORY: [&str; 7] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "adapter_model.bin",
];

/// One weight file of either format.
#[derive(Clone, Debug)]
pub enum WeightFile {
    /// A safetensors file.
    SafeTensors(SafeTensors),
    /// A file of `torch.save`.
    PyTorch(PyTorch),
}

/// The same question to either format.
macro_rules! ask {
    ($file:expr, $inner:ident => $answer:expr) => {
        match $file {
            WeightFile::SafeTensors($inner) => $answer,
            WeightFile::PyTorch($inner) => $answer,
        }
    };
}

impl WeightFile {
    /// Opens a file; its ending and its first bytes say which format it is.
    ///
    /// # Errors
    /// As [`SafeTensors::open`] and [`PyTorch::open`].
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<WeightFile> {
        let path = path.as_ref();
        Ok(if is_pytorch(path) {
            WeightFile::PyTorch(PyTorch::open(path)?)
        } else {
            WeightFile::SafeTensors(SafeTensors::open(path)?)
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        ask!(self, file => file.path())
    }

    /// Length of the whole file.
    pub fn size(&self) -> usize {
        ask!(self, file => file.size())
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        ask!(self, file => file.len())
    }

    /// True when the file holds no tensor.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Names, in the file's order.
    pub fn names(&self) -> Vec<&str> {
        ask!(self, file => file.names().collect())
    }

    /// Names and descriptions, in the file's order.
    pub fn infos(&self) -> Vec<(&str, &TensorInfo)> {
        ask!(self, file => file.infos().collect())
    }

    /// The description of one tensor, `None` when the file does not hold it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        ask!(self, file => file.info(name))
    }

    /// Where a tensor stands in the file's order.
    fn position(&self, name: &str) -> Option<usize> {
        match self {
            WeightFile::SafeTensors(file) => file.header.index.get(name).copied(),
            WeightFile::PyTorch(file) => file.position(name),
        }
    }

    /// One tensor. Errors as [`SafeTensors::tensor`] and [`PyTorch::tensor`].
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Array> {
        ask!(self, file => file.tensor(name))
    }

    /// The `__metadata__` map of a safetensors file; empty for the other format.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        match self {
            WeightFile::SafeTensors(file) => file.metadata().clone(),
            WeightFile::PyTorch(_) => BTreeMap::new(),
        }
    }
}

/// Whether a file's ending or its first bytes are those of PyTorch. A file that cannot be read is
/// the reader's to report.
pub(crate) fn is_pytorch(path: &Path) -> bool {
    let ending = path.extension().and_then(|e| e.to_str());
    let mut start = [0; 9];
    let read = || std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut start));
    match ending {
        Some("safetensors") => false,
        Some(e) if pytorch::EXTENSIONS.contains(&e) => true,
        // A safetensors file may start with any length, and then a brace.
        _ => {
            path.is_file()
                && { read }().is_ok()
                && start[8] != b'{'
                && (start.starts_with(b"PK\x03\x04") || start[0] == 0x80)
        }
    }
}

/// The tensors of a model: a safetensors or PyTorch file, a sharded index, or a directory with one
/// of them.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_io::{Weights, write_safetensors};
/// # let dir = tempfile::tempdir().unwrap();
/// # let model = dir.path();
/// write_safetensors(model.join("a.safetensors"), &[("x", Array::scalar(1i64))], &Default::default())?;
/// write_safetensors(model.join("b.safetensors"), &[("y", Array::scalar(2i64))], &Default::default())?;
/// let index = r#"{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}"#;
/// std::fs::write(model.join("model.safetensors.index.json"), index).unwrap();
/// let weights = Weights::open(model)?;
/// assert_eq!(weights.tensor("y")?.item::<i64>()?, 2);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Weights {
    path: PathBuf,
    files: Vec<WeightFile>,
    /// Which file holds each tensor; in order of files, then of position.
    tensors: Vec<(String, usize)>,
    index: HashMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: UniqueStrings,
}

impl Weights {
    /// Opens `path`: a safetensors or PyTorch file, an index (`….json`), or a directory that holds
    /// `model.safetensors`, its index, or the same for `adapter_model`; or else
    /// `pytorch_model.bin`, its index, or `adapter_model.bin`.
    ///
    /// # Errors
    /// When there are no weights, a shard is missing or damaged or lacks a tensor the index
    /// promises, or the index names a file outside its directory.
    #[track_caller]
    pub fn open(path: impl AsRef<Path>) -> Result<Weights> {
        let path = path.as_ref();
        let file = if path.is_dir() {
            find_in(path)?
        } else {
            path.to_path_buf()
        };
        if file.extension().is_some_and(|e| e == "json") {
            return Self::open_index(&file);
        }
        let file = WeightFile::open(file)?;
        let names = file.names().into_iter();
        let tensors = names.map(|name| (name.to_string(), 0)).collect();
        Ok(Self::new(path, vec![file], tensors))
    }

    #[track_caller]
    fn open_index(path: &Path) -> Result<Weights> {
        let text = std::fs::read(path).map_err(|e| Error::io(path, "cannot read", e))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::format(path, format!("not an index of weight files: {e}")))?;
        let mut by_shard: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &index.weight_map.0 {
            by_shard.entry(shard).or_default().push(tensor);
        }
        let directory = crate::atomic::directory_of(path);
        let mut files = Vec::new();
        let mut tensors = Vec::new();
        for (shard, mut names) in by_shard {
            let first = Printable(names[0]);
            if let Some(why) = not_a_plain_file_name(shard) {
                return Err(Error::format(
                    path,
                    format!(
                        "tensor `{first}`: `{}` is not the name of a file beside the index: {why}",
                        Printable(shard)
                    ),
                ));
            }
            let shard_path = directory.join(shard);
            if !shard_path.exists() {
                return Err(Error::format(
                    path,
                    format!(
                        "the shard `{shard}` is missing; it holds tensor `{first}`{}",
                        match names.len() {
                            1 => String::new(),
                            n => format!(" and {} more", n - 1),
                        }
                    ),
                ));
            }
            let file = WeightFile::open(&shard_path)?;
            if let Some(absent) = names.iter().find(|name| file.info(name).is_none()) {
                return Err(Error::format(
                    path,
                    format!(
                        "tensor `{}` should be in `{shard}`, which does not hold it",
                        Printable(absent)
                    ),
                ));
            }
            names.sort_by_key(|name| file.position(name));
            tensors.extend(names.iter().map(|name| (name.to_string(), files.len())));
            files.push(file);
        }
        Ok(Self::new(path, files, tensors))
    }

    fn new(path: &Path, files: Vec<WeightFile>, tensors: Vec<(String, usize)>) -> Weights {
        Weights {
            path: path.to_path_buf(),
            index: tensors.iter().cloned().collect(),
            files,
            tensors,
        }
    }

    /// The path this was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, by name.
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// Number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True when there is no tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names, by file and position in it.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.tensors.iter().map(|(name, _)| name.as_str())
    }

    /// The description of one tensor, `None` when the model does not hold it.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.file_of(name)?.info(name)
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, name: &str) -> Option<&WeightFile> {
        Some(&self.files[*self.index.get(name)?])
    }

    /// One tensor. Errors as [`WeightFile::tensor`].
    #[track_caller]
    pub fn tensor(&self, name: &str) -> Result<Array> {
        match self.file_of(name) {
            Some(file) => file.tensor(name),
            None => Err(no_such_tensor(&self.path, name, self.len())),
        }
    }

    /// All tensors, by file and position in it. Errors as [`WeightFile::tensor`].
    #[track_caller]
    pub fn tensors(&self) -> Result<Vec<(String, Array)>> {
        let mut out = Vec::with_capacity(self.len());
        for name in self.names() {
            out.push((name.to_string(), self.tensor(name)?));
        }
        Ok(out)
    }

    /// The `__metadata__` of all files; where two disagree, the last by name.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.files.iter().flat_map(WeightFile::metadata).collect()
    }
}

/// The weight file of a directory.
#[track_caller]
pub(crate) fn find_in(directory: &Path) -> Result<PathBuf> {
    IN_DIRECTORY
        .iter()
        .map(|name| directory.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            Error::format(
                directory,
                format!("no weights: expected one of {}", IN_DIRECTORY.join(", ")),
            )
        })
}
