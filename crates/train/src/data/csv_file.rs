//! Reads the declared columns of one CSV file, strictly.
//!
//! A header is required, every row has as many cells as the header, numbers
//! are numbers. Each error names file, line, column and value. The result is
//! typed columns ([`RawColumn`]) before any statistics: `table.rs` turns them
//! into model inputs. Memory stays proportional to the file's own size.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use entrenar_base::{Error, Result};
use serde::{Deserialize, Serialize};

use super::files::read_file;
use super::report::{fault_at, listed, nearest, shown};

/// What the cells of a column mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// A finite number; one input.
    Numeric,
    /// One of several names; one input a name (one-hot).
    Categorical,
    /// true/false, yes/no, t/f, y/n or 1/0, in any case; one input, 1 or 0.
    Boolean,
}

/// What an empty numeric cell (or NA, N/A, NaN, null) means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// An error that names the row.
    #[default]
    Error,
    /// The mean of the column over the training rows.
    Mean,
}

/// Which columns to read and how.
pub(super) struct Wanted<'a> {
    /// Name, kind, and what a missing number means; `None` for a target, which is never filled in.
    pub columns: Vec<(&'a str, ColumnKind, Option<Missing>)>,
    pub delimiter: u8,
}

/// The columns of one or more files, in the order they were asked for.
pub(super) struct RawTable {
    pub files: Vec<PathBuf>,
    pub columns: Vec<RawColumn>,
    pub rows: usize,
}

/// The typed cells of one column.
pub(super) enum RawColumn {
    /// Missing cells are NaN; all others are finite.
    Number(Vec<f64>),
    /// `codes[row]` indexes `names`, which are in order of appearance.
    Text { names: Vec<Name>, codes: Vec<u32> },
}

/// A distinct text value and where it occurred first.
pub(super) struct Name {
    pub text: String,
    /// Index into [`RawTable::files`].
    pub file: usize,
    pub line: u64,
    pub column: u64,
}

/// The column names of a CSV file.
pub(super) fn read_header(file: &Path, delimiter: u8) -> Result<Vec<String>> {
    let bytes = read_file(file)?;
    Source {
        file,
        bytes: &bytes,
        delimiter,
    }
    .header()
}

/// Reads the wanted columns of `files`, rows one after the other.
pub(super) fn read_tables(files: &[PathBuf], wanted: &Wanted<'_>) -> Result<RawTable> {
    let mut all: Option<RawTable> = None;
    for file in files {
        let table = read_table(file, wanted)?;
        match &mut all {
            Some(all) => all.append(table)?,
            None => all = Some(table),
        }
    }
    all.ok_or_else(|| Error::config("no table was given"))
}

impl RawTable {
    /// Adds the rows of a table with the same columns.
    fn append(&mut self, other: Self) -> Result<()> {
        let files_before = self.files.len();
        for (column, added) in self.columns.iter_mut().zip(other.columns) {
            match (column, added) {
                (RawColumn::Number(values), RawColumn::Number(added)) => values.extend(added),
                (
                    RawColumn::Text { names, codes },
                    RawColumn::Text {
                        names: added,
                        codes: added_codes,
                    },
                ) => {
                    let known: HashMap<String, u32> = names
                        .iter()
                        .map(|name| name.text.clone())
                        .zip(0..)
                        .collect();
                    let mut translated = Vec::with_capacity(added.len());
                    for name in added {
                        translated.push(known.get(&name.text).copied().unwrap_or_else(|| {
                            names.push(Name {
                                file: name.file + files_before,
                                ..name
                            });
                            (names.len() - 1) as u32
                        }));
                    }
                    codes.extend(added_codes.iter().map(|&code| translated[code as usize]));
                }
                // Both tables were read with the same list of kinds.
                (RawColumn::Number(_), RawColumn::Text { .. })
                | (RawColumn::Text { .. }, RawColumn::Number(_)) => {}
            }
        }
        self.rows += other.rows;
        self.files.extend(other.files);
        Ok(())
    }
}

