//! `metrics.jsonl`: one JSON object a line, appended, cut back on resume.
//!
//! Fields, in this order: `step`, `epoch`, `split`, `loss`, further metrics by
//! name, `lr`, `seconds`, and `tokens_per_second` or `samples_per_second`.
//! Numbers are written with the fewest digits that read back as the same f32
//! or f64, so equal runs give equal bytes (times apart); a NaN or an infinity
//! is `null`. Neighbours: `plot.rs` draws what is written here.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use entrenar_base::{Error, ErrorKind, Result};
use entrenar_io::write_atomic;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;

use crate::data::Split;

/// A number that remembers its precision, so that it is printed no longer than it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Single precision: 0.1 is printed as 0.1.
    F32(f32),
    /// Double precision.
    F64(f64),
    /// A count.
    Integer(u64),
}

impl Number {
    /// The value in double precision.
    pub fn value(self) -> f64 {
        match self {
            Self::F32(value) => f64::from(value),
            Self::F64(value) => value,
            Self::Integer(value) => value as f64,
        }
    }
}

impl From<f32> for Number {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}

impl From<u64> for Number {
    fn from(value: u64) -> Self {
        Self::Integer(value)
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match *self {
            Self::F32(value) => serializer.serialize_f32(value),
            Self::F64(value) => serializer.serialize_f64(value),
            Self::Integer(value) => serializer.serialize_u64(value),
        }
    }
}

/// How fast the run is, in the unit that fits the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Throughput {
    /// For text.
    TokensPerSecond(f64),
    /// For anything else.
    SamplesPerSecond(f64),
}

impl Throughput {
    /// The field's name and the value.
    fn field(self) -> (&'static str, f64) {
        match self {
            Self::TokensPerSecond(value) => ("tokens_per_second", value),
            Self::SamplesPerSecond(value) => ("samples_per_second", value),
        }
    }
}

/// One line of `metrics.jsonl`.
///
/// # Examples
///
/// ```
/// use entrenar_train::data::Split;
/// use entrenar_train::run::{Record, Throughput};
///
/// let mut record = Record::new(10, 0.5, Split::Train, 2.3f32);
/// record.metrics.push(("accuracy".into(), 0.25.into()));
/// record.lr = Some(1e-3);
/// record.throughput = Some(Throughput::SamplesPerSecond(100.0));
/// assert_eq!(
///     record.to_json().unwrap(),
///     r#"{"step":10,"epoch":0.5,"split":"train","loss":2.3,"accuracy":0.25,"lr":0.001,"samples_per_second":100.0}"#
/// );
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with the present one as a fraction.
    pub epoch: f64,
    /// Which data the numbers are about.
    pub split: Split,
    /// The mean loss.
    pub loss: Number,
    /// Further metrics by name.
    pub metrics: Vec<(String, Number)>,
    /// The learning rate of the step.
    pub lr: Option<f64>,
    /// Seconds since the run began, over all its resumptions.
    pub seconds: Option<f64>,
    /// How fast the run is.
    pub throughput: Option<Throughput>,
}

const RESERVED: [&str; 8] = [
    "step",
    "epoch",
    "split",
    "loss",
    "lr",
    "seconds",
    "tokens_per_second",
    "samples_per_second",
];

impl Record {
    /// A record with nothing but a loss.
    pub fn new(step: u64, epoch: f64, split: Split, loss: impl Into<Number>) -> Self {
        Self {
            step,
            epoch,
            split,
            loss: loss.into(),
            metrics: Vec::new(),
            lr: None,
            seconds: None,
            throughput: None,
        }
    }

    /// The line without its end.
    ///
    /// # Errors
    ///
    /// A metric that has the name of another field.
    pub fn to_json(&self) -> Result<String> {
        for (index, (name, _)) in self.metrics.iter().enumerate() {
            let twice = self.metrics[..index]
                .iter()
                .any(|(before, _)| before == name);
            if twice || RESERVED.contains(&name.as_str()) {
                return Err(Error::config(format!(
                    "a metric cannot be named {name:?}: that field exists"
                )));
            }
        }
        serde_json::to_string(self)
            .map_err(|error| Error::other(format!("cannot write metrics as JSON: {error}")))
    }

