//! A model's answer for every row of some data, as CSV or as JSON lines.
//!
//! One prediction a row, in the order of the data. CSV: `row`, `prediction`, and for a classification
//! `probability` and one `probability of LABEL` a label; JSON lines have the same with the
//! probabilities as an object. The file appears when it is complete. Neighbour: `trained.rs`.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use entrenar_base::{Error, Result};
use entrenar_core::no_grad;
use entrenar_nn::{Ctx, Module};
use serde_json::{Map, Value, json};

use super::objective::greatest;
use super::trained::TrainedModel;
use crate::config::Task;
use crate::data::{Dataset, Loader, LoaderConfig, Preprocessing};

/// The answer for one row.
#[derive(Clone, Debug, PartialEq)]
pub enum Prediction {
    /// A class, by its number, with the probabilities of all classes.
    Class {
        /// The most probable class.
        class: usize,
        /// One number a class; they add up to 1.
        probabilities: Vec<f32>,
    },
    /// A number on the scale of the table.
    Value(f64),
    /// A vector that stands for a text.
    Embedding(Vec<f32>),
}

/// The format of a file of predictions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PredictionFormat {
    /// A table with a header line.
    Csv,
    /// One JSON object a line.
    JsonLines,
}

impl PredictionFormat {
    /// By the ending of a file name: `.csv`, or `.jsonl` and `.ndjson`.
    ///
    /// # Errors
    ///
    /// Another ending.
    pub fn of(path: &Path) -> Result<Self> {
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        match ending.as_ref().and_then(|ending| ending.to_str()) {
            Some("csv") => Ok(Self::Csv),
            Some("jsonl" | "ndjson") => Ok(Self::JsonLines),
            _ => Err(Error::config(format!(
                "{}: expected a name that ends in .csv or .jsonl",
                path.display()
            ))),
        }
    }
}

impl TrainedModel {
    /// Hands the prediction for every row of `data` to `each`, with the number of the row from 0.
    ///
    /// # Errors
    ///
    /// A language model (it generates), what the data or the model reports, and errors of `each`.
    pub fn predict(
        &self,
        data: Arc<dyn Dataset>,
        mut each: impl FnMut(usize, Prediction) -> Result<()>,
    ) -> Result<()> {
        const ROWS: usize = 64;
        self.check_answers()?;
        let mut loader = Loader::new(data, LoaderConfig::evaluation(ROWS))?;
        let mut row = 0;
        for batch in loader.epoch() {
            let inputs = batch?.inputs.into();
            let output = no_grad(|| self.model().forward(&inputs, &mut Ctx::eval()))?;
            let width = output.dims().last().copied().unwrap_or(1).max(1);
            for answer in output.to_vec::<f32>()?.chunks_exact(width) {
                each(row, self.answer(answer))?;
                row += 1;
            }
        }
        Ok(())
    }

    fn check_answers(&self) -> Result<()> {
        if self.task() != Task::LanguageModel {
            return Ok(());
        }
        Err(Error::config(
            "a language model has no answer per row: `generate` continues a text, `eval` measures it",
        ))
    }

    fn answer(&self, output: &[f32]) -> Prediction {
        match (self.task(), self.preprocessing()) {
            (Task::Regression, Preprocessing::Table(table)) => {
                Prediction::Value(table.original_target(f64::from(output[0])))
            }
            _ => Prediction::Class {
                class: greatest(output),
                probabilities: softmax(output),
            },
        }
    }

    /// Predicts every row of the data at `path` into the file `out`, whose ending says the format;
    /// the number of rows.
    ///
    /// # Errors
    ///
    /// As [`TrainedModel::predict`]; what the file system reports. `out` is then as it was.
    pub fn predict_file(&self, path: &str, out: &Path) -> Result<usize> {
        let format = PredictionFormat::of(out)?;
        self.check_answers()?;
        let data = self.read(path, false)?;
        write_predictions(out, self.preprocessing().labels(), format, |each| {
            self.predict(data, each)
        })
    }
}

/// Writes what `make` hands out into the file `out`; the number of rows.
///
/// # Errors
///
/// Those of `make`; what the file system reports. `out` is then as it was.
pub(super) fn write_predictions(
    out: &Path,
    labels: &[String],
    format: PredictionFormat,
    make: impl FnOnce(&mut dyn FnMut(usize, Prediction) -> Result<()>) -> Result<()>,
) -> Result<usize> {
    let file = Output::create(out)?;
    let mut writer = Writer {
        to: BufWriter::new(&file.file),
        out,
        labels,
        format,
    };
    let mut rows = 0;
    make(&mut |row, prediction| {
        if row == 0 {
            writer.header(&prediction)?;
        }
        rows = row + 1;
        writer.row(row, &prediction)
    })?;
    let written = writer.to.flush();
    drop(writer);
    written.map_err(|error| Error::io(out, "cannot write the predictions", error))?;
    file.finish(out)?;
    Ok(rows)
}

/// exp(x − max) over its sum.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| (power / sum) as f32).collect()
}

struct Writer<'a> {
    to: BufWriter<&'a File>,
    out: &'a Path,
    labels: &'a [String],
    format: PredictionFormat,
}

