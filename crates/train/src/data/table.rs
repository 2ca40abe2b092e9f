//! Tables with declared columns: from typed cells to model inputs.
//!
//! [`TableData::open`] reads a CSV file, splits its rows by seed, takes the
//! statistics from the training rows only and encodes: numbers standardised,
//! categories one-hot, booleans 0 or 1. What was learnt from the data is in
//! [`TablePreprocessing`], which encodes later files in the same way.
//! Neighbours: `csv_file.rs` reads cells, `preprocessing.rs` stores.

use std::path::Path;
use std::sync::Arc;

use entrenar_base::{Array, Error, Result, Shape};
use serde::{Deserialize, Serialize};

use super::csv_file::{ColumnKind, Missing, RawColumn, RawTable, Wanted, read_header, read_table};
use super::dataset::{Batch, Dataset, Subset, Validation, split_rows};
use super::files::find_files;
use super::report::{counted, fault_at, listed, nearest, shown};

/// A declared column.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name in the header.
    pub name: String,
    /// What its cells mean.
    pub kind: ColumnKind,
}

/// What is to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetKind {
    /// One of several labels; targets are their numbers.
    Class,
    /// A number.
    Number,
}

/// Which columns of a table are used, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct TableSpec {
    /// The inputs, in order. `None`: every column but the target, each numeric.
    pub features: Option<Vec<Column>>,
    /// The name of the target column.
    pub target: String,
    /// What the target is.
    pub target_kind: TargetKind,
    /// What an empty numeric cell means.
    pub missing: Missing,
    /// Whether numeric inputs are brought to mean 0 and deviation 1.
    pub standardize: bool,
    /// Whether a numeric target is, too (predictions are then turned back).
    pub standardize_target: bool,
    /// The shape of one sample, such as `[1, 8, 8]` for small images; empty: `[features]`.
    pub input_shape: Vec<usize>,
    /// The byte between cells.
    pub delimiter: u8,
}

impl TableSpec {
    /// The usual settings for a target: all other columns, standardised, nothing missing, commas.
    pub fn new(target: impl Into<String>, target_kind: TargetKind) -> Self {
        Self {
            features: None,
            target: target.into(),
            target_kind,
            missing: Missing::Error,
            standardize: true,
            standardize_target: false,
            input_shape: Vec::new(),
            delimiter: b',',
        }
    }
}

/// How one input column becomes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Feature {
    /// `(x − mean) / std`, or `x` when the table is not standardised; a missing cell is `mean`.
    Numeric {
        /// Column name.
        name: String,
        /// Mean over the training rows.
        mean: f64,
        /// Deviation over the training rows (population form); 1 for a constant column.
        std: f64,
    },
    /// One input a category, in this order.
    Categorical {
        /// Column name.
        name: String,
        /// The sorted categories of the training file.
        categories: Vec<String>,
    },
    /// 0 or 1.
    Boolean {
        /// Column name.
        name: String,
    },
}

impl Feature {
    fn name(&self) -> &str {
        match self {
            Self::Numeric { name, .. }
            | Self::Categorical { name, .. }
            | Self::Boolean { name } => name,
        }
    }

    fn kind(&self) -> ColumnKind {
        match self {
            Self::Numeric { .. } => ColumnKind::Numeric,
            Self::Categorical { .. } => ColumnKind::Categorical,
            Self::Boolean { .. } => ColumnKind::Boolean,
        }
    }

    fn width(&self) -> usize {
        match self {
            Self::Categorical { categories, .. } => categories.len(),
            _ => 1,
        }
    }
}

/// How the target column becomes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TargetEncoding {
    /// The number of the label.
    Class {
        /// Column name.
        name: String,
        /// Labels in the order of their numbers: as numbers where all are integers, else by code point.
        labels: Vec<String>,
    },
    /// `(y − mean) / std`; mean 0 and std 1 when the target is not standardised.
    Number {
        /// Column name.
        name: String,
        /// What is subtracted.
        mean: f64,
        /// What is divided by.
        std: f64,
    },
}

impl TargetEncoding {
    fn name(&self) -> &str {
        match self {
            Self::Class { name, .. } | Self::Number { name, .. } => name,
        }
    }
}

