//! [`inspect()`]: what is in a weight file, a model directory, a run or a checkpoint.
//!
//! An [`Inspection`] is plain data: serialised for `--json`, printed as a table by `table.rs`.
//! Only headers are read; [`Inspection::verify`] reads everything and names what is damaged.

mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use entrenar_base::Element as _;
use entrenar_base::{Array, DType, Error, Result, dispatch};
use serde::Serialize;

use crate::safetensors::{CHECKSUMS, Checksums, SafeTensors, StoredDType, TensorInfo};
use crate::store::{Checkpoint, Damage, MANIFEST, Report, Store};
use crate::weights::{WeightFile, Weights};

/// What kind of thing a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// One safetensors file.
    Safetensors,
    /// One file of `torch.save`.
    Pytorch,
    /// Several files with an index.
    ShardedSafetensors,
    /// Several files of `torch.save` with an index.
    ShardedPytorch,
    /// A directory with weights, as the Hugging Face hub has them.
    ModelDirectory,
    /// A `step-N` directory with a manifest.
    Checkpoint,
    /// A run directory: checkpoints, and the final model once there is one.
    RunDirectory,
}

impl Kind {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Safetensors => "safetensors file",
            Kind::Pytorch => "PyTorch file",
            Kind::ShardedSafetensors => "sharded safetensors",
            Kind::ShardedPytorch => "sharded PyTorch files",
            Kind::ModelDirectory => "model directory",
            Kind::Checkpoint => "checkpoint",
            Kind::RunDirectory => "run directory",
        }
    }
}

/// One tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorRow {
    /// The file that holds it, relative to the inspected path.
    pub file: String,
    /// Its name.
    pub name: String,
    /// Element type as the file names it.
    pub dtype: StoredDType,
    /// Sizes of the dimensions.
    pub shape: Vec<usize>,
    /// Length of its data.
    pub bytes: usize,
    /// Number of elements.
    pub parameters: usize,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileRow {
    /// Relative to the inspected path.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// Tensors in it; `None` for a file without tensors.
    pub tensors: Option<usize>,
    /// Its `__metadata__`, checksums left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// One checkpoint of a run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckpointRow {
    /// Its step.
    pub step: u64,
    /// Length of its files; `None` when it cannot be used.
    pub bytes: Option<u64>,
    /// Whether `best` names it.
    pub best: bool,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// What a path holds. `Display` is a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    /// The inspected path.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// The step of a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// Who wrote a checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
    /// Elements of the weights: for a checkpoint those of `model.safetensors` where it has one
    /// (optimizer state is no parameter), else of all tensors.
    pub parameters: usize,
    /// Bytes of all tensors.
    pub tensor_bytes: usize,
    /// The files, in order.
    pub files: Vec<FileRow>,
    /// The tensors, by file and position in it.
    pub tensors: Vec<TensorRow>,
    /// The checkpoints of a run, ascending.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checkpoints: Vec<CheckpointRow>,
    /// Filled by [`Inspection::verify`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verification: Option<Verification>,
}

/// The outcome of [`Inspection::verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    /// What was compared and what is damaged.
    #[serde(flatten)]
    pub report: Report,
    /// True when the files came with checksums; without them only structure and values can be
    /// checked, and a changed number is not noticed.
    pub checksums: bool,
    /// Tensors with NaN or infinite elements: no damage in itself.
    pub non_finite: Vec<NonFinite>,
}

/// A tensor with elements that are not finite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NonFinite {
    /// The file that holds it.
    pub file: String,
    /// Its name.
    pub tensor: String,
    /// How many elements are NaN.
    pub nan: usize,
    /// How many are infinite.
    pub infinite: usize,
}

/// Describes `path`: a safetensors file, an index, a directory with weights, a checkpoint or a
/// run directory. Reads headers only.
///
/// ```
/// use entrenar_base::Array;
/// use entrenar_io::{inspect, write_safetensors};
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// write_safetensors(&path, &[("weight", Array::full([2, 3], 1.0f32))], &Default::default())?;
/// let found = inspect(&path)?;
/// assert_eq!(found.parameters, 6);
/// assert!(found.to_string().contains("weight  F32    [2, 3]"));
/// assert!(found.verify()?.verification.unwrap().report.is_intact());
/// # Ok::<(), entrenar_base::Error>(())
/// ```
///
/// # Errors
/// When there is no such path, nothing in it is known, or a header is damaged.
#[track_caller]
pub fn inspect(path: impl AsRef<Path>) -> Result<Inspection> {
    let path = path.as_ref();
    match source(path)? {
        Source::Weights(kind, weights) => Ok(of_weights(path, kind, &weights)),
        Source::Checkpoint(checkpoint) => of_checkpoint(path, &checkpoint),
        Source::Run(store, weights) => of_run(path, &store, weights),
    }
}

