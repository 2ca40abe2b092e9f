//! Tables with declared columns: what is to be used, and what training learns.
//!
//! [`TableData::open`] reads CSV files, splits their rows by seed, takes the
//! statistics from the training rows only and encodes all parts with them.
//! Neighbours: `csv_file.rs` reads cells, `table_encoding.rs` encodes them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, Result};
use serde::{Deserialize, Serialize};

use super::csv_file::{ColumnKind, Missing, RawColumn, RawTable, Wanted, read_header, read_tables};
use super::dataset::{Parts, Splits, split_rows};
use super::files::find_files;
use super::report::{listed, nearest, shown};
use super::scaling::Scaling;
use super::table_encoding::{Feature, TablePreprocessing, TargetEncoding};

/// More categories than this in one column are most likely identifiers.
const MOST_CATEGORIES: usize = 1000;

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
    /// The input columns, in order. `None`: every column but the target, in the order of the file.
    pub features: Option<Vec<String>>,
    /// What the cells of input columns mean; columns that are not named are numeric.
    pub kinds: BTreeMap<String, ColumnKind>,
    /// The name of the target column.
    pub target: String,
    /// What the target is.
    pub target_kind: TargetKind,
    /// What an empty numeric cell means.
    pub missing: Missing,
    /// How numeric inputs are scaled.
    pub scaling: Scaling,
    /// Whether a numeric target is brought to mean 0 and deviation 1 (predictions are turned back).
    pub standardize_target: bool,
    /// The shape of one sample, such as `[1, 8, 8]` for small images; empty: `[features]`.
    pub input_shape: Vec<usize>,
    /// The byte between cells.
    pub delimiter: u8,
}

impl TableSpec {
    /// The usual settings for a target: all other columns, numeric, standardised, nothing missing,
    /// commas.
    pub fn new(target: impl Into<String>, target_kind: TargetKind) -> Self {
        Self {
            features: None,
            kinds: BTreeMap::new(),
            target: target.into(),
            target_kind,
            missing: Missing::Error,
            scaling: Scaling::Standard,
            standardize_target: false,
            input_shape: Vec::new(),
            delimiter: b',',
        }
    }
}

/// A table read for training.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::{Dataset, Splits, TableData, TableSpec, TargetKind};
///
/// let directory = tempfile::tempdir().unwrap();
/// std::fs::write(directory.path().join("pets.csv"), "weight,legs,kind\n4,4,cat\n9,4,dog\n1,2,bird\n5,4,cat\n").unwrap();
/// let spec = TableSpec::new("kind", TargetKind::Class);
/// let data = TableData::open(directory.path(), &["pets.csv"], &spec, &Splits::validation(0.25), 1)?;
/// assert_eq!(data.preprocessing().labels(), ["bird", "cat", "dog"]);
/// let parts = data.parts();
/// assert_eq!((parts.training.len(), parts.validation.unwrap().len()), (3, 1));
/// let batch = parts.training.batch(&[0, 1])?;
/// assert_eq!(batch.inputs.shape().dims(), [2, 2]);
/// # Ok::<(), entrenar_base::Error>(())
/// ```
pub struct TableData {
    preprocessing: TablePreprocessing,
    parts: Parts,
}

impl TableData {
    /// Reads the files of `patterns` (relative to `directory`), rows one after the other, and those
    /// of the splits that have files of their own.
    ///
    /// # Errors
    ///
    /// What is wrong with a file, with line, column name and value; columns that do not exist, with
    /// the nearest name; a split that leaves nothing on one side.
    pub fn open<S: AsRef<str>>(
        directory: &Path,
        patterns: &[S],
        spec: &TableSpec,
        splits: &Splits,
        seed: u64,
    ) -> Result<Self> {
        let files = find_files(directory, patterns)?;
        let columns = declared(&files, spec)?;
        let mut wanted: Vec<_> = columns
            .iter()
            .map(|(name, kind)| (name.as_str(), *kind, Some(spec.missing)))
            .collect();
        let target_kind = match spec.target_kind {
            TargetKind::Class => ColumnKind::Categorical,
            TargetKind::Number => ColumnKind::Numeric,
        };
        wanted.push((spec.target.as_str(), target_kind, None));
        let table = read_tables(
            &files,
            &Wanted {
                columns: wanted,
                delimiter: spec.delimiter,
            },
        )?;
        let rows = split_rows(table.rows, splits, seed)?;
        let preprocessing = learn(&table, &columns, spec, &rows.training)?;
        let all = Arc::new(preprocessing.encode(&table)?);
        let parts = Parts::of(&all, rows, splits, |paths| {
            let table = preprocessing.read(&find_files(directory, paths)?, true)?;
            Ok(Arc::new(table))
        })?;
        Ok(Self {
            preprocessing,
            parts,
        })
    }

