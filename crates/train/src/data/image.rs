//! Labelled images in a directory of IDX files: MNIST and its relatives.
//!
//! `train-…` files are the training data (part of which may be kept for
//! validation), `t10k-…` files the test data. Pixels stay bytes in memory and
//! are normalised, `(pixel / 255 − mean) / std`, when a batch is made.
//! Neighbour: `idx.rs` reads single files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};
use serde::{Deserialize, Serialize};

use super::dataset::{Batch, Dataset, Parts, Splits, split_rows};
use super::idx::read_idx;
use super::report::unusable;
use super::scaling::{Scaling, check_scale};

/// How pixels and labels become numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImagePreprocessing {
    /// Height and width in pixels; there is one channel.
    pub size: [usize; 2],
    /// What is subtracted, on the scale 0 to 1.
    pub mean: f64,
    /// What is divided by, on the scale 0 to 1.
    pub std: f64,
    /// Label names in the order of their numbers.
    pub labels: Vec<String>,
}

/// Images with labels, in the order of their file: a dataset of all of them.
pub struct Images {
    // [count, height, width]
    pixels: Vec<u8>,
    // [count], or nothing for images without labels
    labels: Option<Vec<u8>>,
    count: usize,
    size: [usize; 2],
    // normalised value of each byte
    table: Box<[f32; 256]>,
}

impl Images {
    fn read(images: &Path, labels: &Path) -> Result<Self> {
        let pixels = read_idx(images, 3)?;
        let numbers = read_idx(labels, 1)?;
        if pixels.dims[0] != numbers.dims[0] {
            return Err(Error::format(
                labels,
                format!(
                    "expected {} labels, one for each image of {}, got {}",
                    pixels.dims[0],
                    images.display(),
                    numbers.dims[0]
                ),
            ));
        }
        Ok(Self {
            size: [pixels.dims[1], pixels.dims[2]],
            count: pixels.dims[0],
            pixels: pixels.bytes,
            labels: Some(numbers.bytes),
            table: Box::new([0.0; 256]),
        })
    }

    fn read_unlabelled(images: &Path) -> Result<Self> {
        let pixels = read_idx(images, 3)?;
        Ok(Self {
            size: [pixels.dims[1], pixels.dims[2]],
            count: pixels.dims[0],
            pixels: pixels.bytes,
            labels: None,
            table: Box::new([0.0; 256]),
        })
    }

    fn labels(&self) -> &[u8] {
        self.labels.as_deref().unwrap_or_default()
    }

    fn normalize(mut self, mean: f64, std: f64) -> Self {
        for (byte, value) in self.table.iter_mut().enumerate() {
            *value = ((byte as f64 / 255.0 - mean) / std) as f32;
        }
        self
    }

    fn check_against(
        &self,
        preprocessing: &ImagePreprocessing,
        images: &Path,
        labels: &Path,
    ) -> Result<()> {
        if self.size != preprocessing.size {
            return Err(Error::format(
                images,
                format!(
                    "expected images of {} × {} pixels as in training, got {} × {}",
                    preprocessing.size[0], preprocessing.size[1], self.size[0], self.size[1]
                ),
            ));
        }
        let classes = preprocessing.labels.len();
        if let Some(row) = self
            .labels()
            .iter()
            .position(|&label| usize::from(label) >= classes)
        {
            return Err(Error::format(
                labels,
                format!(
                    "expected labels 0 to {} as in training, got {} for image {}",
                    classes - 1,
                    self.labels()[row],
                    row + 1
                ),
            ));
        }
        Ok(())
    }

    /// Mean and population deviation of the pixels of `rows`, on the scale 0 to 1.
    fn statistics(&self, rows: &[usize]) -> (f64, f64) {
        // Counting bytes is exact; only the last few operations round.
        let mut histogram = [0u64; 256];
        let area = self.size[0] * self.size[1];
        for &row in rows {
            for &pixel in &self.pixels[row * area..][..area] {
                histogram[usize::from(pixel)] += 1;
            }
        }
        let values = || {
            histogram
                .iter()
                .enumerate()
                .map(|(byte, &count)| (byte as f64 / 255.0, count as f64))
        };
        let count = (rows.len() * area) as f64;
        let mean = values().map(|(value, weight)| value * weight).sum::<f64>() / count;
        let variance = values()
            .map(|(value, weight)| (value - mean).powi(2) * weight)
            .sum::<f64>()
            / count;
        // All pixels alike: nothing to scale.
        (
            mean,
            if variance > 1e-20 {
                variance.sqrt()
            } else {
                1.0
            },
        )
    }
}

impl Dataset for Images {
    fn len(&self) -> usize {
        self.count
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let [height, width] = self.size;
        let area = height * width;
        let mut inputs = Vec::with_capacity(indices.len() * area);
        for &row in indices {
            let pixels = &self.pixels[row * area..][..area];
            inputs.extend(pixels.iter().map(|&pixel| self.table[usize::from(pixel)]));
        }
        let targets: Vec<i64> = match &self.labels {
            Some(labels) => indices.iter().map(|&row| i64::from(labels[row])).collect(),
            None => Vec::new(),
        };
        let rows = indices.len();
        Ok(Batch::new(
            Array::from_vec(inputs, [rows, 1, height, width])?,
            Array::from_slice(&targets, [targets.len()])?,
            rows,
        ))
    }
}

/// A directory of IDX files read for training.
pub struct ImageData {
    preprocessing: ImagePreprocessing,
    parts: Parts,
}