/// Reads the wanted columns of `file`.
fn read_table(file: &Path, wanted: &Wanted<'_>) -> Result<RawTable> {
    let bytes = read_file(file)?;
    let source = Source {
        file,
        bytes: &bytes,
        delimiter: wanted.delimiter,
    };
    let header = source.header()?;
    let places = wanted
        .columns
        .iter()
        .map(|(name, ..)| source.find_column(&header, name))
        .collect::<Result<Vec<_>>>()?;

    let mut builders: Vec<Builder> = wanted
        .columns
        .iter()
        .map(|(_, kind, _)| Builder::new(*kind))
        .collect();
    let mut rows = 0;
    for record in source.reader(true).byte_records() {
        let record = record.map_err(|error| Error::format(file, error))?;
        let row = Row {
            source: &source,
            record: &record,
        };
        if record.len() != header.len() {
            let line = row.place(0).0;
            return Err(fault_at(
                file,
                (line, 1),
                format!(
                    "expected {} cells as in the header, got {}",
                    header.len(),
                    record.len()
                ),
            ));
        }
        for ((builder, &place), (name, kind, missing)) in
            builders.iter_mut().zip(&places).zip(&wanted.columns)
        {
            let cell = row.cell(place, name)?;
            builder
                .push(cell, *kind, *missing)
                .map_err(|problem| row.error(place, name, &problem))?;
            if let Some(first) = builder.fresh() {
                (first.line, first.column) = row.place(place);
            }
        }
        rows += 1;
    }
    if rows == 0 {
        return Err(Error::format(file, "the table has a header and no rows"));
    }
    let columns = builders.into_iter().map(Builder::finish).collect();
    Ok(RawTable {
        files: vec![file.to_path_buf()],
        columns,
        rows,
    })
}

/// A file in memory with its separator.
struct Source<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    delimiter: u8,
}

impl Source<'_> {
    fn reader(&self, has_headers: bool) -> csv::Reader<&[u8]> {
        csv::ReaderBuilder::new()
            .delimiter(self.delimiter)
            .has_headers(has_headers)
            // Ragged rows are found here, with our own words.
            .flexible(true)
            .from_reader(self.bytes)
    }

    fn header(&self) -> Result<Vec<String>> {
        let mut record = csv::ByteRecord::new();
        let present = self
            .reader(false)
            .read_byte_record(&mut record)
            .map_err(|error| Error::format(self.file, error))?;
        if !present || record.iter().all(|cell| cell.trim_ascii().is_empty()) {
            return Err(Error::format(
                self.file,
                "the file is empty: expected a header line with column names",
            ));
        }
        let row = Row {
            source: self,
            record: &record,
        };
        let mut names = Vec::with_capacity(record.len());
        for (index, cell) in record.iter().enumerate() {
            let text = std::str::from_utf8(cell).map_err(|_| {
                fault_at(self.file, row.place(index), "the column name is not UTF-8")
            })?;
            names.push(text.trim().to_string());
        }
        if names.iter().all(|name| name.parse::<f64>().is_ok()) {
            return Err(fault_at(
                self.file,
                row.place(0),
                format!(
                    "expected a header line with column names, got only numbers ({})",
                    listed(&names)
                ),
            ));
        }
        Ok(names)
    }

    fn find_column(&self, header: &[String], wanted: &str) -> Result<usize> {
        let mut found = header
            .iter()
            .enumerate()
            .filter(|(_, name)| *name == wanted);
        match (found.next(), found.next()) {
            (Some((index, _)), None) => Ok(index),
            (Some((first, _)), Some((second, _))) => Err(Error::format(
                self.file,
                format!(
                    "column {} occurs twice in the header, as numbers {} and {}",
                    shown(wanted),
                    first + 1,
                    second + 1
                ),
            )),
            (None, _) => {
                let hint = match nearest(wanted, header.iter().map(String::as_str)) {
                    Some(name) => format!(", did you mean {}?", shown(name)),
                    None => String::new(),
                };
                Err(Error::format(
                    self.file,
                    format!(
                        "expected a column {}{hint} (the header has {})",
                        shown(wanted),
                        listed(header)
                    ),
                ))
            }
        }
    }
}

/// One record with the way back to its place in the file.
struct Row<'a> {
    source: &'a Source<'a>,
    record: &'a csv::ByteRecord,
}