enum Source {
    Weights(Kind, Weights),
    Checkpoint(Checkpoint),
    Run(Store, Option<Weights>),
}

#[track_caller]
fn source(path: &Path) -> Result<Source> {
    if !path.is_dir() {
        let weights = Weights::open(path)?;
        let sharded = path.extension().is_some_and(|e| e == "json");
        let pytorch = matches!(weights.files().first(), Some(WeightFile::PyTorch(_)));
        let kind = match (sharded, pytorch) {
            (false, false) => Kind::Safetensors,
            (false, true) => Kind::Pytorch,
            (true, false) => Kind::ShardedSafetensors,
            (true, true) => Kind::ShardedPytorch,
        };
        return Ok(Source::Weights(kind, weights));
    }
    if path.join(MANIFEST).exists() {
        return Ok(Source::Checkpoint(Checkpoint::open(path)?));
    }
    let run = path.join("checkpoints");
    if run.is_dir() {
        let model = path.join("model");
        let weights = model.is_dir().then(|| Weights::open(&model)).transpose()?;
        return Ok(Source::Run(Store::at(run), weights));
    }
    match Weights::open(path) {
        Ok(weights) => Ok(Source::Weights(Kind::ModelDirectory, weights)),
        // A file that is there tells its own story; an absent one asks for the whole list.
        Err(e) if e.path() != Some(path) => Err(e),
        Err(_) => Err(Error::format(
            path,
            "nothing to inspect: expected a safetensors or PyTorch file, a directory with \
             model.safetensors, adapter_model.safetensors, pytorch_model.bin or their index, a \
             checkpoint (with manifest.json) or a run directory (with checkpoints)",
        )),
    }
}

fn empty(path: &Path, kind: Kind) -> Inspection {
    Inspection {
        path: path.to_path_buf(),
        kind,
        step: None,
        producer: None,
        parameters: 0,
        tensor_bytes: 0,
        files: Vec::new(),
        tensors: Vec::new(),
        checkpoints: Vec::new(),
        verification: None,
    }
}

impl Inspection {
    fn add_tensor(&mut self, file: &str, name: &str, info: &TensorInfo) {
        self.tensor_bytes += info.bytes;
        self.tensors.push(TensorRow {
            file: file.to_string(),
            name: name.to_string(),
            dtype: info.dtype.clone(),
            shape: info.shape.clone(),
            bytes: info.bytes,
            parameters: info.numel(),
        });
    }

    /// Adds a file with those of its tensors that `seen` lets through.
    fn add_file(&mut self, path: &Path, file: &WeightFile, seen: impl Fn(&str) -> bool) {
        let name = relative(path, file.path());
        for (tensor, info) in file.infos() {
            if seen(tensor) {
                self.add_tensor(&name, tensor, info);
            }
        }
        let mut metadata = file.metadata();
        // For `verify`, not for readers.
        metadata.remove(CHECKSUMS);
        self.files.push(FileRow {
            bytes: file.size() as u64,
            tensors: Some(file.len()),
            metadata,
            name,
        });
    }

    /// Adds weights and counts their parameters.
    fn add_weights(&mut self, path: &Path, weights: &Weights) {
        let first = self.tensors.len();
        for file in weights.files() {
            self.add_file(path, file, |name| {
                weights
                    .file_of(name)
                    .is_some_and(|home| home.path() == file.path())
            });
        }
        self.parameters += count(&self.tensors[first..]);
    }

