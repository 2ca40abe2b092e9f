//! Texts with labels, for classification: CSV or JSON Lines to padded token batches.
//!
//! A file has a column (or key) for the text and one for the label. Labels become numbers in the
//! order of their names (numeric labels in numeric order), or in the order of a model that knows its
//! labels already. A batch is padded to its longest text; its mask travels with the tokens, so that
//! any [`Dataset`] consumer carries both: see [`split_masked`]. Neighbours: `table.rs` has the same
//! job for numbers; `files.rs` finds the files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Array, Error, Result};
use entrenar_zoo::{TokenRows, Tokenizer};
use serde_json::Value;

use super::dataset::{Batch, Dataset, Parts, Splits, split_rows};
use super::files::{find_files, read_file};
use super::report::{fault_at, listed, nearest, shown};

/// Which columns to read, and how long a text may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextLabelsSpec {
    /// Column or key of the text.
    pub text: String,
    /// Column or key of the label: text, a whole number, or a bool.
    pub label: String,
    /// Most tokens of a text, special tokens included; the rest of a longer text is cut off.
    pub max_length: usize,
    /// Between the cells of a CSV file (`.csv`; `.tsv` files have tabs).
    pub delimiter: u8,
}

impl Default for TextLabelsSpec {
    /// `text` and `label`, 512 tokens, commas.
    fn default() -> TextLabelsSpec {
        TextLabelsSpec {
            text: "text".into(),
            label: "label".into(),
            max_length: 512,
            delimiter: b',',
        }
    }
}

/// Labelled texts, divided into parts.
pub struct TextLabelsData {
    labels: Vec<String>,
    parts: Parts,
    cut: usize,
}

/// One text of a file.
struct Row {
    text: String,
    label: String,
    file: usize,
    line: u64,
}

/// Encoded texts of one source.
struct Encoded {
    tokens: Vec<Vec<u32>>,
    labels: Vec<i64>,
    padding: u32,
}

impl TextLabelsData {
    /// Reads the files that `patterns` name in `directory` (`.csv`, `.tsv`; `.jsonl` and any other
    /// ending as one JSON object per line) and those of the splits that have files of their own.
    ///
    /// With `labels` (a model's own) every label must be one of them; without, the labels are those
    /// of the training files.
    ///
    /// # Errors
    /// What is wrong with a file, with line and column; a column that does not exist, with the
    /// nearest name; an unknown label; fewer than two labels; a tokenizer without a padding token; a
    /// split that leaves nothing on one side.
    pub fn open<S: AsRef<str>>(
        directory: &Path,
        patterns: &[S],
        spec: &TextLabelsSpec,
        tokenizer: &Tokenizer,
        labels: Option<&[String]>,
        splits: &Splits,
        seed: u64,
    ) -> Result<TextLabelsData> {
        let Some(padding) = tokenizer.pad() else {
            return Err(Error::config(
                "texts of different lengths need a padding token, and the tokenizer names none \
                 (`pad_token` in tokenizer_config.json)",
            ));
        };
        let files = find_files(directory, patterns)?;
        let rows = read_rows(&files, spec)?;
        let labels = match labels {
            Some(labels) => labels.to_vec(),
            None => labels_of(&rows),
        };
        if labels.len() < 2 {
            return Err(Error::config(format!(
                "column {} holds {}: there is nothing to tell apart",
                shown(&spec.label),
                match labels.first() {
                    Some(only) => format!("the label {} alone", shown(only)),
                    None => "no label".to_string(),
                }
            )));
        }
        let mut cut = 0;
        let mut encode = |files: &[PathBuf], rows: &[Row]| -> Result<Arc<Encoded>> {
            let mut out = Encoded {
                tokens: Vec::with_capacity(rows.len()),
                labels: Vec::with_capacity(rows.len()),
                padding: padding.id,
            };
            for row in rows {
                let at = |message: String| fault_at(&files[row.file], (row.line, 1), message);
                let label = labels.iter().position(|l| *l == row.label).ok_or_else(|| {
                    at(format!(
                        "the label {} is none of {}",
                        shown(&row.label),
                        listed(&labels)
                    ))
                })?;
                let (tokens, was_cut) = tokenizer
                    .encode_at_most(&row.text, spec.max_length)
                    .map_err(|e| at(e.to_string()))?;
                cut += usize::from(was_cut);
                out.tokens.push(tokens);
                out.labels.push(label as i64);
            }
            Ok(Arc::new(out))
        };
        let all = encode(&files, &rows)?;
        let divided = split_rows(rows.len(), splits, seed)?;
        let parts = Parts::of(&all, divided, splits, |paths| {
            let files = find_files(directory, paths)?;
            Ok(encode(&files, &read_rows(&files, spec)?)?)
        })?;
        Ok(TextLabelsData { labels, cut, parts })
    }

