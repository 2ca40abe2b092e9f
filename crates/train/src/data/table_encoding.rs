//! Typed cells to model inputs and targets, and what training learnt for it.
//!
//! Numbers are scaled, categories one-hot, booleans 0 or 1; labels become
//! their numbers. [`TablePreprocessing`] holds everything that came from the
//! training data and encodes later files in the same way.
//! Neighbours: `csv_file.rs` reads cells, `table.rs` learns from them,
//! `preprocessing.rs` stores.

use std::collections::HashMap;
use std::path::PathBuf;

use entrenar_base::{Array, Error, ErrorKind, Result, Shape};
use serde::{Deserialize, Serialize};

use super::csv_file::{ColumnKind, Missing, RawColumn, RawTable, Wanted, read_header, read_tables};
use super::dataset::{Batch, Dataset};
use super::report::{counted, fault_at, listed, nearest, shown};
use super::scaling::check_scale;

/// How one input column becomes numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Feature {
    /// `(x − mean) / std`.
    Numeric {
        /// Column name.
        name: String,
        /// What is subtracted.
        mean: f64,
        /// What is divided by.
        std: f64,
        /// What stands for a missing cell: the training mean; `None` where a missing cell is an error.
        fill: Option<f64>,
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

    fn kind(&self) -> ColumnKind {
        match self {
            Self::Class { .. } => ColumnKind::Categorical,
            Self::Number { .. } => ColumnKind::Numeric,
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
        let column = |name: &str| format!("column {}", shown(name));
        for feature in &self.features {
            if let Feature::Numeric {
                name,
                mean,
                std,
                fill,
            } = feature
            {
                check_scale(&column(name), *mean, *std)?;
                check_scale(&column(name), fill.unwrap_or(0.0), 1.0)?;
            }
        }
        if let TargetEncoding::Number { name, mean, std } = &self.target {
            check_scale(&column(name), *mean, *std)?;
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

    /// The shape of one sample.
    pub fn sample_shape(&self) -> Vec<usize> {
        if self.input_shape.is_empty() {
            vec![self.width()]
        } else {
            self.input_shape.clone()
        }
    }

    /// Encodes files, their rows one after the other. The target is read where the first file has
    /// it; `require_target` makes it an error to have none (for evaluation).
    ///
    /// # Errors
    ///
    /// Whatever is wrong with a file, with line, column name and value; labels and categories that
    /// training did not know.
    pub fn read(&self, files: &[PathBuf], require_target: bool) -> Result<Rows> {
        let first = files
            .first()
            .ok_or_else(|| Error::config("no table was given"))?;
        let target = self.target.name();
        let with_target = require_target
            || read_header(first, self.delimiter)?
                .iter()
                .any(|name| name == target);
        let mut columns: Vec<_> = self
            .features
            .iter()
            .map(|feature| {
                let missing = match feature {
                    Feature::Numeric { fill: Some(_), .. } => Missing::Mean,
                    _ => Missing::Error,
                };
                (feature.name(), feature.kind(), Some(missing))
            })
            .collect();
        if with_target {
            columns.push((target, self.target.kind(), None));
        }
        self.encode(&read_tables(
            files,
            &Wanted {
                columns,
                delimiter: self.delimiter,
            },
        )?)
    }

    /// Turns typed cells (the features and, last, perhaps the target) into inputs and targets.
    pub(super) fn encode(&self, table: &RawTable) -> Result<Rows> {
        let wrong_kind = || Error::other("a column was read as another kind than it was declared");
        let mut slots = Vec::with_capacity(self.features.len());
        let (mut values, mut codes) = (Vec::new(), Vec::new());
        for (feature, column) in self.features.iter().zip(&table.columns) {
            match (feature, column) {
                (
                    Feature::Numeric {
                        name,
                        mean,
                        std,
                        fill,
                    },
                    RawColumn::Number(cells),
                ) => {
                    slots.push(Slot::Value);
                    values.push(scaled(
                        &table.files,
                        cells,
                        name,
                        *mean,
                        *std,
                        fill.unwrap_or(*mean),
                    )?);
                }
                (Feature::Boolean { .. }, RawColumn::Number(cells)) => {
                    slots.push(Slot::Value);
                    values.push(cells.iter().map(|&value| value as f32).collect());
                }
                (Feature::Categorical { name, categories }, RawColumn::Text { .. }) => {
                    slots.push(Slot::OneHot(categories.len()));
                    codes.push(number_names(table, column, name, categories, "category")?);
                }
                _ => return Err(wrong_kind()),
            }
        }
        let targets = match (&self.target, table.columns.get(self.features.len())) {
            (_, None) => Targets::None,
            (TargetEncoding::Class { name, labels }, Some(column)) => {
                Targets::Class(number_names(table, column, name, labels, "label")?)
            }
            (TargetEncoding::Number { name, mean, std }, Some(RawColumn::Number(cells))) => {
                Targets::Number(scaled(&table.files, cells, name, *mean, *std, *mean)?)
            }
            (TargetEncoding::Number { .. }, Some(RawColumn::Text { .. })) => {
                return Err(wrong_kind());
            }
        };
        Ok(Rows {
            values: row_major(&values, table.rows),
            codes: row_major(&codes, table.rows),
            slots,
            width: self.width(),
            sample: self.sample_shape(),
            targets,
            rows: table.rows,
        })
    }
}

/// `(x − mean) / std` with NaN standing for a missing cell.
fn scaled(
    files: &[PathBuf],
    cells: &[f64],
    name: &str,
    mean: f64,
    std: f64,
    fill: f64,
) -> Result<Vec<f32>> {
    let mut values = Vec::with_capacity(cells.len());
    for (row, &cell) in cells.iter().enumerate() {
        let cell = if cell.is_nan() { fill } else { cell };
        let value = ((cell - mean) / std) as f32;
        // Far outside the training range a tiny deviation can overflow f32.
        if !value.is_finite() {
            let message = format!(
                "column {}, row {}: {cell:?} is too far from the training rows (mean {mean:?}, deviation {std:?})",
                shown(name),
                row + 1
            );
            return Err(match files {
                [file] => Error::format(file, message),
                _ => Error::new(ErrorKind::Format, message),
            });
        }
        values.push(value);
    }
    Ok(values)
}

/// Columns to rows: what a batch reads lies together.
fn row_major<T: Copy>(columns: &[Vec<T>], rows: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(columns.len() * rows);
    for row in 0..rows {
        values.extend(columns.iter().map(|column| column[row]));
    }
    values
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
    let places: HashMap<&str, i64> = known.iter().map(String::as_str).zip(0..).collect();
    let mut numbers = Vec::with_capacity(names.len());
    for name in names {
        let Some(&number) = places.get(name.text.as_str()) else {
            let hint = match nearest(&name.text, known.iter().map(String::as_str)) {
                Some(label) => format!(", did you mean {}?", shown(label)),
                None => String::new(),
            };
            return Err(fault_at(
                &table.files[name.file],
                (name.line, name.column),
                format!(
                    "column {}: unknown {noun} {}{hint} (training knew {})",
                    shown(column_name),
                    shown(&name.text),
                    listed(known)
                ),
            ));
        };
        numbers.push(number);
    }
    Ok(codes.iter().map(|&code| numbers[code as usize]).collect())
}

enum Targets {
    Class(Vec<i64>),
    Number(Vec<f32>),
    None,
}

/// How one feature is laid out in the inputs of a row.
enum Slot {
    /// The next of the row's values.
    Value,
    /// The next of the row's codes, as 1 among this many zeros.
    OneHot(usize),
}

/// Encoded rows: a dataset of all of them, in the order of the files.
///
/// Categories stay numbers until a batch is made: one-hot rows of a whole table could be a thousand
/// times larger than its file.
pub struct Rows {
    // [rows, value slots]
    values: Vec<f32>,
    // [rows, one-hot slots]
    codes: Vec<i64>,
    slots: Vec<Slot>,
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
        let (value_count, code_count) =
            (self.values.len() / self.rows, self.codes.len() / self.rows);
        let mut inputs = vec![0f32; indices.len() * self.width];
        for (place, &row) in indices.iter().enumerate() {
            let mut values = self.values[row * value_count..][..value_count].iter();
            let mut codes = self.codes[row * code_count..][..code_count].iter();
            let mut at = place * self.width;
            for slot in &self.slots {
                match slot {
                    Slot::Value => {
                        inputs[at] = values.next().copied().unwrap_or_default();
                        at += 1;
                    }
                    Slot::OneHot(width) => {
                        inputs[at + codes.next().copied().unwrap_or_default() as usize] = 1.0;
                        at += width;
                    }
                }
            }
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
        Ok(Batch::new(Array::from_vec(inputs, shape)?, targets, rows))
    }
}