    /// Reads everything again and reports damage: by checksum where a manifest has them (also for
    /// a safetensors file inside a checkpoint) or the file itself, else by structure and values.
    ///
    /// # Errors
    /// When the path has changed since and can no longer be inspected.
    #[track_caller]
    pub fn verify(mut self) -> Result<Inspection> {
        let mut verification = Verification {
            report: Report::default(),
            checksums: true,
            non_finite: Vec::new(),
        };
        match source(&self.path)? {
            Source::Weights(_, weights) => {
                self.verify_weights(&weights, &mut verification);
            }
            Source::Checkpoint(checkpoint) => {
                verification.report = checkpoint.verify();
                self.add_non_finite(&checkpoint, "", &mut verification);
            }
            Source::Run(store, weights) => {
                for step in store.steps()? {
                    let prefix = format!("checkpoints/step-{step}/");
                    match store.open(step) {
                        Ok(checkpoint) => {
                            let report = checkpoint.verify();
                            add(&mut verification.report, report, &prefix);
                            self.add_non_finite(&checkpoint, &prefix, &mut verification);
                        }
                        Err(e) => verification.report.damage.push(Damage {
                            file: prefix.trim_end_matches('/').to_string(),
                            tensor: None,
                            reason: e.to_string(),
                        }),
                    }
                }
                if let Some(weights) = weights {
                    self.verify_weights(&weights, &mut verification);
                }
            }
        }
        self.verification = Some(verification);
        Ok(self)
    }

    fn verify_weights(&self, weights: &Weights, out: &mut Verification) {
        for file in weights.files() {
            let name = relative(&self.path, file.path());
            let sums = Checksums::of(&file.metadata());
            let by_manifest = manifest_beside(file.path());
            out.checksums &= by_manifest.is_some() || sums.is_some();
            let report = by_manifest.unwrap_or_else(|| check_tensors(file, sums));
            let prefix = name.strip_suffix(&*file_name(file.path())).unwrap_or("");
            add(&mut out.report, report, prefix);
            out.non_finite.extend(non_finite(file, &name));
        }
    }

    fn add_non_finite(&self, checkpoint: &Checkpoint, prefix: &str, out: &mut Verification) {
        for file in checkpoint.manifest().files.iter() {
            if file.safetensors.is_some()
                && let Ok(opened) = checkpoint.tensors(&file.name)
            {
                let name = format!("{prefix}{}", file.name);
                let opened = WeightFile::SafeTensors(opened);
                out.non_finite.extend(non_finite(&opened, &name));
            }
        }
    }
}

fn of_weights(path: &Path, kind: Kind, weights: &Weights) -> Inspection {
    let mut out = empty(path, kind);
    out.add_weights(path, weights);
    out
}

#[track_caller]
fn of_checkpoint(path: &Path, checkpoint: &Checkpoint) -> Result<Inspection> {
    let mut out = empty(path, Kind::Checkpoint);
    out.step = Some(checkpoint.step());
    out.producer = Some(checkpoint.manifest().producer.clone());
    for entry in &checkpoint.manifest().files {
        if entry.safetensors.is_some() {
            let file = WeightFile::SafeTensors(SafeTensors::open(path.join(&entry.name))?);
            out.add_file(path, &file, |_| true);
        } else {
            out.files.push(FileRow {
                name: entry.name.clone(),
                bytes: entry.bytes,
                tensors: None,
                metadata: BTreeMap::new(),
            });
        }
    }
    let weights: Vec<TensorRow> = out
        .tensors
        .iter()
        .filter(|t| t.file == "model.safetensors")
        .cloned()
        .collect();
    out.parameters = if weights.is_empty() {
        count(&out.tensors)
    } else {
        count(&weights)
    };
    Ok(out)
}

#[track_caller]
fn of_run(path: &Path, store: &Store, weights: Option<Weights>) -> Result<Inspection> {
    let mut out = empty(path, Kind::RunDirectory);
    let best = store.best()?;
    for step in store.steps()? {
        let (bytes, problem) = match store.open(step) {
            Ok(checkpoint) => (Some(checkpoint.manifest().bytes()), None),
            Err(e) => (None, Some(e.to_string())),
        };
        out.checkpoints.push(CheckpointRow {
            step,
            bytes,
            best: best == Some(step),
            problem,
        });
    }
    if let Some(weights) = weights {
        out.add_weights(path, &weights);
    }
    Ok(out)
}

