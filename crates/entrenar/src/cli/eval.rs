//! `entrenar eval`: the loss and metrics of a trained model on data.

use super::{Failure, Output};
use std::path::PathBuf;

/// Measure a trained model on data
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The model: the `model` directory of a run
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The data, in the format that the model was trained on
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// An adapter to apply to the model
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
}

/// Prints one line per metric, or one JSON object.
pub(crate) fn run(args: &Args, _output: Output) -> Result<(), Failure> {
    let adapter = args.adapter.as_ref().map_or_else(String::new, |dir| {
        format!(" with adapter {}", dir.display())
    });
    Err(Failure::Run(format!(
        "evaluating {}{adapter} on {} is not built into this version",
        args.model.display(),
        args.data.display()
    )))
}
