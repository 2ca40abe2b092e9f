//! `entrenar init TASK`: a commented config to start from, on standard output. With `--data` it already names the
//! file and, for a table, its columns.

use super::{Failure, print};
use entrenar::train::config::{self, DataHint, Task};
use std::path::{Path, PathBuf};

/// Print a commented config to start from: entrenar init language-model > config.yaml
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to train: language-model, sft, masked-lm, sequence-classification, classification or regression
    #[arg(value_parser = task)]
    task: Task,
    /// The data: a text, a table (.csv, last column = target) or a directory of IDX images
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
}

fn task(text: &str) -> Result<Task, String> {
    let known = [
        ("language-model", Task::LanguageModel),
        ("sft", Task::Sft),
        ("masked-lm", Task::MaskedLm),
        ("sequence-classification", Task::SequenceClassification),
        ("classification", Task::Classification),
        ("regression", Task::Regression),
    ];
    known
        .iter()
        .find(|(name, _)| *name == text)
        .map(|&(_, task)| task)
        .ok_or_else(|| {
            let later = ["table", "distill", "preference"];
            let why = if later.contains(&text) {
                "not supported by this version"
            } else {
                "unknown task"
            };
            format!("{why}; allowed: {}", known.map(|(name, _)| name).join(", "))
        })
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let hint = args
        .data
        .as_deref()
        .map(|path| hint(path, args.task))
        .transpose()?;
    print(&config::starter(args.task, hint.as_ref()))
}

/// What the data tell about the config.
fn hint(path: &Path, task: Task) -> Result<DataHint, Failure> {
    let text = path
        .to_str()
        .ok_or_else(|| {
            Failure::Usage(format!("--data: the path is not UTF-8: {}", path.display()))
        })?
        .to_owned();
    let metadata = std::fs::metadata(path)
        .map_err(|error| Failure::Usage(format!("--data: cannot read {text}: {error}")))?;
    let mut hint = DataHint {
        path: text,
        images: metadata.is_dir(),
        columns: Vec::new(),
    };
    match task {
        Task::LanguageModel | Task::MaskedLm if hint.images => {
            return Err(Failure::Usage(format!(
                "--data: expected a text file, {} is a directory",
                hint.path
            )));
        }
        Task::Regression if hint.images => {
            return Err(Failure::Usage(format!(
                "--data: expected a table (.csv), {} is a directory",
                hint.path
            )));
        }
        Task::Classification | Task::Regression if !hint.images => hint.columns = columns(path)?,
        _ => {}
    }
    Ok(hint)
}

/// Rows looked at to tell numbers from names.
const ROWS_SEEN: usize = 1_000;

/// The columns of a table, and whether each holds only numbers (or nothing) in its first rows.
fn columns(path: &Path) -> Result<Vec<(String, bool)>, Failure> {
    let wrong = |error: csv::Error| {
        Failure::Usage(format!("--data: cannot read {}: {error}", path.display()))
    };
    let mut reader = csv::Reader::from_path(path).map_err(wrong)?;
    let mut columns: Vec<(String, bool)> = reader
        .headers()
        .map_err(wrong)?
        .iter()
        .map(|name| (name.to_owned(), true))
        .collect();
    if columns.len() < 2 {
        return Err(Failure::Usage(format!(
            "--data: expected a header line with at least two columns in {}, got {}",
            path.display(),
            columns.len()
        )));
    }
    for row in reader.records().take(ROWS_SEEN) {
        for (field, (_, number)) in row.map_err(wrong)?.iter().zip(&mut columns) {
            *number &= field.trim().is_empty() || field.trim().parse::<f64>().is_ok();
        }
    }
    Ok(columns)
}