/// Weights that bitsandbytes keeps in 4 bits count for the two numbers in each byte, and what describes
/// them for nothing.
fn count(tensors: &[TensorRow]) -> usize {
    const STATE: &str = ".quant_state.bitsandbytes__";
    const PARTS: [&str; 4] = [
        ".absmax",
        ".quant_map",
        ".nested_absmax",
        ".nested_quant_map",
    ];
    let quantized: BTreeSet<&str> = tensors
        .iter()
        .filter_map(|t| Some(t.name.split_once(STATE)?.0))
        .collect();
    let describes = |name: &str| {
        let mut parts = PARTS.iter().filter_map(|part| name.strip_suffix(part));
        name.contains(STATE) || parts.any(|weight| quantized.contains(weight))
    };
    tensors.iter().fold(0usize, |n, t| {
        n.saturating_add(match t.name.as_str() {
            name if quantized.contains(name) => t.parameters.saturating_mul(2),
            name if describes(name) => 0,
            _ => t.parameters,
        })
    })
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// `file` seen from the directory `from`; its name when `from` is the file itself.
fn relative(from: &Path, file: &Path) -> String {
    match file.strip_prefix(from) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest.to_string_lossy().into_owned(),
        _ => file_name(file).into_owned(),
    }
}

fn add(to: &mut Report, report: Report, prefix: &str) {
    to.files += report.files;
    to.tensors += report.tensors;
    to.bytes += report.bytes;
    to.damage.extend(report.damage.into_iter().map(|d| Damage {
        file: format!("{prefix}{}", d.file),
        ..d
    }));
}

/// The report on a file that belongs to a checkpoint.
fn manifest_beside(path: &Path) -> Option<Report> {
    let directory = crate::atomic::directory_of(path);
    let checkpoint = Checkpoint::open(directory).ok()?;
    checkpoint.verify_file(&file_name(path))
}

/// The report on a file by its own checksums. Without them every tensor must at least be readable (a
/// bool is 0 or 1).
fn check_tensors(file: &WeightFile, sums: Option<Result<Checksums, String>>) -> Report {
    let mut damage = Vec::new();
    let mut add = |tensor: Option<&str>, reason: String| {
        damage.push(Damage {
            file: file_name(file.path()).into_owned(),
            tensor: tensor.map(str::to_string),
            reason,
        });
    };
    let sums = match sums {
        Some(Ok(sums)) => Some(sums),
        Some(Err(reason)) => {
            add(None, reason);
            None
        }
        None => None,
    };
    for (name, info) in file.infos() {
        let readable = || file.tensor(name).err().map(|e| e.to_string());
        let complaint = match (file, &sums) {
            (WeightFile::SafeTensors(file), Some(sums)) => file
                .tensor_bytes(name)
                .ok()
                .and_then(|bytes| sums.complaint(name, info, bytes)),
            (WeightFile::SafeTensors(_), None) if info.dtype.array_dtype().is_none() => None,
            _ => readable(),
        };
        if let Some(reason) = complaint {
            add(Some(name), reason);
        }
    }
    if let Some(name) = sums
        .as_ref()
        .and_then(|s| s.absent(|n| file.info(n).is_some()))
    {
        add(
            Some(name),
            "it has a checksum and is not in the file".to_string(),
        );
    }
    Report {
        files: 1,
        tensors: file.len(),
        bytes: file.size() as u64,
        damage,
    }
}

fn non_finite(file: &WeightFile, shown: &str) -> Vec<NonFinite> {
    let mut found = Vec::new();
    let names: BTreeSet<&str> = file.names().into_iter().collect();
    for name in names {
        let Some(dtype) = file.info(name).and_then(|i| i.dtype.array_dtype()) else {
            continue;
        };
        if !dtype.is_float() {
            continue;
        }
        let Ok(array) = file.tensor(name) else {
            continue;
        };
        let (nan, infinite) = count_non_finite(&array, dtype);
        if nan + infinite > 0 {
            found.push(NonFinite {
                file: shown.to_string(),
                tensor: name.to_string(),
                nan,
                infinite,
            });
        }
    }
    found
}

fn count_non_finite(array: &Array, dtype: DType) -> (usize, usize) {
    dispatch!(dtype, T => {
        // A view: tensors of a PyTorch file may be strided.
        let Ok(view) = array.view::<T>() else { return (0, 0) };
        view.iter().fold((0, 0), |(nan, infinite), x| {
            let x = x.to_f64();
            (nan + usize::from(x.is_nan()), infinite + usize::from(x.is_infinite()))
        })
    })
}
