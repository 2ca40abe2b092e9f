//! `entrenar predict`: a model's answer for every row of a file.

use super::{Failure, Output, at_hand, json, print};
use entrenar::train::trainer::{PredictionFormat, TextClassifier, TrainedModel};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write a model's predictions for every row of a file
///
/// A published encoder (BERT) reads texts, one per line or the key "text" of JSON Lines, and writes a label with its
/// probability, or a vector where it has no classifier.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The rows to predict: a table, an IDX file of images or a directory of them; targets are not needed
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write the predictions: a name that ends in .csv or .jsonl
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Writes `args.out`, one prediction per row of `args.data`.
pub(crate) fn run(args: &Args, output: Output) -> Result<(), Failure> {
    // A wrong name is told before the work is done.
    PredictionFormat::of(&args.out)?;
    let directory = at_hand(&args.model)?;
    if TextClassifier::is_in(&directory) {
        return texts(args, &directory, output);
    }
    let model = TrainedModel::open(&directory)?;
    let rows = model.predict_file(&super::text(&args.data)?, &args.out)?;
    if output.json {
        return print(&json(&json!({"rows": rows, "out": args.out}))?);
    }
    output.note(&format!("{rows} predictions in {}", args.out.display()));
    Ok(())
}

/// The answers of an encoder for texts.
fn texts(args: &Args, directory: &Path, output: Output) -> Result<(), Failure> {
    let model = TextClassifier::open(directory)?;
    let rows = model.predict_file(&args.data, &args.out)?;
    if output.json {
        return print(&json(&json!({"rows": rows, "out": args.out}))?);
    }
    output.note(&format!("{rows} predictions in {}", args.out.display()));
    Ok(())
}