/// All that is needed to turn another file of the same kind into the same inputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TablePreprocessing {
    /// Input columns in order.
    pub features: Vec<Feature>,
    /// The target column.
    pub target: TargetEncoding,
    /// Whether numeric inputs are standardised.
    pub standardize: bool,
    /// What an empty numeric cell means.
    pub missing: Missing,
    /// The shape of one sample.
    pub input_shape: Vec<usize>,
    /// The byte between cells.
    pub delimiter: u8,
}

impl TablePreprocessing {
    /// The number of inputs of one row.
    pub fn width(&self) -> usize {
        self.features.iter().map(Feature::width).sum()
    }

    /// The labels in the order of their numbers; empty for a numeric target.
    pub fn labels(&self) -> &[String] {
        match &self.target {
            TargetEncoding::Class { labels, .. } => labels,
            TargetEncoding::Number { .. } => &[],
        }
    }

    /// A predicted number on the scale of the table.
    pub fn original_target(&self, predicted: f64) -> f64 {
        match &self.target {
            TargetEncoding::Class { .. } => predicted,
            TargetEncoding::Number { mean, std, .. } => predicted * std + mean,
        }
    }

    /// What is wrong with stored values, if anything.
    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let scale = |name: &str, mean: f64, std: f64| {
            if mean.is_finite() && std.is_finite() && std > 0.0 {
                Ok(())
            } else {
                Err(format!(
                    "column {}: mean {mean} and deviation {std} scale nothing",
                    shown(name)
                ))
            }
        };
        for feature in &self.features {
            if let Feature::Numeric { name, mean, std } = feature {
                scale(name, *mean, *std)?;
            }
        }
        if let TargetEncoding::Number { name, mean, std } = &self.target {
            scale(name, *mean, *std)?;
        }
        let product = self
            .input_shape
            .iter()
            .try_fold(1usize, |product, &size| product.checked_mul(size));
        if !self.input_shape.is_empty() && product != Some(self.width()) {
            return Err(format!(
                "an input shape of {:?} does not hold the {} of this table",
                self.input_shape,
                counted(self.width(), "input")
            ));
        }
        Ok(())
    }

    /// Encodes a file. The target is read where the file has it; `require_target` makes it an error
    /// to have none (for evaluation).
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the file, with line, column name and value; labels and categories
    /// that training did not know.
    pub fn read(&self, file: &Path, require_target: bool) -> Result<Rows> {
        let with_target = require_target
            || read_header(file, self.delimiter)?
                .iter()
                .any(|name| name == self.target.name());
        let columns: Vec<Column> = self
            .features
            .iter()
            .map(|feature| Column {
                name: feature.name().to_string(),
                kind: feature.kind(),
            })
            .collect();
        let target = with_target.then_some(match &self.target {
            TargetEncoding::Class { name, .. } => (name.as_str(), TargetKind::Class),
            TargetEncoding::Number { name, .. } => (name.as_str(), TargetKind::Number),
        });
        self.encode(&read(file, &columns, target, self.missing, self.delimiter)?)
    }

    /// Turns typed cells into inputs and targets.
    fn encode(&self, table: &RawTable) -> Result<Rows> {
        let width = self.width();
        let mut inputs = vec![0f32; table.rows * width];
        let mut offset = 0;
        for (feature, column) in self.features.iter().zip(&table.columns) {
            match (feature, column) {
                (Feature::Numeric { name, mean, std }, RawColumn::Number(values)) => {
                    for (row, &value) in values.iter().enumerate() {
                        let value = if value.is_nan() { *mean } else { value };
                        let scaled = if self.standardize {
                            (value - mean) / std
                        } else {
                            value
                        } as f32;
                        // Far outside the training range a tiny deviation can overflow f32.
                        if !scaled.is_finite() {
                            return Err(Error::format(
                                &table.file,
                                format!(
                                    "row {}, column {}: {value} is too far from the training rows (mean {mean}, deviation {std})",
                                    row + 1,
                                    shown(name)
                                ),
                            ));
                        }
                        inputs[row * width + offset] = scaled;
                    }
                }
                (Feature::Boolean { .. }, RawColumn::Number(values)) => {
                    for (row, &value) in values.iter().enumerate() {
                        inputs[row * width + offset] = value as f32;
                    }
                }
                (Feature::Categorical { name, categories }, RawColumn::Text { .. }) => {
                    let numbers = number_names(table, column, name, categories, "category")?;
                    for (row, number) in numbers.into_iter().enumerate() {
                        inputs[row * width + offset + number as usize] = 1.0;
                    }
                }
                _ => {
                    return Err(Error::other(
                        "a column was read as another kind than it was declared",
                    ));
                }
            }
            offset += feature.width();
        }
        let targets = match (&self.target, table.columns.get(self.features.len())) {
            (_, None) => Targets::None,
            (TargetEncoding::Class { name, labels }, Some(column)) => {
                Targets::Class(number_names(table, column, name, labels, "label")?)
            }
            (TargetEncoding::Number { mean, std, .. }, Some(RawColumn::Number(values))) => {
                Targets::Number(
                    values
                        .iter()
                        .map(|value| ((value - mean) / std) as f32)
                        .collect(),
                )
            }
            (TargetEncoding::Number { .. }, Some(RawColumn::Text { .. })) => {
                return Err(Error::other(
                    "the target was read as another kind than it was declared",
                ));
            }
        };
        let sample = if self.input_shape.is_empty() {
            vec![width]
        } else {
            self.input_shape.clone()
        };
        Ok(Rows {
            inputs,
            width,
            sample,
            targets,
            rows: table.rows,
        })
    }
}

