//! Rows of JSONL, JSON, Parquet and plain text files, each with its place.
//!
//! JSONL is read line by line, so that memory follows the longest line. Neighbours: `parquet_file`
//! reads Parquet, `formats` understands the rows.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::data::files::{read_file, regular_size};
use crate::data::report::{fault_at, shown, unusable};

/// Where a row comes from.
#[derive(Clone, Debug)]
pub(in crate::data) struct Place {
    file: Arc<PathBuf>,
    at: At,
}

#[derive(Clone, Copy, Debug)]
enum At {
    /// A line of JSONL, from 1.
    Line(u64),
    /// A row of JSON or Parquet, from 1.
    Row(u64),
    /// All of a plain text.
    File,
}

impl Place {
    /// A fault of this row.
    #[track_caller]
    pub fn fault(&self, message: impl AsRef<str>) -> Error {
        let (file, message) = (self.file.display(), message.as_ref());
        let text = match self.at {
            At::Line(line) => format!("{file}:{line}: {message}"),
            At::Row(row) => format!("{file}: row {row}: {message}"),
            At::File => format!("{file}: {message}"),
        };
        Error::new(ErrorKind::Format, text)
    }
}

/// What a file gives one after another.
pub(in crate::data) enum Content {
    /// An object with columns.
    Row(Map<String, Value>),
    /// A plain text file.
    Document(String),
}

/// Takes the rows of a file as they are read.
pub(in crate::data) type Take<'a> = dyn FnMut(Place, Content) -> Result<()> + 'a;

/// Gives the rows of `file` to `take`, in order; returns how many there were.
pub(in crate::data) fn read_rows(file: &Path, take: &mut Take<'_>) -> Result<u64> {
    let place = |at| Place {
        file: Arc::new(file.to_path_buf()),
        at,
    };
    let extension = file.extension().and_then(|e| e.to_str()).unwrap_or("");
    let rows = match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "ndjson" => lines(file, take)?,
        "json" => match begins_with_list(file)? {
            true => list(file, take)?,
            // Files of one object a line are called `.json` too.
            false => lines(file, take)?,
        },
        "txt" | "md" => {
            let bytes = read_file(file)?;
            let text = String::from_utf8(bytes).map_err(|e| {
                let at = e.utf8_error().valid_up_to();
                place(At::File).fault(format!("expected UTF-8, got another byte at offset {at}"))
            })?;
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text).to_string();
            take(place(At::File), Content::Document(text))?;
            1
        }
        "parquet" => {
            let shared = Arc::new(file.to_path_buf());
            super::parquet_file::read(file, &mut |number, row| {
                let place = Place {
                    file: Arc::clone(&shared),
                    at: At::Row(number),
                };
                take(place, Content::Row(row))
            })?
        }
        _ => {
            return Err(unusable(
                file,
                format!(
                    "expected a file that ends in .jsonl, .json, .parquet, .txt or .md, got {}",
                    shown(extension)
                ),
            ));
        }
    };
    if rows == 0 {
        return Err(place(At::File).fault("the file has no rows"));
    }
    Ok(rows)
}

fn open(file: &Path) -> Result<BufReader<File>> {
    regular_size(file)?;
    let opened = File::open(file).map_err(|e| Error::io(file, "cannot read the file", e))?;
    Ok(BufReader::with_capacity(1 << 16, opened))
}

/// Whether the first character that is no space is `[`.
fn begins_with_list(file: &Path) -> Result<bool> {
    let mut reader = open(file)?;
    loop {
        let part = reader
            .fill_buf()
            .map_err(|e| Error::io(file, "cannot read the file", e))?;
        let spaces = |byte: &u8| byte.is_ascii_whitespace() || b"\xef\xbb\xbf".contains(byte);
        match part.iter().find(|byte| !spaces(byte)) {
            Some(byte) => return Ok(*byte == b'['),
            None if part.is_empty() => return Ok(false),
            None => {
                let length = part.len();
                reader.consume(length);
            }
        }
    }
}

const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// One object a line; empty lines are no rows.
fn lines(file: &Path, take: &mut Take<'_>) -> Result<u64> {
    let mut reader = open(file)?;
    let shared = Arc::new(file.to_path_buf());
    let (mut line, mut rows, mut bytes) = (0, 0, Vec::new());
    loop {
        bytes.clear();
        let count = reader
            .read_until(b'\n', &mut bytes)
            .map_err(|e| Error::io(file, "cannot read the file", e))?;
        if count == 0 {
            return Ok(rows);
        }
        line += 1;
        let text = match line {
            1 => bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes),
            _ => &bytes,
        };
        // A line break at the end would become the place of a fault.
        let text = text.trim_ascii_end();
        if text.is_empty() {
            continue;
        }
        let value = serde_json::from_slice(text)
            .map_err(|e| fault_at(file, (line, e.column() as u64), json_fault(&e)))?;
        let place = Place {
            file: Arc::clone(&shared),
            at: At::Line(line),
        };
        let row = object(value, &place)?;
        rows += 1;
        take(place, Content::Row(row))?;
    }
}

/// A list of objects.
fn list(file: &Path, take: &mut Take<'_>) -> Result<u64> {
    let bytes = read_file(file)?;
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    let values: Vec<Value> = serde_json::from_slice(text).map_err(|e| {
        let at = (e.line() as u64, e.column() as u64);
        fault_at(file, at, json_fault(&e))
    })?;
    drop(bytes);
    let shared = Arc::new(file.to_path_buf());
    let mut rows = 0;
    for value in values {
        rows += 1;
        let place = Place {
            file: Arc::clone(&shared),
            at: At::Row(rows),
        };
        let row = object(value, &place)?;
        take(place, Content::Row(row))?;
    }
    Ok(rows)
}

/// The parser's words without the place, which leads the message.
fn json_fault(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.rsplit_once(" at line ").map_or(text.as_str(), |s| s.0);
    format!("not valid JSON: {words}")
}

fn object(value: Value, place: &Place) -> Result<Map<String, Value>> {
    match value {
        Value::Object(row) => Ok(row),
        other => Err(place.fault(format!("expected an object, got {}", kind(&other)))),
    }
}

/// What a value is, for messages: `the number 3`, `a list`.
pub(in crate::data) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the text {}", shown(s)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "an object".to_string(),
    }
}