impl Writer<'_> {
    fn line(&mut self, line: &str) -> Result<()> {
        writeln!(self.to, "{line}")
            .map_err(|error| Error::io(self.out, "cannot write the predictions", error))
    }

    fn header(&mut self, first: &Prediction) -> Result<()> {
        if self.format == PredictionFormat::JsonLines {
            return Ok(());
        }
        if let Prediction::Embedding(vector) = first {
            let names: Vec<String> = (0..vector.len())
                .map(|i| format!(",embedding {i}"))
                .collect();
            return self.line(&format!("row{}", names.concat()));
        }
        let mut names = vec!["row".to_string(), "prediction".to_string()];
        if !self.labels.is_empty() {
            names.push("probability".to_string());
            names.extend(
                self.labels
                    .iter()
                    .map(|label| format!("probability of {label}")),
            );
        }
        let names: Vec<String> = names.iter().map(|name| quoted(name)).collect();
        self.line(&names.join(","))
    }

    fn row(&mut self, row: usize, prediction: &Prediction) -> Result<()> {
        let label = |class: usize| match self.labels.get(class) {
            Some(label) => label.clone(),
            None => class.to_string(),
        };
        let line = match (self.format, prediction) {
            (PredictionFormat::Csv, Prediction::Value(value)) => format!("{},{value}", row + 1),
            (
                PredictionFormat::Csv,
                Prediction::Class {
                    class,
                    probabilities,
                },
            ) => {
                let mut cells = vec![(row + 1).to_string(), quoted(&label(*class))];
                cells.push(short(probabilities[*class]).to_string());
                cells.extend(probabilities.iter().map(|p| short(*p).to_string()));
                cells.join(",")
            }
            (PredictionFormat::Csv, Prediction::Embedding(vector)) => {
                let cells: Vec<String> = vector.iter().map(|x| format!(",{x}")).collect();
                format!("{}{}", row + 1, cells.concat())
            }
            (PredictionFormat::JsonLines, Prediction::Embedding(vector)) => {
                let vector: Vec<Value> = vector.iter().map(|x| short(*x)).collect();
                json!({"row": row + 1, "embedding": vector}).to_string()
            }
            (PredictionFormat::JsonLines, Prediction::Value(value)) => {
                json!({"row": row + 1, "prediction": value}).to_string()
            }
            (
                PredictionFormat::JsonLines,
                Prediction::Class {
                    class,
                    probabilities,
                },
            ) => {
                let all: Map<String, Value> = probabilities
                    .iter()
                    .enumerate()
                    .map(|(class, probability)| (label(class), short(*probability)))
                    .collect();
                json!({
                    "row": row + 1,
                    "prediction": label(*class),
                    "probability": short(probabilities[*class]),
                    "probabilities": all,
                })
                .to_string()
            }
        };
        self.line(&line)
    }
}

/// An f32 with no more digits than it has: as an f64, 0.1 would be 0.10000000149011612.
fn short(value: f32) -> Value {
    value
        .to_string()
        .parse::<f64>()
        .map_or(Value::Null, Value::from)
}

/// A cell of a CSV line.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_string()
    }
}

/// A file under another name until it is complete; removed when that never comes.
struct Output {
    file: File,
    // Empty where `out` is no plain file, such as a pipe: written in place then.
    temporary: Option<PathBuf>,
}

impl Output {
    fn create(out: &Path) -> Result<Self> {
        let special = fs::metadata(out).is_ok_and(|found| !found.is_file());
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let temporary =
            (!special).then(|| out.with_file_name(format!(".{name}.{}.part", std::process::id())));
        let path = temporary.as_deref().unwrap_or(out);
        let file = File::create(path)
            .map_err(|error| Error::io(out, "cannot write the predictions", error))?;
        Ok(Self { file, temporary })
    }

    fn finish(mut self, out: &Path) -> Result<()> {
        match self.temporary.take() {
            None => Ok(()),
            Some(temporary) => fs::rename(&temporary, out).map_err(|error| {
                // The error is what matters; the leftover is only tried to be removed.
                drop(fs::remove_file(&temporary));
                Error::io(out, "cannot put the predictions in place", error)
            }),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            drop(fs::remove_file(temporary));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_survive_large_logits() {
        assert_eq!(softmax(&[1e4, 1e4]), [0.5, 0.5]);
        let p = softmax(&[0.0, 1.0, 2.0]);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((p[2] / p[1] - std::f32::consts::E).abs() < 1e-5);
    }

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        assert_eq!(quoted("plain text"), "plain text");
        assert_eq!(quoted("a,\"b\"\n"), "\"a,\"\"b\"\"\n\"");
    }

    #[test]
    fn the_ending_says_the_format() {
        let of = |name: &str| PredictionFormat::of(Path::new(name));
        assert_eq!(of("a/b.CSV").unwrap(), PredictionFormat::Csv);
        assert_eq!(of("b.ndjson").unwrap(), PredictionFormat::JsonLines);
        assert_eq!(
            of("b.txt").unwrap_err().to_string(),
            "b.txt: expected a name that ends in .csv or .jsonl"
        );
    }
}