impl ImageData {
    /// Reads `train-images`, `train-labels` and, where present, the `t10k` pair of a directory.
    ///
    /// The test part is the `t10k` files, unless `splits` says otherwise. Paths in `splits` name
    /// directories (relative to `directory`) whose `t10k` files, else their `train` files, are used.
    ///
    /// # Errors
    ///
    /// A missing file, with the names that were looked for; a file that is no IDX file of bytes or
    /// whose sizes contradict it; a split that leaves nothing on one side.
    pub fn open(directory: &Path, splits: &Splits, scaling: &Scaling, seed: u64) -> Result<Self> {
        scaling.check(1, "channel")?;
        let [images, labels] = require_pair(directory, "train")?;
        let all = Images::read(&images, &labels)?;
        let rows = split_rows(all.count, splits, seed)?;
        let (mean, std) = scaling.mean_std(0, || Ok(all.statistics(&rows.training)))?;
        let classes = all
            .labels()
            .iter()
            .max()
            .map_or(0, |&greatest| usize::from(greatest) + 1);
        if classes < 2 {
            return Err(Error::format(
                &labels,
                "all labels are 0: there is nothing to tell apart",
            ));
        }
        let preprocessing = ImagePreprocessing {
            size: all.size,
            mean,
            std,
            labels: (0..classes).map(|label| label.to_string()).collect(),
        };
        let all = Arc::new(all.normalize(mean, std));
        let mut parts = Parts::of(&all, rows, splits, |paths| match paths {
            [path] => preprocessing.read(&directory.join(path), true),
            _ => Err(Error::config(format!(
                "expected one directory of images, got {}",
                paths.len()
            ))),
        })?;
        if parts.test.is_none()
            && let Some([images, labels]) = find_pair(directory, "t10k")?
        {
            parts.test = Some(preprocessing.read_pair(&images, &labels)?);
        }
        Ok(Self {
            preprocessing,
            parts,
        })
    }

    /// What later files are normalised with.
    pub fn preprocessing(&self) -> &ImagePreprocessing {
        &self.preprocessing
    }

    /// The images, divided.
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }
}

impl ImagePreprocessing {
    /// What is wrong with stored values, if anything.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        if self.size.contains(&0) {
            return Err(format!(
                "images of {} × {} pixels are empty",
                self.size[0], self.size[1]
            ));
        }
        check_scale("pixels", self.mean, self.std)?;
        if self.labels.is_empty() {
            return Err("there are no labels".into());
        }
        Ok(())
    }

    /// Reads the labelled images of a directory (its `t10k` files, else its `train` files), or the
    /// images of a single IDX file, which then have no targets. `require_target` makes the latter an
    /// error (for evaluation).
    ///
    /// # Errors
    ///
    /// As [`ImageData::open`]; images of another size and labels that training did not know.
    pub fn read(&self, path: &Path, require_target: bool) -> Result<Arc<dyn Dataset>> {
        if path.is_file() {
            if require_target {
                return Err(unusable(
                    path,
                    "expected a directory of IDX files with labels, got a single file",
                ));
            }
            let all = Images::read_unlabelled(path)?;
            all.check_against(self, path, path)?;
            return Ok(Arc::new(all.normalize(self.mean, self.std)));
        }
        let [images, labels] = match find_pair(path, "t10k")? {
            Some(pair) => pair,
            None => require_pair(path, "train")?,
        };
        self.read_pair(&images, &labels)
    }

    fn read_pair(&self, images: &Path, labels: &Path) -> Result<Arc<dyn Dataset>> {
        let all = Images::read(images, labels)?;
        all.check_against(self, images, labels)?;
        Ok(Arc::new(all.normalize(self.mean, self.std)))
    }
}

/// The names a file goes by: both published spellings, plain before gzipped.
fn names(prefix: &str, part: &str, rank: usize) -> [String; 4] {
    let dash = format!("{prefix}-{part}-idx{rank}-ubyte");
    let dot = format!("{prefix}-{part}.idx{rank}-ubyte");
    [
        dash.clone(),
        dot.clone(),
        format!("{dash}.gz"),
        format!("{dot}.gz"),
    ]
}

/// The image and label files that begin with `prefix`; `None` where neither is there.
fn find_pair(directory: &Path, prefix: &str) -> Result<Option<[PathBuf; 2]>> {
    let find = |part, rank| {
        names(prefix, part, rank)
            .map(|name| directory.join(name))
            .into_iter()
            .find(|file| file.is_file())
    };
    match (find("images", 3), find("labels", 1)) {
        (Some(images), Some(labels)) => Ok(Some([images, labels])),
        (None, None) => Ok(None),
        (images, _) => {
            let (there, part, rank) = if images.is_some() {
                ("images", "labels", 1)
            } else {
                ("labels", "images", 3)
            };
            Err(unusable(
                directory,
                format!(
                    "the {prefix} {there} are here, but not the {part}: expected {} (or .gz)",
                    names(prefix, part, rank)[0]
                ),
            ))
        }
    }
}

fn require_pair(directory: &Path, prefix: &str) -> Result<[PathBuf; 2]> {
    if !directory.is_dir() {
        return Err(unusable(directory, "expected a directory of IDX files"));
    }
    find_pair(directory, prefix)?.ok_or_else(|| {
        unusable(
            directory,
            format!(
                "no IDX images here: expected {} and {} (or .gz)",
                names(prefix, "images", 3)[0],
                names(prefix, "labels", 1)[0]
            ),
        )
    })
}