    /// What later files are encoded with.
    pub fn preprocessing(&self) -> &TablePreprocessing {
        &self.preprocessing
    }

    /// The rows, divided.
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }
}

/// The input columns of the spec, or all columns but the target, with their kinds.
fn declared(files: &[PathBuf], spec: &TableSpec) -> Result<Vec<(String, ColumnKind)>> {
    let file = files
        .first()
        .ok_or_else(|| Error::config("no table was given"))?;
    let names = match &spec.features {
        Some(names) => names.clone(),
        None => {
            let mut names = read_header(file, spec.delimiter)?;
            names.retain(|name| *name != spec.target);
            names
        }
    };
    if names.is_empty() {
        return Err(Error::format(
            file,
            "the table has no column to learn from besides the target",
        ));
    }
    for (index, name) in names.iter().enumerate() {
        if *name == spec.target {
            return Err(Error::config(format!(
                "column {} is both a feature and the target",
                shown(name)
            )));
        }
        if spec.features.is_some() && names[..index].contains(name) {
            return Err(Error::config(format!(
                "column {} is declared twice",
                shown(name)
            )));
        }
    }
    // A type for a column that is no input would be a slip without effect.
    if let Some(name) = spec
        .kinds
        .keys()
        .find(|name| !names.contains(name) && **name != spec.target)
    {
        let hint = match nearest(name, names.iter().map(String::as_str)) {
            Some(other) => format!(", did you mean {}?", shown(other)),
            None => String::new(),
        };
        return Err(Error::config(format!(
            "column {} has a type, but is no feature{hint} (features are {})",
            shown(name),
            listed(&names)
        )));
    }
    Ok(names
        .into_iter()
        .map(|name| {
            let kind = spec
                .kinds
                .get(&name)
                .copied()
                .unwrap_or(ColumnKind::Numeric);
            (name, kind)
        })
        .collect())
}

/// Takes statistics from the training rows, categories and labels from all rows: those are lists of
/// names, nothing learnt, and a rare one should not stop the run when chance puts it aside.
fn learn(
    table: &RawTable,
    columns: &[(String, ColumnKind)],
    spec: &TableSpec,
    training: &[usize],
) -> Result<TablePreprocessing> {
    let numeric = columns
        .iter()
        .filter(|(_, kind)| *kind == ColumnKind::Numeric)
        .count();
    spec.scaling.check(numeric, "numeric column")?;
    let source = || {
        table
            .files
            .first()
            .map(PathBuf::as_path)
            .unwrap_or(Path::new(""))
    };
    let mut features = Vec::with_capacity(columns.len());
    let mut numeric_seen = 0;
    for ((name, kind), raw) in columns.iter().zip(&table.columns) {
        let name = name.clone();
        features.push(match raw {
            RawColumn::Number(_) if *kind == ColumnKind::Boolean => Feature::Boolean { name },
            RawColumn::Number(values) => {
                let measure = || {
                    statistics(values, training).ok_or_else(|| {
                        Error::format(
                            source(),
                            format!("column {} has no number in the training rows, so no mean", shown(&name)),
                        )
                    })
                };
                let (mean, std) = spec.scaling.mean_std(numeric_seen, measure)?;
                let fill = match spec.missing {
                    Missing::Error => None,
                    Missing::Mean => Some(measure()?.0),
                };
                numeric_seen += 1;
                Feature::Numeric { name, mean, std, fill }
            }
            RawColumn::Text { names, .. } => {
                let categories = sorted(names.iter().map(|name| name.text.clone()));
                if categories.len() > MOST_CATEGORIES {
                    return Err(Error::format(
                        source(),
                        format!(
                            "column {} has {} categories, more than {MOST_CATEGORIES}: an identifier is no input",
                            shown(&name),
                            categories.len()
                        ),
                    ));
                }
                Feature::Categorical { name, categories }
            }
        });
    }
    let name = spec.target.clone();
    let target = match table.columns.last() {
        Some(RawColumn::Text { names, .. }) => {
            let labels = sorted(names.iter().map(|name| name.text.clone()));
            if labels.len() < 2 {
                return Err(Error::format(
                    source(),
                    format!(
                        "column {} has only the label {}: there is nothing to tell apart",
                        shown(&name),
                        listed(&labels)
                    ),
                ));
            }
            if labels.len() > MOST_CATEGORIES && labels.len() > table.rows / 2 {
                return Err(Error::format(
                    source(),
                    format!(
                        "column {} has {} different labels in {} rows: a number is learnt by regression",
                        shown(&name),
                        labels.len(),
                        table.rows
                    ),
                ));
            }
            TargetEncoding::Class { name, labels }
        }
        Some(RawColumn::Number(values)) if spec.standardize_target => {
            let (mean, std) = statistics(values, training)
                .ok_or_else(|| Error::format(source(), "there are no training rows"))?;
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