    fn from_json(line: &str) -> std::result::Result<Self, String> {
        let Value::Object(fields) = serde_json::from_str(line).map_err(json_problem)? else {
            return Err("expected a JSON object".to_string());
        };
        let step = fields
            .get("step")
            .and_then(Value::as_u64)
            .ok_or("expected a whole number as \"step\"")?;
        let split = match fields.get("split").and_then(Value::as_str) {
            Some("train") => Split::Train,
            Some("validation") => Split::Validation,
            Some("test") => Split::Test,
            _ => return Err("expected train, validation or test as \"split\"".to_string()),
        };
        // `null` stands for a value that JSON cannot hold.
        let number = |name: &str| match fields.get(name) {
            Some(Value::Null) => Some(f64::NAN),
            Some(value) => value.as_f64(),
            None => None,
        };
        let throughput = number("tokens_per_second")
            .map(Throughput::TokensPerSecond)
            .or_else(|| number("samples_per_second").map(Throughput::SamplesPerSecond));
        let metrics = fields
            .iter()
            .filter(|(name, _)| !RESERVED.contains(&name.as_str()))
            .filter_map(|(name, value)| {
                let number = match value.as_u64() {
                    Some(count) => Number::Integer(count),
                    None => Number::F64(if value.is_null() {
                        f64::NAN
                    } else {
                        value.as_f64()?
                    }),
                };
                Some((name.clone(), number))
            })
            .collect();
        Ok(Self {
            step,
            epoch: number("epoch").ok_or("expected a number as \"epoch\"")?,
            split,
            loss: Number::F64(number("loss").ok_or("expected a number as \"loss\"")?),
            metrics,
            lr: number("lr"),
            seconds: number("seconds"),
            throughput,
        })
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("step", &self.step)?;
        map.serialize_entry("epoch", &self.epoch)?;
        map.serialize_entry("split", self.split.name())?;
        map.serialize_entry("loss", &self.loss)?;
        for (name, value) in &self.metrics {
            map.serialize_entry(name, value)?;
        }
        if let Some(lr) = self.lr {
            map.serialize_entry("lr", &lr)?;
        }
        if let Some(seconds) = self.seconds {
            map.serialize_entry("seconds", &seconds)?;
        }
        if let Some((name, value)) = self.throughput.map(Throughput::field) {
            map.serialize_entry(name, &value)?;
        }
        map.end()
    }
}

/// Appends to `metrics.jsonl`.
#[derive(Debug)]
pub struct MetricsWriter {
    path: PathBuf,
    file: File,
}

impl MetricsWriter {
    /// Opens the file for a run that continues from the checkpoint of step `resumed`: lines of later
    /// steps, and a last line that a kill cut short, are removed (atomically) before anything is
    /// appended. `None`, a run from its beginning, removes all lines, step 0 included.
    ///
    /// # Errors
    ///
    /// A line in the middle that is no record; what the file system reports.
    pub fn open(path: &Path, resumed: Option<u64>) -> Result<Self> {
        cut_back(path, resumed)?;
        let file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| Error::io(path, "cannot open the metrics", error))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends a line. It reaches the system in one write, so that a kill loses no earlier line.
    ///
    /// # Errors
    ///
    /// As [`Record::to_json`]; what the file system reports, such as a full disk.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = record.to_json()?;
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|error| Error::io(&self.path, "cannot append to the metrics", error))
    }

    /// Makes what was appended durable. Call it before a checkpoint is completed: a checkpoint must
    /// never be newer than the metrics it continues.
    ///
    /// # Errors
    ///
    /// What the file system reports.
    pub fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| Error::io(&self.path, "cannot sync the metrics", error))
    }
}

/// Reads a file of records; a last line that is cut short is left out. No file, no records.
///
/// # Errors
///
/// Another line that is no record, with its number.
pub fn read_metrics(path: &Path) -> Result<Vec<Record>> {
    Ok(read_lines(path)?
        .into_iter()
        .map(|(_, record)| record)
        .collect())
}

/// Each line with its record.
fn read_lines(path: &Path) -> Result<Vec<(String, Record)>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(path, "cannot read the metrics", error)),
    };
    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    // What follows the last line end: nothing, or a line cut short.
    let last = lines.iter().rposition(|line| !line.is_empty());
    let mut records = Vec::with_capacity(lines.len());
    for (index, line) in lines.iter().enumerate() {
        if line.is_empty() {
            continue;
        }
        let parsed = std::str::from_utf8(line)
            .map_err(|_| "the line is not UTF-8".to_string())
            .and_then(|line| Ok((line.to_string(), Record::from_json(line)?)));
        match parsed {
            Ok(pair) => records.push(pair),
            // A kill or a power cut damages the end of a file only.
            Err(_) if Some(index) == last => {}
            Err(problem) => {
                return Err(Error::new(
                    ErrorKind::Format,
                    format!("{}:{}: {problem}", path.display(), index + 1),
                ));
            }
        }
    }
    Ok(records)
}

/// serde_json's words without its place, which counts from the beginning of the line.
fn json_problem(error: serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.split(" at line ").next().unwrap_or_default();
    format!("expected a JSON object: {words}, column {}", error.column())
}

fn cut_back(path: &Path, resumed: Option<u64>) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut kept = String::new();
    if let Some(step) = resumed {
        for (line, _) in read_lines(path)?
            .into_iter()
            .filter(|(_, record)| record.step <= step)
        {
            kept.push_str(&line);
            kept.push('\n');
        }
    }
    write_atomic(path, kept.as_bytes())
}