    /// The labels by number, as `id2label` of a model.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Texts for training, validation and test.
    pub fn row_counts(&self) -> [usize; 3] {
        self.parts.row_counts()
    }

    /// How many texts were longer than the limit and lost their ends.
    pub fn cut(&self) -> usize {
        self.cut
    }

    /// The datasets. Inputs are i64 `[rows, 2, longest]`, for [`split_masked`]; targets i64 `[rows]`.
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }
}

/// Tokens and mask, i64 `[rows, longest]` each, of a batch's inputs `[rows, 2, longest]`.
///
/// # Errors
/// When the inputs have another shape.
pub fn split_masked(inputs: &Array) -> Result<(Array, Array)> {
    let &[rows, 2, longest] = inputs.dims() else {
        return Err(Error::shape(
            "split_masked",
            "[rows, 2, longest]",
            inputs.shape(),
        ));
    };
    let part = |n| inputs.slice(1, n, n + 1, 1)?.reshape([rows, longest]);
    Ok((part(0)?, part(1)?))
}

/// The inputs of a batch, for [`split_masked`]: rows padded to the longest, and their masks.
pub(super) fn join_masked<R: AsRef<[u32]>>(rows: &[R], padding: u32) -> Result<Array> {
    let padded = TokenRows::new(rows, padding)?;
    let longest = padded.tokens.dims()[1];
    let tokens = padded.tokens.array().to_vec::<i64>()?;
    Array::try_build([rows.len(), 2, longest], |out: &mut [i64]| {
        let pairs = out.chunks_exact_mut(2 * longest).zip(rows);
        for ((out, row), tokens) in pairs.zip(tokens.chunks_exact(longest)) {
            out[..longest].copy_from_slice(tokens);
            out[longest..].fill(0);
            out[longest..longest + row.as_ref().len()].fill(1);
        }
        Ok(())
    })
}

impl Dataset for Encoded {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn batch(&self, indices: &[usize]) -> Result<Batch> {
        let rows: Vec<&[u32]> = indices.iter().map(|&i| self.tokens[i].as_slice()).collect();
        let inputs = join_masked(&rows, self.padding)?;
        let targets = indices.iter().map(|&i| self.labels[i]).collect();
        let targets = Array::from_vec(targets, [rows.len()])?;
        Ok(Batch::new(inputs, targets, rows.len()))
    }
}

/// The distinct labels: numbers in their order, else names in theirs.
fn labels_of(rows: &[Row]) -> Vec<String> {
    let distinct: std::collections::BTreeSet<&str> =
        rows.iter().map(|r| r.label.as_str()).collect();
    let mut labels: Vec<String> = distinct.into_iter().map(str::to_string).collect();
    let numbers: Option<Vec<i64>> = labels.iter().map(|l| l.parse().ok()).collect();
    if numbers.is_some() {
        labels.sort_by_key(|l| l.parse::<i64>().unwrap_or_default());
    }
    labels
}

fn read_rows(files: &[PathBuf], spec: &TextLabelsSpec) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let bytes = read_file(file)?;
        let before = rows.len();
        match file.extension().and_then(|e| e.to_str()) {
            Some("csv") => csv_rows(file, n, &bytes, spec.delimiter, spec, &mut rows)?,
            Some("tsv") => csv_rows(file, n, &bytes, b'\t', spec, &mut rows)?,
            _ => json_rows(file, n, &bytes, spec, &mut rows)?,
        }
        if rows.len() == before {
            return Err(fault_at(file, (1, 1), "the file has no rows"));
        }
    }
    Ok(rows)
}

fn csv_rows(
    file: &Path,
    number: usize,
    bytes: &[u8],
    delimiter: u8,
    spec: &TextLabelsSpec,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let names = [spec.text.as_str(), &spec.label];
    columns(file, bytes, delimiter, names, &mut |line, [text, label]| {
        rows.push(row(file, number, line, text, label, spec)?);
        Ok(())
    })
}