/// The numbers of a text column's cells in `known`.
fn number_names(
    table: &RawTable,
    column: &RawColumn,
    column_name: &str,
    known: &[String],
    noun: &str,
) -> Result<Vec<i64>> {
    let RawColumn::Text { names, codes } = column else {
        return Err(Error::other("a column of names was read as numbers"));
    };
    let mut numbers = Vec::with_capacity(names.len());
    for name in names {
        let Some(number) = known.iter().position(|label| *label == name.text) else {
            let hint = match nearest(&name.text, known.iter().map(String::as_str)) {
                Some(label) => format!(", did you mean {}?", shown(label)),
                None => String::new(),
            };
            return Err(fault_at(
                &table.file,
                (name.line, name.column),
                format!(
                    "column {}: unknown {noun} {}{hint} (training knew {})",
                    shown(column_name),
                    shown(&name.text),
                    listed(known)
                ),
            ));
        };
        numbers.push(number as i64);
    }
    Ok(codes.iter().map(|&code| numbers[code as usize]).collect())
}

enum Targets {
    Class(Vec<i64>),
    Number(Vec<f32>),
    None,
}

/// Encoded rows: a dataset of all of them, in the order of the file.
pub struct Rows {
    // [rows, width]
    inputs: Vec<f32>,
    width: usize,
    sample: Vec<usize>,
    targets: Targets,
    rows: usize,
}

impl Rows {
    /// Whether the rows have targets.
    pub fn has_targets(&self) -> bool {
        !matches!(self.targets, Targets::None)
    }
}

impl Dataset for Rows {
    fn len(&self) -> usize {
        self.rows
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let mut inputs = Vec::with_capacity(indices.len() * self.width);
        for &row in indices {
            inputs.extend_from_slice(&self.inputs[row * self.width..][..self.width]);
        }
        let rows = indices.len();
        let shape: Shape = std::iter::once(rows)
            .chain(self.sample.iter().copied())
            .collect();
        let targets = match &self.targets {
            Targets::Class(values) => Array::from_vec(
                indices.iter().map(|&row| values[row]).collect::<Vec<i64>>(),
                [rows],
            )?,
            Targets::Number(values) => Array::from_vec(
                indices.iter().map(|&row| values[row]).collect::<Vec<f32>>(),
                [rows],
            )?,
            Targets::None => Array::from_vec(Vec::<i64>::new(), [0])?,
        };
        Ok(Batch {
            inputs: Array::from_vec(inputs, shape)?,
            targets,
            rows,
        })
    }
}

