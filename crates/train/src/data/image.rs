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

use super::dataset::{Batch, Dataset, Subset, Validation, split_rows};
use super::idx::read_idx;
use super::report::unusable;

/// How pixels and labels become numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImagePreprocessing {
    /// Height and width in pixels; there is one channel.
    pub size: [usize; 2],
    /// Mean of the training pixels on the scale 0 to 1.
    pub mean: f64,
    /// Deviation of the training pixels on the scale 0 to 1.
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
        Ok(Batch {
            inputs: Array::from_vec(inputs, [rows, 1, height, width])?,
            targets: Array::from_slice(&targets, [targets.len()])?,
            rows,
        })
    }
}

/// A directory of IDX files read for training.
pub struct ImageData {
    preprocessing: ImagePreprocessing,
    training: Arc<dyn Dataset>,
    validation: Option<Arc<dyn Dataset>>,
    test: Option<Arc<dyn Dataset>>,
}

impl ImageData {
    /// Reads `train-images`, `train-labels` and, where present, the `t10k` pair of a directory.
    ///
    /// `normalization` is (mean, std) on the scale 0 to 1; `None` takes it from the training images.
    /// [`Validation::Path`] names another directory, whose `t10k` files (else its `train` files) are
    /// the validation data.
    ///
    /// # Errors
    ///
    /// A missing file, with the names that were looked for; a file that is no IDX file of bytes or
    /// whose sizes contradict it; a split that leaves nothing on one side.
    pub fn open(
        directory: &Path,
        validation: &Validation,
        normalization: Option<(f64, f64)>,
        seed: u64,
    ) -> Result<Self> {
        let [images, labels] = require_pair(directory, "train")?;
        let all = Images::read(&images, &labels)?;
        let count = all.count;
        let (training_rows, validation_rows) = match validation {
            Validation::Fraction(fraction) => split_rows(count, *fraction, seed)?,
            Validation::None | Validation::Path(_) => ((0..count).collect(), Vec::new()),
        };
        let (mean, std) = match normalization {
            Some((mean, std)) if mean.is_finite() && std.is_finite() && std > 0.0 => (mean, std),
            Some((mean, std)) => {
                return Err(Error::config(format!(
                    "expected a finite image mean and a positive deviation, got {mean} and {std}"
                )));
            }
            None => all.statistics(&training_rows),
        };
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
        let validation: Option<Arc<dyn Dataset>> = match validation {
            Validation::None => None,
            Validation::Fraction(_) => Some(Arc::new(Subset {
                data: Arc::clone(&all),
                rows: validation_rows,
            })),
            Validation::Path(path) => Some(preprocessing.read(&directory.join(path))?),
        };
        let test = match find_pair(directory, "t10k")? {
            Some([images, labels]) => Some(preprocessing.read_pair(&images, &labels)?),
            None => None,
        };
        let training = Arc::new(Subset {
            data: all,
            rows: training_rows,
        });
        Ok(Self {
            preprocessing,
            training,
            validation,
            test,
        })
    }

    /// What later files are normalised with.
    pub fn preprocessing(&self) -> &ImagePreprocessing {
        &self.preprocessing
    }

    /// The training images.
    pub fn training(&self) -> Arc<dyn Dataset> {
        Arc::clone(&self.training)
    }

    /// The images kept for validation, or those of the validation directory.
    pub fn validation(&self) -> Option<Arc<dyn Dataset>> {
        self.validation.clone()
    }

    /// The `t10k` images.
    pub fn test(&self) -> Option<Arc<dyn Dataset>> {
        self.test.clone()
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
        if !(self.mean.is_finite() && self.std.is_finite() && self.std > 0.0) {
            return Err(format!(
                "mean {} and deviation {} scale nothing",
                self.mean, self.std
            ));
        }
        if self.labels.is_empty() {
            return Err("there are no labels".into());
        }
        Ok(())
    }

    /// Reads the labelled images of a directory (its `t10k` files, else its `train` files), or the
    /// images of a single IDX file, which then have no targets.
    ///
    /// # Errors
    ///
    /// As [`ImageData::open`]; images of another size and labels that training did not know.
    pub fn read(&self, path: &Path) -> Result<Arc<dyn Dataset>> {
        if path.is_file() {
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