/// Gives the cells of some columns of a table with a header to `take`, row by row, with the line.
fn columns<const N: usize>(
    file: &Path,
    bytes: &[u8],
    delimiter: u8,
    names: [&str; N],
    take: &mut dyn FnMut(u64, [&str; N]) -> Result<()>,
) -> Result<()> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(delimiter)
        .from_reader(bytes);
    let fault = |e: csv::Error| {
        let line = e.position().map_or(1, csv::Position::line);
        fault_at(file, (line, 1), e.to_string())
    };
    let header = reader.headers().map_err(fault)?.clone();
    let mut places = [0; N];
    for (place, name) in places.iter_mut().zip(names) {
        let mut found = header.iter().enumerate().filter(|(_, h)| *h == name);
        *place = match (found.next(), found.next()) {
            (Some((at, _)), None) => at,
            (Some(_), Some(_)) => {
                let message = format!("column {} is there twice", shown(name));
                return Err(fault_at(file, (1, 1), message));
            }
            (None, _) => return Err(no_column(file, 1, name, header.iter())),
        };
    }
    for record in reader.records() {
        let record = record.map_err(fault)?;
        let line = record.position().map_or(1, csv::Position::line);
        take(line, places.map(|place| &record[place]))?;
    }
    Ok(())
}

/// The texts of a column of a table with a header.
///
/// # Errors
/// What is wrong with the file; a column that does not exist, with the nearest name.
pub(crate) fn read_column(
    file: &Path,
    bytes: &[u8],
    delimiter: u8,
    name: &str,
) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    columns(file, bytes, delimiter, [name], &mut |_, [text]| {
        texts.push(text.to_string());
        Ok(())
    })?;
    Ok(texts)
}

fn json_rows(
    file: &Path,
    number: usize,
    bytes: &[u8],
    spec: &TextLabelsSpec,
    rows: &mut Vec<Row>,
) -> Result<()> {
    let content = std::str::from_utf8(bytes).map_err(|e| {
        let line = bytes[..e.valid_up_to()]
            .iter()
            .filter(|b| **b == b'\n')
            .count()
            + 1;
        fault_at(file, (line as u64, 1), "not UTF-8 text")
    })?;
    for (line, text) in (1u64..).zip(content.lines()) {
        if text.trim().is_empty() {
            continue;
        }
        let at = |message: String| fault_at(file, (line, 1), message);
        let object = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(at("expected a JSON object in every line".into())),
            Err(e) => {
                return Err(fault_at(
                    file,
                    (line, e.column() as u64),
                    format!("no JSON: {e}"),
                ));
            }
        };
        let get = |name: &str| {
            let keys = || object.keys().map(String::as_str);
            object
                .get(name)
                .ok_or_else(|| no_column(file, line, name, keys()))
        };
        let words = match get(&spec.text)? {
            Value::String(words) => words,
            other => {
                return Err(at(format!(
                    "{}: expected text, got {other}",
                    shown(&spec.text)
                )));
            }
        };
        let label = match get(&spec.label)? {
            Value::String(label) => label.clone(),
            Value::Number(n) if n.is_i64() => n.to_string(),
            Value::Bool(b) => b.to_string(),
            other => {
                return Err(at(format!(
                    "{}: expected text, a whole number or a bool, got {other}",
                    shown(&spec.label)
                )));
            }
        };
        rows.push(row(file, number, line, words, &label, spec)?);
    }
    Ok(())
}

fn row(
    file: &Path,
    number: usize,
    line: u64,
    text: &str,
    label: &str,
    spec: &TextLabelsSpec,
) -> Result<Row> {
    for (name, value) in [(&spec.text, text), (&spec.label, label)] {
        if value.trim().is_empty() {
            return Err(fault_at(
                file,
                (line, 1),
                format!("{} is empty", shown(name)),
            ));
        }
    }
    Ok(Row {
        text: text.to_string(),
        label: label.trim().to_string(),
        file: number,
        line,
    })
}

fn no_column<'a>(
    file: &Path,
    line: u64,
    name: &str,
    there: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let names: Vec<&str> = there.clone().collect();
    let hint = nearest(name, there).map_or(String::new(), |near| {
        format!("; did you mean {}?", shown(near))
    });
    let message = format!("no column {} among {}{hint}", shown(name), listed(&names));
    fault_at(file, (line, 1), message)
}