impl Row<'_> {
    fn cell(&self, index: usize, name: &str) -> Result<&str> {
        let bytes = self.record.get(index).unwrap_or_default();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.trim()),
            Err(_) => Err(self.error(
                index,
                name,
                &format!("the cell {} is not UTF-8", bytes.escape_ascii()),
            )),
        }
    }

    fn error(&self, index: usize, name: &str, problem: &str) -> Error {
        fault_at(
            self.source.file,
            self.place(index),
            format!("column {}: {problem}", shown(name)),
        )
    }

    /// Line and character column (both from 1) where cell `index` begins.
    ///
    /// The csv crate keeps only where a record begins, so the cells before
    /// are walked again; that happens for errors and new names only.
    fn place(&self, index: usize) -> (u64, u64) {
        let bytes = self.source.bytes;
        let Some(position) = self.record.position() else {
            return (1, 1);
        };
        let (mut at, mut line) = ((position.byte() as usize).min(bytes.len()), position.line());
        // A record's position may still stand before empty lines that were skipped.
        while at < bytes.len() && matches!(bytes[at], b'\r' | b'\n') {
            line += u64::from(bytes[at] == b'\n');
            at += 1;
        }
        if at == 0 && bytes.starts_with(b"\xef\xbb\xbf") {
            at = 3; // a byte order mark is no character of the line
        }
        let (mut column, mut cell, mut quoted) = (1, 0, false);
        while cell < index && at < bytes.len() {
            let byte = bytes[at];
            at += 1;
            if byte == b'"' {
                quoted = !quoted;
            } else if byte == self.source.delimiter && !quoted {
                cell += 1;
            }
            if byte == b'\n' {
                (line, column) = (line + 1, 1);
            } else if byte & 0xc0 != 0x80 {
                column += 1; // count characters: skip UTF-8 continuation bytes
            }
        }
        (line, column)
    }
}

/// Collects one column.
struct Builder {
    numbers: Vec<f64>,
    names: Vec<Name>,
    known: HashMap<String, u32>,
    codes: Vec<u32>,
    text: bool,
    fresh: bool,
}

impl Builder {
    fn new(kind: ColumnKind) -> Self {
        Self {
            numbers: Vec::new(),
            names: Vec::new(),
            known: HashMap::new(),
            codes: Vec::new(),
            text: kind == ColumnKind::Categorical,
            fresh: false,
        }
    }

    fn push(
        &mut self,
        cell: &str,
        kind: ColumnKind,
        missing: Option<Missing>,
    ) -> Result<(), String> {
        self.fresh = false;
        let absent = is_missing(cell);
        match kind {
            ColumnKind::Numeric => self.numbers.push(match missing {
                _ if !absent => number(cell)?,
                Some(Missing::Mean) => f64::NAN,
                Some(Missing::Error) => {
                    return Err(format!(
                        "the number is missing (got {}); `missing: mean` would use the column's mean",
                        shown(cell)
                    ));
                }
                None => return Err(format!("the target is missing (got {})", shown(cell))),
            }),
            ColumnKind::Boolean => self.numbers.push(boolean(cell)?),
            ColumnKind::Categorical => {
                if absent {
                    let noun = if missing.is_some() { "category" } else { "label" };
                    return Err(format!("the {noun} is missing (got {})", shown(cell)));
                }
                let code = match self.known.get(cell) {
                    Some(code) => *code,
                    None => {
                        let code = u32::try_from(self.names.len())
                            .map_err(|_| "more than 4 billion categories".to_string())?;
                        self.known.insert(cell.to_string(), code);
                        self.names.push(Name { text: cell.to_string(), file: 0,
                            line: 0,
                            column: 0,
                        });
                        self.fresh = true;
                        code
                    }
                };
                self.codes.push(code);
            }
        }
        Ok(())
    }

    /// The name that the last push met for the first time.
    fn fresh(&mut self) -> Option<&mut Name> {
        if self.fresh {
            self.names.last_mut()
        } else {
            None
        }
    }

    fn finish(self) -> RawColumn {
        if self.text {
            RawColumn::Text {
                names: self.names,
                codes: self.codes,
            }
        } else {
            RawColumn::Number(self.numbers)
        }
    }
}

fn is_missing(cell: &str) -> bool {
    cell.is_empty()
        || ["na", "n/a", "nan", "null"]
            .iter()
            .any(|word| cell.eq_ignore_ascii_case(word))
}

fn number(cell: &str) -> Result<f64, String> {
    let value: f64 = cell
        .parse()
        .map_err(|_| format!("expected a number, got {}", shown(cell)))?;
    // Inputs become f32: what overflows there would enter the model as infinity.
    if (value as f32).is_finite() {
        Ok(value)
    } else {
        Err(format!(
            "expected a finite number that fits f32, got {}",
            shown(cell)
        ))
    }
}

fn boolean(cell: &str) -> Result<f64, String> {
    let is = |words: &[&str]| words.iter().any(|word| cell.eq_ignore_ascii_case(word));
    if is(&["true", "yes", "t", "y", "1"]) {
        Ok(1.0)
    } else if is(&["false", "no", "f", "n", "0"]) {
        Ok(0.0)
    } else {
        Err(format!("expected true or false, got {}", shown(cell)))
    }
}
