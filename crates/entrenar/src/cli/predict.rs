//! `entrenar predict`: a model's answer for every row of a file.

use super::{Failure, Output};
use std::path::PathBuf;

/// Write a model's predictions for every row of a file
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The rows to predict
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where to write the predictions
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Writes `args.out`, one prediction per row of `args.data`.
pub(crate) fn run(args: &Args, _output: Output) -> Result<(), Failure> {
    Err(Failure::Run(format!(
        "predicting {} with {} into {} is not built into this version",
        args.data.display(),
        args.model.display(),
        args.out.display()
    )))
}