/// A table read for training.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::{Dataset, TableData, TableSpec, TargetKind, Validation};
///
/// let directory = tempfile::tempdir().unwrap();
/// std::fs::write(directory.path().join("pets.csv"), "weight,legs,kind\n4,4,cat\n9,4,dog\n1,2,bird\n5,4,cat\n").unwrap();
/// let spec = TableSpec::new("kind", TargetKind::Class);
/// let data = TableData::open(directory.path(), "pets.csv", &spec, &Validation::Fraction(0.25), 1)?;
/// assert_eq!(data.preprocessing().labels(), ["bird", "cat", "dog"]);
/// assert_eq!((data.training().len(), data.validation().unwrap().len()), (3, 1));
/// let batch = data.training().batch(&[0, 1])?;
/// assert_eq!(batch.inputs.shape().dims(), [2, 2]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct TableData {
    preprocessing: TablePreprocessing,
    training: Arc<dyn Dataset>,
    validation: Option<Arc<dyn Dataset>>,
}

impl TableData {
    /// Reads `path` (relative to `directory`; one file) and, for [`Validation::Path`], the other file.
    ///
    /// # Errors
    ///
    /// What is wrong with the file, with line, column name and value; columns that do not exist, with
    /// the nearest name; a split that leaves nothing on one side.
    pub fn open(
        directory: &Path,
        path: &str,
        spec: &TableSpec,
        validation: &Validation,
        seed: u64,
    ) -> Result<Self> {
        let file = one_file(directory, path)?;
        let columns = declared(&file, spec)?;
        let target = (spec.target.as_str(), spec.target_kind);
        let table = read(&file, &columns, Some(target), spec.missing, spec.delimiter)?;
        let (training_rows, validation_rows) = match validation {
            Validation::Fraction(fraction) => split_rows(table.rows, *fraction, seed)?,
            Validation::None | Validation::Path(_) => ((0..table.rows).collect(), Vec::new()),
        };
        let preprocessing = learn(&table, &columns, spec, &training_rows)?;
        let rows = Arc::new(preprocessing.encode(&table)?);
        let validation: Option<Arc<dyn Dataset>> = match validation {
            Validation::None => None,
            Validation::Fraction(_) => Some(Arc::new(Subset {
                data: Arc::clone(&rows),
                rows: validation_rows,
            })),
            Validation::Path(path) => Some(Arc::new(
                preprocessing.read(&one_file(directory, path)?, true)?,
            )),
        };
        Ok(Self {
            preprocessing,
            training: Arc::new(Subset {
                data: rows,
                rows: training_rows,
            }),
            validation,
        })
    }

    /// What later files are encoded with.
    pub fn preprocessing(&self) -> &TablePreprocessing {
        &self.preprocessing
    }

    /// The training rows.
    pub fn training(&self) -> Arc<dyn Dataset> {
        Arc::clone(&self.training)
    }

    /// The validation rows.
    pub fn validation(&self) -> Option<Arc<dyn Dataset>> {
        self.validation.clone()
    }
}

fn one_file(directory: &Path, path: &str) -> Result<std::path::PathBuf> {
    let mut files = find_files(directory, &[path])?;
    match (files.pop(), files.is_empty()) {
        (Some(file), true) => Ok(file),
        _ => Err(Error::config(format!(
            "expected one table, but {} matches {}",
            shown(path),
            counted(files.len() + 1, "file")
        ))),
    }
}

/// The input columns of the spec, or all columns but the target.
fn declared(file: &Path, spec: &TableSpec) -> Result<Vec<Column>> {
    let columns = match &spec.features {
        Some(columns) => columns.clone(),
        None => read_header(file, spec.delimiter)?
            .into_iter()
            .filter(|name| *name != spec.target)
            .map(|name| Column {
                name,
                kind: ColumnKind::Numeric,
            })
            .collect(),
    };
    if columns.is_empty() {
        return Err(Error::format(
            file,
            "the table has no column to learn from besides the target",
        ));
    }
    for (index, column) in columns.iter().enumerate() {
        if column.name == spec.target {
            return Err(Error::config(format!(
                "column {} is both a feature and the target",
                shown(&column.name)
            )));
        }
        if columns[..index]
            .iter()
            .any(|before| before.name == column.name)
        {
            return Err(Error::config(format!(
                "column {} is declared twice",
                shown(&column.name)
            )));
        }
    }
    Ok(columns)
}

/// Reads inputs and, last, the target. A missing target is an error whatever the policy.
fn read(
    file: &Path,
    columns: &[Column],
    target: Option<(&str, TargetKind)>,
    missing: Missing,
    delimiter: u8,
) -> Result<RawTable> {
    let mut wanted: Vec<_> = columns
        .iter()
        .map(|column| (column.name.as_str(), column.kind, Some(missing)))
        .collect();
    if let Some((name, kind)) = target {
        let kind = match kind {
            TargetKind::Class => ColumnKind::Categorical,
            TargetKind::Number => ColumnKind::Numeric,
        };
        wanted.push((name, kind, None));
    }
    read_table(
        file,
        &Wanted {
            columns: wanted,
            delimiter,
        },
    )
}

/// Takes statistics from the training rows, categories and labels from the whole file.
fn learn(
    table: &RawTable,
    columns: &[Column],
    spec: &TableSpec,
    training: &[usize],
) -> Result<TablePreprocessing> {
    let mut features = Vec::with_capacity(columns.len());
    for (column, raw) in columns.iter().zip(&table.columns) {
        let name = column.name.clone();
        features.push(match (column.kind, raw) {
            (ColumnKind::Boolean, _) => Feature::Boolean { name },
            (_, RawColumn::Text { names, .. }) => Feature::Categorical {
                name,
                categories: sorted(names.iter().map(|name| name.text.clone())),
            },
            (_, RawColumn::Number(values)) => {
                let (mean, std) = statistics(values, training).ok_or_else(|| {
                    Error::format(
                        &table.file,
                        format!(
                            "column {} has no number in the training rows, so no mean",
                            shown(&name)
                        ),
                    )
                })?;
                Feature::Numeric { name, mean, std }
            }
        });
    }
    let name = spec.target.clone();
    let target = match table.columns.last() {
        Some(RawColumn::Text { names, .. }) => {
            let labels = sorted(names.iter().map(|name| name.text.clone()));
            if labels.len() < 2 {
                return Err(Error::format(
                    &table.file,
                    format!(
                        "column {} has only the label {}: there is nothing to tell apart",
                        shown(&name),
                        listed(&labels)
                    ),
                ));
            }
            TargetEncoding::Class { name, labels }
        }
        Some(RawColumn::Number(values)) if spec.standardize_target => {
            let (mean, std) = statistics(values, training)
                .ok_or_else(|| Error::format(&table.file, "there are no training rows"))?;
            TargetEncoding::Number { name, mean, std }
        }
        _ => TargetEncoding::Number {
            name,
            mean: 0.0,
            std: 1.0,
        },
    };
    let preprocessing = TablePreprocessing {
        features,
        target,
        standardize: spec.standardize,
        missing: spec.missing,
        input_shape: spec.input_shape.clone(),
        delimiter: spec.delimiter,
    };
    preprocessing.check().map_err(Error::config)?;
    Ok(preprocessing)
}

/// Mean and population deviation of the present values of `rows`; a constant column has deviation 1.
fn statistics(values: &[f64], rows: &[usize]) -> Option<(f64, f64)> {
    let present: Vec<f64> = rows
        .iter()
        .map(|&row| values[row])
        .filter(|value| !value.is_nan())
        .collect();
    if present.is_empty() {
        return None;
    }
    let count = present.len() as f64;
    let mean = present.iter().sum::<f64>() / count;
    let variance = present
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / count;
    // Rounding leaves a trace of deviation in a constant column; dividing by it would blow it up.
    let constant = variance.sqrt() <= 1e-12 * mean.abs();
    Some((mean, if constant { 1.0 } else { variance.sqrt() }))
}

/// Distinct names in order: as numbers where all of them are integers, so that 10 comes after 9.
fn sorted(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut names: Vec<String> = names.collect();
    let all_integers = names.iter().all(|name| name.parse::<i64>().is_ok());
    names.sort_by(|a, b| {
        let by_number = if all_integers {
            a.parse::<i64>().ok().cmp(&b.parse().ok())
        } else {
            std::cmp::Ordering::Equal
        };
        by_number.then_with(|| a.cmp(b))
    });
    names
}
